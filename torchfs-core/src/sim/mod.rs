//! What a cache would do, without a cluster: [`simulate`] replays opens against the very policies and the very [`Planner`] that a
//! real cache uses.
//!
//! Time is counted in *ticks*: the reader works for one tick after each open, and a fetch takes a given number of them.
//!
//! ```
//! use torchfs_core::sim::{Settings, Workload, simulate};
//!
//! # fn main() -> torchfs_core::Result<()> {
//! // Three epochs over 2,000 files, shuffled anew each time and announced; a quarter of them fits the cache.
//! let workload = Workload::shuffled(&[65_536; 2000], 3, 7)?;
//! let report = simulate(&workload, &Settings { cache_bytes: 500 * 65_536, ..Settings::default() })?;
//! assert!(report.epochs[2].hit_rate() > 0.99);
//! assert_eq!(report.epochs[2].optimum_bytes, 1500 * 65_536);
//! assert!(report.epochs[2].storage_bytes < report.epochs[2].optimum_bytes * 101 / 100);
//! # Ok(())
//! # }
//! ```

mod optimum;
mod workload;

pub use workload::{EpochOrder, Workload};

use crate::cache::CacheKey;
use crate::cache::policy::{CacheEvent, Eviction, EvictionPolicy, enough};
use crate::error::Result;
use crate::prefetch::{AHEAD_PART, Changed, DataFile, Planner, Prefetch, Schedule, View, Wanted};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};

/// When orders are announced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announce {
    /// Not at all.
    Never,
    /// Each at the start of its epoch.
    #[default]
    AtStart,
    /// Each when the epoch before begins.
    OneAhead,
}

/// What is simulated.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How much the cache holds.
    pub cache_bytes: u64,
    /// What leaves it.
    pub eviction: Eviction,
    /// What is fetched ahead.
    pub prefetch: Prefetch,
    /// What is announced.
    pub announce: Announce,
    /// How many ticks a fetch takes.
    pub fetch_ticks: u64,
    /// How many files are fetched ahead at the same time; one that a reader waits for comes on top.
    pub fetches_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            cache_bytes: u64::MAX,
            eviction: Eviction::Schedule,
            prefetch: Prefetch::Schedule,
            announce: Announce::AtStart,
            fetch_ticks: 0,
            fetches_max: 16,
        }
    }
}

/// What happened in one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct EpochReport {
    /// Files opened: hits, misses and late ones.
    pub opens: u64,
    /// Files that were there when they were opened.
    pub hits: u64,
    /// Files that had to be fetched.
    pub misses: u64,
    /// Files that were on their way.
    pub late: u64,
    /// Files that were fetched ahead and left the cache unread.
    pub wasted: u64,
    /// Bytes fetched, whoever for.
    pub storage_bytes: u64,
    /// The bytes that Belady's rule fetches with all opens known: for files of one size nothing does with less over all epochs.
    pub optimum_bytes: u64,
    /// Ticks for which the reader waited.
    pub stall_ticks: u64,
}

impl EpochReport {
    /// The part of the opens that were hits.
    #[must_use]
    pub fn hit_rate(&self) -> f64 {
        self.hits as f64 / self.opens.max(1) as f64
    }

    fn add(&mut self, other: &EpochReport) {
        self.opens += other.opens;
        self.hits += other.hits;
        self.misses += other.misses;
        self.late += other.late;
        self.wasted += other.wasted;
        self.storage_bytes += other.storage_bytes;
        self.optimum_bytes += other.optimum_bytes;
        self.stall_ticks += other.stall_ticks;
    }
}

/// What happened in all epochs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Epoch by epoch.
    pub epochs: Vec<EpochReport>,
}

impl Report {
    /// All epochs from one on, together; from 1 on, these are those that found the cache filled.
    #[must_use]
    pub fn total_from(&self, first: usize) -> EpochReport {
        let mut total = EpochReport::default();
        self.epochs.iter().skip(first).for_each(|epoch| total.add(epoch));
        total
    }
}

