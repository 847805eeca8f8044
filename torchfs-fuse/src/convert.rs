//! Between the kernel's words and ours. No decisions.

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use torchfs_core::meta::{Attr, FileKind, Name, NewKind, SetTime};
use torchfs_core::{Error, InodeId, Kind, Result};

pub fn ino(number: INodeNo) -> InodeId {
    InodeId(number.0)
}

pub fn name(text: &OsStr) -> Result<Name> {
    Name::new(text.as_bytes())
}

pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::File => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.allocated.div_ceil(512),
        atime: attr.atime.into(),
        mtime: attr.mtime.into(),
        ctime: attr.ctime.into(),
        crtime: attr.ctime.into(),
        kind: file_type(attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        // Reads and writes of a whole stripe's shard at a time are cheapest; tools like cp size their buffers by it.
        blksize: 128 * 1024,
        flags: 0,
    }
}

pub fn time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(at) => SetTime::At(at.into()),
    }
}

/// What mknod(2) asks for.
pub fn node_kind(mode: u32, rdev: u32) -> Result<NewKind> {
    use rustix::fs::FileType as Mode;
    match Mode::from_raw_mode(mode) {
        Mode::RegularFile => Ok(NewKind::File),
        Mode::Fifo => Ok(NewKind::Fifo),
        Mode::Socket => Ok(NewKind::Socket),
        Mode::CharacterDevice => Ok(NewKind::CharDevice(rdev)),
        Mode::BlockDevice => Ok(NewKind::BlockDevice(rdev)),
        _ => Err(Error::new(Kind::InvalidInput, format!("mode {mode:o} is no file type that can be made"))),
    }
}

/// A folder of which only the number matters.
pub fn bare_directory(ino: InodeId) -> FileAttr {
    let epoch = std::time::SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(ino.0),
        size: 0,
        blocks: 0,
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: FileType::Directory,
        perm: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}
