//! Extended attributes `user.*` of files and folders, in and out. Those of other namespaces mean something to one machine
//! only and stay where they are.

use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::InodeId;
use crate::meta::{Attr, FileKind, MetaSession, XattrName};
use futures::{StreamExt, TryStreamExt};
use rustix::io::Errno;
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::path::Path;

/// Inodes whose attributes are asked for at a time, per page of a folder: round trips overlap.
const INODES_AT_ONCE: usize = 16;

/// Names and values.
pub(super) type Xattrs = Vec<(XattrName, Vec<u8>)>;

fn is_users(name: &[u8]) -> bool {
    name.starts_with(b"user.")
}

/// Those of the inodes that have some. What is removed meanwhile is not there.
pub(super) async fn fetch(meta: &MetaSession, inodes: impl Iterator<Item = &Attr>) -> Result<HashMap<InodeId, Xattrs>> {
    // The operating system lets nothing else have attributes of users.
    let can_have = |attr: &&Attr| matches!(attr.kind, FileKind::File | FileKind::Directory);
    let having: BTreeSet<InodeId> =
        inodes.filter(can_have).filter(|attr| attr.xattr_bytes > 0).map(|attr| attr.ino).collect();
    let fetches = having.into_iter().map(|ino| async move { Ok((ino, fetch_of(meta, ino).await?)) });
    futures::stream::iter(fetches).buffer_unordered(INODES_AT_ONCE).try_collect().await
}

async fn fetch_of(meta: &MetaSession, ino: InodeId) -> Result<Xattrs> {
    let names = match meta.xattrs(ino).await {
        Err(error) if error.kind() == Kind::NotFound => return Ok(Vec::new()),
        names => names?,
    };
    let mut xattrs = Vec::new();
    for name in names.into_iter().filter(|name| is_users(name.as_bytes())) {
        match meta.xattr(ino, name.clone()).await {
            Ok(value) => xattrs.push((name, value)),
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::NoAttribute) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(xattrs)
}

/// Gives them to a local file.
pub(super) fn set_on_file(file: &File, path: &Path, xattrs: &Xattrs) -> Result<()> {
    set(path, xattrs, |name, value| rustix::fs::fsetxattr(file, name, value, rustix::fs::XattrFlags::empty()))
}

/// Gives them to a local folder.
pub(super) fn set_on_folder(path: &Path, xattrs: &Xattrs) -> Result<()> {
    set(path, xattrs, |name, value| rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()))
}

fn set(path: &Path, xattrs: &Xattrs, set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>) -> Result<()> {
    for (name, value) in xattrs {
        let what = || format!("set attribute '{name}' of {}", path.display());
        match set(name.as_bytes(), value) {
            Ok(()) => {}
            // As cp -a does: a file system without attributes keeps the rest of the file.
            Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(()),
            // A full disk would say so for the content; here it is the limit of ext4 for all attributes of a file.
            Err(error @ (Errno::NOSPC | Errno::TOOBIG | Errno::RANGE)) => {
                return Err(Error::caused(Kind::TooLarge, what(), std::io::Error::from(error)));
            }
            Err(error) => return Err(error).io(what),
        }
    }
    Ok(())
}

/// Those of a local file or folder; none where the file system has none.
pub(super) fn read(path: &Path) -> Result<Xattrs> {
    let what = || format!("read extended attributes of {}", path.display());
    let size = match rustix::fs::llistxattr_query(path) {
        Ok(0) | Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
        Ok(size) => size,
        Err(error) => return Err(error).io(what),
    };
    let mut list = vec![0; size];
    let size = rustix::fs::llistxattr(path, &mut list[..]).io(what)?;
    let names = list[..size].split(|&byte| byte == 0).filter(|name| is_users(name));
    let mut xattrs = Vec::new();
    for name in names {
        let mut value = vec![0; crate::settings::XATTR_BYTES_MAX];
        let size = match rustix::fs::lgetxattr(path, name, &mut value[..]) {
            Ok(size) => size,
            Err(Errno::NODATA) => continue,
            // Without permission to read the file its attributes stay closed too; the file itself is reported.
            Err(Errno::ACCESS) => continue,
            Err(error) => return Err(error).io(what),
        };
        value.truncate(size);
        value.shrink_to_fit();
        xattrs.push((XattrName::new(name)?, value));
    }
    Ok(xattrs)
}
