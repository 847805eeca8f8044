//! The state machine as openraft sees it: applies entries to the state, makes and installs snapshots of it.
//!
//! The state lies in a key space `state-N` together with the record of the last applied entry, so both move in one batch. A
//! snapshot is installed into `state-N+1`; one synchronous write of the key `generation` in key space `current` switches to
//! it. Whatever happens before that write leaves the old state, whatever after it the new one.

use super::snapshot::{self, Meta, SnapshotFile};
use super::{Applied, LogId, StoredMembership, TypeConfig, decode, encode, storage};
use crate::kv::{Durability, FjallKv, FjallStore, Kv, KvRead, WriteBatch};
use crate::state;
use futures::{Stream, StreamExt};
use openraft::entry::RaftEntry;
use openraft::storage::{EntryResponder, RaftStateMachine, Snapshot};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use tokio::sync::watch;
use torchfs_core::folder::publish;
use torchfs_core::meta::{Changed, Feed, MetaAnswer, MetaQuery, MetaReply, Timestamp};
use torchfs_core::{ClusterId, Error, IoContext, Kind, Result};

/// The key of the [`Record`]; the state's own keys never begin with this byte.
const RECORD: &[u8] = b"\xffapplied";
const GENERATION: &[u8] = b"generation";

/// Entries applied without giving the thread back.
const APPLY_MAX: usize = 256;

type SnapshotOf = Snapshot<
    openraft::type_config::alias::CommittedLeaderIdOf<TypeConfig>,
    u64,
    openraft::impls::BasicNode,
    SnapshotFile,
>;

/// How far the state is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Record {
    applied: Option<LogId>,
    membership: StoredMembership,
    /// The latest time of any applied entry. Time in the state never goes back, not even over a change of leader.
    time: Timestamp,
}

/// The state of one node, for everyone who reads it. The only one who changes it is the [`StateMachine`].
#[derive(Debug)]
pub struct StateStore {
    store: FjallStore,
    folder: PathBuf,
    current: RwLock<Current>,
    snapshot: Mutex<Option<(Meta, SnapshotFile)>>,
    cluster: watch::Sender<Option<ClusterId>>,
    feed: Feed,
}

#[derive(Clone, Debug)]
struct Current {
    kv: FjallKv,
    generation: u64,
}

impl Record {
    /// The number of the last applied entry.
    fn index(&self) -> u64 {
        self.applied.map_or(0, |id| id.index)
    }
}

