//! [`Client`]: files by path or inode. What applications embed, and what the mount and the CLI are thin layers over.
//!
//! Close-to-open consistency: a [`File`] shows the version that was current when it was opened, plus this client's own
//! writes; [`File::commit`] makes writes durable in the cluster and visible to everyone who opens the file afterwards.

mod ahead;
mod aside;
mod catalog;
mod commit;
mod content;
mod copy;
mod file;
mod holes;
mod open_file;
mod order_text;
mod overlay;
mod pack;
mod path;
mod pins;
mod ranges;
mod read;
mod recover;
mod schedule;
mod small;
mod spans;
mod staging;
mod tree;
mod warm;
mod whole;
mod write;

pub use aside::{SetAside, set_aside};
pub use file::{File, OpenMode};
pub use pins::Pin;
pub use schedule::{Announced, EpochOrder, PathList};
pub use tree::{Progress, SourceLink, TreeOptions, TreeReport};
pub use warm::{WarmOrder, Warming};

use crate::cache::policy::Eviction;
use crate::cache::{Cache, CacheKey, CacheStats, EpochStats, Prefetcher};
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::{ClusterId, InodeId, Version};
use crate::meta::{
    Attr, AttrChange, Content, DirEntry, FileKind, FsStat, IfExists, MetaSession, MetaStore, Name, NewInode, SetTime,
    Status,
};
use crate::observe::{Observed, RequestStats, Requests};
use crate::prefetch::{DataFile, Prefetch};
use crate::rpc::{MetaClient, StorePool};
use crate::shard::ShardStores;
use crate::stripe::StripeIo;
use ahead::ClusterSource;
use aside::Asides;
use catalog::Catalogs;
use content::Base;
use open_file::OpenFile;
use pins::Keeper;
use small::SmallWrites;
use staging::Staging;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How much of all files together is held in memory on its way into the cluster, in units of [`UPLOAD_UNIT_BYTES`].
const UPLOAD_UNITS_MAX: usize = 64;

/// A stripe counts as at least one unit, ...
const UPLOAD_UNIT_BYTES: u64 = 1024 * 1024;

/// ... and at most as this many, so that four of any size are under way.
const UPLOAD_UNITS_PER_STRIPE_MAX: u64 = 16;

/// How much the cache holds unless said otherwise.
const CACHE_BYTES_DEFAULT: u64 = 10 << 30;

/// A connection to a cluster. Cheap to clone; clones share connections and cache.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    meta: MetaSession,
    stripes: StripeIo,
    small: SmallWrites,
    owner: (u32, u32),
    staging: Arc<Staging>,
    uploads: Arc<Semaphore>,
    open: Mutex<OpenFiles>,
    cache: Option<Cache>,
    policies: (Eviction, Prefetch),
    /// The files that orders were announced of.
    catalogs: Arc<Catalogs>,
    /// Fetches ahead into the cache.
    _prefetcher: Option<Prefetcher>,
    /// Sees that what is pinned is there.
    keeper: Option<Keeper>,
    /// Where what cannot be committed is kept; in the cache folder.
    asides: Option<Arc<Asides>>,
    requests: Arc<Requests>,
}

/// The files that are open now, by inode.
#[derive(Debug, Default)]
struct OpenFiles {
    files: HashMap<InodeId, Weak<OpenFile>>,
    /// When there are this many, those that were closed are dropped from the table.
    tidy_at: usize,
}

impl OpenFiles {
    fn get_or_insert(&mut self, base: &Arc<Base>) -> Arc<OpenFile> {
        let ino = base.attr.ino;
        if let Some(open) = self.get(ino) {
            return open;
        }
        if self.files.len() >= self.tidy_at {
            self.files.retain(|_, open| open.strong_count() > 0);
            self.tidy_at = (2 * self.files.len()).max(64);
        }
        let open = Arc::new(OpenFile::new(base.clone()));
        self.files.insert(ino, Arc::downgrade(&open));
        open
    }

    fn get(&self, ino: InodeId) -> Option<Arc<OpenFile>> {
        self.files.get(&ino)?.upgrade()
    }
}

/// How to connect. Only the metadata addresses are needed.
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    metas: Vec<String>,
    cache_dir: Option<PathBuf>,
    cache_bytes: Option<u64>,
    eviction: Eviction,
    prefetch: Prefetch,
    owner: Option<(u32, u32)>,
}

impl ClientBuilder {
    /// Metadata nodes, `host:port`; one that answers is enough.
    #[must_use]
    pub fn metas<S: Into<String>>(mut self, addrs: impl IntoIterator<Item = S>) -> Self {
        self.metas.extend(addrs.into_iter().map(Into::into));
        self
    }

