//! What becomes of an announced order: which files it names, what is fetched for it, and that it is known anew when they change.

use super::*;
use crate::cache::CacheKey;
use crate::client::test::{Rig, pattern};
use crate::prefetch::Dataset;
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

struct Cached {
    rig: Rig,
    client: Client,
    _dir: TempDir,
}

impl Cached {
    async fn new(cache_bytes: u64) -> Cached {
        let (rig, dir) = (Rig::new().await, tempfile::tempdir().expect("folder"));
        let client = rig.client_with(Client::builder().cache_dir(dir.path()).cache_bytes(cache_bytes)).await;
        Cached { rig, client, _dir: dir }
    }

    /// Files of some KiB that are packed as `put -r` does.
    async fn put(&self, paths: &[String]) {
        let source = tempfile::tempdir().expect("folder");
        for path in paths {
            let path = source.path().join(path);
            std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            std::fs::write(&path, content(path.file_name().expect("a name").as_encoded_bytes())).expect("written");
        }
        self.client.put_tree(source.path(), "/data", Default::default()).await.expect("put");
    }

    async fn dataset(&self, scope: Scope) -> Arc<Dataset> {
        self.client.inner.catalogs.get(self.client.meta(), scope).await.expect("listed").dataset().clone()
    }
}

fn content(name: &[u8]) -> Vec<u8> {
    let seed = name.iter().fold(7u64, |seed, &byte| seed.wrapping_mul(31) + u64::from(byte));
    pattern(seed, 3000 + (seed % 2000) as usize).to_vec()
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|file| format!("class{}/image{file:05}", file % 7)).collect()
}

fn tree() -> Scope {
    Scope::Tree(b"data".to_vec())
}

#[test]
fn paths_have_one_form() {
    for (path, folder, name) in
        [("a", "", "a"), ("/a/b", "a", "b"), ("//a/./c//b/", "a/c", "b"), ("./x", "", "x"), ("a/../b", "a/..", "b")]
    {
        let (found, last) = split(path.as_bytes()).expect("a name");
        assert_eq!((&*found, last), (folder.as_bytes(), name.as_bytes()), "{path}");
    }
    assert_eq!((split(b"/"), split(b"")), (None, None));
    assert_eq!(&*plain(b"/"), b"");
}

