//! Shards in memory: [`MemoryStore`], one node, and [`MemoryStores`], nodes by number. For tests and for trying things
//! out without a disk; nothing survives the process.
//!
//! Bytes and their checksums are kept apart and checked on every read, as on disk, so that damage done on purpose
//! ([`MemoryStore::flip_byte`] and others) is found the same way.

use super::{ShardBlocks, ShardRead, ShardStat, ShardStore, ShardStores};
use crate::checksum::verify_blocks;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{NodeId, ShardId};
use crate::layout::widen_to_blocks;
use crate::rpc::Payload;
use crate::settings::{BLOCK_BYTES, GET_MANY_MAX, SHARD_BYTES_MAX};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// One node's shards in memory.
#[derive(Debug)]
pub struct MemoryStore {
    capacity_bytes: u64,
    shards: Mutex<BTreeMap<ShardId, Held>>,
}

#[derive(Debug)]
struct Held {
    data: Bytes,
    checksums: Vec<u32>,
    written: Instant,
}

impl Default for MemoryStore {
    fn default() -> Self {
        MemoryStore::with_capacity(u64::MAX)
    }
}

impl MemoryStore {
    /// A store that is full when it holds `capacity_bytes`.
    #[must_use]
    pub fn with_capacity(capacity_bytes: u64) -> Self {
        MemoryStore { capacity_bytes, shards: Mutex::default() }
    }

    /// Bytes held.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.shards().values().map(|held| held.data.len() as u64).sum()
    }

    /// The shards held, in rising order.
    #[must_use]
    pub fn held(&self) -> Vec<ShardId> {
        self.shards().keys().copied().collect()
    }

    /// Damages a shard: flips the lowest bit of the byte at `at`. Returns whether there is such a byte.
    pub fn flip_byte(&self, shard: ShardId, at: usize) -> bool {
        self.damage(shard, |data| match data.get_mut(at) {
            Some(byte) => {
                *byte ^= 1;
                true
            }
            None => false,
        })
    }

    /// Damages a shard: cuts it to `len` bytes and leaves its checksums. Returns whether it was longer.
    pub fn truncate(&self, shard: ShardId, len: usize) -> bool {
        self.damage(shard, |data| {
            let longer = data.len() > len;
            data.truncate(len);
            longer
        })
    }

    /// Loses a shard, behind everyone's back. Returns whether it was there.
    pub fn lose(&self, shard: ShardId) -> bool {
        self.shards().remove(&shard).is_some()
    }

    fn damage(&self, shard: ShardId, change: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        let mut shards = self.shards();
        let Some(held) = shards.get_mut(&shard) else { return false };
        let mut data = held.data.to_vec();
        let changed = change(&mut data);
        held.data = data.into();
        changed
    }

    fn shards(&self) -> MutexGuard<'_, BTreeMap<ShardId, Held>> {
        self.shards.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, read: &ShardRead) -> Result<ShardBlocks> {
        let (data, checksums) = {
            let shards = self.shards();
            let held = shards.get(&read.shard).ok_or_else(|| missing(read.shard))?;
            (held.data.clone(), held.checksums.clone())
        };
        if data.len().div_ceil(BLOCK_BYTES) != checksums.len() {
            return Err(Error::new(Kind::Corrupt, format!("shard {} has lost its end", read.shard)));
        }
        if read.range.start as usize >= data.len() || read.range.is_empty() {
            let message = format!("range {:?} of shard {} of {} bytes", read.range, read.shard, data.len());
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let range = widen_to_blocks(&read.range, data.len() as u32);
        let first = range.start as usize / BLOCK_BYTES;
        let data = data.slice(range.start as usize..range.end as usize);
        let checksums = checksums[first..first + data.len().div_ceil(BLOCK_BYTES)].to_vec();
        verify_blocks(&data, &checksums).context(|| format!("shard {}", read.shard))?;
        Ok(ShardBlocks { offset: range.start, data: data.into(), checksums })
    }
}

fn missing(shard: ShardId) -> Error {
    Error::new(Kind::NotFound, format!("no shard {shard} here"))
}

fn stat_of(shard: ShardId, held: &Held) -> ShardStat {
    ShardStat { shard, bytes: held.data.len() as u32, age_seconds: held.written.elapsed().as_secs() }
}

#[async_trait]
impl ShardStore for MemoryStore {
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()> {
        if data.is_empty() || data.len() > SHARD_BYTES_MAX {
            let message = format!("shard {shard} of {} bytes; 1 to {SHARD_BYTES_MAX} are possible", data.len());
            return Err(Error::new(Kind::InvalidInput, message));
        }
        verify_blocks(&data, &checksums).context(|| format!("shard {shard} on arrival"))?;
        let mut shards = self.shards();
        if let Some(held) = shards.get(&shard) {
            if held.data == data.0 {
                return Ok(());
            }
            return Err(Error::new(Kind::Exists, format!("shard {shard} is here with other bytes")));
        }
        let used: u64 = shards.values().map(|held| held.data.len() as u64).sum();
        if used.saturating_add(data.len() as u64) > self.capacity_bytes {
            return Err(super::node_is_full(used, self.capacity_bytes));
        }
        shards.insert(shard, Held { data: data.0, checksums, written: Instant::now() });
        Ok(())
    }

