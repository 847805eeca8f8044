//! How much room is left: a put reserves what it will take before it writes, so that a full disk is refused early.
//!
//! Two limits hold at once: the capacity the operator gave, and what the file system has free. The file system may be
//! shared with other nodes and programs, so its free space is asked every time and never computed.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use torchfs_core::shard::node_is_full;
use torchfs_core::{Error, IoContext, Kind, Result};

/// What is kept free on the file system: a hundredth of it, at most 64 MiB.
const MARGIN_BYTES_MAX: u64 = 64 << 20;

/// Most bytes that the shards of a node take on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// So many.
    Bytes(u64),
    /// What the file system has free: all of it with one node, its part where so many nodes share it.
    Disk {
        /// How many.
        nodes: NonZeroU32,
    },
}

/// Without a number, a disk that no other node uses.
impl From<Option<u64>> for Capacity {
    fn from(bytes: Option<u64>) -> Self {
        bytes.map_or(Capacity::Disk { nodes: NonZeroU32::MIN }, Capacity::Bytes)
    }
}

/// The books of one data folder.
#[derive(Debug)]
pub struct Space {
    root: PathBuf,
    capacity: Capacity,
    block_bytes: u64,
    margin_bytes: u64,
    counts: Mutex<Counts>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    used: u64,
    shards: u64,
    reserved: u64,
}

/// How full the folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes that the folder's shards may take in all, as of now.
    pub capacity_bytes: u64,
    /// Bytes of disk that they take.
    pub used_bytes: u64,
    /// How many there are.
    pub shards: u64,
}

/// Room set aside for one shard; given back on drop unless [kept](Reservation::keep).
#[derive(Debug)]
pub struct Reservation {
    space: Arc<Space>,
    bytes: u64,
}

impl Space {
    /// Empty books for a folder on this file system.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn new(root: &Path, capacity: Capacity) -> Result<Self> {
        let stat = rustix::fs::statvfs(root).io(|| format!("statvfs {}", root.display()))?;
        Ok(Space {
            root: root.to_owned(),
            capacity,
            block_bytes: stat.f_frsize.max(512),
            margin_bytes: (stat.f_blocks * stat.f_frsize / 100).min(MARGIN_BYTES_MAX),
            counts: Mutex::default(),
        })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Disk space that a file of this size takes.
    fn allocated(&self, file_bytes: u64) -> u64 {
        file_bytes.next_multiple_of(self.block_bytes)
    }

    /// Bytes the file system gives to ordinary users beyond the margin.
    fn available(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(&self.root).io(|| format!("statvfs {}", self.root.display()))?;
        Ok((stat.f_bavail * stat.f_frsize).saturating_sub(self.margin_bytes))
    }

    /// Sets room aside for a file of this size.
    ///
    /// # Errors
    /// `NoSpace` saying which limit is reached.
    pub fn reserve(self: &Arc<Self>, file_bytes: u64) -> Result<Reservation> {
        let available = self.available()?;
        let bytes = self.allocated(file_bytes);
        let mut counts = self.counts();
        let used = counts.used.saturating_add(counts.reserved);
        if let Capacity::Bytes(limit) = self.capacity
            && used.saturating_add(bytes) > limit
        {
            return Err(node_is_full(used, limit));
        }
        // The free space of a shared disk goes to whoever comes first: shares are for planning.
        if counts.reserved.saturating_add(bytes) > available {
            return Err(node_is_full(used, counts.used.saturating_add(available)));
        }
        counts.reserved += bytes;
        Ok(Reservation { space: self.clone(), bytes })
    }

    /// A write that failed although room was set aside, as somebody else took it: what is said of a full disk comes first,
    /// so that it is the same wherever it is found. Other failures stay as they are.
    pub fn ran_out(&self, failure: Error) -> Error {
        match self.usage() {
            Ok(usage) if failure.kind() == Kind::NoSpace => {
                failure.context(node_is_full(usage.used_bytes, usage.capacity_bytes))
            }
            _ => failure,
        }
    }

