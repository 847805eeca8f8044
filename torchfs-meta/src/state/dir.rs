//! Names: create, link, unlink, rmdir, with the error precedence of Linux.

use super::content;
use super::inode::{self, Count};
use super::keys;
use super::record::{Body, Entry, Inode};
use super::tx::{Outcome, Tx, fail};
use torchfs_core::meta::{Attr, ContentChange, FileKind, IfExists, Name, NewInode, NewKind, Timestamp};
use torchfs_core::settings::{LINKS_MAX, PATH_BYTES_MAX};
use torchfs_core::{Error, InodeId, Kind, Result, Version};

/// A name and the folder it is in.
pub(super) type Place<'a> = (InodeId, &'a Name);

const SGID: u32 = 0o2000;

pub(super) fn create(
    tx: &mut Tx<'_>,
    time: Timestamp,
    place: Place<'_>,
    new: &NewInode,
    if_exists: IfExists,
    content: Option<&ContentChange>,
) -> Outcome<Attr> {
    check_new(new, content)?;
    let parent = inode::folder(tx, place.0)?;
    let Some(there) = inode::entry(tx, place)? else {
        return create_new(tx, time, place, &parent, new, content);
    };
    match if_exists {
        IfExists::Keep if there.kind == new.kind.kind() => Ok(inode::get_named(tx, there.ino)?.attr(there.ino)),
        IfExists::Replace if there.kind == FileKind::File && new.kind == NewKind::File => {
            replace(tx, time, there.ino, &parent, place.0, new, content)
        }
        IfExists::Replace if there.kind == FileKind::Directory && new.kind != NewKind::Directory => {
            fail(Kind::IsDirectory, format!("'{}' is a folder", place.1))
        }
        _ => fail(Kind::Exists, format!("'{}' exists", place.1)),
    }
}

fn check_new(new: &NewInode, content: Option<&ContentChange>) -> Result<()> {
    inode::check_mode(new.mode)?;
    new.mtime.map_or(Ok(new.gid), |time| time.checked().map(|_| new.gid))?;
    if let NewKind::Symlink(target) = &new.kind {
        check_target(target)?;
    }
    match content {
        Some(_) if new.kind != NewKind::File => {
            Err(Error::new(Kind::InvalidInput, "only a regular file can have content"))
        }
        Some(content) => content::check(content),
        None => Ok(()),
    }
}

fn check_target(target: &[u8]) -> Result<()> {
    if target.len() > PATH_BYTES_MAX {
        let message = format!("link target of {} bytes; at most {PATH_BYTES_MAX} are possible", target.len());
        return Err(Error::new(Kind::NameTooLong, message));
    }
    if target.is_empty() || target.contains(&0) {
        return Err(Error::new(Kind::InvalidInput, "a link target must not be empty or hold a NUL byte"));
    }
    Ok(())
}

fn create_new(
    tx: &mut Tx<'_>,
    time: Timestamp,
    place: Place<'_>,
    parent: &Inode,
    new: &NewInode,
    content: Option<&ContentChange>,
) -> Outcome<Attr> {
    let (profile, _) = inode::folder_profile(tx, place.0, parent)?;
    let number = inode::edit_counters(tx, |counters| {
        let number = counters.next_inode;
        counters.next_inode += 1;
        number
    })?;
    let (ino, kind) = (InodeId(number), new.kind.kind());
    let folder = kind == FileKind::Directory;
    let inherited = if folder { parent.mode & SGID } else { 0 };
    let mut inode = Inode {
        body: Body::new(&new.kind, place.0, profile),
        mode: new.mode | inherited,
        nlink: if folder { 2 } else { 1 },
        uid: new.uid,
        gid: new_gid(parent, new),
        size: if let NewKind::Symlink(target) = &new.kind { target.len() as u64 } else { 0 },
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        version: Version(0),
        xattr_bytes: 0,
        orphan_since: None,
    };
    inode::count(tx, &inode, Count::In)?;
    if let Some(content) = content {
        content::change(tx, time, ino, &mut inode, content)?;
    }
    inode.mtime = new.mtime.unwrap_or(inode.mtime);
    inode::put(tx, ino, &inode)?;
    add_entry(tx, time, place, Entry { ino, kind })?;
    Ok(inode.attr(ino))
}

/// A folder with the sgid bit gives its group to what is made in it.
fn new_gid(parent: &Inode, new: &NewInode) -> u32 {
    if parent.mode & SGID != 0 { parent.gid } else { new.gid }
}

