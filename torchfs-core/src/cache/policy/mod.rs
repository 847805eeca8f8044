//! What leaves the cache when it is full: [`EvictionPolicy`], a pure decision over ids and events.

pub mod conformance;
mod fifo;
mod filo;
mod lfu;
mod lru;
mod schedule;

pub use fifo::Fifo;
pub use filo::Filo;
pub use lfu::Lfu;
pub use lru::Lru;
pub use schedule::Schedule;

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
    /// It is known anew when it will be read next. Follows [`CacheEvent::Added`] where something is known.
    Planned(CacheKey, Plan),
    /// It left the cache.
    Removed(CacheKey),
}

/// What announced orders say of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: no announced order names it.
    #[default]
    Unknown,
    /// It was read as announced, and no order beyond is known.
    Read,
    /// It is read next at this place, counted through all announced orders.
    At(u64),
}

/// Decides what leaves a full cache.
///
/// # Contract for implementors
/// Pure: decisions follow from the events alone. The candidates are what was added and not removed since, each once.
/// Naming one does not remove it: [`CacheEvent::Removed`] follows.
pub trait EvictionPolicy: Debug + Send {
    /// Learns what happened.
    fn note(&mut self, event: CacheEvent);

    /// All entries in the order in which they should leave.
    fn candidates(&self) -> Box<dyn Iterator<Item = CacheKey> + '_>;

    /// Whether that is the order of their plans: those of which nothing is known, those that were read, and those that
    /// are needed, furthest first. Then whoever looks for one that is needed late can stop early.
    fn follows_plans(&self) -> bool {
        false
    }

    /// What should leave next. Entries that are open are pinned and cannot.
    fn victim(&self, is_pinned: &dyn Fn(CacheKey) -> bool) -> Option<CacheKey> {
        self.candidates().find(|&key| !is_pinned(key))
    }
}

/// The first of the candidates that free `bytes` together, or `None` if all of them are not enough. Removes nothing, so
/// nothing leaves in vain.
#[must_use]
pub fn enough(
    candidates: impl Iterator<Item = CacheKey>,
    bytes: u64,
    bytes_of: impl Fn(CacheKey) -> u64,
) -> Option<Vec<CacheKey>> {
    let (mut candidates, mut chosen, mut freed) = (candidates, Vec::new(), 0);
    while freed < bytes {
        let victim = candidates.next()?;
        freed += bytes_of(victim);
        chosen.push(victim);
    }
    // A large one may have made others needless.
    chosen.retain(|&victim| {
        let spare = freed - bytes >= bytes_of(victim);
        freed -= if spare { bytes_of(victim) } else { 0 };
        !spare
    });
    Some(chosen)
}

/// The policies by name, for those who choose one by a setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Eviction {
    /// [`Fifo`].
    Fifo,
    /// [`Lru`].
    Lru,
    /// [`Lfu`].
    Lfu,
    /// [`Filo`].
    Filo,
    /// [`Schedule`].
    #[default]
    Schedule,
}

impl Eviction {
    /// All of them.
    pub const ALL: [Eviction; 5] = [Eviction::Fifo, Eviction::Filo, Eviction::Lru, Eviction::Lfu, Eviction::Schedule];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Eviction::Fifo => "fifo",
            Eviction::Lru => "lru",
            Eviction::Lfu => "lfu",
            Eviction::Filo => "filo",
            Eviction::Schedule => "schedule",
        }
    }

    /// A policy of this name, for an empty cache.
    #[must_use]
    pub fn policy(self) -> Box<dyn EvictionPolicy> {
        match self {
            Eviction::Fifo => Box::new(Fifo::default()),
            Eviction::Lru => Box::new(Lru::default()),
            Eviction::Lfu => Box::new(Lfu::default()),
            Eviction::Filo => Box::new(Filo::default()),
            Eviction::Schedule => Box::new(Schedule::default()),
        }
    }
}

impl fmt::Display for Eviction {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// The names, for messages.
const EVICTIONS: &str = "fifo, filo, lru, lfu or schedule";

impl FromStr for Eviction {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let unknown = || Error::new(Kind::InvalidInput, format!("'{name}' is no eviction policy: {EVICTIONS}"));
        Eviction::ALL.into_iter().find(|eviction| eviction.name() == name).ok_or_else(unknown)
    }
}

