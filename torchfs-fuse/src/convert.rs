//! Between the kernel's words and ours. No decisions.

use crate::caller::Caller;
use crate::handles::Intent;
use crate::node::Node;
use crate::volume::{Allocate, NodeAttr, OpenHow};
use fuser::{FileAttr, FileType, INodeNo, OpenAccMode, OpenFlags, Request, TimeOrNow};
use rustix::fs::{FallocateFlags, OFlags};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::SystemTime;
use torchfs_core::meta::{FileKind, Name, NewKind, SetTime, Timestamp, XattrName};
use torchfs_core::trace::{Op, Record};
use torchfs_core::{Error, InodeId, Kind, Result};

pub fn ino(number: INodeNo) -> InodeId {
    Node::of(number).ino()
}

pub fn caller(request: &Request) -> Caller {
    Caller(request.pid())
}

/// A request as a trace has it.
pub fn call(op: Op, request: &Request, number: INodeNo) -> Record {
    Record { thread: request.pid(), ino: ino(number), ..Record::of(op) }
}

pub fn how(request: &Request, flags: OpenFlags) -> OpenHow {
    let truncate = flags.0 & OFlags::TRUNC.bits() as i32 != 0;
    let writes = truncate || flags.acc_mode() != OpenAccMode::O_RDONLY;
    OpenHow { truncate, intent: if writes { Intent::Write } else { Intent::Read }, caller: caller(request) }
}

pub fn name(text: &OsStr) -> Result<Name> {
    Name::new(text.as_bytes())
}

pub fn xattr_name(text: &OsStr) -> Result<XattrName> {
    XattrName::new(text.as_bytes())
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

pub fn attr(NodeAttr { node, attr }: &NodeAttr) -> FileAttr {
    FileAttr {
        ino: node.number(),
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
        TimeOrNow::SpecificTime(at) => SetTime::At(timestamp(at)),
    }
}

/// A time as fuser hands it over. The kernel's nanoseconds count forward from the whole second; fuser (0.18) counts them
/// backward for times before 1970, so half past two seconds before is given as two and a half seconds before.
fn timestamp(given: SystemTime) -> Timestamp {
    match given.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(_) => given.into(),
        Err(before) => {
            let before = before.duration();
            Timestamp { seconds: 0i64.saturating_sub_unsigned(before.as_secs()), nanos: before.subsec_nanos() }
        }
    }
}

/// The modes of fallocate(2) that files here know; no blocks can be inserted or taken out.
pub fn allocation(mode: i32) -> Option<Allocate> {
    let flags = FallocateFlags::from_bits_retain(mode as u32);
    let (keep, punch, zero) = (FallocateFlags::KEEP_SIZE, FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE);
    match flags {
        _ if flags.is_empty() => Some(Allocate { grow: true, zero: false }),
        _ if flags == keep => Some(Allocate { grow: false, zero: false }),
        _ if flags == keep | punch || flags == keep | zero => Some(Allocate { grow: false, zero: true }),
        _ if flags == zero => Some(Allocate { grow: true, zero: true }),
        _ => None,
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
pub fn bare_directory(node: Node) -> FileAttr {
    let epoch = SystemTime::UNIX_EPOCH;
    FileAttr {
        ino: node.number(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    /// What fuser makes of the kernel's words (`time.rs`, 0.18).
    fn as_fuser_gives(seconds: i64, nanos: u32) -> SystemTime {
        let whole = Duration::new(seconds.unsigned_abs(), nanos);
        if seconds >= 0 { SystemTime::UNIX_EPOCH + whole } else { SystemTime::UNIX_EPOCH - whole }
    }

    proptest! {
        #[test]
        fn times_of_any_age_arrive_as_the_kernel_sent_them(
            seconds in prop_oneof![-3i64..3, -100_000_000_000i64..100_000_000_000],
            nanos in 0u32..1_000_000_000,
        ) {
            let sent = Timestamp { seconds, nanos };
            prop_assert_eq!(timestamp(as_fuser_gives(seconds, nanos)), sent);
            // And what is answered is the point in time it says.
            let answered = SystemTime::from(sent);
            prop_assert_eq!(Timestamp::from(answered), sent);
            let since = answered.duration_since(SystemTime::UNIX_EPOCH).map(|after| after.as_nanos() as i128);
            let since = since.unwrap_or_else(|before| -(before.duration().as_nanos() as i128));
            prop_assert_eq!(since, i128::from(seconds) * 1_000_000_000 + i128::from(nanos));
        }
    }
}
