//! How a trace is written: [`Encoder`] makes the bytes, [`Reader`] takes them apart again. docs/trace-format.md has it for
//! other programs.
//!
//! A file that ends in the middle of a chunk counts up to its last whole entry; one that is damaged in between is an error.

use super::{Item, Op, Record};
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::InodeId;
use crate::meta::Name;
use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::Read;
use std::time::{Duration, SystemTime};

/// What every trace begins with.
pub const MAGIC: [u8; 8] = *b"TFSTRACE";

const VERSION: u32 = 1;

/// Magic, version, checksum, and microseconds since 1970.
const HEADER_BYTES: usize = 24;

/// Length and checksum.
const CHUNK_HEADER_BYTES: usize = 8;

/// A chunk that is so long takes no more entries.
const CHUNK_BYTES: usize = 64 * 1024;

/// The last entry of a chunk may be the longest there is, a name.
const CHUNK_BYTES_MAX: usize = CHUNK_BYTES + 1024;

const MARK: u8 = 0;
const NAME: u8 = 1;
const LOST: u8 = 2;
/// An operation is its number and this.
const FIRST_OP: u8 = 16;

/// Names that are remembered, so that each is written once. Some 20 MB; then they are begun anew.
const NAMES_MAX: usize = 1 << 20;

/// Writes a trace.
#[derive(Debug)]
pub struct Encoder {
    /// Whole chunks that nobody has taken.
    sealed: Vec<u8>,
    /// The content of the chunk that is being made.
    chunk: Vec<u8>,
    last: u64,
    /// A hash of the last name written of each inode.
    names: HashMap<InodeId, u64>,
}

impl Encoder {
    /// A trace that begins at this time.
    #[must_use]
    pub fn new(began: SystemTime) -> Encoder {
        let micros = began.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64);
        Encoder { sealed: header(micros).to_vec(), chunk: Vec::new(), last: 0, names: HashMap::new() }
    }

    /// Adds an entry; a name only if it was not the last one of its inode already.
    pub fn add(&mut self, item: &Item) {
        match item {
            Item::Op(record) => self.add_op(record),
            Item::Name { ino, parent, name } => self.add_name(*ino, *parent, name),
            Item::Mark(time) => {
                self.chunk.push(MARK);
                self.put_time(*time);
            }
            Item::Lost(count) => {
                self.chunk.push(LOST);
                put(&mut self.chunk, *count);
            }
        }
        if self.chunk.len() >= CHUNK_BYTES {
            self.seal();
        }
    }

    /// What was added since this was asked last, as bytes of the file.
    pub fn take(&mut self) -> Vec<u8> {
        self.seal();
        std::mem::take(&mut self.sealed)
    }

    fn add_op(&mut self, record: &Record) {
        self.chunk.push(FIRST_OP + record.op as u8);
        self.put_time(record.began);
        let took = nanos(record.took);
        let rest = [record.thread.into(), record.ino.0, record.handle, record.offset, record.len, record.result];
        [took].into_iter().chain(rest).chain([record.errno.into()]).for_each(|number| put(&mut self.chunk, number));
    }

    fn add_name(&mut self, ino: InodeId, parent: InodeId, name: &Name) {
        let mut hasher = DefaultHasher::new();
        (parent, name).hash(&mut hasher);
        if self.names.len() >= NAMES_MAX {
            self.names.clear();
        }
        if self.names.insert(ino, hasher.finish()) == Some(hasher.finish()) {
            return;
        }
        self.chunk.push(NAME);
        [ino.0, parent.0, name.as_bytes().len() as u64].into_iter().for_each(|number| put(&mut self.chunk, number));
        self.chunk.extend_from_slice(name.as_bytes());
    }

    /// The difference to the time before, which is short and may be negative: entries come in the order of their answers.
    fn put_time(&mut self, time: Duration) {
        let now = nanos(time);
        let difference = now.wrapping_sub(self.last).cast_signed();
        put(&mut self.chunk, ((difference << 1) ^ (difference >> 63)).cast_unsigned());
        self.last = now;
    }

    fn seal(&mut self) {
        if !self.chunk.is_empty() {
            self.sealed.extend_from_slice(&(self.chunk.len() as u32).to_le_bytes());
            self.sealed.extend_from_slice(&crc32c::crc32c(&self.chunk).to_le_bytes());
            self.sealed.append(&mut self.chunk);
        }
    }
}

fn header(micros: u64) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[16..].copy_from_slice(&micros.to_le_bytes());
    let checksum = crc32c::crc32c(&header);
    header[12..16].copy_from_slice(&checksum.to_le_bytes());
    header
}

/// A span as nanoseconds; 584 years are the longest.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a trace, entry by entry, with the memory of one chunk.
#[derive(Debug)]
pub struct Reader<R> {
    source: R,
    began: SystemTime,
    chunk: Vec<u8>,
    at: usize,
    /// Where the chunk after this one begins in the file.
    offset: u64,
    last: u64,
    is_torn: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the beginning.
    ///
    /// # Errors
    /// `InvalidInput` for what is no trace, `Protocol` for another version of the format, `Corrupt` for damage; those of
    /// reading.
    pub fn new(mut source: R) -> Result<Reader<R>> {
        let mut bytes = Vec::new();
        source.by_ref().take(HEADER_BYTES as u64).read_to_end(&mut bytes).io(|| "read the trace")?;
        let micros = began(&bytes)?;
        let began = SystemTime::UNIX_EPOCH.checked_add(Duration::from_micros(micros));
        let began = began.ok_or_else(|| damaged(16, "no time can be that late"))?;
        let offset = HEADER_BYTES as u64;
        Ok(Reader { source, began, chunk: Vec::new(), at: 0, offset, last: 0, is_torn: false })
    }

