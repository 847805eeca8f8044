//! What the store holds: the records of each table.

use serde::{Deserialize, Serialize};
use torchfs_core::layout::{Profile, Stripe};
use torchfs_core::meta::{Attr, FileKind, NewKind, Timestamp};
use torchfs_core::{InodeId, MapVersion, NodeId, StripeId, Version};

/// Numbers that are handed out, and running totals of the tables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Counters {
    pub next_inode: u64,
    pub next_stripe: StripeId,
    pub next_node: NodeId,
    pub map_version: MapVersion,
    /// Stripes below this that are not known may not be committed any more.
    pub horizon: StripeId,
    /// Inodes with a name.
    pub inodes: u64,
    /// Regular files with a name.
    pub files: u64,
    /// Sum of their sizes. Sparse files can be large: three of them pass 64 bits.
    pub bytes: u128,
    /// Stripes that are not garbage.
    pub stripes: u64,
    /// Sum over the shards of these that have a node.
    pub stored_bytes: u64,
    /// Shards of these that are known to be bad.
    pub bad_shards: u64,
}

/// An inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Inode {
    pub body: Body,
    pub mode: u32,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub allocated: u64,
    pub atime: Timestamp,
    pub mtime: Timestamp,
    pub ctime: Timestamp,
    pub version: Version,
    /// Bytes of the names of its extended attributes, each with one more.
    pub xattr_bytes: u32,
    /// When it lost its last name.
    pub orphan_since: Option<Timestamp>,
}

/// What an inode is, with what only this kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Body {
    /// The profile in effect when it was made: a file does not know its folders, it may have several.
    File {
        profile: Profile,
    },
    /// The root is its own parent. Without a profile it inherits its parent's.
    Directory {
        parent: InodeId,
        profile: Option<Profile>,
    },
    Symlink(Vec<u8>),
    Fifo,
    Socket,
    CharDevice(u32),
    BlockDevice(u32),
}

impl Body {
    pub(super) fn new(kind: &NewKind, parent: InodeId, profile: Profile) -> Body {
        match kind {
            NewKind::File => Body::File { profile },
            NewKind::Directory => Body::Directory { parent, profile: None },
            NewKind::Symlink(target) => Body::Symlink(target.clone()),
            NewKind::Fifo => Body::Fifo,
            NewKind::Socket => Body::Socket,
            NewKind::CharDevice(number) => Body::CharDevice(*number),
            NewKind::BlockDevice(number) => Body::BlockDevice(*number),
        }
    }

    pub(super) fn kind(&self) -> FileKind {
        match self {
            Body::File { .. } => FileKind::File,
            Body::Directory { .. } => FileKind::Directory,
            Body::Symlink(_) => FileKind::Symlink,
            Body::Fifo => FileKind::Fifo,
            Body::Socket => FileKind::Socket,
            Body::CharDevice(_) => FileKind::CharDevice,
            Body::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

impl Inode {
    pub(super) fn kind(&self) -> FileKind {
        self.body.kind()
    }

    pub(super) fn is_folder(&self) -> bool {
        self.kind() == FileKind::Directory
    }

    pub(super) fn attr(&self, ino: InodeId) -> Attr {
        Attr {
            ino,
            kind: self.kind(),
            mode: self.mode,
            nlink: self.nlink,
            uid: self.uid,
            gid: self.gid,
            size: self.size,
            allocated: self.allocated,
            atime: self.atime,
            mtime: self.mtime,
            ctime: self.ctime,
            version: self.version,
            rdev: match self.body {
                Body::CharDevice(number) | Body::BlockDevice(number) => number,
                _ => 0,
            },
            xattr_bytes: self.xattr_bytes,
            profile: match self.body {
                Body::File { profile } => Some(profile),
                _ => None,
            },
        }
    }
}

/// An entry of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub ino: InodeId,
    pub kind: FileKind,
}

/// A stripe and what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StripeRecord {
    pub stripe: Stripe,
    /// Sum of the lengths of all extents that name it.
    pub live_bytes: u64,
    /// Bit `i`: shard `i` is known to be damaged or gone.
    pub bad: u64,
    /// When its last live byte went.
    pub garbage_since: Option<Timestamp>,
}

impl StripeRecord {
    /// Whether its redundancy is less than its profile asks for, nodes that are down not counted.
    pub(super) fn is_flawed(&self) -> bool {
        self.bad != 0 || self.stripe.is_under_spread()
    }

    /// Bytes of its shards that are on some node.
    pub(super) fn stored_bytes(&self) -> u64 {
        let placed = self.stripe.nodes.iter().enumerate().filter(|(_, node)| node.is_some());
        placed.map(|(index, _)| self.stripe.shape.shard_len(index) as u64).sum()
    }
}

/// What is kept for a client besides its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ClientRecord {
    /// It has all answers below this.
    pub floor: u64,
    /// When it was last heard of, to a minute.
    pub seen: Timestamp,
}
