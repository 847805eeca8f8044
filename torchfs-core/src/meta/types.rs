//! The vocabulary of metadata: what a file is, what a folder holds, what the cluster consists of.

use super::name::Name;
use crate::error::{Error, Kind, Result};
use crate::ids::{ClusterId, InodeId, MapVersion, MetaId, NodeId, NodeUuid, ShardId, StripeId, Version};
use crate::layout::{Extent, Profile, Stripe};
use crate::placement::FailureDomain;
use serde::{Deserialize, Serialize};
use std::time::{Duration, SystemTime};

/// A point in time: seconds since 1970-01-01 UTC, possibly negative, and nanoseconds 0..1_000_000_000 after that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp {
    /// Whole seconds.
    pub seconds: i64,
    /// Nanoseconds after the whole second.
    pub nanos: u32,
}

impl Timestamp {
    /// How long `self` is after `earlier`; zero if it is not after it.
    #[must_use]
    pub fn since(self, earlier: Timestamp) -> Duration {
        let nanos = (i128::from(self.seconds) - i128::from(earlier.seconds)) * 1_000_000_000 + i128::from(self.nanos)
            - i128::from(earlier.nanos);
        Duration::from_nanos(nanos.clamp(0, i128::from(u64::MAX)) as u64)
    }

    /// The time itself, if its nanoseconds are below a second. Call it on every time from the wire.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`].
    pub fn checked(self) -> Result<Self> {
        if self.nanos < 1_000_000_000 {
            return Ok(self);
        }
        Err(Error::new(
            Kind::InvalidInput,
            format!("{} nanoseconds in a time; less than a second is possible", self.nanos),
        ))
    }

    /// The time `by` before this one; the earliest there is if that would be before it.
    #[must_use]
    pub fn minus(self, by: Duration) -> Timestamp {
        let borrow = by.subsec_nanos() > self.nanos;
        let seconds = i128::from(self.seconds) - i128::from(by.as_secs()) - i128::from(borrow);
        let nanos = self.nanos + if borrow { 1_000_000_000 } else { 0 } - by.subsec_nanos();
        i64::try_from(seconds).map_or(Timestamp { seconds: i64::MIN, nanos: 0 }, |seconds| Timestamp { seconds, nanos })
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => Timestamp { seconds: after.as_secs() as i64, nanos: after.subsec_nanos() },
            Err(error) => {
                let before = error.duration();
                let borrow = before.subsec_nanos() > 0;
                Timestamp {
                    seconds: -(before.as_secs() as i64) - i64::from(borrow),
                    nanos: if borrow { 1_000_000_000 - before.subsec_nanos() } else { 0 },
                }
            }
        }
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        let whole = Duration::from_secs(time.seconds.unsigned_abs());
        let second = if time.seconds >= 0 { SystemTime::UNIX_EPOCH + whole } else { SystemTime::UNIX_EPOCH - whole };
        second + Duration::from_nanos(time.nanos.into())
    }
}

/// What an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A folder.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
}

/// The attributes of an inode, as stat(2) shows them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attr {
    /// Its id.
    pub ino: InodeId,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with suid, sgid and sticky: 0o0000 to 0o7777.
    pub mode: u32,
    /// How many names it has (folders: 2 plus subfolders).
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of content (files), of the target (links), number of entries (folders).
    pub size: u64,
    /// Bytes that extents name, holes not counted.
    pub allocated: u64,
    /// Last access; kept at creation or as set, reads do not move it.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of content or attributes.
    pub ctime: Timestamp,
    /// Which content this is.
    pub version: Version,
    /// Device number, for devices.
    pub rdev: u32,
    /// Bytes of the names of its extended attributes, each with one more, as listxattr(2) counts; 0 if it has none.
    pub xattr_bytes: u32,
    /// How new stripes of a regular file are coded; `None` for everything else.
    pub profile: Option<Profile>,
}

/// What a new inode is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewInode {
    /// What it is and what only this kind has.
    pub kind: NewKind,
    /// Permission bits 0o0000 to 0o7777, umask already applied.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group; a parent folder with the sgid bit gives its own instead.
    pub gid: u32,
    /// Last change of content, if it is to be kept from somewhere else; otherwise now.
    pub mtime: Option<Timestamp>,
}

