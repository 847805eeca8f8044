//! Fetching files before they are opened: what the cache knows of the future, and what it does about it.
//!
//! Pure: no clock, no disk, no network. A [`Timeline`] keeps announced [`Schedule`]s and knows when each file is read next; a
//! [`PrefetchPolicy`] says what to fetch next; [`Planner`] joins them, and keeps the rule that makes prefetching exact: see
//! [`Planner::may_evict`]. Whoever does the fetching, a cache or the [simulator](crate::sim), tells the planner what happens and
//! asks what to do.
//!
//! A cache of two files, whose reader has announced that it will read three:
//!
//! ```
//! use torchfs_core::cache::CacheKey;
//! use torchfs_core::cache::policy::{CacheEvent, Eviction, Plan};
//! use torchfs_core::prefetch::{DataFile, Dataset, Planner, Prefetch, Schedule, View};
//! use torchfs_core::{InodeId, Version};
//!
//! # fn main() -> torchfs_core::Result<()> {
//! let key = |number| CacheKey { ino: InodeId(number), version: Version(1) };
//! let dataset = Dataset::new((1..=3).map(|number| DataFile { key: key(number), bytes: 100 }).collect())?;
//! let mut planner = Planner::new(Prefetch::Schedule);
//! let mut eviction = Eviction::Schedule.policy();
//! planner.announce(Schedule::new(0, dataset, vec![2, 0, 1])?)?;
//!
//! // There is room for two: what comes first is fetched first.
//! let mut held = Vec::new();
//! for expected in [key(3), key(1)] {
//!     let is_held = |key| held.contains(&key);
//!     let view = View { is_held: &is_held, limit_bytes: 200, ahead_bytes_max: 200 };
//!     let wanted = planner.next(&view).expect("something is to be read");
//!     assert_eq!(wanted.key, expected);
//!     planner.started(&wanted);
//!     held.push(wanted.key);
//!     eviction.note(CacheEvent::Added(wanted.key));
//!     eviction.note(CacheEvent::Planned(wanted.key, planner.plan(wanted.key)));
//! }
//! // The reader opens the first: it gives way to the last.
//! assert_eq!(planner.plan(key(3)), Plan::At(0));
//! for key in planner.opened(DataFile { key: key(3), bytes: 100 }).keys(held.clone()) {
//!     eviction.note(CacheEvent::Planned(key, planner.plan(key)));
//! }
//! let is_held = |key| held.contains(&key);
//! let wanted = planner.next(&View { is_held: &is_held, limit_bytes: 200, ahead_bytes_max: 200 }).expect("the last");
//! assert_eq!(wanted.key, key(2));
//! let victims = planner.victims(&*eviction, &wanted, 100, &|_| 100, &|_| false);
//! assert_eq!(victims, Some(vec![key(3)]));
//! # Ok(())
//! # }
//! ```

mod ahead;
mod heads;
mod history;
mod or_listed;
mod planner;
mod rivals;
mod schedule;
mod sequential;
mod timeline;

pub use ahead::Scheduled;
pub use history::{History, PREDICTED_EPOCHS};
pub use or_listed::OrListed;
pub use planner::{Changed, Planner};
pub(crate) use schedule::interleave;
pub use schedule::{DataFile, Dataset, ENTRIES_MAX, REORDER_DEFAULT, Schedule};
pub use sequential::Sequential;
pub use timeline::{EpochProgress, Prepared, Timeline};

use crate::cache::CacheKey;
use crate::error::{Error, Kind};
use std::fmt::{self, Debug};
use std::str::FromStr;

/// Fetching further ahead than this part of the cache (a quarter) does more harm than good.
pub const AHEAD_PART: u64 = 4;

/// Larger files are not foreseen, only announced: 4 MiB. Up to here a file is fetched whole by whoever reads the first byte of it,
/// so fetching it ahead brings nothing that its reader would not; of a larger one a program may want no more than the beginning.
pub const FORESEEN_BYTES_MAX: u64 = 4 << 20;

/// A file to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Which.
    pub key: CacheKey,
    /// How long it is.
    pub bytes: u64,
    /// Where it stands in the announced orders, if it does.
    pub place: Option<u64>,
    /// What may give way to it.
    pub urgency: Urgency,
}

/// What may leave the cache for a file that is fetched ahead: see [`Planner::may_evict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// It is read so soon that something read later in the same epoch may leave, which must be fetched again then.
    Urgent,
    /// Only what is not needed in its epoch any more.
    Ahead,
}

