//! [`Standalone`]: the state machine over a store of this process alone, as a [`MetaStore`] without a cluster.
//!
//! For tests and for embedding; one process, one copy. Its clock is set by its owner.

use super::{apply, changes, fs_stat, garbage_shards, horizon, map, nodes, query, totals};
use crate::kv::{Durability, Kv, KvRead};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use torchfs_core::layout::Profile;
use torchfs_core::meta::{
    Allocate, Allocation, Changed, Changes, Command, Feed, Heartbeat, HeartbeatReply, InternalOp, MetaAnswer, MetaOp,
    MetaQuery, MetaReply, MetaStatus, MetaStore, NodeLoad, NodeState, Status, StoreStatus, Timestamp, Watch,
    taken_over,
};
use torchfs_core::settings::{GARBAGE_GRACE, WATCH_GATHER};
use torchfs_core::{ClientId, ClusterId, Error, Kind, MetaId, NodeId, RequestId, Result, StripeId};

/// Most shards that one heartbeat is told to delete.
const DELETE_MAX: usize = 256;

/// The state machine as a metadata store.
#[derive(Debug)]
pub struct Standalone {
    kv: Box<dyn Kv>,
    durability: Durability,
    turn: Mutex<Turn>,
    feed: Feed,
}

/// What is not in the store.
#[derive(Debug)]
struct Turn {
    now: Timestamp,
    /// The owner's own requests.
    client: ClientId,
    sequence: u64,
    /// Commands applied since it was opened.
    applied: u64,
    loads: BTreeMap<NodeId, NodeLoad>,
}

impl Standalone {
    /// Opens a store, and founds a cluster in it if there is none.
    ///
    /// # Errors
    /// If the store fails, or the profile is impossible.
    pub fn open(kv: Box<dyn Kv>, durability: Durability, cluster: ClusterId, profile: Profile) -> Result<Self> {
        let now = Timestamp::default();
        let turn = Turn { now, client: ClientId::random(), sequence: 0, applied: 0, loads: BTreeMap::new() };
        let store = Standalone { kv, durability, turn: Mutex::new(turn), feed: Feed::new(0) };
        store.internal(InternalOp::Found { cluster, profile })?;
        Ok(store)
    }

    /// Sets the time of later operations.
    pub fn set_time(&self, now: Timestamp) {
        self.turn().now = now;
    }

    /// The store underneath.
    #[must_use]
    pub fn kv(&self) -> &dyn Kv {
        &*self.kv
    }

    /// Applies what only the owner may: see [`InternalOp`].
    ///
    /// # Errors
    /// What the operation answers.
    pub fn internal(&self, op: InternalOp) -> Result<MetaReply> {
        let mut turn = self.turn();
        self.apply_internal(&mut turn, op)
    }

    /// Applies any command; the answer is durable when it returns.
    ///
    /// # Errors
    /// What the operation answers.
    pub fn apply_now(&self, command: &Command) -> Result<MetaReply> {
        if !command.op.is_public() {
            return Err(Error::new(Kind::NotPermitted, "only the metadata cluster itself may propose this"));
        }
        let mut turn = self.turn();
        self.write(&mut turn, command)
    }

