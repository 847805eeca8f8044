//! The Raft log, the vote and the commit pointer, on a [`Kv`].
//!
//! One thread writes. It takes what has queued up while it was waiting for the disk and writes it as one batch, so any
//! number of concurrent appends cost one disk write. Entries are readable from memory before they are on disk, as openraft
//! wants it; the newest stay there, so that replication and apply do not read from disk.
//!
//! Keys: `e` and the index (8 bytes, big-endian) for entries, `v` the vote, `p` the id of the last purged entry, `c` the last
//! entry known to be committed (written along with the next append; being old costs nothing but a replay).

use super::{Entry, LogId, TypeConfig, Vote, decode, encode, storage};
use crate::kv::{Durability, FjallKv, FjallStore, Kv, KvRead, WriteBatch};
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{EntryPayload, OptionalSend, RaftLogReader};
use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{mpsc, oneshot};
use torchfs_core::{Error, Kind, Result};

const ENTRY: u8 = b'e';
const VOTE: &[u8] = b"v";
const PURGED: &[u8] = b"p";
const COMMITTED: &[u8] = b"c";

/// Bytes of entries kept in memory once they are on disk.
const RECENT_BYTES_MAX: usize = 32 << 20;

/// Bytes of entries handed out at once to replication; one entry is handed out however large it is.
const READ_BYTES_MAX: usize = 4 << 20;

/// Writes that may wait for the disk; openraft waits when there are more.
const QUEUE_MAX: usize = 1024;

/// Bytes that are written as one batch.
const GROUP_BYTES_MAX: usize = 16 << 20;

/// Entries deleted in one batch.
const PURGE_BATCH: u64 = 4096;

/// The log of one node.
#[derive(Debug)]
pub struct LogStore {
    shared: Arc<Shared>,
    writes: mpsc::Sender<Write>,
}

#[derive(Debug)]
struct Shared {
    kv: FjallKv,
    memory: Mutex<Memory>,
    disk_writes: AtomicU64,
}

#[derive(Debug, Default)]
struct Memory {
    /// The newest entries, without a gap up to `last`.
    recent: VecDeque<Entry>,
    recent_bytes: usize,
    /// Entries up to this index are on disk.
    flushed: u64,
    purged: Option<LogId>,
    /// The index of the first entry there is.
    first: u64,
    last: Option<LogId>,
    vote: Option<Vote>,
    committed: Option<LogId>,
}

struct Write {
    changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    bytes: usize,
    done: Done,
}

enum Done {
    /// Entries up to this index.
    Append(u64, IOFlushed<TypeConfig>),
    /// Something else that must survive a power cut.
    Synced(oneshot::Sender<Result<()>>),
    /// Something that need not: it is ordered before what comes later, and harmless if lost with it.
    Ordered(oneshot::Sender<Result<()>>),
    /// Only once the state is on disk may entries be deleted that it reflects.
    AfterState(oneshot::Sender<Result<()>>),
}

impl LogStore {
    /// Opens the log in `store`. Before entries are purged, `state` is synchronised.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], or what the operating system says.
    pub fn open(store: &FjallStore, state: FjallStore) -> Result<Self> {
        let kv = store.space("log")?;
        let memory = Mutex::new(load(&kv)?);
        let shared = Arc::new(Shared { kv, memory, disk_writes: AtomicU64::new(0) });
        let (writes, queue) = mpsc::channel(QUEUE_MAX);
        let writer = Writer { shared: shared.clone(), state };
        // The thread ends when the last sender of the queue is gone.
        std::thread::Builder::new()
            .name("raft-log".into())
            .spawn(move || writer.run(queue))
            .map_err(|error| Error::io("start the log's thread", error))?;
        Ok(LogStore { shared, writes })
    }

    /// How often it has waited for the disk.
    #[must_use]
    pub fn disk_writes(&self) -> u64 {
        self.shared.disk_writes.load(Ordering::Relaxed)
    }

    async fn write(&self, changes: Vec<(Vec<u8>, Option<Vec<u8>>)>, done: Done) -> io::Result<()> {
        let bytes = changes.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum();
        let gone = |_| io::Error::other("the log's thread has ended");
        self.writes.send(Write { changes, bytes, done }).await.map_err(gone)
    }

    async fn write_and_wait(
        &self,
        changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
        done: impl FnOnce(oneshot::Sender<Result<()>>) -> Done,
    ) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.write(changes, done(sender)).await?;
        let written = receiver.await.map_err(|_| io::Error::other("the log's thread has ended"))?;
        written.map_err(storage)
    }
}

