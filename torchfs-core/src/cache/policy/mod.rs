//! What leaves the cache when it is full: [`EvictionPolicy`], a pure decision over ids and events.

mod fifo;
mod lru;

pub use fifo::Fifo;
pub use lru::Lru;

use super::CacheKey;
use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;

/// What happened to an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheEvent {
    /// It is new in the cache.
    Added(CacheKey),
    /// It was opened to be read.
    Used(CacheKey),
    /// It left the cache.
    Removed(CacheKey),
}

/// Decides what leaves a full cache.
///
/// # Contract for implementors
/// Pure: decisions follow from the events alone. A victim was added, was not removed since, and is not pinned; there is
/// one whenever such an entry exists. Naming it does not remove it: [`CacheEvent::Removed`] follows.
pub trait EvictionPolicy: Debug + Send {
    /// Learns what happened.
    fn note(&mut self, event: CacheEvent);

    /// What should leave next. Entries that are open are pinned and cannot.
    fn victim(&self, is_pinned: &dyn Fn(CacheKey) -> bool) -> Option<CacheKey>;
}

/// Entries in a line: the first leaves first.
#[derive(Debug, Default)]
struct Line {
    places: HashMap<CacheKey, u64>,
    keys: BTreeMap<u64, CacheKey>,
    last: u64,
}

impl Line {
    fn move_to_end(&mut self, key: CacheKey) {
        self.remove(key);
        self.last += 1;
        self.places.insert(key, self.last);
        self.keys.insert(self.last, key);
    }

    fn remove(&mut self, key: CacheKey) {
        if let Some(place) = self.places.remove(&key) {
            self.keys.remove(&place);
        }
    }

    fn contains(&self, key: CacheKey) -> bool {
        self.places.contains_key(&key)
    }

    fn first(&self, is_pinned: &dyn Fn(CacheKey) -> bool) -> Option<CacheKey> {
        self.keys.values().copied().find(|&key| !is_pinned(key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{InodeId, Version};

    fn key(number: u64) -> CacheKey {
        CacheKey { ino: InodeId(number), version: Version(1) }
    }

    fn leaving_order(mut policy: impl EvictionPolicy, used: &[u64]) -> Vec<u64> {
        (1..=4).for_each(|number| policy.note(CacheEvent::Added(key(number))));
        used.iter().for_each(|&number| policy.note(CacheEvent::Used(key(number))));
        let mut order = Vec::new();
        while let Some(victim) = policy.victim(&|key| key.ino.0 == 3) {
            order.push(victim.ino.0);
            policy.note(CacheEvent::Removed(victim));
        }
        order
    }

    #[test]
    fn fifo_goes_by_arrival_and_lru_by_use_and_neither_takes_what_is_open() {
        assert_eq!(leaving_order(Fifo::default(), &[1, 3]), [1, 2, 4]);
        assert_eq!(leaving_order(Lru::default(), &[1, 3]), [2, 4, 1]);
    }

    #[test]
    fn using_what_is_not_there_adds_nothing() {
        let mut lru = Lru::default();
        lru.note(CacheEvent::Used(key(9)));
        assert_eq!(lru.victim(&|_| false), None);
    }
}
