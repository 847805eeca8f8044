//! [`Warming`]: bringing listed files into the cache before anybody asks for them, and counting what is there.
//!
//! It has no fetching of its own: what is missing is begun as other fetches ahead are, in batches, when no announced order wants
//! anything. The rule: nothing leaves for it that an announced order needs, nor one of its own files. What fits is known before
//! the first byte is fetched: in the order given, each file for which there is still room.

use super::ahead::{Begun, PART_CHUNKS};
use super::entry::{Entry, runs_of};
use super::policy::enough;
use super::{Brought, CHUNK_BYTES, Cache, CacheEvent, CacheKey, DataFile, Index, Shared, Slot};
use crate::error::Error;
use crate::prefetch::{Dataset, Urgency, Wanted};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Files looked at under one lock.
const LOOKED_AT_ONCE: usize = 512;

/// Most entries looked at for one that may leave.
const CANDIDATES_MAX: usize = 4096;

/// Files that may be under way before it is looked which have come. More than all batches have.
const AWAITED_MAX: usize = 2048;

/// How often whoever waits looks what has come.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A file that somebody else was fetching, and that did not come, is fetched once more.
const TRIES_MAX: u8 = 2;

/// So many failures without a file that came in between, and the rest is not tried.
const FAILURES_MAX: u32 = 256;

/// How much of some files is in the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmth {
    /// How many files there are, each counted once.
    pub files: u64,
    /// How long they are together.
    pub bytes: u64,
    /// Files that are whole in the cache. Empty ones always are.
    pub cached_files: u64,
    /// How long these are together.
    pub cached_bytes: u64,
    /// Files for which there is no room.
    pub left_out_files: u64,
    /// How long these are together.
    pub left_out_bytes: u64,
    /// Files that could not be fetched.
    pub failed_files: u64,
    /// Why the first of them could not.
    pub first_failure: Option<String>,
    /// How much of the cache these files can have: its limit, or what its disk holds, without what is pinned besides.
    pub room_bytes: u64,
    /// How much the cache may hold.
    pub limit_bytes: u64,
    /// Entries of the order that lead to no file.
    pub unknown: u64,
    /// The first of them.
    pub first_unknown: Option<String>,
}

impl Warmth {
    /// Whether every file is whole in the cache.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.cached_files == self.files
    }

    fn note_cached(&mut self, file: DataFile) {
        self.cached_files += 1;
        self.cached_bytes += file.bytes;
    }

    fn note_left_out(&mut self, file: DataFile) {
        self.left_out_files += 1;
        self.left_out_bytes += file.bytes;
    }
}

/// Files that are being brought into a cache. Ends when it is dropped; what has come stays.
#[derive(Debug)]
pub struct Warming {
    shared: Arc<Shared>,
    number: u64,
}

impl Warming {
    /// How far it is.
    #[must_use]
    pub fn warmth(&self) -> Warmth {
        self.look(|list| list.map(|list| list.warmth.clone()).unwrap_or_default())
    }

    /// Returns when nothing is to come any more; then [`Warming::warmth`] is what is there now.
    pub async fn ended(&self) {
        let is_over = |list: Option<&List>| list.is_none_or(|list| list.pending.is_empty() && list.awaited.is_empty());
        while !self.look(is_over) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        while !self.shared.index().count_on(self.number) {
            tokio::task::yield_now().await;
        }
    }

    fn look<T>(&self, at: impl FnOnce(Option<&List>) -> T) -> T {
        let mut index = self.shared.index();
        index.look_again(self.number);
        if index.warmings.has_pending() {
            // What somebody else should have brought may have to be fetched after all.
            self.shared.wanted.notify_one();
        }
        at(index.warmings.lists.get(&self.number))
    }
}

impl Drop for Warming {
    fn drop(&mut self) {
        self.shared.index().warmings.lists.remove(&self.number);
    }
}

/// All that is being warmed, the earlier first.
#[derive(Debug, Default)]
pub(super) struct Warmings {
    lists: BTreeMap<u64, List>,
    last: u64,
}

#[derive(Debug)]
struct List {
    files: Arc<Dataset>,
    /// By number.
    lots: Vec<Lot>,
    /// Numbers of those that are to be looked at, the next one last.
    pending: Vec<u32>,
    awaited: HashMap<u32, Awaited>,
    failures: u32,
    /// While files come: what was there at the beginning, and what has come since.
    warmth: Warmth,
    last_count: LastCount,
}

