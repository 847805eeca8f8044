//! [`File`]: an open file.

use super::Client;
use super::content::{Base, Origin};
use super::open_file::OpenFile;
use super::read::Window;
use crate::cache::{CacheKey, Pinned};
use crate::error::{Error, Kind, Result};
use crate::ids::InodeId;
use crate::meta::{Attr, AttrChange};
use crate::prefetch::DataFile;
use crate::settings::FILE_BYTES_MAX;
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};

/// An open file: a fixed version to read, and this client's writes over it. Cheap to clone. All opens of one inode through
/// one [`Client`] share uncommitted writes, as processes on one machine expect.
///
/// Dropping a `File` does not commit; uncommitted writes are lost when the last one is dropped. Call [`File::commit`].
#[derive(Clone, Debug)]
pub struct File {
    pub(super) client: Client,
    pub(super) open: Arc<OpenFile>,
    pub(super) view: Arc<View>,
    mode: OpenMode,
}

/// What a file was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Reading.
    Read,
    /// Reading and writing.
    ReadWrite,
}

/// What one open has of its own: the version that it reads, and where it reads.
#[derive(Debug)]
pub(super) struct View {
    seen: Mutex<Seen>,
    pub window: tokio::sync::Mutex<Window>,
    /// The place in the cache of the version that was read last.
    pinned: Mutex<Option<(CacheKey, Option<Arc<Pinned>>)>>,
}

#[derive(Debug)]
struct Seen {
    generation: u64,
    base: Arc<Base>,
}

impl File {
    pub(super) fn new(client: Client, open: Arc<OpenFile>, base: Arc<Base>, mode: OpenMode) -> Self {
        let seen = {
            let mut state = open.state();
            state.learn(&base);
            // A commit of this client that ended while `base` was on its way is in `latest` and no longer in the overlay.
            let base = if state.latest.attr.version > base.attr.version { state.latest.clone() } else { base };
            Seen { generation: state.generation, base }
        };
        let view = View { seen: Mutex::new(seen), window: tokio::sync::Mutex::default(), pinned: Mutex::default() };
        File { client, open, view: Arc::new(view), mode }
    }

    /// Its inode.
    #[must_use]
    pub fn ino(&self) -> InodeId {
        self.open.ino
    }

    /// The version that it reads now, for good: what this client writes and commits does not show in it, as it does in other open
    /// files. For reading.
    #[must_use]
    pub fn snapshot(&self) -> File {
        let base = self.view.base(&self.open.state());
        let (open, view) = (Arc::new(OpenFile::new(base.clone())), Arc::new(self.view.of(base)));
        File { client: self.client.clone(), open, view, mode: OpenMode::Read }
    }

    /// What it was opened for.
    #[must_use]
    pub fn mode(&self) -> OpenMode {
        self.mode
    }

    /// Its attributes with this client's uncommitted size and mtime.
    #[must_use]
    pub fn attr(&self) -> Attr {
        let state = self.open.state();
        let base = self.view.base(&state);
        state.attr(&base)
    }

