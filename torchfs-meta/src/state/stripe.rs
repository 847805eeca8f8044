//! Stripes: admitted with the first commit that names them, accounted for by their live bytes, garbage at the last one,
//! forgotten when their last shard is deleted.
//!
//! Garbage never comes back: a commit that names a stripe which is garbage, forgotten or given up is `Stale`, so a node may
//! delete its shards without asking again.

use super::inode::{counters, edit_counters};
use super::keys;
use super::record::{Counters, StripeRecord};
use super::tx::{Outcome, Tx, broken, fail};
use std::collections::BTreeMap;
use torchfs_core::layout::Stripe;
use torchfs_core::meta::{ContentChange, Timestamp};
use torchfs_core::{Error, Kind, NodeId, Result, ShardId, StripeId};

pub(super) fn find(tx: &Tx<'_>, id: StripeId) -> Outcome<Option<StripeRecord>> {
    tx.get(&keys::stripe(id))
}

/// A stripe that an extent names.
pub(super) fn get_named(tx: &Tx<'_>, id: StripeId) -> Outcome<StripeRecord> {
    match find(tx, id)? {
        Some(record) => Ok(record),
        None => broken(format!("stripe {id} is named and not there")),
    }
}

/// Checks all that can be seen from the record alone: its shape, one place per shard, none for shards without bytes, and
/// that it can be read.
pub(super) fn check(stripe: &Stripe) -> Result<()> {
    let shape = stripe.shape.checked()?;
    let impossible = |what: &str| Err(Error::new(Kind::InvalidInput, format!("stripe {}: {what}", stripe.id)));
    if stripe.nodes.len() != shape.profile.shards() {
        return impossible("one place per shard is needed");
    }
    if stripe.nodes.iter().enumerate().any(|(index, node)| node.is_some() && shape.shard_len(index) == 0) {
        return impossible("a shard without bytes has no place");
    }
    let needed = (0..usize::from(shape.profile.data)).filter(|&index| shape.shard_len(index) > 0).count();
    if stripe.nodes.iter().flatten().count() < needed {
        return impossible("too few shards were written to read it");
    }
    Ok(())
}

/// Takes in the new stripes of a change, and checks that everything its extents name is there.
pub(super) fn admit(tx: &mut Tx<'_>, change: &ContentChange) -> Outcome<()> {
    let given = given_stripes(change)?;
    let mut lengths = BTreeMap::new();
    for extent in &change.extents {
        let data_bytes = match lengths.get(&extent.stripe) {
            Some(&data_bytes) => data_bytes,
            None => {
                let data_bytes = admit_one(tx, extent.stripe, given.get(&extent.stripe).copied())?;
                lengths.insert(extent.stripe, data_bytes);
                data_bytes
            }
        };
        if extent.stripe_offset.checked_add(extent.len).is_none_or(|end| end > data_bytes) {
            return fail(Kind::InvalidInput, format!("{extent:?} reaches past its stripe of {data_bytes} bytes"));
        }
    }
    match given.keys().find(|id| !lengths.contains_key(id)) {
        Some(id) => fail(Kind::InvalidInput, format!("stripe {id} is given and no extent names it")),
        None => Ok(()),
    }
}

fn given_stripes(change: &ContentChange) -> Outcome<BTreeMap<StripeId, &Stripe>> {
    let mut given: BTreeMap<StripeId, &Stripe> = BTreeMap::new();
    for stripe in &change.stripes {
        if given.insert(stripe.id, stripe).is_some_and(|other| other != stripe) {
            return fail(Kind::InvalidInput, format!("stripe {} is given twice and differently", stripe.id));
        }
    }
    Ok(given)
}

/// How long the content of a named stripe is.
fn admit_one(tx: &mut Tx<'_>, id: StripeId, given: Option<&Stripe>) -> Outcome<u32> {
    if let Some(known) = find(tx, id)? {
        if known.garbage_since.is_some() {
            return stale(id);
        }
        if given.is_some_and(|given| *given != known.stripe) {
            return fail(Kind::InvalidInput, format!("stripe {id} is known and was committed differently"));
        }
        return Ok(known.stripe.shape.data_bytes);
    }
    let counters = counters(tx)?;
    if id < counters.horizon || tx.get::<()>(&keys::forgotten(id))?.is_some() {
        return stale(id);
    }
    match given {
        Some(_) if id >= counters.next_stripe => fail(Kind::InvalidInput, format!("stripe {id} was never handed out")),
        Some(stripe) => insert(tx, stripe).map(|()| stripe.shape.data_bytes),
        None => fail(Kind::InvalidInput, format!("an extent names stripe {id}, which is not known and not given")),
    }
}

fn stale<T>(id: StripeId) -> Outcome<T> {
    fail(Kind::Stale, format!("stripe {id} was given up or deleted; write its content again"))
}

fn insert(tx: &mut Tx<'_>, stripe: &Stripe) -> Outcome<()> {
    for node in distinct_nodes(stripe) {
        if tx.get::<torchfs_core::meta::NodeRecord>(&keys::node(node))?.is_none() {
            return fail(
                Kind::InvalidInput,
                format!("stripe {} has a shard on node {node}, which is not known", stripe.id),
            );
        }
    }
    let record = StripeRecord { stripe: stripe.clone(), live_bytes: 0, bad: 0, garbage_since: None };
    for node in distinct_nodes(stripe) {
        tx.put(keys::stripe_of_node(node, stripe.id), &())?;
    }
    if record.is_flawed() {
        tx.put(keys::flawed(stripe.id), &())?;
    }
    tx.put(keys::stripe(stripe.id), &record)?;
    edit_counters(tx, |counters| {
        counters.stripes += 1;
        counters.stored_bytes += record.stored_bytes();
    })
}

