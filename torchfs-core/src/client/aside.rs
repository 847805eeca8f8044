//! [`Asides`]: what was written and could not be committed, kept in the cache folder until somebody takes it from there.
//!
//! ```text
//! recover/<id>.data      the bytes that were written, each at its place in the file; sparse
//! recover/<id>.record    which bytes these are and what they were for
//! ```
//! A record is written last and renamed into place, both are synced: what is listed is whole. It is bounded by the number
//! of bytes; the oldest go first.

use super::overlay::{Piece, Source};
use super::staging::Staging;
use crate::cache;
use crate::error::{Error, IoContext, Kind, Result};
use crate::folder;
use crate::ids::{ClusterId, InodeId, Version};
use crate::layout::Stripe;
use crate::meta::{Name, Timestamp};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

const FOLDER: &str = "recover";

const MAGIC: &[u8; 8] = b"TFSASIDE";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 4 + 4;

/// Longest record: a file that was written in a million little pieces.
const RECORD_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Bytes that are copied and checked together.
const PART_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What there is to know of content that was set aside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub cluster: ClusterId,
    pub ino: InodeId,
    /// A name that the file had, and in which folder.
    pub name: Option<(InodeId, Name)>,
    /// The version that it was written over, ...
    pub version: Version,
    /// ... and how much of that is still to be seen.
    pub visible: u64,
    pub size: u64,
    pub at: Timestamp,
    /// The process that wrote.
    pub pid: u32,
    pub why: String,
    pub parts: Vec<Part>,
}

/// A written range.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Part {
    pub start: u64,
    pub end: u64,
    pub place: Place,
}

/// Where its bytes are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Place {
    /// In the data file, at the same offset.
    Here { crc32c: u32 },
    /// In a stripe that no commit has named, from `at` on.
    Stripe { stripe: Stripe, at: u32 },
    /// Nowhere: zeros.
    Hole,
}

/// Content that was written and could not be committed. See [`set_aside`].
#[derive(Clone, Debug)]
pub struct SetAside {
    folder: PathBuf,
    id: String,
    pub(super) record: Record,
    /// Bytes of the disk that it takes.
    bytes: u64,
}

/// What is set aside in a cache folder, by whoever uses it, the oldest first. Blocks on the disk.
///
/// # Errors
/// `Protocol` for a record of another version of this program, `Corrupt` for a damaged one, or what the operating system
/// reports. A folder without any is no error.
pub fn set_aside(cache_dir: &Path) -> Result<Vec<SetAside>> {
    let mut found = Vec::new();
    for seat in cache::seats(cache_dir) {
        let asides: Result<Vec<SetAside>> = records(&seat.join(FOLDER))?.into_iter().collect();
        found.extend(asides?);
    }
    found.sort_by_key(|aside: &SetAside| (aside.record.at, aside.id.clone()));
    Ok(found)
}

/// Each record of a folder, or why it cannot be read; the oldest first.
fn records(folder: &Path) -> Result<Vec<Result<SetAside>>> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.io(|| format!("list {}", folder.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.io(|| format!("list {}", folder.display()))?.path();
        if path.extension().is_some_and(|extension| extension == "record")
            && let Some(aside) = SetAside::read(folder, &path).transpose()
        {
            found.push(aside);
        }
    }
    found.sort_by_key(|aside| aside.as_ref().ok().map(|aside| (aside.record.at, aside.id.clone())));
    Ok(found)
}