impl Shared {
    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The entries of `start..end` that the log has, at most about `bytes_max` of them but at least one.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>> {
        // A truncation between the two reads can tear a hole; then what was read is out of date and is read again.
        for _ in 0..8 {
            let (start, from_disk, recent) = self.memory().read(start, end, bytes_max);
            let mut entries = if start < from_disk { self.read_disk(start, from_disk, bytes_max)? } else { Vec::new() };
            if entries.len() as u64 == from_disk.saturating_sub(start) {
                entries.extend(recent);
                return Ok(entries);
            }
            if bytes_max < usize::MAX && !entries.is_empty() {
                return Ok(entries);
            }
        }
        Err(Error::new(Kind::Corrupt, format!("the log has a hole between entries {start} and {end}")))
    }

    fn read_disk(&self, start: u64, end: u64, bytes_max: usize) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut at = start;
        while at < end && bytes < bytes_max {
            let found = self.kv.scan(&entry_key(at), &entry_key(end), 64)?;
            if found.is_empty() {
                break;
            }
            for (key, value) in found {
                if key != entry_key(at) {
                    return Ok(entries);
                }
                bytes += value.len();
                entries.push(decode(&value, "a log entry")?);
                at += 1;
                if bytes >= bytes_max {
                    break;
                }
            }
        }
        Ok(entries)
    }
}

impl Memory {
    /// Where the range really starts, up to which index it must be read from disk, and the entries after that.
    fn read(&self, start: u64, end: u64, bytes_max: usize) -> (u64, u64, Vec<Entry>) {
        let start = start.max(self.first);
        let end = end.min(next(&self.last));
        let first = self.recent.front().map_or(next(&self.last), RaftEntry::index);
        let from_disk = end.min(first);
        let mut bytes = 0;
        let skip = start.saturating_sub(first) as usize;
        let take = end.saturating_sub(start.max(first)) as usize;
        let wanted = self.recent.iter().skip(skip).take(take).take_while(|entry| {
            let fits = bytes < bytes_max;
            bytes += entry_bytes(entry);
            fits
        });
        (start, from_disk, wanted.cloned().collect())
    }

    fn push(&mut self, entry: Entry) {
        if self.last == self.purged {
            self.first = entry.index();
        }
        self.last = Some(entry.log_id());
        self.recent_bytes += entry_bytes(&entry);
        self.recent.push_back(entry);
    }

    fn forget_old(&mut self) {
        while self.recent_bytes > RECENT_BYTES_MAX
            && self.recent.front().is_some_and(|entry| entry.index() <= self.flushed)
        {
            let forgotten = self.recent.pop_front();
            self.recent_bytes -= forgotten.as_ref().map_or(0, entry_bytes);
        }
    }

    /// Drops the entries up to `index`.
    fn forget_upto(&mut self, index: u64) {
        while self.recent.front().is_some_and(|entry| entry.index() <= index) {
            let forgotten = self.recent.pop_front();
            self.recent_bytes -= forgotten.as_ref().map_or(0, entry_bytes);
        }
    }

    /// Drops the entries from `index` on.
    fn forget_from(&mut self, index: u64) {
        while self.recent.back().is_some_and(|entry| entry.index() >= index) {
            let forgotten = self.recent.pop_back();
            self.recent_bytes -= forgotten.as_ref().map_or(0, entry_bytes);
        }
    }
}

/// The one that writes.
struct Writer {
    shared: Arc<Shared>,
    state: FjallStore,
}

impl Writer {
    fn run(self, mut queue: mpsc::Receiver<Write>) {
        while let Some(first) = queue.blocking_recv() {
            let mut bytes = first.bytes;
            let mut group = vec![first];
            while bytes < GROUP_BYTES_MAX
                && let Ok(write) = queue.try_recv()
            {
                bytes += write.bytes;
                group.push(write);
            }
            self.write(group);
        }
    }

    fn write(&self, mut group: Vec<Write>) {
        let result = self.write_batch(&mut group);
        for write in group {
            match write.done {
                Done::Append(last, callback) => {
                    if result.is_ok() {
                        let mut memory = self.shared.memory();
                        memory.flushed = memory.flushed.max(last);
                        memory.forget_old();
                    }
                    callback.io_completed(result.clone().map_err(storage));
                }
                // Whoever waits may have given up; the write counts all the same.
                Done::Synced(sender) | Done::Ordered(sender) | Done::AfterState(sender) => {
                    sender.send(result.clone()).ok();
                }
            }
        }
    }

    fn write_batch(&self, group: &mut [Write]) -> Result<()> {
        let any = |test: fn(&Done) -> bool| group.iter().any(|write| test(&write.done));
        if any(|done| matches!(done, Done::AfterState(_))) {
            self.state.sync()?;
        }
        let synced = any(|done| matches!(done, Done::Append(..) | Done::Synced(_)));
        self.shared.disk_writes.fetch_add(synced.into(), Ordering::Relaxed);
        let mut batch = WriteBatch::default();
        for write in group {
            batch.changes.append(&mut write.changes);
        }
        self.shared.kv.write(batch, if synced { Durability::Disk } else { Durability::Process })
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.read(start, end, READ_BYTES_MAX).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.0.memory().vote)
    }
}

