//! How many requests a client makes of its cluster and how long they take: [`RequestStats`].
//!
//! The two traits of a cluster are wrapped once, in [`Client`](crate::Client), so it is the same for every transport.

use crate::error::Result;
use crate::ids::{NodeId, ShardId};
use crate::meta::{
    Allocate, Allocation, Changes, Command, Heartbeat, HeartbeatReply, MetaAnswer, MetaQuery, MetaReply, MetaStore,
    Watch,
};
use crate::rpc::Payload;
use crate::shard::{ShardBlocks, ShardRead, ShardStat, ShardStore, ShardStores};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Four buckets for each doubling of the time, so that a percentile is known to a fifth.
const BUCKETS_PER_DOUBLING: u32 = 4;

/// The last bucket begins at some nine minutes, longer than any deadline.
const BUCKETS: usize = 30 * BUCKETS_PER_DOUBLING as usize;

/// How often something was asked, and how long the answers took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LatencyStats {
    /// Answers so far, failures included.
    pub requests: u64,
    /// How many of them were errors.
    pub failures: u64,
    /// Microseconds that half of the answers took at most.
    pub p50_us: u64,
    /// Microseconds that 99 of 100 answers took at most.
    pub p99_us: u64,
}

/// What a client has asked of its cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestStats {
    /// Requests under way.
    pub in_flight: u64,
    /// Questions to metadata.
    pub metadata_reads: LatencyStats,
    /// Changes of metadata, and requests for places to write to.
    pub metadata_writes: LatencyStats,
    /// Requests to storage nodes for parts of shards; one may ask for many.
    pub storage_reads: LatencyStats,
    /// Shards sent to storage nodes.
    pub storage_writes: LatencyStats,
}

/// How often something happened and how long it took, from any number of threads at once: the counters behind [`LatencyStats`].
#[derive(Debug)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    failures: AtomicU64,
}

impl Default for Latency {
    fn default() -> Self {
        Latency { buckets: std::array::from_fn(|_| AtomicU64::new(0)), failures: AtomicU64::new(0) }
    }
}

fn bucket_of(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let doubling = micros.ilog2();
    // The two bits below the first.
    let quarter = ((u128::from(micros) << 2) >> doubling) as u32 & 3;
    ((doubling * BUCKETS_PER_DOUBLING + quarter) as usize).min(BUCKETS - 1)
}

/// Where a bucket ends, in microseconds.
fn end_of(bucket: usize) -> u64 {
    let next = bucket as u32 + 1;
    let (doubling, quarter) = (next / BUCKETS_PER_DOUBLING, next % BUCKETS_PER_DOUBLING);
    ((4 + u64::from(quarter)) << doubling) / 4
}

impl Latency {
    /// Counts one more.
    pub fn add(&self, time: Duration, is_failure: bool) {
        self.buckets[bucket_of(time)].fetch_add(1, Ordering::Relaxed);
        if is_failure {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted so far.
    pub fn stats(&self) -> LatencyStats {
        let counts: Vec<u64> = self.buckets.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let requests: u64 = counts.iter().sum();
        let percentile = |percent: u64| {
            let mut left = (requests * percent).div_ceil(100);
            let reaches = |&count: &u64| {
                left = left.saturating_sub(count);
                left == 0
            };
            if requests == 0 { 0 } else { counts.iter().position(reaches).map_or(0, end_of) }
        };
        let failures = self.failures.load(Ordering::Relaxed);
        LatencyStats { requests, failures, p50_us: percentile(50), p99_us: percentile(99) }
    }
}

/// The counters behind [`RequestStats`].
#[derive(Debug, Default)]
pub(crate) struct Requests {
    in_flight: AtomicU64,
    metadata_reads: Latency,
    metadata_writes: Latency,
    storage_reads: Latency,
    storage_writes: Latency,
}

/// Counts a request that is given up as no longer under way.
struct InFlight<'a>(&'a AtomicU64);

impl<'a> InFlight<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        InFlight(count)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Requests {
    async fn watch<T>(&self, latency: &Latency, request: impl Future<Output = Result<T>>) -> Result<T> {
        let _in_flight = InFlight::new(&self.in_flight);
        let start = Instant::now();
        let result = request.await;
        latency.add(start.elapsed(), result.is_err());
        result
    }

