//! What whoever warms a cache notices: all of it is there, each byte was fetched once, and what does not fit is said before.

use super::*;
use crate::client::test::{Rig, pattern};
use crate::shard::fault::Fault;
use std::time::Duration;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
const FILES: usize = 120;
const FILE_BYTES: usize = 3000;

struct Cached {
    rig: Rig,
    client: Client,
    _dir: TempDir,
}

fn path(file: usize) -> String {
    format!("/data/class{}/{file:05}", file % 3)
}

fn content(file: usize) -> Vec<u8> {
    pattern(file as u64 + 1, FILE_BYTES).to_vec()
}

impl Cached {
    /// A client with a cache, and files that are packed as `put -r` does.
    async fn new(cache_bytes: u64) -> Cached {
        let (rig, dir) = (Rig::new().await, tempfile::tempdir().expect("folder"));
        let client = rig.client_with(Client::builder().cache_dir(dir.path()).cache_bytes(cache_bytes)).await;
        let source = tempfile::tempdir().expect("folder");
        for file in 0..FILES {
            let path = source.path().join(path(file).trim_start_matches("/data/"));
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(&path, content(file)).expect("written");
        }
        client.put_tree(source.path(), "/data", Default::default()).await.expect("put");
        Cached { rig, client, _dir: dir }
    }

    async fn warm(&self, order: WarmOrder) -> Warmth {
        let warming = self.client.warm(order).await.expect("begun");
        tokio::time::timeout(DEADLINE, warming.ended()).await.expect("it ends");
        warming.warmth()
    }

    async fn warmth(&self, order: WarmOrder) -> Warmth {
        self.client.warmth(order).await.expect("known")
    }

    fn fetched(&self) -> u64 {
        self.client.cache_stats().expect("a cache").storage_bytes
    }

    async fn read(&self, file: usize) {
        let data = tokio::time::timeout(DEADLINE, self.client.read_file(path(file))).await.expect("in time");
        assert!(data.expect("read") == content(file), "{}", path(file));
    }
}