impl SetAside {
    /// `None` if it was removed meanwhile.
    fn read(folder: &Path, path: &Path) -> Result<Option<SetAside>> {
        let bytes = match std::fs::metadata(path).and_then(|found| match found.len() {
            0..=RECORD_BYTES_MAX => std::fs::read(path),
            _ => Err(std::io::ErrorKind::FileTooLarge.into()),
        }) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.io(|| format!("read {}", path.display()))?,
        };
        let id = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let record = decode(&bytes).map_err(|error| error.context(path.display()))?;
        let mut aside = SetAside { folder: folder.to_owned(), id, record, bytes: 0 };
        aside.bytes = std::fs::metadata(aside.path("data")).map_or(0, |found| found.blocks() * 512);
        Ok(Some(aside))
    }

    fn path(&self, extension: &str) -> PathBuf {
        path(&self.folder, &self.id, extension)
    }

    /// What it is called here.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The file that it was written to.
    #[must_use]
    pub fn ino(&self) -> InodeId {
        self.record.ino
    }

    /// A name that the file had, and the folder in which it had it, if that is known.
    #[must_use]
    pub fn name(&self) -> Option<&(InodeId, Name)> {
        self.record.name.as_ref()
    }

    /// The version of the file that it was written over.
    #[must_use]
    pub fn version(&self) -> Version {
        self.record.version
    }

    /// The size that the file would have.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.record.size
    }

    /// Bytes of the file that were written.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.record.parts.iter().map(|part| part.end - part.start).sum()
    }

    /// When it was set aside.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.record.at
    }

    /// The process that could not commit it.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.record.pid
    }

    /// Why it could not be committed.
    #[must_use]
    pub fn why(&self) -> &str {
        &self.record.why
    }

    /// Removes it for good. Blocks on the disk.
    ///
    /// # Errors
    /// What the operating system reports; that it is gone already is none.
    pub fn remove(&self) -> Result<()> {
        remove(&self.folder, &self.id)
    }

    /// The bytes of a part that is in the data file. Blocks on the disk.
    ///
    /// # Errors
    /// `Corrupt` if they are not those that were written.
    pub(super) fn part_here(&self, range: Range<u64>, crc32c: u32) -> Result<Bytes> {
        let path = self.path("data");
        let file = File::open(&path).io(|| format!("open {}", path.display()))?;
        let mut bytes = BytesMut::zeroed((range.end - range.start).min(PART_BYTES_MAX) as usize);
        file.read_exact_at(&mut bytes, range.start).io(|| format!("read {}", path.display()))?;
        if bytes.len() as u64 != range.end - range.start || crc32c::crc32c(&bytes) != crc32c {
            let message = format!("{} is damaged at {}", path.display(), range.start);
            return Err(Error::new(Kind::Corrupt, message));
        }
        Ok(bytes.freeze())
    }
}

/// The place for what a client cannot commit.
#[derive(Debug)]
pub(super) struct Asides {
    cache_dir: PathBuf,
    folder: PathBuf,
    limit_bytes: u64,
    pub cluster: ClusterId,
    turn: Mutex<()>,
}

impl Asides {
    /// In a cache folder that this process has for itself. Removes what an earlier one did not finish. Blocks on the disk.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn open(cache_dir: &Path, limit_bytes: u64, cluster: ClusterId) -> Result<Asides> {
        let folder = cache_dir.join(FOLDER);
        if let Ok(entries) = std::fs::read_dir(&folder) {
            for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
                let is_record = path.extension().is_some_and(|extension| extension == "record");
                if !is_record && !path.with_extension("record").exists() {
                    std::fs::remove_file(&path).io(|| format!("remove {}", path.display()))?;
                }
            }
        }
        // Others ask for it who stand elsewhere.
        let cache_dir = std::path::absolute(cache_dir).io(|| cache_dir.display().to_string())?;
        Ok(Asides { cache_dir, folder, limit_bytes, cluster, turn: Mutex::default() })
    }

    /// The cache folder.
    pub fn cache_dir(&self) -> &Path {
        &self.cache_dir
    }

    /// Keeps written pieces of a file and returns under which id. Older ones leave if there is no room. Blocks on the disk.
    ///
    /// # Errors
    /// `TooLarge` if it alone is more than may be kept, or what the operating system reports.
    pub fn keep(&self, staging: &Staging, mut record: Record, pieces: &[Piece]) -> Result<String> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        std::fs::create_dir_all(&self.folder).io(|| format!("make the folder {}", self.folder.display()))?;
        self.make_room(pieces.iter().filter(|piece| is_here(piece)).map(Piece::len).sum())?;
        let id = format!("{:08x}", rand::random::<u32>());
        let kept = staging.with_room(0, || {
            record.parts.clear();
            self.write(&id, &mut record, pieces)
        });
        if kept.is_err() {
            // What is left of it would go at the next start in any case.
            drop(remove(&self.folder, &id));
        }
        kept.map(|()| id)
    }

    /// Forgets something that was kept.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn remove(&self, id: &str) -> Result<()> {
        remove(&self.folder, id)
    }

    fn make_room(&self, bytes: u64) -> Result<()> {
        if bytes > self.limit_bytes {
            let message = format!("{bytes} bytes are more than are kept, {}", self.limit_bytes);
            return Err(Error::new(Kind::TooLarge, message));
        }
        // One that cannot be read is nobody's reason to lose what is to be kept now.
        let found: Vec<SetAside> = records(&self.folder)?.into_iter().flatten().collect();
        let mut total: u64 = found.iter().map(|aside| aside.bytes).sum();
        for aside in found {
            if total + bytes <= self.limit_bytes {
                break;
            }
            total -= aside.bytes;
            aside.remove()?;
            let (id, ino) = (&aside.id, aside.record.ino);
            tracing::warn!("what was set aside of file {ino} as {id} is removed: there is no room for more");
        }
        Ok(())
    }

    fn write(&self, id: &str, record: &mut Record, pieces: &[Piece]) -> Result<()> {
        let path = path(&self.folder, id, "data");
        let file = File::options().write(true).create(true).truncate(true).open(&path);
        let file = file.io(|| format!("make {}", path.display()))?;
        for piece in pieces.iter().flat_map(in_parts) {
            record.parts.push(write_part(&file, &path, piece)?);
        }
        file.sync_all().io(|| format!("sync {}", path.display()))?;
        self.write_record(id, &encode(record)?)
    }

    fn write_record(&self, id: &str, bytes: &[u8]) -> Result<()> {
        folder::replace_file(&path(&self.folder, id, "record"), &path(&self.folder, id, "new"), bytes)
    }
}