/// What is to become of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lot {
    /// Nobody asks for it.
    Ignored,
    /// It fits.
    Chosen,
    /// There is no room for it. It may be there all the same, until its place is needed.
    LeftOut,
}

/// What is there when nothing is to come any more. Some of what was there at the beginning has left for the rest, and what has
/// come may have left for what others read.
#[derive(Debug, Default)]
struct LastCount {
    /// The number of the next file to look at.
    next: usize,
    warmth: Warmth,
}

/// A file that was looked at and is not there yet.
#[derive(Clone, Copy, Debug)]
struct Awaited {
    tries: u8,
    step: Step,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It is pending again.
    Waits,
    /// Room for it is taken, and readers do not wait for it yet.
    Begins,
    /// It comes, by this or by another fetch.
    Comes,
}

/// How a file is found when it is asked for.
#[derive(Clone, Copy, Debug)]
struct Look {
    is_held: bool,
    fits: bool,
}

/// What there is in the cache of an awaited file.
enum Arrival {
    Whole,
    Coming,
    Missing,
}

impl Cache {
    /// Begins to bring files into the cache: those of `order`, by number, or all as they are listed. Takes as long as looking
    /// for each of them takes.
    #[must_use]
    pub fn warm(&self, files: &Arc<Dataset>, order: Option<Vec<u32>>) -> Warming {
        let (list, held) = self.shared.choose(files, order);
        // They are wanted, so they leave later than what nobody wants.
        for held in held.chunks(LOOKED_AT_ONCE) {
            let mut index = self.shared.index();
            held.iter().for_each(|&at| index.policy.note(CacheEvent::Used(files.files()[at as usize].key)));
        }
        let number = self.shared.index().warmings.add(list);
        self.shared.wanted.notify_one();
        Warming { shared: self.shared.clone(), number }
    }

    /// How much of some files is there, in the same terms. Fetches nothing.
    #[must_use]
    pub fn warmth(&self, files: &Arc<Dataset>, order: Option<Vec<u32>>) -> Warmth {
        self.shared.choose(files, order).0.warmth
    }

    /// Whether something is still to be fetched for a [`Warming`].
    #[must_use]
    pub fn is_warming(&self) -> bool {
        self.shared.index().warmings.has_pending()
    }
}

impl Shared {
    /// Which of some files fit and which of those are to be fetched; and the numbers of those that are there.
    fn choose(&self, files: &Arc<Dataset>, order: Option<Vec<u32>>) -> (List, Vec<u32>) {
        let order = order.unwrap_or_else(|| (0..files.files().len() as u32).collect());
        // What stays has its room already.
        let mut room = self.room_bytes().saturating_sub(self.index().set_aside_bytes());
        let mut list = List {
            files: files.clone(),
            lots: vec![Lot::Ignored; files.files().len()],
            pending: Vec::new(),
            awaited: HashMap::new(),
            failures: 0,
            warmth: Warmth { room_bytes: room, limit_bytes: self.limit_bytes, ..Warmth::default() },
            last_count: LastCount::default(),
        };
        let mut held = Vec::new();
        for part in order.chunks(LOOKED_AT_ONCE) {
            let index = self.index();
            for &at in part {
                if list.lots[at as usize] != Lot::Ignored {
                    continue;
                }
                let file = files.files()[at as usize];
                let (is_held, stays) = (is_whole(&index.slots, &file), index.keeps(file.key.ino));
                let fits = stays || file.bytes <= room;
                room -= if fits && !stays { file.bytes } else { 0 };
                list.warmth.room_bytes += if stays { file.bytes } else { 0 };
                list.add(at, file, Look { is_held, fits });
                held.extend(is_held.then_some(at));
            }
        }
        list.pending.reverse();
        (list, held)
    }

    /// How much can be held, by the limit and by what the disk has free.
    pub(super) fn room_bytes(&self) -> u64 {
        let used_bytes = self.index().used_bytes;
        self.limit_bytes.min(used_bytes.saturating_add(self.disk.free_bytes()))
    }
}

impl List {
    fn add(&mut self, at: u32, file: DataFile, look: Look) {
        self.warmth.files += 1;
        self.warmth.bytes += file.bytes;
        self.lots[at as usize] = if look.fits { Lot::Chosen } else { Lot::LeftOut };
        match look {
            Look { is_held: true, .. } => self.warmth.note_cached(file),
            Look { fits: true, .. } => self.pending.push(at),
            Look { fits: false, .. } => self.warmth.note_left_out(file),
        }
    }