    /// Counts a shard file that was found.
    pub fn add(&self, file_bytes: u64) {
        let mut counts = self.counts();
        counts.used += self.allocated(file_bytes);
        counts.shards += 1;
    }

    /// Counts a shard file as gone.
    pub fn remove(&self, file_bytes: u64) {
        let mut counts = self.counts();
        counts.used = counts.used.saturating_sub(self.allocated(file_bytes));
        counts.shards = counts.shards.saturating_sub(1);
    }

    /// How full it is. Capacity is never more than the file system can still give, so capacity less used is what is free;
    /// nodes that know that they share a disk count what is free there only once between them.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn usage(&self) -> Result<Usage> {
        let available = self.available()?;
        let counts = *self.counts();
        let possible = |available| counts.used.saturating_add(available);
        Ok(Usage {
            capacity_bytes: match self.capacity {
                Capacity::Bytes(given) => given.min(possible(available)),
                Capacity::Disk { nodes } => possible(available / u64::from(nodes.get())),
            },
            used_bytes: counts.used,
            shards: counts.shards,
        })
    }
}

impl Reservation {
    /// The shard is there: what was set aside is used now.
    pub fn keep(mut self) {
        let mut counts = self.space.counts();
        counts.reserved -= self.bytes;
        counts.used += self.bytes;
        counts.shards += 1;
        drop(counts);
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.space.counts().reserved -= self.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_counts_until_it_is_given_back() {
        let root = tempfile::tempdir().expect("temp folder");
        let space = Arc::new(Space::new(root.path(), Capacity::Bytes(64 << 10)).expect("statvfs"));
        let first = space.reserve(40 << 10).expect("room");
        assert_eq!(space.reserve(40 << 10).expect_err("full").kind(), Kind::NoSpace);
        drop(first);
        space.reserve(40 << 10).expect("room again").keep();
        let usage = space.usage().expect("statvfs");
        assert_eq!((usage.capacity_bytes, usage.used_bytes, usage.shards), (64 << 10, 40 << 10, 1));
        assert!(space.reserve(40 << 10).is_err());
        space.remove(40 << 10);
        assert_eq!(space.usage().expect("statvfs").used_bytes, 0);
    }

    #[test]
    fn a_disk_that_runs_full_under_a_write_is_said_to_be_full() {
        let root = tempfile::tempdir().expect("temp folder");
        let space = Space::new(root.path(), Capacity::Bytes(64 << 10)).expect("statvfs");
        space.add(32 << 10);
        let full: Result<()> = Err(std::io::Error::from(std::io::ErrorKind::StorageFull)).io(|| "write x");
        let error = space.ran_out(full.expect_err("full"));
        assert_eq!(error.kind(), Kind::NoSpace);
        assert!(error.to_string().starts_with("full, 0.0 of 0.1 MiB used: write x: "), "{error}");
        let other = space.ran_out(Error::new(Kind::Io, "write x: broken"));
        assert_eq!((other.kind(), other.to_string().as_str()), (Kind::Io, "write x: broken"));
    }

    #[test]
    fn nodes_that_share_a_disk_count_its_free_space_once() {
        let root = tempfile::tempdir().expect("temp folder");
        let nodes = NonZeroU32::new(8).expect("not zero");
        let share = Space::new(root.path(), Capacity::Disk { nodes }).expect("statvfs");
        let alone = Space::new(root.path(), None.into()).expect("statvfs");
        share.add(40 << 10);
        let (share, alone) = (share.usage().expect("statvfs"), alone.usage().expect("statvfs"));
        let free = share.capacity_bytes - share.used_bytes;
        // Others write to the same disk between the two looks at it.
        assert!(free > alone.capacity_bytes / 9 && free < alone.capacity_bytes / 7, "{share:?} {alone:?}");
    }
}