    /// Keep whole files that were read in this folder, and what was written and could not be committed (see [`set_aside`]).
    /// Several clients may share it: each keeps to its own limit, and copies what another has instead of fetching it. Without it
    /// nothing is cached or kept, and writes are staged in the system's temporary folder.
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// How much the cache may hold, and how much may be set aside beside it; 10 GiB if not said. In any case 5 % of its disk
    /// are left free, at most 1 GiB.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// What leaves the cache when it is full. If not said, what an announced order needs last; without one, what was not opened
    /// for the longest time.
    #[must_use]
    pub fn eviction(mut self, eviction: Eviction) -> Self {
        self.eviction = eviction;
        self
    }

    /// What is fetched into the cache before it is opened. If not said, what was announced (see [`Client::announce`]); where
    /// nothing was, what is foreseen: an order of opens that repeats, or that of the folders' listings.
    #[must_use]
    pub fn prefetch(mut self, prefetch: Prefetch) -> Self {
        self.prefetch = prefetch;
        self
    }

    /// Who owns what this client creates by path; the process's effective ids if not said.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// `InvalidInput` for no or unreadable addresses, `Protocol` if what answers is not TorchFS, `Unavailable` if no node
    /// answers or no leader is found within the deadline.
    pub async fn connect(self) -> Result<Client> {
        let meta = Arc::new(MetaClient::connect(self.metas.clone(), None).await?);
        let cluster = meta.cluster();
        let stores = Arc::new(StorePool::new(meta.clone(), cluster));
        self.over(meta, stores).await
    }

    /// Works over stores in this process instead of a network: tests, simulations, other back ends.
    ///
    /// # Errors
    /// If the cache folder cannot be used.
    pub async fn over(self, meta: Arc<dyn MetaStore>, stores: Arc<dyn ShardStores>) -> Result<Client> {
        let requests = Arc::<Requests>::default();
        let meta = MetaSession::new(Arc::new(Observed { requests: requests.clone(), inner: meta }));
        let stores = Arc::new(Observed { requests: requests.clone(), inner: stores });
        let stripes = StripeIo::new(meta.clone(), stores);
        let process = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (cache, asides, pins) = match &self.cache_dir {
            Some(dir) => {
                // The program may change to another folder.
                let dir = std::path::absolute(dir).io(|| dir.display().to_string())?;
                let (cache, asides, pins) = self.open_cache(dir, meta.map().await?.cluster).await?;
                (Some(cache), Some(Arc::new(asides)), pins)
            }
            None => (None, None, Vec::new()),
        };
        let staging = cache.as_ref().map_or_else(std::env::temp_dir, |cache: &Cache| cache.dir().join("staging"));
        let catalogs = Arc::<Catalogs>::default();
        let cluster = ClusterSource::new(meta.clone(), stripes.clone(), catalogs.clone());
        let prefetcher = cache.clone().map(|cache| Prefetcher::start(cache, Arc::new(cluster)));
        let keeper = cache.clone().map(|cache| Keeper::start(cache, pins, meta.clone(), catalogs.clone()));
        let inner = Inner {
            meta,
            small: SmallWrites::new(stripes.clone()),
            stripes,
            owner: self.owner.unwrap_or_else(process),
            staging: Staging::new(staging, cache.clone()),
            uploads: Arc::new(Semaphore::new(UPLOAD_UNITS_MAX)),
            open: Mutex::default(),
            catalogs,
            _prefetcher: prefetcher,
            keeper,
            cache,
            policies: (self.eviction, self.prefetch),
            asides,
            requests,
        };
        Ok(Client { inner: Arc::new(inner) })
    }

    async fn open_cache(&self, dir: PathBuf, cluster: ClusterId) -> Result<(Cache, Asides, Vec<Vec<u8>>)> {
        let (limit_bytes, eviction) = (self.cache_bytes.unwrap_or(CACHE_BYTES_DEFAULT), self.eviction);
        let prefetch = self.prefetch;
        let open = move || {
            let cache = Cache::open(&dir, limit_bytes, cluster, eviction.policy(), prefetch)?;
            // Only now is it sure which folder is ours.
            staging::remove_leftovers(&cache.dir().join("staging"))?;
            let asides = Asides::open(cache.dir(), limit_bytes, cluster)?;
            let pins = cache.pins();
            Ok((cache, asides, pins))
        };
        write::blocking(open).await
    }
}

/// Paths are byte strings from the root, with or without a leading `/`; links on the way are followed.
impl Client {
    /// How to connect.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Connects with defaults.
    ///
    /// # Errors
    /// See [`ClientBuilder::connect`].
    pub async fn connect<S: Into<String>>(metas: impl IntoIterator<Item = S>) -> Result<Client> {
        Client::builder().metas(metas).connect().await
    }

    /// The metadata session, for everything that has no method here.
    #[must_use]
    pub fn meta(&self) -> &MetaSession {
        &self.inner.meta
    }

    /// Stripe I/O over the cluster's nodes.
    #[must_use]
    pub fn stripes(&self) -> &StripeIo {
        &self.inner.stripes
    }

