//! What the tests of this module stand on: nodes in memory that can be made to misbehave, and just enough metadata.

use super::StripeIo;
use crate::erasure::conformance::bytes;
use crate::error::{Error, Kind, Result};
use crate::ids::{NodeId, ShardId, StripeId};
use crate::layout::{Profile, Stripe, StripeShape};
use crate::meta::{
    Allocate, Allocation, Changes, Command, Heartbeat, HeartbeatReply, MetaAnswer, MetaOp, MetaQuery, MetaReply,
    MetaSession, MetaStore, Watch,
};
use crate::shard::fault::{Fault, FaultyStore, Requests};
use crate::shard::memory::{MemoryStore, MemoryStores};
use async_trait::async_trait;
use bytes::Bytes;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Hands out stripes on nodes 1, 2, 3, ... and remembers reports.
#[derive(Debug)]
pub(super) struct FakeMeta {
    next: AtomicU64,
    nodes: Vec<NodeId>,
    pub(super) avoided: Mutex<Vec<NodeId>>,
    /// Requests for places.
    pub(super) asked: AtomicU64,
    reported: Mutex<Vec<ShardId>>,
}

#[async_trait]
impl MetaStore for FakeMeta {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        match command.op {
            MetaOp::ReportShards(shards) => {
                self.reported.lock().unwrap().extend(shards);
                Ok(MetaReply::Done)
            }
            op => Err(Error::new(Kind::Unsupported, format!("{op:?}"))),
        }
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer> {
        Err(Error::new(Kind::Unsupported, format!("{query:?}")))
    }

    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>> {
        *self.avoided.lock().unwrap() = request.avoid.clone();
        self.asked.fetch_add(1, Ordering::Relaxed);
        let nodes: Vec<NodeId> = self.nodes.iter().filter(|node| !request.avoid.contains(node)).copied().collect();
        let allocation = |_| {
            let stripe = StripeId(self.next.fetch_add(1, Ordering::Relaxed));
            Allocation { stripe, nodes: nodes.clone() }
        };
        Ok((0..request.stripes).map(allocation).collect())
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply> {
        Err(Error::new(Kind::Unsupported, format!("{beat:?}")))
    }

    async fn watch(&self, watch: Watch) -> Result<Changes> {
        Err(Error::new(Kind::Unsupported, format!("{watch:?}")))
    }
}

/// What may be wrong with a node when a stripe is read.
#[derive(Clone, Copy, Debug)]
pub(super) enum Trouble {
    Down,
    Fails,
    Hangs,
    Slow,
    CorruptsReplies,
    MisplacesReplies,
    ShortensReplies,
    /// The shard is flipped at rest.
    Flipped,
    /// The shard is cut short at rest.
    Cut,
    /// The shard is gone.
    Lost,
}

impl Trouble {
    pub(super) const ALL: [Trouble; 10] = [
        Trouble::Down,
        Trouble::Fails,
        Trouble::Hangs,
        Trouble::Slow,
        Trouble::CorruptsReplies,
        Trouble::MisplacesReplies,
        Trouble::ShortensReplies,
        Trouble::Flipped,
        Trouble::Cut,
        Trouble::Lost,
    ];
}

/// Nodes 1, 2, 3, ... and a [`StripeIo`] over them.
pub(super) struct Rig {
    pub(super) io: StripeIo,
    pub(super) meta: Arc<FakeMeta>,
    pub(super) stores: Arc<MemoryStores>,
    memory: Vec<Arc<MemoryStore>>,
    faulty: Vec<Arc<FaultyStore>>,
}

impl Rig {
    pub(super) fn new(nodes: u32) -> Self {
        Rig::with_capacities(&vec![u64::MAX; nodes as usize])
    }

    pub(super) fn with_capacities(capacities: &[u64]) -> Self {
        let stores = Arc::new(MemoryStores::default());
        let (mut memory, mut faulty, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        for (number, &capacity) in (1..).zip(capacities) {
            let inner = Arc::new(MemoryStore::with_capacity(capacity));
            let outer = Arc::new(FaultyStore::new(inner.clone()));
            stores.insert(NodeId(number), outer.clone());
            memory.push(inner);
            faulty.push(outer);
            nodes.push(NodeId(number));
        }
        let (next, avoided, reported) = (AtomicU64::new(1), Mutex::default(), Mutex::default());
        let meta = Arc::new(FakeMeta { next, nodes, avoided, asked: AtomicU64::new(0), reported });
        let io = StripeIo::new(MetaSession::new(meta.clone()), stores.clone());
        Rig { io, meta, stores, memory, faulty }
    }

    pub(super) fn memory(&self, node: NodeId) -> &MemoryStore {
        &self.memory[node.0 as usize - 1]
    }

    pub(super) fn faulty(&self, node: NodeId) -> &FaultyStore {
        &self.faulty[node.0 as usize - 1]
    }

    pub(super) fn set(&self, node: u32, fault: Option<Fault>) {
        self.faulty(NodeId(node)).set(fault);
    }

    /// Requests that each node was asked since the last call.
    pub(super) fn take_requests(&self) -> Vec<Requests> {
        self.faulty.iter().map(|store| store.take_requests()).collect()
    }

    /// The sum of [`Rig::take_requests`]: `get`s and `get_many`s.
    pub(super) fn take_reads(&self) -> (usize, usize) {
        let requests = self.take_requests();
        (requests.iter().map(|node| node.get).sum(), requests.iter().map(|node| node.get_many).sum())
    }

    pub(super) fn shards_held(&self) -> usize {
        self.memory.iter().map(|store| store.held().len()).sum()
    }

    pub(super) async fn write(&self, profile: Profile, len: usize, seed: u64) -> (Arc<Stripe>, Bytes) {
        let content = Bytes::from(bytes(len, seed));
        let shape = StripeShape::for_content(profile, len as u64);
        let stripe = self.io.write(shape, content.clone()).await.expect("write");
        (Arc::new(stripe), content)
    }

    pub(super) async fn assert_reads(&self, stripe: &Arc<Stripe>, range: Range<u32>, content: &Bytes) {
        let bytes = self.io.read(stripe, range.clone()).await.expect("read");
        let expected = content.slice(range.start as usize..range.end as usize);
        assert!(bytes == expected, "bytes {range:?} differ");
    }

    /// Makes trouble for shard `index` of a stripe.
    pub(super) fn make(&self, trouble: Trouble, stripe: &Stripe, index: usize) {
        let (node, shard) = (stripe.nodes[index].expect("stored"), stripe.shard(index));
        let fault = |fault| self.faulty(node).set(Some(fault));
        match trouble {
            Trouble::Down => self.stores.set_down(node),
            Trouble::Fails => fault(Fault::Fail(Kind::Io)),
            Trouble::Hangs => fault(Fault::Hang),
            Trouble::Slow => fault(Fault::Delay(Duration::from_secs(5))),
            Trouble::CorruptsReplies => fault(Fault::CorruptReply),
            Trouble::MisplacesReplies => fault(Fault::MisplaceReply),
            Trouble::ShortensReplies => fault(Fault::ShortenReply),
            Trouble::Flipped => assert!(self.memory(node).flip_byte(shard, 0)),
            Trouble::Cut => assert!(self.memory(node).truncate(shard, 10)),
            Trouble::Lost => assert!(self.memory(node).lose(shard)),
        }
    }

    /// What metadata was told so far, once its queue had time to empty; sorted.
    pub(super) async fn reported(&self) -> Vec<ShardId> {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut reported = self.meta.reported.lock().unwrap().clone();
        reported.sort_unstable();
        reported
    }
}