fn replace(
    tx: &mut Tx<'_>,
    time: Timestamp,
    ino: InodeId,
    parent: &Inode,
    parent_ino: InodeId,
    new: &NewInode,
    content: Option<&ContentChange>,
) -> Outcome<Attr> {
    let (profile, _) = inode::folder_profile(tx, parent_ino, parent)?;
    let mut inode = inode::get_named(tx, ino)?;
    inode.body = Body::File { profile };
    inode.mode = new.mode;
    inode.uid = new.uid;
    inode.gid = new_gid(parent, new);
    let whole = ContentChange { keep_bytes: Some(0), ..content.cloned().unwrap_or_else(ContentChange::nothing) };
    content::change(tx, time, ino, &mut inode, &whole)?;
    inode.mtime = new.mtime.unwrap_or(inode.mtime);
    inode::put(tx, ino, &inode)?;
    Ok(inode.attr(ino))
}

pub(super) fn link(tx: &mut Tx<'_>, time: Timestamp, ino: InodeId, place: Place<'_>) -> Outcome<Attr> {
    let mut inode = inode::get(tx, ino)?;
    inode::folder(tx, place.0)?;
    if inode::entry(tx, place)?.is_some() {
        return fail(Kind::Exists, format!("'{}' exists", place.1));
    }
    if inode.is_folder() {
        return fail(Kind::NotPermitted, format!("inode {ino} is a folder, which has one name only"));
    }
    if inode.nlink == 0 {
        return fail(Kind::NotFound, format!("inode {ino} was removed"));
    }
    if inode.nlink >= LINKS_MAX {
        return fail(Kind::TooManyLinks, format!("inode {ino} has {} names already", inode.nlink));
    }
    inode.nlink += 1;
    inode.ctime = time;
    inode::put(tx, ino, &inode)?;
    add_entry(tx, time, place, Entry { ino, kind: inode.kind() })?;
    Ok(inode.attr(ino))
}

pub(super) fn unlink(tx: &mut Tx<'_>, time: Timestamp, place: Place<'_>) -> Outcome<Attr> {
    inode::folder(tx, place.0)?;
    let there = existing(tx, place)?;
    if there.kind == FileKind::Directory {
        return fail(Kind::IsDirectory, format!("'{}' is a folder", place.1));
    }
    remove_entry(tx, time, place, there)?;
    inode::drop_name(tx, time, there.ino)
}

pub(super) fn rmdir(tx: &mut Tx<'_>, time: Timestamp, place: Place<'_>) -> Outcome<Attr> {
    inode::folder(tx, place.0)?;
    let there = existing(tx, place)?;
    if there.kind != FileKind::Directory {
        return fail(Kind::NotDirectory, format!("'{}' is not a folder", place.1));
    }
    require_empty(tx, place, there)?;
    remove_entry(tx, time, place, there)?;
    inode::drop_name(tx, time, there.ino)
}

pub(super) fn existing(tx: &Tx<'_>, place: Place<'_>) -> Outcome<Entry> {
    match inode::entry(tx, place)? {
        Some(entry) => Ok(entry),
        None => fail(Kind::NotFound, format!("there is no '{}'", place.1)),
    }
}

pub(super) fn require_empty(tx: &Tx<'_>, place: Place<'_>, folder: Entry) -> Outcome<()> {
    match inode::get_named(tx, folder.ino)?.size {
        0 => Ok(()),
        entries => fail(Kind::NotEmpty, format!("folder '{}' has {entries} entries", place.1)),
    }
}

/// Enters a name and tells its folder.
pub(super) fn add_entry(tx: &mut Tx<'_>, time: Timestamp, place: Place<'_>, entry: Entry) -> Outcome<()> {
    let mut parent = inode::get_named(tx, place.0)?;
    parent.size += 1;
    if entry.kind == FileKind::Directory {
        let Some(nlink) = parent.nlink.checked_add(1) else {
            return fail(Kind::TooManyLinks, format!("folder {} has too many folders in it", place.0));
        };
        parent.nlink = nlink;
    }
    parent.mtime = time;
    parent.ctime = time;
    inode::put(tx, place.0, &parent)?;
    tx.put(keys::entry(place.0, place.1), &entry)
}

/// Takes a name out and tells its folder.
pub(super) fn remove_entry(tx: &mut Tx<'_>, time: Timestamp, place: Place<'_>, entry: Entry) -> Outcome<()> {
    let mut parent = inode::get_named(tx, place.0)?;
    parent.size = parent.size.saturating_sub(1);
    if entry.kind == FileKind::Directory {
        parent.nlink = parent.nlink.saturating_sub(1);
    }
    parent.mtime = time;
    parent.ctime = time;
    inode::put(tx, place.0, &parent)?;
    tx.delete(keys::entry(place.0, place.1));
    Ok(())
}
