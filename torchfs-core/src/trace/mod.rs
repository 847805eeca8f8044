//! Traces: every operation of a mount, as it was asked and as it was answered. What a trace says, how it is written and read,
//! and what follows from it; all of it without a mount, a cluster or a clock.
//!
//! ```
//! use std::time::{Duration, SystemTime};
//! use torchfs_core::InodeId;
//! use torchfs_core::trace::{Encoder, Item, Op, Record, Summary};
//!
//! # fn main() -> torchfs_core::Result<()> {
//! let mut encoder = Encoder::new(SystemTime::now());
//! let open = Record { ino: InodeId(7), took: Duration::from_micros(40), result: 65_536, ..Record::of(Op::Open) };
//! encoder.add(&Item::Op(open));
//! let summary = Summary::read(encoder.take().as_slice())?;
//! assert_eq!((summary.ops[0].op, summary.epochs[0].bytes), (Op::Open, 65_536));
//! # Ok(())
//! # }
//! ```

mod format;
mod names;
mod opens;
mod plan;
mod summary;

pub use format::{Encoder, MAGIC, Reader};
pub use names::Names;
pub use opens::{Open, OpenedFile, Opens, ReadPattern};
pub use plan::{Action, LeftOut, Plan, PlannedFile, Step};
pub use summary::{EpochSummary, OpSummary, Summary};

use crate::ids::InodeId;
use crate::meta::Name;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// One entry of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// An operation, added when it was answered.
    Op(Record),
    /// What is called so, told before anything that relies on it.
    Name {
        /// The file or folder.
        ino: InodeId,
        /// The folder that it is in.
        parent: InodeId,
        /// Its name there.
        name: Name,
    },
    /// Nothing was answered up to this time since the trace began.
    Mark(Duration),
    /// So many entries found no room and are not here.
    Lost(u64),
}

/// An operation of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// What was asked.
    pub op: Op,
    /// When, since the trace began.
    pub began: Duration,
    /// How long the answer took.
    pub took: Duration,
    /// The thread that asked; 0 if the kernel did not tell, as for what it reads ahead or writes back.
    pub thread: u32,
    /// Of which file or folder; of an operation on a name, the folder that has it; of create, the new file.
    pub ino: InodeId,
    /// Through which handle, 0 without one; of open and create, the new one. Numbers are not used again within a mount.
    pub handle: u64,
    /// From where on in the file.
    pub offset: u64,
    /// How many bytes were asked for.
    pub len: u64,
    /// How many bytes were read or written; of open and create, how long the file is.
    pub result: u64,
    /// How it failed; 0 if it did not.
    pub errno: u16,
}

impl Record {
    /// An operation of which nothing else is known.
    #[must_use]
    pub fn of(op: Op) -> Record {
        Record {
            op,
            began: Duration::ZERO,
            took: Duration::ZERO,
            thread: 0,
            ino: InodeId(0),
            handle: 0,
            offset: 0,
            len: 0,
            result: 0,
            errno: 0,
        }
    }

    /// When it was answered.
    #[must_use]
    pub fn ended(&self) -> Duration {
        self.began.saturating_add(self.took)
    }
}

macro_rules! ops {
    ($($(#[$doc:meta])* $op:ident = $number:literal $name:literal,)*) => {
        /// What a mount is asked to do. The numbers are those of the file format.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Op {
            $($(#[$doc])* $op = $number,)*
        }

        impl Op {
            /// All of them.
            pub const ALL: &[Op] = &[$(Op::$op,)*];

            /// Its name, as it is shown.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Op::$op => $name,)*
                }
            }
        }
    };
}

ops! {
    /// open(2) for reading only.
    Open = 1 "open",
    /// open(2) for writing, or for both.
    OpenWrite = 2 "open-write",
    /// open(2) that makes the file.
    Create = 3 "create",
    /// read(2), as far as the kernel does not answer it from its pages or by itself.
    Read = 4 "read",
    /// write(2).
    Write = 5 "write",
    /// close(2) of a descriptor through which something may have been changed.
    Flush = 6 "close",
    /// The last descriptor of a handle was closed.
    Release = 7 "release",
    /// fsync(2).
    Fsync = 8 "fsync",
    /// A name is looked up in a folder.
    Lookup = 9 "lookup",
    /// stat(2).
    Getattr = 10 "getattr",
    /// chmod(2), chown(2), truncate(2), utimensat(2).
    Setattr = 11 "setattr",
    /// opendir(3).
    Opendir = 12 "opendir",
    /// readdir(3).
    Readdir = 13 "readdir",
    /// closedir(3).
    Releasedir = 14 "releasedir",
    /// fsync(2) of a folder.
    Fsyncdir = 15 "fsyncdir",
    /// mknod(2).
    Mknod = 16 "mknod",
    /// mkdir(2).
    Mkdir = 17 "mkdir",
    /// symlink(2).
    Symlink = 18 "symlink",
    /// link(2).
    Link = 19 "link",
    /// unlink(2).
    Unlink = 20 "unlink",
    /// rmdir(2).
    Rmdir = 21 "rmdir",
    /// rename(2).
    Rename = 22 "rename",
    /// readlink(2).
    Readlink = 23 "readlink",
    /// fallocate(2).
    Fallocate = 24 "fallocate",
    /// copy_file_range(2).
    CopyFileRange = 25 "copy_file_range",
    /// lseek(2) that looks for data or holes.
    Lseek = 26 "lseek",
    /// statfs(2).
    Statfs = 27 "statfs",
    /// getxattr(2).
    Getxattr = 28 "getxattr",
    /// setxattr(2).
    Setxattr = 29 "setxattr",
    /// listxattr(2).
    Listxattr = 30 "listxattr",
    /// removexattr(2).
    Removexattr = 31 "removexattr",
}

impl Op {
    fn of_number(number: u8) -> Option<Op> {
        Op::ALL.iter().copied().find(|&op| op as u8 == number)
    }
}

impl Serialize for Op {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}
