//! Exactly-once: the answers to each client's requests, kept until the client has them or falls silent for long.
//!
//! Outcome errors are answers too. A request below its client's floor was answered and forgotten; it cannot be a retry
//! that anyone waits for, and is refused as `Stale`.

use super::keys;
use super::record::ClientRecord;
use super::tx::{Outcome, Tx, broken, fail};
use std::ops::Range;
use std::time::Duration;
use torchfs_core::meta::{Command, MetaReply, Timestamp};
use torchfs_core::{ClientId, Kind, RequestId, Result};

/// How exactly it is known when a client was last heard of: one write a minute instead of one per request.
const SEEN_STEP: Duration = Duration::from_secs(60);

/// Most clients that one collection forgets, and most answers of one client that it deletes.
const FORGET_MAX: usize = 64;
const FORGET_ANSWERS_MAX: usize = 4096;

/// The answer already given to this request, if it was.
pub(super) fn recall(tx: &Tx<'_>, request: RequestId) -> Outcome<Option<Result<MetaReply>>> {
    if let Some(answer) = tx.get(&keys::answer(request.client, request.sequence))? {
        return Ok(Some(answer));
    }
    let client: Option<ClientRecord> = tx.get(&keys::client(request.client))?;
    if client.is_some_and(|client| request.sequence < client.floor) {
        let message = format!("request {} of client {} was answered long ago", request.sequence, request.client);
        return fail(Kind::Stale, message);
    }
    Ok(None)
}

/// Keeps the answer, and lets go of those that the client says it has.
pub(super) fn remember(tx: &mut Tx<'_>, time: Timestamp, command: &Command, answer: &Result<MetaReply>) -> Outcome<()> {
    let RequestId { client, sequence } = command.request;
    let known: Option<ClientRecord> = tx.get(&keys::client(client))?;
    let old_floor = known.map_or(0, |known| known.floor);
    // The answer to this very request is not there yet, whatever the client says.
    let floor = command.answered_below.min(sequence).max(old_floor);
    if floor > old_floor {
        forget_answers(tx, client, old_floor..floor, usize::MAX)?;
    }
    let seen = known.map(|known| known.seen).filter(|&seen| time.since(seen) < SEEN_STEP);
    if seen.is_none() {
        if let Some(known) = known {
            tx.delete(keys::client_seen(known.seen, client));
        }
        tx.put(keys::client_seen(time, client), &())?;
    }
    let record = ClientRecord { floor, seen: seen.unwrap_or(time) };
    if known != Some(record) {
        tx.put(keys::client(client), &record)?;
    }
    tx.put(keys::answer(client, sequence), answer)
}

/// Forgets some of the clients that were last heard of before `before`.
pub(super) fn forget_clients(tx: &mut Tx<'_>, before: Timestamp) -> Outcome<()> {
    let from = [keys::CLIENTS_SEEN];
    for (key, _) in tx.scan(&from, &keys::clients_seen_before(before), FORGET_MAX)? {
        let Some(client) = keys::last_number(&key).map(ClientId) else {
            return broken(format!("client key {key:02x?} is too short"));
        };
        let floor = tx.get::<ClientRecord>(&keys::client(client))?.map_or(0, |known| known.floor);
        if forget_answers(tx, client, floor..u64::MAX, FORGET_ANSWERS_MAX)? {
            tx.delete(keys::client(client));
            tx.delete(key);
        }
    }
    Ok(())
}

/// Deletes answers of a range of sequence numbers; whether all are gone.
///
/// The range begins at the client's floor: below it lie the traces of all that was deleted before, and a scan over them
/// would make each request slower than the one before.
fn forget_answers(tx: &mut Tx<'_>, client: ClientId, range: Range<u64>, limit: usize) -> Outcome<bool> {
    let below = range.end;
    let end = if below == u64::MAX { keys::end_of(&keys::answers(client)) } else { keys::answer(client, below) };
    let found = tx.scan(&keys::answer(client, range.start), &end, limit)?;
    let all = found.len() < limit;
    found.into_iter().for_each(|(key, _)| tx.delete(key));
    Ok(all)
}
