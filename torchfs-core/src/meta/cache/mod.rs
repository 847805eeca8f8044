//! [`MetaCache`]: a metadata store whose answers are remembered as long as a lease is held.
//!
//! The rule: an answer from memory is what the store would have said at this moment, or an answer that was right when the
//! last acknowledged change was. How that can be: `docs/decisions/0011-leases.md`.

mod ahead;
mod answers;
mod names;
mod told;

use super::unnamed::is_decided;
use super::{
    Attr, Change, Changed, Changes, Command, MetaAnswer, MetaOp, MetaQuery, MetaReply, MetaStore, Name, Watch, Wish,
};
use crate::error::{Kind, Result};
use crate::ids::{ClientId, InodeId};
use crate::settings::{LEASE, LEASE_IDLE, LEASE_MARGIN};
use ahead::Ahead;
use answers::{Answers, Moment};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// A store and what one client remembers of its answers.
#[derive(Debug)]
pub(super) struct MetaCache {
    store: Arc<dyn MetaStore>,
    state: Mutex<State>,
    hits: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    answers: Answers,
    ahead: Ahead,
    /// Who lists ahead; at most once for each folder that is followed.
    listing: JoinSet<()>,
    /// The changes up to here are taken in. `None`: nobody watches, so nothing is remembered.
    seen: Option<u64>,
    lease: Option<Lease>,
    /// When something was asked last; a lease that nobody uses would only hold others up.
    asked: Option<Instant>,
    /// There are no more leases.
    has_left: bool,
    /// The last request of this client of which nobody knows what became.
    lost: Option<u64>,
}

impl State {
    /// What memory says, if it may be trusted.
    fn recall(&mut self, query: &MetaQuery) -> Option<Result<MetaAnswer>> {
        let answer = self.lease.filter(Lease::holds).and_then(|_| self.answers.answer(query))?;
        if let (MetaQuery::Lookup { parent, .. }, Ok(_)) = (query, &answer) {
            self.ahead.used(*parent);
        }
        Some(answer)
    }

    /// Which page of a folder to ask for after this answer to a lookup in it, if any.
    fn page_ahead(&mut self, folder: InodeId, name: &Name, answer: &Result<MetaAnswer>) -> Option<MetaQuery> {
        match answer {
            Ok(_) => self.ahead.missed(folder, name),
            Err(error) if error.kind() == Kind::NotFound => {
                let upto = self.answers.names_upto(folder).map(Option::<&Name>::cloned);
                self.ahead.absent(folder, upto)
            }
            Err(_) => None,
        }
    }

    fn wish(&self) -> Wish {
        let is_used = self.asked.is_none_or(|asked| asked.elapsed() < LEASE_IDLE);
        if is_used && !self.has_left { Wish::Lease } else { Wish::Nothing }
    }
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    until: Instant,
    /// How long the machine had slept when it was asked for: [`Instant`] does not count that.
    slept: Duration,
}

impl Lease {
    fn holds(&self) -> bool {
        Instant::now() < self.until && slept().saturating_sub(self.slept) < LEASE_MARGIN / 2
    }
}

/// How long the machine has slept since it started.
fn slept() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let read = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order what passes between the two does not look like sleep.
    let boot = read(ClockId::Boottime);
    boot.saturating_sub(read(ClockId::Monotonic))
}

/// An operation that was sent. If it has no answer, as when the future is dropped, the cache forgets what it touches; and once
/// more when it is told that it was done all the same.
struct Sent<'a> {
    cache: &'a MetaCache,
    op: MetaOp,
    request: u64,
    at: Moment,
    is_answered: bool,
}

impl Sent<'_> {
    fn answered(mut self, answer: &Result<MetaReply>) {
        self.is_answered = answer.as_ref().map_or_else(|error| is_decided(error.kind()), |_| true);
        if let Ok(reply) = answer {
            self.cache.state().answers.done(self.at, &self.op, reply);
        }
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.is_answered {
            let mut state = self.cache.state();
            state.lost = state.lost.max(Some(self.request));
            state.answers.forget(&self.op.touches());
        }
    }
}

impl MetaCache {
    pub fn new(store: Arc<dyn MetaStore>) -> Self {
        MetaCache { store, state: Mutex::default(), hits: AtomicU64::new(0) }
    }

