//! What a metadata node answers to clients and storage nodes. Only the leader answers; the others say who leads.
//!
//! Reads are answered from a view of the state taken after a read barrier: see [`Consensus::read_barrier`].

use crate::kv::KvRead;
use crate::nodes::{self, Book, Presence};
use crate::propose::Proposer;
use crate::raft::{Consensus, StateStore};
use crate::settings::MetaSettings;
use crate::state;
use crate::stripes::RESERVE;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use torchfs_core::meta::{
    Allocate, Allocation, Changes, Command, Heartbeat, HeartbeatReply, InternalOp, Leases, MetaAnswer, MetaOp,
    MetaQuery, MetaReply, MetaStatus, NodeRecord, NodeState, Status, StoreStatus, Timestamp, Watch, taken_over,
};
use torchfs_core::placement::{LeastLoaded, PlacementPolicy};
use torchfs_core::rpc::{MetaFault, MetaService};
use torchfs_core::{Error, Kind, MetaId, NodeId, Result, StripeId};

/// Shards that one heartbeat's reply names for deletion.
const DELETE_MAX: usize = 512;

/// Clients that wait at the same time for something to change.
const WATCHERS_MAX: usize = 4096;

/// A metadata node at the service of others.
#[derive(Debug)]
pub struct Desk {
    pub(crate) consensus: Consensus,
    pub(crate) state: Arc<StateStore>,
    pub(crate) proposer: Proposer,
    pub(crate) settings: MetaSettings,
    addrs: BTreeMap<MetaId, String>,
    policy: Box<dyn PlacementPolicy>,
    book: Mutex<Book>,
    watchers: Semaphore,
    pub(crate) leases: Leases,
}

impl Desk {
    /// The desk of a node whose peers are at `addrs`.
    #[must_use]
    pub fn new(
        consensus: Consensus,
        state: Arc<StateStore>,
        addrs: BTreeMap<MetaId, String>,
        settings: MetaSettings,
    ) -> Self {
        let proposer = Proposer::new(consensus.clone(), addrs.clone());
        let (policy, book) = (Box::new(LeastLoaded), Mutex::new(Book::new(0, Instant::now())));
        let watchers = Semaphore::new(WATCHERS_MAX);
        let leases = Leases::new(settings.lease);
        Desk { consensus, state, proposer, settings, addrs, policy, book, watchers, leases }
    }

    pub(crate) fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn read_barrier(&self) -> Result<u64, MetaFault> {
        self.consensus.read_barrier().await.map_err(|refused| self.proposer.fault(refused))
    }

