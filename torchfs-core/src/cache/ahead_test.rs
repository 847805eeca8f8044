//! What a reader notices of fetching ahead: its files are there, no byte is wrong, and no more is fetched than must be.

use super::*;
use crate::cache::policy::Eviction;
use crate::cache::{ByteSource, EpochStats, Pinned};
use crate::ids::{ClusterId, InodeId, Version};
use crate::prefetch::{Dataset, Prefetch, Schedule};
use async_trait::async_trait;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;

const FILE_BYTES: u64 = 512;
const DEADLINE: Duration = Duration::from_secs(60);
const LIMITS: Limits = Limits { files: 64, bytes: 1 << 20, ahead_bytes: 1 << 30 };

fn key(file: u32) -> CacheKey {
    CacheKey { ino: InodeId(u64::from(file) + 1), version: Version(1) }
}

fn content(key: CacheKey, range: Range<u64>) -> Bytes {
    range.map(|at| (at ^ (at >> 8) ^ (key.ino.0 * 31) ^ (key.version.0 * 17)) as u8).collect()
}

/// What readers fetch themselves.
#[derive(Debug)]
struct Storage {
    key: CacheKey,
    fetched: Arc<AtomicU64>,
}

#[async_trait]
impl ByteSource for Storage {
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        self.fetched.fetch_add(range.end - range.start, Ordering::Relaxed);
        Ok(content(self.key, range))
    }
}

/// A cache over storage that answers a fetch ahead some opens later.
struct Rig {
    cache: Cache,
    dataset: Arc<Dataset>,
    fetched_by_readers: Arc<AtomicU64>,
    under_way: Mutex<VecDeque<(u64, Coming)>>,
    opens: AtomicU64,
    fetch_opens: u64,
    _dir: TempDir,
}

impl Rig {
    fn new(files: u32, file_bytes: u64, limit_bytes: u64) -> Rig {
        let dir = tempfile::tempdir().expect("folder");
        let policy = Eviction::Schedule.policy();
        let cache = Cache::open(dir.path(), limit_bytes, ClusterId(1), policy, Prefetch::Schedule).expect("opened");
        let files = (0..files).map(|file| DataFile { key: key(file), bytes: file_bytes }).collect();
        Rig {
            cache,
            dataset: Dataset::new(files).expect("a dataset"),
            fetched_by_readers: Arc::default(),
            under_way: Mutex::default(),
            opens: AtomicU64::new(0),
            fetch_opens: 4,
            _dir: dir,
        }
    }

    fn announce(&self, epoch: u64, order: &[u32]) {
        let schedule = Schedule::new(epoch, self.dataset.clone(), order.to_vec()).expect("a schedule");
        self.cache.announce(schedule.with_reorder(16)).expect("announced");
    }

    /// Begins what is wanted, and delivers what was begun long enough ago.
    async fn run_prefetcher(&self) {
        loop {
            let batch = self.cache.take_wanted(LIMITS).await;
            if batch.is_empty() {
                break;
            }
            let due = self.opens.load(Ordering::Relaxed) + self.fetch_opens;
            self.under_way.lock().expect("lock").extend(batch.into_iter().map(|coming| (due, coming)));
        }
        loop {
            let next = {
                let mut under_way = self.under_way.lock().expect("lock");
                let opens = self.opens.load(Ordering::Relaxed);
                let is_due = under_way.front().is_some_and(|(due, _)| *due <= opens);
                if is_due { under_way.pop_front() } else { None }
            };
            let Some((_, mut coming)) = next else { break };
            while let Some(range) = coming.awaited() {
                coming.deliver(content(coming.key(), range)).await.expect("delivered");
            }
        }
        self.cache.settle().await;
    }

    fn open(&self, file: DataFile) -> Pinned {
        self.cache.opened(file).expect("fits")
    }