/// Reads the log.
#[derive(Clone, Debug)]
pub struct LogReader(Arc<Shared>);

impl LogReader {
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let (start, from_disk, recent) = self.0.memory().read(start, end, bytes_max);
        if start >= from_disk {
            return Ok(recent);
        }
        let shared = self.0.clone();
        let read = tokio::task::spawn_blocking(move || shared.read(start, end, bytes_max)).await;
        read.map_err(io::Error::other)?.map_err(storage)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let memory = self.shared.memory();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader(self.shared.clone())
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let change = (VOTE.to_vec(), Some(encode(vote).map_err(storage)?));
        self.write_and_wait(vec![change], Done::Synced).await?;
        self.shared.memory().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.shared.memory().committed = committed;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        Ok(self.shared.memory().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let mut changes = Vec::with_capacity(entries.len() + 1);
        for entry in &entries {
            changes.push((entry_key(entry.index()), Some(encode(entry).map_err(storage)?)));
        }
        let last = {
            let mut memory = self.shared.memory();
            entries.into_iter().for_each(|entry| memory.push(entry));
            if let Some(committed) = &memory.committed {
                changes.push((COMMITTED.to_vec(), Some(encode(committed).map_err(storage)?)));
            }
            memory.last.map_or(0, |last| last.index)
        };
        self.write(changes, Done::Append(last, callback)).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let keep = next(&last);
        let end = {
            let mut memory = self.shared.memory();
            let end = next(&memory.last);
            memory.forget_from(keep);
            if keep < end {
                memory.last = last.max(memory.purged);
            }
            end
        };
        let changes = (keep..end).rev().map(|index| (entry_key(index), None)).collect();
        self.write_and_wait(changes, Done::Ordered).await?;
        let mut memory = self.shared.memory();
        memory.flushed = memory.flushed.min(keep.saturating_sub(1));
        Ok(())
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        let start = {
            let mut memory = self.shared.memory();
            let start = memory.first;
            memory.first = memory.first.max(upto.index + 1);
            memory.purged = Some(upto).max(memory.purged);
            memory.last = memory.last.max(memory.purged);
            memory.forget_upto(upto.index);
            start
        };
        self.write_and_wait(vec![(PURGED.to_vec(), Some(encode(&upto).map_err(storage)?))], Done::AfterState).await?;
        for from in (start..=upto.index).step_by(PURGE_BATCH as usize) {
            let end = (from + PURGE_BATCH).min(upto.index + 1);
            let changes = (from..end).map(|index| (entry_key(index), None)).collect();
            self.write_and_wait(changes, Done::Ordered).await?;
        }
        Ok(())
    }
}

fn load(kv: &FjallKv) -> Result<Memory> {
    fn record<T: for<'de> serde::Deserialize<'de>>(kv: &FjallKv, key: &[u8]) -> Result<Option<T>> {
        kv.get(key)?.map(|value| decode(&value, "a record of the log")).transpose()
    }
    let mut memory = Memory {
        purged: record(kv, PURGED)?,
        vote: record(kv, VOTE)?,
        committed: record(kv, COMMITTED)?,
        ..Memory::default()
    };
    memory.last = memory.purged;
    memory.first = next(&memory.purged);
    drop_purged(kv, memory.first)?;
    let mut at = memory.first;
    loop {
        let found = kv.scan(&entry_key(at), &[ENTRY + 1], 256)?;
        if found.is_empty() {
            break;
        }
        for (key, value) in found {
            if key != entry_key(at) {
                return Err(Error::new(Kind::Corrupt, format!("the log lacks entry {at}")));
            }
            memory.push(decode(&value, "a log entry")?);
            memory.flushed = at;
            at += 1;
        }
        memory.forget_old();
    }
    Ok(memory)
}

/// Deletes what a purge that was interrupted has left.
fn drop_purged(kv: &FjallKv, first: u64) -> Result<()> {
    loop {
        let left = kv.scan(&[ENTRY], &entry_key(first), PURGE_BATCH as usize)?;
        if left.is_empty() {
            return Ok(());
        }
        let changes = left.into_iter().map(|(key, _)| (key, None)).collect();
        kv.write(WriteBatch { changes }, Durability::Process)?;
    }
}

fn entry_key(index: u64) -> Vec<u8> {
    let mut key = vec![ENTRY];
    key.extend(index.to_be_bytes());
    key
}

fn entry_bytes(entry: &Entry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.len() + 64,
        EntryPayload::Blank | EntryPayload::Membership(_) => 256,
    }
}

fn next(id: &Option<LogId>) -> u64 {
    id.map_or(0, |id| id.index + 1)
}

fn bounds(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}
