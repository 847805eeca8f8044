//! What the kernel asks of a file, in our words.

use crate::caller::Caller;
use crate::handles::Intent;
use fuser::OpenFlags;
use rustix::fs::OFlags;
use torchfs_core::meta::AttrChange;

/// What setattr(2) and its relatives ask for.
#[derive(Clone, Debug, Default)]
pub struct Change {
    pub size: Option<u64>,
    pub rest: AttrChange,
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub struct OpenHow {
    pub truncate: bool,
    pub intent: Intent,
    pub caller: Caller,
}

/// Where write(2) writes.
#[derive(Clone, Copy, Debug)]
pub enum WriteAt {
    /// There.
    Offset(u64),
    /// At the end (O_APPEND), which the kernel takes to be there. It may be wrong: see [`Handles::ended`](crate::handles::Handles::ended).
    End(u64),
}

impl WriteAt {
    /// What the kernel asks for.
    pub fn of(offset: u64, flags: OpenFlags) -> Self {
        let appends = OFlags::from_bits_retain(flags.0 as u32).contains(OFlags::APPEND);
        if appends { WriteAt::End(offset) } else { WriteAt::Offset(offset) }
    }

    /// Where in a text of so many bytes that is written here: it begins with its handle, whatever the kernel thinks is there.
    pub fn in_text(self, bytes: u64) -> u64 {
        match self {
            WriteAt::Offset(offset) => offset,
            WriteAt::End(_) => bytes,
        }
    }

    /// Where in a file of so many bytes.
    pub fn offset(self, bytes: u64) -> u64 {
        match self {
            WriteAt::Offset(offset) => offset,
            WriteAt::End(offset) => offset.max(bytes),
        }
    }
}

/// What fallocate(2) does to a range.
#[derive(Clone, Copy, Debug)]
pub struct Allocate {
    /// The file reaches to its end afterwards.
    pub grow: bool,
    /// It is a hole afterwards, as far as it is inside the file.
    pub zero: bool,
}

/// What lseek(2) looks for.
#[derive(Clone, Copy, Debug)]
pub enum Seek {
    Data,
    Hole,
}
