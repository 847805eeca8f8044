//! The disk engine: [`DiskStore`], one storage node's shards as plain immutable files.
//!
//! A put is checked, gets its room reserved, is written to `tmp/`, fdatasynced, renamed to its name, and acknowledged when
//! the folder that holds the name is fsynced; a small shard is acknowledged when a record of it is durable in the
//! [journal], and its file is fsynced later. So after a power cut a shard is whole or absent, and what was acknowledged
//! is there. Nothing is ever changed in place, and no file stays open between requests.

mod damage;
mod direct;
mod durable;
mod file;
mod folder;
mod format;
mod identity;
mod journal;
mod meter;
mod scan;
mod space;
#[cfg(test)]
mod store_test;
mod write;

pub use identity::{Identity, Registration};
pub use space::{Capacity, Usage};

use crate::disk::damage::Damage;
use crate::disk::durable::Durable;
use crate::disk::file::Expected;
use crate::disk::folder::{Folder, Group};
use crate::disk::journal::{Journal, Shape};
use crate::disk::meter::Meter;
use crate::disk::space::Space;
use async_trait::async_trait;
use futures::StreamExt;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::Semaphore;
use torchfs_core::meta::NodeLoad;
use torchfs_core::rpc::Payload;
use torchfs_core::settings::{FRAME_BYTES_MAX, GET_MANY_MAX, LIST_ENTRIES_MAX, SHARD_BYTES_MAX, SHARD_DEADLINE};
use torchfs_core::shard::{ShardBlocks, ShardRead, ShardStat, ShardStore};
use torchfs_core::{Error, Kind, Result, ShardId};
use tracing::warn;

/// Reads that wait for the disk at once. NVMe reaches its rate well below this; a spinning disk only gains from sorting.
const READS_MAX: usize = 64;

/// Writes and deletions at once: enough to fill a group commit, few enough that 4 MiB each are no memory burden.
const WRITES_MAX: usize = 32;

/// Reads of one `get_many` under way at once.
const MANY_READS_AT_ONCE: usize = 16;

/// Most bytes in the answer to one `get_many`, so that it fits a frame with room for the header.
const MANY_BYTES_MAX: usize = FRAME_BYTES_MAX - (16 << 20);

/// Headers checked in one piece of work, well within its deadline on the slowest disk.
const HEADERS_AT_ONCE: usize = 64;

/// Reads up to this size are tried from memory on the calling thread first: copying and checking them takes less than
/// handing them to another thread and back.
const CACHED_READ_BYTES_MAX: u32 = 256 * 1024;

/// Names that are taken or given up at once: enough that puts seldom wait for each other.
const NAME_SLOTS: usize = 256;

/// The shards of one storage node on a file system. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: Folder,
    identity: Mutex<Identity>,
    space: Arc<Space>,
    durable: Durable,
    journal: Arc<Journal>,
    direct: direct::Buffers,
    damage: Damage,
    meter: Meter,
    reads: Arc<Semaphore>,
    writes: Arc<Semaphore>,
    /// Groups whose folder exists for good.
    groups: Mutex<HashSet<Group>>,
    /// One slot per shard id (by hash): held while a name is taken or given up.
    names: [Mutex<()>; NAME_SLOTS],
    temp_number: AtomicU64,
}

impl DiskStore {
    /// Opens or makes a data folder and counts what is in it. Blocking.
    ///
    /// # Errors
    /// `InvalidInput` for a folder that holds something else, `Exists` for one that is in use, `Protocol` for
    /// another format version, `Corrupt` for a damaged identity file, or of the operating system.
    pub fn open(path: &Path, capacity: impl Into<Capacity>) -> Result<Self> {
        Self::open_shaped(path, capacity.into(), Shape::default())
    }

    fn open_shaped(path: &Path, capacity: Capacity, shape: Shape) -> Result<Self> {
        let (folder, identity) = Folder::open(path)?;
        let segments = journal::replay(&folder, identity, &shape)?;
        let space = Arc::new(Space::new(folder.root(), capacity)?);
        let damage = Damage::default();
        let groups = scan::count(&folder, &space, &damage)?;
        let inner = Inner {
            folder,
            identity: Mutex::new(identity),
            space,
            durable: Durable::default(),
            journal: Arc::new(Journal::new(shape, segments)),
            direct: direct::Buffers::default(),
            damage,
            meter: Meter::default(),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            writes: Arc::new(Semaphore::new(WRITES_MAX)),
            groups: Mutex::new(groups),
            names: std::array::from_fn(|_| Mutex::default()),
            temp_number: AtomicU64::new(0),
        };
        let inner = Arc::new(inner);
        journal::start_worker(&inner)?;
        Ok(DiskStore(inner))
    }

