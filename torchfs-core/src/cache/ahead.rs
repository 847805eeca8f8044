//! Fetching ahead: which files, room for them, and readers that come while they are on their way.
//!
//! The rule: room is taken when a fetch begins, by [`Planner::victims`](crate::prefetch::Planner::victims), so that fetches under
//! way cannot push out what is needed sooner. A fetch ahead that fails is nobody's error: whoever reads the file fetches it.

use super::entry::{Entry, Pin, runs_of};
use super::pinned::Announced;
use super::policy::Plan;
use super::{
    Brought, ByteSource, CHUNK_BYTES, Cache, CacheEvent, CacheKey, DataFile, EpochStats, Found, Index, Pinned, Shared,
    Slot, count,
};
use crate::error::{Error, Kind, Result};
use crate::prefetch::{AHEAD_PART, Changed, EpochProgress, PREDICTED_EPOCHS, Prepared, View, Wanted};
use bytes::Bytes;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// A file comes in parts of so many chunks: a stripe of four full shards.
pub(super) const PART_CHUNKS: u32 = 16;

/// While fewer files than these are fetched and unread, no further ones wait until there are enough for a batch.
const AHEAD_FILES_MIN: usize = 16;

/// What comes after a file is looked for among so many entries of the order.
const NEXT_WITHIN: u64 = 8;

/// Plans told to the eviction policy under one lock.
const PLANNED_AT_ONCE: usize = 512;

/// Files of a listing that the prefetch policy learns under one lock.
const LISTED_AT_ONCE: usize = 512;

/// How much is begun at once.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Files.
    pub files: usize,
    /// Bytes of these; one file in any case.
    pub bytes: u64,
    /// How far ahead of the reader, and at most a quarter of the cache: see [`View::ahead_bytes_max`].
    pub ahead_bytes: u64,
}

/// A file that is to be fetched ahead, part by part. It has its room, and readers of it wait for its bytes: deliver them soon, or
/// drop this, and they fetch themselves.
#[derive(Debug)]
pub struct Coming {
    shared: Arc<Shared>,
    key: CacheKey,
    len: u64,
    parts: VecDeque<Part>,
    asked: Asked,
}

/// Who wants what is fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    /// An order, announced or predicted.
    Order,
    /// A [`Warming`](super::Warming).
    Warming,
}

#[derive(Debug)]
struct Part {
    range: Range<u64>,
    sender: oneshot::Sender<Result<Delivered>>,
}

/// Bytes on their way to the disk of the cache.
#[derive(Debug)]
pub(super) struct Delivered {
    pub data: Bytes,
    /// Bounds what is not written yet.
    pub permit: OwnedSemaphorePermit,
}

impl Coming {
    /// Which file.
    #[must_use]
    pub fn key(&self) -> CacheKey {
        self.key
    }

    /// How long it is.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// Whether all of it is still awaited.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        self.parts.iter().map(|part| part.range.end - part.range.start).sum::<u64>() == self.len
    }

    /// The bytes that are to be delivered next; at most 16 MiB. `None` if all are.
    #[must_use]
    pub fn awaited(&self) -> Option<Range<u64>> {
        self.parts.front().map(|part| part.range.clone())
    }

    /// Gives the bytes that are awaited next. Waits while much else is still to be written to the disk.
    ///
    /// # Errors
    /// `Io` if it is another number of bytes: then the rest is left to its readers.
    pub async fn deliver(&mut self, data: Bytes) -> Result<()> {
        let Some(part) = self.parts.front() else { return Ok(()) };
        let expected = part.range.end - part.range.start;
        if data.len() as u64 != expected {
            let error = Error::new(Kind::Io, format!("{} bytes came where {expected} were awaited", data.len()));
            self.give_up(&error);
            return Err(error);
        }
        match self.asked {
            Asked::Order => self.shared.count_fetched(expected),
            // It is for no epoch in particular.
            Asked::Warming => count(&self.shared.counters.storage_bytes, expected),
        }
        self.accept(data).await;
        Ok(())
    }

    /// Gives all that is still awaited, from a source of this file.
    ///
    /// # Errors
    /// What the source reports: try again, or drop this, and the rest is left to its readers.
    pub async fn deliver_from(&mut self, source: &dyn ByteSource) -> Result<()> {
        while let Some(range) = self.awaited() {
            self.deliver(source.fetch(range).await?).await?;
        }
        Ok(())
    }

    /// Leaves what is still awaited to its readers, and says why.
    pub fn give_up(&mut self, error: &Error) {
        for part in self.parts.drain(..) {
            part.sender.send(Err(error.clone())).ok();
        }
    }

    /// Takes what another process has in the same folder; answers whether something is still awaited.
    pub async fn copy_from_siblings(&mut self) -> bool {
        while let Some(range) = self.awaited() {
            if self.shared.siblings.are_none() {
                return true;
            }
            let (shared, key, len) = (self.shared.clone(), self.key, self.len);
            let read = tokio::task::spawn_blocking(move || shared.siblings.read(key, len, &range));
            let Ok(Some(data)) = read.await else { return true };
            count(&self.shared.counters.sibling_bytes, data.len() as u64);
            self.accept(data).await;
        }
        false
    }

    async fn accept(&mut self, data: Bytes) {
        let units = super::unwritten_units(data.len());
        // The semaphore is never closed; a part whose sender is dropped is left to its readers.
        let permit = self.shared.unwritten.clone().acquire_many_owned(units).await;
        if let (Some(part), Ok(permit)) = (self.parts.pop_front(), permit) {
            part.sender.send(Ok(Delivered { data, permit })).ok();
        }
    }
}

