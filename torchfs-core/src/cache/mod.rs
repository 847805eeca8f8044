//! A disk cache of whole files that never change: [`Cache`].
//!
//! Content is named by inode and version, so nothing in the cache is ever out of date; losing any of it loses nothing. A
//! file lies there byte for byte, so that once it is complete it can be handed to the kernel as it is. It is useful
//! without a cluster too, over any [`ByteSource`]; a [`Prefetcher`] fills it ahead from any [`BatchSource`].
//!
//! The rules: each byte is fetched once, however many want it; at most the given number of bytes is kept, and 5 % of the
//! disk (at most 1 GiB) are left free; what is open is not removed; what does not fit, or cannot be written, is read
//! through; after a restart nothing is served that its checksum does not prove. Several processes may use one folder: each
//! keeps to its own limit, and copies what another has whole instead of fetching it.

mod ahead;
mod disk;
mod entry;
mod epochs;
mod flight;
mod index_file;
mod keep;
mod pinned;
mod pins;
pub mod policy;
mod prefetcher;
mod siblings;
mod warm;
mod writers;

pub use ahead::{Coming, Limits};
pub(crate) use disk::seats;
pub use epochs::EpochStats;
pub use pinned::Pinned;
pub use prefetcher::{BatchSource, Prefetcher};
pub use warm::{Warming, Warmth};

use crate::error::Result;
use crate::ids::{ClusterId, InodeId, Version};
use crate::prefetch::{DataFile, Planner, Prefetch};
use ahead::Pace;
use async_trait::async_trait;
use bytes::Bytes;
use disk::Disk;
use entry::Entry;
use epochs::{Epochs, Found};
use index_file::Record;
use keep::{Keep, Kept};
use pins::PinFile;
use policy::{CacheEvent, EvictionPolicy, Plan};
use serde::{Deserialize, Serialize};
use siblings::Siblings;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use warm::Warmings;
use writers::Writers;

/// The unit in which presence is known and checksums are kept. Part of the index format.
pub const CHUNK_BYTES: u64 = 1024 * 1024;

/// How often files are removed to get room on the disk, before it is taken to be full of other things.
const ROOM_ROUNDS_MAX: u32 = 4;

/// Chunks of which readers have the bytes while they are still written to the disk.
const UNWRITTEN_UNITS_MAX: usize = 32;

/// This part of the limit may be on the disk beyond it, in files that left the cache and wait to be others.
const SPARE_PART: u64 = 16;

/// What a cached file is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey {
    /// The file.
    pub ino: InodeId,
    /// Which content of it.
    pub version: Version,
}

/// Where bytes come from that are not in the cache.
#[async_trait]
pub trait ByteSource: Debug + Send + Sync + 'static {
    /// All bytes of a range that lies within the file.
    ///
    /// # Errors
    /// If they cannot be had; the reader is told.
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes>;
}

/// What the cache has done since it was opened, and how full it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStats {
    /// Reads that were answered from the disk alone.
    pub hits: u64,
    /// Reads that had to wait for at least one fetch.
    pub misses: u64,
    /// Bytes given to readers from the disk.
    pub cache_bytes: u64,
    /// Bytes fetched.
    pub storage_bytes: u64,
    /// Bytes copied from another process's cache in the same folder.
    #[serde(default)]
    pub sibling_bytes: u64,
    /// Bytes fetched that could not be kept: no room, the file is larger than the cache, or the disk refused.
    pub unkept_bytes: u64,
    /// Files removed to make room, or because a newer version of them came.
    pub evictions: u64,
    /// Files that were fetched ahead, or begun to be.
    #[serde(default)]
    pub ahead_files: u64,
    /// Of these, those that left before they were opened.
    #[serde(default)]
    pub ahead_wasted: u64,
    /// Files held, in part or whole.
    pub files: u64,
    /// Bytes held.
    pub used_bytes: u64,
    /// Bytes that may be held.
    pub limit_bytes: u64,
    /// Of the files held, those that are pinned.
    #[serde(default)]
    pub pinned_files: u64,
    /// Of the bytes held, those of pinned files.
    #[serde(default)]
    pub pinned_bytes: u64,
}

