//! openraft's own suite for stores, and what it does not ask: restarts, torn files, purge and snapshots on disk.

use super::*;
use crate::kv::{Durability, FjallStore, Kv, WriteBatch};
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use openraft::{RaftLogReader, RaftSnapshotBuilder, StorageError};
use std::sync::Arc;
use tempfile::TempDir;
use torchfs_core::layout::Profile;
use torchfs_core::meta::{InternalOp, MetaOp, XattrMode, XattrName};
use torchfs_core::{ClientId, ClusterId, InodeId, RequestId};

struct Builder;

pub(super) fn open(folder: &TempDir) -> (LogStore, StateMachine, Arc<StateStore>) {
    let open = || -> Result<_> {
        let log = FjallStore::open(&folder.path().join("log"), 1 << 20)?;
        let store = FjallStore::open(&folder.path().join("state"), 1 << 20)?;
        let state = Arc::new(StateStore::open(store.clone(), &folder.path().join("snapshots"))?);
        Ok((LogStore::open(&log, store)?, StateMachine::new(state.clone())?, state))
    };
    open().expect("opens")
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().expect("folder");
        let (log, machine, _) = open(&folder);
        Ok((folder, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.expect("the suite passes");
}

fn proposal(text: &str) -> Proposal {
    let op = MetaOp::SetXattr {
        ino: InodeId::ROOT,
        name: XattrName::new(text).expect("name"),
        value: text.as_bytes().to_vec(),
        mode: XattrMode::Either,
    };
    let request = RequestId { client: ClientId(1), sequence: text.len() as u64 };
    let command = Command { request, answered_below: 0, op };
    Proposal::new(Timestamp { seconds: 1, nanos: 0 }, &command).expect("encodes")
}

fn entry(index: u64) -> Entry {
    let id = LogId { leader_id: openraft::impls::leader_id_adv::LeaderId { term: 1, node_id: 1 }, index };
    Entry { log_id: id, payload: openraft::EntryPayload::Normal(proposal(&format!("user.{index}"))) }
}

async fn append(log: &mut LogStore, indices: std::ops::Range<u64>) {
    let (sender, receiver) = TypeConfig::oneshot();
    let flushed = openraft::storage::IOFlushed::signal(sender);
    log.append(indices.map(entry), flushed).await.expect("appends");
    receiver.await.expect("answers").expect("is on disk");
}

async fn read(log: &mut LogStore) -> Vec<u64> {
    let mut reader = log.get_log_reader().await;
    let entries = reader.try_get_log_entries(..).await.expect("reads");
    entries.iter().map(openraft::entry::RaftEntry::index).collect()
}

async fn apply(machine: &mut StateMachine, indices: std::ops::Range<u64>) {
    let found = MetaOp::Internal(InternalOp::Found { cluster: ClusterId(7), profile: Profile::DEFAULT });
    let request = RequestId { client: ClientId(1), sequence: 0 };
    let command = Command { request, answered_below: 0, op: found };
    let found = Proposal::new(Timestamp::default(), &command).expect("encodes");
    let entries = indices.map(|index| {
        let mut entry = entry(index);
        if index == 0 {
            entry.payload = openraft::EntryPayload::Normal(found.clone());
        }
        Ok((entry, None))
    });
    machine.apply(futures::stream::iter(entries)).await.expect("applies");
}

fn dump(state: &StateStore) -> Vec<crate::kv::Entry> {
    state.view().expect("view").scan(&[], &crate::kv::END, usize::MAX).expect("scans")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_the_same_after_opening_again() {
    let folder = tempfile::tempdir().expect("folder");
    {
        let (mut log, _, _) = open(&folder);
        append(&mut log, 0..50).await;
        log.truncate_after(Some(entry(39).log_id)).await.expect("truncates");
        append(&mut log, 40..45).await;
        log.purge(entry(9).log_id).await.expect("purges");
        assert_eq!(read(&mut log).await, (10..45).collect::<Vec<_>>());
    }
    let (mut log, _, _) = open(&folder);
    assert_eq!(read(&mut log).await, (10..45).collect::<Vec<_>>());
    let state = log.get_log_state().await.expect("reads");
    assert_eq!(state.last_purged_log_id, Some(entry(9).log_id));
    assert_eq!(state.last_log_id, Some(entry(44).log_id));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_that_wait_together_share_disk_writes() {
    let folder = tempfile::tempdir().expect("folder");
    let (mut log, _, _) = open(&folder);
    let mut waiting = Vec::new();
    for index in 0..200 {
        let (sender, receiver) = TypeConfig::oneshot();
        log.append([entry(index)], openraft::storage::IOFlushed::signal(sender)).await.expect("appends");
        waiting.push(receiver);
    }
    for receiver in waiting {
        receiver.await.expect("answers").expect("is on disk");
    }
    assert!((1..=100).contains(&log.disk_writes()), "{} disk writes for 200 appends", log.disk_writes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_makes_an_equal_state_that_survives_opening_again() {
    let (from, to) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (_, mut source, state) = open(&from);
    apply(&mut source, 0..20).await;
    let snapshot = source.get_snapshot_builder().await.build_snapshot().await.expect("builds");
    {
        let (_, mut machine, copy) = open(&to);
        apply(&mut machine, 0..5).await;
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.expect("installs");
        assert_eq!(dump(&copy), dump(&state));
        assert_eq!(*copy.cluster().borrow(), Some(ClusterId(7)));
    }
    let (_, mut machine, copy) = open(&to);
    assert_eq!(dump(&copy), dump(&state));
    assert_eq!(machine.applied_state().await.expect("reads").0, Some(entry(19).log_id));
    apply(&mut machine, 20..25).await;
    assert_ne!(dump(&copy), dump(&state));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_or_flipped_changes_nothing() {
    let (from, to) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (_, mut source, _) = open(&from);
    apply(&mut source, 0..20).await;
    let snapshot = source.get_snapshot_builder().await.build_snapshot().await.expect("builds");
    let whole = std::fs::read(snapshot.snapshot.path()).expect("reads");
    let (_, mut machine, state) = open(&to);
    apply(&mut machine, 0..5).await;
    let before = dump(&state);
    let path = to.path().join("snapshots").join("bad.tmp");
    let mut bad = Vec::new();
    for at in (12..whole.len()).step_by(97) {
        bad.push(whole[..at].to_vec());
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        bad.push(flipped);
    }
    for bytes in bad {
        std::fs::write(&path, bytes).expect("writes");
        if let Ok((_, file)) = snapshot::SnapshotFile::open(&path) {
            machine.install_snapshot(&snapshot.meta, file).await.expect_err("is refused");
        }
        assert_eq!(dump(&state), before);
    }
}

/// What a crash leaves at each step of an installation, made by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_while_a_snapshot_is_installed_leaves_the_old_state_or_the_new() {
    let (from, to) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (_, mut source, state) = open(&from);
    apply(&mut source, 0..20).await;
    let (whole, snapshot) = (dump(&state), source.get_snapshot_builder().await.build_snapshot().await.expect("builds"));
    let before = {
        let (mut log, mut machine, state) = open(&to);
        append(&mut log, 0..5).await;
        apply(&mut machine, 0..5).await;
        dump(&state)
    };
    let leave = |entries: &[crate::kv::Entry], switched: bool| {
        let store = FjallStore::open(&to.path().join("state"), 1 << 20).expect("opens");
        let changes = entries.iter().map(|(key, value)| (key.clone(), Some(value.clone()))).collect();
        store.space("state-1").expect("space").write(WriteBatch { changes }, Durability::Disk).expect("writes");
        if switched {
            let changes = vec![(b"generation".to_vec(), Some(encode(&1u64).expect("encodes")))];
            store.space("current").expect("space").write(WriteBatch { changes }, Durability::Disk).expect("writes");
        }
        let received = to.path().join("snapshots").join("0123456789abcdef.received");
        std::fs::copy(snapshot.snapshot.path(), received).expect("copies");
    };

    leave(&whole[..whole.len() / 2], false);
    {
        let (_, mut machine, state) = open(&to);
        assert_eq!(dump(&state), before, "half of the new state does not count");
        assert_eq!(machine.applied_state().await.expect("reads").0, Some(entry(4).log_id));
        assert_eq!(std::fs::read_dir(to.path().join("snapshots")).expect("lists").count(), 0, "and nothing is left");
    }
    leave(&whole, false);
    assert_eq!(dump(&open(&to).2), before, "nor does all of it before the switch");
    leave(&whole, true);
    {
        let (_, mut machine, state) = open(&to);
        assert_eq!(dump(&state), whole);
        assert_eq!(machine.applied_state().await.expect("reads").0, Some(entry(19).log_id));
        assert_eq!(*state.cluster().borrow(), Some(ClusterId(7)));
        // The same snapshot may be sent again, since its sender heard of no success.
        machine.install_snapshot(&snapshot.meta, snapshot.snapshot.clone()).await.expect("installs");
        assert_eq!(dump(&state), whole);
    }
    let (_, mut machine, state) = open(&to);
    apply(&mut machine, 20..22).await;
    assert_ne!(dump(&state), whole, "and work goes on");
}
