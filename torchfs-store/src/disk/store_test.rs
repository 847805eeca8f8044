//! The disk engine as its users see it, and what it makes of a disk that somebody else has had his hands on.

use super::*;
use bytes::Bytes;
use std::fs;
use std::sync::atomic::Ordering;
use tempfile::TempDir;
use torchfs_core::checksum::block_checksums;
use torchfs_core::settings::BLOCK_BYTES;
use torchfs_core::shard::conformance;
use torchfs_core::{ClusterId, NodeId, StripeId};

const CLUSTER: ClusterId = ClusterId(0xc1);

fn open_with(path: &Path, capacity: Option<u64>) -> DiskStore {
    let store = DiskStore::open(path, capacity).expect("opens");
    store.register(Registration { cluster: CLUSTER, node: NodeId(1) }).expect("registers");
    store
}

fn new_store() -> (TempDir, DiskStore) {
    let root = tempfile::tempdir().expect("temp folder");
    let store = open_with(root.path(), None);
    (root, store)
}

async fn reopen(root: &TempDir, store: DiskStore) -> DiskStore {
    store.close().await;
    drop(store);
    open_with(root.path(), None)
}

fn shard(stripe: u64, index: u8) -> ShardId {
    ShardId { stripe: StripeId(stripe), index }
}

fn content(len: usize, seed: u8) -> Bytes {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect::<Vec<_>>().into()
}

async fn put(store: &DiskStore, shard: ShardId, data: &Bytes) -> Result<()> {
    store.put(shard, data.clone().into(), block_checksums(data)).await
}

async fn get(store: &DiskStore, shard: ShardId) -> Result<Bytes> {
    let blocks = store.get(ShardRead { shard, range: 0..u32::MAX }).await?;
    Ok(blocks.data.0)
}

async fn get_kind(store: &DiskStore, shard: ShardId) -> Kind {
    get(store, shard).await.expect_err("get must fail").kind()
}

fn file_of(store: &DiskStore, shard: ShardId) -> PathBuf {
    store.0.folder.shard(shard)
}

fn files_in(path: &Path) -> usize {
    fs::read_dir(path).expect("lists").count()
}

