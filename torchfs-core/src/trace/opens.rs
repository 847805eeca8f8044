//! [`Opens`]: which files a trace saw opened for reading, when, and in which epochs.
//!
//! What an epoch is cannot be seen, only that files come again. So an epoch begins with an open of a file that the epoch before has
//! opened already, if of the different files in the 4 opens from there on three quarters, and of those in 16 a quarter,
//! were opened in it too. A label file that every worker opens begins none, nor does a program that opens each file twice in a row.
//! Workers that still finish an epoch while others begin the next are counted with the next. If a trace begins within
//! the last quarter of an epoch, that part may be counted with the epoch that follows; so are the first 15 opens of an
//! epoch with the one before, if the trace ends there.

use super::{Item, Names, Op, Record};
use crate::cache::CacheKey;
use crate::error::{Error, Kind, Result};
use crate::ids::{InodeId, Version};
use crate::prefetch::{DataFile, Dataset};
use crate::sim::Workload;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::ops::Range;
use std::time::Duration;

/// What begins an epoch: of the different files in so many opens, so many quarters were opened before.
const COME_AGAIN: [(usize, usize); 2] = [(4, 3), (16, 1)];

/// How many reads of a handle are remembered: those that the kernel has asked for ahead may be answered in any order.
const RECENT: usize = 8;

/// A file that was opened for reading.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedFile {
    /// Which one.
    pub ino: InodeId,
    /// Its path from the root of the mount on, if all its names were told.
    pub path: Option<Vec<u8>>,
    /// How long it was when it was opened last.
    pub bytes: u64,
    /// How often it was opened.
    pub opens: u64,
    /// Bytes that were read from it through the mount's process.
    pub read_bytes: u64,
}

/// One open for reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    /// When.
    pub began: Duration,
    /// Which of the files.
    pub file: u32,
    /// How long it was.
    pub bytes: u64,
    /// Bytes that were read through this handle, and not by the kernel itself.
    pub read_bytes: u64,
}

/// How files were read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ReadPattern {
    /// Reads, of any handle.
    pub reads: u64,
    /// Those that began at the start of the file, or beside what was read through the handle a moment before.
    pub sequential: u64,
}

/// All opens for reading, in the order in which they began.
#[derive(Clone, Debug, Default)]
pub struct Opens {
    /// The files, in the order of their first open.
    pub files: Vec<OpenedFile>,
    /// The opens.
    pub opens: Vec<Open>,
    /// How they were read.
    pub pattern: ReadPattern,
}

/// Collects [`Opens`].
#[derive(Debug, Default)]
pub(super) struct Collector {
    names: Names,
    index: HashMap<InodeId, u32>,
    handles: HashMap<u64, Handle>,
    opens: Opens,
}

#[derive(Debug, Default)]
struct Handle {
    /// Which open it is, if one for reading.
    open: Option<usize>,
    recent: [Range<u64>; RECENT],
    next: usize,
}

impl Handle {
    /// Whether the read begins at 0, or meets one that came a moment before.
    fn is_sequential(&mut self, read: Range<u64>) -> bool {
        let meets = |other: &Range<u64>| !other.is_empty() && (other.end == read.start || other.start == read.end);
        let is_sequential = read.start == 0 || self.recent.iter().any(meets);
        self.recent[self.next] = read;
        self.next = (self.next + 1) % RECENT;
        is_sequential
    }
}

impl Collector {
    pub(super) fn add(&mut self, item: &Item) {
        match item {
            Item::Name { ino, parent, name } => self.names.add(*ino, *parent, name.clone()),
            Item::Op(record) if record.errno == 0 => self.add_op(record),
            Item::Op(_) | Item::Mark(_) | Item::Lost(_) => {}
        }
    }

    fn add_op(&mut self, record: &Record) {
        match record.op {
            Op::Open => self.open(record),
            Op::Read => self.read(record),
            Op::Release => drop(self.handles.remove(&record.handle)),
            _ => {}
        }
    }

