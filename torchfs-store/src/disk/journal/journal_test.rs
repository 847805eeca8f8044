//! The journal as its users see it: what is there after power cuts, whatever became of files that were not synced.

mod model;

use super::checkpoint::checkpoint_all;
use super::*;
use crate::disk::format::Header;
use crate::disk::{Capacity, DiskStore, Registration};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use tempfile::TempDir;
use torchfs_core::checksum::block_checksums;
use torchfs_core::shard::{ShardRead, ShardStore};
use torchfs_core::{ClusterId, NodeId, StripeId};

const CLUSTER: ClusterId = ClusterId(0xc1);

/// Two segments of 15 pages for records, checkpointed only when they are full.
const SMALL: Shape = Shape { segment_bytes: 16 * PAGE_BYTES as u64, segments: 2, age_max: Duration::from_secs(3600) };

/// Two segments in which nothing of these tests fills one.
const LARGE: Shape = Shape { segment_bytes: 1 << 20, ..SMALL };

fn open(root: &Path, shape: Shape) -> DiskStore {
    let store = DiskStore::open_shaped(root, Capacity::from(None), shape).expect("opens");
    store.register(Registration { cluster: CLUSTER, node: NodeId(1) }).expect("registers");
    store
}

/// A store whose journal is there, and is empty.
async fn ready(shape: Shape) -> (TempDir, DiskStore) {
    let root = tempfile::tempdir().expect("temp folder");
    let store = open(root.path(), shape);
    let first = shard(u64::MAX);
    put(&store, first, &content(1, 1)).await.expect("a put without a journal");
    until("the journal is made", || journal(&store).state().phase == Phase::Ready).await;
    store.delete(vec![first]).await.expect("deletes");
    assert!(named(&store).is_empty());
    (root, store)
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}: that never came");
}

fn journal(store: &DiskStore) -> Arc<Journal> {
    store.0.journal.clone()
}

/// What the live segments name.
fn named(store: &DiskStore) -> BTreeMap<ShardId, Change> {
    let journal = journal(store);
    let state = journal.state();
    let shards = state.slots.iter().flat_map(|slot| slot.shards.keys());
    shards.map(|&shard| (shard, state.last(shard).expect("named"))).collect()
}

async fn checkpoint(store: &DiskStore) {
    let store = store.clone();
    let done = tokio::task::spawn_blocking(move || checkpoint_all(&store.0)).await;
    done.expect("a thread").expect("checkpointed");
}

/// Keeps the worker from checkpointing until it is dropped.
struct Held(Option<std::sync::mpsc::Sender<()>>, Option<JoinHandle<()>>);

fn hold(store: &DiskStore) -> Held {
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (is_held, held) = std::sync::mpsc::channel();
    let journal = journal(store);
    let thread = std::thread::spawn(move || {
        let _alone = journal.checkpointing.lock().expect("not poisoned");
        is_held.send(()).expect("the test waits");
        let _ = released.recv();
    });
    held.recv().expect("held");
    Held(Some(release), Some(thread))
}

impl Drop for Held {
    fn drop(&mut self) {
        drop(self.0.take());
        self.1.take().expect("once").join().expect("ends");
    }
}

fn shard(stripe: u64) -> ShardId {
    ShardId { stripe: StripeId(stripe), index: (stripe % 6) as u8 }
}

fn content(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect::<Vec<_>>().into()
}

fn shard_file(shard: ShardId, data: &Bytes) -> Vec<u8> {
    let header = Header { cluster: CLUSTER, shard, bytes: data.len() as u32, checksums: block_checksums(data) };
    [&header.encode()[..], data].concat()
}

async fn put(store: &DiskStore, shard: ShardId, data: &Bytes) -> Result<()> {
    store.put(shard, data.clone().into(), block_checksums(data)).await
}

async fn get(store: &DiskStore, shard: ShardId) -> Result<Bytes> {
    Ok(store.get(ShardRead { shard, range: 0..u32::MAX }).await?.data.0)
}

async fn is_there(store: &DiskStore, shard: ShardId) -> bool {
    match get(store, shard).await {
        Ok(_) => true,
        Err(error) => {
            assert_eq!(error.kind(), Kind::NotFound, "{error}");
            false
        }
    }
}

/// What a power cut makes of a file that was not synced.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Kept,
    Lost,
    Short,
    Zeros,
}