/// The kind of a new inode, with its link target or device number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NewKind {
    /// An empty regular file.
    File,
    /// An empty folder.
    Directory,
    /// A symbolic link to this target: 1 to 4095 bytes, no NUL.
    Symlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A character device with its number.
    CharDevice(u32),
    /// A block device with its number.
    BlockDevice(u32),
}

impl NewKind {
    /// The plain kind.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        match self {
            NewKind::File => FileKind::File,
            NewKind::Directory => FileKind::Directory,
            NewKind::Symlink(_) => FileKind::Symlink,
            NewKind::Fifo => FileKind::Fifo,
            NewKind::Socket => FileKind::Socket,
            NewKind::CharDevice(_) => FileKind::CharDevice,
            NewKind::BlockDevice(_) => FileKind::BlockDevice,
        }
    }
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetTime {
    /// The leader's clock when the operation is ordered.
    Now,
    /// This time.
    At(Timestamp),
}

/// Attributes to change; `None` leaves as is. Sizes are changed by [`ContentChange`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttrChange {
    /// Permission bits 0o0000 to 0o7777.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of content.
    pub mtime: Option<SetTime>,
}

/// One commit of a file's content, as a change to whatever the content is when it is applied: cut to `keep_bytes`, lay
/// `extents` over the rest, let the size be at least `size_min`.
///
/// A change and not a whole extent list, so that an append sends only its tail, two writers of different ranges both
/// keep their bytes, and the operation does not grow with the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentChange {
    /// The smallest size the file was truncated to since the writer opened it; `None` if it was not.
    pub keep_bytes: Option<u64>,
    /// The new extents in file order, not overlapping. Ends past the size grow the file.
    pub extents: Vec<Extent>,
    /// Ranges that become holes (offset, length), applied after the cut and before the extents.
    pub holes: Vec<(u64, u64)>,
    /// The stripes that `extents` name and that no commit has named before. A stripe packed with several files is given
    /// with the first of them, or with each: repeating it unchanged is allowed.
    pub stripes: Vec<Stripe>,
    /// The size is at least this afterwards (ftruncate past the end).
    pub size_min: u64,
    /// Last change of content: the time of the last write, or now.
    pub mtime: SetTime,
}

impl ContentChange {
    /// A change that changes nothing but the times.
    #[must_use]
    pub fn nothing() -> Self {
        ContentChange {
            keep_bytes: None,
            extents: Vec::new(),
            holes: Vec::new(),
            stripes: Vec::new(),
            size_min: 0,
            mtime: SetTime::Now,
        }
    }
}

/// A file's content: what a reader needs to fetch it without asking metadata again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// In file order; what lies between is a hole.
    pub extents: Vec<Extent>,
    /// Every stripe that `extents` name, once each.
    pub stripes: Vec<Stripe>,
}

impl Content {
    /// About what it takes in memory.
    pub(super) fn bytes(&self) -> usize {
        let stripe = |stripe: &Stripe| size_of::<Stripe>() + size_of_val(stripe.nodes.as_slice());
        size_of_val(self.extents.as_slice()) + self.stripes.iter().map(stripe).sum::<usize>()
    }
}

/// An entry of a folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirEntry {
    /// Its name.
    pub name: Name,
    /// Its inode's attributes.
    pub attr: Attr,
    /// The target, for symbolic links.
    pub target: Option<Vec<u8>>,
    /// A file's extents, if they were asked for. Their stripes are in [`Listing::stripes`].
    pub extents: Vec<Extent>,
}

/// A page of a folder, in byte order of the names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<DirEntry>,
    /// The stripes that the entries' extents name, once each.
    pub stripes: Vec<Stripe>,
    /// Whether more entries follow the last one.
    pub more: bool,
}

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The folder that holds the last component (the root for the root).
    pub parent: InodeId,
    /// The last component after links were followed; `None` for the root.
    pub name: Option<Name>,
    /// What is there; `None` if only the last component is missing.
    pub attr: Option<Attr>,
}

/// How full the file system is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsStat {
    /// Sum over the nodes that are not down.
    pub capacity_bytes: u64,
    /// Sum over the nodes that are not down.
    pub used_bytes: u64,
    /// Inodes in the namespace.
    pub inodes: u64,
    /// The root folder's profile, by which free space for content can be estimated.
    pub profile: Option<Profile>,
}

/// Whether a storage node can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Reports, and takes reads and writes.
    Up,
    /// Was silent for too long.
    Down,
    /// Reports and is read from, gets no new shards.
    Draining,
}

