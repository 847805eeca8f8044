//! [`Epochs`]: what each epoch found in the cache, fetched and waited for.
//!
//! An epoch is what was announced under its number. Opens of files that are in no announced order count under no number.

use crate::observe::Latency;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Epochs that are remembered: the latest.
const EPOCHS_MAX: usize = 32;

/// What one epoch found in the cache, fetched and waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochStats {
    /// Its number; `None` counts what no announced order names.
    pub epoch: Option<u64>,
    /// Files that its order names, repeated ones included; 0 without an order.
    pub entries: u64,
    /// Files opened to be read.
    pub opens: u64,
    /// Of these, those that were whole in the cache, or on their way from memory to its disk.
    pub hits: u64,
    /// Of these, those of which nothing was there.
    pub misses: u64,
    /// Of these, those that were on their way: fetched ahead, but not soon enough.
    pub late: u64,
    /// Files fetched ahead that left the cache before they were opened.
    pub wasted: u64,
    /// Bytes fetched from storage.
    pub storage_bytes: u64,
    /// Microseconds that readers waited for storage, all together.
    pub stall_us: u64,
    /// Reads that waited.
    pub stalls: u64,
    /// Microseconds that half of these waited at most.
    pub stall_p50_us: u64,
    /// Microseconds that 99 of 100 of these waited at most.
    pub stall_p99_us: u64,
    /// Milliseconds from its first open to its last.
    pub duration_ms: u64,
}

/// How an opened file was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Whole,
    Coming,
    Missing,
}

#[derive(Debug, Default)]
pub(super) struct Epochs {
    /// The latest is the last one.
    all: VecDeque<Epoch>,
    /// Fetched before any file was opened, for the first epoch.
    early_bytes: u64,
}

#[derive(Debug)]
struct Epoch {
    stats: EpochStats,
    /// The orders of its time are forgotten; one of the same number is another.
    is_forgotten: bool,
    began: Instant,
    stalls: Latency,
}

impl Epochs {
    /// A file is opened, as part of an epoch, the order of which has so many entries.
    pub fn opened(&mut self, epoch: Option<u64>, entries: impl FnOnce(u64) -> u64, found: Found) {
        let current = self.of(epoch, entries);
        current.stats.opens += 1;
        match found {
            Found::Whole => current.stats.hits += 1,
            Found::Coming => current.stats.late += 1,
            Found::Missing => current.stats.misses += 1,
        }
        current.stats.duration_ms = current.began.elapsed().as_millis() as u64;
    }

    /// Bytes were fetched. They count for the epoch that is being read.
    pub fn fetched(&mut self, bytes: u64) {
        match self.all.back_mut() {
            Some(epoch) => epoch.stats.storage_bytes += bytes,
            None => self.early_bytes += bytes,
        }
    }

    /// A reader waited.
    pub fn stalled(&mut self, time: Duration) {
        if let Some(epoch) = self.all.back_mut() {
            epoch.stats.stall_us += time.as_micros() as u64;
            epoch.stalls.add(time, false);
        }
    }

    /// A file that was fetched ahead left before it was opened.
    pub fn wasted(&mut self) {
        if let Some(epoch) = self.all.back_mut() {
            epoch.stats.wasted += 1;
        }
    }

    /// The orders are forgotten: epochs that are announced from now on are others, whatever their numbers.
    pub fn forgotten(&mut self) {
        self.all.iter_mut().filter(|epoch| epoch.stats.epoch.is_some()).for_each(|epoch| epoch.is_forgotten = true);
    }

    /// All that are remembered, the latest last.
    pub fn stats(&self) -> Vec<EpochStats> {
        let of = |epoch: &Epoch| {
            let stalls = epoch.stalls.stats();
            EpochStats {
                stalls: stalls.requests,
                stall_p50_us: stalls.p50_us,
                stall_p99_us: stalls.p99_us,
                ..epoch.stats
            }
        };
        self.all.iter().map(of).collect()
    }

    /// The epoch of this number, which becomes the latest if it is new. The last files of one epoch may be opened after the
    /// first of the next.
    fn of(&mut self, epoch: Option<u64>, entries: impl FnOnce(u64) -> u64) -> &mut Epoch {
        let known = self.all.iter().rposition(|known| known.stats.epoch == epoch && !known.is_forgotten);
        let at = known.unwrap_or_else(|| {
            if self.all.len() == EPOCHS_MAX {
                self.all.pop_front();
            }
            let storage_bytes = std::mem::take(&mut self.early_bytes);
            let entries = epoch.map_or(0, entries);
            let stats = EpochStats { epoch, entries, storage_bytes, ..EpochStats::default() };
            self.all.push_back(Epoch { stats, is_forgotten: false, began: Instant::now(), stalls: Latency::default() });
            self.all.len() - 1
        });
        &mut self.all[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_epoch_counts_its_own_and_the_oldest_are_forgotten() {
        let mut epochs = Epochs::default();
        epochs.stalled(Duration::from_secs(1));
        epochs.fetched(4);
        epochs.opened(Some(0), |_| 7, Found::Missing);
        epochs.fetched(6);
        epochs.stalled(Duration::from_millis(3));
        epochs.opened(Some(1), |_| 7, Found::Whole);
        epochs.opened(Some(0), |_| 7, Found::Coming);
        epochs.fetched(5);
        let [first, second] = epochs.stats()[..] else { panic!("{:?}", epochs.stats()) };
        assert_eq!((first.opens, first.misses, first.late, first.storage_bytes), (2, 1, 1, 10));
        assert_eq!((first.entries, second.entries), (7, 7));
        assert_eq!((first.stalls, first.stall_us), (1, 3000));
        assert!((3000..4000).contains(&first.stall_p99_us), "{first:?}");
        assert_eq!((second.opens, second.hits, second.storage_bytes), (1, 1, 5));
        epochs.forgotten();
        epochs.opened(Some(1), |_| 7, Found::Missing);
        let of_one: Vec<u64> = epochs.stats().iter().filter(|one| one.epoch == Some(1)).map(|one| one.opens).collect();
        assert_eq!(of_one, [1, 1], "another one of the same number");
        (2..100).for_each(|number| epochs.opened(Some(number), |_| 7, Found::Whole));
        let kept: Vec<Option<u64>> = epochs.stats().iter().map(|epoch| epoch.epoch).collect();
        assert_eq!((kept.len(), kept[0], kept[31]), (32, Some(68), Some(99)));
    }
}
