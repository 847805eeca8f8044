//! A data loader with a store of its own, and TorchFS's cache, schedule and prefetch in between: no cluster, no mount.
//!
//! It reads two epochs of files, each in a new random order that it announces first, and checks every byte. A quarter of them fits
//! the cache. The store is a folder behind a slow network: each request takes 5 ms. The first run fetches what it opens, the second
//! has the next files fetched before.
//!
//! Run it with `cargo run --release -p torchfs-examples --example embed_loader`.

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use torchfs_core::cache::policy::Eviction;
use torchfs_core::cache::{BatchSource, ByteSource, Cache, CacheKey, Coming, EpochStats, Prefetcher};
use torchfs_core::prefetch::{DataFile, Dataset, Prefetch, Schedule};
use torchfs_core::{ClusterId, InodeId, IoContext, Result, Version};

const FILES: u32 = 500;
const FILE_BYTES: usize = 64 << 10;
const EPOCHS: u64 = 2;
const REQUEST_TIME: Duration = Duration::from_millis(5);
const REQUESTS_AT_A_TIME: usize = 16;

/// What would be a bucket of an object store: here a folder, and every request takes a while.
#[derive(Clone, Debug)]
struct Bucket(Arc<Path>);

/// One object of it.
#[derive(Debug)]
struct Object {
    bucket: Bucket,
    number: u64,
}

impl Bucket {
    fn object(&self, key: CacheKey) -> Object {
        Object { bucket: self.clone(), number: key.ino.0 }
    }
}

/// What a reader waits for.
#[async_trait]
impl ByteSource for Object {
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        tokio::time::sleep(REQUEST_TIME).await;
        let path = self.bucket.0.join(self.number.to_string());
        let bytes = Bytes::from(tokio::fs::read(&path).await.io(|| path.display().to_string())?);
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }
}

/// What is fetched ahead. A store that brings several objects with one request does it here.
#[async_trait]
impl BatchSource for Bucket {
    async fn fetch_batch(&self, batch: Vec<Coming>) {
        let fetch = async |mut coming: Coming| {
            let object = self.object(coming.key());
            if let Err(error) = coming.deliver_from(&object).await {
                eprintln!("object {} was not fetched ahead, whoever reads it tries again: {error}", object.number);
            }
        };
        stream::iter(batch).for_each_concurrent(REQUESTS_AT_A_TIME, fetch).await;
    }
}

/// Reads objects by number.
struct Loader {
    bucket: Bucket,
    cache: Cache,
    dataset: Arc<Dataset>,
    _prefetcher: Prefetcher,
}

impl Loader {
    fn new(bucket: &Bucket, cache_dir: &Path, prefetch: Prefetch) -> Result<Loader> {
        // A store that replaces objects tells versions apart, by their generation or ETag.
        let key = |number| CacheKey { ino: InodeId(u64::from(number)), version: Version(1) };
        let file = |number| DataFile { key: key(number), bytes: FILE_BYTES as u64 };
        let dataset = Dataset::new((0..FILES).map(file).collect())?;
        // The id says which store it is: a folder that was used for another one is emptied.
        let store = ClusterId(1);
        let cache = Cache::open(cache_dir, dataset.bytes() / 4, store, Eviction::Schedule.policy(), prefetch)?;
        let prefetcher = Prefetcher::start(cache.clone(), Arc::new(bucket.clone()));
        Ok(Loader { bucket: bucket.clone(), cache, dataset, _prefetcher: prefetcher })
    }

    async fn read(&self, number: u32) -> Result<Bytes> {
        let file = self.dataset.files()[number as usize];
        let object: Arc<dyn ByteSource> = Arc::new(self.bucket.object(file.key));
        match self.cache.opened(file) {
            Some(pinned) => pinned.read(&object, 0..file.bytes).await,
            // It is empty, or larger than the cache.
            None => object.fetch(0..file.bytes).await,
        }
    }

    async fn read_epoch(&self, epoch: u64) -> Result<(EpochStats, Duration)> {
        let mut order: Vec<u32> = (0..FILES).collect();
        order.shuffle(&mut StdRng::seed_from_u64(epoch));
        self.cache.announce(Schedule::new(epoch, self.dataset.clone(), order.clone())?)?;
        let began = Instant::now();
        for number in order {
            let bytes = self.read(number).await?;
            assert!(bytes == content(number), "object {number} has other bytes");
        }
        let stats = self.cache.epochs().into_iter().find(|stats| stats.epoch == Some(epoch));
        Ok((stats.unwrap_or_default(), began.elapsed()))
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let dir = tempfile::tempdir().io(|| "make a temporary folder")?;
    let bucket = Bucket(dir.path().join("bucket").into());
    std::fs::create_dir(&bucket.0).io(|| "make the bucket")?;
    for number in 0..FILES {
        std::fs::write(bucket.0.join(number.to_string()), content(number)).io(|| "fill the bucket")?;
    }
    println!("{FILES} objects of {} KiB, {REQUEST_TIME:?} per request, a quarter fits the cache", FILE_BYTES >> 10);
    println!("prefetch  epoch  hits  late  misses  from the store  waited  took");
    for prefetch in [Prefetch::None, Prefetch::Schedule] {
        let loader = Loader::new(&bucket, &dir.path().join(prefetch.name()), prefetch)?;
        for epoch in 0..EPOCHS {
            let (stats, took) = loader.read_epoch(epoch).await?;
            println!(
                "{:<8} {:>6} {:>5} {:>5} {:>7} {:>11} MiB {:>5.2} s {:>3.2} s",
                prefetch.name(),
                epoch,
                stats.hits,
                stats.late,
                stats.misses,
                stats.storage_bytes >> 20,
                stats.stall_us as f64 / 1e6,
                took.as_secs_f64(),
            );
        }
    }
    println!("every byte was right");
    Ok(())
}

/// What is in an object.
fn content(number: u32) -> Bytes {
    let seed = number.wrapping_mul(0x9e37_79b9);
    (0..FILE_BYTES as u32).map(|at| ((at ^ seed).wrapping_mul(0x85eb_ca6b) >> 24) as u8).collect()
}