    /// A file that was chosen finds no room.
    fn leave_out(&mut self, at: u32) {
        self.awaited.remove(&at);
        self.lots[at as usize] = Lot::LeftOut;
        self.warmth.note_left_out(self.files.files()[at as usize]);
    }

    /// Looks for some more files; answers whether these were the last.
    fn count_on(&mut self, is_whole: impl Fn(&DataFile) -> bool) -> bool {
        let files = self.files.files();
        let LastCount { next, warmth } = &mut self.last_count;
        if *next == files.len() {
            return true;
        }
        let end = files.len().min(*next + LOOKED_AT_ONCE);
        for (file, lot) in files[*next..end].iter().zip(&self.lots[*next..end]) {
            match lot {
                Lot::Ignored => {}
                _ if is_whole(file) => warmth.note_cached(*file),
                Lot::LeftOut => warmth.note_left_out(*file),
                Lot::Chosen => {}
            }
        }
        *next = end;
        if end < files.len() {
            return false;
        }
        let LastCount { warmth: Warmth { cached_files, cached_bytes, left_out_files, left_out_bytes, .. }, .. } =
            self.last_count;
        self.warmth =
            Warmth { cached_files, cached_bytes, left_out_files, left_out_bytes, ..std::mem::take(&mut self.warmth) };
        true
    }

    /// A file has come, or has not.
    fn arrived(&mut self, at: u32, arrival: &Arrival) {
        let file = self.files.files()[at as usize];
        match arrival {
            Arrival::Coming => return,
            Arrival::Whole => {
                self.warmth.note_cached(file);
                self.failures = 0;
            }
            Arrival::Missing if self.try_again(at) => return,
            Arrival::Missing => {
                self.warmth.failed_files += 1;
                self.failures += 1;
                if self.failures >= FAILURES_MAX {
                    self.pending.clear();
                }
            }
        }
        self.awaited.remove(&at);
    }

    fn try_again(&mut self, at: u32) -> bool {
        let Some(awaited) = self.awaited.get_mut(&at).filter(|awaited| awaited.tries < TRIES_MAX) else { return false };
        awaited.step = Step::Waits;
        self.pending.push(at);
        true
    }

    fn names(&self, key: CacheKey) -> Option<u32> {
        self.files.index_of(key).filter(|&at| self.lots[at as usize] == Lot::Chosen)
    }
}

impl Warmings {
    fn add(&mut self, list: List) -> u64 {
        self.last += 1;
        self.lists.insert(self.last, list);
        self.last
    }

    pub fn has_pending(&self) -> bool {
        self.lists.values().any(|list| !list.pending.is_empty())
    }

    /// The next file to look at, and in which list; it is awaited from now on.
    fn next(&mut self) -> Option<(u64, u32, DataFile)> {
        let (&number, list) = self.lists.iter_mut().find(|(_, list)| !list.pending.is_empty())?;
        let at = list.pending.pop()?;
        let awaited = list.awaited.entry(at).or_insert(Awaited { tries: 0, step: Step::Comes });
        *awaited = Awaited { tries: awaited.tries + 1, step: Step::Comes };
        Some((number, at, list.files.files()[at as usize]))
    }

    /// Whether a file is one of those that are brought here, which does not leave for another one.
    fn name(&self, key: CacheKey) -> bool {
        self.lists.values().any(|list| list.names(key).is_some())
    }

    /// A fetch ahead failed.
    pub fn failed(&mut self, key: CacheKey, error: &Error) {
        for list in self.lists.values_mut() {
            if let Some(awaited) = list.names(key).and_then(|at| list.awaited.get_mut(&at)) {
                // It was tried, and why it failed is known.
                awaited.tries = TRIES_MAX;
                list.warmth.first_failure.get_or_insert_with(|| error.to_string());
            }
        }
    }

    /// Readers wait for a file that was begun.
    pub fn begun(&mut self, key: CacheKey) {
        for list in self.lists.values_mut() {
            if let Some(awaited) = list.names(key).and_then(|at| list.awaited.get_mut(&at)) {
                awaited.step = Step::Comes;
            }
        }
    }
}

fn is_whole(slots: &BTreeMap<CacheKey, Slot>, file: &DataFile) -> bool {
    file.bytes == 0 || slots.get(&file.key).is_some_and(|slot| slot.entry.is_whole())
}

impl Index {
    /// Counts more of what is there of a list of which nothing is to come any more; answers whether that was the rest.
    fn count_on(&mut self, number: u64) -> bool {
        let Index { slots, warmings, .. } = self;
        warmings.lists.get_mut(&number).is_none_or(|list| list.count_on(|file| is_whole(slots, file)))
    }

