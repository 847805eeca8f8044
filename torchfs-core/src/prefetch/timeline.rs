//! [`Timeline`]: the announced epochs one after the other, and how far their reader has come.
//!
//! Every entry has a *place*, counted through all epochs. Opens need not come in order: the workers of a data loader
//! interleave, begin an epoch before the last files of the one before are read, skip files, open some twice, and other
//! programs read too. So an open counts as the first entry of that file not yet read, if it lies within a window after the
//! furthest place that several opens in a row, a *head*, have come to; what stays behind the window counts as read; what lies
//! beyond it is believed only when many agree. There is a head for each worker, more or less, and what it comes to next
//! begins there. Where opens are not as expected, but keep to a later epoch, that is the one which is read.

use super::heads::{HEAD_OPENS, Heads};
use super::rivals::Rivals;
use super::schedule::{DataFile, Schedule, check_entries};
use crate::cache::CacheKey;
use crate::cache::policy::Plan;
use crate::error::Result;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

/// Opens that a head needs before the window follows it: more than happen near each other by chance.
const HEAD_RUN: u32 = 4;

/// Opens that a head beyond the window needs before it is believed that the reader has gone on there.
const JUMP_RUN: u32 = 16;

/// So many opens in a row at least, and as many as an epoch has entries, that are in no order: nobody follows it any more.
const STRAYS_MIN: u64 = 1024;

/// So many more opens that leave the order than keep it, and it is not the order of this reader.
const ASTRAY_MAX: u32 = 32;

/// An open keeps to the order if it is where a head is, or as near the furthest one as this part of the epoch.
const NEAR_PART: u64 = 32;

/// If the low end moves further than this at once, all plans count as changed.
const PASSED_MAX: u64 = 4096;

/// Marks of files instead of a place in the order.
const NEVER: u32 = u32::MAX;
const READ: u32 = u32::MAX - 1;

/// The announced epochs and how far they have been read. Besides the datasets at most 12 bytes per entry, of which there are
/// at most [`ENTRIES_MAX`](super::ENTRIES_MAX), and 4 bytes per file and epoch.
#[derive(Debug, Default)]
pub struct Timeline {
    epochs: VecDeque<Prepared>,
    /// Everything before is read or counts as read.
    low: u64,
    /// One beyond the furthest place that a head has come to.
    reached: u64,
    heads: Heads,
    rivals: Rivals,
    /// The files that were opened last.
    recent: VecDeque<CacheKey>,
    /// Opens since the last one that was expected.
    strays: u64,
    /// How many more opens have left the order lately than kept it, at most twice [`ASTRAY_MAX`].
    astray: u32,
    revision: u64,
}

/// Places from one head to the next: see [`Timeline::stretches`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The same as long as the head is.
    pub id: u64,
    /// From where the head is to where the next one is.
    pub places: Range<u64>,
}

/// How far an announced epoch is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochProgress {
    /// Its number.
    pub epoch: u64,
    /// How many entries its order has.
    pub entries: u64,
    /// How many of them were opened, or passed over.
    pub read: u64,
}

/// A [`Schedule`] with all that a [`Timeline`] computes of it, so that whoever has a timeline behind a lock need not hold the
/// lock for that.
#[derive(Debug)]
pub struct Prepared {
    schedule: Schedule,
    /// The place of its first entry.
    first: u64,
    /// Of each file of the dataset the first entry not yet read, or a mark.
    unread: Vec<u32>,
    /// Of each entry the next one of the same file, or [`READ`]. Empty if no file occurs twice.
    again: Vec<u32>,
    names_all: bool,
    /// Entries that are read.
    read: u64,
}

