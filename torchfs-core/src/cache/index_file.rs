//! The index of a cache: which files are complete, for the next start and for others who use the folder.
//!
//! ```text
//! header     "TFSCACHE", format version, cluster, CRC32C of these
//! records    one per file that became complete: length, CRC32C, then the record in postcard
//! ```
//! It is appended to. When it has doubled, it is written anew without the files that left, so that it grows with the cache
//! and not with the epochs.

use super::CacheKey;
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::{ClusterId, InodeId, Version};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

const MAGIC: &[u8; 8] = b"TFSCACHE";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 16 + 4;

/// Longest record: a file of 4 TiB has 4 Mi chunks, five bytes each.
const RECORD_BYTES_MAX: usize = 32 * 1024 * 1024;

/// How much of an index is read at a time: more than the longest record.
const READ_BYTES_MAX: u64 = 2 * RECORD_BYTES_MAX as u64;

/// What an index is called that is being written.
const NEW_NAME: &str = "index.new";

/// A shorter index is never written anew.
const REWRITTEN_BYTES_MIN: u64 = 1 << 20;

/// A complete file as the index names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    ino: u64,
    version: u64,
    pub len: u64,
    pub name: u64,
    /// CRC32C of each chunk.
    pub checksums: Vec<u32>,
}

impl Record {
    pub fn new(key: CacheKey, len: u64, name: u64, checksums: Vec<u32>) -> Self {
        Record { ino: key.ino.0, version: key.version.0, len, name, checksums }
    }

    pub fn key(&self) -> CacheKey {
        CacheKey { ino: InodeId(self.ino), version: Version(self.version) }
    }
}

/// The index of this process.
#[derive(Debug)]
pub(super) struct IndexFile {
    dir: PathBuf,
    cluster: ClusterId,
    end: Mutex<End>,
    /// Held while it is written anew.
    rewriting: Mutex<()>,
}

/// Where records are appended.
#[derive(Debug)]
struct End {
    file: Arc<File>,
    bytes: u64,
    /// When it is longer, it is written anew.
    bytes_max: u64,
}

impl End {
    fn new(file: File, bytes: u64) -> End {
        End { file: Arc::new(file), bytes, bytes_max: 2 * bytes + REWRITTEN_BYTES_MIN }
    }

    /// A record that could not be written whole is written over by the next.
    fn append(&mut self, record: &[u8]) -> std::io::Result<()> {
        self.file.write_all_at(record, self.bytes)?;
        self.bytes += record.len() as u64;
        Ok(())
    }
}

impl IndexFile {
    /// What the index of a folder names, up to the first record that is damaged. `None` if there is no index, nothing if it is of
    /// another cluster or format.
    ///
    /// # Errors
    /// `InvalidInput` if it is something else, or what the operating system reports.
    pub fn read(dir: &Path, cluster: ClusterId) -> Result<Option<Vec<Record>>> {
        let path = dir.join("index");
        match std::fs::read(&path) {
            Ok(bytes) if bytes.starts_with(MAGIC) => Ok(Some(parse(&bytes, cluster))),
            Ok(_) => {
                let message = format!("{} is not a cache folder: choose an empty one", dir.display());
                Err(Error::new(Kind::InvalidInput, message))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
        }
    }

    /// Writes the index of a folder anew.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn create(dir: &Path, cluster: ClusterId, records: &[Record]) -> Result<IndexFile> {
        let mut bytes = header(cluster);
        for record in records {
            bytes.extend_from_slice(&encode(record)?);
        }
        let new = NewIndex::create(dir, &bytes)?;
        let (end, rewriting) = (Mutex::new(new.replace(dir)?), Mutex::default());
        Ok(IndexFile { dir: dir.to_owned(), cluster, end, rewriting })
    }

    /// Adds a file.
    ///
    /// # Errors
    /// What the operating system reports; the file then is not found after a restart.
    pub fn append(&self, record: &Record) -> Result<()> {
        let bytes = encode(record)?;
        self.end().append(&bytes).io(|| format!("write to {}", self.path().display()))
    }

