//! Storage nodes, places for stripes, and the state of the whole.

use super::{DELETE_MAX, Known, Model, fail};
use crate::error::{Kind, Result};
use crate::ids::{InodeId, MapVersion, MetaId, NodeId, NodeUuid, ShardId, StripeId};
use crate::meta::{
    Allocate, Allocation, Attr, ClusterMap, FileKind, FsStat, Heartbeat, HeartbeatReply, MetaReply, MetaStatus,
    NodeRecord, NodeState, Status, StoreStatus, taken_over,
};
use crate::placement::FailureDomain;
use crate::settings::GARBAGE_GRACE;

impl Model {
    pub(super) fn register(
        &mut self,
        uuid: NodeUuid,
        addr: &str,
        domain: &FailureDomain,
        capacity_bytes: u64,
    ) -> Result<MetaReply> {
        if addr.is_empty() || addr.len() > 260 {
            return fail(Kind::InvalidInput, format!("an address of {} bytes; give host:port", addr.len()));
        }
        if domain.to_string().parse::<FailureDomain>()? != *domain {
            return fail(Kind::InvalidInput, format!("'{domain}' is not a failure domain"));
        }
        let known = self.nodes.iter().find(|record| record.uuid == uuid).cloned();
        let id = known.as_ref().map_or(NodeId(self.nodes.len() as u32 + 1), |record| record.id);
        let draining = known.as_ref().is_some_and(|record| record.state == NodeState::Draining);
        let state = if draining { NodeState::Draining } else { NodeState::Up };
        let record = NodeRecord { id, uuid, addr: addr.to_owned(), domain: domain.clone(), capacity_bytes, state };
        for other in &mut self.nodes {
            if other.uuid != uuid && other.addr == addr && other.state != NodeState::Down {
                other.state = NodeState::Down;
                self.map_version += 1;
            }
        }
        if known.as_ref() != Some(&record) {
            self.nodes.retain(|other| other.id != id);
            self.nodes.push(record);
            self.nodes.sort_by_key(|record| record.id);
            self.map_version += 1;
        }
        Ok(MetaReply::Registered { node: id, cluster: self.cluster })
    }

    pub(super) fn set_node_state(&mut self, node: NodeId, state: NodeState) -> Result<()> {
        let Some(record) = self.nodes.iter_mut().find(|record| record.id == node) else {
            return fail(Kind::NotFound, format!("there is no storage node {node}"));
        };
        if record.state != state {
            record.state = state;
            self.map_version += 1;
        }
        Ok(())
    }

    pub(super) fn reserve(&mut self, count: u32) -> Result<StripeId> {
        let first = StripeId(self.next_stripe);
        self.next_stripe += u64::from(count);
        Ok(first)
    }

    pub(super) fn allocate(&mut self, request: &Allocate) -> Result<Vec<Allocation>> {
        request.profile.checked()?;
        let up = self.nodes.iter().filter(|record| record.state == NodeState::Up).map(|record| record.id);
        // Nodes that just failed the writer come last.
        let (avoid, mut good): (Vec<_>, Vec<_>) = up.partition(|node| request.avoid.contains(node));
        if good.is_empty() && avoid.is_empty() {
            return fail(Kind::Unavailable, "no storage node is up");
        }
        let first = self.reserve(request.stripes)?.0;
        let stripes = (first..self.next_stripe).map(|stripe| {
            let turn = (stripe % good.len().max(1) as u64) as usize;
            good.sort_unstable();
            good.rotate_left(turn);
            Allocation { stripe: StripeId(stripe), nodes: good.iter().chain(&avoid).copied().collect() }
        });
        Ok(stripes.collect())
    }

