//! What a reader notices of the cache: right bytes, each fetched once, a limit that holds, nothing wrong after a restart.

use super::*;
use crate::cache::policy::Lru;
use crate::error::{Error, Kind};
use proptest::prelude::*;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::AtomicBool;
use tempfile::TempDir;

const MIB: u64 = 1024 * 1024;
const CLUSTER: ClusterId = ClusterId(77);

/// Content that differs at every place and in every file.
fn content(ino: u64, range: Range<u64>) -> Bytes {
    range.map(|at| (at ^ (at >> 8) ^ (at >> 16) ^ (ino * 31)) as u8).collect()
}

#[derive(Debug, Default)]
struct Source {
    ino: u64,
    fetched: AtomicU64,
    fetches: AtomicU64,
    fails: AtomicBool,
}

#[async_trait]
impl ByteSource for Source {
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        tokio::task::yield_now().await;
        if self.fails.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Unavailable, "no node answers"));
        }
        self.fetches.fetch_add(1, Ordering::Relaxed);
        self.fetched.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(content(self.ino, range))
    }
}

struct Rig {
    dir: TempDir,
    cache: Option<Cache>,
    limit: u64,
}

impl Rig {
    fn new(limit: u64) -> Self {
        let dir = tempfile::tempdir().expect("folder");
        let mut rig = Rig { dir, cache: None, limit };
        rig.restart();
        rig
    }

    fn restart(&mut self) {
        self.cache = None;
        let cache = Cache::open(self.dir.path(), self.limit, CLUSTER, Box::new(Lru::default()), Prefetch::None);
        self.cache = Some(cache.expect("opened"));
    }

    fn cache(&self) -> &Cache {
        self.cache.as_ref().expect("open")
    }

    fn pin(&self, ino: u64, len: u64) -> Option<Pinned> {
        self.pin_version(ino, 1, len)
    }

    fn pin_version(&self, ino: u64, version: u64, len: u64) -> Option<Pinned> {
        self.cache().pin(CacheKey { ino: InodeId(ino), version: Version(version) }, len)
    }

    /// Reads a file whole, in pieces as the kernel does; returns how many bytes were fetched for it.
    async fn read(&self, ino: u64, len: u64) -> u64 {
        let source = Arc::new(Source { ino, ..Source::default() });
        let pinned = self.pin(ino, len).expect("fits");
        read_whole(&pinned, &source, len).await;
        source.fetched.load(Ordering::Relaxed)
    }

    fn backing_files(&self) -> Vec<std::path::PathBuf> {
        let folders = std::fs::read_dir(self.dir.path().join("files")).expect("folder");
        let folders = folders.map(|folder| folder.expect("entry").path());
        folders
            .flat_map(|folder| std::fs::read_dir(folder).expect("folder"))
            .map(|e| e.expect("entry").path())
            .collect()
    }
}

async fn read_whole(pinned: &Pinned, source: &Arc<Source>, len: u64) {
    let bytes_from: Arc<dyn ByteSource> = source.clone();
    for start in (0..len).step_by(128 * 1024) {
        let range = start..(start + 128 * 1024).min(len);
        let bytes = pinned.read(&bytes_from, range.clone()).await.expect("read");
        assert!(bytes == content(source.ino, range.clone()), "bytes of {range:?}");
    }
    pinned.settle().await;
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().expect("runtime")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]
    #[test]
    fn any_reads_in_any_order_are_right_and_fetch_each_byte_once(
        len in prop_oneof![1u64..5000, MIB - 2..MIB + 2, 1..24 * MIB],
        reads in prop::collection::vec((0.0..1.0f64, prop_oneof![1u64..5000, 1..3 * MIB]), 1..12),
    ) {
        runtime().block_on(async {
            let rig = Rig::new(64 * MIB);
            let pinned = rig.pin(3, len).expect("fits");
            let source = Arc::new(Source { ino: 3, ..Source::default() });
            let bytes_from: Arc<dyn ByteSource> = source.clone();
            for (place, count) in reads {
                let start = ((len - 1) as f64 * place) as u64;
                let range = start..(start + count).min(len);
                let bytes = pinned.read(&bytes_from, range.clone()).await.expect("read");
                assert!(bytes == content(3, range));
            }
            read_whole(&pinned, &source, len).await;
            assert_eq!(source.fetched.load(Ordering::Relaxed), len);
            assert_eq!(rig.cache().stats().used_bytes, len);
        });
    }
}