/// A cache in a folder. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Cache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    disk: Disk,
    pins: PinFile,
    siblings: Siblings,
    limit_bytes: u64,
    index: Mutex<Index>,
    counters: Counters,
    /// For bytes that readers have and the disk not yet.
    unwritten: Arc<Semaphore>,
    writers: Arc<Writers>,
    /// Held while files are removed because the disk is full.
    making_room: Mutex<()>,
    /// Of files that have their room and will take the places of others on the disk.
    coming_bytes: AtomicU64,
    /// Something may be to be fetched ahead.
    wanted: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Counters {
    hits: AtomicU64,
    misses: AtomicU64,
    cache_bytes: AtomicU64,
    storage_bytes: AtomicU64,
    sibling_bytes: AtomicU64,
    unkept_bytes: AtomicU64,
    evictions: AtomicU64,
}

fn count(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// How much of [`UNWRITTEN_UNITS_MAX`] so many bytes are.
fn unwritten_units(bytes: usize) -> u32 {
    ((bytes as u64).div_ceil(CHUNK_BYTES) as u32).clamp(1, UNWRITTEN_UNITS_MAX as u32)
}

/// What is held and how much.
#[derive(Debug)]
struct Index {
    slots: BTreeMap<CacheKey, Slot>,
    policy: Box<dyn EvictionPolicy>,
    /// What is known of the future.
    planner: Planner,
    epochs: Epochs,
    ahead: Ahead,
    pace: Pace,
    warmings: Warmings,
    keep: Keep,
    kept: Kept,
    used_bytes: u64,
    /// The part of it that is open or kept, and cannot be removed.
    staying_bytes: u64,
}

/// What was fetched ahead, or is being, and nobody has opened since.
#[derive(Debug, Default)]
struct Ahead {
    files: usize,
    bytes: u64,
    /// How many there were in all, ...
    begun: u64,
    /// ... and how many of them left unopened.
    wasted: u64,
}

impl Ahead {
    fn add(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
        self.begun += 1;
    }

    fn remove(&mut self, bytes: u64) {
        self.files -= 1;
        self.bytes -= bytes;
    }
}

#[derive(Debug)]
struct Slot {
    entry: Arc<Entry>,
    pins: u32,
    /// Bytes that are there, or that room is kept for.
    stored_bytes: u64,
    /// Whether it [stays](Keep) when nobody has it open.
    is_kept: bool,
    brought: Brought,
}

/// Why a file is in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Brought {
    /// Somebody opened it.
    ByReader,
    /// It was fetched ahead, and nobody has opened it since.
    Ahead,
    /// It was [warmed](Cache::warm), and nobody has opened it since.
    Warmed,
}

impl Slot {
    /// Whether it cannot be removed now.
    fn stays(&self) -> bool {
        self.pins > 0 || self.is_kept
    }
}

impl Cache {
    /// Takes the folder, or a part of it if others use it too, and finds again what was whole when it was last used for this
    /// cluster; removes the rest. Blocks on the disk.
    ///
    /// # Errors
    /// `Conflict` if sixteen processes use the folder, `InvalidInput` if it holds something else, or what the operating
    /// system reports.
    pub fn open(
        dir: &Path,
        limit_bytes: u64,
        cluster: ClusterId,
        policy: Box<dyn EvictionPolicy>,
        prefetch: Prefetch,
    ) -> Result<Cache> {
        let (disk, records) = Disk::open(dir, cluster)?;
        let (planner, epochs) = (Planner::new(prefetch), Epochs::default());
        let (slots, ahead, pace) = (BTreeMap::new(), Ahead::default(), Pace::default());
        let (warmings, kept) = (Warmings::default(), Kept::default());
        let pins = PinFile::new(disk.dir().to_owned(), cluster);
        let keep = Keep::unlisted(&pins.read());
        let (used_bytes, staying_bytes) = (0, 0);
        let mut index =
            Index { slots, policy, planner, epochs, ahead, pace, warmings, keep, kept, used_bytes, staying_bytes };
        records.into_iter().for_each(|record| index.add_found(record));
        let (counters, index) = (Counters::default(), Mutex::new(index));
        let unwritten = Arc::new(Semaphore::new(UNWRITTEN_UNITS_MAX));
        let siblings = Siblings::new(dir, disk.dir(), cluster);
        let wanted = tokio::sync::Notify::new();
        let writers = Arc::default();
        let (coming_bytes, making_room) = (AtomicU64::new(0), Mutex::default());
        let shared = Arc::new(Shared {
            disk,
            pins,
            siblings,
            limit_bytes,
            index,
            counters,
            unwritten,
            writers,
            making_room,
            coming_bytes,
            wanted,
        });
        let (evicted, _) = shared.index().make_room(0, limit_bytes);
        shared.remove(&evicted);
        Ok(Cache { shared })
    }