    /// Reads the state away from the async threads.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn KvRead) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let view = self.state.view()?;
        let read = tokio::task::spawn_blocking(move || work(&*view)).await;
        read.map_err(|_| Error::new(Kind::Cancelled, "the node is shutting down"))?
    }

    async fn status(&self, term: u64) -> Result<Status> {
        let read = |view: &dyn KvRead| {
            let map = state::map(view)?;
            let down: BTreeSet<NodeId> =
                map.nodes.iter().filter(|node| node.state == NodeState::Down).map(|node| node.id).collect();
            Ok((state::totals(view, &down)?, map))
        };
        let (totals, map) = self.read(read).await?;
        let metas = self.consensus.standings().into_iter().map(|node| {
            let addr = self.addrs.get(&node.id).cloned().unwrap_or(node.addr);
            MetaStatus { id: node.id, addr, state: node.state.into() }
        });
        let metas = metas.collect();
        let leader = self.consensus.id();
        let mut book = self.book();
        let book = book.of_term(term);
        let stores = map.nodes.into_iter().map(|record| StoreStatus { load: book.load(record.id), record }).collect();
        Ok(Status {
            cluster: map.cluster,
            leader,
            metas,
            stores,
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

    /// Stripe ids that were never handed out before, reserved through Raft.
    async fn stripe_ids(&self, term: u64, count: u32) -> Result<Vec<StripeId>, MetaFault> {
        loop {
            if let Some(ids) = self.book().of_term(term).stripes.take(count) {
                return Ok(ids);
            }
            self.reserve_stripes(term, RESERVE.max(count)).await?;
        }
    }

    pub(crate) async fn reserve_stripes(&self, term: u64, count: u32) -> Result<(), MetaFault> {
        match self.proposer.propose_internal(InternalOp::ReserveStripes { count }).await? {
            MetaReply::Stripes(first) => {
                self.book().of_term(term).stripes.add(first, count);
                Ok(())
            }
            other => Err(Error::new(Kind::Protocol, format!("a reservation was answered with {other:?}")).into()),
        }
    }

    /// Refuses to move a node that may still run where the map says: its data folder was copied, or it was not stopped.
    async fn admit(&self, op: &MetaOp) -> Result<(), MetaFault> {
        let ops = match op {
            MetaOp::Batch(ops) => ops.as_slice(),
            op => std::slice::from_ref(op),
        };
        for op in ops {
            let MetaOp::Register { uuid, addr, .. } = op else { continue };
            let term = self.read_barrier().await?;
            let nodes = state::nodes(&*self.state.view()?)?;
            if let Some(record) = nodes.iter().find(|node| node.uuid == *uuid && node.addr != *addr) {
                let after = self.settings.node_down_after;
                must_be_gone(record, addr, self.book().of_term(term).presence(record, after, Instant::now()))?;
            }
        }
        Ok(())
    }

    /// A node that has just registered is there, be it yet to report.
    fn note_registered(&self, reply: &MetaReply) {
        match reply {
            MetaReply::Registered { node, .. } => {
                // In a term that has ended it does not matter.
                if let Some(term) = self.consensus.leading() {
                    self.book().of_term(term).registered(*node, Instant::now());
                }
            }
            MetaReply::Batch(replies) => replies.iter().flatten().for_each(|reply| self.note_registered(reply)),
            _ => {}
        }
    }

    /// Brings the cluster map in line with what a node says of itself. Its address is not part of that: a node at another
    /// address than the map has may be a copy, and moves only by registering.
    async fn welcome(&self, beat: &Heartbeat, record: NodeRecord) -> Result<(), MetaFault> {
        if is_another_size(record.capacity_bytes, beat.load.capacity_bytes) {
            self.proposer
                .propose_own(MetaOp::Register {
                    uuid: beat.uuid,
                    addr: record.addr,
                    domain: record.domain,
                    capacity_bytes: beat.load.capacity_bytes,
                })
                .await?;
        }
        if record.state == NodeState::Down {
            let up = InternalOp::SetNodeState { node: beat.node, state: NodeState::Up };
            self.proposer.propose_internal(up).await?;
        }
        Ok(())
    }

    fn garbage_before(&self) -> Timestamp {
        self.proposer.now().minus(self.settings.garbage_grace)
    }
}

/// Whether the map should say so. A node on a disk that others write to has another capacity at every heartbeat; the leader
/// goes by what it heard, and the map, which every change goes into through Raft, is for a leader that has heard nothing.
fn is_another_size(known_bytes: u64, reported_bytes: u64) -> bool {
    known_bytes.abs_diff(reported_bytes) > known_bytes / 16
}

fn find_node(view: &dyn KvRead, beat: &Heartbeat) -> Result<NodeRecord> {
    let found = state::nodes(view)?.into_iter().find(|node| node.id == beat.node && node.uuid == beat.uuid);
    match found {
        Some(record) if record.addr == beat.addr => Ok(record),
        Some(record) => Err(taken_over(&record, &beat.addr)),
        None => {
            let message = format!("no storage node {} with this identity is registered: register first", beat.node);
            Err(Error::new(Kind::NotFound, message))
        }
    }
}

fn must_be_gone(record: &NodeRecord, wanted: &str, presence: Presence) -> Result<()> {
    let (id, addr) = (record.id, &record.addr);
    match presence {
        Presence::Gone => Ok(()),
        Presence::Seen(ago) => {
            let message = format!(
                "storage node {id} runs at {addr} (heard {:.1} s ago) and cannot run at {wanted} as well: stop it first; \
                 if this data folder is a copy of its, start with an empty one",
                ago.as_secs_f64()
            );
            Err(Error::new(Kind::Exists, message))
        }
        Presence::NotKnown(left) => {
            let message = format!(
                "storage node {id} may still run at {addr}, so {wanted} has to wait: the metadata leader is new and knows \
                 in {:.1} s",
                left.as_secs_f64()
            );
            Err(Error::new(Kind::Unavailable, message))
        }
    }
}

#[async_trait]
impl MetaService for Desk {
    async fn apply(&self, command: Command) -> Result<MetaReply, MetaFault> {
        self.admit(&command.op).await?;
        let (client, is_told) = (command.request.client, !command.op.touches().is_empty());
        let (reply, place) = self.proposer.propose(command).await?;
        self.note_registered(&reply);
        if is_told {
            self.leases.leads(place.term);
            // If it came again, this time it changed nothing and stands for a change before it, of the same client.
            let number = self.state.feed().last_change_by(client, place.index);
            self.leases.seen_by_others(client, number).await;
        }
        Ok(reply)
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer, MetaFault> {
        let term = self.read_barrier().await?;
        match query {
            MetaQuery::Status => Ok(MetaAnswer::Status(Box::new(self.status(term).await?))),
            MetaQuery::FsStat => {
                let loads = self.book().of_term(term).loads();
                Ok(MetaAnswer::FsStat(state::fs_stat(&*self.state.view()?, &loads)?))
            }
            // These read many records; the others one or a few.
            MetaQuery::List { .. } | MetaQuery::Abandoned(_) | MetaQuery::Open(_) => {
                Ok(self.read(move |view| state::query(view, &query)).await?)
            }
            query => Ok(state::query(&*self.state.view()?, &query)?),
        }
    }

    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>, MetaFault> {
        nodes::check(&request)?;
        let term = self.read_barrier().await?;
        let records = state::nodes(&*self.state.view()?)?;
        let ids = self.stripe_ids(term, request.stripes).await?;
        // The ids are this node's own whoever leads by now: their reservation was ordered by Raft.
        Ok(self.book().of_term(term).place(&*self.policy, &records, &request, ids)?)
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply, MetaFault> {
        let term = self.read_barrier().await?;
        let record = find_node(&*self.state.view()?, &beat)?;
        self.book().of_term(term).report(beat.node, beat.load, Instant::now());
        self.welcome(&beat, record).await?;
        if !beat.deleted.is_empty() {
            self.proposer.propose_internal(InternalOp::Deleted(beat.deleted)).await?;
        }
        if !beat.damaged.is_empty() {
            self.proposer.propose_internal(InternalOp::Damaged(beat.damaged)).await?;
        }
        let (node, before) = (beat.node, self.garbage_before());
        let reply = move |view: &dyn KvRead| {
            Ok(HeartbeatReply {
                map: state::map(view)?.version,
                delete: state::garbage_shards(view, node, before, DELETE_MAX)?,
                horizon: state::horizon(view)?,
            })
        };
        Ok(self.read(reply).await?)
    }

    async fn watch(&self, watch: Watch) -> Result<Changes, MetaFault> {
        let Ok(_place) = self.watchers.try_acquire() else {
            let message = format!("{WATCHERS_MAX} clients watch already; this one is told nothing for now");
            return Err(Error::new(Kind::Unavailable, message).into());
        };
        self.leases.leads(self.read_barrier().await?);
        Ok(self.leases.watch(self.state.feed(), watch, self.consensus.confirmed()).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_map_follows_a_size_that_differs_by_more_than_a_sixteenth() {
        let known = 1600;
        let told: Vec<u64> =
            [1499, 1500, 1600, 1700, 1701].into_iter().filter(|now| is_another_size(known, *now)).collect();
        assert_eq!(told, [1499, 1701]);
        assert!(is_another_size(0, 1) && !is_another_size(0, 0));
    }
}
