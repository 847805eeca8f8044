//! The pure state machine: the namespace, the stripes and the cluster as records in an ordered key-value store.
//!
//! [`apply`] is a function of what it reads and of its arguments alone: no clock, no randomness, no map with an order of
//! its own. Replicas that apply the same commands with the same times hold the same bytes.
//!
//! - An operation that fails leaves no trace but its answer; each operation of a batch stands for itself.
//! - Whatever comes in a [`Command`] is checked before it is used; no input makes it panic.
//! - Permissions are not checked here: the caller is not known. So chown does not clear the suid and sgid bits either;
//!   who enforces permissions sends the mode along.

mod cluster;
mod content;
mod dedup;
mod dir;
mod extent;
mod fsck;
mod inode;
pub mod keys;
mod list;
#[cfg(test)]
mod model_test;
mod query;
mod record;
mod rename;
mod resolve;
mod standalone;
#[cfg(test)]
mod state_test;
mod stripe;
mod totals;
mod tx;
mod xattr;

pub use fsck::fsck;
pub use query::query;
pub use standalone::Standalone;
pub use totals::{Totals, abandoned, fs_stat, garbage_shards, has_orphans, horizon, map, next_stripe, nodes, totals};

use crate::kv::{KvRead, WriteBatch};
use torchfs_core::meta::{Attr, Change, Command, InternalOp, MetaOp, MetaReply, Timestamp};
use torchfs_core::settings::BATCH_OPS_MAX;
use torchfs_core::{InodeId, Kind, Result};
use tx::{Abort, Outcome, Tx, fail};

/// Applies a command at a time that its proposer chose: the writes that do it, and its answer.
///
/// The writes are to be done in any case, for a failure is an answer that is remembered too. Whether a client may propose
/// the operation at all is decided before ([`MetaOp::is_public`]).
///
/// # Errors
/// If the store fails or holds a record that cannot be: nothing may be applied any more.
pub fn apply(view: &dyn KvRead, time: Timestamp, command: &Command) -> Result<(WriteBatch, Result<MetaReply>)> {
    let mut tx = Tx::new(view);
    match apply_once(&mut tx, time, command) {
        Ok(reply) => Ok((tx.into_batch(), reply)),
        // Raised before anything was written: there is nothing to remember it in or it must not be remembered.
        Err(Abort::Outcome(error)) => Ok((WriteBatch::default(), Err(error))),
        Err(Abort::Broken(error)) => Err(error),
    }
}

/// The inodes and names that a batch of [`apply`] changes.
#[must_use]
pub fn changes(batch: &WriteBatch) -> Vec<Change> {
    let mut changes: Vec<Change> = batch.changes.iter().filter_map(|(key, _)| keys::subject(key)).collect();
    changes.sort_unstable();
    changes.dedup();
    changes
}

fn apply_once(tx: &mut Tx<'_>, time: Timestamp, command: &Command) -> Outcome<Result<MetaReply>> {
    let founding = matches!(command.op, MetaOp::Internal(InternalOp::Found { .. }));
    if !founding {
        cluster::require_founded(tx)?;
    }
    if let Some(answer) = dedup::recall(tx, command.request)? {
        return Ok(answer);
    }
    let answer = match &command.op {
        MetaOp::Batch(ops) => batch(tx, time, ops)?,
        op => attempt(tx, time, op)?,
    };
    dedup::remember(tx, time, command, &answer)?;
    Ok(answer)
}

fn batch(tx: &mut Tx<'_>, time: Timestamp, ops: &[MetaOp]) -> Outcome<Result<MetaReply>> {
    if ops.len() > BATCH_OPS_MAX {
        let message = format!("batch of {} operations; at most {BATCH_OPS_MAX} are possible", ops.len());
        return Ok(Err(torchfs_core::Error::new(Kind::InvalidInput, message)));
    }
    let answers = ops.iter().map(|op| attempt(tx, time, op)).collect::<Outcome<Vec<_>>>()?;
    Ok(Ok(MetaReply::Batch(answers)))
}