    /// The folder that it has for itself: the one that was given or, if others use that too, one inside.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.shared.disk.dir()
    }

    /// Opens a file's place in the cache, which is kept as long as the result lives. `None` if the file is too large to be
    /// cached at all, or empty, or if this version is known here with another length: then it is of another history of the
    /// cluster, and must not be mixed with what is read now.
    #[must_use]
    pub fn pin(&self, key: CacheKey, len: u64) -> Option<Pinned> {
        if len == 0 || len > self.shared.limit_bytes {
            return None;
        }
        let mut index = self.shared.index();
        let entry = match index.slots.get(&key).map(|slot| slot.entry.clone()) {
            Some(entry) if entry.len != len => return None,
            Some(entry) => {
                index.brought_by_reader(key);
                index.policy.note(CacheEvent::Used(key));
                entry
            }
            None => {
                let entry = Arc::new(Entry::empty(key, len, self.shared.disk.new_name()));
                index.insert(&entry, Brought::ByReader);
                entry
            }
        };
        index.pin(&entry);
        drop(index);
        Some(Pinned::new(self.shared.clone(), entry))
    }

    /// Removes files that are not open until so many bytes are freed, as far as there are any; answers whether there was
    /// one. For others who find the disk full. Blocks on the disk.
    pub(crate) fn free_disk(&self, bytes: u64) -> bool {
        self.shared.evict(bytes) > 0
    }

    /// Counts what a reader waited for that the cache does not take, because it is larger, say.
    pub(crate) fn passed_by(&self, bytes: u64, waited: Duration) {
        count(&self.shared.counters.misses, 1);
        count(&self.shared.counters.unkept_bytes, bytes);
        self.shared.count_fetched(bytes);
        self.shared.index().epochs.stalled(waited);
    }

    /// Returns when all that readers have is on the disk, or is not kept.
    #[cfg(test)]
    pub(crate) async fn settle(&self) {
        drop(self.shared.unwritten.acquire_many(UNWRITTEN_UNITS_MAX as u32).await);
    }

    /// What it has done and how full it is.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let counters = &self.shared.counters;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let index = self.shared.index();
        CacheStats {
            hits: load(&counters.hits),
            misses: load(&counters.misses),
            cache_bytes: load(&counters.cache_bytes),
            storage_bytes: load(&counters.storage_bytes),
            sibling_bytes: load(&counters.sibling_bytes),
            unkept_bytes: load(&counters.unkept_bytes),
            evictions: load(&counters.evictions),
            ahead_files: index.ahead.begun,
            ahead_wasted: index.ahead.wasted,
            files: index.slots.len() as u64,
            used_bytes: index.used_bytes,
            limit_bytes: self.shared.limit_bytes,
            pinned_files: index.kept.files,
            pinned_bytes: index.kept.bytes,
        }
    }
}

impl Shared {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the files of evicted entries. Blocks on the disk.
    fn remove(&self, evicted: &[Arc<Entry>]) {
        count(&self.counters.evictions, evicted.len() as u64);
        // What is coming is not there yet, and what left for it may be until then.
        let spare_bytes_max = self.limit_bytes / SPARE_PART + self.coming_bytes.load(Ordering::Relaxed);
        for entry in evicted {
            if entry.state().is_handed_out {
                self.disk.remove(entry.name);
            } else {
                self.disk.spare(entry.name, entry.len, spare_bytes_max);
            }
        }
    }