/// Replays a workload.
///
/// # Errors
/// As [`Timeline::announce`](crate::prefetch::Timeline::announce), if orders are announced.
pub fn simulate(workload: &Workload, settings: &Settings) -> Result<Report> {
    simulate_watched(workload, settings, |_| {})
}

/// Replays a workload, and tells after each epoch, by its place, that it is over: with millions of files one takes seconds.
///
/// # Errors
/// As [`simulate`].
pub fn simulate_watched(
    workload: &Workload,
    settings: &Settings,
    mut epoch_is_over: impl FnMut(usize),
) -> Result<Report> {
    let mut simulation = Simulation::new(workload, settings);
    for epoch in 0..workload.epochs().len() {
        simulation.run_epoch(epoch)?;
        epoch_is_over(epoch);
    }
    let mut epochs = simulation.reports;
    let optimum = optimum::optimum(workload, settings.cache_bytes);
    epochs.iter_mut().zip(optimum).for_each(|(epoch, bytes)| epoch.optimum_bytes = bytes);
    Ok(Report { epochs })
}

/// A cache without a disk.
struct Simulation<'a> {
    workload: &'a Workload,
    settings: &'a Settings,
    eviction: Box<dyn EvictionPolicy>,
    planner: Planner,
    held: HashMap<CacheKey, Held>,
    used_bytes: u64,
    clock: u64,
    /// Files fetched ahead that are on their way, by the time at which they arrive.
    flights: VecDeque<(u64, CacheKey)>,
    reports: Vec<EpochReport>,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    bytes: u64,
    arrives: u64,
    /// It was fetched ahead and not opened since.
    is_unread: bool,
}

impl<'a> Simulation<'a> {
    fn new(workload: &'a Workload, settings: &'a Settings) -> Self {
        let mut planner = Planner::new(settings.prefetch);
        planner.listed(0, workload.dataset().files());
        Simulation {
            workload,
            settings,
            eviction: settings.eviction.policy(),
            planner,
            held: HashMap::new(),
            used_bytes: 0,
            clock: 0,
            flights: VecDeque::new(),
            reports: Vec::new(),
        }
    }

    fn run_epoch(&mut self, epoch: usize) -> Result<()> {
        self.reports.push(EpochReport::default());
        match self.settings.announce {
            Announce::Never => {}
            Announce::AtStart => self.announce(epoch)?,
            Announce::OneAhead if epoch == 0 => (0..=1).try_for_each(|epoch| self.announce(epoch))?,
            Announce::OneAhead => self.announce(epoch + 1)?,
        }
        self.fetch_ahead();
        let workload = self.workload;
        for &file in &workload.epochs()[epoch].opened {
            self.open(workload.dataset().files()[file as usize]);
            self.fetch_ahead();
            self.wait_until(self.clock + 1);
        }
        Ok(())
    }

    fn announce(&mut self, epoch: usize) -> Result<()> {
        if let Some(order) = self.workload.epochs().get(epoch) {
            let schedule = Schedule::new(epoch as u64, self.workload.dataset().clone(), order.announced.clone())?;
            self.planner.announce(schedule)?;
            self.replan(Changed::All);
        }
        Ok(())
    }

    fn open(&mut self, file: DataFile) {
        self.report().opens += 1;
        match self.held.get(&file.key).map(|held| held.arrives) {
            Some(arrives) if arrives <= self.clock => {
                self.report().hits += 1;
                self.eviction.note(CacheEvent::Used(file.key));
            }
            Some(arrives) => {
                self.report().late += 1;
                self.eviction.note(CacheEvent::Used(file.key));
                self.stall_until(arrives);
            }
            None => self.miss(file),
        }
        if let Some(held) = self.held.get_mut(&file.key) {
            held.is_unread = false;
        }
        let changed = self.planner.opened(file);
        self.replan(changed);
    }