#[tokio::test]
async fn it_conforms() {
    let (_root, store) = new_store();
    conformance::suite(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_different_puts_under_one_id_one_wins_whole() {
    let (root, store) = new_store();
    for stripe in 0..20 {
        let id = shard(stripe, 0);
        let contents: Vec<Bytes> = (0..8).map(|seed| content(100_000, seed)).collect();
        let puts = contents.iter().map(|data| put(&store, id, data));
        let results = futures::future::join_all(puts).await;
        let winners: Vec<usize> = (0..8).filter(|&at| results[at].is_ok()).collect();
        assert_eq!(winners.len(), 1);
        let losers = results.iter().filter_map(|result| result.as_ref().err());
        assert!(losers.map(Error::kind).all(|kind| kind == Kind::Exists));
        assert_eq!(get(&store, id).await.expect("held"), contents[winners[0]]);
    }
    assert_eq!(store.load().expect("load").shards, 20);
    assert_eq!(files_in(&root.path().join("tmp")), 0);
}

#[tokio::test]
async fn a_flipped_bit_anywhere_never_gives_wrong_bytes() {
    let (_root, store) = new_store();
    let (id, data) = (shard(5, 1), content(2 * BLOCK_BYTES + 100, 7));
    put(&store, id, &data).await.expect("put");
    let path = file_of(&store, id);
    let good = fs::read(&path).expect("reads");
    let in_header = 0..format::HEADER_BYTES;
    let in_data = (format::HEADER_BYTES..good.len()).step_by(997).chain([good.len() - 1]);
    for at in in_header.chain(in_data) {
        let mut bad = good.clone();
        bad[at] ^= 0x40;
        fs::write(&path, &bad).expect("writes");
        let error = get(&store, id).await.expect_err("damage is noticed");
        assert_eq!(error.kind(), Kind::Corrupt, "byte {at}");
        assert!(error.to_string().contains(&path.display().to_string()), "the file is named: {error}");
    }
    assert_eq!(store.damaged(10), [id]);
    fs::write(&path, &good).expect("writes");
    assert_eq!(get(&store, id).await.expect("whole again"), data);
}

#[tokio::test]
async fn damage_in_one_block_leaves_the_others_readable() {
    let (_root, store) = new_store();
    let (id, data) = (shard(5, 1), content(3 * BLOCK_BYTES, 7));
    put(&store, id, &data).await.expect("put");
    let path = file_of(&store, id);
    let mut bytes = fs::read(&path).expect("reads");
    bytes[format::HEADER_BYTES + BLOCK_BYTES + 5] ^= 1;
    fs::write(&path, bytes).expect("writes");
    let block = BLOCK_BYTES as u32;
    for (range, is_good) in [(0..10, true), (block..block + 10, false), (2 * block..3 * block, true)] {
        let result = store.get(ShardRead { shard: id, range: range.clone() }).await;
        assert_eq!(result.is_ok(), is_good, "{range:?}");
    }
}

#[tokio::test]
async fn a_file_of_another_length_is_damage_and_a_lost_one_is_not_found() {
    let (_root, store) = new_store();
    let (id, data) = (shard(6, 0), content(BLOCK_BYTES + 1, 1));
    put(&store, id, &data).await.expect("put");
    let path = file_of(&store, id);
    let good = fs::read(&path).expect("reads");
    for len in [0, 1, format::HEADER_BYTES - 1, format::HEADER_BYTES, good.len() - 1] {
        fs::write(&path, &good[..len]).expect("writes");
        assert_eq!(get_kind(&store, id).await, Kind::Corrupt, "{len} bytes");
        assert_eq!(store.stat(id).await.expect_err("stat").kind(), Kind::Corrupt);
    }
    fs::write(&path, [&good[..], b"x"].concat()).expect("writes");
    assert_eq!(get_kind(&store, id).await, Kind::Corrupt);
    fs::remove_file(&path).expect("removes");
    assert_eq!(get_kind(&store, id).await, Kind::NotFound);
}

#[tokio::test]
async fn a_file_under_another_name_or_of_another_cluster_is_damage() {
    let (_root, store) = new_store();
    let (one, two) = (shard(6, 0), shard(6, 1));
    put(&store, one, &content(1000, 1)).await.expect("put");
    put(&store, two, &content(1000, 2)).await.expect("put");
    let (path_one, path_two) = (file_of(&store, one), file_of(&store, two));
    let (bytes_one, bytes_two) = (fs::read(&path_one).expect("reads"), fs::read(&path_two).expect("reads"));
    fs::write(&path_one, bytes_two).expect("writes");
    fs::write(&path_two, bytes_one).expect("writes");
    assert_eq!(get_kind(&store, one).await, Kind::Corrupt);
    assert_eq!(get_kind(&store, two).await, Kind::Corrupt);

    let data = content(1000, 1);
    let foreign = format::Header {
        cluster: ClusterId(0xc2),
        shard: one,
        bytes: data.len() as u32,
        checksums: block_checksums(&data),
    };
    fs::write(&path_one, [&foreign.encode()[..], &data].concat()).expect("writes");
    assert_eq!(get_kind(&store, one).await, Kind::Corrupt);
}

#[tokio::test]
async fn a_damaged_shard_is_replaced_by_a_put() {
    let (_root, store) = new_store();
    let (id, data) = (shard(7, 0), content(100_000, 3));
    put(&store, id, &data).await.expect("put");
    let before = store.load().expect("load");
    fs::write(file_of(&store, id), "gone").expect("writes");
    assert_eq!(get_kind(&store, id).await, Kind::Corrupt);
    assert_eq!(store.damaged(10), [id]);
    put(&store, id, &data).await.expect("put again");
    assert_eq!(get(&store, id).await.expect("held"), data);
    assert!(store.damaged(10).is_empty());
    assert_eq!(store.load().expect("load").shards, before.shards);
}

#[tokio::test]
async fn damage_is_reported_once_and_again_when_asked() {
    let (_root, store) = new_store();
    for index in 0..3 {
        put(&store, shard(7, index), &content(100, 3)).await.expect("put");
        fs::write(file_of(&store, shard(7, index)), "").expect("writes");
        assert_eq!(get_kind(&store, shard(7, index)).await, Kind::Corrupt);
    }
    assert_eq!(store.damaged(2), [shard(7, 0), shard(7, 1)]);
    store.damage_reported(&[shard(7, 0), shard(7, 1)]);
    assert_eq!(store.damaged(2), [shard(7, 2)]);
    store.report_damage_again();
    assert_eq!(store.damaged(10).len(), 3);
    store.delete(vec![shard(7, 0)]).await.expect("deletes");
    assert_eq!(store.damaged(10), [shard(7, 1), shard(7, 2)]);
}

#[tokio::test]
async fn a_restart_counts_what_is_there_and_finds_damage() {
    let (root, store) = new_store();
    for stripe in [1, 2, 0x1000, 0x2000_0000] {
        put(&store, shard(stripe, 0), &content(70_000, 1)).await.expect("put");
    }
    store.delete(vec![shard(2, 0)]).await.expect("deletes");
    let before = store.load().expect("load");
    assert_eq!((before.shards, before.used_bytes), (3, 3 * 70_512u64.next_multiple_of(4096)));

    let mut bytes = fs::read(file_of(&store, shard(1, 0))).expect("reads");
    bytes[20] ^= 1;
    fs::write(file_of(&store, shard(1, 0)), bytes).expect("writes");
    let store = reopen(&root, store).await;
    let after = store.load().expect("load");
    assert_eq!((after.shards, after.used_bytes), (before.shards, before.used_bytes));
    store.check_headers().await.expect("checks");
    assert_eq!(store.damaged(10), [shard(1, 0)]);

    fs::write(file_of(&store, shard(0x1000, 0)), "").expect("writes");
    let store = reopen(&root, store).await;
    assert_eq!(store.damaged(10), [shard(0x1000, 0)], "an impossible length is seen without reading");
}

#[tokio::test]
async fn regression_26_only_names_that_are_ids_are_touched() {
    let (root, store) = new_store();
    put(&store, shard(1, 0), &content(10, 1)).await.expect("put");
    let group = file_of(&store, shard(1, 0)).parent().expect("in a group").to_owned();
    let strange = ["0000000000000001-0", "..secret", "0000000000001001-00", "notes.txt", "0000000000000001-00.bak"];
    for name in strange {
        fs::write(group.join(name), "x").expect("writes");
    }
    fs::create_dir(root.path().join("data/other")).expect("makes a folder");
    let store = reopen(&root, store).await;
    let listed = store.list(None, 100).await.expect("lists");
    assert_eq!(listed.iter().map(|stat| stat.shard).collect::<Vec<_>>(), [shard(1, 0)]);
    assert_eq!(store.load().expect("load").shards, 1);
    assert_eq!(files_in(&group), 1 + strange.len());
}

#[tokio::test]
async fn a_full_node_refuses_and_keeps_nothing() {
    let root = tempfile::tempdir().expect("temp folder");
    let store = open_with(root.path(), Some(300_000));
    put(&store, shard(1, 0), &content(200_000, 1)).await.expect("fits");
    for _ in 0..3 {
        let error = put(&store, shard(1, 1), &content(200_000, 2)).await.expect_err("does not fit");
        assert_eq!(error.kind(), Kind::NoSpace);
    }
    assert_eq!(get_kind(&store, shard(1, 1)).await, Kind::NotFound);
    assert_eq!(files_in(&root.path().join("tmp")), 0);
    put(&store, shard(1, 0), &content(200_000, 1)).await.expect("the same again needs no room");
    let load = store.load().expect("load");
    assert_eq!(load.capacity_bytes, 300_000);
    store.delete(vec![shard(1, 0)]).await.expect("deletes");
    assert_eq!(store.load().expect("load").used_bytes, 0);
    put(&store, shard(1, 1), &content(200_000, 2)).await.expect("fits now");
}

#[tokio::test(flavor = "multi_thread")]
async fn puts_at_once_do_not_share_the_same_room() {
    let root = tempfile::tempdir().expect("temp folder");
    let store = open_with(root.path(), Some(5 * 102_400));
    let data = content(100_000, 1);
    let puts = (0..16).map(|index| put(&store, shard(1, index), &data));
    let results = futures::future::join_all(puts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 5);
    assert!(store.load().expect("load").used_bytes <= 5 * 102_400);
}

#[tokio::test]
async fn a_bad_arrival_leaves_no_room_set_aside() {
    let root = tempfile::tempdir().expect("temp folder");
    let store = open_with(root.path(), Some(300_000));
    let data = content(200_000, 1);
    for _ in 0..3 {
        let bad = store.put(shard(1, 0), data.clone().into(), vec![0; 4]).await.expect_err("bad checksums");
        assert_eq!(bad.kind(), Kind::Corrupt);
    }
    put(&store, shard(1, 0), &data).await.expect("there is room");
}

#[tokio::test]
async fn after_a_failed_fsync_nothing_is_acknowledged_and_reads_go_on() {
    let (root, store) = new_store();
    let data = content(1000, 1);
    put(&store, shard(1, 0), &data).await.expect("put");
    store.0.durable.fail.store(true, Ordering::SeqCst);
    let error = put(&store, shard(1, 1), &data).await.expect_err("fsync fails");
    assert_eq!(error.kind(), Kind::Io);
    store.0.durable.fail.store(false, Ordering::SeqCst);
    for id in [shard(1, 1), shard(1, 2), shard(1, 0)] {
        let error = put(&store, id, &data).await.expect_err("still refused");
        assert_eq!(error.kind(), Kind::Io);
        assert!(error.to_string().contains("fsync failed"), "{error}");
    }
    assert!(store.poisoned().is_some());
    assert_eq!(get(&store, shard(1, 0)).await.expect("reads go on"), data);
    let load = store.load().expect("load");
    assert_eq!(load.capacity_bytes, load.used_bytes, "no room is offered");
    assert_eq!(files_in(&root.path().join("tmp")), 0);

    let store = reopen(&root, store).await;
    put(&store, shard(1, 1), &data).await.expect("a restart takes writes again");
}

#[tokio::test]
async fn a_failed_fsync_of_a_folder_poisons_every_put_that_waited_for_it() {
    let (_root, store) = new_store();
    put(&store, shard(1, 0), &content(10, 1)).await.expect("put");
    store.0.durable.fail.store(true, Ordering::SeqCst);
    // The bytes are there, so that only the folder's fsync is left to do.
    let puts = (0..4).map(|_| async { put(&store, shard(1, 0), &content(10, 1)).await });
    for result in futures::future::join_all(puts).await {
        assert_eq!(result.expect_err("not acknowledged").kind(), Kind::Io);
    }
}

#[tokio::test]
async fn a_folder_stays_in_its_cluster() {
    let (root, store) = new_store();
    let error = store.register(Registration { cluster: ClusterId(0xc2), node: NodeId(1) }).expect_err("other cluster");
    assert_eq!(error.kind(), Kind::WrongCluster);
    for part in [CLUSTER.to_string(), ClusterId(0xc2).to_string(), root.path().display().to_string()] {
        assert!(error.to_string().contains(&part), "{part} in: {error}");
    }
    let uuid = store.identity().uuid;
    let store = reopen(&root, store).await;
    assert_eq!(store.identity().uuid, uuid);
    assert_eq!(store.identity().registration, Some(Registration { cluster: CLUSTER, node: NodeId(1) }));
}

#[tokio::test]
async fn before_it_joins_a_cluster_it_takes_nothing() {
    let root = tempfile::tempdir().expect("temp folder");
    let store = DiskStore::open(root.path(), None).expect("opens");
    let error = put(&store, shard(1, 0), &content(10, 1)).await.expect_err("no cluster yet");
    assert_eq!(error.kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_closed_store_refuses_and_frees_the_folder() {
    let (root, store) = new_store();
    put(&store, shard(1, 0), &content(10, 1)).await.expect("put");
    assert_eq!(DiskStore::open(root.path(), None).expect_err("in use").kind(), Kind::Exists);
    store.close().await;
    assert_eq!(get_kind(&store, shard(1, 0)).await, Kind::Unavailable);
    assert_eq!(put(&store, shard(1, 1), &content(10, 1)).await.expect_err("closed").kind(), Kind::Unavailable);
    let again = open_with(root.path(), None);
    assert_eq!(get(&again, shard(1, 0)).await.expect("held"), content(10, 1));
}

#[tokio::test]
async fn empty_groups_are_removed_and_made_again() {
    let (root, store) = new_store();
    let (one, two) = (shard(1, 0), shard(0x5000, 0));
    put(&store, one, &content(10, 1)).await.expect("put");
    put(&store, two, &content(10, 1)).await.expect("put");
    store.delete(vec![two]).await.expect("deletes");
    store.remove_empty_groups().await.expect("removes");
    assert_eq!(files_in(&root.path().join("data")), 1);
    put(&store, two, &content(10, 1)).await.expect("put again");
    assert_eq!(get(&store, two).await.expect("held"), content(10, 1));
}

#[tokio::test]
async fn an_answer_that_would_not_fit_a_frame_is_cut_short_by_errors() {
    let (_root, store) = new_store();
    let (id, data) = (shard(1, 0), content(SHARD_BYTES_MAX, 1));
    put(&store, id, &data).await.expect("put");
    let read = ShardRead { shard: id, range: 0..SHARD_BYTES_MAX as u32 };
    let answers = store.get_many(vec![read; 40]).await.expect("answers");
    let good = answers.iter().filter(|answer| answer.is_ok()).count();
    assert_eq!(good, MANY_BYTES_MAX / SHARD_BYTES_MAX);
    assert!(answers[good..].iter().all(|answer| answer.as_ref().is_err_and(|error| error.kind() == Kind::TooLarge)));
}

/// Files of format 1 as they were written when it was made. They must stay readable.
#[tokio::test]
async fn files_of_format_1_are_read() {
    let root = tempfile::tempdir().expect("temp folder");
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let group = root.path().join("data/00000000000ab");
    fs::create_dir_all(&group).expect("makes a folder");
    fs::copy(fixtures.join("torchfs-store.id"), root.path().join("torchfs-store.id")).expect("copies");
    fs::copy(fixtures.join("00000000000abcde-03"), group.join("00000000000abcde-03")).expect("copies");
    let store = DiskStore::open(root.path(), None).expect("opens");
    assert_eq!(store.identity().uuid, torchfs_core::NodeUuid(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef));
    assert_eq!(store.identity().registration, Some(Registration { cluster: CLUSTER, node: NodeId(7) }));
    assert_eq!(get(&store, shard(0xabcde, 3)).await.expect("reads"), content(70_000, 9));
}