impl Cache {
    /// Learns the order of an epoch. Computes for as long as preparing it takes, and looks at all that is in the cache.
    ///
    /// # Errors
    /// As [`Timeline::announce`](crate::prefetch::Timeline::announce).
    pub fn announce(&self, schedule: impl Into<Prepared>) -> Result<()> {
        let prepared: Prepared = schedule.into();
        {
            let mut index = self.shared.index();
            index.planner.announce(prepared)?;
            index.pace = Pace::default();
        }
        self.shared.plan(Changed::All);
        self.shared.wanted.notify_one();
        Ok(())
    }

    /// Forgets all announced orders.
    pub fn forget_schedules(&self) {
        {
            let mut index = self.shared.index();
            index.planner.forget();
            index.epochs.forgotten();
        }
        self.shared.plan(Changed::All);
    }

    /// Learns files of a folder in the order of their names, a part of it at a time: how much of it comes before, and these.
    pub fn listed(&self, first: u64, files: &[DataFile]) {
        for (part, files) in files.chunks(LISTED_AT_ONCE).enumerate() {
            self.shared.index().planner.listed(first + (part * LISTED_AT_ONCE) as u64, files);
        }
    }

    /// Learns that a file is opened to be read, before it is: counts it for its epoch, and more may be wanted from now on. A
    /// file that changed since it was announced is the one that was announced. What is too large for the cache is missing in it.
    ///
    /// Returns its place, as [`Cache::pin`]: it was read as announced now, and would leave before its reader comes to it.
    #[must_use]
    pub fn opened(&self, file: DataFile) -> Option<Pinned> {
        let found = self.shared.index().found(file.key);
        let pinned = self.pin(file.key, file.bytes);
        let (changed, may_be_due, announced) = {
            let mut index = self.shared.index();
            index.pace.opened_bytes += file.bytes;
            let file = index.planner.timeline().as_announced(file.key).unwrap_or(file);
            let plan = index.planner.timeline().plan(file.key);
            let epoch = index.planner.timeline().epoch_of(plan).filter(|&epoch| epoch < PREDICTED_EPOCHS);
            let Index { epochs, planner, .. } = &mut *index;
            let of = |number| planner.timeline().progress().find(|epoch| epoch.epoch == number);
            epochs.opened(epoch, |number| of(number).map_or(0, |epoch| epoch.entries), found);
            let changed = index.planner.opened(file);
            let after = |place: u64| index.planner.timeline().unread(place + 1..place + 1 + NEXT_WITHIN).next();
            let announced = epoch.map(|_| match plan {
                Plan::At(place) => Announced { next: after(place).map(|(_, file)| file) },
                _ => Announced { next: None },
            });
            (changed, index.may_be_due(), announced)
        };
        self.shared.plan(changed);
        // Most opens call for nothing, and waking whoever asks takes longer than they do.
        if may_be_due {
            self.shared.wanted.notify_one();
        }
        pinned.map(|pinned| pinned.with_announced(announced))
    }

    /// Fills `out` with the whole content of a file, if that is at hand, for somebody who will open it; whether it did. It does not
    /// count as an open.
    #[must_use]
    pub fn read_now(&self, key: CacheKey, out: &mut [u8]) -> bool {
        let entry = {
            let mut index = self.shared.index();
            let entry = index.slots.get(&key).map(|slot| slot.entry.clone());
            let Some(entry) = entry.filter(|entry| entry.len == out.len() as u64) else { return false };
            index.pin(&entry);
            entry
        };
        Pinned::new(self.shared.clone(), entry).read_now(out)
    }

