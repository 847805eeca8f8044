//! The cluster's own state: its identity, its storage nodes, the stripe ids that are handed out and given up.

use super::inode::{counters, edit_counters};
use super::keys;
use super::record::{Body, Counters, Inode};
use super::totals::node_records;
use super::tx::{Outcome, Tx, fail};
use torchfs_core::layout::Profile;
use torchfs_core::meta::{MetaReply, NodeRecord, NodeState, Timestamp};
use torchfs_core::placement::FailureDomain;
use torchfs_core::{ClusterId, InodeId, Kind, MapVersion, NodeId, NodeUuid, StripeId, Version};

/// Longest `host:port`: a DNS name has at most 253 bytes.
const ADDR_BYTES_MAX: usize = 260;

/// Most records of forgotten stripes that one advance of the horizon deletes; further ones go with the next.
const FORGOTTEN_MAX: usize = 4096;

pub(super) fn cluster_id(tx: &Tx<'_>) -> Outcome<ClusterId> {
    match tx.get(&keys::cluster())? {
        Some(cluster) => Ok(cluster),
        None => fail(Kind::Unavailable, "the metadata cluster is not founded yet; try again"),
    }
}

pub(super) fn require_founded(tx: &Tx<'_>) -> Outcome<()> {
    cluster_id(tx).map(|_| ())
}

pub(super) fn found(tx: &mut Tx<'_>, time: Timestamp, cluster: ClusterId, profile: Profile) -> Outcome<()> {
    profile.checked()?;
    if tx.get::<ClusterId>(&keys::cluster())?.is_some() {
        return Ok(());
    }
    tx.put(keys::cluster(), &cluster)?;
    let root = Inode {
        body: Body::Directory { parent: InodeId::ROOT, profile: Some(profile) },
        mode: 0o755,
        nlink: 2,
        uid: 0,
        gid: 0,
        size: 0,
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        version: Version(0),
        xattr_bytes: 0,
        orphan_since: None,
    };
    tx.put(keys::inode(InodeId::ROOT), &root)?;
    let counters = Counters {
        next_inode: InodeId::ROOT.0 + 1,
        next_stripe: StripeId(1),
        next_node: NodeId(1),
        map_version: MapVersion(1),
        horizon: StripeId(1),
        inodes: 1,
        files: 0,
        bytes: 0,
        stripes: 0,
        stored_bytes: 0,
        bad_shards: 0,
    };
    tx.put(keys::counters(), &counters)
}

pub(super) fn register(
    tx: &mut Tx<'_>,
    uuid: NodeUuid,
    addr: &str,
    domain: &FailureDomain,
    capacity_bytes: u64,
) -> Outcome<MetaReply> {
    if addr.is_empty() || addr.len() > ADDR_BYTES_MAX {
        return fail(Kind::InvalidInput, format!("an address of {} bytes; give host:port", addr.len()));
    }
    // A domain from the wire has passed no parser.
    if domain.to_string().parse::<FailureDomain>()? != *domain {
        return fail(Kind::InvalidInput, format!("'{domain}' is not a failure domain"));
    }
    let records = node_records(tx)?;
    let known = records.iter().find(|record| record.uuid == uuid);
    let id = match known {
        Some(record) => record.id,
        None => new_node_id(tx)?,
    };
    let state = match known.map(|record| record.state) {
        Some(NodeState::Draining) => NodeState::Draining,
        _ => NodeState::Up,
    };
    let record = NodeRecord { id, uuid, addr: addr.to_owned(), domain: domain.clone(), capacity_bytes, state };
    let changed = known != Some(&record);
    for mut other in records.into_iter().filter(|other| other.id != id && other.addr == addr) {
        // Another node answers at its address now: it is not there until it registers again.
        if other.state != NodeState::Down {
            other.state = NodeState::Down;
            put_node(tx, &other)?;
        }
    }
    if changed {
        put_node(tx, &record)?;
    }
    Ok(MetaReply::Registered { node: id, cluster: cluster_id(tx)? })
}

fn new_node_id(tx: &mut Tx<'_>) -> Outcome<NodeId> {
    let id = counters(tx)?.next_node;
    let Some(next) = id.0.checked_add(1) else {
        return fail(Kind::TooLarge, "all numbers for storage nodes are used up");
    };
    edit_counters(tx, |counters| counters.next_node = NodeId(next))?;
    Ok(id)
}

fn put_node(tx: &mut Tx<'_>, record: &NodeRecord) -> Outcome<()> {
    tx.put(keys::node(record.id), record)?;
    edit_counters(tx, |counters| counters.map_version = MapVersion(counters.map_version.0 + 1))
}

pub(super) fn set_node_state(tx: &mut Tx<'_>, node: NodeId, state: NodeState) -> Outcome<()> {
    let Some(mut record) = tx.get::<NodeRecord>(&keys::node(node))? else {
        return fail(Kind::NotFound, format!("there is no storage node {node}"));
    };
    if record.state == state {
        return Ok(());
    }
    record.state = state;
    put_node(tx, &record)
}

pub(super) fn reserve_stripes(tx: &mut Tx<'_>, count: u32) -> Outcome<StripeId> {
    let first = counters(tx)?.next_stripe;
    let Some(next) = first.0.checked_add(count.into()) else {
        return fail(Kind::TooLarge, "all stripe ids are used up");
    };
    edit_counters(tx, |counters| counters.next_stripe = StripeId(next))?;
    Ok(first)
}

/// The horizon never goes back, and never past what was handed out.
pub(super) fn advance_horizon(tx: &mut Tx<'_>, stripe: StripeId) -> Outcome<()> {
    let horizon = edit_counters(tx, |counters| {
        counters.horizon = stripe.min(counters.next_stripe).max(counters.horizon);
        counters.horizon
    })?;
    for (key, _) in tx.scan(&[keys::FORGOTTEN], &keys::forgotten(horizon), FORGOTTEN_MAX)? {
        tx.delete(key);
    }
    Ok(())
}
