//! [`Pinned`]: one file in the cache, open for reading.

use super::ahead::{Delivered, received};
use super::disk::{self, Record};
use super::flight::{Flight, Flights, Landed, Run};
use super::{ByteSource, CHUNK_BYTES, CacheKey, Shared, count, unwritten_units};
use crate::error::{Error, Kind, Result};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// Files of up to this many chunks are fetched whole. [`FORESEEN_BYTES_MAX`](crate::prefetch::FORESEEN_BYTES_MAX) rests on it.
const WHOLE_CHUNKS_MAX: u32 = 4;

/// Most chunks fetched at a time for a sequential reader: a stripe of four full shards.
const RUN_CHUNKS_MAX: u32 = 16;

/// Chunks of a full shard. Larger runs end where one ends.
const RUN_ALIGN_CHUNKS: u32 = 4;

/// How far from where the last read ended a read may start and still count as sequential: the kernel sends its readahead
/// in parallel.
const SEQUENTIAL_SLACK_BYTES: u64 = 1024 * 1024;

/// A file in the cache.
#[derive(Debug)]
pub(super) struct Entry {
    pub key: CacheKey,
    pub len: u64,
    pub name: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Open while it is pinned, from the first use on.
    file: Option<Arc<File>>,
    chunks: Vec<Chunk>,
    flights: Flights,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunk {
    Missing,
    /// Found at start, with the checksum it must have.
    Found(u32),
    /// Written by this process, or checked.
    Stored(u32),
}

impl Entry {
    pub fn empty(key: CacheKey, len: u64, name: u64) -> Self {
        let chunks = vec![Chunk::Missing; len.div_ceil(CHUNK_BYTES) as usize];
        Entry { key, len, name, state: Mutex::new(State { file: None, chunks, flights: Flights::default() }) }
    }