#[tokio::test]
async fn many_readers_of_one_file_fetch_it_once() {
    let rig = Rig::new(64 * MIB);
    let source = Arc::new(Source { ino: 1, ..Source::default() });
    let readers = (0..8).map(|_| {
        let (pinned, source) = (rig.pin(1, 3 * MIB).expect("fits"), source.clone());
        tokio::spawn(async move { read_whole(&pinned, &source, 3 * MIB).await })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.expect("reader");
    }
    assert_eq!(source.fetched.load(Ordering::Relaxed), 3 * MIB);
    assert_eq!(source.fetches.load(Ordering::Relaxed), 1, "a small file is fetched whole");
}

#[tokio::test]
async fn a_file_that_changes_all_the_time_pushes_nothing_out() {
    let rig = Rig::new(8 * MIB);
    let source = |ino| Arc::new(Source { ino, ..Source::default() });
    assert_eq!(rig.read(1, 4 * MIB).await, 4 * MIB);
    let first = rig.pin_version(2, 1, MIB).expect("fits");
    read_whole(&first, &source(2), MIB).await;
    for version in 2..50 {
        read_whole(&rig.pin_version(2, version, MIB).expect("fits"), &source(2), MIB).await;
        assert!(rig.cache().stats().used_bytes <= 6 * MIB, "what is open, what is newest and the other file");
    }
    assert_eq!(rig.read(1, 4 * MIB).await, 0, "the other file is still there");
    let kept = source(2);
    read_whole(&first, &kept, MIB).await;
    assert_eq!(kept.fetched.load(Ordering::Relaxed), 0, "what is open stays");
    drop(first);
    read_whole(&rig.pin_version(2, 50, MIB).expect("fits"), &source(2), MIB).await;
    assert_eq!(rig.cache().stats().used_bytes, 5 * MIB);
    assert_eq!(rig.backing_files().len(), 2);
}

#[tokio::test]
async fn a_sequential_reader_of_a_large_file_causes_few_fetches() {
    let rig = Rig::new(256 * MIB);
    let source = Arc::new(Source { ino: 1, ..Source::default() });
    let pinned = rig.pin(1, 128 * MIB).expect("fits");
    read_whole(&pinned, &source, 128 * MIB).await;
    let fetches = source.fetches.load(Ordering::Relaxed);
    assert!(fetches <= 128 / 4 + 4, "{fetches} fetches for 1024 reads: one for each full shard, and the first few");
    assert_eq!(source.fetched.load(Ordering::Relaxed), 128 * MIB);
}

/// The prototype counted files, not bytes.
#[tokio::test]
async fn regression_29_the_limit_is_in_bytes_and_what_was_not_used_for_longest_leaves() {
    let rig = Rig::new(4 * MIB);
    for ino in 1..=4 {
        assert_eq!(rig.read(ino, MIB).await, MIB);
    }
    assert_eq!(rig.read(1, MIB).await, 0, "still there");
    assert_eq!(rig.read(5, MIB).await, MIB);
    assert_eq!(rig.read(1, MIB).await, 0, "was used after 2");
    assert_eq!(rig.read(2, MIB).await, MIB, "had to leave");
    let stats = rig.cache().stats();
    assert_eq!((stats.used_bytes, stats.files, stats.evictions), (4 * MIB, 4, 2));
    assert_eq!(rig.backing_files().len(), 4);
}

#[tokio::test]
async fn what_does_not_fit_is_read_through_without_waste() {
    let rig = Rig::new(4 * MIB);
    assert!(rig.pin(9, 4 * MIB + 1).is_none(), "larger than the cache");
    let held = rig.pin(1, 3 * MIB).expect("fits");
    read_whole(&held, &Arc::new(Source { ino: 1, ..Source::default() }), 3 * MIB).await;
    let fetched = rig.read(2, 4 * MIB).await;
    assert_eq!(fetched, 4 * MIB, "each byte once, although it cannot be kept");
    let stats = rig.cache().stats();
    assert_eq!(stats.unkept_bytes, 4 * MIB);
    assert!(stats.used_bytes <= 4 * MIB);
    let source = Arc::new(Source { ino: 1, ..Source::default() });
    read_whole(&held, &source, 3 * MIB).await;
    assert_eq!(source.fetched.load(Ordering::Relaxed), 0, "what is open stays");
}

#[tokio::test]
async fn complete_files_survive_a_restart_and_damaged_ones_are_fetched_again() {
    let mut rig = Rig::new(64 * MIB);
    rig.read(1, 2 * MIB + 5).await;
    rig.read(2, 3 * MIB).await;
    {
        let partly = rig.pin(3, 20 * MIB).expect("fits");
        let source: Arc<dyn ByteSource> = Arc::new(Source { ino: 3, ..Source::default() });
        partly.read(&source, 0..10).await.expect("read");
        partly.settle().await;
    }
    rig.restart();
    assert_eq!(rig.backing_files().len(), 2);
    assert_eq!(rig.read(1, 2 * MIB + 5).await, 0);
    let pinned = rig.pin(1, 2 * MIB + 5).expect("fits");
    let file = pinned.complete_file().await.expect("whole");
    assert_eq!(file.metadata().expect("metadata").len(), 2 * MIB + 5);

    let damaged = rig.pin(2, 3 * MIB).expect("fits").path();
    let mut bytes = std::fs::read(&damaged).expect("read");
    bytes[MIB as usize + 100] ^= 1;
    drop(pinned);
    std::fs::write(&damaged, bytes).expect("written");
    rig.restart();
    assert!(rig.pin(2, 3 * MIB).expect("fits").complete_file().await.is_none());
    assert_eq!(rig.read(2, 3 * MIB).await, MIB, "only the damaged chunk");
    assert!(rig.pin(2, 3 * MIB).expect("fits").complete_file().await.is_some());
    assert_eq!(rig.cache().stats().used_bytes, 5 * MIB + 5);
}

#[tokio::test]
async fn a_failed_fetch_is_an_error_and_can_be_repeated() {
    let rig = Rig::new(64 * MIB);
    let source = Arc::new(Source { ino: 1, ..Source::default() });
    source.fails.store(true, Ordering::Relaxed);
    let pinned = rig.pin(1, MIB).expect("fits");
    let bytes_from: Arc<dyn ByteSource> = source.clone();
    let failed = pinned.read(&bytes_from, 0..100).await;
    assert_eq!(failed.expect_err("fails").kind(), Kind::Unavailable);
    assert!(pinned.complete_file().await.is_none());
    source.fails.store(false, Ordering::Relaxed);
    read_whole(&pinned, &source, MIB).await;
}

#[tokio::test]
async fn a_disk_that_refuses_is_no_error_to_the_reader() {
    let rig = Rig::new(64 * MIB);
    std::fs::remove_dir_all(rig.dir.path().join("files")).expect("removed");
    assert_eq!(rig.read(1, 3 * MIB).await, 3 * MIB);
    assert_eq!(rig.cache().stats().used_bytes, 0);
    assert_eq!(rig.cache().stats().unkept_bytes, 3 * MIB);
}

#[tokio::test]
async fn leftovers_are_never_served() {
    let mut rig = Rig::new(64 * MIB);
    rig.read(1, 1000).await;
    let left = rig.dir.path().join("files/01/0000000000000001");
    rig.cache = None;
    std::fs::write(&left, vec![9; 1000]).expect("written");
    rig.restart();
    assert!(!left.exists());
    assert_eq!(rig.read(2, 1000).await, 1000);
}

/// As after a cluster was set back to an older state under a cache that was not.
#[test]
fn a_version_of_another_length_is_not_mixed_with_the_one_that_is_known() {
    let rig = Rig::new(100 * MIB);
    let key = CacheKey { ino: InodeId(1), version: Version(1) };
    let first = rig.cache().pin(key, 5 * MIB).expect("cached");
    assert!(rig.cache().pin(key, 4 * MIB).is_none());
    assert!(rig.cache().pin(key, 5 * MIB).is_some());
    drop(first);
}

/// Reads a file whole through one of several caches in a folder; returns how many bytes were fetched for it.
async fn read_through(cache: &Cache, ino: u64, len: u64) -> u64 {
    let source = Arc::new(Source { ino, ..Source::default() });
    let pinned = cache.pin(CacheKey { ino: InodeId(ino), version: Version(1) }, len).expect("fits");
    read_whole(&pinned, &source, len).await;
    source.fetched.load(Ordering::Relaxed)
}

#[tokio::test]
async fn what_another_cache_in_the_folder_has_whole_is_copied_and_nothing_of_it_is_trusted() {
    let one = Rig::new(64 * MIB);
    let open = |cluster| {
        Cache::open(one.dir.path(), 16 * MIB, cluster, Box::new(Lru::default()), Prefetch::None).expect("there is room")
    };
    let (two, stranger) = (open(CLUSTER), open(ClusterId(78)));
    let len = 7 * MIB + 5;
    for ino in 1..=3 {
        assert_eq!(one.read(ino, len).await, len);
    }
    // Long enough for the index to be looked at again.
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(read_through(&two, 1, len).await, 0);
    assert_eq!((two.stats().storage_bytes, two.stats().sibling_bytes), (0, len));
    assert_eq!(read_through(&stranger, 1, len).await, len, "an inode of another cluster is another file");

    let damaged = one.pin(2, len).expect("fits").path();
    let mut bytes = std::fs::read(&damaged).expect("read");
    bytes[100] ^= 1;
    std::fs::write(&damaged, bytes).expect("written");
    let fetched = read_through(&two, 2, len).await;
    assert!((MIB..len).contains(&fetched), "{fetched} bytes: what is damaged, and not more than its neighbours");
    std::fs::remove_file(one.pin(3, len).expect("fits").path()).expect("removed");
    assert_eq!(read_through(&two, 3, len).await, len, "it has left the other cache");
    assert!(two.stats().used_bytes <= 16 * MIB, "the limit is its own");
}

#[tokio::test]
async fn files_take_the_places_of_others_but_not_of_one_that_was_handed_out() {
    const LEN: u64 = 100_000;
    let rig = Rig::new(40 * LEN);
    for ino in 0..40 {
        assert_eq!(rig.read(ino, LEN).await, LEN);
    }
    rig.cache().settle().await;
    let file = rig.pin(7, LEN).expect("is there").complete_file().await.expect("is whole");
    let numbers = |rig: &Rig| -> std::collections::BTreeSet<u64> {
        let number = |path: std::path::PathBuf| std::fs::metadata(path).expect("stat").ino();
        rig.backing_files().into_iter().map(number).collect()
    };
    let before = numbers(&rig);
    for round in 1..4 {
        for ino in 100 * round..100 * round + 40 {
            assert_eq!(rig.read(ino, LEN - round).await, LEN - round);
            rig.cache().settle().await;
            assert_eq!(rig.read(ino, LEN - round).await, 0, "is kept");
        }
    }
    let mut bytes = vec![0; LEN as usize];
    file.read_exact_at(&mut bytes, 0).expect("reads");
    assert!(bytes == content(7, 0..LEN), "it was written over");
    let after = numbers(&rig);
    let mut rig = rig;
    let later = rig.pin(320, LEN - 3).expect("is there").complete_file().await.expect("is whole");
    rig.restart();
    for ino in 500..560 {
        rig.read(ino, LEN - 3).await;
    }
    rig.cache().settle().await;
    let mut bytes = vec![0; LEN as usize - 3];
    later.read_exact_at(&mut bytes, 0).expect("reads");
    assert!(bytes == content(320, 0..LEN - 3), "handed out before the restart");
    assert!(!after.contains(&file.metadata().expect("stat").ino()));
    assert!(after.intersection(&before).count() >= 30, "{} of {} are new files", (&after - &before).len(), after.len());
}

#[tokio::test]
async fn files_that_somebody_removes_or_cuts_are_fetched_again() {
    const LEN: u64 = 100_000;
    let rig = Rig::new(40 * LEN);
    for ino in 0..60 {
        rig.read(ino, LEN).await;
    }
    rig.cache().settle().await;
    let files = rig.backing_files();
    for (at, file) in files.iter().enumerate() {
        match at % 3 {
            0 => std::fs::remove_file(file).expect("removes"),
            1 => std::fs::OpenOptions::new().write(true).open(file).and_then(|file| file.set_len(9)).expect("cuts"),
            _ => {}
        }
    }
    let mut fetched = 0;
    for ino in (20..60).rev() {
        // It is compared with what it should be.
        fetched += rig.read(ino, LEN).await;
    }
    assert!((20 * LEN..40 * LEN).contains(&fetched), "{fetched} bytes are fetched");
    rig.cache().settle().await;
    assert!(rig.cache().stats().used_bytes <= 40 * LEN);
}
