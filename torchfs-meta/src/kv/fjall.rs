//! [`Kv`] on fjall 3. No other file knows fjall.
//!
//! A [`FjallStore`] is one folder with one journal; each [`FjallKv`] in it is a key space of its own. What a batch promises
//! it promises within one key space: after a power cut two key spaces of one store may stand at different points.

use super::{Durability, Entry, Kv, KvRead, WriteBatch};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use torchfs_core::{Error, Kind, Result};

/// Bytes that a key space collects in memory before it writes a table.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;

/// Bytes of journal that may wait for tables to be written; fjall rotates its journal every 64 MB.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

/// Open table files per store.
const TABLE_FILES_MAX: usize = 256;

/// How fast a synchronous write must be undone by nothing: `fdatasync` covers all that is needed to read the journal back
/// and spares the commit of the modification time.
const SYNC: PersistMode = PersistMode::SyncData;

/// One folder with key spaces.
#[derive(Clone)]
pub struct FjallStore {
    database: Database,
    path: PathBuf,
    // Behind the database, so that it goes last.
    open: Arc<()>,
}

/// Tells when a store was closed, which is when the last handle to it is gone.
#[derive(Debug)]
pub struct Closing(Weak<()>);

impl Closing {
    /// Whether it is closed, and its folder can be opened again.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl FjallStore {
    /// Opens or makes the store in folder `path`, with at most `cache_bytes` of blocks kept in memory.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if another process has it open, [`Kind::Corrupt`] if it cannot be read, otherwise what the
    /// operating system says.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Self> {
        let database = Database::builder(path)
            .cache_size(cache_bytes)
            .max_cached_files(Some(TABLE_FILES_MAX))
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(1)
            .open()
            .map_err(|error| failed("open", path, error))?;
        Ok(FjallStore { database, path: path.to_path_buf(), open: Arc::default() })
    }

    /// Something that tells when the store was closed and does not keep it open.
    #[must_use]
    pub fn closing(&self) -> Closing {
        Closing(Arc::downgrade(&self.open))
    }

    /// The key space of this name, made if it does not exist.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn space(&self, name: &str) -> Result<FjallKv> {
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES_MAX);
        let space = self.database.keyspace(name, options).map_err(|error| failed("open", &self.path, error))?;
        Ok(FjallKv { store: self.clone(), space })
    }

    /// The names of all key spaces.
    #[must_use]
    pub fn spaces(&self) -> Vec<String> {
        self.database.list_keyspace_names().iter().map(|name| name.to_string()).collect()
    }

    /// Removes a key space with all that is in it. Views of it stay readable.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn remove(&self, name: &str) -> Result<()> {
        let space = self.space(name)?;
        self.database.delete_keyspace(space.space).map_err(|error| failed("remove a key space of", &self.path, error))
    }

    /// Makes all that was written before survive a power cut.
    ///
    /// # Errors
    /// What the operating system says; nothing more is written after that.
    pub fn sync(&self) -> Result<()> {
        self.database.persist(SYNC).map_err(|error| failed("sync", &self.path, error))
    }
}

impl fmt::Debug for FjallStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FjallStore").field(&self.path).finish()
    }
}

/// One key space of a [`FjallStore`].
#[derive(Clone)]
pub struct FjallKv {
    space: Keyspace,
    store: FjallStore,
}

impl fmt::Debug for FjallKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FjallKv").field(&self.store.path).field(self.space.name()).finish()
    }
}

impl FjallKv {
    fn failed(&self, what: &str, error: fjall::Error) -> Error {
        failed(what, &self.store.path, error)
    }
}

impl KvRead for FjallKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.space.get(key).map_err(|error| self.failed("read", error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Entry>> {
        if from >= to {
            return Ok(Vec::new());
        }
        collect(self.space.range(from..to), limit).map_err(|error| self.failed("read", error))
    }
}

impl Kv for FjallKv {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()> {
        let mode = match durability {
            Durability::Process => PersistMode::Buffer,
            Durability::Disk => SYNC,
        };
        let mut writes = self.store.database.batch().durability(Some(mode));
        for (key, value) in last_of_each(batch.changes) {
            match value {
                Some(value) => writes.insert(&self.space, key, value),
                None => writes.remove(&self.space, key),
            }
        }
        if writes.is_empty() && durability == Durability::Disk {
            return self.store.sync();
        }
        writes.commit().map_err(|error| self.failed("write", error))
    }

    fn view(&self) -> Result<Box<dyn KvRead>> {
        Ok(Box::new(FjallView { snapshot: self.store.database.snapshot(), kv: self.clone() }))
    }
}

/// A key space as it was at one moment.
struct FjallView {
    snapshot: Snapshot,
    kv: FjallKv,
}

impl fmt::Debug for FjallView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FjallView").field(&self.kv).finish()
    }
}