    /// How far each announced epoch is read, by number.
    #[must_use]
    pub fn progress(&self) -> Vec<EpochProgress> {
        let index = self.shared.index();
        index.planner.timeline().progress().filter(|epoch| epoch.epoch < PREDICTED_EPOCHS).collect()
    }

    /// What each epoch found in the cache, the latest last.
    #[must_use]
    pub fn epochs(&self) -> Vec<EpochStats> {
        self.shared.index().epochs.stats()
    }

    /// Returns when there may be something to fetch ahead.
    pub async fn wanted(&self) {
        self.shared.wanted.notified().await;
    }

    /// Begins to fetch ahead what is read next, if that is enough to be worth the requests.
    pub async fn take_wanted(&self, limits: Limits) -> Vec<Coming> {
        let shared = self.shared.clone();
        let limits = Limits { ahead_bytes: limits.ahead_bytes.min(shared.limit_bytes / AHEAD_PART), ..limits };
        let first = {
            let mut index = shared.index();
            index.pace.limits = Some(limits);
            if !index.is_due(limits) {
                return Vec::new();
            }
            index.begin(&shared, limits.ahead_bytes)
        };
        let Some(first) = first else {
            shared.index().pace.cut = Cut::No;
            return Vec::new();
        };
        // It fails only when the runtime ends.
        let begin = move || shared.begin_batch(first, limits, Asked::Order);
        tokio::task::spawn_blocking(begin).await.unwrap_or_default()
    }

    /// Begins to fetch what is [warmed](Cache::warm).
    pub async fn take_warmed(&self, limits: Limits) -> Vec<Coming> {
        let shared = self.shared.clone();
        let Some(first) = shared.index().begin_warmed(&shared) else { return Vec::new() };
        let begin = move || shared.begin_batch(first, limits, Asked::Warming);
        tokio::task::spawn_blocking(begin).await.unwrap_or_default()
    }
}

impl Shared {
    /// Tells the eviction policy of new plans, some at a time, so that nobody waits long for the lock.
    fn plan(&self, changed: Changed) {
        let keys = match changed {
            Changed::Keys(keys) => keys,
            Changed::All => self.index().slots.keys().copied().collect(),
        };
        for keys in keys.chunks(PLANNED_AT_ONCE) {
            let mut index = self.index();
            keys.iter().for_each(|&key| index.plan(key));
        }
    }

    /// Begins a batch, and removes what leaves for it. Blocks on the disk.
    fn begin_batch(self: &Arc<Self>, first: Begun, limits: Limits, asked: Asked) -> Vec<Coming> {
        let (mut coming, mut evicted, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut next = Some(first);
        while let Some(begun) = next {
            bytes += begun.entry.len;
            coming.push(Coming::expected(self, &begun.entry, begun.runs, asked));
            evicted.extend(begun.evicted);
            let is_full = coming.len() >= limits.files || bytes >= limits.bytes;
            let mut index = self.index();
            index.warmings.begun(begun.entry.key);
            next = match asked {
                _ if is_full => None,
                Asked::Order => index.begin(self, limits.ahead_bytes),
                Asked::Warming => index.begin_warmed(self),
            };
            if asked == Asked::Order {
                let cut = if is_full { Cut::Yes } else { Cut::No };
                index.pace = Pace { opened_bytes: 0, cut, ..index.pace };
            }
        }
        self.remove(&evicted);
        coming
    }
}

impl Coming {
    /// Has readers of an entry, which is pinned once for this, wait for some parts of it, which have room.
    fn expected(shared: &Arc<Shared>, entry: &Arc<Entry>, runs: Vec<Range<u32>>, asked: Asked) -> Coming {
        let pin = Pin::new(shared.clone(), entry.clone());
        let mut parts = VecDeque::new();
        for run in runs {
            let (sender, receiver) = oneshot::channel();
            parts.push_back(Part { range: entry.bytes_of(&run), sender });
            pin.clone().expect(run, receiver);
        }
        Coming { shared: shared.clone(), key: entry.key, len: entry.len, parts, asked }
    }
}

/// When the next batch is due. Many files of one node in one request are cheap, so readers open a part of what is ahead of
/// them before more is fetched; with little ahead they do not have to.
#[derive(Debug)]
pub(super) struct Pace {
    /// Bytes of the files opened since the last batch.
    opened_bytes: u64,
    cut: Cut,
    /// How much was asked for last.
    limits: Option<Limits>,
}

/// Whether more was wanted than the last batch could hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Yes,
    No,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { opened_bytes: 0, cut: Cut::Yes, limits: None }
    }
}