    /// Opens the content of an inode, for reading and writing.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `InvalidInput` for what has no content.
    pub async fn open_inode(&self, ino: InodeId) -> Result<File> {
        self.open_as(ino, OpenMode::ReadWrite).await
    }

    /// Makes a regular file under a name and opens it, for reading and writing; with [`IfExists::Keep`] it may be there.
    ///
    /// # Errors
    /// What metadata answers.
    pub async fn create_inode(
        &self,
        parent: InodeId,
        name: Name,
        inode: NewInode,
        if_exists: IfExists,
    ) -> Result<File> {
        let attr = self.meta().create(parent, name.clone(), inode, if_exists).await?;
        if attr.kind == FileKind::File && attr.version == Version::NEW {
            // Nothing was ever committed to it, so there is no content to ask for.
            let base = Arc::new(Base::new(attr, Content::default()));
            let open = self.open_files().get_or_insert(&base);
            open.name.get_or_init(|| (parent, name));
            return Ok(File::new(self.clone(), open, base, OpenMode::ReadWrite));
        }
        self.open_inode(attr.ino).await
    }

    async fn open_as(&self, ino: InodeId, mode: OpenMode) -> Result<File> {
        // Held from before the question, so that no commit of this client can begin and end in between unnoticed.
        let known = self.open_files().get(ino);
        let (attr, content) = self.meta().open(ino).await?;
        match attr.kind {
            FileKind::File => {}
            FileKind::Directory => return Err(Error::new(Kind::IsDirectory, "this is a folder")),
            _ => return Err(Error::new(Kind::InvalidInput, "not a regular file")),
        }
        let base = Arc::new(Base::new(attr, content));
        let open = known.unwrap_or_else(|| self.open_files().get_or_insert(&base));
        Ok(File::new(self.clone(), open, base, mode))
    }

    /// Changes attributes of an inode. A time that is set while the file has uncommitted writes is kept by their commit.
    ///
    /// # Errors
    /// What metadata answers.
    pub async fn set_attr_inode(&self, ino: InodeId, change: AttrChange) -> Result<Attr> {
        let mtime = change.mtime;
        let attr = self.meta().set_attr(ino, change).await?;
        if mtime.is_some()
            && let Some(open) = self.open_files().get(ino)
        {
            let mut state = open.state();
            if state.is_dirty() {
                state.change.mtime = Some(SetTime::At(attr.mtime));
            }
        }
        Ok(attr)
    }

    /// Deletes what this client has stored and no file names or will name: the rest of writes that failed or were given up.
    /// Takes at most `deadline`. Call it before the process ends; without it, and where it cannot, the cluster takes that
    /// space back after a day. A commit that still names any of it is refused as `Stale`.
    pub async fn give_back(&self, deadline: Duration) {
        self.inner.stripes.give_back(deadline).await;
    }

    /// The folder of the cache, if there is one: the one that was given or, if others use that too, one inside. What could not
    /// be committed is kept there too; see [`set_aside`].
    #[must_use]
    pub fn cache_dir(&self) -> Option<&Path> {
        self.inner.asides.as_ref().map(|asides| asides.cache_dir())
    }

    /// What the cache has done; `None` if there is none.
    #[must_use]
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.inner.cache.as_ref().map(Cache::stats)
    }

    /// What leaves a full cache first, and what is fetched ahead into it.
    #[must_use]
    pub fn policies(&self) -> (Eviction, Prefetch) {
        self.inner.policies
    }

    /// Tells the cache what a folder lists, a part of it at a time and in the order of the names, so that it can foresee who reads in
    /// that order: how many entries come before, and these. [`Client::list`] does it; who lists by inode calls it.
    pub fn listed(&self, first: u64, entries: &[DirEntry]) {
        let (_, prefetch) = self.policies();
        if let Some(cache) = self.inner.cache.as_ref().filter(|_| prefetch.follows_listings()) {
            let files = entries.iter().filter(|entry| entry.attr.kind == FileKind::File).map(|entry| DataFile {
                key: CacheKey { ino: entry.attr.ino, version: entry.attr.version },
                bytes: entry.attr.size,
            });
            cache.listed(first, &files.collect::<Vec<_>>());
        }
    }

    /// What each of the latest epochs found in the cache, the latest last; `None` if there is no cache.
    #[must_use]
    pub fn epochs(&self) -> Option<Vec<EpochStats>> {
        self.inner.cache.as_ref().map(Cache::epochs)
    }

    /// What was asked of the cluster so far, and how long it took.
    #[must_use]
    pub fn request_stats(&self) -> RequestStats {
        self.inner.requests.stats()
    }

    /// How full the file system is.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn fs_stat(&self) -> Result<FsStat> {
        self.inner.meta.fs_stat().await
    }

    /// The cluster at a glance.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn status(&self) -> Result<Status> {
        self.inner.meta.status().await
    }

    fn open_files(&self) -> std::sync::MutexGuard<'_, OpenFiles> {
        self.inner.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod test;
