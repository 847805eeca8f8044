//! Inodes: reading and writing them, their names counted, their attributes changed.

use super::keys;
use super::record::{Body, Counters, Entry, Inode};
use super::tx::{Outcome, Tx, broken, fail};
use torchfs_core::layout::Profile;
use torchfs_core::meta::{Attr, AttrChange, Name, SetTime, Timestamp};
use torchfs_core::{Error, InodeId, Kind, Result};

/// Permission bits with suid, sgid and sticky.
const MODE_BITS: u32 = 0o7777;

pub(super) fn counters(tx: &Tx<'_>) -> Outcome<Counters> {
    match tx.get(&keys::counters())? {
        Some(counters) => Ok(counters),
        None => fail(Kind::Unavailable, "the metadata cluster is not founded yet; try again"),
    }
}

pub(super) fn edit_counters<T>(tx: &mut Tx<'_>, edit: impl FnOnce(&mut Counters) -> T) -> Outcome<T> {
    let mut counters = counters(tx)?;
    let result = edit(&mut counters);
    tx.put(keys::counters(), &counters)?;
    Ok(result)
}

pub(super) fn find(tx: &Tx<'_>, ino: InodeId) -> Outcome<Option<Inode>> {
    tx.get(&keys::inode(ino))
}

/// An inode, with or without a name.
pub(super) fn get(tx: &Tx<'_>, ino: InodeId) -> Outcome<Inode> {
    match find(tx, ino)? {
        Some(inode) => Ok(inode),
        None => fail(Kind::NotFound, format!("there is no inode {ino}")),
    }
}

/// An inode that a record names.
pub(super) fn get_named(tx: &Tx<'_>, ino: InodeId) -> Outcome<Inode> {
    match find(tx, ino)? {
        Some(inode) => Ok(inode),
        None => broken(format!("inode {ino} is named and not there")),
    }
}

/// A folder that has a name, in which names can be looked up and made.
pub(super) fn folder(tx: &Tx<'_>, ino: InodeId) -> Outcome<Inode> {
    let inode = get(tx, ino)?;
    if !inode.is_folder() {
        return fail(Kind::NotDirectory, format!("inode {ino} is not a folder"));
    }
    if inode.nlink == 0 {
        return fail(Kind::NotFound, format!("folder {ino} was removed"));
    }
    Ok(inode)
}

pub(super) fn put(tx: &mut Tx<'_>, ino: InodeId, inode: &Inode) -> Outcome<()> {
    tx.put(keys::inode(ino), inode)
}

pub(super) fn entry(tx: &Tx<'_>, (parent, name): (InodeId, &Name)) -> Outcome<Option<Entry>> {
    tx.get(&keys::entry(parent, name))
}

/// The folder above a folder; the root's is the root.
pub(super) fn parent_of(ino: InodeId, inode: &Inode) -> Outcome<InodeId> {
    match inode.body {
        Body::Directory { parent, .. } => Ok(parent),
        _ => fail(Kind::NotDirectory, format!("inode {ino} is not a folder")),
    }
}

/// Whether `above` is `ino` or a folder above it.
pub(super) fn is_at_or_above(tx: &Tx<'_>, above: InodeId, mut ino: InodeId) -> Outcome<bool> {
    while ino != above {
        if ino == InodeId::ROOT {
            return Ok(false);
        }
        ino = parent_of(ino, &get_named(tx, ino)?)?;
    }
    Ok(true)
}

/// The profile that new files in a folder take: its own or the nearest above. And whether it is its own.
pub(super) fn folder_profile(tx: &Tx<'_>, ino: InodeId, inode: &Inode) -> Outcome<(Profile, bool)> {
    let mut at = (ino, inode.clone());
    loop {
        let Body::Directory { parent, profile } = at.1.body else {
            return broken(format!("inode {} is the parent of a folder and none itself", at.0));
        };
        match profile {
            Some(profile) => return Ok((profile, at.0 == ino)),
            None if at.0 == InodeId::ROOT => return broken("the root folder has no profile"),
            None => at = (parent, get_named(tx, parent)?),
        }
    }
}

/// Counts an inode in or out of the namespace.
pub(super) fn count(tx: &mut Tx<'_>, inode: &Inode, change: Count) -> Outcome<()> {
    let file = matches!(inode.body, Body::File { .. });
    edit_counters(tx, |counters| match change {
        Count::In => {
            counters.inodes += 1;
            counters.files += u64::from(file);
            counters.bytes += if file { u128::from(inode.size) } else { 0 };
        }
        Count::Out => {
            counters.inodes -= 1;
            counters.files -= u64::from(file);
            counters.bytes -= if file { u128::from(inode.size) } else { 0 };
        }
    })
}

/// Which way an inode goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Count {
    In,
    Out,
}

/// Takes a name from an inode (a folder's only one). Without a name it stays, for those who have it open, until it is
/// collected.
pub(super) fn drop_name(tx: &mut Tx<'_>, time: Timestamp, ino: InodeId) -> Outcome<Attr> {
    let mut inode = get_named(tx, ino)?;
    inode.nlink = if inode.is_folder() { 0 } else { inode.nlink.saturating_sub(1) };
    inode.ctime = time;
    if inode.nlink == 0 {
        inode.orphan_since = Some(time);
        tx.put(keys::orphan(time, ino), &())?;
        count(tx, &inode, Count::Out)?;
    }
    put(tx, ino, &inode)?;
    Ok(inode.attr(ino))
}

pub(super) fn check_mode(mode: u32) -> Result<()> {
    if mode & !MODE_BITS == 0 {
        return Ok(());
    }
    Err(Error::new(Kind::InvalidInput, format!("mode {mode:o} has more than the bits {MODE_BITS:o}")))
}

pub(super) fn check_time(time: Option<SetTime>) -> Result<()> {
    match time {
        Some(SetTime::At(time)) => time.checked().map(|_| ()),
        Some(SetTime::Now) | None => Ok(()),
    }
}

pub(super) fn resolve_time(time: SetTime, now: Timestamp) -> Timestamp {
    match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

pub(super) fn set_attr(tx: &mut Tx<'_>, time: Timestamp, ino: InodeId, change: &AttrChange) -> Outcome<Attr> {
    change.mode.map_or(Ok(()), check_mode)?;
    check_time(change.atime)?;
    check_time(change.mtime)?;
    let mut inode = get(tx, ino)?;
    inode.mode = change.mode.unwrap_or(inode.mode);
    inode.uid = change.uid.unwrap_or(inode.uid);
    inode.gid = change.gid.unwrap_or(inode.gid);
    inode.atime = change.atime.map_or(inode.atime, |at| resolve_time(at, time));
    inode.mtime = change.mtime.map_or(inode.mtime, |at| resolve_time(at, time));
    inode.ctime = time;
    put(tx, ino, &inode)?;
    Ok(inode.attr(ino))
}

pub(super) fn set_profile(tx: &mut Tx<'_>, time: Timestamp, ino: InodeId, profile: Option<Profile>) -> Outcome<()> {
    if let Some(profile) = profile {
        profile.checked()?;
    }
    let mut inode = folder(tx, ino)?;
    if profile.is_none() && ino == InodeId::ROOT {
        return fail(Kind::InvalidInput, "the root folder has nothing to inherit a profile from; give it one");
    }
    if let Body::Directory { profile: own, .. } = &mut inode.body {
        *own = profile;
    }
    inode.ctime = time;
    put(tx, ino, &inode)
}
