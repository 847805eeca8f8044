//! The client over stores in memory, with faults: what an application notices.

mod cached;
mod copy;
mod large;
mod model;
mod paths;
mod recover;
mod versions;
mod writes;

use super::{Client, ClientBuilder};
use crate::error::{Error, Kind, Result};
use crate::ids::{ClusterId, NodeId, NodeUuid};
use crate::layout::Profile;
use crate::meta::memory::MemoryMeta;
use crate::meta::{
    Allocate, Allocation, Changes, Command, Heartbeat, HeartbeatReply, MetaAnswer, MetaOp, MetaQuery, MetaReply,
    MetaSession, MetaStore, Watch,
};
use crate::placement::FailureDomain;
use crate::shard::ShardStores;
use crate::shard::fault::{Fault, FaultyStore};
use crate::shard::memory::{MemoryStore, MemoryStores};
use async_trait::async_trait;
use bytes::Bytes;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

pub(super) const CLUSTER: ClusterId = ClusterId(11);

/// A cluster in memory.
pub(super) struct Rig {
    pub meta: Arc<FaultyMeta>,
    pub nodes: Vec<Arc<FaultyStore>>,
    stores: Arc<dyn ShardStores>,
}

/// Metadata that fails commits on command.
#[derive(Debug)]
pub(super) struct FaultyMeta {
    inner: MemoryMeta,
    /// The kinds with which the next commits fail, last first.
    pub commit_faults: Mutex<Vec<Kind>>,
    /// Changes and questions so far.
    changes: AtomicUsize,
    questions: AtomicUsize,
}

#[async_trait]
impl MetaStore for FaultyMeta {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        if matches!(command.op, MetaOp::Commit { .. })
            && let Some(kind) = self.commit_faults.lock().expect("lock").pop()
        {
            return Err(Error::new(kind, "fault injected"));
        }
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.inner.apply(command).await
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer> {
        self.questions.fetch_add(1, Ordering::Relaxed);
        self.inner.query(query).await
    }

    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>> {
        self.inner.allocate(request).await
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply> {
        self.inner.heartbeat(beat).await
    }

    async fn watch(&self, watch: Watch) -> Result<Changes> {
        self.inner.watch(watch).await
    }
}

impl Rig {
    /// Six nodes, 4+2.
    pub async fn new() -> Rig {
        let nodes: Vec<_> = (0..6).map(|_| Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())))).collect();
        let stores = MemoryStores::default();
        for (number, node) in (1..).zip(&nodes) {
            stores.insert(NodeId(number), node.clone());
        }
        Rig { nodes, ..Rig::over(Arc::new(stores)).await }
    }

    /// Six nodes whose shards are kept by `stores`.
    pub async fn over(stores: Arc<dyn ShardStores>) -> Rig {
        let inner = MemoryMeta::new(CLUSTER, Profile::DEFAULT);
        let meta = Arc::new(FaultyMeta {
            inner,
            commit_faults: Mutex::default(),
            changes: AtomicUsize::new(0),
            questions: AtomicUsize::new(0),
        });
        let session = MetaSession::new(meta.clone());
        for number in 1..=6u32 {
            let register = MetaOp::Register {
                uuid: NodeUuid(number.into()),
                addr: format!("node{number}:1"),
                domain: FailureDomain::default(),
                capacity_bytes: 1 << 40,
            };
            let reply = session.apply(register).await.expect("registered");
            assert!(matches!(reply, MetaReply::Registered { node, .. } if node == NodeId(number)), "{reply:?}");
        }
        Rig { meta, nodes: Vec::new(), stores }
    }

    pub async fn client(&self) -> Client {
        self.client_with(Client::builder()).await
    }

    pub async fn client_with(&self, builder: ClientBuilder) -> Client {
        builder.over(self.meta.clone(), self.stores.clone()).await.expect("client")
    }

    /// All requests to nodes `from..` fail from now on, or work again.
    pub fn set_faults(&self, from: usize, fault: Option<Fault>) {
        self.nodes[from..].iter().for_each(|node| node.set(fault));
    }

    /// Changes and questions that metadata was asked since the last call.
    pub fn take_meta_requests(&self) -> (usize, usize) {
        let take = |count: &AtomicUsize| count.swap(0, Ordering::Relaxed);
        (take(&self.meta.changes), take(&self.meta.questions))
    }

    pub fn requests(&self) -> usize {
        let requests = self.nodes.iter().map(|node| node.take_requests());
        requests.map(|requests| requests.put + requests.get + requests.get_many).sum()
    }
}

/// Bytes that differ from place to place and from seed to seed.
pub(super) fn pattern(seed: u64, len: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes: Vec<u8> = std::iter::repeat_with(next).take(len.div_ceil(8)).flat_map(u64::to_le_bytes).collect();
    bytes.truncate(len);
    bytes.into()
}