    async fn read(&self, file: DataFile) {
        let pinned = self.open(file);
        let fetched = self.fetched_by_readers.clone();
        let storage: Arc<dyn ByteSource> = Arc::new(Storage { key: file.key, fetched });
        // What is on its way is waited for, which storage does not do for as long as nothing else is opened.
        let reading = pinned.read(&storage, 0..file.bytes);
        let bytes = tokio::select! {
            bytes = reading => bytes,
            () = self.deliver(file.key) => pinned.read(&storage, 0..file.bytes).await,
        };
        assert!(bytes.expect("read") == content(file.key, 0..file.bytes), "bytes of {file:?}");
    }

    async fn deliver(&self, key: CacheKey) {
        tokio::task::yield_now().await;
        let coming = {
            let mut under_way = self.under_way.lock().expect("lock");
            let at = under_way.iter().position(|(_, coming)| coming.key() == key);
            at.and_then(|at| under_way.remove(at))
        };
        match coming {
            Some((_, mut coming)) => {
                while let Some(range) = coming.awaited() {
                    coming.deliver(content(key, range)).await.expect("delivered");
                }
            }
            None => std::future::pending().await,
        }
    }

    async fn read_epoch(&self, order: &[u32]) {
        for &file in order {
            self.run_prefetcher().await;
            self.read(self.dataset.files()[file as usize]).await;
            self.opens.fetch_add(1, Ordering::Relaxed);
        }
        self.run_prefetcher().await;
    }

    fn epoch(&self, number: u64) -> EpochStats {
        let epochs = self.cache.epochs();
        *epochs.iter().find(|epoch| epoch.epoch == Some(number)).expect("an epoch that was read")
    }
}

fn shuffled(files: u32, seed: u64) -> Vec<u32> {
    let mut order: Vec<u32> = (0..files).collect();
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order
}

#[tokio::test]
async fn what_is_too_large_for_the_cache_is_missing_in_its_epoch() {
    let rig = Rig::new(10, FILE_BYTES, FILE_BYTES - 1);
    let order = shuffled(10, 1);
    rig.announce(3, &order);
    for &file in &order {
        assert!(rig.cache.opened(rig.dataset.files()[file as usize]).is_none());
    }
    let stats = rig.epoch(3);
    assert_eq!((stats.entries, stats.opens, stats.misses), (10, 10, 10), "{stats:?}");
    assert!(rig.cache.progress().iter().all(|epoch| epoch.read == epoch.entries), "{:?}", rig.cache.progress());
}

async fn shuffled_epochs_fetch_the_least(percent: u64) {
    const FILES: u32 = 2000;
    let all = u64::from(FILES) * FILE_BYTES;
    let limit = all * percent / 100;
    let rig = Rig::new(FILES, FILE_BYTES, limit);
    for epoch in 0..4 {
        let order = shuffled(FILES, epoch);
        rig.announce(epoch, &order);
        rig.read_epoch(&order).await;
        let stats = rig.epoch(epoch);
        assert_eq!((stats.opens, stats.hits + stats.misses + stats.late), (2000, 2000), "{stats:?}");
        assert!(rig.cache.stats().used_bytes <= limit);
        assert!(stats.hits >= 1980, "{percent} %: {stats:?}");
        let least = if epoch == 0 { all } else { all - limit };
        let most = least + least / 100;
        assert!((least..=most).contains(&stats.storage_bytes), "{percent} %, at least {least}: {stats:?}");
    }
}

macro_rules! shuffled_epochs {
    ($($name:ident: $percent:expr;)*) => {$(
        #[tokio::test]
        async fn $name() {
            tokio::time::timeout(DEADLINE * 4, shuffled_epochs_fetch_the_least($percent)).await.expect("in time");
        }
    )*};
}

shuffled_epochs! {
    announced_shuffles_hit_and_fetch_the_least_with_a_cache_of_5_percent: 5;
    announced_shuffles_hit_and_fetch_the_least_with_a_cache_of_25_percent: 25;
    announced_shuffles_hit_and_fetch_the_least_with_a_cache_of_50_percent: 50;
    announced_shuffles_hit_and_fetch_the_least_with_a_cache_of_75_percent: 75;
}