    pub fn found(record: Record) -> Self {
        let chunks = record.checksums.iter().map(|&checksum| Chunk::Found(checksum)).collect();
        let state = State { file: None, chunks, flights: Flights::default() };
        Entry { key: record.key(), len: record.len, name: record.name, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        !self.state().chunks.contains(&Chunk::Missing)
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
    shared: Arc<Shared>,
    entry: Arc<Entry>,
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

/// A file that is open in the cache.
#[derive(Debug)]
pub struct Pinned {
    pin: Pin,
    pattern: Mutex<Pattern>,
    /// What was fetched last and is not on the disk: a reader goes on from here, while it is written or as it cannot be kept.
    unkept: Mutex<Option<Run>>,
}

/// How one reader reads.
#[derive(Clone, Copy, Debug, Default)]
struct Pattern {
    /// Where a sequential reader goes on.
    expected: u64,
    /// How many chunks are fetched ahead for it; 0 for a reader that jumps.
    chunks: u32,
}

/// Who began a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    Mine,
    Another,
}

/// What to do for the next bytes of a read.
enum Step {
    Read(Arc<File>, u64),
    Open,
    Check(u32, u32),
    Have(Bytes),
    Wait(Flight, Whose),
}

impl Pinned {
    pub(super) fn new(shared: Arc<Shared>, entry: Arc<Entry>) -> Self {
        Pinned { pin: Pin::new(shared, entry), pattern: Mutex::default(), unkept: Mutex::default() }
    }

    /// Reads a range that lies within the file: what is there from the disk, the rest from `source`.
    ///
    /// # Errors
    /// What `source` reports. A cache that fails is not an error.
    pub async fn read(&self, source: &Arc<dyn ByteSource>, range: Range<u64>) -> Result<Bytes> {
        let ahead = self.follow(&range);
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut at = range.start;
        let (mut waited, mut tried_again) = (false, false);
        while at < range.end {
            let piece = match self.step(source, at..range.end, ahead) {
                Step::Open => self.open_file(source, at..range.end).await?,
                Step::Check(chunk, checksum) => {
                    self.check(chunk, checksum).await;
                    continue;
                }
                Step::Read(file, end) => match read_file(file, at..end).await {
                    Ok(bytes) => {
                        count(&self.pin.shared.counters.cache_bytes, bytes.len() as u64);
                        bytes
                    }
                    Err(_) => {
                        self.forget(at..end);
                        continue;
                    }
                },
                Step::Wait(flight, whose) => {
                    waited = true;
                    let began = Instant::now();
                    let run = flight.await;
                    self.pin.shared.index().epochs.stalled(began.elapsed());
                    let run = match run {
                        // What was fetched ahead did not come, or another reader's nodes failed.
                        Err(_) if whose == Whose::Another && !tried_again => {
                            tried_again = true;
                            continue;
                        }
                        run => run?,
                    };
                    let piece = run.slice(&(at..range.end));
                    self.remember(run);
                    piece
                }
                Step::Have(bytes) => bytes,
            };
            at += piece.len() as u64;
            pieces.push(piece);
        }
        self.look_ahead(source, range.end, ahead);
        let counters = &self.pin.shared.counters;
        count(if waited { &counters.misses } else { &counters.hits }, 1);
        Ok(if pieces.len() == 1 { pieces.swap_remove(0) } else { pieces.concat().into() })
    }

    /// The backing file, if all of it is there and proven. Its path is for other uses than reading through this process.
    pub async fn complete_file(&self) -> Option<Arc<File>> {
        let entry = &self.pin.entry;
        let chunks = entry.state().chunks.len() as u32;
        for chunk in 0..chunks {
            let state = entry.state().chunks[chunk as usize];
            match state {
                Chunk::Missing => return None,
                Chunk::Stored(_) => {}
                Chunk::Found(checksum) => self.check(chunk, checksum).await,
            }
        }
        let file = self.pin.file().await.ok()?;
        let whole = entry.state().chunks.iter().all(|chunk| matches!(chunk, Chunk::Stored(_)));
        whole.then_some(file)
    }

    /// As [`Cache::settle`](super::Cache::settle).
    #[cfg(test)]
    pub(super) async fn settle(&self) {
        drop(self.pin.shared.unwritten.acquire_many(super::UNWRITTEN_UNITS_MAX as u32).await);
    }

    /// Where the backing file is.
    #[must_use]
    pub fn path(&self) -> std::path::PathBuf {
        self.pin.shared.disk.path(self.pin.entry.name)
    }

    fn unkept(&self) -> MutexGuard<'_, Option<Run>> {
        self.unkept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds on to a run that is not in the cache although it was fetched.
    fn remember(&self, run: Run) {
        let chunk = (run.start / CHUNK_BYTES) as usize;
        let kept = self.pin.entry.state().chunks[chunk] != Chunk::Missing;
        *self.unkept() = (!kept).then_some(run);
    }

    /// Whether what was fetched last is not kept, nor about to be: then fetching ahead is in vain.
    fn is_unkept(&self) -> bool {
        let Some(chunk) = self.unkept().as_ref().map(|run| (run.start / CHUNK_BYTES) as u32) else { return false };
        let state = self.pin.entry.state();
        state.chunks[chunk as usize] == Chunk::Missing && !state.flights.contains(chunk)
    }

    /// Learns from a read how many chunks to fetch at a time; 0 for just what is asked.
    fn follow(&self, range: &Range<u64>) -> u32 {
        let mut pattern = self.pattern.lock().unwrap_or_else(PoisonError::into_inner);
        let sequential = range.start.abs_diff(pattern.expected) <= SEQUENTIAL_SLACK_BYTES;
        let crossed = pattern.expected / CHUNK_BYTES != range.end / CHUNK_BYTES;
        pattern.chunks = match (sequential, crossed) {
            (false, _) => 0,
            (true, true) => (pattern.chunks * 2).clamp(1, RUN_CHUNKS_MAX),
            (true, false) => pattern.chunks.max(1),
        };
        pattern.expected = if sequential { pattern.expected.max(range.end) } else { range.end };
        pattern.chunks
    }

    fn step(&self, source: &Arc<dyn ByteSource>, range: Range<u64>, ahead: u32) -> Step {
        let entry = &self.pin.entry;
        let mut state = entry.state();
        let chunk = (range.start / CHUNK_BYTES) as u32;
        match state.chunks[chunk as usize] {
            Chunk::Found(checksum) => Step::Check(chunk, checksum),
            Chunk::Stored(_) => match &state.file {
                None => Step::Open,
                Some(file) => {
                    // What is on the disk need not be in memory, too.
                    self.unkept().take_if(|run| run.contains(range.start));
                    let stored = (chunk..state.chunks.len() as u32)
                        .take_while(|&chunk| matches!(state.chunks[chunk as usize], Chunk::Stored(_)));
                    let end = stored.last().map_or(chunk, |last| last) + 1;
                    Step::Read(file.clone(), range.end.min(entry.bytes_of(&(chunk..end)).end))
                }
            },
            Chunk::Missing => {
                if let Some(run) = self.unkept().as_ref().filter(|run| run.contains(range.start)) {
                    return Step::Have(run.slice(&range));
                }
                if let Some(flight) = state.flights.get(chunk) {
                    // It may be there, and not on the disk yet.
                    return match flight.clone().now_or_never() {
                        Some(Ok(run)) => Step::Have(run.slice(&range)),
                        _ => Step::Wait(flight, Whose::Another),
                    };
                }
                let wanted = (range.end.div_ceil(CHUNK_BYTES) as u32 - chunk).max(ahead);
                let run = state.missing_run(chunk, wanted);
                let next = run.end;
                let flight = self.pin.start(&mut state, source, run);
                // The rest of a long read is on its way while this part is waited for.
                if entry.bytes_of(&(chunk..next)).end < range.end && state.is_wanted(next) {
                    let run = state.missing_run(next, wanted);
                    drop(self.pin.start(&mut state, source, run));
                }
                Step::Wait(flight, Whose::Mine)
            }
        }
    }

    /// The chunk is there and the file is not open yet; if it cannot be opened, the bytes are read through.
    async fn open_file(&self, source: &Arc<dyn ByteSource>, range: Range<u64>) -> Result<Bytes> {
        match self.pin.file().await {
            Ok(_) => Ok(Bytes::new()),
            Err(_) => source.fetch(range).await,
        }
    }

    /// Checks a chunk that was found at start; one that is not whole counts as missing.
    async fn check(&self, chunk: u32, checksum: u32) {
        let range = self.pin.entry.bytes_of(&(chunk..chunk + 1));
        let good = match self.pin.file().await {
            Ok(file) => {
                let bytes = read_file(file, range.clone()).await;
                bytes.is_ok_and(|bytes| crc32c::crc32c(&bytes) == checksum)
            }
            Err(_) => false,
        };
        let bytes = range.end - range.start;
        let lost = {
            let mut state = self.pin.entry.state();
            let slot = &mut state.chunks[chunk as usize];
            let unchecked = *slot == Chunk::Found(checksum);
            if unchecked {
                *slot = if good { Chunk::Stored(checksum) } else { Chunk::Missing };
            }
            unchecked && !good
        };
        if lost {
            self.pin.shared.release(self.pin.entry.key, bytes);
        }
    }

    /// The disk does not give back what was written: fetch it again.
    fn forget(&self, range: Range<u64>) {
        let entry = &self.pin.entry;
        let mut lost = 0;
        {
            let mut state = entry.state();
            for chunk in (range.start / CHUNK_BYTES) as u32..range.end.div_ceil(CHUNK_BYTES) as u32 {
                if state.chunks[chunk as usize] != Chunk::Missing {
                    state.chunks[chunk as usize] = Chunk::Missing;
                    let bytes = entry.bytes_of(&(chunk..chunk + 1));
                    lost += bytes.end - bytes.start;
                }
            }
        }
        self.pin.shared.release(entry.key, lost);
    }

    /// Has the next run fetched when a sequential reader comes near the end of what is there.
    fn look_ahead(&self, source: &Arc<dyn ByteSource>, at: u64, ahead: u32) {
        if ahead < 2 || self.is_unkept() {
            return;
        }
        let mut state = self.pin.entry.state();
        let chunk = (at / CHUNK_BYTES) as u32;
        let known = (chunk..state.chunks.len() as u32)
            .take(ahead as usize)
            .take_while(|&chunk| !state.is_wanted(chunk))
            .count() as u32;
        let next = chunk + known;
        if known > ahead / 2 || next as usize >= state.chunks.len() {
            return;
        }
        let run = state.missing_run(next, ahead);
        drop(self.pin.start(&mut state, source, run));
    }
}

impl State {
    fn is_wanted(&self, chunk: u32) -> bool {
        self.chunks.get(chunk as usize) == Some(&Chunk::Missing) && !self.flights.contains(chunk)
    }

    /// Chunks to fetch together from `first`, which is missing: at most `wanted`, all of a small file.
    fn missing_run(&self, first: u32, wanted: u32) -> Range<u32> {
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
    fn start(&self, state: &mut State, source: &Arc<dyn ByteSource>, chunks: Range<u32>) -> Flight {
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
            let unwritten = shared.unwritten.acquire_many(unwritten_units(data.len())).await;
            let run_of_data = Run { start: range.start, data: data.clone() };
            drop(landed.send(Ok(run_of_data)));
            match Pin::again(&shared, &entry) {
                Some(pin) => pin.store(run, data).await,
                None => count(&shared.counters.unkept_bytes, data.len() as u64),
            }
            drop(unwritten);
        })
    }

    /// Has readers wait for some chunks, which have their room, until they are delivered.
    pub fn expect(self, chunks: Range<u32>, delivery: oneshot::Receiver<Result<Delivered>>) {
        let (shared, entry) = (self.shared.clone(), self.entry.clone());
        let run = chunks.clone();
        drop(entry.state().flights.start(chunks, move |number, landed| async move {
            let landing = Landing { entry: self.entry.clone(), number };
            let range = self.entry.bytes_of(&run);
            match received(delivery.await) {
                Ok(Delivered { data, permit }) => {
                    drop(landed.send(Ok(Run { start: range.start, data: data.clone() })));
                    self.write_reserved(run, data, Vec::new()).await;
                    drop(permit);
                }
                Err(error) => {
                    shared.index().failed(self.entry.key, range.end - range.start, &error);
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

    /// Keeps bytes, if there is room and the disk takes them.
    async fn store(self, chunks: Range<u32>, data: Bytes) {
        let bytes = data.len() as u64;
        let Some(evicted) = self.shared.reserve(self.entry.key, bytes) else {
            count(&self.shared.counters.unkept_bytes, bytes);
            return;
        };
        self.write_reserved(chunks, data, evicted).await;
    }

    /// Keeps bytes that have their room, for which something leaves.
    async fn write_reserved(self, chunks: Range<u32>, data: Bytes, evicted: Vec<Arc<Entry>>) {
        let bytes = data.len() as u64;
        let work = move || {
            self.shared.remove(&evicted);
            if let Err(error) = self.write_with_room(chunks, &data) {
                tracing::debug!(%error, "bytes are not kept in the cache");
                count(&self.shared.counters.unkept_bytes, bytes);
                self.shared.release(self.entry.key, bytes);
            }
        };
        // It fails only when the runtime ends, and the cache with it.
        let _ = tokio::task::spawn_blocking(work).await;
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
        match complete {
            Some(checksums) => {
                let record = Record::new(self.entry.key, self.entry.len, self.entry.name, checksums);
                // Without the record it is only not found after a restart.
                self.shared.disk.complete(&record).or_else(|error| {
                    tracing::debug!(%error, "the cache's index is not kept up");
                    Ok(())
                })
            }
            None => Ok(()),
        }
    }

    /// The backing file, opened if it is not open.
    async fn file(&self) -> Result<Arc<File>> {
        if let Some(file) = &self.entry.state().file {
            return Ok(file.clone());
        }
        let pin = self.clone();
        let opened = tokio::task::spawn_blocking(move || pin.file_blocking()).await;
        opened.unwrap_or_else(|error| Err(Error::caused(Kind::Cancelled, "open a cache file", error)))
    }

    fn file_blocking(&self) -> Result<Arc<File>> {
        if let Some(file) = &self.entry.state().file {
            return Ok(file.clone());
        }
        let opened = Arc::new(self.shared.disk.file(self.entry.name, self.entry.len)?);
        Ok(self.entry.state().file.get_or_insert(opened).clone())
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

async fn read_file(file: Arc<File>, range: Range<u64>) -> Result<Bytes> {
    let read = move || {
        let mut out = BytesMut::zeroed((range.end - range.start) as usize);
        disk::read_at(&file, &mut out, range.start)?;
        Ok(out.freeze())
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| Err(Error::caused(Kind::Cancelled, "read from the cache", error)))
}
