//! The journal of small shards: one append makes a put durable, instead of an fsync of its file and one of its folder.
//!
//! A put writes its shard file without an fsync, appends a record with the file's bytes to the journal, and takes its name
//! when the record is durable. Puts that wait share one write and one fdatasync. A segment that is full, or has held
//! records for some seconds, is *checkpointed* in the background: its shard files are fsynced, and then it may be used
//! again. A start [replays](replay) what was not checkpointed.
//!
//! The rule: while a file that is not durable has its name, a live segment holds its bytes. Where there is no free
//! segment nothing waits for one: the put is made durable without the journal.

mod checkpoint;
#[cfg(test)]
mod journal_test;
mod record;
mod replay;
mod segment;

pub use checkpoint::{close, start_worker};
pub use record::Record;
pub use replay::replay;

use super::durable::Durable;
use record::{Change, Epoch, PAGE_BYTES, Place};
use segment::Segment;
use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use torchfs_core::{Error, Kind, Result, ShardId};

/// Shards up to this size go through the journal. They are written twice, which costs less than the fsyncs it saves up to
/// about this size.
pub const JOURNALED_SHARD_BYTES_MAX: usize = 64 * 1024;

/// How long a put or delete waits for the journal to forget a shard. A checkpoint takes some tens of milliseconds.
const FORGET_DEADLINE: Duration = Duration::from_secs(5);

/// How large a journal is and when it is checkpointed.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of one segment: 120 shards of 64 KiB.
    pub segment_bytes: u64,
    /// Segments used in turn.
    pub segments: u64,
    /// A segment with a record this old is checkpointed though it is not full, so that a restart has little to replay.
    pub age_max: Duration,
}

impl Default for Shape {
    fn default() -> Self {
        Shape { segment_bytes: 8 << 20, segments: 2, age_max: Duration::from_secs(5) }
    }
}

/// The journal of one store.
#[derive(Debug)]
pub struct Journal {
    shape: Shape,
    state: Mutex<State>,
    /// A round is finished.
    written: Condvar,
    /// There may be work for the worker.
    work: Condvar,
    /// A segment has forgotten its shards.
    forgotten: Condvar,
    /// Held by whoever checkpoints or makes segments.
    checkpointing: Mutex<()>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

/// Where the segments come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not made yet: no small shard has come.
    Absent,
    /// The worker is to make them.
    Wanted,
    /// They are there.
    Ready,
    /// There will be none until the next start: no room, or the store stops.
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// Holds nothing that counts.
    Free,
    /// Takes records.
    Active,
    /// Full or old; to be checkpointed.
    Sealed,
}

#[derive(Debug)]
struct Slot {
    segment: Arc<Segment>,
    epoch: Epoch,
    used: Use,
    /// Where the next record goes.
    end: u64,
    records: u32,
    /// Records whose change is not made in `data/` yet.
    unsettled: usize,
    /// The last change of every shard with a record.
    shards: HashMap<ShardId, Change>,
    /// When it got its first record.
    since: Option<Instant>,
}

/// Records collected for one write, all of one segment. A round writes what was collected while the round before it ran.
#[derive(Debug, Default)]
struct Batch {
    slot: usize,
    at: u64,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    slots: Vec<Slot>,
    active: Option<usize>,
    batch: Batch,
    /// Memory for the batch after this one.
    spare: Vec<u8>,
    collecting: u64,
    written: u64,
    writing: bool,
    /// Somebody waits for a shard to be forgotten.
    hurry: bool,
}

/// A durable record whose change is about to be made in `data/`. Dropped when it is made, or will not be.
#[derive(Debug)]
pub struct Recorded<'a> {
    journal: &'a Journal,
    slot: usize,
}

enum Room {
    In(usize),
    AfterRound,
    Nowhere,
}

impl Journal {
    /// A journal on these segments, each free for its epoch; with none of them, they are made when they are needed.
    #[must_use]
    pub fn new(shape: Shape, segments: Vec<(Segment, Epoch)>) -> Self {
        let phase = if segments.is_empty() { Phase::Absent } else { Phase::Ready };
        let state = State {
            phase,
            slots: segments.into_iter().map(|(segment, epoch)| Slot::free(Arc::new(segment), epoch)).collect(),
            active: None,
            batch: Batch::default(),
            spare: Vec::new(),
            collecting: 1,
            written: 0,
            writing: false,
            hurry: false,
        };
        Journal {
            shape,
            state: Mutex::new(state),
            written: Condvar::new(),
            work: Condvar::new(),
            forgotten: Condvar::new(),
            checkpointing: Mutex::default(),
            worker: Mutex::default(),
        }
    }

