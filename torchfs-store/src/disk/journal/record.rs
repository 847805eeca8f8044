//! The bytes of a journal segment: a page that says which use of the segment is current, then records that begin at pages.
//!
//! Records begin at multiples of a page, so that writing one never touches the bytes of one that was acknowledged.
//! `docs/on-disk-format.md` has the tables.

use super::super::format::HEADER_BYTES;
use torchfs_core::settings::SHARD_BYTES_MAX;
use torchfs_core::{Error, Kind, Result, ShardId, StripeId};

/// What a device writes whole.
pub const PAGE_BYTES: usize = 4096;

/// The fixed part of a record, and of a segment's first page.
pub const FIXED_BYTES: usize = 64;

const JOURNAL_FORMAT: u32 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"TFSJSEGM";
const RECORD_MAGIC: [u8; 8] = *b"TFSJRECD";
const CHECKSUM_AT: usize = 60;
const KIND_PUT: u32 = 1;
const KIND_DELETE: u32 = 2;

/// Counts the uses of segments, over all segments of a journal: a record of another epoch is of an earlier use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The one after it.
    #[must_use]
    pub fn next(self) -> Self {
        Epoch(self.0 + 1)
    }
}

/// What a record says of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is stored; the body is the whole shard file.
    Put,
    /// It is deleted.
    Delete,
}

/// Where a record is in the order of a segment's use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The use.
    pub epoch: Epoch,
    /// How many records of the use are before it.
    pub index: u32,
}

/// A record to be written.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    shard: ShardId,
    change: Change,
    body: [&'a [u8]; 2],
    body_checksum: u32,
}

impl<'a> Record<'a> {
    /// Of a shard file: header and data.
    #[must_use]
    pub fn put(shard: ShardId, header: &'a [u8; HEADER_BYTES], data: &'a [u8]) -> Self {
        let body_checksum = crc32c::crc32c_append(crc32c::crc32c(header), data);
        Record { shard, change: Change::Put, body: [header, data], body_checksum }
    }

    /// Of a deletion.
    #[must_use]
    pub fn delete(shard: ShardId) -> Self {
        Record { shard, change: Change::Delete, body: [&[], &[]], body_checksum: crc32c::crc32c(&[]) }
    }

    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// What becomes of it.
    #[must_use]
    pub fn change(&self) -> Change {
        self.change
    }

    fn body_bytes(&self) -> usize {
        self.body[0].len() + self.body[1].len()
    }

    /// Bytes that it takes in a segment.
    #[must_use]
    pub fn padded_bytes(&self) -> usize {
        padded(self.body_bytes())
    }

    /// Appends its bytes, padded with zeros.
    pub fn encode(&self, place: Place, out: &mut Vec<u8>) {
        let end = out.len() + self.padded_bytes();
        let kind = match self.change {
            Change::Put => KIND_PUT,
            Change::Delete => KIND_DELETE,
        };
        let mut fixed = [0; FIXED_BYTES];
        fixed[0..8].copy_from_slice(&RECORD_MAGIC);
        fixed[8..12].copy_from_slice(&kind.to_le_bytes());
        fixed[12..16].copy_from_slice(&(self.body_bytes() as u32).to_le_bytes());
        fixed[16..24].copy_from_slice(&place.epoch.0.to_le_bytes());
        fixed[24..28].copy_from_slice(&place.index.to_le_bytes());
        fixed[28..32].copy_from_slice(&u32::from(self.shard.index).to_le_bytes());
        fixed[32..40].copy_from_slice(&self.shard.stripe.0.to_le_bytes());
        fixed[40..44].copy_from_slice(&self.body_checksum.to_le_bytes());
        seal(&mut fixed);
        out.extend_from_slice(&fixed);
        out.extend_from_slice(self.body[0]);
        out.extend_from_slice(self.body[1]);
        out.resize(end, 0);
    }
}

/// The fixed part of a record that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The shard.
    pub shard: ShardId,
    /// What becomes of it.
    pub change: Change,
    /// Where it says it is.
    pub place: Place,
    /// Bytes after the fixed part.
    pub body_bytes: usize,
    body_checksum: u32,
}

impl Found {
    /// Reads the fixed part; `None` if these are not the bytes of one.
    #[must_use]
    pub fn decode(fixed: &[u8; FIXED_BYTES]) -> Option<Self> {
        if fixed[0..8] != RECORD_MAGIC || !is_sealed(fixed) {
            return None;
        }
        let body_bytes = u32_at(fixed, 12) as usize;
        let change = match u32_at(fixed, 8) {
            KIND_PUT if (HEADER_BYTES + 1..=HEADER_BYTES + SHARD_BYTES_MAX).contains(&body_bytes) => Change::Put,
            KIND_DELETE if body_bytes == 0 => Change::Delete,
            _ => return None,
        };
        let index = u8::try_from(u32_at(fixed, 28)).ok()?;
        Some(Found {
            shard: ShardId { stripe: StripeId(u64_at(fixed, 32)), index },
            change,
            place: Place { epoch: Epoch(u64_at(fixed, 16)), index: u32_at(fixed, 24) },
            body_bytes,
            body_checksum: u32_at(fixed, 40),
        })
    }

