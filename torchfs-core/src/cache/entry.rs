//! [`Entry`]: one file in the cache, what of it is there and what is under way; [`Pin`] keeps it there.

use super::ahead::{Delivered, received};
use super::disk;
use super::flight::{Flight, Flights, Landed, Run};
use super::index_file::Record;
use super::{ByteSource, CHUNK_BYTES, CacheKey, Shared, count, unwritten_units};
use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Files of up to this many chunks are fetched whole. [`FORESEEN_BYTES_MAX`](crate::prefetch::FORESEEN_BYTES_MAX) rests on it.
const WHOLE_CHUNKS_MAX: u32 = 4;

/// Most chunks fetched at a time for a sequential reader: a stripe of four full shards.
pub(super) const RUN_CHUNKS_MAX: u32 = 16;

/// Chunks of a full shard. Larger runs end where one ends.
const RUN_ALIGN_CHUNKS: u32 = 4;

/// A file in the cache.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: CacheKey,
    pub len: u64,
    pub name: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
pub(super) struct State {
    /// Open while it is pinned, from the first use on.
    pub file: Option<Arc<File>>,
    pub chunks: Vec<Chunk>,
    pub flights: Flights,
    /// Others may have the file open, or mapped, when it has left the cache.
    pub is_handed_out: bool,
}

/// What there is of the backing file.
enum Backing {
    Open(Arc<File>),
    /// It is there, and not open.
    Closed,
    /// Nothing of its content, and it may not have been made.
    Empty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Missing,
    /// Found at start, with the checksum it must have.
    Found(u32),
    /// Written by this process, or checked.
    Stored(u32),
}

impl Entry {
    pub fn empty(key: CacheKey, len: u64, name: u64) -> Self {
        let chunks = vec![Chunk::Missing; len.div_ceil(CHUNK_BYTES) as usize];
        Entry { key, len, name, state: Mutex::new(State::of(chunks)) }
    }

    pub fn found(record: Record) -> Self {
        let chunks = record.checksums.iter().map(|&checksum| Chunk::Found(checksum)).collect();
        // The process before may have handed it out.
        let state = State { is_handed_out: true, ..State::of(chunks) };
        Entry { key: record.key(), len: record.len, name: record.name, state: Mutex::new(state) }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        !self.state().chunks.contains(&Chunk::Missing)
    }

    /// Whether a reader has all of it without waiting: it is there, or was fetched and is not written yet.
    pub fn is_at_hand(&self) -> bool {
        let state = self.state();
        let missing = (0..).zip(&state.chunks).filter(|(_, chunk)| **chunk == Chunk::Missing);
        missing.map(|(chunk, _)| chunk).all(|chunk| state.flights.has_landed(chunk))
    }

    /// Whether some of it is being fetched.
    pub fn is_under_way(&self) -> bool {
        !self.state().flights.is_empty()
    }

    /// What is missing and not being fetched, in runs of at most `wanted` chunks.
    pub fn idle_runs(&self, wanted: u32) -> Vec<Range<u32>> {
        let state = self.state();
        let (mut runs, mut at, chunks) = (Vec::new(), 0, state.chunks.len() as u32);
        while let Some(start) = (at..chunks).find(|&chunk| state.is_wanted(chunk)) {
            let end = (start..chunks).find(|&chunk| !state.is_wanted(chunk)).unwrap_or(chunks);
            runs.extend(runs_of(start..end, wanted));
            at = end;
        }
        runs
    }

    /// The bytes of some chunks.
    pub fn bytes_of(&self, chunks: &Range<u32>) -> Range<u64> {
        u64::from(chunks.start) * CHUNK_BYTES..(u64::from(chunks.end) * CHUNK_BYTES).min(self.len)
    }
}

/// Some chunks, in runs of at most so many.
pub(super) fn runs_of(chunks: Range<u32>, wanted: u32) -> Vec<Range<u32>> {
    let run = |start: u32| start..chunks.end.min(start + wanted);
    chunks.clone().step_by(wanted as usize).map(run).collect()
}