    /// Where it is.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.0.folder.root()
    }

    /// Who the folder says it is.
    #[must_use]
    pub fn identity(&self) -> Identity {
        *self.0.identity()
    }

    /// Makes the folder a node of a cluster, for good. Blocking.
    ///
    /// # Errors
    /// `WrongCluster` if it is of another one already, or of the operating system.
    pub fn register(&self, registration: Registration) -> Result<()> {
        let mut identity = self.0.identity();
        let next = Identity { registration: Some(registration), ..*identity };
        if let Some(old) = identity.registration.filter(|old| old.cluster != registration.cluster) {
            return Err(wrong_cluster(self.root(), old, registration.cluster));
        }
        if next != *identity {
            next.save(self.root())?;
            *identity = next;
        }
        Ok(())
    }

    /// How full and busy it is. A store that takes no writes says that it has no room.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn load(&self) -> Result<NodeLoad> {
        let usage = self.0.space.usage()?;
        let capacity_bytes = match self.poisoned() {
            Some(_) => usage.used_bytes,
            None => usage.capacity_bytes,
        };
        Ok(NodeLoad {
            capacity_bytes,
            used_bytes: usage.used_bytes,
            shards: usage.shards,
            requests: self.0.meter.requests(),
            write_us: self.0.meter.write_us(),
        })
    }

    /// Requests under way.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.0.meter.requests()
    }

    /// Why it takes no writes, if a failed fsync made it so.
    #[must_use]
    pub fn poisoned(&self) -> Option<&str> {
        self.0.durable.poisoned()
    }

    /// Shards known to be damaged and not yet [confirmed](DiskStore::damage_reported) as reported, at most `limit`.
    #[must_use]
    pub fn damaged(&self, limit: usize) -> Vec<ShardId> {
        self.0.damage.unreported(limit)
    }

    /// The leader knows of these damaged shards.
    pub fn damage_reported(&self, shards: &[ShardId]) {
        self.0.damage.reported(shards);
    }

    /// All known damage is to be reported again.
    pub fn report_damage_again(&self) {
        self.0.damage.report_again();
    }

    /// Reads the header of every shard, and remembers the damaged ones.
    ///
    /// # Errors
    /// Of the operating system, or `Unavailable` once the store is closed.
    pub async fn check_headers(&self) -> Result<()> {
        for group in self.reading(|inner| inner.folder.groups()).await?.known {
            let shards = self.reading(move |inner| inner.folder.shards(group)).await?.known;
            for some in shards.chunks(HEADERS_AT_ONCE) {
                let some = some.to_vec();
                self.reading(move |inner| scan::check_headers(inner, &some)).await?;
            }
        }
        Ok(())
    }

    /// Removes the folders of groups that hold nothing any more.
    ///
    /// # Errors
    /// Of the operating system, or `Unavailable` once the store is closed.
    pub async fn remove_empty_groups(&self) -> Result<()> {
        self.writing(scan::remove_empty_groups).await
    }

    /// Waits for what is under way, refuses everything after, and lets others use the folder. Where the disk hangs
    /// the folder stays locked until what is under way has ended: a write may still come through.
    pub async fn close(&self) {
        let idle = async {
            let _reads = self.0.reads.acquire_many(READS_MAX as u32).await;
            let _writes = self.0.writes.acquire_many(WRITES_MAX as u32).await;
            self.0.reads.close();
            self.0.writes.close();
            self.close_journal().await;
            self.0.folder.unlock();
        };
        if tokio::time::timeout(SHARD_DEADLINE, idle).await.is_err() {
            self.0.reads.close();
            self.0.writes.close();
            warn!("the disk of {} hangs; its folder stays locked", self.root().display());
        }
    }

    /// Leaves nothing to replay, if the disk lets it.
    async fn close_journal(&self) {
        let inner = self.0.clone();
        let done = tokio::task::spawn_blocking(move || journal::close(&inner)).await;
        if let Ok(Err(error)) = done {
            warn!(%error, "the next start of {} replays its journal", self.root().display());
        }
    }

    async fn reading<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        self.blocking(&self.0.reads, work).await
    }

    async fn writing<T: Send + 'static>(&self, work: impl FnOnce(&Inner) -> Result<T> + Send + 'static) -> Result<T> {
        self.blocking(&self.0.writes, work).await
    }

    /// Runs `work` on a thread that may block, with a permit that it keeps until it is done even if the caller has given
    /// up, so that a disk that hangs does not pile up threads.
    async fn blocking<T, F>(&self, permits: &Arc<Semaphore>, work: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&Inner) -> Result<T> + Send + 'static,
    {
        let inner = self.0.clone();
        let permits = permits.clone();
        let run = async move {
            let permit = permits.acquire_owned().await.map_err(|_| closed())?;
            let job = tokio::task::spawn_blocking(move || {
                let result = work(&inner);
                drop(permit);
                result
            });
            job.await.map_err(|error| Error::caused(Kind::Cancelled, "disk work was given up", error))?
        };
        match tokio::time::timeout(SHARD_DEADLINE, run).await {
            Ok(result) => result,
            Err(_) => {
                let message = format!("disk of {} did not answer within {SHARD_DEADLINE:?}", self.root().display());
                Err(Error::new(Kind::Timeout, message))
            }
        }
    }

    async fn read_one(&self, read: ShardRead) -> Result<ShardBlocks> {
        if self.0.reads.is_closed() {
            return Err(closed());
        }
        let expected = self.0.expected(read.shard)?;
        let path = self.0.folder.shard(read.shard);
        if read.range.end.saturating_sub(read.range.start) <= CACHED_READ_BYTES_MAX
            && let Some(result) = file::read_cached(&path, expected, &read.range)
        {
            return self.0.watched(read.shard, result);
        }
        self.reading(move |inner| {
            let result = file::read(&path, expected, &read.range);
            inner.watched(read.shard, result)
        })
        .await
    }
}