impl StateStore {
    /// Opens the state in `store`, with snapshots in `folder`.
    ///
    /// # Errors
    /// [`Kind::Corrupt`], or what the operating system says.
    pub fn open(store: FjallStore, folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder).io(|| format!("make folder {}", folder.display()))?;
        let generation = match store.space("current")?.get(GENERATION)? {
            Some(value) => decode(&value, "the number of the state")?,
            None => 0,
        };
        for left_over in store.spaces() {
            if left_over != "current" && left_over != space_name(generation) {
                store.remove(&left_over)?;
            }
        }
        let current = Current { kv: store.space(&space_name(generation))?, generation };
        let snapshot = newest_snapshot(folder)?;
        let (cluster, _) = watch::channel(None);
        let feed = Feed::new(read_record(&current.kv)?.index());
        let state = StateStore {
            store,
            folder: folder.to_path_buf(),
            current: RwLock::new(current),
            snapshot: Mutex::new(snapshot),
            cluster,
            feed,
        };
        state.learn_cluster()?;
        Ok(state)
    }

    /// The state as it is now, and stays in this view.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn view(&self) -> Result<Box<dyn KvRead>> {
        self.current().kv.view()
    }

    /// Which cluster this is, from the moment the state knows it.
    #[must_use]
    pub fn cluster(&self) -> watch::Receiver<Option<ClusterId>> {
        self.cluster.subscribe()
    }

    /// What changed lately, numbered by the log.
    #[must_use]
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The folder of the snapshots.
    #[must_use]
    pub fn snapshot_folder(&self) -> &Path {
        &self.folder
    }

    /// Makes everything applied so far survive a power cut.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn sync(&self) -> Result<()> {
        self.store.sync()
    }

    fn current(&self) -> Current {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn snapshot(&self) -> MutexGuard<'_, Option<(Meta, SnapshotFile)>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn learn_cluster(&self) -> Result<()> {
        if self.cluster.borrow().is_some() {
            return Ok(());
        }
        match state::query(&self.current().kv, &MetaQuery::Map) {
            Ok(MetaAnswer::Map(map)) => {
                self.cluster.send_replace(Some(map.cluster));
                Ok(())
            }
            Ok(_) => Err(Error::new(Kind::Protocol, "the state answers a question about the map with something else")),
            // Not founded yet.
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Unavailable) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Keeps the newer of the snapshot there was and this one, and removes the files of all others.
    fn keep_snapshot(&self, meta: Meta, file: SnapshotFile) -> Result<()> {
        let mut kept = self.snapshot();
        if kept.as_ref().is_some_and(|(old, _)| old.last_log_id > meta.last_log_id) {
            return Ok(());
        }
        *kept = Some((meta, file));
        let keep = kept.as_ref().map(|(_, file)| file.path());
        for path in snapshot_files(&self.folder)? {
            if Some(path.as_path()) != keep {
                std::fs::remove_file(&path).io(|| format!("remove old snapshot {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn snapshot_path(&self, meta: &Meta) -> PathBuf {
        let (term, index) = meta.last_log_id.map_or((0, 0), |id| (id.leader_id.term, id.index));
        self.folder.join(format!("{index:020}-{term}.snapshot"))
    }

    fn apply(&self, record: &mut Record, entries: Vec<EntryResponder<TypeConfig>>) -> Result<()> {
        let kv = self.current().kv;
        for (entry, responder) in entries {
            let mut changed = record.clone();
            changed.applied = Some(entry.log_id());
            let mut batch = WriteBatch::default();
            let mut outcome = Ok(MetaReply::Done);
            let mut told = None;
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Membership(membership) => {
                    changed.membership = StoredMembership::new(Some(entry.log_id()), membership.clone());
                }
                EntryPayload::Normal(proposal) => {
                    let (time, command) = proposal.decode()?;
                    changed.time = time.max(record.time);
                    (batch, outcome) = state::apply(&kv, changed.time, &command)?;
                    told = Some(Changed { by: command.request, what: state::changes(&batch) });
                }
            }
            batch.changes.push((RECORD.to_vec(), Some(encode(&changed)?)));
            kv.write(batch, Durability::Process)?;
            *record = changed;
            // Before the answer, so that who asks after it was acknowledged is told of it.
            if let Some(told) = told {
                self.feed.push(record.index(), told);
            }
            if let Some(responder) = responder {
                responder.send(Applied(outcome));
            }
        }
        self.learn_cluster()
    }

    fn build(&self, view: &dyn KvRead) -> Result<(Meta, SnapshotFile)> {
        let record = read_record(view)?;
        let meta = Meta { last_log_id: record.applied, last_membership: record.membership };
        let file = snapshot::write(view, &meta, &self.snapshot_path(&meta))?;
        self.keep_snapshot(meta.clone(), file.clone())?;
        Ok((meta, file))
    }

    fn install(&self, meta: &Meta, file: &SnapshotFile) -> Result<Record> {
        let generation = self.current().generation + 1;
        let name = space_name(generation);
        if self.store.spaces().contains(&name) {
            self.store.remove(&name)?;
        }
        let kv = self.store.space(&name)?;
        file.for_each(|entries| {
            let changes = entries.into_iter().map(|(key, value)| (key, Some(value))).collect();
            kv.write(WriteBatch { changes }, Durability::Process)
        })?;
        let record = read_record(&kv)?;
        if record.applied != meta.last_log_id {
            let path = file.path().display();
            return Err(Error::new(Kind::Corrupt, format!("snapshot {path} holds another state than it says")));
        }
        // The new state first, the pointer to it second, each on disk before the next step.
        self.store.sync()?;
        let pointer = vec![(GENERATION.to_vec(), Some(encode(&generation)?))];
        self.store.space("current")?.write(WriteBatch { changes: pointer }, Durability::Disk)?;
        let old = std::mem::replace(
            &mut *self.current.write().unwrap_or_else(PoisonError::into_inner),
            Current { kv, generation },
        );
        self.feed.reset(record.index());
        self.store.remove(&space_name(old.generation))?;
        self.adopt(meta, file)?;
        self.learn_cluster()?;
        Ok(record)
    }

    /// The installed snapshot becomes the one that this node hands on.
    fn adopt(&self, meta: &Meta, file: &SnapshotFile) -> Result<()> {
        let path = self.snapshot_path(meta);
        if file.path() != path {
            // The file may belong to another node's folder (one process, several nodes): then it is copied.
            if file.path().parent() == Some(&self.folder) {
                publish(file.path(), &path)?;
            } else {
                snapshot::write(&*self.view()?, meta, &path)?;
            }
        }
        self.keep_snapshot(meta.clone(), SnapshotFile::open(&path)?.1)
    }
}

fn space_name(generation: u64) -> String {
    format!("state-{generation}")
}

fn read_record(view: &(impl KvRead + ?Sized)) -> Result<Record> {
    match view.get(RECORD)? {
        Some(value) => decode(&value, "the record of what was applied"),
        None => Ok(Record::default()),
    }
}

fn snapshot_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let what = || format!("list folder {}", folder.display());
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).io(what)? {
        let path = entry.io(what)?.path();
        if path.extension().is_some_and(|extension| extension == "snapshot") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The newest snapshot that can be read; leftovers of interrupted work are removed.
fn newest_snapshot(folder: &Path) -> Result<Option<(Meta, SnapshotFile)>> {
    let what = || format!("clean folder {}", folder.display());
    for entry in std::fs::read_dir(folder).io(what)? {
        let path = entry.io(what)?.path();
        if path.extension().is_some_and(|extension| extension == "tmp" || extension == "received") {
            std::fs::remove_file(&path).io(what)?;
        }
    }
    match snapshot_files(folder)?.last() {
        Some(path) => SnapshotFile::open(path).map(Some),
        None => Ok(None),
    }
}

/// Applies entries. There is one per node, owned by openraft.
#[derive(Debug)]
pub struct StateMachine {
    state: Arc<StateStore>,
    record: Record,
}

impl StateMachine {
    /// The state machine over `state`.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn new(state: Arc<StateStore>) -> Result<Self> {
        let record = read_record(&state.current().kv)?;
        Ok(StateMachine { state, record })
    }

    /// Runs what touches the disk away from the async threads.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&StateStore) -> Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let state = self.state.clone();
        tokio::task::spawn_blocking(move || work(&state)).await.map_err(io::Error::other)?.map_err(storage)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.record.applied, self.record.membership.clone()))
    }

    async fn apply<Strm>(&mut self, entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(APPLY_MAX);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.into_iter().collect::<io::Result<Vec<_>>>()?;
            let mut record = self.record.clone();
            let apply = move |state: &StateStore| state.apply(&mut record, chunk).map(|()| record);
            self.record = self.blocking(apply).await?;
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder { state: self.state.clone(), view: self.state.view().map(Some) }
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: SnapshotFile) -> io::Result<()> {
        let meta = meta.clone();
        self.record = self.blocking(move |state| state.install(&meta, &snapshot)).await?;
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf>> {
        Ok(self.state.snapshot().clone().map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}

/// Writes a snapshot of one moment's state.
#[derive(Debug)]
pub struct SnapshotBuilder {
    state: Arc<StateStore>,
    view: Result<Option<Box<dyn KvRead>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf> {
        let view = std::mem::replace(&mut self.view, Ok(None)).map_err(storage)?;
        let view = view.ok_or_else(|| io::Error::other("a snapshot is built once"))?;
        let state = self.state.clone();
        let built = tokio::task::spawn_blocking(move || state.build(&*view)).await.map_err(io::Error::other)?;
        let (meta, snapshot) = built.map_err(storage)?;
        Ok(Snapshot { meta, snapshot })
    }
}