/// A place in the cache that is not removed while this lives.
#[derive(Debug)]
pub(super) struct Pin {
    pub shared: Arc<Shared>,
    pub entry: Arc<Entry>,
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        self.shared.index().pin(&self.entry);
        Pin { shared: self.shared.clone(), entry: self.entry.clone() }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        // Still under the index's lock, so that nobody opens the file anew in between.
        let mut index = self.shared.index();
        if index.unpin(&self.entry) {
            let was_used = {
                let mut state = self.entry.state();
                state.file.take().is_some() || !state.flights.is_empty()
            };
            if !was_used {
                index.forget_empty(&self.entry);
            }
        }
    }
}

impl State {
    fn of(chunks: Vec<Chunk>) -> Self {
        State { file: None, chunks, flights: Flights::default(), is_handed_out: false }
    }

    fn backing(&self) -> Backing {
        match &self.file {
            Some(file) => Backing::Open(file.clone()),
            None if self.chunks.iter().all(|chunk| *chunk == Chunk::Missing) => Backing::Empty,
            None => Backing::Closed,
        }
    }

    pub fn is_wanted(&self, chunk: u32) -> bool {
        self.chunks.get(chunk as usize) == Some(&Chunk::Missing) && !self.flights.contains(chunk)
    }

    /// Chunks to fetch together from `first`, which is missing: at most `wanted`, all of a small file.
    pub fn missing_run(&self, first: u32, wanted: u32) -> Range<u32> {
        let chunks = self.chunks.len() as u32;
        let is_wanted = |&chunk: &u32| self.chunks[chunk as usize] == Chunk::Missing && !self.flights.contains(chunk);
        if chunks <= WHOLE_CHUNKS_MAX {
            let start = (0..first).rev().take_while(is_wanted).last().unwrap_or(first);
            let end = (first..chunks).take_while(is_wanted).last().unwrap_or(first) + 1;
            return start..end;
        }
        let mut end = first + wanted.clamp(1, RUN_CHUNKS_MAX);
        if wanted >= RUN_ALIGN_CHUNKS {
            end = (end / RUN_ALIGN_CHUNKS * RUN_ALIGN_CHUNKS).max(first + 1);
        }
        let end = (first..end.min(chunks)).take_while(is_wanted).last().unwrap_or(first) + 1;
        first..end
    }
}

/// A file that will take the place of another that left.
struct OnTheWay {
    shared: Arc<Shared>,
    bytes: u64,
}