    /// A file is fetched while its reader waits, and kept if it fits.
    fn miss(&mut self, file: DataFile) {
        self.report().misses += 1;
        self.report().storage_bytes += file.bytes;
        let arrives = self.clock + self.settings.fetch_ticks;
        let candidates = self.eviction.candidates().filter(|&key| !self.is_on_its_way(key));
        let victims = enough(candidates, self.missing_bytes(file.bytes), |key| self.bytes_of(key));
        if let Some(victims) = victims.filter(|_| file.bytes > 0) {
            self.evict(&victims);
            self.add(file, Held { bytes: file.bytes, arrives, is_unread: false });
        }
        self.stall_until(arrives);
    }

    fn stall_until(&mut self, time: u64) {
        self.report().stall_ticks += time - self.clock;
        self.wait_until(time);
    }

    /// Lets time pass: fetches arrive, and others begin.
    fn wait_until(&mut self, time: u64) {
        while let Some(&(arrives, _)) = self.flights.front()
            && arrives <= time
        {
            self.clock = self.clock.max(arrives);
            self.flights.pop_front();
            self.fetch_ahead();
        }
        self.clock = time;
    }

    fn fetch_ahead(&mut self) {
        while self.flights.len() < self.settings.fetches_max {
            let is_held = |key: CacheKey| self.held.contains_key(&key);
            let limit_bytes = self.settings.cache_bytes;
            let view = View { is_held: &is_held, limit_bytes, ahead_bytes_max: limit_bytes / AHEAD_PART };
            let Some(wanted) = self.planner.next(&view) else { return };
            if !self.start(&wanted) {
                return;
            }
        }
    }

    /// Begins to fetch a file ahead, if there is room.
    fn start(&mut self, wanted: &Wanted) -> bool {
        let is_pinned = |key| self.is_on_its_way(key);
        let missing = self.missing_bytes(wanted.bytes);
        let victims =
            self.planner.victims(self.eviction.as_ref(), wanted, missing, &|key| self.bytes_of(key), &is_pinned);
        let Some(victims) = victims else { return false };
        self.evict(&victims);
        self.planner.started(wanted);
        self.report().storage_bytes += wanted.bytes;
        let arrives = self.clock + self.settings.fetch_ticks;
        self.add(
            DataFile { key: wanted.key, bytes: wanted.bytes },
            Held { bytes: wanted.bytes, arrives, is_unread: true },
        );
        if arrives > self.clock {
            self.flights.push_back((arrives, wanted.key));
        }
        true
    }

    fn add(&mut self, file: DataFile, held: Held) {
        self.held.insert(file.key, held);
        self.used_bytes += held.bytes;
        self.eviction.note(CacheEvent::Added(file.key));
        self.tell_plan(file.key);
    }

    fn evict(&mut self, victims: &[CacheKey]) {
        for &key in victims {
            if let Some(held) = self.held.remove(&key) {
                self.used_bytes -= held.bytes;
                self.report().wasted += u64::from(held.is_unread);
            }
            self.eviction.note(CacheEvent::Removed(key));
            self.planner.removed(key);
        }
    }

    fn replan(&mut self, changed: Changed) {
        let mut keys = changed.keys(self.held.keys().copied());
        // Not in the order of a hash map, which differs from run to run.
        keys.sort_unstable();
        keys.into_iter().for_each(|key| self.tell_plan(key));
    }

    fn tell_plan(&mut self, key: CacheKey) {
        let plan = self.planner.plan(key);
        self.eviction.note(CacheEvent::Planned(key, plan));
    }

    fn missing_bytes(&self, bytes: u64) -> u64 {
        (self.used_bytes + bytes).saturating_sub(self.settings.cache_bytes)
    }

    fn is_on_its_way(&self, key: CacheKey) -> bool {
        self.held.get(&key).is_some_and(|held| held.arrives > self.clock)
    }

    fn bytes_of(&self, key: CacheKey) -> u64 {
        self.held.get(&key).map_or(0, |held| held.bytes)
    }

    fn report(&mut self) -> &mut EpochReport {
        if self.reports.is_empty() {
            self.reports.push(EpochReport::default());
        }
        let last = self.reports.len() - 1;
        &mut self.reports[last]
    }
}

#[cfg(test)]
#[path = "sim_test.rs"]
mod tests;