/// The folder as a power cut now might leave it: the journal and all synced files as they are, of the others what `fate` says.
fn after_power_cut(store: &DiskStore, mut fate: impl FnMut(ShardId) -> Fate) -> TempDir {
    let _held = hold(store);
    let copy = tempfile::tempdir().expect("temp folder");
    copy_folder(store.root(), copy.path());
    for (shard, change) in named(store) {
        let path = moved(store, &copy, shard);
        let whole = fs::read(&path).unwrap_or_default();
        assert_eq!(whole.is_empty(), change == Change::Delete, "{shard} is there after its put and gone when deleted");
        match (change, fate(shard)) {
            (Change::Delete, _) | (Change::Put, Fate::Kept) => {}
            (Change::Put, Fate::Lost) => fs::remove_file(&path).expect("removes"),
            (Change::Put, Fate::Short) => fs::write(&path, &whole[..whole.len() / 2]).expect("writes"),
            (Change::Put, Fate::Zeros) => fs::write(&path, vec![0; whole.len()]).expect("writes"),
        }
    }
    copy
}

fn moved(store: &DiskStore, copy: &TempDir, shard: ShardId) -> PathBuf {
    let path = store.0.folder.shard(shard);
    copy.path().join(path.strip_prefix(store.root()).expect("inside"))
}

fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("makes a folder");
    for entry in fs::read_dir(from).expect("lists").map(|entry| entry.expect("lists")) {
        let target = to.join(entry.file_name());
        match entry.file_type().expect("a type").is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).expect("copies")),
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_whatever_becomes_of_its_file() {
    let (_root, store) = ready(LARGE).await;
    let contents: Vec<Bytes> = [1, 4000, 8192, 40_000, 65_536].map(|len| content(len, len as u8)).into();
    for (stripe, data) in contents.iter().enumerate() {
        put(&store, shard(stripe as u64), data).await.expect("put");
        assert_eq!(get(&store, shard(stripe as u64)).await.expect("seen at once"), data);
    }
    put(&store, shard(99), &content(65_537, 1)).await.expect("put");
    assert_eq!(named(&store).len(), contents.len(), "all but the large one went through the journal");
    for fate in [Fate::Kept, Fate::Lost, Fate::Short, Fate::Zeros] {
        let copy = after_power_cut(&store, |_| fate);
        let again = open(copy.path(), LARGE);
        for (stripe, data) in contents.iter().enumerate() {
            assert_eq!(get(&again, shard(stripe as u64)).await.expect("replayed"), data, "{fate:?}");
        }
        assert_eq!(again.load().expect("load").shards, 6, "replayed before it is counted");
        assert!(again.damaged(1).is_empty());
        again.close().await;
    }
}

#[tokio::test]
async fn a_torn_tail_is_ignored_and_what_is_before_it_is_not() {
    let (_root, store) = ready(LARGE).await;
    for stripe in 1..=3 {
        put(&store, shard(stripe), &content(10_000, 1)).await.expect("put");
    }
    let copy = after_power_cut(&store, |_| Fate::Lost);
    let segment = copy.path().join("journal/segment-0");
    let mut bytes = fs::read(&segment).expect("reads");
    let last = PAGE_BYTES + 2 * Record::put(shard(1), &[0; 512], &[0; 10_000]).padded_bytes();
    assert_eq!(bytes[last..last + 4], *b"TFSJ");
    bytes[last + 5000] ^= 1;
    fs::write(&segment, bytes).expect("writes");
    let again = open(copy.path(), LARGE);
    assert!(is_there(&again, shard(1)).await && is_there(&again, shard(2)).await);
    assert!(!is_there(&again, shard(3)).await);
    again.close().await;
}

#[tokio::test]
async fn a_deleted_shard_does_not_come_back() {
    let (_root, store) = ready(SMALL).await;
    let held = hold(&store);
    let data = content(20_000, 1);
    for stripe in 1..=2 {
        put(&store, shard(stripe), &data).await.expect("put");
    }
    store.delete(vec![shard(1)]).await.expect("deletes");
    // The next one does not fit the segment any more, so that the second deletion is in another one than the put.
    put(&store, shard(3), &data).await.expect("put");
    store.delete(vec![shard(2)]).await.expect("deletes");
    assert_eq!(named(&store)[&shard(2)], Change::Delete);
    assert!(journal(&store).state().slots.iter().all(|slot| slot.shards.contains_key(&shard(2))), "in both segments");
    drop(held);
    // Held again inside, before the worker can be done: what it has checkpointed is durable.
    let copy = after_power_cut(&store, |_| Fate::Lost);
    for stripe in 1..=2 {
        fs::write(moved(&store, &copy, shard(stripe)), shard_file(shard(stripe), &data)).expect("writes");
    }
    let is_named = named(&store).contains_key(&shard(1));
    let again = open(copy.path(), SMALL);
    assert!(!is_named || !is_there(&again, shard(1)).await);
    assert!(!is_there(&again, shard(2)).await, "its deletion was the last record");
    assert!(is_there(&again, shard(3)).await);
    again.close().await;
}