    /// Counts what has come of a list.
    fn look_again(&mut self, number: u64) {
        let Some(list) = self.warmings.lists.get_mut(&number) else { return };
        let slots = &self.slots;
        let arrival = |file: DataFile| match slots.get(&file.key) {
            Some(slot) if slot.entry.is_whole() => Arrival::Whole,
            Some(slot) if slot.entry.is_under_way() => Arrival::Coming,
            _ => Arrival::Missing,
        };
        let begun = list.awaited.iter().filter(|(_, awaited)| awaited.step == Step::Comes);
        let looked_at: Vec<(u32, Arrival)> =
            begun.map(|(&at, _)| (at, arrival(list.files.files()[at as usize]))).collect();
        looked_at.iter().for_each(|(at, arrival)| list.arrived(*at, arrival));
    }

    /// The next file to fetch for a warming.
    pub(super) fn begin_warmed(&mut self, shared: &Shared) -> Option<Begun> {
        let crowded = self.warmings.lists.iter().filter(|(_, list)| list.awaited.len() > AWAITED_MAX);
        let crowded: Vec<u64> = crowded.map(|(&number, _)| number).collect();
        crowded.into_iter().for_each(|number| self.look_again(number));
        for _ in 0..LOOKED_AT_ONCE {
            let (number, at, file) = self.warmings.next()?;
            if let Some(begun) = self.begin_one(shared, (number, at), file) {
                return Some(begun);
            }
        }
        None
    }

    /// Begins one file, unless it is there or on its way, or there is no room for it.
    fn begin_one(&mut self, shared: &Shared, (number, at): (u64, u32), file: DataFile) -> Option<Begun> {
        let entry = self.slots.get(&file.key).map(|slot| slot.entry.clone());
        let runs = match &entry {
            Some(entry) => entry.idle_runs(PART_CHUNKS),
            None => runs_of(0..file.bytes.div_ceil(CHUNK_BYTES) as u32, PART_CHUNKS),
        };
        // A listing is not always the latest.
        if runs.is_empty() || self.is_replaced(file.key) {
            return None;
        }
        let is_new = entry.is_none();
        let entry = entry.unwrap_or_else(|| Arc::new(Entry::empty(file.key, file.bytes, shared.disk.new_name())));
        let bytes = runs.iter().map(|run| bytes_of(&entry, run)).sum();
        let evicted = self.make_room_for_warmed(&file, bytes, shared.limit_bytes);
        let list = self.warmings.lists.get_mut(&number)?;
        let Some(evicted) = evicted else {
            list.leave_out(at);
            return None;
        };
        list.awaited.entry(at).and_modify(|awaited| awaited.step = Step::Begins);
        if is_new {
            self.insert(&entry, Brought::Warmed);
        }
        self.pin(&entry);
        self.grow(file.key, bytes);
        Some(Begun { entry, runs, evicted })
    }

    /// Takes out what nobody needs until so much more fits; for what stays from now on, what is needed later too.
    fn make_room_for_warmed(&mut self, file: &DataFile, bytes: u64, limit_bytes: u64) -> Option<Vec<Arc<Entry>>> {
        let older = self.older(file.key);
        let is_kept = self.keeps(file.key.ino);
        let Index { slots, policy, planner, warmings, .. } = self;
        let bytes_of = |key: CacheKey| slots.get(&key).map_or(0, |slot| slot.stored_bytes);
        let older_bytes: u64 = older.iter().map(|&key| bytes_of(key)).sum();
        let missing = (self.used_bytes + bytes).saturating_sub(limit_bytes + older_bytes);
        let wanted = Wanted { key: file.key, bytes, place: None, urgency: Urgency::Ahead };
        let stays =
            |key: CacheKey| slots.get(&key).is_some_and(Slot::stays) || warmings.name(key) || older.contains(&key);
        let victims = if is_kept {
            enough(policy.candidates().take(CANDIDATES_MAX).filter(|&key| !stays(key)), missing, bytes_of)
        } else {
            planner.victims(&**policy, &wanted, missing, &bytes_of, &stays)
        };
        let evicted = older.into_iter().chain(victims?);
        Some(evicted.filter_map(|victim| self.take(victim)).map(|slot| slot.entry).collect())
    }
}

fn bytes_of(entry: &Entry, run: &Range<u32>) -> u64 {
    let range = entry.bytes_of(run);
    range.end - range.start
}