    /// Removes files that are not open until so many bytes are freed, as far as there are any; answers how many were.
    fn evict(&self, bytes: u64) -> u64 {
        let (evicted, freed) = self.index().evict(bytes);
        self.remove(&evicted);
        // Those of the evicted are among them.
        self.disk.remove_spares().max(freed)
    }

    /// Sees that bytes can be written and the disk is not filled up by that. Blocks on the disk.
    fn make_disk_room(&self, bytes: u64) -> bool {
        if self.disk.missing_bytes(bytes) == 0 {
            return true;
        }
        // One after the other, or each would have files removed for the same bytes.
        let _turn = self.making_room.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..ROOM_ROUNDS_MAX {
            let missing = self.disk.missing_bytes(bytes);
            if missing == 0 || self.evict(missing) == 0 {
                return missing == 0;
            }
        }
        false
    }

    /// Notes for the next start and for others who use the folder that a file is complete. Blocks on the disk.
    fn complete(&self, record: &Record) {
        let is_cached = |record: &Record| {
            let index = self.index();
            index.slots.get(&record.key()).is_some_and(|slot| slot.entry.name == record.name)
        };
        // Without the record it is only not found.
        if let Err(error) = self.disk.complete(record, is_cached) {
            tracing::debug!(%error, "the cache's index is not kept up");
        }
    }

    /// Takes room for bytes of an open file, and says what has to be removed: what is in the way, and versions that this one
    /// replaced. `None` if there is no room even then.
    fn reserve(&self, key: CacheKey, bytes: u64) -> Option<Vec<Arc<Entry>>> {
        let mut index = self.index();
        let older = index.older(key);
        let leaving = older.iter().filter_map(|key| index.slots.get(key)).filter(|slot| slot.stays());
        let leaving_bytes: u64 = leaving.map(|slot| slot.stored_bytes).sum();
        if index.staying_bytes + bytes > self.limit_bytes + leaving_bytes {
            return None;
        }
        let mut removed: Vec<Arc<Entry>> =
            older.into_iter().filter_map(|key| index.take(key)).map(|slot| slot.entry).collect();
        removed.extend(index.make_room(bytes, self.limit_bytes).0);
        index.grow(key, bytes);
        Some(removed)
    }

    /// Bytes came from storage, for a reader or an order.
    fn count_fetched(&self, bytes: u64) {
        count(&self.counters.storage_bytes, bytes);
        self.index().epochs.fetched(bytes);
    }

    /// Gives back room that [`Shared::reserve`] took.
    fn release(&self, key: CacheKey, bytes: u64) {
        self.index().shrink(key, bytes);
    }
}

impl Index {
    fn add_found(&mut self, record: Record) {
        let (key, len) = (record.key(), record.len);
        let entry = Arc::new(Entry::found(record));
        self.insert(&entry, Brought::ByReader);
        if matches!(self.keep, Keep::AllFound)
            && let Some(slot) = self.slots.get_mut(&key)
        {
            slot.is_kept = true;
            self.kept.files += 1;
        }
        self.grow(key, len);
    }

    /// Takes in an entry of which nothing is stored yet.
    fn insert(&mut self, entry: &Arc<Entry>, brought: Brought) {
        let is_kept = self.keeps(entry.key.ino);
        self.kept.files += u64::from(is_kept);
        let slot = Slot { entry: entry.clone(), pins: 0, stored_bytes: 0, is_kept, brought };
        self.slots.insert(entry.key, slot);
        self.added(entry.key);
    }

    /// The policy learns of a new entry, and what is known of its future.
    fn added(&mut self, key: CacheKey) {
        self.policy.note(CacheEvent::Added(key));
        let plan = self.planner.plan(key);
        if plan != Plan::Unknown {
            self.policy.note(CacheEvent::Planned(key, plan));
        }
    }

    /// Somebody opens it, so it was not fetched in vain.
    fn brought_by_reader(&mut self, key: CacheKey) {
        let Some(slot) = self.slots.get_mut(&key) else { return };
        if std::mem::replace(&mut slot.brought, Brought::ByReader) == Brought::Ahead {
            self.ahead.remove(slot.entry.len);
        }
    }

    /// The slot of an entry, unless it has left the cache: its file may be in there anew.
    fn slot_of(&mut self, entry: &Arc<Entry>) -> Option<&mut Slot> {
        self.slots.get_mut(&entry.key).filter(|slot| Arc::ptr_eq(&slot.entry, entry))
    }