    async fn get(&self, read: ShardRead) -> Result<ShardBlocks> {
        self.read(&read)
    }

    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        if reads.len() > GET_MANY_MAX {
            let message = format!("{} reads in one request; at most {GET_MANY_MAX} are possible", reads.len());
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(reads.iter().map(|read| self.read(read)).collect())
    }

    async fn delete(&self, shards: Vec<ShardId>) -> Result<()> {
        let mut held = self.shards();
        for shard in shards {
            held.remove(&shard);
        }
        Ok(())
    }

    async fn stat(&self, shard: ShardId) -> Result<ShardStat> {
        self.shards().get(&shard).map(|held| stat_of(shard, held)).ok_or_else(|| missing(shard))
    }

    async fn list(&self, after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let shards = self.shards();
        let page = shards.range((from, Bound::Unbounded)).take(limit as usize);
        Ok(page.map(|(&shard, held)| stat_of(shard, held)).collect())
    }
}

/// Storage nodes in this process, by number.
#[derive(Debug, Default)]
pub struct MemoryStores {
    nodes: Mutex<BTreeMap<NodeId, Node>>,
}

#[derive(Debug)]
struct Node {
    store: Arc<dyn ShardStore>,
    reachable: bool,
}

impl MemoryStores {
    /// Nodes 1 to `count`, each an empty [`MemoryStore`] without a limit.
    #[must_use]
    pub fn with_nodes(count: u32) -> Self {
        let stores = MemoryStores::default();
        for node in 1..=count {
            stores.insert(NodeId(node), Arc::new(MemoryStore::default()));
        }
        stores
    }

    /// Adds a node or replaces its store; it is reachable.
    pub fn insert(&self, node: NodeId, store: Arc<dyn ShardStore>) {
        self.nodes().insert(node, Node { store, reachable: true });
    }

    /// From now on the node cannot be reached; what it holds stays. Has no effect on a node that does not exist.
    pub fn set_down(&self, node: NodeId) {
        if let Some(node) = self.nodes().get_mut(&node) {
            node.reachable = false;
        }
    }

    /// The node can be reached again.
    pub fn set_up(&self, node: NodeId) {
        if let Some(node) = self.nodes().get_mut(&node) {
            node.reachable = true;
        }
    }

    /// The nodes that can be reached, in rising order.
    #[must_use]
    pub fn reachable(&self) -> Vec<NodeId> {
        self.nodes().iter().filter(|(_, node)| node.reachable).map(|(&id, _)| id).collect()
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ShardStores for MemoryStores {
    async fn store(&self, node: NodeId) -> Result<Arc<dyn ShardStore>> {
        match self.nodes().get(&node) {
            Some(Node { store, reachable: true }) => Ok(store.clone()),
            Some(_) => Err(Error::new(Kind::Unavailable, format!("node {node} is down"))),
            None => Err(Error::new(Kind::Unavailable, format!("node {node} is unknown"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;
    use crate::checksum::block_checksums;
    use crate::ids::StripeId;

    const SHARD: ShardId = ShardId { stripe: StripeId(7), index: 1 };

    async fn put(store: &MemoryStore, bytes: usize) -> Result<()> {
        let data = Bytes::from(vec![3; bytes]);
        let checksums = block_checksums(&data);
        store.put(SHARD, data.into(), checksums).await
    }

    async fn get_kind(store: &MemoryStore) -> Option<Kind> {
        store.get(ShardRead { shard: SHARD, range: 0..10 }).await.err().map(|error| error.kind())
    }

    #[tokio::test]
    async fn memory_store_conforms() {
        conformance::suite(Arc::new(MemoryStore::default())).await;
    }

    #[tokio::test]
    async fn damage_is_found() {
        let store = MemoryStore::default();
        put(&store, 100_000).await.expect("stored");
        assert_eq!(get_kind(&store).await, None);
        assert!(store.flip_byte(SHARD, 9));
        assert_eq!(get_kind(&store).await, Some(Kind::Corrupt));
        assert!(store.flip_byte(SHARD, 9));
        assert!(store.truncate(SHARD, 50));
        assert_eq!(get_kind(&store).await, Some(Kind::Corrupt));
        assert!(store.lose(SHARD));
        assert_eq!(get_kind(&store).await, Some(Kind::NotFound));
        assert!(!store.flip_byte(SHARD, 0));
    }

    #[tokio::test]
    async fn a_full_store_keeps_nothing() {
        let store = MemoryStore::with_capacity(1000);
        assert_eq!(put(&store, 1001).await.expect_err("full").kind(), Kind::NoSpace);
        assert_eq!(store.used_bytes(), 0);
        put(&store, 1000).await.expect("fits exactly");
        put(&store, 1000).await.expect("the same again needs no room");
        assert_eq!(store.held(), [SHARD]);
    }

    #[tokio::test]
    async fn a_node_that_is_down_is_named() {
        let stores = MemoryStores::with_nodes(2);
        stores.store(NodeId(2)).await.expect("reachable");
        stores.set_down(NodeId(2));
        let error = stores.store(NodeId(2)).await.expect_err("down");
        assert_eq!((error.kind(), error.to_string().as_str()), (Kind::Unavailable, "node 2 is down"));
        assert_eq!(stores.store(NodeId(3)).await.expect_err("unknown").kind(), Kind::Unavailable);
        stores.set_up(NodeId(2));
        assert_eq!(stores.reachable(), [NodeId(1), NodeId(2)]);
    }
}