/// Runs one operation; if it fails, its writes are taken back.
fn attempt(tx: &mut Tx<'_>, time: Timestamp, op: &MetaOp) -> Outcome<Result<MetaReply>> {
    let savepoint = tx.savepoint();
    match run(tx, time, op) {
        Ok(reply) => Ok(Ok(reply)),
        Err(Abort::Outcome(error)) => {
            tx.rollback(savepoint);
            Ok(Err(error))
        }
        Err(broken) => Err(broken),
    }
}

fn run(tx: &mut Tx<'_>, time: Timestamp, op: &MetaOp) -> Outcome<MetaReply> {
    match op {
        MetaOp::Create { parent, name, inode, if_exists, content } => {
            let attr = dir::create(tx, time, (*parent, name), inode, *if_exists, content.as_ref())?;
            named(tx, *parent, attr)
        }
        MetaOp::Link { ino, parent, name } => {
            let attr = dir::link(tx, time, *ino, (*parent, name))?;
            named(tx, *parent, attr)
        }
        MetaOp::Unlink { parent, name } => {
            let attr = dir::unlink(tx, time, (*parent, name))?;
            named(tx, *parent, attr)
        }
        MetaOp::Rmdir { parent, name } => {
            let attr = dir::rmdir(tx, time, (*parent, name))?;
            named(tx, *parent, attr)
        }
        MetaOp::Rename { parent, name, new_parent, new_name, mode } => {
            rename::rename(tx, time, (*parent, name), (*new_parent, new_name), *mode)
        }
        MetaOp::SetAttr { ino, change } => inode::set_attr(tx, time, *ino, change).map(MetaReply::Attr),
        MetaOp::Commit { ino, change } => content::commit(tx, time, *ino, change).map(MetaReply::Attr),
        MetaOp::SetXattr { ino, name, value, mode } => xattr::set(tx, time, *ino, name, value, *mode).map(done),
        MetaOp::RemoveXattr { ino, name } => xattr::remove(tx, time, *ino, name).map(done),
        MetaOp::SetProfile { ino, profile } => inode::set_profile(tx, time, *ino, *profile).map(done),
        MetaOp::Batch(_) => fail(Kind::InvalidInput, "a batch inside a batch; send its operations by themselves"),
        MetaOp::ReportShards(shards) => stripe::mark_bad(tx, shards).map(done),
        MetaOp::Register { uuid, addr, domain, capacity_bytes } => {
            cluster::register(tx, *uuid, addr, domain, *capacity_bytes)
        }
        MetaOp::Internal(op) => run_internal(tx, time, op),
    }
}

fn run_internal(tx: &mut Tx<'_>, time: Timestamp, op: &InternalOp) -> Outcome<MetaReply> {
    match op {
        InternalOp::Found { cluster, profile } => cluster::found(tx, time, *cluster, *profile).map(done),
        InternalOp::SetNodeState { node, state } => cluster::set_node_state(tx, *node, *state).map(done),
        InternalOp::ReserveStripes { count } => cluster::reserve_stripes(tx, *count).map(MetaReply::Stripes),
        InternalOp::AdvanceHorizon { stripe } => cluster::advance_horizon(tx, *stripe).map(done),
        InternalOp::Deleted(shards) => stripe::deleted(tx, shards).map(done),
        InternalOp::Collect { before, clients_before } => {
            content::collect_orphans(tx, *before)?;
            dedup::forget_clients(tx, *clients_before).map(done)
        }
        InternalOp::Damaged(shards) => stripe::mark_bad(tx, shards).map(done),
    }
}

fn named(tx: &Tx<'_>, folder: InodeId, attr: Attr) -> Outcome<MetaReply> {
    Ok(MetaReply::Named { attr, folder: inode::get(tx, folder)?.attr(folder) })
}

fn done((): ()) -> MetaReply {
    MetaReply::Done
}
