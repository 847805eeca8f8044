//! rename(2): move, replace, exchange, with the order of errors of Linux.

use super::dir::{self, Place};
use super::inode;
use super::record::{Body, Entry};
use super::tx::{Outcome, Tx, fail};
use torchfs_core::meta::{Attr, FileKind, MetaReply, RenameMode, Timestamp};
use torchfs_core::{InodeId, Kind};

pub(super) fn rename(
    tx: &mut Tx<'_>,
    time: Timestamp,
    from: Place<'_>,
    to: Place<'_>,
    mode: RenameMode,
) -> Outcome<MetaReply> {
    inode::folder(tx, from.0)?;
    inode::folder(tx, to.0)?;
    let source = dir::existing(tx, from)?;
    let target = inode::entry(tx, to)?;
    match (mode, target) {
        (RenameMode::NoReplace, Some(_)) => return fail(Kind::Exists, format!("'{}' exists", to.1)),
        (RenameMode::Exchange, None) => return fail(Kind::NotFound, format!("there is no '{}' to swap with", to.1)),
        _ => {}
    }
    check_ancestry(tx, (source, from), (target, to), mode)?;
    // Two names of one inode: rename(2) leaves both.
    if target.is_some_and(|target| target.ino == source.ino) {
        let moved = inode::get_named(tx, source.ino)?.attr(source.ino);
        return Ok(MetaReply::Renamed { moved, other: None });
    }
    let moved = match target {
        Some(target) if mode == RenameMode::Exchange => exchange(tx, time, (source, from), (target, to))?,
        target => {
            if let Some(target) = target {
                remove_target(tx, time, source, target, to)?;
            }
            dir::remove_entry(tx, time, from, source)?;
            dir::add_entry(tx, time, to, source)?;
            moved(tx, time, source.ino, to.0)?
        }
    };
    Ok(MetaReply::Renamed { moved, other: target.map(|target| target.ino) })
}

fn check_ancestry(
    tx: &Tx<'_>,
    (source, from): (Entry, Place<'_>),
    (target, to): (Option<Entry>, Place<'_>),
    mode: RenameMode,
) -> Outcome<()> {
    if from.0 == to.0 {
        return Ok(());
    }
    if source.kind == FileKind::Directory && inode::is_at_or_above(tx, source.ino, to.0)? {
        return fail(Kind::InvalidInput, format!("folder '{}' cannot be moved into itself", from.1));
    }
    let target = target.filter(|target| target.kind == FileKind::Directory);
    let target_above = target.map_or(Ok(false), |target| inode::is_at_or_above(tx, target.ino, from.0))?;
    match mode {
        _ if !target_above => Ok(()),
        RenameMode::Exchange => fail(Kind::InvalidInput, format!("folder '{}' cannot be moved into itself", to.1)),
        _ => fail(Kind::NotEmpty, format!("folder '{}' holds what is to replace it", to.1)),
    }
}

fn remove_target(tx: &mut Tx<'_>, time: Timestamp, source: Entry, target: Entry, to: Place<'_>) -> Outcome<()> {
    match (source.kind == FileKind::Directory, target.kind == FileKind::Directory) {
        (true, false) => return fail(Kind::NotDirectory, format!("'{}' is not a folder", to.1)),
        (false, true) => return fail(Kind::IsDirectory, format!("'{}' is a folder", to.1)),
        (true, true) => dir::require_empty(tx, to, target)?,
        (false, false) => {}
    }
    dir::remove_entry(tx, time, to, target)?;
    inode::drop_name(tx, time, target.ino).map(|_| ())
}

fn exchange(
    tx: &mut Tx<'_>,
    time: Timestamp,
    (source, from): (Entry, Place<'_>),
    (target, to): (Entry, Place<'_>),
) -> Outcome<Attr> {
    dir::remove_entry(tx, time, from, source)?;
    dir::remove_entry(tx, time, to, target)?;
    dir::add_entry(tx, time, from, target)?;
    dir::add_entry(tx, time, to, source)?;
    moved(tx, time, target.ino, from.0)?;
    moved(tx, time, source.ino, to.0)
}

/// Tells an inode that it was moved, and a folder which folder it is in now.
fn moved(tx: &mut Tx<'_>, time: Timestamp, ino: InodeId, new_parent: InodeId) -> Outcome<Attr> {
    let mut inode = inode::get_named(tx, ino)?;
    inode.ctime = time;
    if let Body::Directory { parent, .. } = &mut inode.body {
        *parent = new_parent;
    }
    inode::put(tx, ino, &inode)?;
    Ok(inode.attr(ino))
}
