//! `.torchfs`, a folder at the root of every mount that is in no listing: what the mount says of itself. It is this mount's
//! alone; nothing of it is in the cluster.

use std::time::SystemTime;
use torchfs_core::meta::{Attr, FileKind, Name, Timestamp};
use torchfs_core::{Error, InodeId, Kind, Result, Version};

/// Its name.
const FOLDER: &[u8] = b".torchfs";

/// Metadata counts inodes from 1 up and gets nowhere near.
const FIRST_INODE: u64 = u64::MAX - 16;

/// The folder and what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Special {
    Folder,
    /// Counters, as JSON.
    Stats,
    /// The version of this program, as text.
    Version,
    /// Every operation from its open on, as a trace.
    Trace,
    /// The orders in which files will be read.
    Schedule,
    /// What programs ask of the mount, and what it answers.
    Control,
}

impl Special {
    pub const FILES: [(Special, &'static str); 5] = [
        (Special::Control, "control"),
        (Special::Schedule, "schedule"),
        (Special::Stats, "stats"),
        (Special::Trace, "trace"),
        (Special::Version, "version"),
    ];

    pub fn ino(self) -> InodeId {
        InodeId(FIRST_INODE + self as u64)
    }

    pub fn of(ino: InodeId) -> Option<Special> {
        let files = Special::FILES.map(|(file, _)| file);
        files.into_iter().chain([Special::Folder]).find(|special| special.ino() == ino)
    }

    /// What a name means, if this folder has to do with it.
    pub fn lookup(parent: InodeId, name: &Name) -> Option<Result<Special>> {
        if parent == InodeId::ROOT && name.as_bytes() == FOLDER {
            return Some(Ok(Special::Folder));
        }
        Special::of(parent)?;
        let found = Special::FILES.into_iter().find(|(_, own)| own.as_bytes() == name.as_bytes());
        Some(found.map(|(file, _)| file).ok_or_else(|| Error::new(Kind::NotFound, format!(".torchfs has no {name}"))))
    }

    /// Refuses to change a name in or of the folder.
    ///
    /// # Errors
    /// `NotPermitted`.
    pub fn refuse_name(parent: InodeId, name: &Name) -> Result<()> {
        Special::lookup(parent, name).map_or(Ok(()), |_| Err(own_folder()))
    }

    /// Refuses to change what is in the folder.
    ///
    /// # Errors
    /// `NotPermitted`.
    pub fn refuse(ino: InodeId) -> Result<()> {
        Special::of(ino).map_or(Ok(()), |_| Err(own_folder()))
    }

    /// Of something that is there since the mount.
    pub fn attr(self, since: SystemTime) -> Attr {
        let time = Timestamp::from(since);
        let (kind, mode, nlink) = match self {
            Special::Folder => (FileKind::Directory, 0o555, 2),
            Special::Stats | Special::Version => (FileKind::File, 0o444, 1),
            // It tells names of folders that others may not list.
            Special::Trace => (FileKind::File, 0o400, 1),
            // Whoever may read files here may say which.
            Special::Schedule | Special::Control => (FileKind::File, 0o666, 1),
        };
        Attr {
            ino: self.ino(),
            kind,
            mode,
            nlink,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            // As in /proc: it is known when it is read.
            size: 0,
            allocated: 0,
            atime: time,
            mtime: time,
            ctime: time,
            version: Version::NEW,
            rdev: 0,
            xattr_bytes: 0,
            profile: None,
        }
    }
}

fn own_folder() -> Error {
    Error::new(Kind::NotPermitted, ".torchfs is this mount's own folder and cannot be changed")
}
