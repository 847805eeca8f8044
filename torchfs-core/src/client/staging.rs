//! [`Staging`]: where written bytes wait until a commit has stored them in the cluster.
//!
//! Bytes are only ever added, in [`Block`]s, and never changed once a write is done; a block's space is given back when
//! the last user of the block drops it. So a reader, an upload and a later write over the same range of a file never get
//! into each other's way.
//!
//! A little of each file stays in memory, so that small files cost no disk. The rest of all files goes to one nameless
//! file: one descriptor, and nothing is left behind when the process dies.
//!
//! It shares its disk with the cache, and goes first: when the disk is full, files leave the cache.

use crate::cache::Cache;
use crate::error::{Error, IoContext, Kind, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Small writes share blocks of this size, and the disk gives back space in such pieces.
pub(super) const BLOCK_BYTES: usize = 64 * 1024;

/// How much of one file may wait in memory.
pub(super) const FILE_MEMORY_BYTES_MAX: u64 = 1024 * 1024;

/// How much of all files may wait in memory.
const MEMORY_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How often the cache is asked for room before the disk is taken to be full of other things.
const ROOM_ROUNDS_MAX: u32 = 8;

/// The least that it is asked for, so that not every little write has to ask again.
const ROOM_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// Space for written bytes, shared by all open files of a client.
#[derive(Debug)]
pub(super) struct Staging {
    dir: PathBuf,
    /// The cache on the same disk.
    cache: Option<Cache>,
    memory_bytes: AtomicU64,
    spool: Mutex<Option<Spool>>,
}

/// The nameless file.
#[derive(Debug)]
struct Spool {
    file: Arc<File>,
    end: u64,
    live_bytes: u64,
}

/// A piece of staging space of a fixed length.
#[derive(Debug)]
pub(super) struct Block {
    staging: Arc<Staging>,
    len: u32,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Memory(Mutex<Vec<u8>>),
    Disk { file: Arc<File>, at: u64 },
}

/// Where a file may stage next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefer {
    Memory,
    Disk,
}

impl Staging {
    /// Over a folder, which need not exist yet, and the cache on the same disk.
    pub fn new(dir: impl Into<PathBuf>, cache: Option<Cache>) -> Arc<Self> {
        Arc::new(Staging { dir: dir.into(), cache, memory_bytes: AtomicU64::new(0), spool: Mutex::default() })
    }

    /// Does what takes `bytes` of the disk; if that is full, again with room that the cache makes.
    ///
    /// # Errors
    /// Those of the work.
    pub fn with_room<T>(&self, bytes: usize, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        for _ in 0..ROOM_ROUNDS_MAX {
            match work() {
                Err(error) if error.kind() == Kind::NoSpace && self.make_room(bytes) => {}
                done => return done,
            }
        }
        work()
    }

    fn make_room(&self, bytes: usize) -> bool {
        self.cache.as_ref().is_some_and(|cache| cache.free_disk((bytes as u64).max(ROOM_BYTES_MIN)))
    }

    /// Space for `len` bytes.
    ///
    /// # Errors
    /// If the staging file cannot be made.
    pub fn block(self: &Arc<Self>, len: usize, prefer: Prefer) -> Result<Arc<Block>> {
        let place = match prefer {
            Prefer::Memory if self.take_memory(len as u64) => Place::Memory(Mutex::default()),
            Prefer::Memory | Prefer::Disk => self.take_disk(len as u64)?,
        };
        Ok(Arc::new(Block { staging: self.clone(), len: len as u32, place }))
    }

    fn take_memory(&self, len: u64) -> bool {
        let taken = self.memory_bytes.fetch_add(len, Ordering::Relaxed) + len;
        if taken > MEMORY_BYTES_MAX {
            self.memory_bytes.fetch_sub(len, Ordering::Relaxed);
        }
        taken <= MEMORY_BYTES_MAX
    }

    fn take_disk(&self, len: u64) -> Result<Place> {
        let mut spool = self.spool();
        if spool.is_none() {
            let file = self
                .with_room(BLOCK_BYTES, || nameless_file(&self.dir))
                .map_err(|error| error.context("open a staging file"))?;
            *spool = Some(Spool { file: Arc::new(file), end: 0, live_bytes: 0 });
        }
        let Some(spool) = spool.as_mut() else {
            return Err(Error::new(Kind::Io, "no staging file"));
        };
        let at = spool.end;
        // Whole pages, so that giving back a block never leaves half a page behind.
        spool.end += len.next_multiple_of(4096);
        spool.live_bytes += len;
        Ok(Place::Disk { file: spool.file.clone(), at })
    }

    /// Gives the space of a block back. Where the file system cannot punch holes, it comes back when nothing is staged.
    fn release(&self, file: &File, at: u64, len: u64) {
        let mut spool = self.spool();
        let Some(spool) = spool.as_mut() else { return };
        spool.live_bytes -= len;
        if spool.live_bytes == 0 && file.set_len(0).is_ok() {
            spool.end = 0;
            return;
        }
        let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        // Failing here wastes disk until the file is emptied or closed, and harms nothing else.
        let _ = rustix::fs::fallocate(file, flags, at, len.next_multiple_of(4096));
    }

