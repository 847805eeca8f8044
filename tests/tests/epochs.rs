//! Training with an announced order over a cluster of processes: files are there when they are opened, storage is asked for no
//! more than must be, metadata for nothing, and nodes that die or hang end no epoch.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::collections::HashMap;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use torchfs_core::cache::EpochStats;
use torchfs_core::meta::Name;
use torchfs_core::{Client, EpochOrder, InodeId};
use torchfs_tests::{Cluster, Noise, write_file};

const FOLDERS: usize = 4;

/// Generous: the machine may be busy.
const EPOCH_DEADLINE: Duration = Duration::from_secs(180);

/// A client that reads as a mount does: it watches, looks names up, opens by inode.
struct Trainer {
    client: Client,
    watch: JoinHandle<()>,
    contents: Vec<Vec<u8>>,
    /// Of the files in the order of their paths.
    names: Vec<(InodeId, Name)>,
    _dir: TempDir,
}

impl Drop for Trainer {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

impl Trainer {
    async fn new(cluster: &Cluster, files: usize, file_bytes: usize, cache_percent: usize) -> Trainer {
        let dir = tempfile::tempdir().expect("folder");
        let (source, mut noise, mut contents) = (dir.path().join("source"), Noise::new(5), Vec::new());
        for file in 0..files {
            contents.push(noise.bytes(file_bytes));
            write_file(&source.join(path(file)), &contents[file]);
        }
        let addrs = cluster.meta_addrs();
        let client = Client::builder()
            .metas(addrs.split(','))
            .cache_dir(dir.path().join("cache"))
            .cache_bytes((files * file_bytes * cache_percent / 100) as u64)
            .connect()
            .await
            .expect("connected");
        client.put_tree(&source, "/data", Default::default()).await.expect("put");
        let meta = client.meta().clone();
        let watch = tokio::spawn(async move {
            let mut seen = None;
            loop {
                match meta.watch(seen).await {
                    Ok(changes) => seen = Some(changes.upto),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
        let mut folders = HashMap::new();
        for folder in 0..FOLDERS {
            let attr = client.stat(format!("/data/class{folder}")).await.expect("there");
            folders.insert(folder, attr.ino);
        }
        let name = |file: usize| {
            let path = path(file);
            let name = path.rsplit('/').next().expect("a name").as_bytes();
            (folders[&class(file)], Name::new(name).expect("a name"))
        };
        let names = (0..files).map(name).collect();
        Trainer { client, watch, contents, names, _dir: dir }
    }

    async fn read(&self, file: usize) {
        let (folder, name) = self.names[file].clone();
        let attr = self.client.meta().lookup(folder, name).await.expect("looked up");
        let open = self.client.open_inode(attr.ino).await.expect("opened");
        open.begin_reading();
        let bytes = open.read_at(0, self.contents[file].len() + 1).await.expect("read");
        assert!(bytes == self.contents[file], "wrong bytes of {}", path(file));
    }

    fn order(&self, epoch: u64) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.names.len() as u32).collect();
        order.shuffle(&mut StdRng::seed_from_u64(epoch));
        order
    }

    async fn announce(&self, epoch: u64) {
        let order = EpochOrder::indices(epoch, "/data", self.order(epoch));
        let announced = self.client.announce(order).await.expect("announced");
        assert_eq!((announced.entries, announced.unknown), (self.names.len() as u64, 0));
    }

    /// Announces an epoch and reads it; `at` is told before each file which it is. Returns what it took.
    async fn read_epoch(&self, epoch: u64, compute: Duration, mut at: impl FnMut(usize)) -> Epoch {
        let before = self.client.request_stats();
        self.announce(epoch).await;
        let mut slowest = Duration::ZERO;
        let reading = async {
            for (number, &file) in self.order(epoch).iter().enumerate() {
                at(number);
                let began = Instant::now();
                self.read(file as usize).await;
                slowest = slowest.max(began.elapsed());
                tokio::time::sleep(compute).await;
            }
        };
        tokio::time::timeout(EPOCH_DEADLINE, reading).await.expect("every epoch ends");
        let after = self.client.request_stats();
        let stats = self.client.epochs().expect("a cache").into_iter().find(|stats| stats.epoch == Some(epoch));
        let epoch = Epoch {
            stats: stats.expect("it was counted"),
            metadata: after.metadata_reads.requests - before.metadata_reads.requests,
            storage: after.storage_reads.requests - before.storage_reads.requests,
        };
        println!("slowest read {slowest:?}; {epoch:?}");
        epoch
    }
}

#[derive(Debug)]
struct Epoch {
    stats: EpochStats,
    metadata: u64,
    storage: u64,
}

/// Files are numbered in the order of their paths.
fn path(file: usize) -> String {
    format!("class{}/image{file:06}", class(file))
}

fn class(file: usize) -> usize {
    (file / 50).min(FOLDERS - 1)
}

/// Epochs with a cache of a quarter of the files.
async fn train(files: usize, file_bytes: usize, requests_per_file_max: f64) {
    let cluster = Cluster::start();
    let trainer = Trainer::new(&cluster, files, file_bytes, 25).await;
    let all = (files * file_bytes) as u64;
    let least = all - all / 4;
    let mut epochs = Vec::new();
    for number in 0..4 {
        let epoch = trainer.read_epoch(number, Duration::from_millis(1), |_| {}).await;
        let stats = epoch.stats;
        assert_eq!((stats.opens, stats.hits + stats.late + stats.misses), (files as u64, files as u64));
        if number == 0 {
            assert!(epoch.metadata <= 20 * FOLDERS as u64, "a few questions for each folder: {epoch:?}");
            continue;
        }
        assert!(stats.misses as f64 <= 0.01 * files as f64, "all were announced: {stats:?}");
        // Which epoch a few files at the border count for is chance.
        let most = 1.01 * least as f64 + (4 * file_bytes) as f64;
        assert!(stats.storage_bytes as f64 <= most, "at least {least}: {stats:?}");
        epochs.push(epoch);
    }
    // On a machine that is busy with other things a lease may lapse for a moment, and files be late; not in every epoch.
    let one = |holds: &dyn Fn(&Epoch) -> bool| epochs.iter().any(holds);
    assert!(one(&|epoch| epoch.metadata == 0), "metadata is asked in each of {epochs:?}");
    assert!(one(&|epoch| epoch.stats.hits as f64 >= 0.99 * files as f64), "files are late in each of {epochs:?}");
    let per_file = |epoch: &Epoch| epoch.storage as f64 / files as f64;
    assert!(one(&|epoch| per_file(epoch) <= requests_per_file_max), "too many requests in each of {epochs:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_epochs_hit_fetch_the_least_and_ask_metadata_nothing() {
    // So few files that each node has one or two of those that may be fetched ahead together.
    train(400, 64 * 1024, 1.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_files_of_an_announced_epoch_are_fetched_many_at_a_time() {
    train(6000, 8 * 1024, 0.05).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_27_epochs_end_while_nodes_are_killed_and_hang() {
    let mut cluster = Cluster::start();
    let trainer = Trainer::new(&cluster, 400, 64 * 1024, 25).await;
    trainer.read_epoch(0, Duration::ZERO, |_| {}).await;
    let trouble = |number| match number {
        100 => cluster.kill_store(2),
        130 => cluster.freeze_store(4),
        200 => cluster.kill_meta(cluster.leader()),
        _ => {}
    };
    let troubled = trainer.read_epoch(1, Duration::ZERO, trouble).await;
    assert_eq!(troubled.stats.opens, 400, "{troubled:?}");
    let after = trainer.read_epoch(2, Duration::ZERO, |_| {}).await;
    assert_eq!(after.stats.opens, 400, "{after:?}");
    cluster.thaw_store(4);
}
