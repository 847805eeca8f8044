//! Snapshot files: the whole state as one file, written aside, synchronised, renamed, and read back block by block.
//!
//! Layout (integers little-endian): magic `TFSMSNAP`, format version (u32), then blocks of length (u32), CRC32C of the body
//! (u32) and body. The first body is the snapshot's [`Meta`], each further one a run of keys with their values, the last
//! one is empty. Bodies are postcard.

use super::{TypeConfig, decode, encode};
use crate::kv::{Entry, KvRead};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use torchfs_core::folder::publish;
use torchfs_core::{Error, IoContext, Kind, Result};

/// Which entries a snapshot reflects.
pub type Meta = openraft::type_config::alias::SnapshotMetaOf<TypeConfig>;

const MAGIC: &[u8; 8] = b"TFSMSNAP";
const VERSION: u32 = 1;
const HEADER_BYTES: u64 = 12;

/// Keys in one block, and about how many bytes of keys and values.
const BLOCK_KEYS_MAX: usize = 1024;
const BLOCK_BYTES: usize = 1 << 20;

/// Largest block that is believed: a run of the largest values.
const BLOCK_BYTES_MAX: u32 = 256 << 20;

/// An open snapshot file. It stays readable when a newer snapshot takes its name away.
#[derive(Clone, Debug)]
pub struct SnapshotFile {
    file: Arc<File>,
    path: PathBuf,
    bytes: u64,
}

impl SnapshotFile {
    /// Opens a file and checks its head.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if it is not a snapshot, [`Kind::Protocol`] if it is of another format version.
    pub fn open(path: &Path) -> Result<(Meta, SnapshotFile)> {
        let file = File::open(path).io(|| format!("open snapshot {}", path.display()))?;
        let bytes = file.metadata().io(|| format!("open snapshot {}", path.display()))?.len();
        let snapshot = SnapshotFile { file: Arc::new(file), path: path.to_path_buf(), bytes };
        let mut header = [0; HEADER_BYTES as usize];
        snapshot.read_exact(&mut header, 0)?;
        if &header[..8] != MAGIC {
            return Err(snapshot.corrupt("it does not begin like a snapshot"));
        }
        let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        if version != VERSION {
            let message = format!(
                "snapshot {} has format version {version}, this program reads {VERSION}: use the version that wrote it",
                path.display()
            );
            return Err(Error::new(Kind::Protocol, message));
        }
        let mut blocks = snapshot.blocks();
        let meta = blocks.next_body()?.ok_or_else(|| snapshot.corrupt("it has no description"))?;
        Ok((decode(&meta, "a snapshot's description")?, snapshot))
    }

    /// Its length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it lies, or lay when it was opened.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Some bytes of it, fewer at its end.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn read_at(&self, offset: u64, bytes_max: usize) -> Result<Vec<u8>> {
        let len = self.bytes.saturating_sub(offset).min(bytes_max as u64) as usize;
        let mut bytes = vec![0; len];
        self.read_exact(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Hands every run of keys to `take`, in order, and fails if the file is not whole.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], or what `take` says.
    pub fn for_each(&self, mut take: impl FnMut(Vec<Entry>) -> Result<()>) -> Result<()> {
        let mut blocks = self.blocks();
        blocks.next_body()?;
        while let Some(body) = blocks.next_body()? {
            take(decode(&body, "a snapshot's block")?)?;
        }
        Ok(())
    }

    fn blocks(&self) -> Blocks<'_> {
        Blocks { snapshot: self, at: HEADER_BYTES }
    }

    fn read_exact(&self, bytes: &mut [u8], offset: u64) -> Result<()> {
        match self.file.read_exact_at(bytes, offset) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(self.corrupt("it ends early")),
            other => other.io(|| format!("read snapshot {}", self.path.display())),
        }
    }

    fn corrupt(&self, why: &str) -> Error {
        Error::new(Kind::Corrupt, format!("snapshot {}: {why}", self.path.display()))
    }
}

struct Blocks<'a> {
    snapshot: &'a SnapshotFile,
    at: u64,
}

impl Blocks<'_> {
    /// `None` at the empty block, which must be the end of the file.
    fn next_body(&mut self) -> Result<Option<Vec<u8>>> {
        let mut head = [0; 8];
        self.snapshot.read_exact(&mut head, self.at)?;
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]);
        let checksum = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        if len > BLOCK_BYTES_MAX {
            return Err(self.snapshot.corrupt("a block has an impossible length"));
        }
        let mut body = vec![0; len as usize];
        self.snapshot.read_exact(&mut body, self.at + 8)?;
        if crc32c::crc32c(&body) != checksum {
            return Err(self.snapshot.corrupt("a block's checksum does not match"));
        }
        self.at += 8 + u64::from(len);
        if len > 0 {
            return Ok(Some(body));
        }
        if self.at == self.snapshot.bytes { Ok(None) } else { Err(self.snapshot.corrupt("it goes on after its end")) }
    }
}

/// Writes everything in `view` to `path`, so that the file is either whole and on disk or not there.
///
/// # Errors
/// What the operating system says; [`Kind::NoSpace`] when the disk is full.
pub fn write(view: &dyn KvRead, meta: &Meta, path: &Path) -> Result<SnapshotFile> {
    let aside = path.with_extension("tmp");
    let written = write_aside(view, meta, &aside).and_then(|()| publish(&aside, path));
    if written.is_err() {
        // The first failure is what matters; a leftover is removed at the next start.
        std::fs::remove_file(&aside).ok();
    }
    written?;
    Ok(SnapshotFile::open(path)?.1)
}

fn write_aside(view: &dyn KvRead, meta: &Meta, path: &Path) -> Result<()> {
    let what = || format!("write snapshot {}", path.display());
    let file = File::create(path).io(what)?;
    let mut out = BufWriter::with_capacity(BLOCK_BYTES, file);
    out.write_all(MAGIC).io(what)?;
    out.write_all(&VERSION.to_le_bytes()).io(what)?;
    write_block(&mut out, &encode(meta)?).io(what)?;
    let mut from = Vec::new();
    loop {
        let entries = run_of_keys(view, &from)?;
        let Some((last, _)) = entries.last() else { break };
        from.clone_from(last);
        from.push(0);
        write_block(&mut out, &encode(&entries)?).io(what)?;
    }
    write_block(&mut out, &[]).io(what)?;
    out.into_inner().map_err(std::io::IntoInnerError::into_error).io(what)?.sync_all().io(what)
}

fn run_of_keys(view: &dyn KvRead, from: &[u8]) -> Result<Vec<Entry>> {
    let mut entries = view.scan(from, &crate::kv::END, BLOCK_KEYS_MAX)?;
    let mut bytes = 0;
    let fits = entries.iter().take_while(|(key, value)| {
        let fits = bytes < BLOCK_BYTES;
        bytes += key.len() + value.len();
        fits
    });
    let count = fits.count();
    entries.truncate(count);
    Ok(entries)
}

fn write_block(out: &mut impl Write, body: &[u8]) -> std::io::Result<()> {
    out.write_all(&(body.len() as u32).to_le_bytes())?;
    out.write_all(&crc32c::crc32c(body).to_le_bytes())?;
    out.write_all(body)
}
