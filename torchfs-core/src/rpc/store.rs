//! A storage node's shards over the wire: [`StoreClient`] on one side, `StoreHandler` on the other.

use super::connection::Connection;
use super::server::Handler;
use super::{Payload, Service, StoreRpcRequest, StoreRpcResponse};
use crate::error::{Error, Kind, Result};
use crate::ids::{ClusterId, NodeId, ShardId};
use crate::settings::{BLOCK_BYTES, FRAME_BYTES_MAX, GET_MANY_MAX, SHARD_BYTES_MAX, SHARD_DEADLINE};
use crate::shard::{ShardBlocks, ShardRead, ShardStat, ShardStore};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::sync::watch;

/// What the data of one `get_many` answer may come to; the rest of the frame is for checksums.
const ANSWER_BYTES_MAX: usize = FRAME_BYTES_MAX / 8 * 7;

/// The shards of the storage node at one address. Nothing is dialled before the first request.
///
/// Checksums are passed on, not checked: that is for whoever uses the bytes.
#[derive(Debug)]
pub struct StoreClient {
    connection: Connection<StoreRpcRequest, StoreRpcResponse>,
}

macro_rules! answer {
    ($client:expr, $request:expr, $variant:ident) => {
        match $client.connection.call($request, SHARD_DEADLINE).await? {
            StoreRpcResponse::$variant(result) => result,
            _ => Err(super::mismatch($client.addr())),
        }
    };
}

impl StoreClient {
    /// For `host:port`, which must belong to `cluster` if that is given.
    #[must_use]
    pub fn new(addr: impl Into<String>, cluster: Option<ClusterId>) -> Self {
        let (_, cluster) = watch::channel(cluster);
        StoreClient { connection: Connection::new(addr.into(), Service::Store, cluster) }
    }

    /// Refuses whoever is at the address if it is another storage node than this: nodes may change addresses.
    #[must_use]
    pub fn of_node(self, node: NodeId) -> Self {
        StoreClient { connection: self.connection.of_node(node) }
    }

    /// `host:port`.
    #[must_use]
    pub fn addr(&self) -> &str {
        self.connection.addr()
    }

    /// Connects now instead of with the first request.
    ///
    /// # Errors
    /// `Unavailable` if the node cannot be reached or failed a moment ago, `Protocol` if it is no storage node,
    /// `WrongCluster` if it belongs to another cluster.
    pub async fn connect(&self) -> Result<()> {
        self.connection.connect().await.map(drop)
    }

    pub(super) fn is_paused(&self) -> bool {
        self.connection.is_paused()
    }
}

#[async_trait]
impl ShardStore for StoreClient {
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()> {
        let request = || StoreRpcRequest::Put { shard, data: data.clone(), checksums: checksums.clone() };
        answer!(self, request, Put)
    }

    async fn get(&self, read: ShardRead) -> Result<ShardBlocks> {
        answer!(self, || StoreRpcRequest::Get { read: read.clone() }, Get)
    }

    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        let mut answers = Vec::with_capacity(reads.len());
        let mut rest = &reads[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(fitting(rest));
            let part: Vec<_> = answer!(self, || StoreRpcRequest::GetMany { reads: now.to_vec() }, GetMany)?;
            if part.len() != now.len() {
                let message = format!("{} gave {} answers to {} reads", self.addr(), part.len(), now.len());
                return Err(Error::new(Kind::Protocol, message));
            }
            answers.extend(part);
            rest = later;
        }
        Ok(answers)
    }

    async fn delete(&self, shards: Vec<ShardId>) -> Result<()> {
        answer!(self, || StoreRpcRequest::Delete { shards: shards.clone() }, Delete)
    }

    async fn stat(&self, shard: ShardId) -> Result<ShardStat> {
        answer!(self, || StoreRpcRequest::Stat { shard }, Stat)
    }

    async fn list(&self, after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>> {
        answer!(self, || StoreRpcRequest::List { after, limit }, List)
    }
}

/// How many of the reads can be answered in one frame: at least one.
fn fitting(reads: &[ShardRead]) -> usize {
    let mut bytes = 0;
    let mut fits = |read: &ShardRead| {
        let widened = (read.range.end.saturating_sub(read.range.start) as usize).saturating_add(2 * BLOCK_BYTES);
        bytes += widened.min(SHARD_BYTES_MAX);
        bytes <= ANSWER_BYTES_MAX
    };
    reads.iter().take(GET_MANY_MAX).take_while(|read| fits(read)).count().max(1)
}

/// Answers with a store in this process.
#[derive(Clone, Debug)]
pub(super) struct StoreHandler(pub(super) Arc<dyn ShardStore>);

#[async_trait]
impl Handler for StoreHandler {
    type Request = StoreRpcRequest;
    type Response = StoreRpcResponse;

    fn is_change(request: &StoreRpcRequest) -> bool {
        matches!(request, StoreRpcRequest::Put { .. } | StoreRpcRequest::Delete { .. })
    }

    async fn handle(self, request: StoreRpcRequest) -> StoreRpcResponse {
        let store = self.0;
        match request {
            StoreRpcRequest::Put { shard, data, checksums } => {
                StoreRpcResponse::Put(store.put(shard, data, checksums).await)
            }
            StoreRpcRequest::Get { read } => StoreRpcResponse::Get(store.get(read).await),
            StoreRpcRequest::GetMany { reads } if reads.len() > GET_MANY_MAX => {
                let message = format!("{} reads in one request; at most {GET_MANY_MAX} are possible", reads.len());
                StoreRpcResponse::GetMany(Err(Error::new(Kind::InvalidInput, message)))
            }
            StoreRpcRequest::GetMany { reads } => StoreRpcResponse::GetMany(store.get_many(reads).await),
            StoreRpcRequest::Delete { shards } => StoreRpcResponse::Delete(store.delete(shards).await),
            StoreRpcRequest::Stat { shard } => StoreRpcResponse::Stat(store.stat(shard).await),
            StoreRpcRequest::List { after, limit } => StoreRpcResponse::List(store.list(after, limit).await),
        }
    }
}
