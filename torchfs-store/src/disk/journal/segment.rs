//! One file of the journal: of fixed length, its blocks written once before it is used, so that a later fdatasync has
//! nothing to tell the file system.

use super::record::{Epoch, FIXED_BYTES, Found, PAGE_BYTES, Place, decode_segment, encode_segment};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use torchfs_core::{Context, IoContext, Result, folder};

/// Zeros are written in pieces of this size.
const ZEROS_BYTES: usize = 1 << 20;

/// Of a segment's name until it is whole.
const TEMP_EXTENSION: &str = "tmp";

/// An open segment.
#[derive(Debug)]
pub struct Segment {
    path: PathBuf,
    file: File,
    bytes: u64,
}

impl Segment {
    /// Makes one for good. Until it is whole it has another name.
    ///
    /// # Errors
    /// `NoSpace`, or of the operating system.
    pub fn make(path: &Path, bytes: u64, epoch: Epoch) -> Result<Self> {
        let temp = path.with_extension(TEMP_EXTENSION);
        let make = || -> std::io::Result<File> {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&temp)?;
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes) {
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
            file.write_all_at(&encode_segment(epoch), 0)?;
            let zeros = vec![0; ZEROS_BYTES];
            let mut at = PAGE_BYTES as u64;
            while at < bytes {
                let piece = ZEROS_BYTES.min((bytes - at) as usize);
                file.write_all_at(&zeros[..piece], at)?;
                at += piece as u64;
            }
            file.sync_all()?;
            fs::rename(&temp, path)?;
            Ok(file)
        };
        let made = make().io(|| format!("make journal segment {}", path.display()));
        if made.is_err() {
            // Nothing depends on it, and the next start removes it too.
            let _ = fs::remove_file(&temp);
        }
        let segment = Segment { path: path.to_owned(), file: made?, bytes };
        path.parent().map_or(Ok(()), folder::sync)?;
        Ok(segment)
    }

    /// Opens one, and removes what is left of one that did not become whole; `None` if there is none.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        // It takes room, nothing else.
        let _ = fs::remove_file(path.with_extension(TEMP_EXTENSION));
        let open = File::options().read(true).write(true).open(path);
        let file = match open {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.io(|| format!("open {}", path.display()))?,
        };
        let bytes = file.metadata().io(|| format!("stat {}", path.display()))?.len();
        Ok(Some(Segment { path: path.to_owned(), file, bytes }))
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whose records count; `None` if that is damaged.
    ///
    /// # Errors
    /// `Protocol` for another format version, or of the operating system.
    pub fn epoch(&self) -> Result<Option<Epoch>> {
        match self.fixed(0)? {
            Some(fixed) => decode_segment(&fixed).context(|| self.path.display()),
            None => Ok(None),
        }
    }

    /// The epoch of the first record, if there is one: what a damaged first page must have said.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn first_record(&self) -> Result<Option<Epoch>> {
        let fixed = self.fixed(PAGE_BYTES as u64)?;
        Ok(fixed.as_ref().and_then(Found::decode).map(|found| found.place.epoch))
    }

    /// The record that begins at `at` with its body, if it is whole and the one that belongs there.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn record(&self, at: u64, place: Place) -> Result<Option<(Found, Vec<u8>)>> {
        let Some(found) = self.fixed(at)?.as_ref().and_then(Found::decode).filter(|found| found.place == place) else {
            return Ok(None);
        };
        let body_at = at + FIXED_BYTES as u64;
        if body_at + found.body_bytes as u64 > self.bytes {
            return Ok(None);
        }
        let mut body = vec![0; found.body_bytes];
        self.file.read_exact_at(&mut body, body_at).io(|| format!("read {}", self.path.display()))?;
        Ok(found.is_body(&body).then_some((found, body)))
    }

    /// Writes records and makes them durable.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn append(&self, records: &[u8], at: u64) -> std::io::Result<()> {
        self.file.write_all_at(records, at)?;
        self.file.sync_data()
    }

    /// Begins another use for good: what is in it counts no more.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn reset(&self, epoch: Epoch) -> std::io::Result<()> {
        self.append(&encode_segment(epoch), 0)
    }

    fn fixed(&self, at: u64) -> Result<Option<[u8; FIXED_BYTES]>> {
        if at + FIXED_BYTES as u64 > self.bytes {
            return Ok(None);
        }
        let mut fixed = [0; FIXED_BYTES];
        self.file.read_exact_at(&mut fixed, at).io(|| format!("read {}", self.path.display()))?;
        Ok(Some(fixed))
    }
}