/// Parts of a file to fetch, with room for them, the file pinned once; and what left for it.
pub(super) struct Begun {
    pub entry: Arc<Entry>,
    pub runs: Vec<Range<u32>>,
    pub evicted: Vec<Arc<Entry>>,
}

impl Index {
    fn is_due(&self, limits: Limits) -> bool {
        let enough = self.ahead.bytes.min(limits.bytes).min(limits.ahead_bytes / 2);
        self.pace.cut == Cut::Yes || self.ahead.files < AHEAD_FILES_MIN || self.pace.opened_bytes >= enough
    }

    /// Whether whoever asks for more might get something.
    fn may_be_due(&self) -> bool {
        self.warmings.has_pending() || self.pace.limits.is_none_or(|limits| self.is_due(limits))
    }

    fn found(&self, key: CacheKey) -> Found {
        match self.slots.get(&key) {
            Some(slot) if slot.entry.is_at_hand() => Found::Whole,
            Some(slot) if slot.brought != Brought::ByReader => Found::Coming,
            _ => Found::Missing,
        }
    }

    /// The next file to fetch.
    fn begin(&mut self, shared: &Shared, ahead_bytes_max: u64) -> Option<Begun> {
        let (wanted, victims) = self.choose(shared.limit_bytes, ahead_bytes_max)?;
        let leaving: Vec<CacheKey> = victims.into_iter().chain(self.older(wanted.key)).collect();
        let evicted = leaving.into_iter().filter_map(|key| self.take(key)).map(|slot| slot.entry).collect();
        let entry = Arc::new(Entry::empty(wanted.key, wanted.bytes, shared.disk.new_name()));
        self.insert(&entry, Brought::Ahead);
        self.ahead.add(wanted.bytes);
        self.pin(&entry);
        self.grow(wanted.key, wanted.bytes);
        self.planner.started(&wanted);
        let runs = runs_of(0..wanted.bytes.div_ceil(CHUNK_BYTES) as u32, PART_CHUNKS);
        Some(Begun { entry, runs, evicted })
    }

    fn choose(&mut self, limit_bytes: u64, ahead_bytes_max: u64) -> Option<(Wanted, Vec<CacheKey>)> {
        let Index { slots, policy, planner, used_bytes, .. } = self;
        let is_held = |key: CacheKey| slots.contains_key(&key);
        let wanted = planner.next(&View { is_held: &is_held, limit_bytes, ahead_bytes_max })?;
        let missing = (*used_bytes + wanted.bytes).saturating_sub(limit_bytes);
        if missing == 0 {
            return Some((wanted, Vec::new()));
        }
        let bytes_of = |key: CacheKey| slots.get(&key).map_or(0, |slot| slot.stored_bytes);
        let is_pinned = |key: CacheKey| slots.get(&key).is_some_and(Slot::stays);
        let victims = planner.victims(&**policy, &wanted, missing, &bytes_of, &is_pinned)?;
        Some((wanted, victims))
    }

    fn plan(&mut self, key: CacheKey) {
        self.policy.note(CacheEvent::Planned(key, self.planner.plan(key)));
    }

    /// Part of a fetch ahead failed: its room is free again.
    pub(super) fn failed(&mut self, key: CacheKey, bytes: u64, error: &Error) {
        self.shrink(key, bytes);
        self.planner.failed(key);
        self.warmings.failed(key, error);
        let is_empty = |slot: &Slot| slot.stored_bytes == 0 && slot.pins == 1;
        if self.slots.get(&key).is_some_and(is_empty) {
            // Only this fetch has it pinned. It was never there, so it is not wasted.
            self.brought_by_reader(key);
            self.take(key);
        }
    }
}

/// What a fetch ahead came to.
pub(super) fn received(
    received: std::result::Result<Result<Delivered>, oneshot::error::RecvError>,
) -> Result<Delivered> {
    received.unwrap_or_else(|_| Err(Error::new(Kind::Cancelled, "it was to be fetched ahead, and was not")))
}

#[cfg(test)]
#[path = "ahead_test.rs"]
mod tests;
