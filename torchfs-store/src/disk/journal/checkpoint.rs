//! Checkpoints: what a segment names is made durable where it belongs, and the segment may be used again.
//!
//! One thread per store does it, with a few more while it waits for the disk. It ends with the store.

use super::record::{Change, Epoch};
use super::segment::Segment;
use super::{Journal, Phase, Slot, Use};
use crate::disk::Inner;
use crate::disk::folder::{Group, make_folder};
use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};
use torchfs_core::{Error, IoContext, Kind, Result, ShardId};
use tracing::{info, warn};

/// Files fsynced at once: ext4 then puts several into one commit, which halves the time of a checkpoint.
const SYNCS_AT_ONCE: usize = 4;

/// A journal takes at most this part of the room that is left when it is made.
const ROOM_PARTS: u64 = 8;

/// How long after a checkpoint that could not be made the next try is, such as one without file descriptors.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    Make,
    Checkpoint,
}

/// Starts the thread that looks after the journal of a store until the store is closed or dropped.
///
/// # Errors
/// Of the operating system.
pub fn start_worker(inner: &Arc<Inner>) -> Result<()> {
    let (journal, store) = (inner.journal.clone(), Arc::downgrade(inner));
    let spawned = std::thread::Builder::new().name("journal".to_owned()).spawn(move || run(&journal, &store));
    let worker = spawned.io(|| "start the journal's thread")?;
    *inner.journal.worker.lock().unwrap_or_else(PoisonError::into_inner) = Some(worker);
    Ok(())
}

fn run(journal: &Journal, store: &Weak<Inner>) {
    while let Some(work) = journal.next_work() {
        let Some(inner) = store.upgrade() else { return };
        let root = inner.folder.root().display();
        match work {
            Work::Make => {
                if let Err(error) = make(&inner) {
                    warn!(%error, "small shards in {root} do without a journal until the next start");
                    return journal.stop();
                }
            }
            Work::Checkpoint => match checkpoint_sealed(&inner) {
                Ok(()) => {}
                // Said when it happened; what is in the journal stays there for the next start.
                Err(_) if inner.durable.poisoned().is_some() => return,
                Err(error) => {
                    warn!(%error, "the journal in {root} is not checkpointed; the next try is in a moment");
                    drop(inner);
                    journal.pause();
                }
            },
        }
    }
}

/// Checkpoints everything, ends the worker and closes the segments: nothing is written after, and the next start has nothing
/// to replay. For a store that changes no more.
///
/// # Errors
/// Of the operating system; what was not checkpointed stays in the journal.
pub fn close(inner: &Inner) -> Result<()> {
    inner.journal.stop();
    let done = checkpoint_all(inner);
    let worker = inner.journal.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
    if worker.is_some_and(|worker| worker.join().is_err()) {
        return Err(broken_off());
    }
    inner.journal.state().slots.clear();
    done
}

/// Checkpoints what is in the journal now.
///
/// # Errors
/// Of the operating system; what was not checkpointed stays in the journal.
pub fn checkpoint_all(inner: &Inner) -> Result<()> {
    inner.journal.state().seal();
    checkpoint_sealed(inner)
}