impl KvRead for FjallView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        let value = self.snapshot.get(&self.kv.space, key).map_err(|error| self.kv.failed("read", error))?;
        Ok(value.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Entry>> {
        if from >= to {
            return Ok(Vec::new());
        }
        let found = self.snapshot.range(&self.kv.space, from..to);
        collect(found, limit).map_err(|error| self.kv.failed("read", error))
    }
}

fn collect(found: fjall::Iter, limit: usize) -> fjall::Result<Vec<Entry>> {
    let entry = |guard: fjall::Guard| guard.into_inner().map(|(key, value)| (key.to_vec(), value.to_vec()));
    found.take(limit).map(entry).collect()
}

type Change = (Vec<u8>, Option<Vec<u8>>);

/// All changes of a fjall batch carry one sequence number, so a key may be in it only once.
fn last_of_each(changes: Vec<Change>) -> Vec<Change> {
    let mut place: HashMap<Vec<u8>, usize> = HashMap::with_capacity(changes.len());
    let mut last: Vec<Change> = Vec::with_capacity(changes.len());
    for (key, value) in changes {
        match place.get(&key) {
            Some(&at) => last[at].1 = value,
            None => {
                place.insert(key.clone(), last.len());
                last.push((key, value));
            }
        }
    }
    last
}

fn failed(what: &str, path: &Path, error: fjall::Error) -> Error {
    let what = format!("{what} the key-value store {}", path.display());
    match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => Error::io(what, error),
        fjall::Error::Locked => {
            Error::new(Kind::Unavailable, format!("{what}: another process has it open; stop it first"))
        }
        fjall::Error::Poisoned => {
            let why =
                "an earlier write failed, so nothing more is written; look at the disk, then start the node again";
            Error::new(Kind::Io, format!("{what}: {why}"))
        }
        other => Error::caused(Kind::Corrupt, what, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::conformance;

    fn store(folder: &tempfile::TempDir) -> FjallStore {
        FjallStore::open(folder.path(), 1 << 20).expect("opens")
    }

    #[test]
    fn conforms() {
        conformance::run(|| {
            let folder = tempfile::tempdir().expect("folder");
            let kv = store(&folder).space("test").expect("space");
            (folder, kv)
        });
    }

    #[test]
    fn what_was_written_is_there_after_opening_again() {
        let folder = tempfile::tempdir().expect("folder");
        for round in 0..5u8 {
            let store = store(&folder);
            let kv = store.space("a").expect("space");
            for earlier in 0..round {
                assert_eq!(kv.get(&[earlier]).expect("reads"), Some(vec![earlier; 100]));
            }
            let durability = if round % 2 == 0 { Durability::Process } else { Durability::Disk };
            kv.write(WriteBatch { changes: vec![(vec![round], Some(vec![round; 100]))] }, durability).expect("writes");
        }
    }

    #[test]
    fn a_removed_space_is_gone_but_its_views_are_readable() {
        let folder = tempfile::tempdir().expect("folder");
        {
            let store = store(&folder);
            let kv = store.space("old").expect("space");
            kv.write(WriteBatch { changes: vec![(b"k".to_vec(), Some(b"v".to_vec()))] }, Durability::Disk)
                .expect("writes");
            let view = kv.view().expect("view");
            store.remove("old").expect("removes");
            assert!(!store.spaces().contains(&"old".to_string()));
            assert_eq!(view.get(b"k").expect("reads"), Some(b"v".to_vec()));
        }
        assert!(store(&folder).spaces().is_empty());
        assert_eq!(store(&folder).space("old").expect("space").get(b"k").expect("reads"), None);
    }

    #[test]
    fn a_store_in_use_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let _held = store(&folder);
        let error = FjallStore::open(folder.path(), 1 << 20).expect_err("in use");
        assert_eq!(error.kind(), Kind::Unavailable);
    }
}