fn all() -> WarmOrder {
    WarmOrder::below("/data")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_warmed_is_read_without_storage_and_not_fetched_again() {
    let cached = Cached::new(64 << 20).await;
    let before = cached.warmth(all()).await;
    let bytes = (FILES * FILE_BYTES) as u64;
    assert_eq!((before.files, before.bytes, before.cached_files), (FILES as u64, bytes, 0), "{before:?}");
    cached.read(7).await;
    cached.rig.requests();
    let warmth = cached.warm(all()).await;
    assert!(warmth.is_complete() && warmth.cached_bytes == bytes, "{warmth:?}");
    let requests = cached.rig.requests();
    assert!(requests <= FILES / 10, "{requests} requests");
    assert_eq!(cached.fetched(), bytes, "each once, the one that was read included");
    assert!(cached.warmth(all()).await.is_complete());

    cached.rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    for file in 0..FILES {
        cached.read(file).await;
    }
    assert!(cached.warm(all()).await.is_complete());
    assert_eq!(cached.fetched(), bytes);
    assert_eq!(cached.client.epochs().expect("a cache")[0].late, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_changed_is_missing_and_brought_anew() {
    let cached = Cached::new(64 << 20).await;
    cached.warm(all()).await;
    let other = cached.rig.client().await;
    other.write_file(path(3), "another").await.expect("replaced");
    let file = other.create(path(4)).await.expect("opened");
    file.write_at(0, "changed".into()).await.expect("written");
    file.commit().await.expect("committed");
    let warmth = cached.warmth(all()).await;
    assert_eq!(warmth.files - warmth.cached_files, 2, "{warmth:?}");
    assert!(cached.warm(all()).await.is_complete());
    cached.rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    assert_eq!(cached.client.read_file(path(3)).await.expect("read"), "another");
    assert!(cached.client.read_file(path(4)).await.expect("read").starts_with(b"changed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_no_room_is_left_out_from_the_end_of_the_order() {
    let cached = Cached::new(50 * FILE_BYTES as u64 + 10).await;
    let reversed: crate::PathList = (0..FILES).rev().map(path).collect();
    let order = || all().in_order_of(EpochOrder::paths(0, reversed.clone()));
    let warmth = cached.warm(order()).await;
    assert_eq!((warmth.cached_files, warmth.left_out_files), (50, FILES as u64 - 50), "{warmth:?}");
    assert_eq!((warmth.room_bytes, warmth.limit_bytes), (50 * FILE_BYTES as u64 + 10, 50 * FILE_BYTES as u64 + 10));
    let fetched = cached.fetched();
    assert_eq!(cached.warm(order()).await, warmth, "and the same ones again");
    assert_eq!(cached.fetched(), fetched, "nothing left for something else");
    cached.rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    for file in FILES - 50..FILES {
        cached.read(file).await;
    }
    // Others take the place of what nobody asks for.
    cached.rig.set_faults(0, None);
    let first: crate::PathList = (0..50).map(path).collect();
    let warmth = cached.warm(all().in_order_of(EpochOrder::paths(0, first))).await;
    assert!(warmth.is_complete() && warmth.files == 50, "{warmth:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_leaves_for_the_rest_does_not_count_as_there() {
    let cached = Cached::new(50 * FILE_BYTES as u64 + 10).await;
    let first: crate::PathList = (0..50).map(path).collect();
    cached.warm(all().in_order_of(EpochOrder::paths(0, first))).await;
    // By their paths others come first, and take the place of most of these.
    let warmth = cached.warm(all()).await;
    assert_eq!((warmth.cached_files, warmth.left_out_files), (50, FILES as u64 - 50), "{warmth:?}");
    assert_eq!(warmth.cached_bytes + warmth.left_out_bytes, warmth.bytes);
    assert_eq!(cached.warmth(all()).await, warmth);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_counts_as_far_as_it_is_below_the_path() {
    let cached = Cached::new(64 << 20).await;
    let paths: crate::PathList = [path(4), path(0), "/data/none".into(), path(0), path(1)].into_iter().collect();
    let order = EpochOrder::paths(0, paths);
    let warmth = cached.warm(WarmOrder::below("/data/class1/").in_order_of(order.clone())).await;
    assert_eq!((warmth.files, warmth.cached_files, warmth.unknown), (2, 2, 1), "{warmth:?}");
    assert_eq!(warmth.first_unknown.as_deref(), Some("/data/none"));
    let warmth = cached.warmth(WarmOrder::below("/").in_order_of(order)).await;
    assert_eq!((warmth.files, warmth.cached_files), (3, 2), "each counts once");
    let indices = EpochOrder::indices(0, "data/class2", vec![0, 1]);
    assert_eq!(cached.warm(WarmOrder::below("data").in_order_of(indices)).await.cached_files, 2);

    let one = cached.warm(WarmOrder::below(path(9))).await;
    assert_eq!((one.files, one.cached_files), (1, 1));
    let elsewhere = WarmOrder::below("data/class0").in_order_of(EpochOrder::indices(0, "data/class2", vec![0, 1]));
    let nothing = cached.client.warm(elsewhere).await.expect_err("the order is of other files");
    assert!(
        nothing.kind() == Kind::NotFound && nothing.to_string().contains("/data/class0: none of the 2 files"),
        "{nothing}"
    );
    let missing = cached.client.warm(WarmOrder::below("/nowhere")).await.expect_err("nothing is there");
    assert!(missing.kind() == Kind::NotFound && missing.to_string().contains("/nowhere"), "{missing}");
    let uncached = cached.rig.client().await;
    assert_eq!(uncached.warm(all()).await.expect_err("no cache").kind(), Kind::Unsupported);
    assert!(cached.warm(WarmOrder::below("/data/class0")).await.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_file_that_is_there_in_part_the_rest_is_fetched() {
    const MIB: usize = 1 << 20;
    let cached = Cached::new(256 << 20).await;
    let data = pattern(77, 21 * MIB + 5);
    cached.client.write_file("/large", data.clone()).await.expect("written");
    let file = cached.client.open("/large").await.expect("opened");
    file.read_at(9 * MIB as u64, 10).await.expect("read");
    cached.client.inner.cache.as_ref().expect("a cache").settle().await;
    let before = cached.fetched();
    assert!(before > 0 && before < data.len() as u64);
    let warmth = cached.warm(WarmOrder::below("/large")).await;
    assert!(warmth.is_complete(), "{warmth:?}");
    assert_eq!(cached.fetched(), data.len() as u64);
    cached.rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    assert!(cached.client.read_file("/large").await.expect("read") == data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_that_does_not_answer_ends_it_with_the_reason() {
    let cached = Cached::new(64 << 20).await;
    cached.rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    let warmth = cached.warm(all()).await;
    assert_eq!((warmth.cached_files, warmth.failed_files), (0, FILES as u64), "{warmth:?}");
    assert!(warmth.first_failure.is_some());
    cached.rig.set_faults(0, None);
    assert!(cached.warm(all()).await.is_complete());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_leaves_that_an_announced_order_needs() {
    let cached = Cached::new(60 * FILE_BYTES as u64).await;
    let needed: crate::PathList = (0..40).map(path).collect();
    let order = EpochOrder::paths(0, needed.clone());
    cached.warm(all().in_order_of(order.clone())).await;
    cached.client.announce(order.clone()).await.expect("announced");
    let others: crate::PathList = (40..FILES).map(path).collect();
    let warmth = cached.warm(all().in_order_of(EpochOrder::paths(1, others))).await;
    assert_eq!((warmth.cached_files, warmth.left_out_files), (20, 60), "{warmth:?}");
    let warmth = cached.warmth(all().in_order_of(order)).await;
    assert!(warmth.is_complete(), "{warmth:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_stopped_goes_on_where_it_was() {
    let cached = Cached::new(64 << 20).await;
    let some: crate::PathList = (0..FILES / 2).map(path).collect();
    drop(cached.client.warm(all().in_order_of(EpochOrder::paths(0, some))).await.expect("begun"));
    let two = (cached.client.warm(all()).await.expect("begun"), cached.client.warm(all()).await.expect("begun"));
    tokio::time::timeout(DEADLINE, two.0.ended()).await.expect("it ends");
    tokio::time::timeout(DEADLINE, two.1.ended()).await.expect("it ends");
    assert!(two.0.warmth().is_complete() && two.1.warmth().is_complete(), "{two:?}");
    assert_eq!(cached.fetched(), (FILES * FILE_BYTES) as u64, "each once");
}
