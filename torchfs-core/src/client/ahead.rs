//! The prefetcher: fetches into the cache what is read next, in batches that ask each storage node once.
//!
//! It has no opinions: the cache's planner says what, the connection's speed how far ahead. Nothing waits for it; what it
//! cannot fetch is fetched by whoever reads it.

use super::catalog::Catalogs;
use super::content::{Base, assemble};
use crate::cache::{Cache, Coming, Limits};
use crate::error::{Error, Kind, Result};
use crate::meta::MetaSession;
use crate::stripe::{StripeIo, StripeRead};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, stream};
use std::pin::pin;
use std::sync::Arc;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

/// Files of a batch: some forty per node of a small cluster.
const BATCH_FILES_MAX: usize = 256;

/// Bytes of a batch; one file in any case.
const BATCH_BYTES_MAX: u64 = 16 << 20;

/// Batches under way: while one is written to the disk, the next is on the network.
const BATCHES_MAX: usize = 3;

/// How far ahead of the reader it fetches, where the cache is large enough: some tenths of a second of a fast network.
const AHEAD_BYTES_MAX: u64 = 256 << 20;

/// Questions to metadata of one batch under way.
const QUESTIONS_AT_A_TIME: usize = 16;

/// Files that are larger are fetched by themselves, ...
const SMALL_BYTES_MAX: u64 = 4 << 20;

/// ... so many at a time, in parts.
const LARGE_AT_A_TIME: usize = 2;

/// Fetches ahead as long as it lives.
#[derive(Debug)]
pub(super) struct Prefetcher {
    _task: AbortOnDropHandle<()>,
}

impl Prefetcher {
    pub fn start(cache: Cache, meta: MetaSession, stripes: StripeIo, catalogs: Arc<Catalogs>) -> Self {
        Prefetcher { _task: AbortOnDropHandle::new(tokio::spawn(run(cache, Fetch { meta, stripes, catalogs }))) }
    }
}

#[derive(Clone, Debug)]
struct Fetch {
    meta: MetaSession,
    stripes: StripeIo,
    catalogs: Arc<Catalogs>,
}

/// Where a file's bytes are.
enum Found {
    /// These parts, each with its place in the file, are all there is of it.
    Parts(Vec<(u64, StripeRead)>),
    Base(Base),
}

async fn run(cache: Cache, fetch: Fetch) {
    let limits = Limits { files: BATCH_FILES_MAX, bytes: BATCH_BYTES_MAX, ahead_bytes: AHEAD_BYTES_MAX };
    let mut batches = JoinSet::new();
    loop {
        while batches.len() >= BATCHES_MAX {
            batches.join_next().await;
        }
        let batch = cache.take_wanted(limits).await;
        if batch.is_empty() {
            cache.wanted().await;
            continue;
        }
        let fetch = fetch.clone();
        batches.spawn(async move { fetch.batch(batch).await });
    }
}