    pub(crate) fn stats(&self) -> RequestStats {
        RequestStats {
            in_flight: self.in_flight.load(Ordering::Relaxed),
            metadata_reads: self.metadata_reads.stats(),
            metadata_writes: self.metadata_writes.stats(),
            storage_reads: self.storage_reads.stats(),
            storage_writes: self.storage_writes.stats(),
        }
    }
}

/// Something whose requests are counted.
#[derive(Debug)]
pub(crate) struct Observed<T: ?Sized> {
    pub(crate) requests: Arc<Requests>,
    pub(crate) inner: Arc<T>,
}

#[async_trait]
impl MetaStore for Observed<dyn MetaStore> {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        self.requests.watch(&self.requests.metadata_writes, self.inner.apply(command)).await
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer> {
        self.requests.watch(&self.requests.metadata_reads, self.inner.query(query)).await
    }

    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>> {
        self.requests.watch(&self.requests.metadata_writes, self.inner.allocate(request)).await
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply> {
        self.inner.heartbeat(beat).await
    }

    /// Not counted: it waits on purpose.
    async fn watch(&self, watch: Watch) -> Result<Changes> {
        self.inner.watch(watch).await
    }
}

#[async_trait]
impl ShardStores for Observed<dyn ShardStores> {
    async fn store(&self, node: NodeId) -> Result<Arc<dyn ShardStore>> {
        let inner = self.inner.store(node).await?;
        Ok(Arc::new(Observed { requests: self.requests.clone(), inner }))
    }
}

#[async_trait]
impl ShardStore for Observed<dyn ShardStore> {
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()> {
        self.requests.watch(&self.requests.storage_writes, self.inner.put(shard, data, checksums)).await
    }

    async fn get(&self, read: ShardRead) -> Result<ShardBlocks> {
        self.requests.watch(&self.requests.storage_reads, self.inner.get(read)).await
    }

    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        self.requests.watch(&self.requests.storage_reads, self.inner.get_many(reads)).await
    }

    async fn delete(&self, shards: Vec<ShardId>) -> Result<()> {
        self.inner.delete(shards).await
    }

    async fn stat(&self, shard: ShardId) -> Result<ShardStat> {
        self.inner.stat(shard).await
    }

    async fn list(&self, after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>> {
        self.inner.list(after, limit).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_ends_at_most_a_quarter_above_what_is_in_it(micros in 4u64..500_000_000) {
            let end = end_of(bucket_of(Duration::from_micros(micros)));
            prop_assert!(micros < end && end <= micros + micros / 4 + 1, "{micros} in a bucket that ends at {end}");
        }
    }

    #[test]
    fn percentiles_are_of_all_answers() {
        let latency = Latency::default();
        assert_eq!(latency.stats(), LatencyStats::default());
        (0..98).for_each(|_| latency.add(Duration::from_micros(100), false));
        (0..2).for_each(|_| latency.add(Duration::from_millis(50), true));
        let stats = latency.stats();
        assert_eq!((stats.requests, stats.failures), (100, 2));
        assert!((100..=125).contains(&stats.p50_us) && (50_000..=62_500).contains(&stats.p99_us), "{stats:?}");
        latency.add(Duration::MAX, false);
        assert_eq!(latency.stats().requests, 101);
    }

    #[tokio::test]
    async fn a_request_that_is_given_up_is_no_longer_in_flight() {
        let requests = Requests::default();
        let mut never = Box::pin(requests.watch(&requests.storage_reads, std::future::pending::<Result<()>>()));
        assert!(futures::poll!(&mut never).is_pending());
        assert_eq!(requests.stats().in_flight, 1);
        drop(never);
        assert_eq!(requests.stats(), RequestStats::default());
    }
}
