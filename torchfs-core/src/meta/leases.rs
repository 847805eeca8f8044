//! [`Leases`]: who may answer from memory, and until when; kept by whoever applies changes.
//!
//! The rule: nobody is told that a change is done while another client holds a lease and has not seen the change. So what
//! a holder remembers, less what it was told of, is never older than what was acknowledged to anyone.

use super::{Changes, Feed, Watch, Wish};
use crate::ids::ClientId;
use crate::settings::WATCH_GATHER;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

/// Clients that hold a lease at the same time: each of them hears of each change at once, and each change waits for all.
const HOLDERS_MAX: usize = 256;

/// The leases that one metadata node has given.
#[derive(Debug)]
pub struct Leases {
    length: Duration,
    state: Mutex<State>,
    moved: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    term: u64,
    /// Until then there may be leases of earlier leaders.
    others_until: Option<Instant>,
    holders: BTreeMap<ClientId, Holder>,
}

#[derive(Debug)]
struct Holder {
    seen: u64,
    until: Instant,
    /// What there was to see when the lease was given.
    due: u64,
}

impl Leases {
    /// Leases of this length; nobody has one.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Leases { length, state: Mutex::default(), moved: watch::channel(()).0 }
    }

    /// This node leads in `term`, and may have begun to just now.
    pub fn leads(&self, term: u64) {
        let mut state = self.state();
        if term > state.term {
            (state.term, state.others_until) = (term, Some(Instant::now() + self.length));
        }
    }

    /// This node leads in `term`, and no client can have had a lease before.
    pub fn leads_first(&self, term: u64) {
        let mut state = self.state();
        (state.term, state.others_until) = (term, None);
        drop(state);
        self.moved.send_replace(());
    }

    /// Answers [`MetaStore::watch`](super::MetaStore::watch) from `feed`, and gives or renews a lease. `confirmed` long ago
    /// it was sure that no other node led; `None` if that is not known.
    pub async fn watch(&self, feed: &Feed, watch: Watch, confirmed: Option<Duration>) -> Changes {
        if watch.wish == Wish::Leave {
            self.end(watch.client);
            return feed.since(watch.seen);
        }
        // First the lease, then what is due: a change that comes after waits for this client, one from before is due.
        let left = confirmed.map_or(Duration::ZERO, |ago| self.length.saturating_sub(ago));
        let due = (!left.is_zero()).then(|| self.renew(watch, feed)).flatten();
        let gather = if due.is_some() { Duration::ZERO } else { WATCH_GATHER };
        let changes = feed.changes(watch, gather).await;
        let lease = if due.is_some_and(|due| changes.upto >= due) { left } else { Duration::ZERO };
        Changes { lease, ..changes }
    }

    /// The client trusts nothing any more.
    fn end(&self, client: ClientId) {
        self.state().holders.remove(&client);
        self.moved.send_replace(());
    }

    /// Notes what the client has seen. Gives it a lease, if it wants one, unless it did not take in what there was to see
    /// when it got the last one, or too many have one. Says what there is to see now.
    fn renew(&self, watch: Watch, feed: &Feed) -> Option<u64> {
        let mut state = self.state();
        let now = Instant::now();
        state.holders.retain(|_, holder| holder.until > now);
        let count = state.holders.len();
        let seen = watch.seen.unwrap_or(0);
        let fresh = Holder { seen, until: now + self.length, due: feed.last_change() };
        let due = fresh.due;
        let renewed = match state.holders.get_mut(&watch.client) {
            Some(holder) => {
                holder.seen = holder.seen.max(seen);
                let is_renewed = watch.wish == Wish::Lease && holder.seen >= holder.due;
                if is_renewed {
                    *holder = Holder { seen: holder.seen, ..fresh };
                }
                is_renewed
            }
            None if watch.wish == Wish::Lease && count < HOLDERS_MAX => {
                state.holders.insert(watch.client, fresh);
                true
            }
            None => false,
        };
        drop(state);
        self.moved.send_replace(());
        renewed.then_some(due)
    }

    /// Waits until every client but `client` that holds a lease has seen the change `number` by `client`, or its lease has ended.
    /// Takes no longer than a lease if clients go by the rules, and no longer than two whatever they do.
    pub async fn seen_by_others(&self, client: ClientId, number: u64) {
        let mut moved = self.moved.subscribe();
        while let Some(end) = self.waits_for(client, number) {
            // Whichever comes first, it looks again.
            let _ = timeout_at(end, moved.changed()).await;
        }
    }

    /// When the last of those ends that `number` has to wait for.
    fn waits_for(&self, client: ClientId, number: u64) -> Option<Instant> {
        let now = Instant::now();
        let state = self.state();
        let behind = state.holders.iter().filter(|(other, holder)| **other != client && holder.seen < number);
        behind.map(|(_, holder)| holder.until).chain(state.others_until).filter(|until| *until > now).max()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "leases_test.rs"]
mod leases_test;
