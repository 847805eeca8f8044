//! [`Planner`]: timeline and prefetch policy together, as a cache uses them.

use super::{DataFile, Prefetch, PrefetchEvent, PrefetchPolicy, Prepared, Timeline, Urgency, View, Wanted};
use crate::cache::CacheKey;
use crate::cache::policy::{EvictionPolicy, Plan, enough};
use crate::error::Result;

/// Most candidates that are looked at for one that may leave.
pub const LOOKED_AT_MAX: usize = 4096;

/// Knows the future as far as it is announced or predicted, says what to fetch, and what may leave for it.
#[derive(Debug)]
pub struct Planner {
    timeline: Timeline,
    policy: Box<dyn PrefetchPolicy>,
}

/// The files whose plan is another now: what the eviction policy has to be told by
/// [`CacheEvent::Planned`](crate::cache::policy::CacheEvent::Planned).
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the eviction policy has to be told"]
pub enum Changed {
    /// These.
    Keys(Vec<CacheKey>),
    /// Any in the cache.
    All,
}

impl Changed {
    /// Them, given all that is in the cache. Some may not be in it, which eviction policies pass over.
    #[must_use]
    pub fn keys(self, held: impl IntoIterator<Item = CacheKey>) -> Vec<CacheKey> {
        match self {
            Changed::Keys(keys) => keys,
            Changed::All => held.into_iter().collect(),
        }
    }
}

impl Planner {
    /// Begins with nothing known.
    #[must_use]
    pub fn new(prefetch: Prefetch) -> Planner {
        Planner { timeline: Timeline::default(), policy: prefetch.policy() }
    }

    /// Takes the order of an epoch. Plans of all entries may change by it.
    ///
    /// # Errors
    /// As [`Timeline::announce`].
    pub fn announce(&mut self, schedule: impl Into<Prepared>) -> Result<()> {
        self.timeline.announce(schedule)
    }

    /// Forgets all announced orders. Plans of all entries may change by it.
    pub fn forget(&mut self) {
        self.timeline.forget();
    }

    /// Learns files of a folder, in the order of their names: see [`PrefetchEvent::Listed`].
    pub fn listed(&mut self, first: u64, files: &[DataFile]) {
        self.policy.note(PrefetchEvent::Listed { first, files }, &mut self.timeline);
    }

    /// Learns that a file is opened to be read, and says whose plans are other ones now.
    pub fn opened(&mut self, file: DataFile) -> Changed {
        let revision = self.timeline.revision();
        let passed = self.timeline.opened(file.key);
        self.policy.note(PrefetchEvent::Opened(file), &mut self.timeline);
        if self.timeline.revision() == revision { Changed::Keys(passed) } else { Changed::All }
    }

    /// What to fetch next, if anything. Whoever fetches it makes room by [`Planner::victims`] and says
    /// [`Planner::started`]; if there is no room, it asks again after the next open.
    #[must_use]
    pub fn next(&mut self, view: &View<'_>) -> Option<Wanted> {
        self.policy.next(&self.timeline, view)
    }

    /// Learns that a file that was wanted is being fetched, and held from now on.
    pub fn started(&mut self, wanted: &Wanted) {
        self.policy.note(PrefetchEvent::Started(wanted), &mut self.timeline);
    }

    /// Learns that a fetch failed. It is not wanted again: whoever opens the file tries again.
    pub fn failed(&mut self, key: CacheKey) {
        self.policy.note(PrefetchEvent::Failed(key), &mut self.timeline);
    }

    /// Learns that an entry left the cache.
    pub fn removed(&mut self, key: CacheKey) {
        self.policy.note(PrefetchEvent::Removed(key), &mut self.timeline);
    }

    /// When a file is read next.
    #[must_use]
    pub fn plan(&self, key: CacheKey) -> Plan {
        self.timeline.plan(key)
    }

    /// The announced orders and how far they are read.
    #[must_use]
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// Whether an entry may leave the cache for one that is fetched ahead. The same rule for all policies, and what makes
    /// prefetching exact:
    ///
    /// 1. Nothing leaves that is needed sooner than what comes for it.
    /// 2. What is needed in the same epoch leaves only for what is urgent. That is so little per epoch, see [`Scheduled`], that
    ///    an epoch fetches hardly more than the part of it that the cache did not hold.
    /// 3. What is needed in a later epoch, or nobody knows when, leaves freely: one of the two must be fetched for that
    ///    epoch anyway.
    ///
    /// [`Scheduled`]: super::Scheduled
    #[must_use]
    pub fn may_evict(&self, wanted: &Wanted, key: CacheKey) -> bool {
        !self.policy.expects(key) && self.is_needed_later(wanted, self.timeline.plan(key))
    }

    #[cfg(test)]
    pub(super) fn policy_expects(&self, key: CacheKey) -> bool {
        self.policy.expects(key)
    }

    fn is_needed_later(&self, wanted: &Wanted, plan: Plan) -> bool {
        match (plan, wanted.place) {
            (Plan::At(needed), Some(place)) if needed > place => {
                let in_epoch = self.timeline.epoch_places(place).is_some_and(|places| places.contains(&needed));
                wanted.urgency == Urgency::Urgent || !in_epoch
            }
            (Plan::At(_), _) => false,
            (Plan::Read | Plan::Unknown, _) => true,
        }
    }

    /// What leaves the cache so that `bytes` more fit for a file that is fetched ahead: the first of the eviction policy's
    /// candidates that may. `None` if that is not enough. Nothing is removed by asking.
    ///
    /// Where candidates do not leave in the order of their plans, only the first [`LOOKED_AT_MAX`] are looked at: in large
    /// caches orders are best followed with [`Eviction::Schedule`](crate::cache::policy::Eviction::Schedule).
    #[must_use]
    pub fn victims(
        &self,
        eviction: &dyn EvictionPolicy,
        wanted: &Wanted,
        bytes: u64,
        bytes_of: &dyn Fn(CacheKey) -> u64,
        is_pinned: &dyn Fn(CacheKey) -> bool,
    ) -> Option<Vec<CacheKey>> {
        let plans = eviction.candidates().take(LOOKED_AT_MAX).map(|key| (key, self.timeline.plan(key)));
        // All that follow are needed sooner.
        let is_last = |plan| eviction.follows_plans() && !self.is_needed_later(wanted, plan);
        let plans = plans.take_while(|&(_, plan)| !is_last(plan));
        let allowed = plans.filter(|&(key, plan)| !self.policy.expects(key) && self.is_needed_later(wanted, plan));
        enough(allowed.map(|(key, _)| key).filter(|&key| !is_pinned(key)), bytes, bytes_of)
    }
}