#[tokio::test]
async fn readers_fetch_themselves_what_does_not_come_and_its_room_is_freed() {
    let rig = Rig::new(8, FILE_BYTES, 8 * FILE_BYTES * 10);
    rig.announce(0, &[0, 1, 2, 3]);
    let mut batch = rig.cache.take_wanted(LIMITS).await;
    assert_eq!(batch.iter().map(Coming::key).collect::<Vec<_>>(), [key(0), key(1), key(2), key(3)]);
    assert_eq!(rig.cache.stats().used_bytes, 4 * FILE_BYTES, "room is taken at once");
    let reader = |file: u32| {
        let pinned = rig.open(rig.dataset.files()[file as usize]);
        let storage: Arc<dyn ByteSource> =
            Arc::new(Storage { key: key(file), fetched: rig.fetched_by_readers.clone() });
        tokio::spawn(async move {
            let bytes = tokio::time::timeout(DEADLINE, pinned.read(&storage, 0..FILE_BYTES)).await.expect("in time");
            assert!(bytes.expect("read") == content(key(file), 0..FILE_BYTES), "bytes of {file}");
        })
    };
    // The first is given up, the second comes wrong, nobody waits for the third, and the fourth comes.
    let readers = [reader(0), reader(1), reader(3)];
    tokio::task::yield_now().await;
    batch[1].deliver(Bytes::from_static(b"short")).await.expect_err("refused");
    batch[3].deliver(content(key(3), 0..FILE_BYTES)).await.expect("taken");
    drop(batch);
    for reader in readers {
        reader.await.expect("right bytes");
    }
    rig.cache.settle().await;
    let stats = rig.cache.stats();
    assert_eq!((stats.used_bytes, stats.files, stats.evictions), (3 * FILE_BYTES, 3, 0), "{stats:?}");
    assert_eq!(rig.fetched_by_readers.load(Ordering::Relaxed), 2 * FILE_BYTES);
    let epoch = rig.epoch(0);
    assert_eq!((epoch.opens, epoch.late, epoch.hits, epoch.wasted), (3, 3, 0, 0), "{epoch:?}");
    assert_eq!(epoch.storage_bytes, 3 * FILE_BYTES);
    assert!(epoch.stalls >= 3, "{epoch:?}");
    assert!(rig.cache.take_wanted(LIMITS).await.is_empty(), "a failed fetch is not repeated");
}

#[tokio::test]
async fn when_storage_fails_for_all_each_reader_is_told() {
    #[derive(Debug)]
    struct Down;
    #[async_trait]
    impl ByteSource for Down {
        async fn fetch(&self, _range: Range<u64>) -> Result<Bytes> {
            tokio::task::yield_now().await;
            Err(Error::new(Kind::Unavailable, "no node answers"))
        }
    }
    let rig = Rig::new(1, FILE_BYTES, 100 * FILE_BYTES);
    rig.announce(0, &[0]);
    let batch = rig.cache.take_wanted(LIMITS).await;
    let storage: Arc<dyn ByteSource> = Arc::new(Down);
    let readers: Vec<_> = (0..4)
        .map(|_| {
            let (pinned, storage) = (rig.open(rig.dataset.files()[0]), storage.clone());
            tokio::spawn(async move { pinned.read(&storage, 0..FILE_BYTES).await })
        })
        .collect();
    tokio::task::yield_now().await;
    drop(batch);
    for reader in readers {
        let read = tokio::time::timeout(DEADLINE, reader).await.expect("in time").expect("no panic");
        assert_eq!(read.expect_err("fails").kind(), Kind::Unavailable);
    }
    assert_eq!(rig.cache.stats().used_bytes, 0);
}