impl Inner {
    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expected(&self, shard: ShardId) -> Result<Expected> {
        match self.identity().registration {
            Some(registration) => Ok(Expected { cluster: registration.cluster, shard }),
            None => Err(Error::new(Kind::Unavailable, "this storage node has not joined a cluster yet")),
        }
    }

    /// Remembers damage on its way out, and says it in words that name the shard.
    fn watched<T>(&self, shard: ShardId, result: Result<T>) -> Result<T> {
        match result {
            Err(error) if error.kind() == Kind::Corrupt => {
                self.damage.found(shard, &error);
                Err(error.context(format!("shard {shard}")))
            }
            Err(error) if error.kind() == Kind::NotFound => {
                Err(Error::new(Kind::NotFound, format!("no shard {shard} here")))
            }
            other => other,
        }
    }

    /// Held while the shard's name is taken or given up.
    fn name_of(&self, shard: ShardId) -> MutexGuard<'_, ()> {
        let slot = (shard.stripe.0 ^ u64::from(shard.index)) as usize % self.names.len();
        self.names[slot].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn temp_path(&self, shard: ShardId) -> PathBuf {
        let number = self.temp_number.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.folder.temp().join(format!("{shard}.{number}"))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.journal.stop();
    }
}

#[async_trait]
impl ShardStore for DiskStore {
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()> {
        let _under_way = self.0.meter.begin();
        let start = Instant::now();
        self.writing(move |inner| write::put(inner, shard, &data, checksums)).await?;
        self.0.meter.wrote(start.elapsed());
        Ok(())
    }

    async fn get(&self, read: ShardRead) -> Result<ShardBlocks> {
        let _under_way = self.0.meter.begin();
        self.read_one(read).await
    }

    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        let _under_way = self.0.meter.begin();
        if reads.len() > GET_MANY_MAX {
            let message = format!("{} reads in one request; at most {GET_MANY_MAX} are possible", reads.len());
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let mut bytes = 0;
        let answers = futures::stream::iter(reads).map(|read| {
            // Counted by what is asked, not by what is there, so that the order of disk answers changes nothing.
            bytes += (read.range.len() + 2 * torchfs_core::settings::BLOCK_BYTES).min(SHARD_BYTES_MAX);
            let fits = bytes <= MANY_BYTES_MAX;
            async move {
                match fits {
                    true => self.read_one(read).await,
                    false => Err(too_many_bytes()),
                }
            }
        });
        Ok(answers.buffered(MANY_READS_AT_ONCE).collect().await)
    }

    async fn delete(&self, shards: Vec<ShardId>) -> Result<()> {
        let _under_way = self.0.meter.begin();
        self.writing(move |inner| shards.into_iter().try_for_each(|shard| write::delete(inner, shard))).await
    }

    async fn stat(&self, shard: ShardId) -> Result<ShardStat> {
        let expected = self.0.expected(shard)?;
        self.reading(move |inner| inner.watched(shard, scan::stat(&inner.folder, expected))).await
    }

    async fn list(&self, after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>> {
        let limit = (limit as usize).min(LIST_ENTRIES_MAX);
        self.reading(move |inner| scan::page(&inner.folder, after, limit)).await
    }
}

/// The error for a data folder that is used with metadata of another cluster.
pub(crate) fn wrong_cluster(root: &Path, own: Registration, found: torchfs_core::ClusterId) -> Error {
    let message = format!(
        "data folder {} is node {} of cluster {}, the metadata is of cluster {found}: give the metadata addresses of its own \
         cluster, or an empty folder to join this one",
        root.display(),
        own.node,
        own.cluster
    );
    Error::new(Kind::WrongCluster, message)
}

fn closed() -> Error {
    Error::new(Kind::Unavailable, "this storage node is stopping")
}

fn too_many_bytes() -> Error {
    Error::new(
        Kind::TooLarge,
        format!("the reads before it fill an answer of {MANY_BYTES_MAX} bytes; ask again for it"),
    )
}