impl Drop for OnTheWay {
    fn drop(&mut self) {
        self.shared.coming_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Takes a fetch out of the list however it ends.
struct Landing {
    entry: Arc<Entry>,
    number: u64,
}

impl Landing {
    /// Tells readers that there are no bytes, once those who try again find nothing under way.
    fn failed(self, landed: Landed, error: Error) {
        drop(self);
        drop(landed.send(Err(error)));
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.entry.state().flights.end(self.number);
    }
}

impl Pin {
    /// Takes over a pin that the index counts already.
    pub fn new(shared: Arc<Shared>, entry: Arc<Entry>) -> Pin {
        Pin { shared, entry }
    }

    /// Fetches chunks, what lies in each full shard by itself: so nothing has to be copied together. Returns the first.
    pub fn start(&self, state: &mut State, source: &Arc<dyn ByteSource>, chunks: Range<u32>) -> Flight {
        let end_of_shard = |chunk: u32| (chunk / RUN_ALIGN_CHUNKS + 1) * RUN_ALIGN_CHUNKS;
        let first_end = chunks.end.min(end_of_shard(chunks.start));
        let first = self.start_one(state, source, chunks.start..first_end);
        let mut next = first_end;
        while next < chunks.end {
            let end = chunks.end.min(end_of_shard(next));
            drop(self.start_one(state, source, next..end));
            next = end;
        }
        first
    }

    fn start_one(&self, state: &mut State, source: &Arc<dyn ByteSource>, chunks: Range<u32>) -> Flight {
        // The index's lock is taken before an entry's elsewhere, so the pin is cloned by the task itself, which its
        // reader's pin outlives or not: an entry that was removed meanwhile is only not stored to.
        let (shared, entry, source) = (self.shared.clone(), self.entry.clone(), source.clone());
        let run = chunks.clone();
        state.flights.start(chunks, move |number, landed| async move {
            let landing = Landing { entry: entry.clone(), number };
            let range = entry.bytes_of(&run);
            let data = match from_sibling(&shared, &entry, range.clone()).await {
                Some(data) => Ok(data),
                None => fetch(&shared, &source, range.clone()).await,
            };
            let data = match data {
                Ok(data) => data,
                Err(error) => return landing.failed(landed, error),
            };
            // Readers go on while it is written, but not so far that much waits for the disk.
            let unwritten = shared.unwritten.clone().acquire_many_owned(unwritten_units(data.len())).await;
            let run_of_data = Run { start: range.start, data: data.clone() };
            drop(landed.send(Ok(run_of_data)));
            match Pin::again(&shared, &entry) {
                Some(pin) => pin.store(run, data, (unwritten, landing)),
                None => count(&shared.counters.unkept_bytes, data.len() as u64),
            }
        })
    }

    /// Has readers wait for some chunks, which have their room, until they are delivered.
    pub fn expect(self, chunks: Range<u32>, delivery: oneshot::Receiver<Result<Delivered>>) {
        let (shared, entry, coming) = (self.shared.clone(), self.entry.clone(), self.coming());
        let run = chunks.clone();
        drop(entry.state().flights.start(chunks, move |number, landed| async move {
            let landing = Landing { entry: self.entry.clone(), number };
            let range = self.entry.bytes_of(&run);
            match received(delivery.await) {
                Ok(Delivered { data, permit }) => {
                    drop(landed.send(Ok(Run { start: range.start, data: data.clone() })));
                    self.write_reserved(run, data, Vec::new(), (coming, permit, landing));
                }
                Err(error) => {
                    shared.index().failed(self.entry.key, range.end - range.start, &error);
                    drop(coming);
                    landing.failed(landed, error);
                }
            }
        }));
    }

    /// Pins an entry, if it is still the one in the cache.
    fn again(shared: &Arc<Shared>, entry: &Arc<Entry>) -> Option<Pin> {
        let mut index = shared.index();
        let current = index.slot_of(entry).is_some();
        index.pin(entry);
        current.then(|| Pin { shared: shared.clone(), entry: entry.clone() })
    }

    /// Has bytes kept, if there is room and the disk takes them, and then `held` dropped.
    fn store(self, chunks: Range<u32>, data: Bytes, held: impl Send + 'static) {
        let bytes = data.len() as u64;
        let Some(evicted) = self.shared.reserve(self.entry.key, bytes) else {
            count(&self.shared.counters.unkept_bytes, bytes);
            return;
        };
        let held = (self.coming(), held);
        self.write_reserved(chunks, data, evicted, held);
    }

    /// For as long as bytes that have their room are on their way to the disk.
    fn coming(&self) -> OnTheWay {
        let bytes = if disk::takes_spare(self.entry.len) { self.entry.len } else { 0 };
        self.shared.coming_bytes.fetch_add(bytes, Ordering::Relaxed);
        OnTheWay { shared: self.shared.clone(), bytes }
    }

    /// Has bytes kept that have their room, for which something leaves, and then `held` dropped.
    fn write_reserved(self, chunks: Range<u32>, data: Bytes, evicted: Vec<Arc<Entry>>, held: impl Send + 'static) {
        let (bytes, shared) = (data.len() as u64, self.shared.clone());
        let work = move || {
            self.shared.remove(&evicted);
            if let Err(error) = self.write_with_room(chunks, &data) {
                tracing::debug!(%error, "bytes are not kept in the cache");
                count(&self.shared.counters.unkept_bytes, bytes);
                self.shared.release(self.entry.key, bytes);
            }
            drop((self, data, held));
        };
        shared.writers.run(bytes, work);
    }

    /// Writes if the disk has room, which other files are removed for.
    fn write_with_room(&self, chunks: Range<u32>, data: &Bytes) -> Result<()> {
        let bytes = data.len() as u64;
        if !self.shared.make_disk_room(bytes) {
            return Err(Error::new(Kind::NoSpace, "the disk of the cache is full of other things"));
        }
        match self.write(chunks.clone(), data) {
            Err(error) if error.kind() == Kind::NoSpace && self.shared.evict(bytes) > 0 => self.write(chunks, data),
            written => written,
        }
    }

    fn write(&self, chunks: Range<u32>, data: &Bytes) -> Result<()> {
        let (file, offset) = (self.file_blocking()?, u64::from(chunks.start) * CHUNK_BYTES);
        if let Err(error) = disk::write_at(&file, data, offset) {
            disk::punch(&file, offset, data.len() as u64);
            return Err(error);
        }
        let checksums: Vec<u32> = data.chunks(CHUNK_BYTES as usize).map(crc32c::crc32c).collect();
        let complete = {
            let mut state = self.entry.state();
            for (chunk, checksum) in chunks.zip(checksums) {
                state.chunks[chunk as usize] = Chunk::Stored(checksum);
            }
            state.checksums()
        };
        if let Some(checksums) = complete {
            self.shared.complete(&Record::new(self.entry.key, self.entry.len, self.entry.name, checksums));
        }
        Ok(())
    }

    /// The backing file, opened if it is not open.
    pub async fn file(&self) -> Result<Arc<File>> {
        if let Some(file) = self.file_now() {
            return Ok(file);
        }
        let pin = self.clone();
        let opened = tokio::task::spawn_blocking(move || pin.file_blocking()).await;
        opened.unwrap_or_else(|error| Err(Error::caused(Kind::Cancelled, "open a cache file", error)))
    }

    /// It, if it is open, or can be opened without waiting for the disk: another thread takes longer to wake.
    pub fn file_now(&self) -> Option<Arc<File>> {
        let backing = self.entry.state().backing();
        match backing {
            Backing::Open(file) => Some(file),
            Backing::Closed => {
                let opened = self.shared.disk.open_now(self.entry.name, self.entry.len);
                opened.map(|opened| self.keep_open(opened))
            }
            Backing::Empty => None,
        }
    }

    fn file_blocking(&self) -> Result<Arc<File>> {
        let (disk, entry) = (&self.shared.disk, &self.entry);
        let backing = entry.state().backing();
        let opened = match backing {
            Backing::Open(file) => return Ok(file),
            Backing::Closed => disk.open_file(entry.name, entry.len).or_else(|error| {
                tracing::warn!(%error, "something else than this process changes the cache folder: the file is fetched again");
                self.forget(0..entry.len);
                disk.make_file(entry.name, entry.len)
            }),
            Backing::Empty => disk.make_file(entry.name, entry.len),
        };
        Ok(self.keep_open(opened?))
    }

    /// The open file; another one if that was opened at the same moment.
    fn keep_open(&self, opened: File) -> Arc<File> {
        self.entry.state().file.get_or_insert(Arc::new(opened)).clone()
    }

    /// Bytes are not there any more, whatever was thought: they are fetched again.
    pub fn forget(&self, range: Range<u64>) {
        let mut lost = 0;
        {
            let mut state = self.entry.state();
            for chunk in (range.start / CHUNK_BYTES) as u32..range.end.div_ceil(CHUNK_BYTES) as u32 {
                if state.chunks[chunk as usize] != Chunk::Missing {
                    state.chunks[chunk as usize] = Chunk::Missing;
                    let bytes = self.entry.bytes_of(&(chunk..chunk + 1));
                    lost += bytes.end - bytes.start;
                }
            }
        }
        self.shared.release(self.entry.key, lost);
    }
}

impl State {
    /// The checksums of all chunks, if all are there.
    fn checksums(&self) -> Option<Vec<u32>> {
        let checksum = |chunk: &Chunk| match chunk {
            Chunk::Missing => None,
            Chunk::Found(checksum) | Chunk::Stored(checksum) => Some(*checksum),
        };
        self.chunks.iter().map(checksum).collect()
    }
}

async fn fetch(shared: &Shared, source: &Arc<dyn ByteSource>, range: Range<u64>) -> Result<Bytes> {
    let data = source.fetch(range.clone()).await?;
    if data.len() as u64 != range.end - range.start {
        return Err(Error::new(Kind::Io, format!("{} bytes came for the range {range:?}", data.len())));
    }
    shared.count_fetched(data.len() as u64);
    Ok(data)
}

/// Whole chunks that another process has in the same folder.
async fn from_sibling(shared: &Arc<Shared>, entry: &Arc<Entry>, range: Range<u64>) -> Option<Bytes> {
    if shared.siblings.are_none() {
        return None;
    }
    let (asking, entry) = (shared.clone(), entry.clone());
    let read = tokio::task::spawn_blocking(move || asking.siblings.read(entry.key, entry.len, &range));
    let data = read.await.ok()??;
    count(&shared.counters.sibling_bytes, data.len() as u64);
    Some(data)
}
