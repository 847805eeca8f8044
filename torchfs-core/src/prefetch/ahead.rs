//! Fetching in the announced order.

use super::history::PREDICTED_EPOCHS;
use super::{DataFile, PrefetchEvent, PrefetchPolicy, Timeline, Urgency, View, Wanted};
use crate::cache::CacheKey;
use crate::cache::policy::Plan;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// Most entries looked at for one answer; the search goes on at the next question.
const LOOKED_AT_MAX: usize = 4096;

/// The urgent window is this part of the bytes that an announced epoch must fetch.
const URGENT_PART: u64 = 200;

/// The same of a predicted one, three times as wide: an order that repeats misses the same run of files in each epoch, and no
/// hit in between would let the window grow.
const URGENT_PART_PREDICTED: u64 = 64;

/// Fetches what the timeline says is read next and is not held.
///
/// What it fetches is *urgent* while no more than 0.5 % of what the epoch must fetch at least (its bytes less the size of the
/// cache; 1.6 % in a predicted epoch) would then be fetched and not yet read, or nothing at all. So few entries can be given up per epoch for what
/// comes before them: with each file that is read, one more that is not needed any more can give way instead.
#[derive(Debug, Default)]
pub struct Scheduled {
    /// What was fetched and is not read yet, by place.
    ahead: BTreeMap<u64, DataFile>,
    places: HashMap<CacheKey, u64>,
    ahead_bytes: u64,
    /// By stretch: everything before is read, held, too large, or failed.
    scanned: HashMap<u64, u64>,
    /// Places whose fetch failed.
    failed: BTreeSet<u64>,
    /// Of the timeline to which the places belong.
    revision: u64,
}

impl PrefetchPolicy for Scheduled {
    fn note(&mut self, event: PrefetchEvent<'_>, timeline: &mut Timeline) {
        self.follow(timeline);
        match event {
            PrefetchEvent::Opened(file) => self.forget(file.key),
            PrefetchEvent::Failed(key) => {
                self.failed.extend(self.places.get(&key));
                self.forget(key);
            }
            PrefetchEvent::Started(wanted) => {
                if let Some(place) = wanted.place {
                    self.add(place, DataFile { key: wanted.key, bytes: wanted.bytes });
                }
            }
            PrefetchEvent::Removed(key) => {
                self.forget(key);
                if let Plan::At(place) = timeline.plan(key) {
                    self.scanned.values_mut().for_each(|scanned| *scanned = place.min(*scanned));
                }
            }
            PrefetchEvent::Listed { .. } => {}
        }
    }

    fn next(&mut self, timeline: &Timeline, view: &View<'_>) -> Option<Wanted> {
        self.follow(timeline);
        self.drop_skipped(timeline.low());
        let (place, file) = self.search(timeline, view)?;
        let fits = self.ahead.is_empty() || self.ahead_bytes + file.bytes <= view.ahead_bytes_max;
        let urgency = self.urgency(timeline, place, file.bytes, view.limit_bytes);
        fits.then_some(Wanted { key: file.key, bytes: file.bytes, place: Some(place), urgency })
    }

    fn expects(&self, _key: CacheKey) -> bool {
        false
    }
}

impl Scheduled {
    /// Of the entries that are neither read nor held nor too large the one that is nearest to its head.
    fn search(&mut self, timeline: &Timeline, view: &View<'_>) -> Option<(u64, DataFile)> {
        let stretches = timeline.stretches();
        self.scanned.retain(|id, _| stretches.iter().any(|stretch| stretch.id == *id));
        let places_max = view.ahead_bytes_max / timeline.mean_bytes().max(1);
        let found = stretches.into_iter().filter_map(|stretch| {
            let places = stretch.places.start..stretch.places.end.min(stretch.places.start + places_max.max(1));
            let found = self.search_stretch(timeline, view, stretch.id, places)?;
            Some((found.0 - stretch.places.start, found))
        });
        found.min_by_key(|&(distance, _)| distance).map(|(_, found)| found)
    }

    fn search_stretch(
        &mut self,
        timeline: &Timeline,
        view: &View<'_>,
        id: u64,
        places: Range<u64>,
    ) -> Option<(u64, DataFile)> {
        let scanned = self.scanned.entry(id).or_insert(places.start);
        *scanned = places.start.max(*scanned);
        for (place, file) in timeline.unread(*scanned..places.end).take(LOOKED_AT_MAX) {
            *scanned = place;
            let fits = file.bytes > 0 && file.bytes <= view.limit_bytes && !self.failed.contains(&place);
            if fits && !(view.is_held)(file.key) {
                return Some((place, file));
            }
            *scanned = place + 1;
        }
        None
    }

    fn urgency(&self, timeline: &Timeline, place: u64, bytes: u64, limit_bytes: u64) -> Urgency {
        let (epoch, epoch_bytes) = timeline.epoch_bytes(place).unwrap_or_default();
        let part = if epoch < PREDICTED_EPOCHS { URGENT_PART } else { URGENT_PART_PREDICTED };
        let fits = self.ahead.is_empty() || self.ahead_bytes + bytes <= epoch_bytes.saturating_sub(limit_bytes) / part;
        if fits { Urgency::Urgent } else { Urgency::Ahead }
    }

    /// When orders were announced or forgotten, entries have other places.
    fn follow(&mut self, timeline: &Timeline) {
        if self.revision == timeline.revision() {
            return;
        }
        self.revision = timeline.revision();
        self.scanned.clear();
        self.failed.clear();
        self.places.clear();
        self.ahead_bytes = 0;
        for file in std::mem::take(&mut self.ahead).into_values() {
            if let Plan::At(place) = timeline.plan(file.key) {
                self.add(place, file);
            }
        }
    }

    fn add(&mut self, place: u64, file: DataFile) {
        self.forget(file.key);
        self.places.insert(file.key, place);
        self.ahead.insert(place, file);
        self.ahead_bytes += file.bytes;
    }

    fn forget(&mut self, key: CacheKey) {
        if let Some(file) = self.places.remove(&key).and_then(|place| self.ahead.remove(&place)) {
            self.ahead_bytes -= file.bytes;
        }
    }

    /// What the reader left out is not awaited any more.
    fn drop_skipped(&mut self, low: u64) {
        while let Some((&place, &file)) = self.ahead.first_key_value()
            && place < low
        {
            self.forget(file.key);
        }
        while self.failed.first().is_some_and(|&place| place < low) {
            self.failed.pop_first();
        }
    }
}