impl Timeline {
    /// Adds an epoch. One of the same or a higher number that was announced before is replaced: the reader starts over.
    ///
    /// # Errors
    /// `TooLarge` if there would be more than [`ENTRIES_MAX`](super::ENTRIES_MAX) entries; nothing changes then.
    pub fn announce(&mut self, schedule: impl Into<Prepared>) -> Result<()> {
        let prepared: Prepared = schedule.into();
        let schedule = &prepared.schedule;
        let stays = |epoch: &Prepared| epoch.end() > self.low && epoch.schedule.epoch() < schedule.epoch();
        let staying = self.epochs.iter().filter(|epoch| stays(epoch));
        let entries = staying.map(|epoch| epoch.schedule.order().len()).sum();
        check_entries(&format!("epoch {}", schedule.epoch()), schedule.order().len(), entries)?;
        let low = self.low;
        let unused = self.epochs.back().map_or(self.reached, |last| last.end().max(self.reached));
        self.epochs.retain(|epoch| epoch.end() > low && epoch.schedule.epoch() < schedule.epoch());
        match self.epochs.back() {
            Some(last) => self.reached = self.reached.min(last.end()),
            None => (self.low, self.reached) = (unused, unused),
        }
        let first = self.epochs.back().map_or(unused, Prepared::end);
        self.epochs.push_back(Prepared { first, ..prepared });
        self.restart();
        Ok(())
    }

    /// Forgets all that was announced.
    pub fn forget(&mut self) {
        self.low = self.epochs.back().map_or(self.low, Prepared::end);
        self.reached = self.low;
        self.epochs.clear();
        self.restart();
    }

    fn restart(&mut self) {
        self.heads.cut(self.reached);
        self.rivals.clear();
        (self.strays, self.astray) = (0, 0);
        self.revision += 1;
    }

    /// Learns that a file was opened. Returns the files whose [`Timeline::plan`] is another now, unless so many are that the
    /// [`Timeline::revision`] changes.
    pub fn opened(&mut self, key: CacheKey) -> Vec<CacheKey> {
        let mut passed = Vec::new();
        let next = self.next_place(key).filter(|&(_, place)| !self.is_opened_twice(key, place));
        let Some((epoch, place)) = next else {
            self.note_stray();
            return passed;
        };
        let run = self.heads.opened(place);
        let keeps_order = run > 1 || place.abs_diff(self.reached) <= self.epochs[epoch].entries() / NEAR_PART;
        if keeps_order {
            self.astray = self.astray.saturating_sub(1);
            self.rivals.expected();
        } else {
            self.astray = (self.astray + 1).min(2 * ASTRAY_MAX);
            if self.turn_to_rival(epoch, key) {
                return passed;
            }
        }
        if place <= self.reached + self.reorder() || run >= JUMP_RUN {
            self.strays = 0;
            self.epochs[epoch].pass(place);
            passed.push(key);
            self.recent.push_front(key);
            self.recent.truncate(HEAD_OPENS as usize);
            self.reach(place + 1, run, &mut passed);
        } else {
            self.note_stray();
        }
        passed
    }

    /// When a file is read next.
    #[must_use]
    pub fn plan(&self, key: CacheKey) -> Plan {
        let mut plan = Plan::Unknown;
        for epoch in &self.epochs {
            match epoch.mark(key) {
                NEVER => {}
                READ => plan = Plan::Read,
                at => return Plan::At(epoch.first + u64::from(at)),
            }
        }
        plan
    }

    /// The number of the epoch that an open of a file with this [plan](Timeline::plan) now belongs to: in which it is read next or, if it was
    /// read as announced, the one that is being read. `None` if no announced order names it.
    #[must_use]
    pub fn epoch_of(&self, plan: Plan) -> Option<u64> {
        match plan {
            Plan::At(place) => self.epoch_at(place).map(|epoch| epoch.schedule.epoch()),
            Plan::Read => self.epoch(),
            Plan::Unknown => None,
        }
    }

    /// The file under the version that the announced orders name it by, if they do.
    #[must_use]
    pub fn as_announced(&self, key: CacheKey) -> Option<DataFile> {
        self.epochs.iter().find_map(|epoch| epoch.schedule.dataset().as_listed(key))
    }