    /// Tells the cache that this open is a reader's: it counts for its epoch, and what comes after it in an announced order may
    /// be fetched. [`Client::open`] does it; whoever opens by inode calls it once per open, before reading, unless to write.
    pub fn begin_reading(&self) {
        let base = self.view.base(&self.open.state());
        if let Some(cache) = &self.client.inner.cache
            && base.origin == Origin::Cluster
        {
            let key = CacheKey { ino: base.attr.ino, version: base.attr.version };
            self.client.inner.catalogs.note_version(key);
            let file = DataFile { key, bytes: base.attr.size };
            self.view.pinned(key, || cache.opened(file).map(Arc::new));
        }
    }

    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// `Unavailable`, `DataLoss`, `Timeout`: never wrong bytes. `Stale` if the version that is open was replaced so long
    /// ago that it is collected.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        self.read_layers(offset, len).await
    }

    /// Writes at `offset`. Full stripes of sequential data are encoded and sent in the background; what cannot be sent
    /// then is sent by the next [`File::commit`], which reports the failure if there still is one.
    ///
    /// # Errors
    /// `NoSpace` if the staging folder is full, `FileTooLarge`, `NotPermitted` if it was opened for reading.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        self.check_change(offset.checked_add(data.len() as u64))?;
        self.stage(offset, data).await
    }

    /// Cuts or grows the file to `size` bytes.
    ///
    /// # Errors
    /// `FileTooLarge`, `NotPermitted` if it was opened for reading.
    pub async fn truncate(&self, size: u64) -> Result<()> {
        self.check_change(Some(size))?;
        let mut state = self.open.state();
        let base = self.view.base(&state);
        state.truncate(&base, size);
        Ok(())
    }

    /// `attr`, as metadata tells it, with what this client has changed and not committed.
    #[must_use]
    pub fn with_uncommitted(&self, attr: Attr) -> Attr {
        let state = self.open.state();
        let base = self.view.base(&state);
        if state.is_dirty() { state.attr_over(&base, attr) } else { attr }
    }

    /// Sets attributes together with the content that is waiting for a commit, in one operation. `false` if nothing is
    /// waiting: use [`Client::set_attr_inode`].
    ///
    /// For callers that commit in any case, as a mount does at close(2).
    #[must_use]
    pub fn set_attr_at_commit(&self, change: &AttrChange) -> bool {
        self.open.state().set_attrs(change.clone())
    }

    pub(super) fn check_change(&self, end: Option<u64>) -> Result<()> {
        if self.mode == OpenMode::Read {
            return Err(Error::new(Kind::NotPermitted, "the file was opened for reading only"));
        }
        match end {
            Some(end) if end <= FILE_BYTES_MAX => Ok(()),
            _ => Err(Error::new(Kind::FileTooLarge, format!("a file has at most {FILE_BYTES_MAX} bytes"))),
        }
    }

    /// The local file that holds this version whole, and the bytes of which are proven, if the cache has it and nothing
    /// is written over it: reading that file is reading this one. It stays in the cache as long as this file is open.
    pub async fn cached_file(&self) -> Option<Arc<std::fs::File>> {
        let base = {
            let state = self.open.state();
            if state.is_dirty() {
                return None;
            }
            self.view.base(&state)
        };
        self.pinned(&base)?.complete_file().await
    }

    /// Whether an announced order named it when [its reading began](File::begin_reading).
    #[must_use]
    pub fn is_announced(&self) -> bool {
        let base = self.view.base(&self.open.state());
        self.pinned(&base).is_some_and(|place| place.is_announced())
    }

    /// The file that an announced order has after this one.
    #[must_use]
    pub fn next_announced(&self) -> Option<DataFile> {
        let base = self.view.base(&self.open.state());
        self.pinned(&base)?.next_announced()
    }

    /// Fills `out` with the whole content, if the cache has it at hand and nothing is written over it; whether it did. It waits for nothing: what
    /// it does not read, [`File::read_at`] does.
    #[must_use]
    pub fn read_now(&self, out: &mut [u8]) -> bool {
        let base = {
            let state = self.open.state();
            if state.is_dirty() {
                return false;
            }
            self.view.base(&state)
        };
        self.pinned(&base).is_some_and(|place| place.read_now(out))
    }

    /// Whether there is anything to commit.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        self.open.state().is_dirty()
    }

    /// Makes everything written so far durable in the cluster and visible to others, as one new version. Without
    /// changes it does nothing.
    ///
    /// # Errors
    /// If anything could not be stored; the old version then is what others see, and the staged bytes stay, so that
    /// committing again may succeed.
    pub async fn commit(&self) -> Result<Attr> {
        self.commit_staged().await
    }
}

impl View {
    /// The version underneath: the one that was opened, or the newest after a commit of this client.
    pub fn base(&self, state: &super::open_file::State) -> Arc<Base> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.generation != state.generation {
            seen.generation = state.generation;
            if state.latest.attr.version > seen.base.attr.version {
                seen.base = state.latest.clone();
            }
        }
        seen.base.clone()
    }

    /// Another one, of this version and in the same place of the cache.
    fn of(&self, base: Arc<Base>) -> View {
        let pinned = Mutex::new(self.pinned.lock().unwrap_or_else(PoisonError::into_inner).clone());
        View { seen: Mutex::new(Seen { generation: 0, base }), window: tokio::sync::Mutex::default(), pinned }
    }

    /// The same version was found again, perhaps with its shards elsewhere.
    pub fn refresh(&self, base: Arc<Base>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.base.attr.version == base.attr.version {
            seen.base = base;
        }
    }

    /// The place of a version in the cache, asked for once.
    pub fn pinned(&self, key: CacheKey, pin: impl FnOnce() -> Option<Arc<Pinned>>) -> Option<Arc<Pinned>> {
        let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        match &*pinned {
            Some((known, place)) if *known == key => place.clone(),
            _ => pinned.insert((key, pin())).1.clone(),
        }
    }
}
