//! Extended attributes, by the rules of setxattr(2).

use super::inode;
use super::keys;
use super::tx::{Outcome, Tx, broken, fail, successor};
use torchfs_core::meta::{Timestamp, XattrMode, XattrName};
use torchfs_core::settings::XATTR_BYTES_MAX;
use torchfs_core::{InodeId, Kind};

/// Values that one scan brings, each up to 64 KiB.
const SCAN_VALUES: usize = 16;

pub(super) fn set(
    tx: &mut Tx<'_>,
    time: Timestamp,
    ino: InodeId,
    name: &XattrName,
    value: &[u8],
    mode: XattrMode,
) -> Outcome<()> {
    if value.len() > XATTR_BYTES_MAX {
        let message = format!("attribute '{name}' of {} bytes; at most {XATTR_BYTES_MAX} are possible", value.len());
        return fail(Kind::TooLarge, message);
    }
    let mut inode = inode::get(tx, ino)?;
    let there = find(tx, ino, name)?.is_some();
    match mode {
        XattrMode::Create if there => return fail(Kind::Exists, format!("attribute '{name}' exists")),
        XattrMode::Replace if !there => return fail(Kind::NoAttribute, format!("there is no attribute '{name}'")),
        _ => {}
    }
    if !there {
        inode.xattr_bytes += list_bytes(name);
    }
    // listxattr(2) returns all names, each with a NUL, in at most 64 KiB.
    if inode.xattr_bytes as usize > XATTR_BYTES_MAX {
        return fail(
            Kind::TooLarge,
            format!("the names of all attributes of inode {ino} pass {XATTR_BYTES_MAX} bytes"),
        );
    }
    inode.ctime = time;
    inode::put(tx, ino, &inode)?;
    tx.put(keys::xattr(ino, name), &value)
}

pub(super) fn remove(tx: &mut Tx<'_>, time: Timestamp, ino: InodeId, name: &XattrName) -> Outcome<()> {
    let mut inode = inode::get(tx, ino)?;
    get(tx, ino, name)?;
    inode.xattr_bytes = inode.xattr_bytes.saturating_sub(list_bytes(name));
    inode.ctime = time;
    inode::put(tx, ino, &inode)?;
    tx.delete(keys::xattr(ino, name));
    Ok(())
}

/// The value, or `NoAttribute`.
pub(super) fn get(tx: &Tx<'_>, ino: InodeId, name: &XattrName) -> Outcome<Vec<u8>> {
    match find(tx, ino, name)? {
        Some(value) => Ok(value),
        None => fail(Kind::NoAttribute, format!("there is no attribute '{name}'")),
    }
}

/// The names of all, in byte order.
pub(super) fn names(tx: &Tx<'_>, ino: InodeId) -> Outcome<Vec<XattrName>> {
    let prefix = keys::xattrs(ino);
    keys_of(tx, ino)?.iter().map(|key| name_in(key, &prefix)).collect()
}

/// Deletes all.
pub(super) fn clear(tx: &mut Tx<'_>, ino: InodeId) -> Outcome<()> {
    keys_of(tx, ino)?.into_iter().for_each(|key| tx.delete(key));
    Ok(())
}

/// In small pages, for a scan brings the values too.
fn keys_of(tx: &Tx<'_>, ino: InodeId) -> Outcome<Vec<Vec<u8>>> {
    let (mut from, to) = (keys::xattrs(ino), keys::end_of(&keys::xattrs(ino)));
    let mut all = Vec::new();
    loop {
        let page = tx.scan(&from, &to, SCAN_VALUES)?;
        let full = page.len() == SCAN_VALUES;
        all.extend(page.into_iter().map(|(key, _)| key));
        match all.last() {
            Some(last) if full => from = successor(last),
            _ => return Ok(all),
        }
    }
}

/// The name that follows `prefix` in a key.
pub(super) fn name_in<N: TryFrom<Vec<u8>>>(key: &[u8], prefix: &[u8]) -> Outcome<N> {
    let name = key.strip_prefix(prefix).and_then(|name| N::try_from(name.to_vec()).ok());
    match name {
        Some(name) => Ok(name),
        None => broken(format!("key {key:02x?} does not end with a name")),
    }
}

/// Bytes that a name takes in listxattr(2).
pub(super) fn list_bytes(name: &XattrName) -> u32 {
    name.as_bytes().len() as u32 + 1
}

fn find(tx: &Tx<'_>, ino: InodeId, name: &XattrName) -> Outcome<Option<Vec<u8>>> {
    tx.get(&keys::xattr(ino, name))
}