#[tokio::test]
async fn records_of_an_earlier_use_are_not_replayed() {
    let (_root, store) = ready(LARGE).await;
    for stripe in 1..=3 {
        put(&store, shard(stripe), &content(5000, 1)).await.expect("put");
    }
    checkpoint(&store).await;
    assert!(named(&store).is_empty());
    store.delete((1..=3).map(shard).collect()).await.expect("deletes");
    put(&store, shard(4), &content(5000, 1)).await.expect("put in the other segment");
    checkpoint(&store).await;
    put(&store, shard(5), &content(5000, 1)).await.expect("put in the first segment again");

    let copy = after_power_cut(&store, |_| Fate::Lost);
    let segment = Segment::open(&copy.path().join("journal/segment-0")).expect("opens").expect("is there");
    let second = PAGE_BYTES as u64 + Record::put(shard(1), &[0; 512], &[0; 5000]).padded_bytes() as u64;
    let stale = segment.record(second, Place { epoch: Epoch(1), index: 1 }).expect("reads").expect("still there");
    assert_eq!(stale.0.shard, shard(2));
    let again = open(copy.path(), LARGE);
    for stripe in 1..=5 {
        assert_eq!(is_there(&again, shard(stripe)).await, stripe >= 4, "shard {stripe}");
    }
    again.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn segments_are_used_in_turn_by_many_at_once() {
    let (_root, store) = ready(SMALL).await;
    let lanes: Vec<_> = (0..8u64)
        .map(|lane| {
            let store = store.clone();
            tokio::spawn(async move {
                for round in 0..40u64 {
                    let stripe = round * 8 + lane;
                    put(&store, shard(stripe), &content(100 + 40 * stripe as usize, lane as u8)).await.expect("put");
                    if round % 4 == 3 {
                        store.delete(vec![shard(stripe - 8)]).await.expect("deletes");
                    }
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.expect("a lane");
    }
    let copy = after_power_cut(&store, |_| Fate::Lost);
    assert!(journal(&store).state().next_epoch() > Epoch(6), "segments were used again");
    let again = open(copy.path(), SMALL);
    for stripe in 0..320u64 {
        let (round, lane) = (stripe / 8, stripe % 8);
        match round % 4 == 2 {
            true => assert!(!is_there(&again, shard(stripe)).await, "{stripe} was deleted"),
            false => {
                let data = get(&again, shard(stripe)).await.expect("held");
                assert!(data == content(100 + 40 * stripe as usize, lane as u8), "{stripe}");
            }
        }
    }
    assert_eq!(again.load().expect("load").shards, 240);
    again.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_free_segment_puts_and_deletes_are_durable_all_the_same() {
    let (_root, store) = ready(SMALL).await;
    let held = hold(&store);
    let data = content(20_000, 1);
    for stripe in 1..=10 {
        put(&store, shard(stripe), &data).await.expect("put");
    }
    assert_eq!(named(&store).len(), 4, "two in each segment, the others without the journal");
    let copy = after_power_cut_at_rest(&store);
    let again = open(copy.path(), SMALL);
    for stripe in 1..=10 {
        assert_eq!(get(&again, shard(stripe)).await.expect("held"), data, "{stripe}");
    }
    again.close().await;

    let waiting = tokio::spawn({
        let store = store.clone();
        async move { store.delete(vec![shard(1), shard(10)]).await }
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!waiting.is_finished() && is_there(&store, shard(1)).await, "it could come back");
    drop(held);
    waiting.await.expect("a task").expect("deletes");
    let copy = after_power_cut(&store, |_| Fate::Lost);
    let again = open(copy.path(), SMALL);
    for stripe in 1..=10 {
        assert_eq!(is_there(&again, shard(stripe)).await, !matches!(stripe, 1 | 10), "{stripe}");
    }
    again.close().await;
}

/// As [`after_power_cut`] with every file lost, for a store whose worker does nothing just now.
fn after_power_cut_at_rest(store: &DiskStore) -> TempDir {
    let copy = tempfile::tempdir().expect("temp folder");
    copy_folder(store.root(), copy.path());
    for shard in named(store).keys() {
        // What was not acknowledged may have no file.
        let _ = fs::remove_file(moved(store, &copy, *shard));
    }
    copy
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_put_again_after_its_deletion_stays() {
    let (_root, store) = ready(LARGE).await;
    put(&store, shard(1), &content(100, 1)).await.expect("put");
    put(&store, shard(2), &content(100, 1)).await.expect("put");
    store.delete(vec![shard(1), shard(2)]).await.expect("deletes");
    put(&store, shard(1), &content(100, 2)).await.expect("put through the journal");
    put(&store, shard(2), &content(70_000, 2)).await.expect("put past the journal");
    assert!(!named(&store).contains_key(&shard(2)), "its deletion is no more in the journal");
    let copy = after_power_cut(&store, |_| Fate::Lost);
    let again = open(copy.path(), LARGE);
    assert_eq!(get(&again, shard(1)).await.expect("held"), content(100, 2));
    assert_eq!(get(&again, shard(2)).await.expect("held"), content(70_000, 2));
    again.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_segment_is_not_freed_before_its_changes_are_made() {
    let (_root, store) = ready(LARGE).await;
    let (journal, data) = (journal(&store), content(100, 1));
    let file = shard_file(shard(1), &data);
    let header = file[..512].try_into().expect("a header");
    let recorded = journal.append(&store.0.durable, &Record::put(shard(1), header, &data)).expect("appends");
    let recorded = recorded.expect("there is room");
    checkpoint(&store).await;
    assert!(journal.would_put(shard(1)), "its file has no name yet");
    let copy = tempfile::tempdir().expect("temp folder");
    copy_folder(store.root(), copy.path());
    let again = open(copy.path(), LARGE);
    assert_eq!(get(&again, shard(1)).await.expect("written by the replay"), data);
    again.close().await;
    drop(recorded);
    until("the segment is free", || named(&store).is_empty()).await;
}

#[tokio::test]
async fn a_failed_write_of_the_journal_poisons_and_what_was_acknowledged_is_kept() {
    let (_root, store) = ready(LARGE).await;
    put(&store, shard(1), &content(100, 1)).await.expect("put");
    store.0.durable.fail.store(true, Ordering::SeqCst);
    let error = put(&store, shard(2), &content(100, 1)).await.expect_err("the journal cannot be written");
    assert_eq!(error.kind(), Kind::Io);
    assert!(store.poisoned().is_some_and(|reason| reason.contains("journal/segment-0")), "{:?}", store.poisoned());
    store.0.durable.fail.store(false, Ordering::SeqCst);
    assert!(put(&store, shard(3), &content(100, 1)).await.is_err());
    assert!(store.delete(vec![shard(1)]).await.is_err(), "that could come back");
    assert!(is_there(&store, shard(1)).await && !is_there(&store, shard(2)).await);
    checkpoint_all(&store.0).expect_err("nothing is believed to be synced any more");
    let copy = after_power_cut_at_rest(&store);
    let again = open(copy.path(), LARGE);
    assert!(is_there(&again, shard(1)).await);
    put(&again, shard(3), &content(100, 1)).await.expect("a restart takes writes again");
    again.close().await;
}

#[tokio::test]
async fn a_failed_checkpoint_poisons_and_frees_nothing() {
    let (_root, store) = ready(LARGE).await;
    put(&store, shard(1), &content(100, 1)).await.expect("put");
    store.0.durable.fail.store(true, Ordering::SeqCst);
    checkpoint_all(&store.0).expect_err("fails");
    store.0.durable.fail.store(false, Ordering::SeqCst);
    assert!(store.poisoned().is_some());
    let copy = after_power_cut(&store, |_| Fate::Lost);
    let again = open(copy.path(), LARGE);
    assert!(is_there(&again, shard(1)).await);
    again.close().await;
}

#[tokio::test]
async fn a_closed_folder_needs_no_replay() {
    let (root, store) = ready(LARGE).await;
    put(&store, shard(1), &content(100, 1)).await.expect("put");
    let path = store.0.folder.shard(shard(1));
    store.close().await;
    drop(store);
    fs::remove_file(path).expect("removes");
    let store = open(root.path(), LARGE);
    assert!(!is_there(&store, shard(1)).await, "nobody writes it again");
    put(&store, shard(2), &content(100, 1)).await.expect("put");
    assert!(journal(&store).would_put(shard(2)), "the journal is used at once");
    store.close().await;
}

#[tokio::test]
async fn an_old_record_is_checkpointed_by_itself() {
    let (_root, store) = ready(Shape { age_max: Duration::from_millis(50), ..LARGE }).await;
    put(&store, shard(1), &content(100, 1)).await.expect("put");
    until("it is checkpointed", || named(&store).is_empty()).await;
    assert!(is_there(&store, shard(1)).await);
}

#[tokio::test]
async fn a_small_node_has_no_journal() {
    let root = tempfile::tempdir().expect("temp folder");
    let store = DiskStore::open(root.path(), Some(100 << 20)).expect("opens");
    store.register(Registration { cluster: CLUSTER, node: NodeId(1) }).expect("registers");
    put(&store, shard(1), &content(100, 1)).await.expect("put");
    until("it is decided", || journal(&store).state().phase == Phase::Off).await;
    put(&store, shard(2), &content(100, 1)).await.expect("put");
    store.delete(vec![shard(1)]).await.expect("deletes");
    assert!(!root.path().join("journal").exists());
    store.close().await;
}

#[tokio::test]
async fn damage_to_the_first_page_and_another_size_lose_nothing() {
    let (_root, store) = ready(LARGE).await;
    put(&store, shard(1), &content(100, 1)).await.expect("put");
    for (flip, shape) in [(true, LARGE), (false, SMALL)] {
        let copy = after_power_cut(&store, |_| Fate::Lost);
        let segment = copy.path().join("journal/segment-0");
        let mut bytes = fs::read(&segment).expect("reads");
        bytes[17] ^= u8::from(flip);
        fs::write(&segment, bytes).expect("writes");
        let again = open(copy.path(), shape);
        assert!(is_there(&again, shard(1)).await);
        put(&again, shard(2), &content(100, 1)).await.expect("put");
        until("segments are made anew", || journal(&again).state().phase == Phase::Ready).await;
        until("of the right size", || fs::metadata(&segment).is_ok_and(|now| now.len() == shape.segment_bytes)).await;
        again.close().await;
    }
}

#[tokio::test]
async fn a_journal_of_another_cluster_is_refused_and_kept() {
    let (_root, store) = ready(LARGE).await;
    let data = content(100, 1);
    put(&store, shard(1), &data).await.expect("put");
    let copy = after_power_cut(&store, |_| Fate::Lost);
    fs::remove_file(copy.path().join("torchfs-store.id")).expect("removes");
    let error = DiskStore::open(copy.path(), None).expect_err("a folder that lost its identity");
    assert_eq!(error.kind(), Kind::InvalidInput);
    let other = tempfile::tempdir().expect("temp folder");
    let own = DiskStore::open(other.path(), None).expect("opens");
    own.register(Registration { cluster: ClusterId(0xc2), node: NodeId(1) }).expect("registers");
    own.close().await;
    drop(own);
    copy_folder(&copy.path().join("journal"), &other.path().join("journal"));
    let error = DiskStore::open(other.path(), None).expect_err("shards of another cluster");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert!(error.to_string().contains(&CLUSTER.to_string()), "{error}");
    assert!(Segment::open(&other.path().join("journal/segment-0")).expect("opens").is_some());
}

/// A journal of format 1 as it was written when that was made: two puts, and a deletion of the first.
#[tokio::test]
async fn a_journal_of_format_1_is_replayed() {
    let root = tempfile::tempdir().expect("temp folder");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    fs::create_dir_all(root.path().join("journal")).expect("makes a folder");
    fs::copy(fixtures.join("torchfs-store.id"), root.path().join("torchfs-store.id")).expect("copies");
    fs::copy(fixtures.join("segment-0"), root.path().join("journal/segment-0")).expect("copies");
    let store = DiskStore::open(root.path(), None).expect("opens");
    assert_eq!(store.identity().registration.map(|own| own.cluster), Some(CLUSTER));
    assert!(!is_there(&store, shard(0xabcde)).await);
    assert_eq!(get(&store, shard(0xabcdf)).await.expect("replayed"), content(3000, 9));
    store.close().await;
}
