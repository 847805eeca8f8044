//! Every mutation and every question, one enum each.
//!
//! [`MetaOp`] is at once the write request, the Raft log entry, the arms of the state machine's `match` and the alphabet of
//! the property tests. Adding an operation is one variant and one arm.

use super::feed::Change;
use super::name::{Name, XattrName};
use super::types::ClusterMap;
use super::types::{
    Attr, AttrChange, Content, ContentChange, FsStat, Listing, NewInode, NodeRecord, NodeState, Resolved, Status,
    Timestamp,
};
use crate::error::Error;
use crate::ids::{ClusterId, InodeId, NodeId, NodeUuid, RequestId, ShardId, StripeId};
use crate::layout::Profile;
use crate::placement::FailureDomain;
use serde::{Deserialize, Serialize};

/// What to do about a name that is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IfExists {
    /// Fail with [`Kind::Exists`](crate::Kind::Exists).
    Fail,
    /// Answer with what is there if it is of the same kind, else fail with `Exists`.
    Keep,
    /// A regular file over a regular file: keeps the inode and its links, takes mode, owner, mtime and content of the new
    /// one, as one new version. Anything else fails with `Exists` or `IsDirectory`.
    Replace,
}

/// What rename does with an existing target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RenameMode {
    /// Replace it, by the rules of rename(2).
    Replace,
    /// Fail with `Exists` (RENAME_NOREPLACE).
    NoReplace,
    /// Swap the two (RENAME_EXCHANGE).
    Exchange,
}

/// Which attributes may be there before (setxattr(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XattrMode {
    /// Either.
    Either,
    /// It must be new (XATTR_CREATE).
    Create,
    /// It must exist (XATTR_REPLACE).
    Replace,
}

/// A mutation of the namespace or of the cluster's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaOp {
    /// Makes an inode under a name, with content at once if given (regular files). Answers `Named`.
    Create {
        /// The folder.
        parent: InodeId,
        /// The name in it.
        name: Name,
        /// What to make.
        inode: NewInode,
        /// What if the name is taken.
        if_exists: IfExists,
        /// First content.
        content: Option<ContentChange>,
    },
    /// Gives an inode (not a folder) another name. Answers `Named`.
    Link {
        /// The inode.
        ino: InodeId,
        /// The folder of the new name.
        parent: InodeId,
        /// The new name.
        name: Name,
    },
    /// Removes a name that is not a folder's. Answers `Named`, the inode as it is afterwards (`nlink` may be 0).
    Unlink {
        /// The folder.
        parent: InodeId,
        /// The name.
        name: Name,
    },
    /// Removes an empty folder. Answers `Named`, the inode as it is afterwards (`nlink` is 0).
    Rmdir {
        /// The folder that holds it.
        parent: InodeId,
        /// Its name.
        name: Name,
    },
    /// Moves a name, atomically replacing what the target name had. Answers `Renamed`.
    Rename {
        /// From this folder.
        parent: InodeId,
        /// This name.
        name: Name,
        /// To this folder.
        new_parent: InodeId,
        /// Under this name.
        new_name: Name,
        /// What about an existing target.
        mode: RenameMode,
    },
    /// Changes attributes. Answers `Attr`.
    SetAttr {
        /// The inode.
        ino: InodeId,
        /// What to change.
        change: AttrChange,
    },
    /// Commits new content of a regular file; only now is it visible. Answers `Attr`. Works on an inode that has no name
    /// any more, as long as it is not collected.
    Commit {
        /// The file.
        ino: InodeId,
        /// The change.
        change: ContentChange,
    },
    /// Sets an extended attribute. Answers `Done`.
    SetXattr {
        /// The inode.
        ino: InodeId,
        /// With its namespace, like `user.label`.
        name: XattrName,
        /// At most 64 KiB.
        value: Vec<u8>,
        /// Whether it must be new or there.
        mode: XattrMode,
    },
    /// Removes an extended attribute. Answers `Done`.
    RemoveXattr {
        /// The inode.
        ino: InodeId,
        /// The attribute.
        name: XattrName,
    },
    /// Sets the profile of a folder, which new files in it and below it take; `None` inherits again. Answers `Done`.
    SetProfile {
        /// The folder.
        ino: InodeId,
        /// The profile.
        profile: Option<Profile>,
    },
    /// Several operations in order, each of which succeeds or fails by itself. Not nested. Answers `Batch`.
    Batch(Vec<MetaOp>),
    /// A client saw that shards are damaged or gone. Answers `Done`. Shards of unknown stripes are ignored.
    ReportShards(Vec<ShardId>),
    /// Makes a storage node known, or again known after a restart. Answers `Registered`; `Exists` for a known node at
    /// another address than it was heard from a moment ago.
    Register {
        /// What its data folder says it is.
        uuid: NodeUuid,
        /// Where to reach it.
        addr: String,
        /// Where it stands.
        domain: FailureDomain,
        /// Bytes it may use.
        capacity_bytes: u64,
    },
    /// Changes of the cluster's own state, which only the leader proposes. Answers `Done` unless said otherwise.
    Internal(InternalOp),
}