    /// Makes a record durable, together with those of everyone else who waits; `None` if there is no free segment. For
    /// changes of one shard the caller sees to their order. Blocking.
    ///
    /// # Errors
    /// `Io` if this write or an earlier fsync failed.
    pub fn append(&self, durable: &Durable, record: &Record<'_>) -> Result<Option<Recorded<'_>>> {
        durable.check()?;
        let mut state = self.state();
        let slot = loop {
            match state.room(record.padded_bytes() as u64, &self.shape) {
                Room::In(slot) => break slot,
                Room::AfterRound => state = self.round(state, durable),
                Room::Nowhere => {
                    self.work.notify_one();
                    return Ok(None);
                }
            }
        };
        let mine = state.collecting;
        if state.push(slot, record) {
            // The first record of a segment: its age counts from now.
            self.work.notify_one();
        }
        let recorded = Recorded { journal: self, slot };
        while state.written < mine {
            state = self.round(state, durable);
        }
        drop(state);
        durable.check()?;
        Ok(Some(recorded))
    }

    /// Whether the last change of the shard that a start would replay is a put.
    #[must_use]
    pub fn would_put(&self, shard: ShardId) -> bool {
        self.state().last(shard) == Some(Change::Put)
    }

    /// Waits until a start would not delete this shard. Blocking.
    ///
    /// # Errors
    /// See [`Journal::forget`].
    pub fn forget_delete(&self, shard: ShardId) -> Result<()> {
        let is_deleted = self.state().last(shard) == Some(Change::Delete);
        if is_deleted { self.forget(shard) } else { Ok(()) }
    }

    /// Waits until no live segment names the shard. Blocking.
    ///
    /// # Errors
    /// `Timeout` if the checkpoints do not come to an end.
    pub fn forget(&self, shard: ShardId) -> Result<()> {
        let begin = Instant::now();
        let mut state = self.state();
        while state.last(shard).is_some() {
            let left = FORGET_DEADLINE.saturating_sub(begin.elapsed());
            if left.is_zero() {
                let message =
                    format!("shard {shard} is still in the journal after {FORGET_DEADLINE:?}: try again later");
                return Err(Error::new(Kind::Timeout, message));
            }
            state.hurry = true;
            self.work.notify_one();
            let waited = self.forgotten.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// No more records; the worker ends after what it is doing.
    pub fn stop(&self) {
        let mut state = self.state();
        state.phase = Phase::Off;
        state.seal();
        drop(state);
        self.work.notify_one();
    }

    /// Waits for the round that is under way, or makes the next one.
    fn round<'a>(&'a self, state: MutexGuard<'a, State>, durable: &Durable) -> MutexGuard<'a, State> {
        match state.writing {
            true => self.written.wait(state).unwrap_or_else(PoisonError::into_inner),
            false => self.write(state, durable),
        }
    }

    fn write<'a>(&'a self, mut state: MutexGuard<'a, State>, durable: &Durable) -> MutexGuard<'a, State> {
        state.writing = true;
        let this = state.collecting;
        state.collecting += 1;
        let spare = std::mem::take(&mut state.spare);
        let mut batch = std::mem::take(&mut state.batch);
        state.batch.bytes = spare;
        let segment = state.slots[batch.slot].segment.clone();
        drop(state);
        // Whoever waits for this round asks `durable` whether it came to a good end.
        let _ = durable.write(segment.path(), || segment.append(&batch.bytes, batch.at));
        let mut state = self.state();
        batch.bytes.clear();
        state.spare = batch.bytes;
        state.writing = false;
        state.written = this;
        self.written.notify_all();
        state
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    fn free(segment: Arc<Segment>, epoch: Epoch) -> Self {
        Slot {
            segment,
            epoch,
            used: Use::Free,
            end: PAGE_BYTES as u64,
            records: 0,
            unsettled: 0,
            shards: HashMap::new(),
            since: None,
        }
    }
}

impl State {
    /// Where a record of this size can go.
    fn room(&mut self, bytes: u64, shape: &Shape) -> Room {
        match self.phase {
            Phase::Ready => {}
            Phase::Absent => {
                self.phase = Phase::Wanted;
                return Room::Nowhere;
            }
            Phase::Wanted | Phase::Off => return Room::Nowhere,
        }
        if PAGE_BYTES as u64 + bytes > shape.segment_bytes {
            return Room::Nowhere;
        }
        if self.active.is_some_and(|slot| self.slots[slot].end + bytes > shape.segment_bytes) {
            self.seal();
        }
        let Some(slot) = self.active.or_else(|| self.begin()) else {
            return Room::Nowhere;
        };
        match self.batch.bytes.is_empty() || self.batch.slot == slot {
            true => Room::In(slot),
            false => Room::AfterRound,
        }
    }

    /// Takes the next free segment.
    fn begin(&mut self) -> Option<usize> {
        let free = (0..self.slots.len()).filter(|&slot| self.slots[slot].used == Use::Free);
        let next = free.min_by_key(|&slot| self.slots[slot].epoch)?;
        self.slots[next].used = Use::Active;
        self.active = Some(next);
        self.active
    }

    /// The active segment takes no more records.
    fn seal(&mut self) {
        if let Some(slot) = self.active.take() {
            let is_used = self.slots[slot].records > 0;
            self.slots[slot].used = if is_used { Use::Sealed } else { Use::Free };
        }
    }

    /// Adds a record to the batch; whether it is the first of its segment.
    fn push(&mut self, at: usize, record: &Record<'_>) -> bool {
        let slot = &mut self.slots[at];
        if self.batch.bytes.is_empty() {
            (self.batch.slot, self.batch.at) = (at, slot.end);
        }
        record.encode(Place { epoch: slot.epoch, index: slot.records }, &mut self.batch.bytes);
        slot.end += record.padded_bytes() as u64;
        slot.records += 1;
        slot.unsettled += 1;
        slot.shards.insert(record.shard(), record.change());
        let is_first = slot.since.is_none();
        slot.since.get_or_insert_with(Instant::now);
        is_first
    }

    /// The last change of a shard in the live segments.
    fn last(&self, shard: ShardId) -> Option<Change> {
        let named = self.slots.iter().filter_map(|slot| Some((slot.epoch, *slot.shards.get(&shard)?)));
        named.max_by_key(|(epoch, _)| *epoch).map(|(_, change)| change)
    }

    fn next_epoch(&self) -> Epoch {
        self.slots.iter().map(|slot| slot.epoch).max().map_or(Epoch(1), Epoch::next)
    }
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        let mut state = self.journal.state();
        let slot = &mut state.slots[self.slot];
        slot.unsettled -= 1;
        let is_due = slot.unsettled == 0 && slot.used == Use::Sealed;
        drop(state);
        if is_due {
            self.journal.work.notify_one();
        }
    }
}
