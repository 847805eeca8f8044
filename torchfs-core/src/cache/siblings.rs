//! [`Siblings`]: other caches in the same folder, whose whole files need not be fetched from the cluster again.
//!
//! The rule: nothing of theirs is relied on or changed. Their indexes are read as they grow, bytes that have the right
//! checksum are copied, and whatever is not as expected is fetched.

use super::CacheKey;
use super::disk;
use super::index_file::{IndexReader, Record};
use crate::ids::ClusterId;
use bytes::{Bytes, BytesMut};
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked who is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often their indexes are read on, while files are asked for that are not known.
const READ_EVERY: Duration = Duration::from_millis(20);

/// The other caches in a folder.
#[derive(Debug)]
pub(super) struct Siblings {
    /// The folder that is shared.
    root: PathBuf,
    own: PathBuf,
    cluster: ClusterId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    read: Option<Instant>,
    others: HashMap<PathBuf, Other>,
}

#[derive(Debug, Default)]
struct Other {
    index: IndexReader,
    records: HashMap<CacheKey, Record>,
}

impl Siblings {
    /// Those of the cache in `own`, in the folder `root`.
    pub fn new(root: &Path, own: &Path, cluster: ClusterId) -> Self {
        Siblings { root: root.to_owned(), own: own.to_owned(), cluster, state: Mutex::default() }
    }

    /// Whether there are none, as far as was seen lately.
    pub fn are_none(&self) -> bool {
        // Who holds it may be reading from the disk, and is not waited for here, on a thread of the runtime.
        self.state.try_lock().is_ok_and(|state| state.others.is_empty() && state.is_looked())
    }

    /// Bytes of a file, if one of them has it whole and undamaged. The range begins and ends with chunks. Blocks on the disk.
    pub fn read(&self, key: CacheKey, len: u64, range: &Range<u64>) -> Option<Bytes> {
        let found = self.find(key);
        let whole = found.into_iter().filter(|(_, record)| record.len == len);
        whole.filter_map(|(dir, record)| read_checked(&dir, &record, range)).next()
    }

    fn find(&self, key: CacheKey) -> Vec<(PathBuf, Record)> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.look(&self.root, &self.own);
        if state.others.is_empty() {
            return Vec::new();
        }
        if !state.others.values().any(|other| other.records.contains_key(&key)) {
            state.read_on(self.cluster);
        }
        let found =
            state.others.iter().filter_map(|(dir, other)| Some((dir.clone(), other.records.get(&key)?.clone())));
        found.collect()
    }
}

impl State {
    fn is_looked(&self) -> bool {
        self.looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY)
    }

    fn look(&mut self, root: &Path, own: &Path) {
        if self.is_looked() {
            return;
        }
        self.looked = Some(Instant::now());
        let others: Vec<PathBuf> = disk::seats(root).into_iter().filter(|seat| seat != own).collect();
        self.others.retain(|dir, _| others.contains(dir));
        for dir in others {
            self.others.entry(dir).or_default();
        }
    }

    fn read_on(&mut self, cluster: ClusterId) {
        if self.read.is_some_and(|read| read.elapsed() < READ_EVERY) {
            return;
        }
        self.read = Some(Instant::now());
        for (dir, other) in &mut self.others {
            let Some(more) = other.index.read_on(dir, cluster) else {
                *other = Other::default();
                continue;
            };
            if more.is_from_the_start {
                other.records.clear();
            }
            other.records.extend(more.records.into_iter().map(|record| (record.key(), record)));
        }
    }
}

fn read_checked(dir: &Path, record: &Record, range: &Range<u64>) -> Option<Bytes> {
    let file = File::open(disk::content_path(dir, record.name)).ok()?;
    let mut bytes = BytesMut::zeroed((range.end - range.start) as usize);
    disk::read_at(&file, &mut bytes, range.start).ok()?;
    let first = (range.start / super::CHUNK_BYTES) as usize;
    let checksums = record.checksums.get(first..)?;
    let chunks = bytes.chunks(super::CHUNK_BYTES as usize);
    let is_whole = chunks.len() <= checksums.len();
    (is_whole && chunks.zip(checksums).all(|(chunk, checksum)| crc32c::crc32c(chunk) == *checksum))
        .then(|| bytes.freeze())
}