    /// The store underneath.
    pub fn store(&self) -> &Arc<dyn MetaStore> {
        &self.store
    }

    /// How many questions were answered from memory.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }

    /// What is remembered of these is asked for anew.
    pub fn forget(&self, changes: &[Change]) {
        self.state().answers.forget(changes);
    }

    /// [`MetaStore::apply`].
    pub async fn apply(&self, command: Command) -> Result<MetaReply> {
        let (op, request, at) = (command.op.clone(), command.request.sequence, self.state().answers.now());
        let sent = Sent { cache: self, op, request, at, is_answered: false };
        let answer = self.store.apply(command).await;
        sent.answered(&answer);
        answer
    }

    /// [`MetaStore::query`].
    pub async fn query(self: &Arc<Self>, query: MetaQuery) -> Result<MetaAnswer> {
        let asked = {
            let mut state = self.state();
            state.asked = Some(Instant::now());
            if let Some(answer) = state.recall(&query) {
                self.hits.fetch_add(1, Ordering::Relaxed);
                return answer;
            }
            state.seen.map(|_| state.answers.now())
        };
        let Some(asked) = asked else { return self.store.query(query).await };
        let answer = self.store.query(query.clone()).await;
        let mut state = self.state();
        if let MetaQuery::Lookup { parent, name } = &query
            && let Some(page) = state.page_ahead(*parent, name, &answer)
        {
            self.list_ahead(&mut state, *parent, page);
        }
        state.answers.learn(asked, query, &answer);
        answer
    }

    /// What a name leads to, if that need not be asked.
    pub fn remembered(&self, parent: InodeId, name: &Name) -> Option<Attr> {
        let mut state = self.state();
        state.lease.filter(Lease::holds)?;
        match state.answers.answer(&MetaQuery::Lookup { parent, name: name.clone() })? {
            Ok(MetaAnswer::Attr(attr)) => Some(attr),
            _ => None,
        }
    }

    /// Has a part of a folder remembered that is likely looked up next.
    fn list_ahead(self: &Arc<Self>, state: &mut State, folder: InodeId, page: MetaQuery) {
        let (asked, store, cache) = (state.answers.now(), self.store.clone(), Arc::downgrade(self));
        while state.listing.try_join_next().is_some() {}
        state.listing.spawn(async move {
            let answer = store.query(page.clone()).await;
            let Some(cache) = cache.upgrade() else { return };
            let entries = match (&page, &answer) {
                (MetaQuery::List { extents: true, .. }, Ok(MetaAnswer::Listing(listing))) => listing.entries.len(),
                _ => 0,
            };
            let mut state = cache.state();
            state.ahead.listed(folder, entries);
            state.answers.learn(asked, page, &answer);
        });
    }

    /// [`MetaStore::watch`]: its answers are what keeps the memory true.
    pub async fn watch(&self, client: ClientId, from: Option<u64>) -> Result<Changes> {
        let (sent, slept) = (Instant::now(), slept());
        let wish = self.state().wish();
        let changes = self.store.watch(Watch { client, seen: from, wish }).await?;
        let mut state = self.state();
        let continues = state.seen.is_some_and(|seen| from.is_some_and(|from| from <= seen));
        match &changes.changed {
            Some(changed) if continues => {
                let lost = state.lost;
                // What it did itself it has been answered.
                let is_news = |changed: &&Changed| changed.by.client != client || Some(changed.by.sequence) <= lost;
                state.answers.forget(changed.iter().filter(is_news).flat_map(|changed| &changed.what));
            }
            _ => state.answers.forget_all(),
        }
        state.seen = state.seen.max(Some(changes.upto));
        let until = sent + changes.lease.saturating_sub(LEASE_MARGIN);
        if !state.has_left && state.lease.is_none_or(|lease| lease.until < until) {
            state.lease = Some(Lease { until, slept });
        }
        Ok(changes)
    }

    /// Gives the lease up, for good. After a [`LEASE`] it has ended in any case.
    pub async fn leave(&self, client: ClientId) {
        let had_lease = {
            let mut state = self.state();
            state.has_left = true;
            state.lease.take().is_some()
        };
        if had_lease {
            let leaving = self.store.watch(Watch { client, seen: None, wish: Wish::Leave });
            // Whatever came of it.
            let _ = timeout(LEASE, leaving).await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "cache_test.rs"]
mod cache_test;
