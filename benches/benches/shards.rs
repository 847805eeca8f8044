//! Durable puts of small shards, with the journal and without it: `cargo bench -p torchfs-benches --bench shards`.
//!
//! One store, or three on one disk as the shards of a small file have them: then a put is over when all three have it. The
//! baseline is the same store with so little capacity that it does without a journal; both take turns in one run. The
//! disk is that of the current folder, or of `TORCHFS_BENCH_DIR`.

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use torchfs_core::checksum::block_checksums;
use torchfs_core::shard::ShardStore;
use torchfs_core::{ClusterId, NodeId, ShardId, StripeId};
use torchfs_store::DiskStore;
use torchfs_store::disk::Registration;

const PUTS: u64 = 1200;
const TURNS: usize = 3;

/// Too little for a journal, enough for all puts of a turn.
const SMALL_CAPACITY: u64 = 120 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Journal {
    Without,
    With,
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Box::pin(measure()));
}

async fn measure() {
    println!("{:<34}{:>12}{:>12}{:>10}{:>12}{:>12}", "puts", "without/s", "with/s", "ratio", "median us", "median us");
    for stores in [1, 3] {
        for bytes in [16 << 10, 64 << 10] {
            for lanes in [1, 8] {
                let (mut without, mut with) = (Vec::new(), Vec::new());
                for _ in 0..TURNS {
                    without.push(turn(Journal::Without, stores, bytes, lanes).await);
                    with.push(turn(Journal::With, stores, bytes, lanes).await);
                }
                let ((without, before), (with, after)) = (middle(without), middle(with));
                let what = format!("{} KiB, {stores} store(s), {lanes} at once", bytes >> 10);
                let ratio = with / without;
                println!("{what:<34}{without:>12.0}{with:>12.0}{ratio:>10.2}{before:>12}{after:>12}");
            }
        }
    }
}

/// Puts per second, and the median of their times in microseconds.
async fn turn(journal: Journal, stores: usize, bytes: usize, lanes: u64) -> (f64, u128) {
    let folder = tempfile::tempdir_in(std::env::var("TORCHFS_BENCH_DIR").unwrap_or_else(|_| ".".into()));
    let folder = folder.expect("a folder on the disk to measure; set TORCHFS_BENCH_DIR");
    let opened = join_all((0..stores).map(|number| open(journal, folder.path().join(number.to_string())))).await;
    let opened = Arc::new(opened);
    let (data, next) = (content(bytes), Arc::new(AtomicU64::new(1)));
    let begin = Instant::now();
    let lanes = (0..lanes).map(|_| tokio::spawn(lane(opened.clone(), data.clone(), next.clone())));
    let times = try_join_all(lanes).await.expect("lanes");
    let seconds = begin.elapsed().as_secs_f64();
    let mut times: Vec<Duration> = times.into_iter().flatten().collect();
    times.sort_unstable();
    join_all(opened.iter().map(DiskStore::close)).await;
    (times.len() as f64 / seconds, times[times.len() / 2].as_micros())
}

async fn lane(stores: Arc<Vec<DiskStore>>, data: Bytes, next: Arc<AtomicU64>) -> Vec<Duration> {
    let mut times = Vec::new();
    loop {
        let stripe = next.fetch_add(1, Ordering::Relaxed);
        if stripe > PUTS {
            return times;
        }
        let begin = Instant::now();
        // Each on a task of its own, as storage nodes are.
        let puts = stores.iter().map(|store| tokio::spawn(put(store.clone(), stripe, data.clone())));
        try_join_all(puts).await.expect("puts");
        times.push(begin.elapsed());
    }
}

async fn put(store: DiskStore, stripe: u64, data: Bytes) {
    let checksums = block_checksums(&data);
    store.put(ShardId { stripe: StripeId(stripe), index: 0 }, data.into(), checksums).await.expect("puts");
}

async fn open(journal: Journal, path: impl AsRef<Path>) -> DiskStore {
    let capacity = (journal == Journal::Without).then_some(SMALL_CAPACITY);
    let store = DiskStore::open(path.as_ref(), capacity).expect("opens");
    store.register(Registration { cluster: ClusterId(1), node: NodeId(1) }).expect("registers");
    put(store.clone(), 0, content(1)).await;
    let segment = path.as_ref().join("journal/segment-1");
    while journal == Journal::With && !segment.exists() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    store
}

fn content(bytes: usize) -> Bytes {
    (0..bytes).map(|at| ((at * 31) >> 3) as u8).collect::<Vec<u8>>().into()
}

fn middle(mut turns: Vec<(f64, u128)>) -> (f64, u128) {
    turns.sort_by(|one, other| one.0.total_cmp(&other.0));
    turns[turns.len() / 2]
}