    pub(super) fn heartbeat(&mut self, beat: &Heartbeat) -> Result<HeartbeatReply> {
        let registered = self.nodes.iter().find(|record| record.id == beat.node && record.uuid == beat.uuid);
        let Some(record) = registered else {
            return fail(Kind::NotFound, format!("storage node {} is not registered", beat.node));
        };
        if record.addr != beat.addr {
            return Err(taken_over(record, &beat.addr));
        }
        if record.state == NodeState::Down {
            self.set_node_state(beat.node, NodeState::Up)?;
        }
        self.loads.insert(beat.node, beat.load);
        self.deleted(&beat.deleted)?;
        self.mark_bad(&beat.damaged)?;
        let (map, delete) = (MapVersion(self.map_version), self.garbage_on(beat.node));
        Ok(HeartbeatReply { map, delete, horizon: self.horizon })
    }

    /// Shards on a node whose stripes have been garbage for the grace period.
    fn garbage_on(&self, node: NodeId) -> Vec<ShardId> {
        let before = self.now.minus(GARBAGE_GRACE);
        let old = self.stripes.values().filter(|known| known.garbage_since.is_some_and(|since| since < before));
        let shards = old.flat_map(|known| {
            let on_node = move |index: &usize| known.stripe.nodes[*index] == Some(node);
            (0..known.stripe.nodes.len()).filter(on_node).map(|index| known.stripe.shard(index))
        });
        shards.take(DELETE_MAX).collect()
    }

    pub(super) fn map(&self) -> ClusterMap {
        ClusterMap { cluster: self.cluster, version: MapVersion(self.map_version), nodes: self.nodes.clone() }
    }

    fn named(&self) -> impl Iterator<Item = Attr> + '_ {
        self.inodes.keys().filter_map(|ino| self.attr(*ino).ok()).filter(|attr| attr.nlink > 0)
    }

    pub(super) fn fs_stat(&self) -> FsStat {
        let usable = || self.nodes.iter().filter(|record| record.state != NodeState::Down);
        let load = |record: &NodeRecord| self.loads.get(&record.id);
        let capacity = |record: &NodeRecord| load(record).map_or(record.capacity_bytes, |load| load.capacity_bytes);
        let used = |record: &NodeRecord| load(record).map_or(0, |load| load.used_bytes);
        FsStat {
            capacity_bytes: usable().fold(0, |sum: u64, record| sum.saturating_add(capacity(record))),
            used_bytes: usable().fold(0, |sum: u64, record| sum.saturating_add(used(record))),
            inodes: self.named().count() as u64,
            profile: self.inodes.get(&InodeId::ROOT).and_then(|root| root.profile),
        }
    }

    pub(super) fn status(&self) -> Status {
        let files = || self.named().filter(|attr| attr.kind == FileKind::File);
        let in_use = self.in_use();
        let live = || self.stripes.values().filter(|known| in_use.contains(&known.stripe.id));
        let deleted = self.stripes.values().filter(|known| !in_use.contains(&known.stripe.id));
        let bytes: u128 = files().map(|attr| u128::from(attr.size)).sum();
        let load = |id| self.loads.get(&id).copied();
        let store = |record: &NodeRecord| StoreStatus { record: record.clone(), load: load(record.id) };
        Status {
            cluster: self.cluster,
            leader: MetaId(1),
            metas: vec![MetaStatus { id: MetaId(1), addr: String::new(), state: "leader".to_owned() }],
            stores: self.nodes.iter().map(store).collect(),
            files: files().count() as u64,
            bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
            stored_bytes: live().map(stored_bytes).sum(),
            stripes: live().count() as u64,
            degraded_stripes: live().filter(|known| self.is_degraded(known)).count() as u64,
            bad_shards: live().map(|known| known.bad.len() as u64).sum(),
            map: MapVersion(self.map_version),
            deleted_bytes: deleted.map(stored_bytes).sum(),
        }
    }

    fn is_degraded(&self, known: &Known) -> bool {
        let down =
            |node: &NodeId| self.nodes.iter().any(|record| record.id == *node && record.state == NodeState::Down);
        known.stripe.is_under_spread() || !known.bad.is_empty() || known.stripe.nodes.iter().flatten().any(down)
    }
}

fn stored_bytes(known: &Known) -> u64 {
    let placed = (0..known.stripe.nodes.len()).filter(|&index| known.stripe.nodes[index].is_some());
    placed.map(|index| known.stripe.shape.shard_len(index) as u64).sum()
}
