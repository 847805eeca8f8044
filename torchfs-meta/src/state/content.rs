//! Content of files: commits, and the end of inodes that nobody names any more.

use super::inode::{self, edit_counters};
use super::keys;
use super::record::{Body, Inode};
use super::tx::{Outcome, Tx, broken, fail};
use super::{extent, stripe, xattr};
use torchfs_core::meta::{Attr, ContentChange, Timestamp};
use torchfs_core::settings::FILE_BYTES_MAX;
use torchfs_core::{Error, InodeId, Kind, Result, Version};

/// Most inodes that one collection removes; it also stops after about this many extents.
const COLLECT_INODES_MAX: usize = 256;
const COLLECT_EXTENTS_MAX: usize = 16 * 1024;

pub(super) fn commit(tx: &mut Tx<'_>, time: Timestamp, ino: InodeId, content: &ContentChange) -> Outcome<Attr> {
    check(content)?;
    let mut inode = inode::get(tx, ino)?;
    require_file(ino, &inode)?;
    change(tx, time, ino, &mut inode, content)?;
    inode::put(tx, ino, &inode)?;
    Ok(inode.attr(ino))
}

pub(super) fn require_file(ino: InodeId, inode: &Inode) -> Outcome<()> {
    match inode.body {
        Body::File { .. } => Ok(()),
        Body::Directory { .. } => fail(Kind::IsDirectory, format!("inode {ino} is a folder")),
        _ => fail(Kind::InvalidInput, format!("inode {ino} is not a regular file")),
    }
}

/// Checks all that can be seen from the change alone.
pub(super) fn check(change: &ContentChange) -> Result<()> {
    inode::check_time(Some(change.mtime))?;
    if change.size_min > FILE_BYTES_MAX {
        return Err(too_large(change.size_min));
    }
    let mut end = 0;
    for extent in &change.extents {
        let extent_end = extent.offset.saturating_add(extent.len.into());
        if extent_end > FILE_BYTES_MAX {
            return Err(too_large(extent_end));
        }
        if extent.len == 0 || extent.offset < end {
            let message = format!("extents must be in file order, not empty and not overlapping; {extent:?} is not");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        end = extent_end;
    }
    if let Some((offset, len)) = change.holes.iter().find(|(offset, len)| offset.checked_add(*len).is_none()) {
        return Err(Error::new(Kind::InvalidInput, format!("impossible hole of {len} bytes at {offset}")));
    }
    change.stripes.iter().try_for_each(stripe::check)
}

fn too_large(bytes: u64) -> Error {
    Error::new(Kind::FileTooLarge, format!("a file of {bytes} bytes; at most {FILE_BYTES_MAX} are possible"))
}

/// Makes the next version of a checked change. The inode is changed, not written.
pub(super) fn change(
    tx: &mut Tx<'_>,
    time: Timestamp,
    ino: InodeId,
    inode: &mut Inode,
    change: &ContentChange,
) -> Outcome<()> {
    stripe::admit(tx, change)?;
    let live = extent::rewrite(tx, ino, change)?;
    for (&id, &bytes) in &live {
        stripe::adjust(tx, time, id, bytes)?;
    }
    let old_size = inode.size;
    let cut = change.keep_bytes.map_or(old_size, |keep| keep.min(old_size));
    let reach = change.extents.last().map_or(0, torchfs_core::layout::Extent::end);
    inode.size = cut.max(reach).max(change.size_min);
    inode.allocated = inode.allocated.saturating_add_signed(live.values().sum());
    inode.version = Version(inode.version.0 + 1);
    inode.mtime = inode::resolve_time(change.mtime, time);
    inode.ctime = time;
    if inode.nlink > 0 && inode.size != old_size {
        let new_size = inode.size;
        edit_counters(tx, |counters| counters.bytes = counters.bytes + u128::from(new_size) - u128::from(old_size))?;
    }
    Ok(())
}

/// Removes some inodes that have been without a name since before `before`, with all that is theirs.
pub(super) fn collect_orphans(tx: &mut Tx<'_>, before: Timestamp) -> Outcome<()> {
    let mut extents = 0;
    for (key, _) in tx.scan(&[keys::ORPHANS], &keys::orphans_before(before), COLLECT_INODES_MAX)? {
        if extents >= COLLECT_EXTENTS_MAX {
            break;
        }
        let Some(ino) = keys::last_number(&key).map(InodeId) else {
            return broken(format!("orphan key {key:02x?} is too short"));
        };
        extents += collect(tx, ino)?;
        tx.delete(key);
    }
    Ok(())
}

fn collect(tx: &mut Tx<'_>, ino: InodeId) -> Outcome<usize> {
    // Those who have it open had since then to read on: its stripes need not wait once more.
    let Some(since) = inode::get(tx, ino)?.orphan_since else {
        return broken(format!("inode {ino} is to be collected and has a name"));
    };
    let (live, extents) = extent::clear(tx, ino)?;
    for (&id, &bytes) in &live {
        stripe::adjust(tx, since, id, bytes)?;
    }
    xattr::clear(tx, ino)?;
    tx.delete(keys::inode(ino));
    Ok(extents)
}