    fn turn(&self) -> MutexGuard<'_, Turn> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply_internal(&self, turn: &mut Turn, op: InternalOp) -> Result<MetaReply> {
        turn.sequence += 1;
        let request = RequestId { client: turn.client, sequence: turn.sequence };
        let command = Command { request, answered_below: turn.sequence, op: MetaOp::Internal(op) };
        self.write(turn, &command)
    }

    fn write(&self, turn: &mut Turn, command: &Command) -> Result<MetaReply> {
        let (batch, answer) = apply(&*self.kv, turn.now, command)?;
        let what = changes(&batch);
        self.kv.write(batch, self.durability)?;
        turn.applied += 1;
        self.feed.push(turn.applied, Changed { by: command.request, what });
        answer
    }

    /// The state, to read.
    fn view(&self) -> &dyn KvRead {
        &*self.kv
    }

    fn status(&self, turn: &Turn) -> Result<Status> {
        let map = map(self.view())?;
        let down = map.nodes.iter().filter(|node| node.state == NodeState::Down).map(|node| node.id);
        let totals = totals(self.view(), &down.collect::<BTreeSet<_>>())?;
        let leader = MetaId(1);
        let load = |id| turn.loads.get(&id).copied();
        Ok(Status {
            cluster: map.cluster,
            leader,
            metas: vec![MetaStatus { id: leader, addr: String::new(), state: "leader".to_owned() }],
            stores: map.nodes.into_iter().map(|record| StoreStatus { load: load(record.id), record }).collect(),
            files: totals.files,
            bytes: totals.bytes,
            stored_bytes: totals.stored_bytes,
            stripes: totals.stripes,
            degraded_stripes: totals.degraded_stripes,
            bad_shards: totals.bad_shards,
            map: map.version,
            deleted_bytes: totals.deleted_bytes,
        })
    }

    /// The nodes that are up, in turns.
    fn place(&self, first: StripeId, count: u32) -> Result<Vec<Allocation>> {
        let up: Vec<NodeId> =
            nodes(self.view())?.iter().filter(|node| node.state == NodeState::Up).map(|node| node.id).collect();
        if up.is_empty() {
            return Err(Error::new(Kind::Unavailable, "no storage node is up"));
        }
        let stripes = first.0..first.0 + u64::from(count);
        Ok(stripes.map(|id| Allocation { stripe: StripeId(id), nodes: rotated(&up, id) }).collect())
    }
}

fn rotated(nodes: &[NodeId], by: u64) -> Vec<NodeId> {
    let mut nodes = nodes.to_vec();
    let by = (by % nodes.len() as u64) as usize;
    nodes.rotate_left(by);
    nodes
}

#[async_trait]
impl MetaStore for Standalone {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        self.apply_now(&command)
    }

    async fn query(&self, question: MetaQuery) -> Result<MetaAnswer> {
        let turn = self.turn();
        match question {
            MetaQuery::Status => self.status(&turn).map(|status| MetaAnswer::Status(Box::new(status))),
            MetaQuery::FsStat => fs_stat(self.view(), &turn.loads).map(MetaAnswer::FsStat),
            question => query(self.view(), &question),
        }
    }

    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>> {
        request.profile.checked()?;
        let mut turn = self.turn();
        self.place(StripeId(0), 0)?;
        match self.apply_internal(&mut turn, InternalOp::ReserveStripes { count: request.stripes })? {
            MetaReply::Stripes(first) => self.place(first, request.stripes),
            other => Err(Error::new(Kind::Protocol, format!("reserving stripes was answered with {other:?}"))),
        }
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply> {
        let mut turn = self.turn();
        let map_now = map(self.view())?;
        let Some(record) = map_now.node(beat.node).filter(|record| record.uuid == beat.uuid) else {
            return Err(Error::new(Kind::NotFound, format!("storage node {} is not registered", beat.node)));
        };
        if record.addr != beat.addr {
            return Err(taken_over(record, &beat.addr));
        }
        if record.state == NodeState::Down {
            self.apply_internal(&mut turn, InternalOp::SetNodeState { node: beat.node, state: NodeState::Up })?;
        }
        turn.loads.insert(beat.node, beat.load);
        if !beat.deleted.is_empty() {
            self.apply_internal(&mut turn, InternalOp::Deleted(beat.deleted))?;
        }
        if !beat.damaged.is_empty() {
            self.apply_internal(&mut turn, InternalOp::Damaged(beat.damaged))?;
        }
        let before = turn.now.minus(GARBAGE_GRACE);
        Ok(HeartbeatReply {
            map: map(self.view())?.version,
            delete: garbage_shards(self.view(), beat.node, before, DELETE_MAX)?,
            horizon: horizon(self.view())?,
        })
    }

    async fn watch(&self, watch: Watch) -> Result<Changes> {
        Ok(self.feed.changes(watch, WATCH_GATHER).await)
    }
}