#[tokio::test]
async fn what_is_fetched_and_never_opened_is_wasted_once_it_leaves() {
    let mut rig = Rig::new(40, FILE_BYTES, 8 * FILE_BYTES);
    rig.announce(0, &shuffled(40, 1));
    rig.run_prefetcher().await;
    rig.read(rig.dataset.files()[shuffled(40, 1)[0] as usize]).await;
    rig.fetch_opens = 0;
    rig.opens.fetch_add(10, Ordering::Relaxed);
    rig.run_prefetcher().await;
    let ahead = rig.cache.stats().files - 1;
    assert!(ahead > 0, "something was fetched ahead");
    assert_eq!(rig.epoch(0).wasted, 0);
    assert!(rig.under_way.lock().expect("lock").is_empty(), "it has arrived");
    rig.cache.forget_schedules();
    let strangers: Vec<u32> = shuffled(40, 1)[20..].to_vec();
    for &file in &strangers {
        rig.read(rig.dataset.files()[file as usize]).await;
    }
    let wasted: u64 = rig.cache.epochs().iter().map(|epoch| epoch.wasted).sum();
    assert_eq!(wasted, ahead, "{:?}", rig.cache.epochs());
    let unannounced = rig.cache.epochs().into_iter().find(|epoch| epoch.epoch.is_none()).expect("counted");
    assert_eq!((unannounced.opens, unannounced.misses), (20, 20));
}

#[tokio::test]
async fn a_file_that_changed_after_it_was_announced_is_read_as_it_is_now() {
    let rig = Rig::new(100, FILE_BYTES, 50 * FILE_BYTES);
    for epoch in 0..2 {
        let order = shuffled(100, epoch);
        rig.announce(epoch, &order);
        for (at, &file) in order.iter().enumerate() {
            rig.run_prefetcher().await;
            let announced = rig.dataset.files()[file as usize];
            match at % 10 {
                // It is removed: nobody opens it, and what was fetched of it is not missed.
                3 => continue,
                // It was replaced.
                5 => {
                    let key = CacheKey { version: Version(2), ..announced.key };
                    rig.read(DataFile { key, bytes: 2 * FILE_BYTES }).await;
                }
                _ => rig.read(announced).await,
            }
            rig.opens.fetch_add(1, Ordering::Relaxed);
        }
        rig.run_prefetcher().await;
        let stats = rig.epoch(epoch);
        assert_eq!(stats.opens, 90, "those that were replaced count, too: {stats:?}");
        assert!(stats.hits >= 75, "the others are not held up: {stats:?}");
    }
    assert!(rig.cache.stats().used_bytes <= 50 * FILE_BYTES);
}