    /// Once it has doubled, writes it anew with those files only that are in the cache. Others add to it meanwhile.
    ///
    /// # Errors
    /// What the operating system reports; then it stays as it is until it has doubled again.
    pub fn rewrite_when_due(&self, is_cached: impl Fn(&Record) -> bool) -> Result<()> {
        let _alone = match self.rewriting.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        let (old, bytes) = {
            let end = self.end();
            if end.bytes <= end.bytes_max {
                return Ok(());
            }
            (end.file.clone(), end.bytes)
        };
        self.rewrite(&old, bytes, is_cached).inspect_err(|_| {
            let mut end = self.end();
            end.bytes_max = 2 * end.bytes;
            // What there is of it takes up room on a disk that may be full.
            let _ = std::fs::remove_file(self.dir.join(NEW_NAME));
        })
    }

    /// `bytes` is how long it was a moment ago.
    fn rewrite(&self, old: &File, bytes: u64, is_cached: impl Fn(&Record) -> bool) -> Result<()> {
        let path = self.path();
        let mut new = NewIndex::create(&self.dir, &header(self.cluster))?;
        let mut offset = HEADER_BYTES as u64;
        while offset < bytes {
            let part = read_part(old, offset..bytes).io(|| format!("read {}", path.display()))?;
            let mut rest = &part[..];
            while let Some((record, after)) = parse_record(rest) {
                if is_cached(&record) {
                    new.write(&rest[..rest.len() - after.len()])?;
                }
                rest = after;
            }
            // Whatever is behind a damaged record would not be found as it is.
            offset = if rest.len() == part.len() { bytes } else { offset + (part.len() - rest.len()) as u64 };
        }
        let mut end = self.end();
        let mut offset = bytes;
        while offset < end.bytes {
            let part = read_part(old, offset..end.bytes).io(|| format!("read {}", path.display()))?;
            new.write(&part)?;
            offset += part.len() as u64;
        }
        *end = new.replace(&self.dir)?;
        Ok(())
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> PathBuf {
        self.dir.join("index")
    }
}

/// An index that is being written, to take the place of the one that is there.
struct NewIndex {
    path: PathBuf,
    out: BufWriter<File>,
    bytes: u64,
}

impl NewIndex {
    fn create(dir: &Path, first: &[u8]) -> Result<NewIndex> {
        let path = dir.join(NEW_NAME);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
        let file = file.io(|| format!("make {}", path.display()))?;
        let mut new = NewIndex { path, out: BufWriter::new(file), bytes: 0 };
        new.write(first)?;
        Ok(new)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.out.write_all(bytes).io(|| format!("write {}", self.path.display()))?;
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn replace(self, dir: &Path) -> Result<End> {
        let (from, to) = (self.path, dir.join("index"));
        let file = self.out.into_inner().map_err(std::io::IntoInnerError::into_error);
        let file = file.io(|| format!("write {}", from.display()))?;
        std::fs::rename(&from, &to).io(|| format!("rename to {}", to.display()))?;
        Ok(End::new(file, self.bytes))
    }
}

/// Some of a range of a file, all of it if that is not much.
fn read_part(file: &File, range: Range<u64>) -> std::io::Result<Vec<u8>> {
    let mut part = vec![0; (range.end - range.start).min(READ_BYTES_MAX) as usize];
    file.read_exact_at(&mut part, range.start)?;
    Ok(part)
}

fn header(cluster: ClusterId) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&cluster.0.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Length, CRC32C, then the record in postcard.
fn encode(record: &Record) -> Result<Vec<u8>> {
    let body = postcard::to_allocvec(record);
    let body = body.map_err(|error| Error::caused(Kind::Io, "encode a record of the cache's index", error))?;
    let mut bytes = Vec::with_capacity(8 + body.len());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// The records of an index, up to the first that is damaged; none if it is of another cluster or format.
fn parse(bytes: &[u8], cluster: ClusterId) -> Vec<Record> {
    let records = bytes.strip_prefix(&header(cluster)[..]).map(parse_records);
    records.map_or_else(Vec::new, |(records, _)| records)
}

/// Records up to the first that is not whole, and what is left from there.
fn parse_records(mut bytes: &[u8]) -> (Vec<Record>, &[u8]) {
    let mut records = Vec::new();
    while let Some((record, after)) = parse_record(bytes) {
        records.push(record);
        bytes = after;
    }
    (records, bytes)
}

/// How far the index of another process was read.
#[derive(Debug, Default)]
pub(super) struct IndexReader {
    /// Kept open, so that none that is written anew has the same inode.
    file: Option<File>,
    offset: u64,
}

/// What [`IndexReader`] found.
#[derive(Debug)]
pub(super) struct More {
    /// It is another index than the one that was read before.
    pub is_from_the_start: bool,
    pub records: Vec<Record>,
}

impl IndexReader {
    /// The records that came since the last call. `None` if there is no index of this cluster.
    pub fn read_on(&mut self, dir: &Path, cluster: ClusterId) -> Option<More> {
        let file = File::open(dir.join("index")).ok()?;
        let found = file.metadata().ok()?;
        let known = self.file.as_ref().and_then(|known| known.metadata().ok());
        let is_known = known.is_some_and(|known| (known.dev(), known.ino()) == (found.dev(), found.ino()));
        let is_from_the_start = !is_known || found.len() < self.offset;
        if is_from_the_start {
            let mut first = [0; HEADER_BYTES];
            file.read_exact_at(&mut first, 0).ok()?;
            if first[..] != header(cluster) {
                return None;
            }
            *self = IndexReader { file: None, offset: HEADER_BYTES as u64 };
        }
        let file = self.file.insert(file);
        let bytes = read_part(file, self.offset..found.len()).ok()?;
        let (records, rest) = parse_records(&bytes);
        self.offset += (bytes.len() - rest.len()) as u64;
        Some(More { is_from_the_start, records })
    }
}

fn parse_record(bytes: &[u8]) -> Option<(Record, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let (checksum, rest) = rest.split_first_chunk::<4>()?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > RECORD_BYTES_MAX || len > rest.len() {
        return None;
    }
    let (body, rest) = rest.split_at(len);
    if crc32c::crc32c(body) != u32::from_le_bytes(*checksum) {
        return None;
    }
    Some((postcard::from_bytes(body).ok()?, rest))
}

/// One for tests.
#[cfg(test)]
pub(super) fn record(number: u64, len: u64) -> Record {
    let key = CacheKey { ino: InodeId(number), version: Version(1) };
    Record::new(key, len, number, vec![7; len.div_ceil(super::CHUNK_BYTES) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn opened(dir: &Path) -> IndexFile {
        IndexFile::create(dir, ClusterId(1), &[]).expect("made")
    }

    fn read(dir: &Path) -> Vec<Record> {
        IndexFile::read(dir, ClusterId(1)).expect("read").expect("is there")
    }

    /// About 4 KB in the index.
    fn long_record(number: u64) -> Record {
        record(number, 4096 * crate::cache::CHUNK_BYTES)
    }

    #[test]
    fn an_index_is_read_on_as_it_grows_and_anew_when_it_is_another() {
        let root = tempfile::tempdir().expect("folder");
        let index = opened(root.path());
        let mut reader = IndexReader::default();
        let mut read = |cluster| reader.read_on(root.path(), ClusterId(cluster)).map(|more| more.records);
        assert_eq!(read(2), None);
        assert_eq!(read(1), Some(vec![]));
        (0..2).for_each(|number| index.append(&record(number, 100)).expect("noted"));
        assert_eq!(read(1), Some(vec![record(0, 100), record(1, 100)]));
        assert_eq!(read(1), Some(vec![]));
        // Half a record is being written.
        let next = encode(&record(2, 100)).expect("encodes");
        let mut file = File::options().append(true).open(root.path().join("index")).expect("opens");
        file.write_all(&next[..5]).expect("writes");
        assert_eq!(read(1), Some(vec![]));
        file.write_all(&next[5..]).expect("writes");
        assert_eq!(read(1), Some(vec![record(2, 100)]));
        let index = opened(root.path());
        index.append(&record(7, 100)).expect("noted");
        let more = reader.read_on(root.path(), ClusterId(1)).expect("is there");
        assert!(more.is_from_the_start && more.records == [record(7, 100)]);
    }

    #[test]
    fn an_index_grows_with_what_is_cached_and_not_with_what_ever_was() {
        let dir = tempfile::tempdir().expect("folder");
        let index = opened(dir.path());
        let one = encode(&long_record(0)).expect("encodes").len() as u64;
        let mut reader = IndexReader::default();
        let mut rewritten = 0;
        for number in 0..2000 {
            index.append(&long_record(number)).expect("noted");
            index.rewrite_when_due(|record| record.name + 100 > number).expect("written");
            let bytes = std::fs::metadata(dir.path().join("index")).expect("stat").len();
            assert!(bytes < REWRITTEN_BYTES_MIN + 210 * one, "{bytes} bytes after {number}");
            let more = reader.read_on(dir.path(), ClusterId(1)).expect("is there");
            rewritten += u64::from(more.is_from_the_start && number > 0);
            assert_eq!(more.records.last(), Some(&long_record(number)));
        }
        assert!((5..20).contains(&rewritten), "written anew {rewritten} times");
        let found = read(dir.path());
        assert_eq!(found[found.len() - 100..], (1900..2000).map(long_record).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_added_while_an_index_is_written_anew_is_in_it() {
        let dir = tempfile::tempdir().expect("folder");
        let (index, next) = (opened(dir.path()), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        index.append(&long_record(next.fetch_add(1, Ordering::Relaxed))).expect("noted");
                        index.rewrite_when_due(|record| record.name % 7 == 0).expect("written");
                    }
                });
            }
        });
        let mut found: Vec<u64> =
            read(dir.path()).iter().map(|record| record.name).filter(|name| name % 7 == 0).collect();
        found.sort_unstable();
        assert_eq!(found, (0..2000).step_by(7).collect::<Vec<_>>());
    }

    /// File systems give numbers of inodes again.
    #[test]
    fn an_index_that_was_written_anew_twice_is_not_taken_for_the_first() {
        let dir = tempfile::tempdir().expect("folder");
        opened(dir.path());
        let mut reader = IndexReader::default();
        let mut read = || reader.read_on(dir.path(), ClusterId(1)).expect("is there");
        for round in 0..20 {
            // Of other lengths, so that to go on where the last one ended is wrong.
            let records: Vec<Record> = (0..3 + round).map(|number| record(number, (round + 1) << 24)).collect();
            for _ in 0..2 {
                IndexFile::create(dir.path(), ClusterId(1), &records).expect("made");
            }
            let more = read();
            assert!(more.is_from_the_start && more.records == records, "round {round}: {more:?}");
        }
    }

    #[test]
    fn an_index_that_was_removed_is_there_again_when_it_has_doubled() {
        let dir = tempfile::tempdir().expect("folder");
        let index = opened(dir.path());
        for number in 0..600 {
            index.append(&long_record(number)).expect("noted");
            if number == 10 {
                std::fs::remove_file(dir.path().join("index")).expect("removed");
            }
            index.rewrite_when_due(|_| true).expect("written");
        }
        assert!(read(dir.path()).into_iter().eq((0..600).map(long_record)));
    }

    #[test]
    fn an_index_that_cannot_be_written_anew_stays() {
        let dir = tempfile::tempdir().expect("folder");
        let index = opened(dir.path());
        std::fs::create_dir(dir.path().join("index.new")).expect("in the way");
        let mut failed = 0;
        let mut add = |numbers: Range<u64>| {
            for number in numbers {
                index.append(&long_record(number)).expect("noted");
                failed += u64::from(index.rewrite_when_due(|record| record.name >= 1200).is_err());
            }
            failed
        };
        assert_eq!(add(0..1000), 2, "tried when it had doubled");
        assert_eq!(read(dir.path()).len(), 1000);
        std::fs::remove_dir(dir.path().join("index.new")).expect("out of the way");
        assert_eq!(add(1000..2100), 2, "now it can");
        assert!(read(dir.path()).iter().map(|record| record.name).eq(1200..2100));
    }

    /// The disk was full.
    #[test]
    fn half_a_record_is_written_over_by_the_next() {
        let dir = tempfile::tempdir().expect("folder");
        let index = opened(dir.path());
        index.append(&record(1, 100)).expect("noted");
        let half = &encode(&long_record(2)).expect("encodes")[..2000];
        let mut file = File::options().append(true).open(dir.path().join("index")).expect("opens");
        file.write_all(half).expect("writes");
        index.append(&record(3, 100)).expect("noted");
        assert_eq!(read(dir.path()), [record(1, 100), record(3, 100)]);
    }

    #[test]
    fn the_format_is_as_documented() {
        let mut bytes = header(ClusterId(1));
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(&bytes[..12], b"TFSCACHE\x01\0\0\0");
        bytes.extend(encode(&record(3, 5)).expect("encoded"));
        assert_eq!(parse(&bytes, ClusterId(1)), [record(3, 5)]);
        assert_eq!(&bytes[HEADER_BYTES..HEADER_BYTES + 4], 6u32.to_le_bytes(), "ino, version, len, name, one checksum");
        assert!(parse(&bytes, ClusterId(2)).is_empty());
    }
}
