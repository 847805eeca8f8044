//! [`Tracer`]: what `.torchfs/trace` gives. Operations are noted while it is open, and not otherwise: then one atomic load is
//! all that an operation costs.
//!
//! What is noted waits in a queue with a bound; a reader that is too slow for it finds in the trace how much it missed.

use crate::errno::errno;
use crate::special::Special;
use crate::volume::{Answer, NodeAttr, Opened};
use bytes::{Bytes, BytesMut};
use fuser::{Errno, ReplyDirectory, ReplyDirectoryPlus, ReplyOpen};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::Notify;
use torchfs_core::meta::{FsStat, Name};
use torchfs_core::trace::{Encoder, Item, Record};
use torchfs_core::{Error, InodeId, Kind, Result};

/// Entries that wait for the reader. Some ten megabytes.
const QUEUE_MAX: usize = 65_536;

/// How long a read waits for entries. A reader that is to stop is held up for no longer, and each gets many at once.
const PATIENCE: Duration = Duration::from_millis(100);

/// One recording at a time.
#[derive(Debug, Default)]
pub struct Tracer {
    /// The handle that reads; 0 while none does.
    reader: AtomicU64,
    /// The mount ends, and so does the trace.
    is_stopped: AtomicBool,
    queue: Mutex<Queue>,
    /// The queue is half full.
    filled: Notify,
    stream: Mutex<Option<Stream>>,
}

#[derive(Debug, Default)]
struct Queue {
    began: Option<Instant>,
    items: Vec<Item>,
    lost: u64,
}

#[derive(Debug)]
struct Stream {
    began: Instant,
    encoder: Encoder,
    /// Bytes that no read has taken yet.
    ready: BytesMut,
}

/// An operation that is to be noted when it is answered.
#[derive(Debug)]
pub struct Asked {
    tracer: Arc<Tracer>,
    record: Record,
    since: Instant,
}

impl Tracer {
    /// Begins to note, for this handle. `names` are those that may not be told again.
    ///
    /// # Errors
    /// `Exists` while another handle reads.
    pub fn open(&self, handle: u64, names: impl FnOnce() -> Vec<(InodeId, Name, InodeId)>) -> Result<u64> {
        let mut stream = self.stream();
        if stream.is_some() {
            return Err(Error::new(Kind::Exists, "this mount is being recorded already: stop that recording first"));
        }
        let began = Instant::now();
        let mut encoder = Encoder::new(SystemTime::now());
        let ready = BytesMut::from(&encoder.take()[..]);
        *stream = Some(Stream { began, encoder, ready });
        *self.queue() = Queue { began: Some(began), ..Queue::default() };
        self.is_stopped.store(false, Ordering::Release);
        self.reader.store(handle, Ordering::Release);
        names().into_iter().for_each(|(parent, name, ino)| self.name(parent, &name, ino));
        Ok(handle)
    }

    /// Whether operations are noted.
    pub fn is_recording(&self) -> bool {
        self.reader.load(Ordering::Relaxed) != 0
    }

    /// Whether this handle reads the trace.
    pub fn is_read_by(&self, handle: u64) -> bool {
        self.reader.load(Ordering::Relaxed) == handle
    }

