//! What is needed last leaves first: Belady's rule (MIN), as far as the future is announced.

use super::{CacheEvent, EvictionPolicy, Line, Plan};
use crate::cache::CacheKey;

/// Ranks of the line, in the order in which they leave.
const UNKNOWN: u64 = 0;
const READ: u64 = 1;
const AT: u64 = 2;

/// What is needed last leaves first.
///
/// That is, in this order: what no announced order names, unused for longest first (so with nothing announced this is
/// [`Lru`](super::Lru)); what was read as announced and will most likely be read again in an epoch whose order is not known
/// yet, the latest read first, which keeps the beginning of an order that repeats; what will be read, furthest first.
#[derive(Debug, Default)]
pub struct Schedule(Line);

impl EvictionPolicy for Schedule {
    fn note(&mut self, event: CacheEvent) {
        match event {
            CacheEvent::Added(key) => self.0.move_to_end_of(UNKNOWN, key),
            CacheEvent::Used(key) if self.0.rank(key) == Some(UNKNOWN) => self.0.move_to_end_of(UNKNOWN, key),
            CacheEvent::Used(_) => {}
            CacheEvent::Planned(key, plan) => self.plan(key, plan),
            CacheEvent::Removed(key) => self.0.remove(key),
        }
    }

    fn candidates(&self) -> Box<dyn Iterator<Item = CacheKey> + '_> {
        self.0.keys()
    }

    fn follows_plans(&self) -> bool {
        true
    }
}

impl Schedule {
    fn plan(&mut self, key: CacheKey, plan: Plan) {
        match (self.0.rank(key), plan) {
            (None, _) | (Some(UNKNOWN), Plan::Unknown) | (Some(READ), Plan::Read) => {}
            (_, Plan::Unknown) => self.0.move_to_end_of(UNKNOWN, key),
            (_, Plan::Read) => self.0.move_to_front_of(READ, key),
            (_, Plan::At(place)) => self.0.place(AT, u64::MAX - place, key),
        }
    }
}
