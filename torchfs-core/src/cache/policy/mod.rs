//! What leaves the cache when it is full: [`EvictionPolicy`], a pure decision over ids and events.

mod fifo;
mod lfu;
mod lru;

pub use fifo::Fifo;
pub use lfu::Lfu;
pub use lru::Lru;

use super::CacheKey;
use crate::error::{Error, Kind};
use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug};
use std::str::FromStr;

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

/// The policies by name, for those who choose one by a setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// [`Fifo`].
    Fifo,
    /// [`Lru`].
    #[default]
    Lru,
    /// [`Lfu`].
    Lfu,
}

impl Eviction {
    /// All of them.
    pub const ALL: [Eviction; 3] = [Eviction::Fifo, Eviction::Lru, Eviction::Lfu];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Eviction::Fifo => "fifo",
            Eviction::Lru => "lru",
            Eviction::Lfu => "lfu",
        }
    }

    /// A policy of this name, for an empty cache.
    #[must_use]
    pub fn policy(self) -> Box<dyn EvictionPolicy> {
        match self {
            Eviction::Fifo => Box::new(Fifo::default()),
            Eviction::Lru => Box::new(Lru::default()),
            Eviction::Lfu => Box::new(Lfu::default()),
        }
    }
}

impl fmt::Display for Eviction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Eviction {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = || Error::new(Kind::InvalidInput, format!("'{name}' is no eviction policy: fifo, lru or lfu"));
        Eviction::ALL.into_iter().find(|eviction| eviction.name() == name).ok_or_else(unknown)
    }
}

/// Entries in a line: the first leaves first. Lower ranks stand before higher ones, and those of one rank in the order in
/// which they came to it.
#[derive(Debug, Default)]
struct Line {
    places: HashMap<CacheKey, Place>,
    keys: BTreeMap<Place, CacheKey>,
    last: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: u64,
    number: u64,
}

impl Line {
    fn move_to_end_of(&mut self, rank: u64, key: CacheKey) {
        self.remove(key);
        self.last += 1;
        let place = Place { rank, number: self.last };
        self.places.insert(key, place);
        self.keys.insert(place, key);
    }

    fn rank(&self, key: CacheKey) -> Option<u64> {
        self.places.get(&key).map(|place| place.rank)
    }

    fn remove(&mut self, key: CacheKey) {
        if let Some(place) = self.places.remove(&key) {
            self.keys.remove(&place);
        }
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

    fn leaving_order(eviction: Eviction, used: &[u64]) -> Vec<u64> {
        let mut policy = eviction.policy();
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
    fn each_has_its_order_and_none_takes_what_is_open() {
        let used = [1, 3, 1, 4];
        assert_eq!(leaving_order(Eviction::Fifo, &used), [1, 2, 4]);
        assert_eq!(leaving_order(Eviction::Lru, &used), [2, 1, 4]);
        assert_eq!(leaving_order(Eviction::Lfu, &used), [2, 4, 1]);
        assert_eq!(leaving_order(Eviction::Lfu, &[4, 2, 1]), [4, 2, 1], "as often: what was used longer ago");
    }

    #[test]
    fn using_what_is_not_there_adds_nothing() {
        for eviction in Eviction::ALL {
            let mut policy = eviction.policy();
            policy.note(CacheEvent::Used(key(9)));
            assert_eq!(policy.victim(&|_| false), None, "{eviction}");
        }
    }

    #[test]
    fn a_policy_is_found_by_its_name() {
        for eviction in Eviction::ALL {
            assert_eq!(eviction.name().parse::<Eviction>().expect("its name"), eviction);
        }
        assert_eq!("mru".parse::<Eviction>().expect_err("unknown").kind(), Kind::InvalidInput);
    }
}