impl Fetch {
    async fn batch(&self, batch: Vec<Coming>) {
        // Boxed with their types said: unnamed closure types in here would keep this future from being spawned.
        let finding: Vec<BoxFuture<'_, Option<(Coming, Found)>>> =
            batch.into_iter().map(|coming| self.find(coming).boxed()).collect();
        let mut finding = stream::iter(finding).buffered(QUESTIONS_AT_A_TIME);
        let (mut small, mut large) = (Vec::new(), Vec::<BoxFuture<'_, ()>>::new());
        while let Some(found) = finding.next().await {
            match found {
                Some((coming, Found::Parts(parts))) => small.push((coming, parts)),
                Some((coming, Found::Base(base))) => large.push(self.large(coming, base).boxed()),
                None => {}
            }
        }
        let mut large = stream::iter(large).buffer_unordered(LARGE_AT_A_TIME);
        tokio::join!(self.small(small), async { while large.next().await.is_some() {} });
    }

    /// Where a file is that no cache of this machine has. What is dropped here is left to its readers.
    async fn find(&self, mut coming: Coming) -> Option<(Coming, Found)> {
        if !coming.copy_from_siblings().await {
            return None;
        }
        let is_small = coming.size() <= SMALL_BYTES_MAX;
        if is_small && let Some(read) = self.catalogs.read(coming.key()) {
            return Some((coming, Found::Parts(vec![(0, read)])));
        }
        let found = self.base(&coming).await.and_then(|base| {
            let parts = if is_small { base.reads(0..coming.size())? } else { Vec::new() };
            // One that is nothing but a hole has none either.
            Ok(if parts.is_empty() { Found::Base(base) } else { Found::Parts(parts) })
        });
        match found {
            Ok(found) => Some((coming, found)),
            Err(error) => {
                self.not_fetched(&coming, &error);
                None
            }
        }
    }

    /// The version of the file that is wanted.
    async fn base(&self, coming: &Coming) -> Result<Base> {
        let (attr, content) = self.meta.open(coming.key().ino).await?;
        if attr.version != coming.key().version || attr.size != coming.size() {
            return Err(Error::new(Kind::Stale, "the file changed after its order was announced"));
        }
        Ok(Base::new(attr, content))
    }

    /// Whoever opens it tries again, and is told.
    fn not_fetched(&self, coming: &Coming, error: &Error) {
        tracing::debug!(%error, ino = %coming.key().ino, "not fetched ahead");
        if matches!(error.kind(), Kind::Stale | Kind::NotFound | Kind::DataLoss) {
            self.catalogs.note_moved(coming.key());
        }
    }

    async fn large(&self, mut coming: Coming, base: Base) {
        while let Some(range) = coming.awaited() {
            let delivered = match base.fetch(&self.stripes, range).await {
                Ok(data) => coming.deliver(data).await,
                Err(error) => Err(error),
            };
            if let Err(error) = delivered {
                return self.not_fetched(&coming, &error);
            }
        }
    }

    /// All of these with few requests; each is there as soon as its nodes have answered.
    async fn small(&self, files: Vec<(Coming, Vec<(u64, StripeRead)>)>) {
        let (mut reads, mut waiting) = (Vec::new(), Vec::new());
        for (coming, parts) in files {
            let (places, of_file): (Vec<u64>, Vec<StripeRead>) = parts.into_iter().unzip();
            let first = reads.len();
            reads.extend(of_file);
            waiting.push(Waiting { first, places, arrived: Vec::new(), coming: Some(coming) });
        }
        let mut answers = pin!(self.stripes.read_each(reads).fuse());
        let mut delivering = FuturesUnordered::<BoxFuture<'_, ()>>::new();
        loop {
            tokio::select! {
                Some((read, answer)) = answers.next() => {
                    let at = waiting.partition_point(|file| file.first <= read) - 1;
                    if let Some((coming, bytes)) = waiting[at].arrived(read, answer) {
                        delivering.push(self.deliver(coming, bytes).boxed());
                    }
                }
                Some(()) = delivering.next() => {}
                else => return,
            }
        }
    }

    async fn deliver(&self, mut coming: Coming, bytes: Result<Bytes>) {
        let delivered = match bytes {
            Ok(data) => coming.deliver(data).await,
            Err(error) => Err(error),
        };
        if let Err(error) = delivered {
            self.not_fetched(&coming, &error);
        }
    }
}

/// A small file some parts of which are on their way.
struct Waiting {
    /// The number of its first read.
    first: usize,
    /// Where in the file its reads begin.
    places: Vec<u64>,
    arrived: Vec<(u64, Result<Bytes>)>,
    coming: Option<Coming>,
}

impl Waiting {
    /// Takes a part; the last one completes the file.
    fn arrived(&mut self, read: usize, answer: Result<Bytes>) -> Option<(Coming, Result<Bytes>)> {
        self.arrived.push((self.places[read - self.first], answer));
        if self.arrived.len() < self.places.len() {
            return None;
        }
        let coming = self.coming.take()?;
        let bytes = assemble(coming.size(), std::mem::take(&mut self.arrived));
        Some((coming, bytes))
    }
}