fn distinct_nodes(stripe: &Stripe) -> Vec<NodeId> {
    let mut nodes: Vec<_> = stripe.nodes.iter().flatten().copied().collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Adds to the live bytes of a stripe that is not garbage; at zero it becomes garbage. `time` is when those who have the bytes
/// open could still open them last: it is garbage since the latest of these times.
pub(super) fn adjust(tx: &mut Tx<'_>, time: Timestamp, id: StripeId, bytes: i64) -> Outcome<()> {
    let mut record = get_named(tx, id)?;
    let Some(live_bytes) = record.live_bytes.checked_add_signed(bytes) else {
        return broken(format!("stripe {id} has {} live bytes, {bytes} are to be added", record.live_bytes));
    };
    record.live_bytes = live_bytes;
    let trimmed = if bytes < 0 { tx.get::<Timestamp>(&keys::trimmed(id))? } else { None };
    let last = trimmed.map_or(time, |trimmed| trimmed.max(time));
    if live_bytes == 0 {
        tx.delete(keys::trimmed(id));
        become_garbage(tx, last, &mut record)?;
    } else if bytes < 0 && trimmed != Some(last) {
        tx.put(keys::trimmed(id), &last)?;
    }
    tx.put(keys::stripe(id), &record)
}

/// Bytes of the shards of garbage that are not deleted yet.
pub(super) fn garbage_bytes(tx: &Tx<'_>) -> Outcome<u64> {
    Ok(tx.get(&keys::garbage_bytes())?.unwrap_or(0))
}

fn edit_garbage_bytes(tx: &mut Tx<'_>, edit: impl FnOnce(u64) -> u64) -> Outcome<()> {
    let bytes = edit(garbage_bytes(tx)?);
    tx.put(keys::garbage_bytes(), &bytes)
}

fn become_garbage(tx: &mut Tx<'_>, time: Timestamp, record: &mut StripeRecord) -> Outcome<()> {
    let stripe = &record.stripe;
    record.garbage_since = Some(time);
    for node in distinct_nodes(stripe) {
        tx.delete(keys::stripe_of_node(node, stripe.id));
    }
    tx.delete(keys::flawed(stripe.id));
    for (index, node) in stripe.nodes.iter().enumerate() {
        if let Some(node) = node {
            tx.put(keys::garbage(*node, time, stripe.shard(index)), &())?;
        }
    }
    let (stored, bad) = (record.stored_bytes(), u64::from(record.bad.count_ones()));
    edit_garbage_bytes(tx, |bytes| bytes + stored)?;
    edit_counters(tx, |counters: &mut Counters| {
        counters.stripes -= 1;
        counters.stored_bytes -= stored;
        counters.bad_shards -= bad;
    })
}

/// Marks shards of known stripes as damaged or gone. What is not known, is garbage or has no place is passed over.
pub(super) fn mark_bad(tx: &mut Tx<'_>, shards: &[ShardId]) -> Outcome<()> {
    for shard in shards {
        let Some(mut record) = find(tx, shard.stripe)?.filter(|record| record.garbage_since.is_none()) else {
            continue;
        };
        let placed = record.stripe.nodes.get(usize::from(shard.index)).is_some_and(Option::is_some);
        if !placed || record.bad & 1 << shard.index != 0 {
            continue;
        }
        record.bad |= 1 << shard.index;
        tx.put(keys::stripe(shard.stripe), &record)?;
        tx.put(keys::flawed(shard.stripe), &())?;
        edit_counters(tx, |counters| counters.bad_shards += 1)?;
    }
    Ok(())
}

/// Notes that nodes have deleted shards of garbage; a stripe without shards is forgotten.
pub(super) fn deleted(tx: &mut Tx<'_>, shards: &[ShardId]) -> Outcome<()> {
    for &shard in shards {
        let Some(mut record) = find(tx, shard.stripe)? else { continue };
        let Some(since) = record.garbage_since else { continue };
        let Some(node) = record.stripe.nodes.get_mut(usize::from(shard.index)).and_then(Option::take) else { continue };
        tx.delete(keys::garbage(node, since, shard));
        let len = record.stripe.shape.shard_len(usize::from(shard.index)) as u64;
        edit_garbage_bytes(tx, |bytes| bytes.saturating_sub(len))?;
        if record.stripe.nodes.iter().any(Option::is_some) {
            tx.put(keys::stripe(shard.stripe), &record)?;
        } else {
            forget(tx, shard.stripe)?;
        }
    }
    Ok(())
}

/// Above the horizon a forgotten stripe must be told from one that is still to be committed.
fn forget(tx: &mut Tx<'_>, id: StripeId) -> Outcome<()> {
    tx.delete(keys::stripe(id));
    if id >= counters(tx)?.horizon {
        tx.put(keys::forgotten(id), &())?;
    }
    Ok(())
}
