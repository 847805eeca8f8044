//! [`Schedule`]: the order in which one client will read files in an epoch; and [`Dataset`], the files it speaks of.
//!
//! Both are made for millions: an order is four bytes per entry, and all epochs share one dataset.

use crate::cache::CacheKey;
use crate::error::{Error, Kind, Result};
use std::sync::Arc;

/// Most entries of all announced orders together, and most files of a dataset: 16 Mi.
pub const ENTRIES_MAX: usize = 16 << 20;

/// How far opens may come out of order unless a schedule says otherwise. Enough for the four workers of a data loader that
/// hold two batches of 128 files each.
pub const REORDER_DEFAULT: u32 = 1024;

/// A file to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataFile {
    /// Which content.
    pub key: CacheKey,
    /// How long it is.
    pub bytes: u64,
}

/// Files in the order of their listing, known by index. 28 bytes per file.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<DataFile>,
    /// Their indices in the order of their keys.
    by_key: Vec<u32>,
}

impl Dataset {
    /// Takes files in the order of their listing. Takes a second for some millions.
    ///
    /// # Errors
    /// `InvalidInput` if one is named twice, or there are more than [`ENTRIES_MAX`].
    pub fn new(files: Vec<DataFile>) -> Result<Arc<Dataset>> {
        check_entries("a dataset", files.len(), 0)?;
        let mut by_key: Vec<u32> = (0..files.len() as u32).collect();
        by_key.sort_unstable_by_key(|&at| files[at as usize].key);
        let is_twice = |pair: &&[u32]| files[pair[0] as usize].key == files[pair[1] as usize].key;
        if let Some(twice) = by_key.windows(2).find(is_twice) {
            let ino = files[twice[0] as usize].key.ino;
            let message = format!("the dataset names inode {ino} twice: name each file once");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Arc::new(Dataset { files, by_key }))
    }

    /// Its files, as listed.
    #[must_use]
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// Where a file stands in the listing.
    #[must_use]
    pub fn index_of(&self, key: CacheKey) -> Option<u32> {
        let at = self.by_key.binary_search_by_key(&key, |&at| self.files[at as usize].key).ok()?;
        Some(self.by_key[at])
    }

    /// The file as it was listed: with that key or, if it has changed since, with an earlier or later version.
    #[must_use]
    pub fn as_listed(&self, key: CacheKey) -> Option<DataFile> {
        if let Some(at) = self.index_of(key) {
            return Some(self.files[at as usize]);
        }
        let first = self.by_key.partition_point(|&at| self.files[at as usize].key.ino < key.ino);
        let listed = self.files[*self.by_key.get(first)? as usize];
        (listed.key.ino == key.ino).then_some(listed)
    }

    /// How long all files are together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}

/// The announced order of one epoch. Files may occur repeatedly, as samplers with replacement draw them, or not at all.
#[derive(Clone, Debug)]
pub struct Schedule {
    epoch: u64,
    dataset: Arc<Dataset>,
    order: Vec<u32>,
    reorder: u32,
    bytes: u64,
}

impl Schedule {
    /// The order of an epoch, as indices into the dataset.
    ///
    /// # Errors
    /// `InvalidInput` if it is empty, longer than [`ENTRIES_MAX`], or names a file that the dataset does not have.
    pub fn new(epoch: u64, dataset: Arc<Dataset>, order: Vec<u32>) -> Result<Schedule> {
        check_entries(&format!("epoch {epoch}"), order.len(), 0)?;
        let (files, mut bytes) = (dataset.files(), 0u64);
        for &file in &order {
            let known = files.get(file as usize).ok_or_else(|| {
                let message = format!("epoch {epoch} names file {file} of a dataset of {} files", files.len());
                Error::new(Kind::InvalidInput, message)
            })?;
            bytes = bytes.saturating_add(known.bytes);
        }
        if order.is_empty() {
            return Err(Error::new(Kind::InvalidInput, format!("epoch {epoch} names no file: announce what is read")));
        }
        Ok(Schedule { epoch, dataset, order, reorder: REORDER_DEFAULT, bytes })
    }

    /// Says how far opens may come out of order: workers × batches that each holds × files per batch. What was not opened
    /// when others so far behind it were counts as read.
    #[must_use]
    pub fn with_reorder(mut self, entries: u32) -> Schedule {
        self.reorder = entries.max(1);
        self
    }

    /// Says that the workers of a data loader read it, each whole batches in turn and all at the same time, and puts the order
    /// so. Without this they are noticed, but not which batch each takes next.
    #[must_use]
    pub fn with_workers(mut self, workers: usize, batch: usize) -> Schedule {
        let held = workers.saturating_mul(batch).saturating_mul(2).try_into().unwrap_or(u32::MAX);
        self.order = interleave(&self.order, workers, batch);
        self.reorder = self.reorder.max(held);
        self
    }

    /// Which epoch it is of.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The files it speaks of.
    #[must_use]
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The order, as indices into the dataset.
    #[must_use]
    pub fn order(&self) -> &[u32] {
        &self.order
    }

    /// How far opens may come out of order.
    #[must_use]
    pub fn reorder(&self) -> u32 {
        self.reorder
    }

    /// How long all entries are together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// The order in which workers open what is handed to them batch by batch in turn, if all are equally fast.
pub(crate) fn interleave(order: &[u32], workers: usize, batch: usize) -> Vec<u32> {
    let (workers, batch) = (workers.max(1), batch.max(1));
    let mut opened = Vec::with_capacity(order.len());
    for round in order.chunks(workers.saturating_mul(batch)) {
        let at = |entry: usize| round.chunks(batch).filter_map(move |batch| batch.get(entry).copied());
        (0..batch.min(round.len())).for_each(|entry| opened.extend(at(entry)));
    }
    opened
}

/// Refuses more entries than memory should be spent on.
pub(super) fn check_entries(what: &str, entries: usize, announced: usize) -> Result<()> {
    if entries.saturating_add(announced) <= ENTRIES_MAX {
        return Ok(());
    }
    let besides = if announced > 0 { format!(" besides {announced} that are announced") } else { String::new() };
    let message = format!(
        "{what} has {entries} entries{besides}, and at most {ENTRIES_MAX} are kept: announce a part at a time, as epochs of \
         their own"
    );
    Err(Error::new(Kind::TooLarge, message))
}
