//! The bytes of a shard file: a header of 512 bytes, then the data.
//!
//! All numbers are little-endian. The header holds the checksums of all blocks and a checksum of itself; it is read whole
//! before any data is believed. `docs/on-disk-format.md` has the table.

use torchfs_core::settings::{BLOCK_BYTES, SHARD_BYTES_MAX};
use torchfs_core::{ClusterId, Error, Kind, Result, ShardId, StripeId};

/// Where the data begins.
pub const HEADER_BYTES: usize = 512;

/// The version of the shard file format.
pub const SHARD_FORMAT: u32 = 1;

const MAGIC: [u8; 8] = *b"TFSSHARD";
const CHECKSUM_AT: usize = 60;
const BLOCKS_AT: usize = 64;

const _: () = assert!(BLOCKS_AT + 4 * SHARD_BYTES_MAX.div_ceil(BLOCK_BYTES) <= HEADER_BYTES);

/// What a shard file says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Which shard it is.
    pub shard: ShardId,
    /// Data bytes.
    pub bytes: u32,
    /// CRC32C of each block.
    pub checksums: Vec<u32>,
}

impl Header {
    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        assert_eq!(self.checksums.len(), blocks(self.bytes), "a header has one checksum per block");
        let mut out = [0; HEADER_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&SHARD_FORMAT.to_le_bytes());
        out[12..16].copy_from_slice(&(BLOCK_BYTES as u32).to_le_bytes());
        out[16..32].copy_from_slice(&self.cluster.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.shard.stripe.0.to_le_bytes());
        out[40..44].copy_from_slice(&u32::from(self.shard.index).to_le_bytes());
        out[44..48].copy_from_slice(&self.bytes.to_le_bytes());
        for (slot, checksum) in out[BLOCKS_AT..].chunks_exact_mut(4).zip(&self.checksums) {
            slot.copy_from_slice(&checksum.to_le_bytes());
        }
        let checksum = header_checksum(&out);
        out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// Reads a header and checks everything in it that can be checked without the data.
    ///
    /// # Errors
    /// `Corrupt` for damage, `Protocol` for an undamaged header of another format version.
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        if bytes[0..8] != MAGIC {
            return Err(corrupt("it does not start like a shard file"));
        }
        // Every version keeps magic, version and checksum at the same places, so damage is told from another version.
        let (expected, actual) = (u32_at(bytes, CHECKSUM_AT), header_checksum(bytes));
        if expected != actual {
            return Err(corrupt(format!("its header has checksum {actual:08x}, expected {expected:08x}")));
        }
        let version = u32_at(bytes, 8);
        if version != SHARD_FORMAT {
            let message = format!("shard file format {version}; this program reads format {SHARD_FORMAT}");
            return Err(Error::new(Kind::Protocol, message));
        }
        Self::decode_fields(bytes)
    }

    fn decode_fields(bytes: &[u8; HEADER_BYTES]) -> Result<Self> {
        let (block_bytes, index, length) = (u32_at(bytes, 12), u32_at(bytes, 40), u32_at(bytes, 44));
        let message = || corrupt(format!("header says blocks of {block_bytes}, index {index}, {length} bytes"));
        let index = u8::try_from(index).map_err(|_| message())?;
        if block_bytes as usize != BLOCK_BYTES || !is_shard_length(length as usize) {
            return Err(message());
        }
        let checksums = bytes[BLOCKS_AT..].chunks_exact(4).take(blocks(length));
        Ok(Header {
            cluster: ClusterId(u128::from_le_bytes(array_at(bytes, 16))),
            shard: ShardId { stripe: StripeId(u64::from_le_bytes(array_at(bytes, 32))), index },
            bytes: length,
            checksums: checksums.map(|chunk| u32::from_le_bytes(array_at(chunk, 0))).collect(),
        })
    }
}

/// Whether a shard may have this many data bytes.
#[must_use]
pub fn is_shard_length(bytes: usize) -> bool {
    (1..=SHARD_BYTES_MAX).contains(&bytes)
}

fn blocks(bytes: u32) -> usize {
    (bytes as usize).div_ceil(BLOCK_BYTES)
}

/// Over the whole header, its own place taken as zeros.
fn header_checksum(bytes: &[u8; HEADER_BYTES]) -> u32 {
    let before = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
    let place = crc32c::crc32c_append(before, &[0; 4]);
    crc32c::crc32c_append(place, &bytes[CHECKSUM_AT + 4..])
}

fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(Kind::Corrupt, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(bytes: u32) -> Header {
        let shard = ShardId { stripe: StripeId(0x0123_4567_89ab_cdef), index: 5 };
        Header { cluster: ClusterId(7), shard, bytes, checksums: (0..blocks(bytes) as u32).collect() }
    }

    #[test]
    fn every_length_is_read_as_it_was_written() {
        for bytes in [1, 65_535, 65_536, 65_537, SHARD_BYTES_MAX as u32] {
            assert_eq!(Header::decode(&header(bytes).encode()).expect("decodes"), header(bytes));
        }
    }

    #[test]
    fn any_flipped_bit_is_damage() {
        let good = header(SHARD_BYTES_MAX as u32).encode();
        for at in 0..HEADER_BYTES {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert_eq!(Header::decode(&bad).expect_err("flipped").kind(), Kind::Corrupt, "byte {at}");
        }
    }

    #[test]
    fn another_format_version_is_named() {
        let mut other = header(1).encode();
        other[8] = 9;
        let checksum = header_checksum(&other);
        other[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
        let error = Header::decode(&other).expect_err("version 9");
        assert_eq!(error.kind(), Kind::Protocol);
        assert!(error.to_string().contains("format 9") && error.to_string().contains("format 1"), "{error}");
    }
}
