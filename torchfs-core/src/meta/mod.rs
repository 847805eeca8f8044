//! The metadata boundary: [`MetaStore`] and, over it, [`MetaSession`] with one typed method per operation.
//!
//! Two kinds of store exist: the RPC client of a metadata cluster ([`crate::rpc`]) and [`memory::MemoryMeta`], a naive
//! one in this process that is also the model the real one is tested against.

mod cache;
pub mod conformance;
mod feed;
mod leases;
pub mod memory;
mod name;
mod op;
mod session;
mod types;
mod unnamed;

pub use feed::{Change, Changed, Changes, Feed, Watch, Wish};
pub use leases::Leases;
pub use name::{Name, XattrName};
pub use op::{Command, IfExists, InternalOp, MetaAnswer, MetaOp, MetaQuery, MetaReply, RenameMode, XattrMode};
pub use session::MetaSession;
pub use types::{
    Allocate, Allocation, Attr, AttrChange, ClusterMap, Content, ContentChange, DirEntry, FileKind, FsStat, Heartbeat,
    HeartbeatReply, Listing, MetaStatus, NewInode, NewKind, NodeLoad, NodeRecord, NodeState, Resolved, SetTime, Status,
    StoreStatus, Timestamp, taken_over,
};

use crate::error::Result;
use async_trait::async_trait;
use std::fmt::Debug;

/// Where the namespace is kept.
///
/// # Contract for implementors
/// - `apply` is exactly-once per [`Command::request`]: a command that comes again gets the first answer and changes
///   nothing. An error that is an *outcome* (`NotFound`, `Exists`, ...) is an answer in this sense; `Unavailable` and
///   `Timeout` are not, and may be retried.
/// - When `apply` returns `Ok`, the change is durable and visible to every later `query` of any client.
/// - `query` is linearizable.
/// - While a client holds a [lease](Changes::lease), `apply` of another one returns only when the holder has asked for what
///   came after the change, or the lease has ended.
/// - Every call returns within [`META_DEADLINE`](crate::settings::META_DEADLINE).
///
/// The suite in [`conformance`] checks all that can be checked from outside.
#[async_trait]
pub trait MetaStore: Debug + Send + Sync + 'static {
    /// Changes something.
    async fn apply(&self, command: Command) -> Result<MetaReply>;

    /// Answers a question.
    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer>;

    /// Hands out new stripe ids with nodes to write them to.
    ///
    /// # Errors
    /// [`Kind::NoSpace`](crate::Kind::NoSpace) when the nodes that are up are full,
    /// [`Kind::Unavailable`](crate::Kind::Unavailable) when none is up.
    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>>;

    /// A storage node reports, and is told what to delete.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) for a node that never registered,
    /// [`Kind::Exists`](crate::Kind::Exists) for one that has registered at another address since: see [`taken_over`].
    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply>;

    /// Waits a moment ([`WATCH_WAIT`](crate::settings::WATCH_WAIT) at most) until something changed after what the watcher
    /// has seen, and says what. The answer holds every change that was acknowledged to anyone before the question, unless
    /// it is cut short and `upto` says so; who asks on from there misses none.
    async fn watch(&self, watch: Watch) -> Result<Changes>;
}