/// `indices += indices[:padding]; indices[rank:total:world_size]`.
#[test]
fn ranks_share_an_order_as_the_distributed_sampler_does() {
    let share = |count: u32, rank, world| {
        let order = EpochOrder::indices(0, "/", (0..count).collect()).with_rank(rank, world).expect("a rank");
        order.share().collect::<Vec<_>>()
    };
    assert_eq!(share(7, 0, 1), [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!([share(7, 0, 3), share(7, 1, 3), share(7, 2, 3)], [[0, 3, 6], [1, 4, 0], [2, 5, 1]]);
    assert_eq!([share(2, 0, 5), share(2, 3, 5), share(2, 4, 5)], [[0], [1], [0]]);
    assert!(share(0, 1, 2).is_empty());
    EpochOrder::indices(0, "/", Vec::new()).with_rank(3, 3).expect_err("ranks begin with 0");
}

#[tokio::test]
async fn what_an_order_names_wrongly_is_counted_and_shown() {
    let cached = Cached::new(64 << 20).await;
    cached.put(&names(20)).await;
    let client = &cached.client;
    client.meta().attr(crate::InodeId::ROOT).await.expect("there");
    let paths = [
        "/data/class0/image00000",
        "data/class1//image00001",
        "/data/class0/image00000",
        "/data/class0",
        "./data/class0/missing",
        "/nowhere/image",
        "/data/class0/missing",
        "/",
        "/data/class1/image00008",
        "data/class1/../class1/image00008",
    ];
    let announced =
        client.announce(EpochOrder::paths(4, paths.into_iter().collect::<PathList>())).await.expect("known");
    let first = announced.first_unknown.clone();
    assert_eq!((announced.epoch, announced.entries, announced.unknown), (4, 4, 5), "{announced:?}");
    assert_eq!(first.as_deref(), Some("/data/class0/missing"));
    assert_eq!((announced.not_files, announced.first_not_file.as_deref()), (1, Some("/data/class0")));
    assert_eq!((announced.repeated, announced.first_repeated.as_deref()), (1, Some("/data/class0/image00000")));

    let indices = client.announce(EpochOrder::indices(5, "/data/", vec![19, 20, 3])).await.expect("known");
    assert_eq!((indices.entries, indices.unknown), (2, 1));
    assert_eq!(indices.first_unknown.as_deref(), Some("index 20 of the 20 files below /data/"));

    let nothing = EpochOrder::paths(6, vec!["images/1.png".to_owned(), "images/2.png".to_owned()]);
    let error = client.announce(nothing).await.expect_err("nothing is known");
    let message = error.to_string();
    assert_eq!(error.kind(), Kind::NotFound);
    assert!(message.contains("none of its 2 entries") && message.contains("/images/1.png"), "{message}");
    let empty = client.announce(EpochOrder::paths(6, PathList::default())).await.expect_err("nothing is said");
    assert_eq!(empty.kind(), Kind::InvalidInput);
    let late = client.announce(EpochOrder::indices(u64::MAX, "/data", vec![1])).await.expect_err("no such number");
    assert!(late.kind() == Kind::InvalidInput && late.to_string().contains("9223372036854775807"), "{late}");
    let nowhere = client.announce(EpochOrder::indices(6, "/nowhere", vec![1])).await.expect_err("no such folder");
    assert!(nowhere.kind() == Kind::NotFound && nowhere.to_string().contains("/nowhere"), "{nowhere}");
    let uncached = cached.rig.client().await;
    let error = uncached.announce(EpochOrder::indices(0, "/data", vec![1])).await.expect_err("no cache");
    assert_eq!(error.kind(), Kind::Unsupported);
}

#[tokio::test]
async fn indices_count_the_files_in_the_order_of_their_paths() {
    let cached = Cached::new(64 << 20).await;
    let mut paths: Vec<String> = ["a/x", "a.txt", "a-b/y", "a", "b/c/d/e", "b/c.d", "b/c-", "z", "0/1/2", "0/1.2"]
        .into_iter()
        .filter(|path| *path != "a")
        .map(str::to_owned)
        .collect();
    cached.put(&paths).await;
    let client = &cached.client;
    let linked = client.stat("/data/z").await.expect("there");
    let folder = client.stat("/data/b").await.expect("there");
    client
        .meta()
        .link(linked.ino, folder.ino, crate::meta::Name::new("linked").expect("a name"))
        .await
        .expect("linked");
    client.meta().forget(linked.ino);
    paths.push("b/linked".to_owned());
    paths.sort_unstable();
    let catalog = client.inner.catalogs.get(client.meta(), tree()).await.expect("listed");
    assert_eq!((catalog.len(), catalog.dataset().files().len()), (paths.len(), paths.len() - 1));
    for (place, path) in paths.iter().enumerate() {
        let attr = client.stat(format!("/data/{path}")).await.expect("there");
        let Named::File(file) = catalog.at(place as u32) else { panic!("{place} is {path}") };
        assert_eq!(catalog.dataset().files()[file as usize].key.ino, attr.ino, "{place} is {path}");
    }
    assert_eq!(catalog.at(paths.len() as u32), Named::Unknown);
}

#[tokio::test]
async fn the_same_files_are_one_dataset_until_something_changes() {
    let cached = Cached::new(64 << 20).await;
    cached.put(&names(30)).await;
    let folders = |names: &[&str]| Scope::Folders(names.iter().map(|name| name.as_bytes().to_vec()).collect());
    let (all, some) = (folders(&["data/class0", "data/class1"]), folders(&["data/class1"]));
    let (of_tree, of_folders) = (cached.dataset(tree()).await, cached.dataset(all.clone()).await);
    assert!(Arc::ptr_eq(&of_tree, &cached.dataset(tree()).await));
    assert!(Arc::ptr_eq(&of_folders, &cached.dataset(some.clone()).await), "it covers what is asked for");

    // Another client adds a file.
    let other = cached.rig.client().await;
    other.write_file("/data/class1/new", "new").await.expect("written");
    let grown = cached.dataset(tree()).await;
    assert!(!Arc::ptr_eq(&of_tree, &grown));
    assert_eq!(grown.files().len(), 31);
    assert_eq!(cached.dataset(some).await.files().len(), of_folders.files().len() - 4, "class0 is not asked for");

    // One is written to: its folder is the same, but whoever opens it notices.
    let file = other.create("/data/class2/image00002").await.expect("opened");
    file.write_at(0, "changed".into()).await.expect("written");
    let attr = file.commit().await.expect("committed");
    cached.client.open("/data/class2/image00002").await.expect("opened");
    let changed = cached.dataset(tree()).await;
    assert!(changed.index_of(CacheKey { ino: attr.ino, version: attr.version }).is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announced_epoch_is_fetched_with_few_requests_and_read_right() {
    const FILES: usize = 600;
    let cached = Cached::new(64 << 20).await;
    let paths = names(FILES);
    cached.put(&paths).await;
    let client = &cached.client;
    cached.rig.requests();
    cached.rig.take_meta_requests();
    let order: PathList = paths.iter().map(|path| format!("/data/{path}")).collect();
    let announced = client.announce(EpochOrder::paths(0, order).with_workers(2, 16)).await.expect("announced");
    assert_eq!((announced.entries, announced.unknown), (FILES as u64, 0));
    let all = async {
        while client.cache_stats().expect("a cache").storage_bytes < announced.bytes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, all).await.expect("everything fits and is fetched");
    let (changes, questions) = cached.rig.take_meta_requests();
    assert!(changes == 0 && questions <= 7 * 5, "{questions} questions for seven folders");
    let requests = cached.rig.requests();
    assert!(requests as f64 <= 0.05 * FILES as f64, "{requests} requests for {FILES} files");
    client.inner.cache.as_ref().expect("a cache").settle().await;
    for path in &paths {
        let data = client.read_file(format!("/data/{path}")).await.expect("read");
        assert!(data == content(path.rsplit('/').next().expect("a name").as_bytes()), "{path}");
    }
    let epochs = client.epochs().expect("a cache");
    let [epoch] = &epochs[..] else { panic!("{epochs:?}") };
    assert_eq!((epoch.epoch, epoch.opens, epoch.hits), (Some(0), FILES as u64, FILES as u64), "{epoch:?}");
    assert_eq!(cached.rig.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_change_or_go_after_they_were_announced_are_read_as_they_are() {
    let cached = Cached::new(64 << 20).await;
    let paths = names(100);
    cached.put(&paths).await;
    let (client, other) = (&cached.client, cached.rig.client().await);
    let order = || paths.iter().map(|path| format!("/data/{path}")).collect::<PathList>();
    client.announce(EpochOrder::paths(0, order())).await.expect("announced");
    for path in paths.iter().step_by(10) {
        other.write_file(format!("/data/{path}"), "another").await.expect("replaced");
    }
    for path in paths.iter().skip(1).step_by(10) {
        other.unlink(format!("/data/{path}")).await.expect("removed");
    }
    for (at, path) in paths.iter().enumerate() {
        let read = tokio::time::timeout(DEADLINE, client.read_file(format!("/data/{path}"))).await.expect("in time");
        match at % 10 {
            0 => assert_eq!(read.expect("read"), "another"),
            1 => assert_eq!(read.expect_err("gone").kind(), Kind::NotFound),
            _ => assert!(read.expect("read") == content(path.rsplit('/').next().expect("a name").as_bytes())),
        }
    }
    let announced = client.announce(EpochOrder::paths(1, order())).await.expect("announced");
    assert_eq!((announced.entries, announced.unknown), (90, 10));
}