    fn spool(&self) -> MutexGuard<'_, Option<Spool>> {
        self.spool.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    /// Its length.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether reading and writing it takes no disk.
    pub fn is_memory(&self) -> bool {
        matches!(self.place, Place::Memory(_))
    }

    /// Puts bytes into a part of the block that was not written before.
    ///
    /// # Errors
    /// `NoSpace` if the staging folder's disk is full, and not of what the cache can do without.
    pub fn write(&self, at: usize, bytes: &[u8]) -> Result<()> {
        assert!(at + bytes.len() <= self.len(), "{} bytes at {at} of a block of {}", bytes.len(), self.len);
        match &self.place {
            Place::Memory(memory) => {
                let mut memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                if memory.len() < at + bytes.len() {
                    memory.resize(at + bytes.len(), 0);
                }
                memory[at..at + bytes.len()].copy_from_slice(bytes);
                Ok(())
            }
            Place::Disk { file, at: start } => self.staging.with_room(bytes.len(), || {
                let written = file.write_all_at(bytes, start + at as u64);
                written.io(|| format!("write to the staging folder {}", self.staging.dir.display()))
            }),
        }
    }

    /// Fills `out` with bytes that were written.
    ///
    /// # Errors
    /// If the staging file cannot be read.
    pub fn read(&self, at: usize, out: &mut [u8]) -> Result<()> {
        match &self.place {
            Place::Memory(memory) => {
                let memory = memory.lock().unwrap_or_else(PoisonError::into_inner);
                out.copy_from_slice(&memory[at..at + out.len()]);
                Ok(())
            }
            Place::Disk { file, at: start } => {
                let read = file.read_exact_at(out, start + at as u64);
                read.io(|| format!("read from the staging folder {}", self.staging.dir.display()))
            }
        }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        match &self.place {
            Place::Memory(_) => {
                self.staging.memory_bytes.fetch_sub(u64::from(self.len), Ordering::Relaxed);
            }
            Place::Disk { file, at } => self.staging.release(file, *at, u64::from(self.len)),
        }
    }
}

/// A file without a name in `dir`; where the file system has no such thing, a file whose name is removed at once.
fn nameless_file(dir: &Path) -> Result<File> {
    use rustix::fs::{Mode, OFlags};
    std::fs::create_dir_all(dir).io(|| format!("make the folder {}", dir.display()))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(descriptor) = rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        return Ok(File::from(descriptor));
    }
    let path = dir.join(format!("torchfs-staging-{:016x}", rand::random::<u64>()));
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let file = file.io(|| format!("make {}", path.display()))?;
    std::fs::remove_file(&path).io(|| format!("remove {}", path.display()))?;
    Ok(file)
}

/// Removes what a process left behind that died while it made its staging file.
///
/// # Errors
/// If the folder is there and cannot be read, or an entry cannot be removed.
pub(super) fn remove_leftovers(dir: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.io(|| format!("read {}", dir.display()))?,
    };
    for entry in entries {
        let path = entry.io(|| format!("read {}", dir.display()))?.path();
        std::fs::remove_file(&path).io(|| format!("remove {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn blocks_keep_their_bytes_apart_and_give_space_back() {
        let dir = tempfile::tempdir().expect("folder");
        let staging = Staging::new(dir.path().join("staging"), None);
        let blocks: Vec<_> =
            (0..8u8).map(|number| (number, staging.block(1 << 20, Prefer::Disk).expect("block"))).collect();
        for (number, block) in &blocks {
            block.write(0, &vec![*number; 1 << 20]).expect("written");
        }
        let mut out = vec![0; 100];
        for (number, block) in &blocks {
            block.read(1000, &mut out).expect("read");
            assert_eq!(out, vec![*number; 100]);
        }
        let file = staging.spool().as_ref().expect("spool").file.clone();
        let full = file.metadata().expect("metadata").blocks();
        let mut blocks = blocks;
        blocks.truncate(2);
        assert!(file.metadata().expect("metadata").blocks() <= full / 2, "space of dropped blocks comes back");
        drop(blocks);
        assert_eq!(file.metadata().expect("metadata").len(), 0);
        assert_eq!(std::fs::read_dir(dir.path().join("staging")).expect("folder").count(), 0, "it has no name");
    }

    #[test]
    fn memory_is_bounded() {
        let dir = tempfile::tempdir().expect("folder");
        let staging = Staging::new(dir.path(), None);
        let blocks: Vec<_> = (0..65).map(|_| staging.block(1 << 20, Prefer::Memory).expect("block")).collect();
        assert_eq!(blocks.iter().filter(|block| block.is_memory()).count(), 64);
        drop(blocks);
        assert!(staging.block(1 << 20, Prefer::Memory).expect("block").is_memory());
    }

    #[test]
    fn leftovers_are_removed() {
        let dir = tempfile::tempdir().expect("folder");
        remove_leftovers(&dir.path().join("missing")).expect("nothing to do");
        std::fs::write(dir.path().join("torchfs-staging-1"), b"old").expect("written");
        remove_leftovers(dir.path()).expect("removed");
        assert_eq!(std::fs::read_dir(dir.path()).expect("folder").count(), 0);
    }
}