    /// Ends what this handle reads, if it does.
    pub fn close(&self, handle: u64) -> bool {
        let is_reader = self.reader.compare_exchange(handle, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if is_reader {
            *self.queue() = Queue::default();
            *self.stream() = None;
        }
        is_reader
    }

    /// Whoever reads is at the end after what was noted so far; whether somebody does.
    pub fn stop(&self) -> bool {
        self.is_stopped.store(true, Ordering::Release);
        self.filled.notify_one();
        self.is_recording()
    }

    /// An operation begins; `None` if it is not to be noted.
    pub fn asked(self: &Arc<Self>, record: Record) -> Option<Asked> {
        if !self.is_recording() || Special::of(record.ino).is_some() {
            return None;
        }
        Some(Asked { tracer: self.clone(), record, since: Instant::now() })
    }

    /// The kernel is told a name.
    pub fn name(&self, parent: InodeId, name: &Name, ino: InodeId) {
        if self.is_recording() {
            self.push(|_| Some(Item::Name { ino, parent, name: name.clone() }));
        }
    }

    fn push(&self, item: impl FnOnce(Instant) -> Option<Item>) {
        let mut queue = self.queue();
        let Some(item) = queue.began.and_then(item) else { return };
        if queue.items.len() >= QUEUE_MAX {
            queue.lost += 1;
            return;
        }
        queue.items.push(item);
        if queue.items.len() == QUEUE_MAX / 2 {
            self.filled.notify_one();
        }
    }

    /// The next bytes of the trace. If nothing happens within a moment, they say that; so there are none only at the end.
    pub async fn read(&self, len: usize) -> Bytes {
        if self.ready_bytes() == 0 && !self.is_stopped.load(Ordering::Acquire) {
            // Whether it is full or time is up, what there is goes now.
            let _ = tokio::time::timeout(PATIENCE, self.filled.notified()).await;
        }
        // A read that gets less than it asks for has got everything.
        if self.ready_bytes() < len {
            self.encode();
        }
        let mut stream = self.stream();
        let Some(stream) = stream.as_mut() else { return Bytes::new() };
        let len = len.min(stream.ready.len());
        stream.ready.split_to(len).freeze()
    }

    fn encode(&self) {
        let mut stream = self.stream();
        let Some(stream) = stream.as_mut() else { return };
        let (items, lost) = {
            let mut queue = self.queue();
            (std::mem::take(&mut queue.items), std::mem::take(&mut queue.lost))
        };
        items.iter().for_each(|item| stream.encoder.add(item));
        if lost > 0 {
            stream.encoder.add(&Item::Lost(lost));
        }
        if items.is_empty() && !self.is_stopped.load(Ordering::Acquire) {
            stream.encoder.add(&Item::Mark(stream.began.elapsed()));
        }
        stream.ready.extend_from_slice(&stream.encoder.take());
    }

    fn ready_bytes(&self) -> usize {
        self.stream().as_ref().map_or(0, |stream| stream.ready.len())
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stream(&self) -> MutexGuard<'_, Option<Stream>> {
        self.stream.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Asked {
    /// It is answered.
    pub fn answered(self, note: Note) {
        let took = self.since.elapsed();
        let record = Record {
            took,
            ino: note.ino.unwrap_or(self.record.ino),
            handle: note.handle.unwrap_or(self.record.handle),
            result: note.result,
            errno: note.errno,
            ..self.record
        };
        // What was asked before the trace began is of an earlier one, if of any.
        let since_began = |began| self.since.checked_duration_since(began);
        self.tracer.push(|began| Some(Item::Op(Record { began: since_began(began)?, ..record })));
    }
}

/// What a trace has of an answer.
#[derive(Clone, Copy, Debug, Default)]
pub struct Note {
    ino: Option<InodeId>,
    handle: Option<u64>,
    result: u64,
    errno: u16,
}

impl Note {
    pub fn of<T>(result: &Result<T, Errno>) -> Note
    where
        Note: for<'a> From<&'a T>,
    {
        match result {
            Ok(answer) => Note::from(answer),
            Err(errno) => Note::errno(errno.code() as u16),
        }
    }

    pub fn errno(errno: u16) -> Note {
        Note { errno, ..Note::default() }
    }

    fn bytes(bytes: usize) -> Note {
        Note { result: bytes as u64, ..Note::default() }
    }

    pub fn failed(error: &Error) -> Note {
        Note::errno(errno(error).code() as u16)
    }
}

macro_rules! nothing_to_note {
    ($($answer:ty),*) => {
        $(impl From<&$answer> for Note {
            fn from(_: &$answer) -> Note {
                Note::default()
            }
        })*
    };
}

nothing_to_note!((), Answer, NodeAttr, FsStat, Option<u64>);

impl From<&Bytes> for Note {
    fn from(read: &Bytes) -> Note {
        Note::bytes(read.len())
    }
}

impl From<&Vec<u8>> for Note {
    fn from(read: &Vec<u8>) -> Note {
        Note::bytes(read.len())
    }
}

impl From<&u32> for Note {
    fn from(written: &u32) -> Note {
        Note::bytes(*written as usize)
    }
}

impl From<&u64> for Note {
    fn from(copied: &u64) -> Note {
        Note { result: *copied, ..Note::default() }
    }
}

impl From<&Opened> for Note {
    fn from(opened: &Opened) -> Note {
        Note { handle: Some(opened.handle), result: opened.bytes, ..Note::default() }
    }
}

impl From<&(NodeAttr, Opened)> for Note {
    fn from((shown, opened): &(NodeAttr, Opened)) -> Note {
        Note { ino: Some(shown.attr.ino), ..Note::from(opened) }
    }
}

impl From<&(ReplyOpen, Result<Opened>)> for Note {
    fn from((_, opened): &(ReplyOpen, Result<Opened>)) -> Note {
        opened.as_ref().map_or_else(Note::failed, Note::from)
    }
}

impl From<&(Result<()>, ReplyDirectory)> for Note {
    fn from((listed, _): &(Result<()>, ReplyDirectory)) -> Note {
        listed.as_ref().map_or_else(Note::failed, Note::from)
    }
}

impl From<&(Result<()>, ReplyDirectoryPlus)> for Note {
    fn from((listed, _): &(Result<()>, ReplyDirectoryPlus)) -> Note {
        listed.as_ref().map_or_else(Note::failed, Note::from)
    }
}

#[cfg(test)]
#[path = "tracer_test.rs"]
mod tests;