    /// When it began.
    pub fn began(&self) -> SystemTime {
        self.began
    }

    /// Whether the end of the file was found to be missing.
    pub fn is_torn(&self) -> bool {
        self.is_torn
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// `Corrupt` for damage, and those of reading.
    #[expect(clippy::should_implement_trait, reason = "it fails, and must not be asked again then")]
    pub fn next(&mut self) -> Result<Option<Item>> {
        if self.at == self.chunk.len() && !self.load()? {
            return Ok(None);
        }
        let mut cursor = Cursor { rest: &self.chunk[self.at..], last: self.last };
        match cursor.item() {
            Some(item) => {
                (self.at, self.last) = (self.chunk.len() - cursor.rest.len(), cursor.last);
                Ok(Some(item))
            }
            None if self.is_torn => {
                self.at = self.chunk.len();
                Ok(None)
            }
            None => Err(damaged(self.offset, "the chunk before holds an entry that makes no sense")),
        }
    }

    /// Loads the next chunk; whether there is one.
    fn load(&mut self) -> Result<bool> {
        if self.is_torn {
            return Ok(false);
        }
        let head = self.take(CHUNK_HEADER_BYTES)?;
        let (Some(length), Some(checksum)) = (u32_at(&head, 0), u32_at(&head, 4)) else {
            self.is_torn = !head.is_empty();
            return Ok(false);
        };
        // What a crash left of a file that had grown and was not written.
        if length == 0 {
            self.is_torn = true;
            return Ok(false);
        }
        if length as usize > CHUNK_BYTES_MAX {
            return Err(damaged(
                self.offset,
                &format!("a chunk of {length} bytes; at most {CHUNK_BYTES_MAX} are possible"),
            ));
        }
        self.chunk = self.take(length as usize)?;
        self.at = 0;
        self.is_torn = self.chunk.len() < length as usize;
        let actual = crc32c::crc32c(&self.chunk);
        if !self.is_torn && actual != checksum {
            return Err(damaged(self.offset, &format!("a chunk has checksum {actual:08x}, expected {checksum:08x}")));
        }
        self.offset += u64::from(length) + CHUNK_HEADER_BYTES as u64;
        Ok(!self.chunk.is_empty())
    }

    /// So many bytes, or all that are left.
    fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        self.source.by_ref().take(length as u64).read_to_end(&mut bytes).io(|| "read the trace")?;
        Ok(bytes)
    }
}

/// Checks the header and says when the trace began.
fn began(bytes: &[u8]) -> Result<u64> {
    if bytes.get(..MAGIC.len()) != Some(&MAGIC) {
        let message = "this is no trace: `torchfs trace record MOUNTPOINT FILE` makes one";
        return Err(Error::new(Kind::InvalidInput, message));
    }
    if let Some(version) = u32_at(bytes, 8).filter(|&version| version != VERSION) {
        let message =
            format!("a trace of format {version}, and this torchfs knows {VERSION}: use the torchfs that made it");
        return Err(Error::new(Kind::Protocol, message));
    }
    let rest = bytes.get(16..HEADER_BYTES).and_then(|micros| Some(u64::from_le_bytes(micros.try_into().ok()?)));
    let Some(micros) = rest else { return Err(damaged(0, "the file ends before its first entry")) };
    if bytes != header(micros) {
        return Err(damaged(0, "the checksum of the beginning does not match"));
    }
    Ok(micros)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn damaged(offset: u64, what: &str) -> Error {
    Error::new(Kind::Corrupt, format!("the trace is damaged at byte {offset}: {what}"))
}

/// Entries from bytes; `None` for what is cut off or makes no sense.
struct Cursor<'a> {
    rest: &'a [u8],
    last: u64,
}

impl Cursor<'_> {
    fn item(&mut self) -> Option<Item> {
        match self.byte()? {
            MARK => Some(Item::Mark(self.time()?)),
            NAME => {
                let (ino, parent) = (InodeId(self.number()?), InodeId(self.number()?));
                let length = usize::try_from(self.number()?).ok()?;
                let name = Name::new(self.rest.get(..length)?).ok()?;
                self.rest = &self.rest[length..];
                Some(Item::Name { ino, parent, name })
            }
            LOST => Some(Item::Lost(self.number()?)),
            tag => {
                let op = Op::of_number(tag.checked_sub(FIRST_OP)?)?;
                Some(Item::Op(Record {
                    op,
                    began: self.time()?,
                    took: Duration::from_nanos(self.number()?),
                    thread: self.number()?.try_into().ok()?,
                    ino: InodeId(self.number()?),
                    handle: self.number()?,
                    offset: self.number()?,
                    len: self.number()?,
                    result: self.number()?,
                    errno: self.number()?.try_into().ok()?,
                }))
            }
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            number |= bits << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn time(&mut self) -> Option<Duration> {
        let zigzag = self.number()?;
        let difference = (zigzag >> 1).cast_signed() ^ -((zigzag & 1).cast_signed());
        self.last = self.last.wrapping_add(difference.cast_unsigned());
        Some(Duration::from_nanos(self.last))
    }
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
