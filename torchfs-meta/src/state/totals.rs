//! What the metadata node asks of the state beside the clients' queries: nodes, totals, garbage, the horizon.

use super::cluster::cluster_id;
use super::extent;
use super::inode::{self, counters};
use super::keys;
use super::record::{Body, Counters};
use super::stripe;
use super::tx::{Outcome, Tx, broken, decode, successor};
use crate::kv::KvRead;
use std::collections::{BTreeMap, BTreeSet};
use torchfs_core::meta::{ClusterMap, FsStat, NodeLoad, NodeRecord, NodeState, Timestamp};
use torchfs_core::{InodeId, NodeId, Result, ShardId, StripeId};

/// Keys that one scan brings.
const PAGE: usize = 4096;

/// Inodes without a name, and extents of them, that are looked at to tell deleted content from that of files with a name.
/// Of more, deleted at once, the rest counts as stored until it is collected: a status must not take seconds.
const ORPHANS_COUNTED_MAX: usize = 50_000;
const ORPHAN_EXTENTS_COUNTED_MAX: usize = 100_000;

/// Totals for the status of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Regular files that have a name.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of the shards of all stripes that a file with a name names.
    pub stored_bytes: u64,
    /// How many such stripes there are.
    pub stripes: u64,
    /// Those of them with less redundancy than their profile asks for, given the nodes that are down.
    pub degraded_stripes: u64,
    /// Shards of them that are known to be damaged or gone.
    pub bad_shards: u64,
    /// Bytes of the shards of all other stripes.
    pub deleted_bytes: u64,
}

/// The totals. Counts the stripes of each node in `down`, and those of deleted files, one by one; the rest is kept running.
///
/// # Errors
/// If the store fails, or the cluster is not founded.
pub fn totals(view: &dyn KvRead, down: &BTreeSet<NodeId>) -> Result<Totals> {
    let tx = Tx::new(view);
    let Counters { files, bytes, stored_bytes, stripes, bad_shards, .. } = counters(&tx)?;
    let mut degraded = degraded(&tx, down)?;
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let deleted_bytes = stripe::garbage_bytes(&tx)?;
    let mut totals = Totals { files, bytes, stored_bytes, stripes, degraded_stripes: 0, bad_shards, deleted_bytes };
    for (id, bytes) in of_orphans(&tx)? {
        let record = stripe::get_named(&tx, id)?;
        // Otherwise a file that has a name is in it too.
        if record.live_bytes == bytes {
            totals.stripes -= 1;
            totals.stored_bytes -= record.stored_bytes();
            totals.bad_shards -= u64::from(record.bad.count_ones());
            totals.deleted_bytes += record.stored_bytes();
            degraded.remove(&id.0);
        }
    }
    totals.degraded_stripes = degraded.len() as u64;
    Ok(totals)
}

/// How many bytes of each stripe inodes without a name still name.
fn of_orphans(tx: &Tx<'_>) -> Outcome<BTreeMap<StripeId, u64>> {
    let (mut all, mut extents) = (BTreeMap::new(), 0);
    for (key, _) in tx.scan(&[keys::ORPHANS], &keys::end_of(&[keys::ORPHANS]), ORPHANS_COUNTED_MAX)? {
        let Some(ino) = keys::last_number(&key).map(InodeId) else {
            return broken(format!("orphan key {key:02x?} is too short"));
        };
        let (live, count) = extent::live(tx, ino)?;
        live.into_iter().for_each(|(id, bytes)| *all.entry(id).or_default() += bytes);
        extents += count;
        if extents > ORPHAN_EXTENTS_COUNTED_MAX {
            break;
        }
    }
    Ok(all)
}

/// Whether there are inodes that lost their last name before a time.
///
/// # Errors
/// If the store fails.
pub fn has_orphans(view: &dyn KvRead, before: Timestamp) -> Result<bool> {
    Ok(!Tx::new(view).scan(&[keys::ORPHANS], &keys::orphans_before(before), 1)?.is_empty())
}

fn degraded(tx: &Tx<'_>, down: &BTreeSet<NodeId>) -> Outcome<BTreeSet<u64>> {
    let mut stripes = BTreeSet::new();
    let prefixes = down.iter().map(|&node| keys::stripes_of_node(node));
    for prefix in prefixes.chain([vec![keys::FLAWED]]) {
        each_key(tx, &prefix, &keys::end_of(&prefix), |key| stripes.extend(keys::last_number(key)))?;
    }
    Ok(stripes)
}