    /// How far each announced epoch is read, by number. One that is over goes when the next is begun.
    pub fn progress(&self) -> impl Iterator<Item = EpochProgress> + '_ {
        self.epochs.iter().map(|epoch| EpochProgress {
            epoch: epoch.schedule.epoch(),
            entries: epoch.entries(),
            read: epoch.read,
        })
    }

    /// Rises whenever any number of plans may have changed: an order was announced or forgotten, the reader jumped.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The number of the epoch that is being read: of the furthest entry that was.
    #[must_use]
    pub fn epoch(&self) -> Option<u64> {
        let at = self.epoch_at(self.reached.saturating_sub(1).max(self.low));
        at.or(self.epochs.back()).map(|epoch| epoch.schedule.epoch())
    }

    /// The number of the last epoch that is announced.
    #[must_use]
    pub fn last_epoch(&self) -> Option<u64> {
        self.epochs.back().map(|epoch| epoch.schedule.epoch())
    }

    /// The first place that may not have been read.
    #[must_use]
    pub fn low(&self) -> u64 {
        self.low
    }

    /// The places of the epoch around one of them.
    #[must_use]
    pub fn epoch_places(&self, place: u64) -> Option<Range<u64>> {
        self.epoch_at(place).map(|epoch| epoch.first..epoch.end())
    }

    /// The number of the epoch around a place, and how long all its entries are together.
    #[must_use]
    pub fn epoch_bytes(&self, place: u64) -> Option<(u64, u64)> {
        self.epoch_at(place).map(|epoch| (epoch.schedule.epoch(), epoch.schedule.bytes()))
    }

    /// How long an entry is on average.
    #[must_use]
    pub fn mean_bytes(&self) -> u64 {
        let bytes: u64 = self.epochs.iter().map(|epoch| epoch.schedule.bytes()).fold(0, u64::saturating_add);
        let entries: u64 = self.epochs.iter().map(Prepared::entries).sum();
        bytes / entries.max(1)
    }

    /// What is not read yet, with places, among these places.
    pub fn unread(&self, places: Range<u64>) -> impl Iterator<Item = (u64, DataFile)> + '_ {
        self.epochs.iter().flat_map(move |epoch| epoch.unread_of(places.clone()))
    }

    /// All places that may not be read yet, cut where heads are: each head goes on through its own stretch, and they move
    /// together. What comes first was left behind by all of them.
    ///
    /// None if opens come in another order than was announced, until they keep to it again.
    #[must_use]
    pub fn stretches(&self) -> Vec<Stretch> {
        if self.astray >= ASTRAY_MAX {
            return Vec::new();
        }
        let end = self.epochs.back().map_or(self.low, Prepared::end);
        let proven = self.heads.iter().filter(|head| head.run > 1 || self.astray < ASTRAY_MAX / 4);
        let mut heads: Vec<(u64, u64)> = proven.map(|head| (head.next, head.id)).collect();
        heads.retain(|&(next, _)| next > self.low);
        heads.push((self.low, 0));
        heads.sort_unstable();
        let ends = heads.iter().skip(1).map(|&(next, _)| next).chain([end]);
        let stretches = heads.iter().zip(ends).map(|(&(next, id), end)| Stretch { id, places: next..end });
        stretches.filter(|stretch| !stretch.places.is_empty()).collect()
    }

    fn epoch_at(&self, place: u64) -> Option<&Prepared> {
        self.epochs.iter().find(|epoch| (epoch.first..epoch.end()).contains(&place))
    }

    fn reorder(&self) -> u64 {
        self.epochs.front().map_or(0, |epoch| u64::from(epoch.schedule.reorder()))
    }

    /// The first entry of a file that is not read yet: the epoch's index and the place.
    fn next_place(&self, key: CacheKey) -> Option<(usize, u64)> {
        self.epochs.iter().enumerate().find_map(|(at, epoch)| Some((at, epoch.next(key)?)))
    }

    /// Whether it was opened just now, and the next reading is not near.
    fn is_opened_twice(&self, key: CacheKey, next: u64) -> bool {
        next > self.reached + HEAD_OPENS && self.recent.contains(&key)
    }

    /// A file was opened that is not expected where it is in this epoch. Whether a later epoch is read instead, and all before is over.
    fn turn_to_rival(&mut self, expected: usize, key: CacheKey) -> bool {
        for at in expected + 1..self.epochs.len() {
            let Some(place) = self.epochs[at].next(key) else { continue };
            if let Some(rival) = self.rivals.opened(self.epochs[at].first, place) {
                self.epochs.drain(..at);
                let epoch = &mut self.epochs[0];
                rival.opened.iter().for_each(|&place| epoch.pass(place));
                (self.low, self.reached) = (epoch.first, rival.opened.last().map_or(epoch.first, |last| last + 1));
                self.heads = rival.heads;
                self.restart();
                self.advance(&mut Vec::new());
                return true;
            }
        }
        false
    }

    /// The window follows a head that is not there by chance.
    fn reach(&mut self, next: u64, run: u32, passed: &mut Vec<CacheKey>) {
        let before = self.low;
        if run >= HEAD_RUN {
            self.reached = self.reached.max(next);
        }
        self.advance(passed);
        if self.low - before > PASSED_MAX {
            passed.clear();
            self.revision += 1;
        }
    }

    /// Moves the low end up to the first entry that is awaited, and drops epochs that are over.
    fn advance(&mut self, passed: &mut Vec<CacheKey>) {
        let behind = self.reached.saturating_sub(self.reorder());
        for epoch in &mut self.epochs {
            while (epoch.first..epoch.end()).contains(&self.low) {
                let entry = (self.low - epoch.first) as u32;
                if epoch.is_unread(entry) {
                    if self.low >= behind {
                        break;
                    }
                    epoch.pass(self.low);
                    passed.push(epoch.file(entry).key);
                }
                self.low += 1;
            }
        }
        self.drop_finished();
    }

    /// An epoch that is over is kept until the next is begun, so that what was read in it is known.
    fn drop_finished(&mut self) {
        while self.epochs.len() > 1 && self.epochs[0].end() <= self.low && self.reached > self.epochs[1].first {
            let (over, next) = (self.epochs.pop_front(), &self.epochs[0]);
            let same = |over: &Prepared| Arc::ptr_eq(over.schedule.dataset(), next.schedule.dataset());
            if !(next.names_all && over.as_ref().is_some_and(same)) {
                self.revision += 1;
            }
        }
    }

    /// An open that is not expected changes nothing. After too many of them nobody follows the order any more.
    fn note_stray(&mut self) {
        self.strays += 1;
        let entries = self.epochs.front().map_or(0, Prepared::entries);
        if entries > 0 && self.strays > STRAYS_MIN.max(entries) {
            self.forget();
        }
    }
}