/// Mutations that only the leader itself proposes; refused when they come from a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum InternalOp {
    /// The first entry: names the cluster and makes the root folder. Later ones change nothing.
    Found {
        /// The new cluster's id.
        cluster: ClusterId,
        /// The root folder's profile.
        profile: Profile,
    },
    /// A node fell silent, came back, or is to be drained.
    SetNodeState {
        /// The node.
        node: NodeId,
        /// Its state.
        state: NodeState,
    },
    /// Reserves a run of stripe ids for the leader to hand out. Answers `Stripes` with the first.
    ReserveStripes {
        /// How many.
        count: u32,
    },
    /// Stripes below this that no file names are given up: a later commit that names one is `Stale`.
    AdvanceHorizon {
        /// The first that is not given up.
        stripe: StripeId,
    },
    /// Shards of garbage stripes that nodes have deleted; a stripe whose last shard is gone is forgotten.
    Deleted(Vec<ShardId>),
    /// Collects some inodes that lost their last name before a time, and forgets some clients, with the answers kept for
    /// them, that were silent since before another. A bounded amount of work; repeat it now and then.
    Collect {
        /// Inodes without a name since before this are collected.
        before: Timestamp,
        /// Clients silent since before this are forgotten.
        clients_before: Timestamp,
    },
    /// Shards that a storage node itself found damaged.
    Damaged(Vec<ShardId>),
}

/// The answer to a [`MetaOp`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaReply {
    /// It is done.
    Done,
    /// It is done, and this is the inode now.
    Attr(Attr),
    /// The answers of a batch, one per operation.
    Batch(Vec<Result<MetaReply, Error>>),
    /// The node is known as this.
    Registered {
        /// Its number.
        node: NodeId,
        /// The cluster it belongs to from now on.
        cluster: ClusterId,
    },
    /// The first of the reserved stripe ids.
    Stripes(StripeId),
    /// A name was moved.
    Renamed {
        /// What was moved, as it is now.
        moved: Attr,
        /// What had the new name before: swapped, or one name poorer.
        other: Option<InodeId>,
    },
    /// A name was made or removed.
    Named {
        /// What it leads or led to, as it is now.
        attr: Attr,
        /// Its folder as it is now.
        folder: Attr,
    },
}

/// A mutation as a client sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    /// The same for every retry.
    pub request: RequestId,
    /// The client has the answers to all its requests with a lower sequence: they may be forgotten.
    pub answered_below: u64,
    /// What to do.
    pub op: MetaOp,
}

/// A question. Answers are linearizable: they reflect every mutation acknowledged before the question was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaQuery {
    /// What has this name? Answers `Attr`.
    Lookup {
        /// The folder.
        parent: InodeId,
        /// The name.
        name: Name,
    },
    /// An inode's attributes. Answers `Attr`.
    Attr(InodeId),
    /// A file's attributes and content. Answers `Opened`.
    Open(InodeId),
    /// A page of a folder. Answers `Listing`.
    List {
        /// The folder.
        ino: InodeId,
        /// Start after this name.
        after: Option<Name>,
        /// At most this many entries (1 to 4096).
        limit: u32,
        /// Whether files' extents and stripes are wanted too.
        extents: bool,
    },
    /// Where a path leads: components from the folder `from`, `..` and links followed on the way. Answers `Resolved`.
    Resolve {
        /// Where to start (the root for absolute paths).
        from: InodeId,
        /// The path's bytes; empty components and `.` are skipped.
        path: Vec<u8>,
        /// Whether a link as last component is followed.
        follow: bool,
    },
    /// The parent of a folder. Answers `Attr`.
    Parent(InodeId),
    /// A link's target. Answers `Bytes`.
    ReadLink(InodeId),
    /// An extended attribute. Answers `Bytes`.
    Xattr {
        /// The inode.
        ino: InodeId,
        /// The attribute.
        name: XattrName,
    },
    /// The names of all extended attributes. Answers `Names`.
    Xattrs(InodeId),
    /// The profile that new files in this folder take, and whether it is the folder's own. Answers `Profile`.
    Profile(InodeId),
    /// How full the file system is. Answers `FsStat`.
    FsStat,
    /// Which storage nodes there are. Answers `Map`.
    Map,
    /// The cluster at a glance. Answers `Status`.
    Status,
    /// Which of these stripes no file names and no client may still commit. Answers `Stripes`.
    Abandoned(Vec<StripeId>),
}

