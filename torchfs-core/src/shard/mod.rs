//! The storage boundary: [`ShardStore`], one storage node's shards; and [`ShardStores`], all the nodes by number.
//!
//! Both sides of the wire implement [`ShardStore`]: the disk engine of a storage node, the RPC client that reaches it, and a
//! memory store for tests. Wrappers over the same trait add faults and limits, not flags inside.

pub mod conformance;
pub mod fault;
mod full;
pub mod memory;

pub use full::{no_space, node_is_full};

use crate::error::Result;
use crate::ids::{NodeId, ShardId};
use crate::rpc::Payload;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

/// A request for bytes of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRead {
    /// The shard.
    pub shard: ShardId,
    /// Which bytes; the answer is widened to whole 64 KiB blocks.
    pub range: Range<u32>,
}

/// Whole blocks of a shard (the last one of a shard may be short) with their checksums, which the receiver checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardBlocks {
    /// Where the first byte is in the shard: a multiple of 64 KiB.
    pub offset: u32,
    /// The bytes.
    pub data: Payload,
    /// CRC32C of each block in `data`.
    pub checksums: Vec<u32>,
}

/// What a store knows of a shard it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStat {
    /// The shard.
    pub shard: ShardId,
    /// Its data bytes.
    pub bytes: u32,
    /// Seconds since it was written.
    pub age_seconds: u64,
}

/// The shards of one storage node.
///
/// # Contract for implementors
/// - `put` is durable when it returns `Ok`: it survives SIGKILL and power loss. It checks every block against its
///   checksum first and stores nothing if one differs (`Corrupt`). Putting the same bytes again under the same id is `Ok`;
///   other bytes under a taken id are `Exists`: shards are immutable. A full disk is `NoSpace` before anything is kept. No
///   bytes at all, or more than [`SHARD_BYTES_MAX`](crate::settings::SHARD_BYTES_MAX), are `InvalidInput`.
/// - `get` returns the blocks that cover the range, clipped to the shard's end, checked against the stored checksums. A
///   range that is empty or starts at or past the end is `InvalidInput`. A damaged shard is `Corrupt`, a missing one
///   `NotFound`. More than [`GET_MANY_MAX`](crate::settings::GET_MANY_MAX) reads at once are `InvalidInput`.
/// - `delete` of a shard that is not there is `Ok`.
/// - Nothing blocks for longer than [`SHARD_DEADLINE`](crate::settings::SHARD_DEADLINE) on behalf of the caller.
///
/// The suite in [`conformance`] runs against every implementation.
#[async_trait]
pub trait ShardStore: Debug + Send + Sync + 'static {
    /// Stores a shard for good.
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()>;

    /// Reads bytes of a shard.
    async fn get(&self, read: ShardRead) -> Result<ShardBlocks>;

    /// Reads bytes of many shards in one request, at most [`GET_MANY_MAX`](crate::settings::GET_MANY_MAX). The answers
    /// are in the order of the reads.
    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>>;

    /// Removes shards.
    async fn delete(&self, shards: Vec<ShardId>) -> Result<()>;

    /// What is known of a shard.
    async fn stat(&self, shard: ShardId) -> Result<ShardStat>;

    /// A page of the shards held, in rising order, from the first after `after`.
    async fn list(&self, after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>>;
}

/// The storage nodes of a cluster by number.
///
/// The RPC pool implements it with the cluster map; [`memory::MemoryStores`] with stores in this process.
#[async_trait]
pub trait ShardStores: Debug + Send + Sync + 'static {
    /// The node's store.
    ///
    /// # Errors
    /// [`Kind::Unavailable`](crate::Kind::Unavailable) naming the node if it is down, unreachable or unknown. Must not
    /// take longer than [`CONNECT_DEADLINE`](crate::settings::CONNECT_DEADLINE).
    async fn store(&self, node: NodeId) -> Result<Arc<dyn ShardStore>>;
}