    fn pin(&mut self, entry: &Arc<Entry>) {
        let Some(slot) = self.slot_of(entry) else { return };
        let stayed = slot.stays();
        slot.pins += 1;
        let stored_bytes = slot.stored_bytes;
        self.staying_bytes += if stayed { 0 } else { stored_bytes };
    }

    /// Returns whether nobody has the file open any more.
    fn unpin(&mut self, entry: &Arc<Entry>) -> bool {
        let Some(slot) = self.slot_of(entry) else { return true };
        slot.pins -= 1;
        let (pins, stays, stored_bytes) = (slot.pins, slot.stays(), slot.stored_bytes);
        self.staying_bytes -= if stays { 0 } else { stored_bytes };
        pins == 0
    }

    /// Forgets an entry that nobody has open, if nothing of it could be kept: such ones would never have to give way.
    fn forget_empty(&mut self, entry: &Arc<Entry>) {
        if self.slot_of(entry).is_some_and(|slot| slot.pins == 0 && slot.stored_bytes == 0) {
            self.take(entry.key);
        }
    }

    fn grow(&mut self, key: CacheKey, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.stored_bytes += bytes;
            self.used_bytes += bytes;
            self.staying_bytes += if slot.stays() { bytes } else { 0 };
            self.kept.bytes += if slot.is_kept { bytes } else { 0 };
        }
    }

    fn shrink(&mut self, key: CacheKey, bytes: u64) {
        if let Some(slot) = self.slots.get_mut(&key) {
            slot.stored_bytes -= bytes;
            self.used_bytes -= bytes;
            self.staying_bytes -= if slot.stays() { bytes } else { 0 };
            self.kept.bytes -= if slot.is_kept { bytes } else { 0 };
        }
    }

    /// Takes entries out until `bytes` more fit.
    fn make_room(&mut self, bytes: u64, limit_bytes: u64) -> (Vec<Arc<Entry>>, u64) {
        self.evict((self.used_bytes + bytes).saturating_sub(limit_bytes))
    }

    /// Takes entries out until `bytes` are freed, or none is left; and how many were.
    fn evict(&mut self, bytes: u64) -> (Vec<Arc<Entry>>, u64) {
        let (mut evicted, mut freed) = (Vec::new(), 0);
        while freed < bytes {
            let slots = &self.slots;
            let is_pinned = |key: CacheKey| slots.get(&key).is_some_and(Slot::stays);
            let Some(victim) = self.policy.victim(&is_pinned) else { break };
            if let Some(slot) = self.take(victim) {
                freed += slot.stored_bytes;
                evicted.push(slot.entry);
            }
        }
        (evicted, freed)
    }

    /// Whether a later version of a file is there.
    fn is_replaced(&self, key: CacheKey) -> bool {
        let later =
            CacheKey { version: Version(key.version.0 + 1), ..key }..=CacheKey { version: Version(u64::MAX), ..key };
        self.slots.range(later).next().is_some()
    }

    /// The earlier versions of a file that are not open, which leave when it comes: nobody opens them again, and a file that is
    /// written to all the time must not push others out.
    fn older(&self, key: CacheKey) -> Vec<CacheKey> {
        let versions = self.slots.range(CacheKey { version: Version(0), ..key }..key);
        versions.filter(|(_, slot)| slot.pins == 0).map(|(&key, _)| key).collect()
    }

    fn take(&mut self, key: CacheKey) -> Option<Slot> {
        self.policy.note(CacheEvent::Removed(key));
        self.planner.removed(key);
        let slot = self.slots.remove(&key)?;
        if slot.brought == Brought::Ahead {
            self.epochs.wasted();
            self.ahead.wasted += 1;
            self.ahead.remove(slot.entry.len);
        }
        self.used_bytes -= slot.stored_bytes;
        self.staying_bytes -= if slot.stays() { slot.stored_bytes } else { 0 };
        if slot.is_kept {
            self.kept.files -= 1;
            self.kept.bytes -= slot.stored_bytes;
        }
        Some(slot)
    }
}

#[cfg(test)]
mod cache_test;
