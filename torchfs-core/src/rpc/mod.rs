//! The wire: tarpc services over a codec that carries payloads as raw bytes.
//!
//! Every connection starts with a handshake that names the protocol version, the service and the cluster, so that a wrong
//! address, an old binary or another cluster is a clear error and not a hang. tarpc is known only here and in the
//! `service.rs` of the servers.

mod admission;
mod buffer;
mod codec;
mod connection;
#[cfg(test)]
mod crowd_test;
mod handshake;
mod meta;
#[cfg(test)]
mod meta_test;
mod payload;
mod pool;
mod quiet;
mod raft;
mod seats;
mod server;
mod socket;
mod store;
#[cfg(test)]
mod store_test;
mod transport;
mod vigil;

pub use meta::{MetaClient, MetaService};
pub use payload::Payload;
pub use pool::StorePool;
pub use raft::{RaftClient, RaftService};
pub use server::Server;
pub use store::StoreClient;

use crate::error::{Error, Kind, Result};
use crate::ids::{MetaId, ShardId};
use crate::meta::{
    Allocate, Allocation, Changes, Command, Heartbeat, HeartbeatReply, MetaAnswer, MetaQuery, MetaReply, Watch,
};
use crate::shard::{ShardBlocks, ShardRead, ShardStat};
use serde::{Deserialize, Serialize};

/// The version of everything behind the handshake. Two versions do not talk to each other.
pub const PROTOCOL_VERSION: u16 = 1;

/// What a connection is for; named in the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Service {
    /// A storage node's shards: [`StoreRpc`].
    Store = 1,
    /// A metadata node's service to clients and storage nodes: [`MetaRpc`].
    Meta = 2,
    /// Raft between metadata nodes.
    Raft = 3,
}

/// Where the leader is, as far as the answering node knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderHint {
    /// Its Raft id.
    pub id: MetaId,
    /// `host:port`.
    pub addr: String,
}

/// Why a metadata node did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum MetaFault {
    /// Ask the leader instead, if one is known; nothing was done.
    NotLeader(Option<LeaderHint>),
    /// The outcome is this error.
    Failed(Error),
}

impl From<Error> for MetaFault {
    fn from(error: Error) -> Self {
        MetaFault::Failed(error)
    }
}

/// Metadata for clients and storage nodes; the methods are those of [`MetaStore`](crate::meta::MetaStore).
#[tarpc::service]
pub trait MetaRpc {
    /// See [`MetaStore::apply`](crate::meta::MetaStore::apply).
    async fn apply(command: Command) -> Result<MetaReply, MetaFault>;
    /// See [`MetaStore::query`](crate::meta::MetaStore::query).
    async fn query(query: MetaQuery) -> Result<MetaAnswer, MetaFault>;
    /// See [`MetaStore::allocate`](crate::meta::MetaStore::allocate).
    async fn allocate(request: Allocate) -> Result<Vec<Allocation>, MetaFault>;
    /// See [`MetaStore::heartbeat`](crate::meta::MetaStore::heartbeat).
    async fn heartbeat(beat: Heartbeat) -> Result<HeartbeatReply, MetaFault>;
    /// See [`MetaStore::watch`](crate::meta::MetaStore::watch).
    async fn watch(watch: Watch) -> Result<Changes, MetaFault>;
}

/// A storage node's shards; the methods are those of [`ShardStore`](crate::shard::ShardStore).
#[tarpc::service]
pub trait StoreRpc {
    /// See [`ShardStore::put`](crate::shard::ShardStore::put).
    async fn put(shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<(), Error>;
    /// See [`ShardStore::get`](crate::shard::ShardStore::get).
    async fn get(read: ShardRead) -> Result<ShardBlocks, Error>;
    /// See [`ShardStore::get_many`](crate::shard::ShardStore::get_many).
    async fn get_many(reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks, Error>>, Error>;
    /// See [`ShardStore::delete`](crate::shard::ShardStore::delete).
    async fn delete(shards: Vec<ShardId>) -> Result<(), Error>;
    /// See [`ShardStore::stat`](crate::shard::ShardStore::stat).
    async fn stat(shard: ShardId) -> Result<ShardStat, Error>;
    /// See [`ShardStore::list`](crate::shard::ShardStore::list).
    async fn list(after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>, Error>;
}

/// Opaque messages between metadata nodes; see [`RaftService`].
#[tarpc::service]
pub trait RaftRpc {
    /// See [`RaftService::call`].
    async fn exchange(request: Payload) -> Result<Payload, Error>;
}

/// The peer gave an answer, but to another question.
fn mismatch(addr: &str) -> Error {
    Error::new(Kind::Protocol, format!("{addr} answered another question than it was asked"))
}