#[tokio::test]
async fn a_large_file_comes_in_parts() {
    const LEN: u64 = 40 << 20;
    let rig = Rig::new(1, LEN, 4 * LEN);
    rig.announce(0, &[0]);
    let mut batch = rig.cache.take_wanted(Limits { ahead_bytes: 1, ..LIMITS }).await;
    let [coming] = &mut batch[..] else { panic!("one file, however large: {batch:?}") };
    let (pinned, fetched) = (rig.open(rig.dataset.files()[0]), rig.fetched_by_readers.clone());
    let storage: Arc<dyn ByteSource> = Arc::new(Storage { key: key(0), fetched: fetched.clone() });
    let first = coming.awaited().expect("a part");
    assert_eq!(first, 0..16 << 20);
    coming.deliver(content(key(0), first)).await.expect("taken");
    let read = tokio::time::timeout(DEADLINE, pinned.read(&storage, 1000..3000)).await.expect("in time");
    assert!(read.expect("read") == content(key(0), 1000..3000), "while the rest is on its way");
    assert_eq!(fetched.load(Ordering::Relaxed), 0);
    drop(batch);
    let end = tokio::time::timeout(DEADLINE, pinned.read(&storage, LEN - 100..LEN)).await.expect("in time");
    assert!(end.expect("read") == content(key(0), LEN - 100..LEN), "what does not come is fetched");
    assert!(fetched.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn regression_27_a_fetch_that_hangs_holds_up_neither_others_nor_the_cache() {
    let rig = Rig::new(200, FILE_BYTES, 100 * FILE_BYTES);
    let order = shuffled(200, 9);
    rig.announce(0, &order);
    let mut hung = rig.cache.take_wanted(Limits { files: 3, ..LIMITS }).await;
    assert_eq!(hung.len(), 3);
    // Readers of everything else go on, and so do other fetches.
    tokio::time::timeout(DEADLINE, rig.read_epoch(&order[3..])).await.expect("nobody waits for it");
    let stats = rig.epoch(0);
    assert!(stats.opens == 197 && stats.hits >= 190, "{stats:?}");
    while let Some(mut coming) = hung.pop() {
        let range = coming.awaited().expect("the whole file");
        coming.deliver(content(coming.key(), range)).await.expect("late, and still taken");
    }
    rig.cache.settle().await;
    rig.read(rig.dataset.files()[order[0] as usize]).await;
    assert!(rig.cache.stats().used_bytes <= 100 * FILE_BYTES);
}

#[tokio::test]
async fn regression_29_what_was_fetched_ahead_and_is_not_read_yet_stays() {
    let rig = Rig::new(400, FILE_BYTES, 40 * FILE_BYTES);
    let orders = [shuffled(400, 1), shuffled(400, 2)];
    rig.announce(0, &orders[0]);
    rig.announce(1, &orders[1]);
    for (epoch, order) in orders.iter().enumerate() {
        rig.read_epoch(order).await;
        let stats = rig.epoch(epoch as u64);
        assert_eq!((stats.opens, stats.wasted), (400, 0), "{stats:?}");
    }
    let fetched = rig.cache.stats().storage_bytes;
    assert!(fetched <= 800 * FILE_BYTES, "{fetched} bytes: none is fetched twice for an epoch");
}

#[tokio::test]
async fn what_an_order_has_next_is_named_and_read_without_waiting_if_it_is_at_hand() {
    let rig = Rig::new(8, FILE_BYTES, 8 * FILE_BYTES);
    let files = rig.dataset.files().to_vec();
    rig.announce(0, &[3, 1, 2, 3]);
    let mut out = vec![0; FILE_BYTES as usize];
    let batch = rig.cache.take_wanted(LIMITS).await;
    let first = rig.open(files[3]);
    assert!(first.is_announced());
    assert_eq!(first.next_announced(), Some(files[1]));
    assert!(!first.read_now(&mut out) && !rig.cache.read_now(key(1), &mut out), "it is on its way");
    for mut coming in batch {
        coming.deliver(content(coming.key(), 0..FILE_BYTES)).await.expect("taken");
    }
    // Where it was received it is in memory; on the disk it may be later.
    wait_for("it has come", || rig.cache.read_now(key(1), &mut out)).await;
    assert!(out == content(key(1), 0..FILE_BYTES));
    assert!(!rig.cache.read_now(key(1), &mut out[1..]), "that is not the whole file");
    assert!(!rig.cache.read_now(key(7), &mut out), "it is not in the cache");
    rig.cache.settle().await;
    if first.read_now(&mut out) {
        assert!(out == content(key(3), 0..FILE_BYTES), "from the disk");
    }
    assert_eq!(rig.epoch(0).opens, 1, "only one was opened");

    let third = rig.open(files[2]);
    assert_eq!(third.next_announced(), Some(files[3]), "the second time");
    assert_eq!(rig.open(files[1]).next_announced(), Some(files[3]), "what is read is not next");
    assert_eq!(rig.open(files[3]).next_announced(), None, "the order ends");
    let stranger = rig.open(files[7]);
    assert!(!stranger.is_announced() && stranger.next_announced().is_none());
}

async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("{what} in time"));
}