/// A storage node as the cluster map knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number.
    pub id: NodeId,
    /// What its data folder says it is.
    pub uuid: NodeUuid,
    /// `host:port` to reach it at.
    pub addr: String,
    /// Where it stands.
    pub domain: FailureDomain,
    /// Bytes it may use.
    pub capacity_bytes: u64,
    /// Whether it can be used.
    pub state: NodeState,
}

/// Which storage nodes there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterMap {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Counts the changes.
    pub version: MapVersion,
    /// By number.
    pub nodes: Vec<NodeRecord>,
}

/// Space and load of a storage node, from its heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLoad {
    /// Bytes that it may use in all.
    pub capacity_bytes: u64,
    /// Bytes that its shards take.
    pub used_bytes: u64,
    /// How many shards it holds.
    pub shards: u64,
    /// Requests under way.
    pub requests: u32,
    /// Median time of a shard write lately, in microseconds; 0 if there was none.
    pub write_us: u32,
}

/// What a storage node tells the leader every [`HEARTBEAT_INTERVAL`](crate::settings::HEARTBEAT_INTERVAL).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Its number.
    pub node: NodeId,
    /// What its data folder says it is.
    pub uuid: NodeUuid,
    /// Where it can be reached now.
    pub addr: String,
    /// How full and how busy it is.
    pub load: NodeLoad,
    /// Shards that it was told to delete and that are gone.
    pub deleted: Vec<ShardId>,
    /// Shards that it found damaged.
    pub damaged: Vec<ShardId>,
}

/// What a node is told that reports from `addr`, while the cluster map has it somewhere else. It is not to go on: clients
/// do not find what it stores.
#[must_use]
pub fn taken_over(record: &NodeRecord, addr: &str) -> Error {
    let message = format!(
        "storage node {} runs at {} now, its place at {addr} is taken: stop the one that is not wanted; \
         if a data folder was copied, start with an empty one instead of the copy",
        record.id, record.addr
    );
    Error::new(Kind::Exists, message)
}

/// What the leader answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatReply {
    /// The map's version.
    pub map: MapVersion,
    /// Shards to delete, at most a few hundred at a time; confirmed in a later heartbeat.
    pub delete: Vec<ShardId>,
    /// Shards of stripes below this that no file names may be deleted: they were given up (see `Horizon` in the docs).
    pub horizon: StripeId,
}

/// A request for places to write stripes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocate {
    /// How they are coded.
    pub profile: Profile,
    /// How many stripes.
    pub stripes: u32,
    /// About how large each shard will be.
    pub shard_bytes: u32,
    /// Nodes that just failed the writer.
    pub avoid: Vec<NodeId>,
}

/// A new stripe id and the nodes for it in order of preference: the first k+m are the choice, one per shard; the
/// further ones are spares. Fewer than k+m if not enough nodes are up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    /// The new stripe.
    pub stripe: StripeId,
    /// Where its shards may go.
    pub nodes: Vec<NodeId>,
}

/// One metadata node as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MetaStatus {
    /// Its Raft id.
    pub id: MetaId,
    /// Where it is reached.
    pub addr: String,
    /// `leader`, `follower`, `joining` (its data folder was lost or copied, it does not vote yet), `learner` or `down` (does
    /// not answer the leader).
    pub state: String,
}

/// One storage node as `status` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// From the cluster map.
    pub record: NodeRecord,
    /// From its last heartbeat to this leader, if there was one.
    pub load: Option<NodeLoad>,
}

/// The cluster at a glance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Which cluster.
    pub cluster: ClusterId,
    /// The leader, which answered.
    pub leader: MetaId,
    /// The metadata nodes.
    pub metas: Vec<MetaStatus>,
    /// The storage nodes.
    pub stores: Vec<StoreStatus>,
    /// Regular files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the shards that hold content of these files.
    pub stored_bytes: u64,
    /// Their stripes.
    pub stripes: u64,
    /// Those with less redundancy than their profile: a shard missing, bad, on a node that is down, or two on one node.
    pub degraded_stripes: u64,
    /// Shards of them that are known to be damaged or gone.
    pub bad_shards: u64,
    /// The map's version.
    pub map: MapVersion,
    /// Bytes of shards with deleted or replaced content only. The nodes delete them when nobody can be reading them any
    /// more, see [`GARBAGE_GRACE`](crate::settings::GARBAGE_GRACE).
    pub deleted_bytes: u64,
}