fn each_key(tx: &Tx<'_>, from: &[u8], to: &[u8], mut each: impl FnMut(&[u8])) -> Outcome<()> {
    let mut from = from.to_vec();
    loop {
        let page = tx.scan(&from, to, PAGE)?;
        page.iter().for_each(|(key, _)| each(key));
        match page.last() {
            Some((last, _)) if page.len() == PAGE => from = successor(last),
            _ => return Ok(()),
        }
    }
}

/// The cluster map.
///
/// # Errors
/// If the store fails, or the cluster is not founded.
pub fn map(view: &dyn KvRead) -> Result<ClusterMap> {
    let tx = Tx::new(view);
    let version = counters(&tx)?.map_version;
    Ok(ClusterMap { cluster: cluster_id(&tx)?, version, nodes: node_records(&tx)? })
}

/// The storage nodes, by number.
///
/// # Errors
/// If the store fails.
pub fn nodes(view: &dyn KvRead) -> Result<Vec<NodeRecord>> {
    Ok(node_records(&Tx::new(view))?)
}

pub(super) fn node_records(tx: &Tx<'_>) -> Outcome<Vec<NodeRecord>> {
    let found = tx.scan(&[keys::NODES], &keys::end_of(&[keys::NODES]), usize::MAX)?;
    found.iter().map(|(key, bytes)| decode(key, bytes)).collect()
}

/// Shards on a node that belong to stripes which became garbage before `before`, oldest first.
///
/// # Errors
/// If the store fails.
pub fn garbage_shards(view: &dyn KvRead, node: NodeId, before: Timestamp, limit: usize) -> Result<Vec<ShardId>> {
    let tx = Tx::new(view);
    let found = tx.scan(&keys::garbage_of(node), &keys::garbage_before(node, before), limit)?;
    let shards = found.iter().map(|(key, _)| match (key.len().checked_sub(9), key.last()) {
        (Some(at), Some(&index)) => match keys::last_number(&key[at..at + 8]) {
            Some(stripe) => Ok(ShardId { stripe: StripeId(stripe), index }),
            None => broken(format!("garbage key {key:02x?} is too short")),
        },
        _ => broken(format!("garbage key {key:02x?} is too short")),
    });
    Ok(shards.collect::<Outcome<Vec<_>>>()?)
}

/// Stripes below this that are not known are given up.
///
/// # Errors
/// If the store fails, or the cluster is not founded.
pub fn horizon(view: &dyn KvRead) -> Result<StripeId> {
    Ok(counters(&Tx::new(view))?.horizon)
}

/// The first stripe id that is not reserved yet.
///
/// # Errors
/// If the store fails, or the cluster is not founded.
pub fn next_stripe(view: &dyn KvRead) -> Result<StripeId> {
    Ok(counters(&Tx::new(view))?.next_stripe)
}

/// Which of these stripes no file names and no commit can name any more. Garbage is not among them: it is deleted
/// after its grace period.
///
/// # Errors
/// If the store fails, or the cluster is not founded.
pub fn abandoned(view: &dyn KvRead, stripes: &[StripeId]) -> Result<Vec<StripeId>> {
    let tx = Tx::new(view);
    let horizon = counters(&tx)?.horizon;
    let mut abandoned = Vec::new();
    for &id in stripes {
        let given_up = id < horizon || tx.get::<()>(&keys::forgotten(id)).map_err(torchfs_core::Error::from)?.is_some();
        if given_up && stripe::find(&tx, id)?.is_none() {
            abandoned.push(id);
        }
    }
    Ok(abandoned)
}

/// How full the file system is, given what nodes reported; of others the capacity they registered with is known.
///
/// # Errors
/// If the store fails, or the cluster is not founded.
pub fn fs_stat(view: &dyn KvRead, loads: &BTreeMap<NodeId, NodeLoad>) -> Result<FsStat> {
    let tx = Tx::new(view);
    let records = node_records(&tx)?;
    let usable = records.iter().filter(|record| record.state != NodeState::Down);
    let (mut capacity_bytes, mut used_bytes) = (0u64, 0u64);
    for record in usable {
        let load = loads.get(&record.id);
        capacity_bytes = capacity_bytes.saturating_add(load.map_or(record.capacity_bytes, |load| load.capacity_bytes));
        used_bytes = used_bytes.saturating_add(load.map_or(0, |load| load.used_bytes));
    }
    let profile = match inode::get_named(&tx, InodeId::ROOT)?.body {
        Body::Directory { profile, .. } => profile,
        _ => None,
    };
    Ok(FsStat { capacity_bytes, used_bytes, inodes: counters(&tx)?.inodes, profile })
}
