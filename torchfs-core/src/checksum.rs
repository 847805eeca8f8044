//! CRC32C per 64 KiB block: computed by whoever first has the bytes, checked at every hand-over until the reader has them.
//!
//! CRC32C is the Castagnoli polynomial of RFC 3720 section 12.1, which x86-64 and AArch64 compute in hardware.

use crate::error::{Error, Kind, Result};
use crate::settings::BLOCK_BYTES;

/// The CRC32C of each 64 KiB block of `bytes`; the last block may be short. Empty for no bytes.
#[must_use]
pub fn block_checksums(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks(BLOCK_BYTES).map(crc32c::crc32c).collect()
}

/// Checks `bytes` (which start on a block boundary) against the checksums of their blocks.
///
/// # Errors
/// [`Kind::Corrupt`] naming the first block that does not match, or if the number of checksums is not the number of blocks.
pub fn verify_blocks(bytes: &[u8], checksums: &[u32]) -> Result<()> {
    if bytes.len().div_ceil(BLOCK_BYTES) != checksums.len() {
        let message = format!("{} checksums for {} bytes", checksums.len(), bytes.len());
        return Err(Error::new(Kind::Corrupt, message));
    }
    for (number, (block, &expected)) in bytes.chunks(BLOCK_BYTES).zip(checksums).enumerate() {
        let actual = crc32c::crc32c(block);
        if actual != expected {
            let message = format!("block {number} has checksum {actual:08x}, expected {expected:08x}");
            return Err(Error::new(Kind::Corrupt, message));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_is_found() {
        let mut bytes = vec![7u8; 2 * BLOCK_BYTES + 10];
        let sums = block_checksums(&bytes);
        assert_eq!(sums.len(), 3);
        verify_blocks(&bytes, &sums).expect("untouched bytes match");
        for at in [0, BLOCK_BYTES - 1, BLOCK_BYTES, 2 * BLOCK_BYTES + 9] {
            bytes[at] ^= 1;
            assert_eq!(verify_blocks(&bytes, &sums).expect_err("flipped").kind(), Kind::Corrupt);
            bytes[at] ^= 1;
        }
        assert!(verify_blocks(&bytes[..BLOCK_BYTES], &sums).is_err());
        assert!(verify_blocks(&[], &[]).is_ok());
    }

    #[test]
    fn the_polynomial_is_castagnoli() {
        // RFC 3720, appendix B.4: 32 bytes of zeros.
        assert_eq!(block_checksums(&[0; 32]), [0x8a91_36aa]);
    }
}