impl From<Schedule> for Prepared {
    /// Takes some tenths of a second for ten million entries.
    fn from(schedule: Schedule) -> Prepared {
        let mut unread = vec![NEVER; schedule.dataset().files().len()];
        let (mut again, mut named) = (Vec::new(), 0);
        for (entry, &file) in schedule.order().iter().enumerate().rev() {
            let unread = &mut unread[file as usize];
            if *unread == NEVER {
                named += 1;
            } else {
                if again.is_empty() {
                    again = vec![READ; schedule.order().len()];
                }
                again[entry] = *unread;
            }
            *unread = entry as u32;
        }
        let names_all = named == unread.len();
        Prepared { schedule, first: 0, unread, again, names_all, read: 0 }
    }
}

impl Prepared {
    fn entries(&self) -> u64 {
        self.schedule.order().len() as u64
    }

    fn end(&self) -> u64 {
        self.first + self.entries()
    }

    fn file(&self, entry: u32) -> DataFile {
        self.schedule.dataset().files()[self.schedule.order()[entry as usize] as usize]
    }

    fn mark(&self, key: CacheKey) -> u32 {
        self.schedule.dataset().index_of(key).map_or(NEVER, |file| self.unread[file as usize])
    }

    fn next(&self, key: CacheKey) -> Option<u64> {
        let mark = self.mark(key);
        (mark < READ).then(|| self.first + u64::from(mark))
    }

    fn is_unread(&self, entry: u32) -> bool {
        // The marks are greater than any entry.
        self.unread[self.schedule.order()[entry as usize] as usize] <= entry
    }

    /// The first unread entry of its file is read.
    fn pass(&mut self, place: u64) {
        self.read += 1;
        let entry = (place - self.first) as usize;
        let file = self.schedule.order()[entry] as usize;
        self.unread[file] = self.again.get(entry).copied().unwrap_or(READ);
    }

    fn unread_of(&self, places: Range<u64>) -> impl Iterator<Item = (u64, DataFile)> + '_ {
        let (start, end) = (places.start.max(self.first), places.end.min(self.end()));
        let entries = start.saturating_sub(self.first) as u32..end.saturating_sub(self.first) as u32;
        let unread = entries.filter(|&entry| self.is_unread(entry));
        unread.map(|entry| (self.first + u64::from(entry), self.file(entry)))
    }
}

#[cfg(test)]
#[path = "timeline_test.rs"]
mod tests;