/// Entries in a line: the first leaves first. Lower ranks stand before higher ones, and those of one rank in the order in
/// which they came to it.
#[derive(Debug, Default)]
struct Line {
    places: HashMap<CacheKey, Place>,
    keys: BTreeMap<Place, CacheKey>,
    moves: u64,
}

/// Numbers up to here stand before, and from here on behind what came to a rank by a move.
const MIDDLE: u64 = u64::MAX / 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    rank: u64,
    number: u64,
}

impl Line {
    fn move_to_end_of(&mut self, rank: u64, key: CacheKey) {
        self.moves += 1;
        self.place(rank, MIDDLE + self.moves, key);
    }

    fn move_to_front_of(&mut self, rank: u64, key: CacheKey) {
        self.moves += 1;
        self.place(rank, MIDDLE - self.moves, key);
    }

    /// Places an entry by a number of the caller's, which no other entry of the rank has.
    fn place(&mut self, rank: u64, number: u64, key: CacheKey) {
        self.remove(key);
        let place = Place { rank, number };
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

    fn keys(&self) -> Box<dyn Iterator<Item = CacheKey> + '_> {
        Box::new(self.keys.values().copied())
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
        assert_eq!(leaving_order(Eviction::Filo, &used), [4, 2, 1]);
        assert_eq!(leaving_order(Eviction::Lru, &used), [2, 1, 4]);
        assert_eq!(leaving_order(Eviction::Lfu, &used), [2, 4, 1]);
        assert_eq!(leaving_order(Eviction::Lfu, &[4, 2, 1]), [4, 2, 1], "as often: what was used longer ago");
        assert_eq!(leaving_order(Eviction::Schedule, &used), leaving_order(Eviction::Lru, &used));
    }

    #[test]
    fn what_is_needed_last_leaves_first() {
        let mut policy = Schedule::default();
        (1..=8).for_each(|number| policy.note(CacheEvent::Added(key(number))));
        for (number, place) in [(1, 30), (2, 10), (3, 20)] {
            policy.note(CacheEvent::Planned(key(number), Plan::At(place)));
        }
        for plan in [Plan::Unknown, Plan::Read] {
            policy.note(CacheEvent::Planned(key(5), plan));
            policy.note(CacheEvent::Planned(key(4), plan));
        }
        policy.note(CacheEvent::Used(key(6)));
        policy.note(CacheEvent::Planned(key(8), Plan::At(5)));
        policy.note(CacheEvent::Planned(key(8), Plan::Unknown));
        policy.note(CacheEvent::Planned(key(9), Plan::At(1)));
        let order = std::iter::from_fn(|| {
            let victim = policy.victim(&|_| false)?;
            policy.note(CacheEvent::Removed(victim));
            Some(victim.ino.0)
        });
        let order: Vec<u64> = order.collect();
        assert_eq!(order, [7, 6, 8, 4, 5, 1, 3, 2], "unknown by age, read by youth, then furthest first");
    }

    #[test]
    fn room_is_made_by_enough_victims_or_none() {
        let mut policy = Fifo::default();
        (1..=4).for_each(|number| policy.note(CacheEvent::Added(key(number))));
        let room = |bytes, kept| {
            let candidates = policy.candidates().filter(|&other| other != key(kept));
            enough(candidates, bytes, |key| key.ino.0 * 10)
        };
        assert_eq!(room(0, 9), Some(vec![]));
        assert_eq!(room(55, 9), Some(vec![key(1), key(2), key(3)]));
        assert_eq!(room(31, 2), Some(vec![key(1), key(3)]));
        assert_eq!(room(40, 9), Some(vec![key(2), key(3)]), "without the first it is enough");
        assert_eq!(room(81, 2), None);
    }

    #[test]
    fn each_keeps_the_contract() {
        Eviction::ALL.into_iter().for_each(|eviction| conformance::run(&|| eviction.policy()));
    }

    #[test]
    fn a_policy_is_found_by_its_name() {
        for eviction in Eviction::ALL {
            assert_eq!(eviction.name().parse::<Eviction>().expect("its name"), eviction);
        }
        assert_eq!("mru".parse::<Eviction>().expect_err("unknown").kind(), Kind::InvalidInput);
    }
}
