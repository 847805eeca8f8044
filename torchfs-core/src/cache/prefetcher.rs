//! [`Prefetcher`]: fetches into a cache what is read next, or is to be warmed, in batches, from any [`BatchSource`].
//!
//! It has no opinions: the cache's planner says what, the source how. Nothing waits for it; what it cannot fetch is fetched by
//! whoever reads it.

use super::{Cache, Coming, Limits};
use async_trait::async_trait;
use std::fmt::Debug;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// Files of a batch: some forty per node of a small cluster.
const BATCH_FILES_MAX: usize = 256;

/// Bytes of a batch; one file in any case.
const BATCH_BYTES_MAX: u64 = 16 << 20;

/// Batches under way: while one is written to the disk, the next is on the network.
const BATCHES_MAX: usize = 3;

/// So many at most when one for warming begins, so that what an order needs has not to wait for it.
const WARM_BATCHES_MAX: usize = BATCHES_MAX - 1;

/// How far ahead of the reader it fetches, where the cache is large enough: some tenths of a second of a fast network.
const AHEAD_BYTES_MAX: u64 = 256 << 20;

/// Where files are fetched from ahead: many at a time, so that one request can bring several.
///
/// # Contract for implementors
/// Readers of these files wait for what is delivered: each file as soon as it is there, and every wait of the source has a
/// deadline. A file that is dropped is fetched by its readers, who are told what is wrong with it.
#[async_trait]
pub trait BatchSource: Debug + Send + Sync + 'static {
    /// Delivers the files of a batch: see [`Coming::deliver`] and [`Coming::deliver_from`].
    async fn fetch_batch(&self, batch: Vec<Coming>);
}

/// Fetches ahead as long as it lives.
#[derive(Debug)]
pub struct Prefetcher {
    _task: AbortOnDropHandle<()>,
}

impl Prefetcher {
    /// Begins to fetch ahead for this cache; one for each.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    #[must_use = "it ends when it is dropped"]
    pub fn start(cache: Cache, source: Arc<dyn BatchSource>) -> Prefetcher {
        Prefetcher { _task: AbortOnDropHandle::new(tokio::spawn(run(cache, source))) }
    }
}

async fn run(cache: Cache, source: Arc<dyn BatchSource>) {
    let limits = Limits { files: BATCH_FILES_MAX, bytes: BATCH_BYTES_MAX, ahead_bytes: AHEAD_BYTES_MAX };
    let mut batches = JoinSet::new();
    loop {
        while batches.len() >= BATCHES_MAX {
            batches.join_next().await;
        }
        let mut batch = cache.take_wanted(limits).await;
        if batch.is_empty() && batches.len() < WARM_BATCHES_MAX {
            batch = cache.take_warmed(limits).await;
        }
        if batch.is_empty() {
            let is_warming = !batches.is_empty() && cache.is_warming();
            tokio::select! {
                () = cache.wanted() => {}
                Some(_) = batches.join_next(), if is_warming => {}
            }
            continue;
        }
        let source = source.clone();
        batches.spawn(async move { source.fetch_batch(batch).await });
    }
}