impl Journal {
    /// Waits for work; `None` when there will be none.
    fn next_work(&self) -> Option<Work> {
        let mut state = self.state();
        loop {
            match state.phase {
                Phase::Off => return None,
                Phase::Wanted => return Some(Work::Make),
                Phase::Absent | Phase::Ready => {}
            }
            let left = state.active.and_then(|slot| state.slots[slot].since);
            let left = left.map(|since| self.shape.age_max.saturating_sub(since.elapsed()));
            if std::mem::take(&mut state.hurry) || left.is_some_and(|left| left.is_zero()) {
                state.seal();
            }
            if state.slots.iter().any(|slot| slot.used == Use::Sealed && slot.unsettled == 0) {
                return Some(Work::Checkpoint);
            }
            state = match left {
                Some(left) if !left.is_zero() => {
                    self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                _ => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Waits before another try, unless the store is closed meanwhile.
    fn pause(&self) {
        let begin = Instant::now();
        let mut state = self.state();
        while state.phase != Phase::Off && begin.elapsed() < RETRY_PAUSE {
            let left = RETRY_PAUSE.saturating_sub(begin.elapsed());
            state = self.work.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// The oldest segment that can be checkpointed, with what it names.
    fn sealed(&self) -> Option<(usize, Arc<Segment>, HashMap<ShardId, Change>)> {
        let state = self.state();
        let slots = state.slots.iter().enumerate();
        let due = slots.filter(|(_, slot)| slot.used == Use::Sealed && slot.unsettled == 0);
        let (at, slot) = due.min_by_key(|(_, slot)| slot.epoch)?;
        Some((at, slot.segment.clone(), slot.shards.clone()))
    }

    fn free(&self, at: usize, epoch: Epoch) {
        let mut state = self.state();
        let slot = &mut state.slots[at];
        *slot = Slot::free(slot.segment.clone(), epoch);
        drop(state);
        self.forgotten.notify_all();
    }
}

/// Checkpoints the segments that are due, the oldest first.
fn checkpoint_sealed(inner: &Inner) -> Result<()> {
    let journal = &inner.journal;
    let _alone = journal.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some((at, segment, shards)) = journal.sealed() {
        inner.durable.check()?;
        sync_shards(inner, &shards)?;
        let epoch = journal.state().next_epoch();
        inner.durable.write(segment.path(), || segment.reset(epoch))?;
        journal.free(at, epoch);
    }
    Ok(())
}

/// Makes shard files and names durable, and the absence of those deleted.
fn sync_shards(inner: &Inner, shards: &HashMap<ShardId, Change>) -> Result<()> {
    let put: Vec<ShardId> =
        shards.iter().filter(|(_, change)| **change == Change::Put).map(|(&shard, _)| shard).collect();
    let part = put.len().div_ceil(SYNCS_AT_ONCE).max(1);
    std::thread::scope(|scope| {
        let lanes: Vec<_> = put.chunks(part).map(|some| scope.spawn(|| sync_files(inner, some))).collect();
        let ended = lanes.into_iter().map(|lane| lane.join().unwrap_or_else(|_| Err(broken_off())));
        ended.collect::<Result<()>>()
    })?;
    let groups: BTreeSet<Group> = shards.keys().map(|shard| Group::of(shard.stripe)).collect();
    for group in groups {
        inner.durable.sync_names(inner.folder.group(group))?;
    }
    // A group that became empty may have been removed, and with it the only trace of a deletion.
    inner.durable.sync_names(inner.folder.data())
}

fn sync_files(inner: &Inner, shards: &[ShardId]) -> Result<()> {
    for &shard in shards {
        let path = inner.folder.shard(shard);
        match File::open(&path) {
            Ok(file) => inner.durable.write(&path, || file.sync_data())?,
            // Deleted since; the folder's fsync makes that durable.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io(format!("open {}", path.display()), error)),
        }
    }
    Ok(())
}

/// Makes the segments, unless they would take too much of what room there is.
fn make(inner: &Inner) -> Result<()> {
    let journal = &inner.journal;
    let _alone = journal.checkpointing.lock().unwrap_or_else(PoisonError::into_inner);
    let shape = journal.shape;
    if journal.state().phase != Phase::Wanted {
        return Ok(());
    }
    let usage = inner.space.usage()?;
    if usage.capacity_bytes.saturating_sub(usage.used_bytes) / ROOM_PARTS < shape.segments * shape.segment_bytes {
        info!("{} has little room: small shards do without a journal", inner.folder.root().display());
        journal.state().phase = Phase::Off;
        return Ok(());
    }
    make_folder(&inner.folder.journal())?;
    let mut slots = Vec::new();
    for number in 0..shape.segments {
        let epoch = Epoch(number + 1);
        let segment = Segment::make(&inner.folder.segment(number), shape.segment_bytes, epoch)?;
        slots.push(Slot::free(Arc::new(segment), epoch));
    }
    let mut state = journal.state();
    // Closed meanwhile: the next start finds them.
    if state.phase == Phase::Wanted {
        state.slots = slots;
        state.phase = Phase::Ready;
    }
    Ok(())
}

fn broken_off() -> Error {
    Error::new(Kind::Io, "a checkpoint of the journal broke off")
}