fn path(folder: &Path, id: &str, extension: &str) -> PathBuf {
    folder.join(format!("{id}.{extension}"))
}

fn remove(folder: &Path, id: &str) -> Result<()> {
    // The record first: without it the rest counts for nothing.
    for extension in ["record", "data", "new"] {
        let path = path(folder, id, extension);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()), error));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_here(piece: &Piece) -> bool {
    matches!(piece.source, Source::Staged { .. } | Source::Sending { .. })
}

fn in_parts(piece: &Piece) -> impl Iterator<Item = Piece> {
    let (range, step) = (piece.range.clone(), if is_here(piece) { PART_BYTES_MAX } else { u64::MAX });
    let starts = std::iter::successors(Some(range.start), move |at| at.checked_add(step));
    let starts = starts.take_while(move |at| *at < range.end);
    starts.map(move |start| piece.slice(&(start..start.saturating_add(step))))
}

fn write_part(file: &File, path: &Path, piece: Piece) -> Result<Part> {
    let Range { start, end } = piece.range;
    let place = match piece.source {
        Source::Staged { block, at } | Source::Sending { block, at, .. } => {
            let mut bytes = vec![0; (end - start) as usize];
            block.read(at as usize, &mut bytes)?;
            file.write_all_at(&bytes, start).io(|| format!("write {}", path.display()))?;
            Place::Here { crc32c: crc32c::crc32c(&bytes) }
        }
        Source::Sent { stripe, at } => Place::Stripe { stripe: Arc::unwrap_or_clone(stripe), at },
        Source::Hole { .. } => Place::Hole,
    };
    Ok(Part { start, end, place })
}

fn encode(record: &Record) -> Result<Vec<u8>> {
    let body = postcard::to_allocvec(record);
    let body = body.map_err(|error| Error::caused(Kind::Io, "encode what is known of a file", error))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Record> {
    let damaged = || Error::new(Kind::Corrupt, "damaged");
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(damaged)?;
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if !header.starts_with(MAGIC) {
        return Err(damaged());
    }
    if number(8) != FORMAT_VERSION {
        let message = format!("format {} is not the format {FORMAT_VERSION} of this program", number(8));
        return Err(Error::new(Kind::Protocol, message));
    }
    if number(12) as usize != body.len() || number(16) != crc32c::crc32c(body) {
        return Err(damaged());
    }
    postcard::from_bytes(body).map_err(|_| damaged())
}

/// When something is set aside: now, in this process.
pub(super) fn now() -> (Timestamp, u32) {
    (SystemTime::now().into(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written_and_damage_is_not() {
        let record = Record {
            cluster: ClusterId(1),
            ino: InodeId(2),
            name: Some((InodeId(1), Name::new("f").expect("a name"))),
            version: Version(3),
            visible: 4,
            size: 5,
            at: Timestamp::default(),
            pid: 6,
            why: "no reason".to_owned(),
            parts: vec![Part { start: 0, end: 5, place: Place::Here { crc32c: 7 } }],
        };
        let bytes = encode(&record).expect("encodes");
        let body = b"\x01\x02\x01\x01\x01f\x03\x04\x05\x00\x00\x06\x09no reason\x01\x00\x05\x00\x07";
        assert_eq!(&bytes[HEADER_BYTES..], body, "as format 1 has it");
        assert_eq!(bytes[..HEADER_BYTES - 4], *b"TFSASIDE\x01\x00\x00\x00\x1b\x00\x00\x00");
        assert_eq!(decode(&bytes).expect("decodes"), record);
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            let kind = decode(&damaged).expect_err("damaged").kind();
            assert_eq!(kind, if (8..12).contains(&at) { Kind::Protocol } else { Kind::Corrupt }, "byte {at}");
            assert_eq!(decode(&bytes[..at]).expect_err("short").kind(), Kind::Corrupt);
        }
    }
}
