//! [`Pinned`]: one file in the cache, open for reading.

use super::disk;
use super::entry::{Chunk, Entry, Pin, RUN_CHUNKS_MAX};
use super::flight::{Flight, Run};
use super::{ByteSource, CHUNK_BYTES, DataFile, Shared, count};
use crate::error::{Error, Kind, Result};
use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use std::fs::File;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// How far from where the last read ended a read may start and still count as sequential: the kernel sends its readahead
/// in parallel.
const SEQUENTIAL_SLACK_BYTES: u64 = 1024 * 1024;

/// A file that is open in the cache.
#[derive(Debug)]
pub struct Pinned {
    pin: Pin,
    pattern: Mutex<Pattern>,
    /// What was fetched last and is not on the disk: a reader goes on from here, while it is written or as it cannot be kept.
    unkept: Mutex<Option<Run>>,
    announced: Option<Announced>,
}

/// What an announced order says of a file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Announced {
    /// The one that is read after it.
    pub next: Option<DataFile>,
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

/// Where bytes are that nobody waits for.
enum AtHand {
    OnDisk,
    InMemory(Bytes),
}

impl Pinned {
    pub(super) fn new(shared: Arc<Shared>, entry: Arc<Entry>) -> Self {
        let pin = Pin::new(shared, entry);
        Pinned { pin, pattern: Mutex::default(), unkept: Mutex::default(), announced: None }
    }

    pub(super) fn with_announced(self, announced: Option<Announced>) -> Self {
        Pinned { announced, ..self }
    }

    /// Whether an announced order named the file when it was [opened](super::Cache::opened).
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.announced.is_some()
    }

    /// The file that an announced order had after this one when it was [opened](super::Cache::opened).
    #[must_use]
    pub fn next_announced(&self) -> Option<DataFile> {
        self.announced?.next
    }

    /// Fills `out` with the whole content, if that takes no waiting: neither for storage nor for the disk. Whether it did.
    #[must_use]
    pub fn read_now(&self, out: &mut [u8]) -> bool {
        let (entry, mut at) = (&self.pin.entry, 0);
        if entry.len != out.len() as u64 {
            return false;
        }
        while at < entry.len {
            let chunk = (at / CHUNK_BYTES) as u32;
            let range = at..entry.bytes_of(&(chunk..chunk + 1)).end;
            let out = &mut out[range.start as usize..range.end as usize];
            let is_read = match self.at_hand(chunk, &range) {
                Some(AtHand::OnDisk) => self.pin.file_now().is_some_and(|file| disk::read_now(&file, out, at)),
                Some(AtHand::InMemory(bytes)) if bytes.len() == out.len() => {
                    out.copy_from_slice(&bytes);
                    true
                }
                _ => false,
            };
            if !is_read {
                return false;
            }
            at = range.end;
        }
        let counters = &self.pin.shared.counters;
        count(&counters.cache_bytes, entry.len);
        count(&counters.hits, 1);
        true
    }

    fn at_hand(&self, chunk: u32, range: &Range<u64>) -> Option<AtHand> {
        let state = self.pin.entry.state();
        match state.chunks[chunk as usize] {
            Chunk::Found(_) => None,
            Chunk::Stored(_) => Some(AtHand::OnDisk),
            Chunk::Missing => {
                if let Some(run) = self.unkept().as_ref().filter(|run| run.contains(range.start)) {
                    return Some(AtHand::InMemory(run.slice(range)));
                }
                let run = state.flights.get(chunk)?.now_or_never()?.ok()?;
                Some(AtHand::InMemory(run.slice(range)))
            }
        }
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
                    // The disk does not give back what was written.
                    Err(_) => {
                        self.pin.forget(at..end);
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
        let mut state = entry.state();
        let is_whole = state.chunks.iter().all(|chunk| matches!(chunk, Chunk::Stored(_)));
        state.is_handed_out |= is_whole;
        is_whole.then_some(file)
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

async fn read_file(file: Arc<File>, range: Range<u64>) -> Result<Bytes> {
    let mut out = BytesMut::zeroed((range.end - range.start) as usize);
    // Another thread takes longer to wake than this takes.
    if disk::read_now(&file, &mut out, range.start) {
        return Ok(out.freeze());
    }
    let read = move || {
        disk::read_at(&file, &mut out, range.start)?;
        Ok(out.freeze())
    };
    let read = tokio::task::spawn_blocking(read).await;
    read.unwrap_or_else(|error| Err(Error::caused(Kind::Cancelled, "read from the cache", error)))
}