    fn open(&mut self, record: &Record) {
        let Opens { files, opens, .. } = &mut self.opens;
        let file = *self.index.entry(record.ino).or_insert_with(|| {
            files.push(OpenedFile { ino: record.ino, path: None, bytes: 0, opens: 0, read_bytes: 0 });
            files.len() as u32 - 1
        });
        files[file as usize].bytes = record.result;
        files[file as usize].opens += 1;
        self.handles.insert(record.handle, Handle { open: Some(opens.len()), ..Handle::default() });
        opens.push(Open { began: record.began, file, bytes: record.result, read_bytes: 0 });
    }

    fn read(&mut self, record: &Record) {
        let handle = self.handles.entry(record.handle).or_default();
        let is_sequential = handle.is_sequential(record.offset..record.offset.saturating_add(record.result));
        self.opens.pattern.reads += 1;
        self.opens.pattern.sequential += u64::from(is_sequential);
        if let Some(open) = handle.open.and_then(|at| self.opens.opens.get_mut(at)) {
            open.read_bytes += record.result;
            self.opens.files[open.file as usize].read_bytes += record.result;
        }
    }

    pub(super) fn finish(self) -> Opens {
        let mut opens = self.opens;
        opens.opens.sort_by_key(|open| open.began);
        for file in &mut opens.files {
            file.path = self.names.path(file.ino);
        }
        opens
    }
}

impl Opens {
    /// Collects them from a trace.
    ///
    /// # Errors
    /// As [`Reader`](super::Reader).
    pub fn read(source: impl Read) -> Result<Opens> {
        let mut reader = super::Reader::new(source)?;
        let mut collector = Collector::default();
        while let Some(item) = reader.next()? {
            collector.add(&item);
        }
        Ok(collector.finish())
    }

    /// The opens of each epoch.
    #[must_use]
    pub fn epochs(&self) -> Vec<Range<usize>> {
        let (mut epochs, mut first) = (Vec::new(), 0);
        let (mut before, mut seen) = (HashSet::new(), HashSet::new());
        for (at, open) in self.opens.iter().enumerate() {
            if seen.contains(&open.file) && self.come_again(at, &seen) {
                epochs.push(first..at);
                first = at;
                before = std::mem::take(&mut seen);
            }
            // A worker that finishes the epoch before opens what that one has not opened yet; it comes in this one too.
            let is_late = (at - first) * 4 < before.len() && !before.contains(&open.file);
            if !is_late {
                seen.insert(open.file);
            }
        }
        if first < self.opens.len() {
            epochs.push(first..self.opens.len());
        }
        epochs
    }

    /// Whether the files that are opened from here on were opened before.
    fn come_again(&self, at: usize, seen: &HashSet<u32>) -> bool {
        // The last few opens of a trace say nothing, unless an epoch is so short.
        let is_enough = self.opens.len() - at >= COME_AGAIN[1].0.min(seen.len());
        is_enough
            && COME_AGAIN.into_iter().all(|(opens, quarters)| {
                let ahead: HashSet<u32> = self.opens[at..].iter().take(opens).map(|open| open.file).collect();
                ahead.intersection(seen).count() * 4 >= ahead.len() * quarters
            })
    }

    /// The same opens for the simulator, whose listing is in the order of the paths; files without one come last.
    ///
    /// # Errors
    /// `InvalidInput` if no file was opened for reading, or there are more than a [`Dataset`] can have.
    pub fn workload(&self) -> Result<Workload> {
        if self.opens.is_empty() {
            let message = "the trace has no open for reading: record while files are read";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let mut listing: Vec<u32> = (0..self.files.len() as u32).collect();
        let file = |at: u32| &self.files[at as usize];
        listing.sort_by_key(|&at| (file(at).path.is_none(), &file(at).path));
        let mut place = vec![0; listing.len()];
        listing.iter().zip(0..).for_each(|(&at, to)| place[at as usize] = to);
        let key = |ino| CacheKey { ino, version: Version(1) };
        let files = listing.iter().map(|&at| DataFile { key: key(file(at).ino), bytes: file(at).bytes });
        let dataset = Dataset::new(files.collect())?;
        let order = |epoch: Range<usize>| self.opens[epoch].iter().map(|open| place[open.file as usize]).collect();
        Workload::of_orders(dataset, self.epochs().into_iter().map(order).collect())
    }
}

#[cfg(test)]
#[path = "opens_test.rs"]
mod tests;
