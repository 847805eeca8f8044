//! The file `pins` of a cache folder: the paths that its user keeps in the cache. docs/on-disk-format.md has its layout.
//!
//! It is replaced as a whole and synced, because losing a pin loses what somebody has asked for. One that is damaged, or of another
//! cluster, names nothing.

use crate::error::{Error, Kind, Result};
use crate::folder;
use crate::ids::ClusterId;
use std::path::PathBuf;

const MAGIC: &[u8; 8] = b"TFSCPINS";
const FORMAT_VERSION: u32 = 1;
const HEADER_BYTES: usize = 8 + 4 + 16 + 4 + 4;

/// The longest file: paths of 4 KiB, as many as may be pinned.
const BODY_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Where the pins of one cache are kept.
#[derive(Debug)]
pub(super) struct PinFile {
    dir: PathBuf,
    cluster: ClusterId,
}

impl PinFile {
    /// That of a cache's own folder.
    pub fn new(dir: PathBuf, cluster: ClusterId) -> Self {
        PinFile { dir, cluster }
    }

    /// The paths that are pinned.
    pub fn read(&self) -> Vec<Vec<u8>> {
        let path = self.dir.join("pins");
        let found = std::fs::metadata(&path).and_then(|found| match found.len() {
            0..=BODY_BYTES_MAX => std::fs::read(&path),
            _ => Err(std::io::ErrorKind::FileTooLarge.into()),
        });
        let pins = match found {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
            Err(error) => Err(Error::io(format!("read {}", path.display()), error)),
            Ok(bytes) => decode(&bytes, self.cluster).map_err(|error| error.context(path.display())),
        };
        pins.unwrap_or_else(|error| {
            tracing::warn!(%error, "nothing is pinned");
            Vec::new()
        })
    }

    /// Replaces them.
    ///
    /// # Errors
    /// What the operating system reports; then the old ones stay.
    pub fn write(&self, pins: &[Vec<u8>]) -> Result<()> {
        folder::replace_file(&self.dir.join("pins"), &self.dir.join("pins.new"), &encode(pins, self.cluster)?)
    }
}

fn encode(pins: &[Vec<u8>], cluster: ClusterId) -> Result<Vec<u8>> {
    let body = postcard::to_allocvec(pins);
    let body = body.map_err(|error| Error::caused(Kind::Io, "encode the pins", error))?;
    if body.len() as u64 > BODY_BYTES_MAX - HEADER_BYTES as u64 {
        return Err(Error::new(Kind::TooLarge, "the paths of all pins are too long: pin a folder above them"));
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + body.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&cluster.0.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
    bytes.extend_from_slice(&checksum.to_le_bytes());
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn decode(bytes: &[u8], cluster: ClusterId) -> Result<Vec<Vec<u8>>> {
    let damaged = || Error::new(Kind::Corrupt, "the pins of the cache are damaged: pin again what is to stay");
    let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or_else(damaged)?;
    let field = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if !header.starts_with(MAGIC) {
        return Err(damaged());
    }
    if field(8) != FORMAT_VERSION {
        let message = format!("the pins of the cache are of format {}, and this is format {FORMAT_VERSION}", field(8));
        return Err(Error::new(Kind::Protocol, message));
    }
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&header[..HEADER_BYTES - 4]), body);
    if field(28) as usize != body.len() || field(32) != checksum {
        return Err(damaged());
    }
    if header[12..28] != cluster.0.to_le_bytes() {
        return Err(Error::new(Kind::WrongCluster, "the pins of the cache are of another cluster"));
    }
    postcard::from_bytes(body).map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pins() -> Vec<Vec<u8>> {
        vec![b"data/train".to_vec(), Vec::new(), vec![0xff, b'/', b'x']]
    }

    #[test]
    fn what_was_written_is_read_by_the_same_cluster_only() {
        let dir = tempfile::tempdir().expect("folder");
        let file = PinFile::new(dir.path().to_owned(), ClusterId(5));
        assert!(file.read().is_empty());
        file.write(&pins()).expect("written");
        assert_eq!(file.read(), pins());
        assert!(PinFile::new(dir.path().to_owned(), ClusterId(6)).read().is_empty());
        file.write(&[]).expect("written");
        assert!(file.read().is_empty());
        assert!(!dir.path().join("pins.new").exists());
    }

    #[test]
    fn the_format_is_as_documented_and_damage_names_nothing() {
        let bytes = encode(&pins(), ClusterId(1)).expect("encodes");
        assert_eq!(&bytes[..12], b"TFSCPINS\x01\0\0\0");
        assert_eq!((bytes[12], bytes[28] as usize), (1, bytes.len() - HEADER_BYTES));
        assert_eq!(decode(&bytes, ClusterId(1)).expect("whole"), pins());
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            decode(&damaged, ClusterId(1)).expect_err("a bit is another");
            decode(&bytes[..at], ClusterId(1)).expect_err("cut off");
        }
        let newer = [&bytes[..8], &[2], &bytes[9..]].concat();
        assert_eq!(decode(&newer, ClusterId(1)).expect_err("a later format").kind(), Kind::Protocol);
    }
}