/// What happened, for a [`PrefetchPolicy`].
#[derive(Clone, Copy, Debug)]
pub enum PrefetchEvent<'a> {
    /// A file was opened to be read, whether it was there or not.
    Opened(DataFile),
    /// A folder is listed, a part at a time: these are files of it in the order of their names.
    Listed {
        /// How much of the folder comes before them; 0 begins a listing.
        first: u64,
        /// The files.
        files: &'a [DataFile],
    },
    /// A file that the policy asked for is being fetched.
    Started(&'a Wanted),
    /// A fetch failed: whoever opens the file tries again.
    Failed(CacheKey),
    /// An entry left the cache.
    Removed(CacheKey),
}

/// What a [`PrefetchPolicy`] sees of the cache.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// Whether a file is in the cache, or on its way there.
    pub is_held: &'a dyn Fn(CacheKey) -> bool,
    /// How much the cache may hold.
    pub limit_bytes: u64,
    /// How far ahead of the reader files are fetched: at most so many bytes of the order, those that are held included, but one
    /// file in any case. More than fetching takes is of no use, and what leaves for it is missing when the next epoch begins:
    /// [`AHEAD_PART`] of the cache at most.
    pub ahead_bytes_max: u64,
}

impl Debug for View<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let View { limit_bytes, ahead_bytes_max, .. } = self;
        out.debug_struct("View").field("limit", limit_bytes).field("ahead_max", ahead_bytes_max).finish_non_exhaustive()
    }
}

/// Decides what is fetched before it is opened.
///
/// # Contract for implementors
/// Pure: decisions follow from the events, the timeline and the view. What is wanted is not held, not empty and not larger
/// than the cache. Asking changes no decision: what is wanted stays so until [`PrefetchEvent::Started`], or until something
/// happens.
pub trait PrefetchPolicy: Debug + Send {
    /// Learns what happened; the timeline knows it already. A policy that predicts orders announces them there.
    fn note(&mut self, event: PrefetchEvent<'_>, timeline: &mut Timeline);

    /// What should be fetched next.
    fn next(&mut self, timeline: &Timeline, view: &View<'_>) -> Option<Wanted>;

    /// Whether it counts on a file being read soon, beyond what the timeline knows; such files do not give way to others.
    fn expects(&self, key: CacheKey) -> bool;
}

/// Fetches nothing ahead.
#[derive(Debug, Default)]
pub struct NoPrefetch;

impl PrefetchPolicy for NoPrefetch {
    fn note(&mut self, _event: PrefetchEvent<'_>, _timeline: &mut Timeline) {}

    fn next(&mut self, _timeline: &Timeline, _view: &View<'_>) -> Option<Wanted> {
        None
    }

    fn expects(&self, _key: CacheKey) -> bool {
        false
    }
}

/// The policies by name, for those who choose one by a setting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefetch {
    /// [`NoPrefetch`].
    None,
    /// [`Sequential`]; for files that an announced order names, that.
    Sequential,
    /// [`History`], which follows announced orders too.
    History,
    /// [`Scheduled`].
    Schedule,
    /// Announced orders; where there is none, those that repeat, and for files of neither the order of the listing.
    #[default]
    Auto,
}

impl Prefetch {
    /// All of them.
    pub const ALL: [Prefetch; 5] =
        [Prefetch::None, Prefetch::Sequential, Prefetch::History, Prefetch::Schedule, Prefetch::Auto];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Prefetch::None => "none",
            Prefetch::Sequential => "sequential",
            Prefetch::History => "history",
            Prefetch::Schedule => "schedule",
            Prefetch::Auto => "auto",
        }
    }

    /// Whether [`PrefetchEvent::Listed`] is of use to it.
    #[must_use]
    pub fn follows_listings(self) -> bool {
        matches!(self, Prefetch::Sequential | Prefetch::Auto)
    }

    /// A policy of this name that has seen nothing yet.
    #[must_use]
    pub fn policy(self) -> Box<dyn PrefetchPolicy> {
        match self {
            Prefetch::None => Box::new(NoPrefetch),
            Prefetch::Sequential => Box::new(OrListed::new(Scheduled::default())),
            Prefetch::History => Box::new(History::default()),
            Prefetch::Schedule => Box::new(Scheduled::default()),
            Prefetch::Auto => Box::new(OrListed::new(History::default())),
        }
    }
}

impl fmt::Display for Prefetch {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl FromStr for Prefetch {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let message = || format!("'{name}' is no prefetch policy: none, sequential, history, schedule or auto");
        let known = Prefetch::ALL.into_iter().find(|prefetch| prefetch.name() == name);
        known.ok_or_else(|| Error::new(Kind::InvalidInput, message()))
    }
}

#[cfg(test)]
#[path = "prefetch_test.rs"]
mod tests;