/// The answer to a [`MetaQuery`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaAnswer {
    /// An inode.
    Attr(Attr),
    /// A file and its content.
    Opened(Attr, Content),
    /// A page of a folder.
    Listing(Listing),
    /// Where a path leads.
    Resolved(Resolved),
    /// A link's target or an attribute's value.
    Bytes(Vec<u8>),
    /// Names of attributes.
    Names(Vec<XattrName>),
    /// The effective profile, and whether the folder itself sets it.
    Profile(Profile, bool),
    /// How full the file system is.
    FsStat(FsStat),
    /// The cluster map.
    Map(ClusterMap),
    /// The cluster at a glance.
    Status(Box<Status>),
    /// Stripes.
    Stripes(Vec<StripeId>),
}

impl MetaOp {
    /// Whether clients may propose it.
    #[must_use]
    pub fn is_public(&self) -> bool {
        match self {
            MetaOp::Internal(_) => false,
            MetaOp::Batch(ops) => ops.iter().all(MetaOp::is_public),
            _ => true,
        }
    }

    /// The names and inodes in it. What it changes are these and the inodes in its answer.
    #[must_use]
    pub fn touches(&self) -> Vec<Change> {
        let named = |parent: &InodeId, name: &Name| vec![Change::Inode(*parent), Change::Name(*parent, name.clone())];
        match self {
            MetaOp::Create { parent, name, .. } | MetaOp::Unlink { parent, name } | MetaOp::Rmdir { parent, name } => {
                named(parent, name)
            }
            MetaOp::Link { ino, parent, name } => [named(parent, name), vec![Change::Inode(*ino)]].concat(),
            MetaOp::Rename { parent, name, new_parent, new_name, .. } => {
                [named(parent, name), named(new_parent, new_name)].concat()
            }
            MetaOp::SetAttr { ino, .. }
            | MetaOp::Commit { ino, .. }
            | MetaOp::SetXattr { ino, .. }
            | MetaOp::RemoveXattr { ino, .. }
            | MetaOp::SetProfile { ino, .. } => vec![Change::Inode(*ino)],
            MetaOp::Batch(ops) => ops.iter().flat_map(MetaOp::touches).collect(),
            MetaOp::ReportShards(_) | MetaOp::Register { .. } | MetaOp::Internal(_) => Vec::new(),
        }
    }
}

impl MetaReply {
    /// The inode that it is about.
    #[must_use]
    pub fn attr(&self) -> Option<&Attr> {
        match self {
            MetaReply::Attr(attr) | MetaReply::Named { attr, .. } | MetaReply::Renamed { moved: attr, .. } => {
                Some(attr)
            }
            MetaReply::Done | MetaReply::Batch(_) | MetaReply::Registered { .. } | MetaReply::Stripes(_) => None,
        }
    }

    /// The inodes in it which the operation does not name.
    #[must_use]
    pub fn touches(&self) -> Vec<Change> {
        match self {
            MetaReply::Attr(attr) | MetaReply::Named { attr, .. } => vec![Change::Inode(attr.ino)],
            MetaReply::Renamed { moved, other } => [moved.ino].into_iter().chain(*other).map(Change::Inode).collect(),
            MetaReply::Batch(replies) => replies.iter().flatten().flat_map(MetaReply::touches).collect(),
            MetaReply::Done | MetaReply::Registered { .. } | MetaReply::Stripes(_) => Vec::new(),
        }
    }
}

/// A node of the map is found by its number.
impl ClusterMap {
    /// The node's record.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&NodeRecord> {
        self.nodes.iter().find(|node| node.id == id)
    }
}