    /// Whether these bytes are its body.
    #[must_use]
    pub fn is_body(&self, body: &[u8]) -> bool {
        body.len() == self.body_bytes && crc32c::crc32c(body) == self.body_checksum
    }

    /// Bytes that it takes in a segment.
    #[must_use]
    pub fn padded_bytes(&self) -> usize {
        padded(self.body_bytes)
    }
}

/// The first page of a segment whose records are of this epoch.
#[must_use]
pub fn encode_segment(epoch: Epoch) -> Vec<u8> {
    let mut fixed = [0; FIXED_BYTES];
    fixed[0..8].copy_from_slice(&SEGMENT_MAGIC);
    fixed[8..12].copy_from_slice(&JOURNAL_FORMAT.to_le_bytes());
    fixed[16..24].copy_from_slice(&epoch.0.to_le_bytes());
    seal(&mut fixed);
    let mut page = fixed.to_vec();
    page.resize(PAGE_BYTES, 0);
    page
}

/// The epoch in the first page of a segment; `None` if it is damaged.
///
/// # Errors
/// `Protocol` for another format version.
pub fn decode_segment(fixed: &[u8; FIXED_BYTES]) -> Result<Option<Epoch>> {
    if fixed[0..8] != SEGMENT_MAGIC || !is_sealed(fixed) {
        return Ok(None);
    }
    match u32_at(fixed, 8) {
        JOURNAL_FORMAT => Ok(Some(Epoch(u64_at(fixed, 16)))),
        version => {
            let message = format!(
                "journal format {version}; this program uses format {JOURNAL_FORMAT}: start and stop the node once with \
                 the torchfs that wrote it"
            );
            Err(Error::new(Kind::Protocol, message))
        }
    }
}

fn padded(body_bytes: usize) -> usize {
    (FIXED_BYTES + body_bytes).next_multiple_of(PAGE_BYTES)
}

/// Checksums the bytes before the checksum, which is last.
fn seal(fixed: &mut [u8; FIXED_BYTES]) {
    let checksum = crc32c::crc32c(&fixed[..CHECKSUM_AT]);
    fixed[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
}

fn is_sealed(fixed: &[u8; FIXED_BYTES]) -> bool {
    u32_at(fixed, CHECKSUM_AT) == crc32c::crc32c(&fixed[..CHECKSUM_AT])
}

fn u32_at(bytes: &[u8; FIXED_BYTES], at: usize) -> u32 {
    let mut out = [0; 4];
    out.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(out)
}

fn u64_at(bytes: &[u8; FIXED_BYTES], at: usize) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARD: ShardId = ShardId { stripe: StripeId(0x0123_4567_89ab_cdef), index: 5 };
    const PLACE: Place = Place { epoch: Epoch(77), index: 12 };

    fn fixed(bytes: &[u8]) -> [u8; FIXED_BYTES] {
        bytes[..FIXED_BYTES].try_into().expect("long enough")
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let (header, data) = ([7; HEADER_BYTES], [9; 5000]);
        let mut bytes = vec![1; PAGE_BYTES];
        Record::put(SHARD, &header, &data).encode(PLACE, &mut bytes);
        Record::delete(SHARD).encode(PLACE, &mut bytes);
        assert_eq!(bytes.len(), (1 + 2 + 1) * PAGE_BYTES);
        let put = Found::decode(&fixed(&bytes[PAGE_BYTES..])).expect("decodes");
        assert_eq!((put.shard, put.change, put.place), (SHARD, Change::Put, PLACE));
        let body = &bytes[PAGE_BYTES + FIXED_BYTES..][..put.body_bytes];
        assert!(put.is_body(body) && body == [&header[..], &data].concat());
        assert!(!put.is_body(&body[1..]));
        let delete = Found::decode(&fixed(&bytes[PAGE_BYTES + put.padded_bytes()..])).expect("decodes");
        assert_eq!((delete.shard, delete.change, delete.padded_bytes()), (SHARD, Change::Delete, PAGE_BYTES));
    }

    #[test]
    fn any_flipped_bit_is_no_record_and_no_segment() {
        let mut record = Vec::new();
        Record::delete(SHARD).encode(PLACE, &mut record);
        let segment = encode_segment(Epoch(3));
        assert_eq!(decode_segment(&fixed(&segment)).expect("this format"), Some(Epoch(3)));
        for at in 0..FIXED_BYTES {
            let (mut record, mut segment) = (fixed(&record), fixed(&segment));
            record[at] ^= 4;
            segment[at] ^= 4;
            assert_eq!(Found::decode(&record), None, "byte {at}");
            assert_eq!(decode_segment(&segment).expect("damage"), None, "byte {at}");
        }
    }

    #[test]
    fn another_format_version_is_named() {
        let mut other = fixed(&encode_segment(Epoch(3)));
        other[8] = 9;
        seal(&mut other);
        let error = decode_segment(&other).expect_err("version 9");
        assert_eq!(error.kind(), Kind::Protocol);
        assert!(error.to_string().contains("format 9") && error.to_string().contains("format 1"), "{error}");
    }
}
