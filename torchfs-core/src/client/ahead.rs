//! [`ClusterSource`]: what is fetched ahead comes from the cluster, a batch with one request to each storage node.

use super::catalog::Catalogs;
use super::content::{Base, assemble};
use crate::cache::{BatchSource, ByteSource, Coming};
use crate::error::{Error, Kind, Result};
use crate::meta::MetaSession;
use crate::stripe::{StripeIo, StripeRead};
use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt, stream};
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;

/// Questions to metadata of one batch under way.
const QUESTIONS_AT_A_TIME: usize = 16;

/// Files that are larger are fetched by themselves, ...
const SMALL_BYTES_MAX: u64 = 4 << 20;

/// ... so many at a time, in parts.
const LARGE_AT_A_TIME: usize = 2;

/// The cluster, for a cache that is fetched into ahead.
#[derive(Debug)]
pub(super) struct ClusterSource {
    meta: MetaSession,
    stripes: StripeIo,
    catalogs: Arc<Catalogs>,
}

/// One version of a file.
#[derive(Debug)]
struct Stored {
    base: Base,
    stripes: StripeIo,
}

#[async_trait]
impl ByteSource for Stored {
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        self.base.fetch(&self.stripes, range).await
    }
}

/// Where a file's bytes are.
enum Found {
    /// These parts, each with its place in the file, are all there is of it.
    Parts(Vec<(u64, StripeRead)>),
    Base(Base),
}

#[async_trait]
impl BatchSource for ClusterSource {
    async fn fetch_batch(&self, batch: Vec<Coming>) {
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
}

impl ClusterSource {
    pub fn new(meta: MetaSession, stripes: StripeIo, catalogs: Arc<Catalogs>) -> Self {
        ClusterSource { meta, stripes, catalogs }
    }

    /// Where a file is that no cache of this machine has. What is dropped here is left to its readers.
    async fn find(&self, mut coming: Coming) -> Option<(Coming, Found)> {
        if !coming.copy_from_siblings().await {
            return None;
        }
        let is_small = coming.size() <= SMALL_BYTES_MAX && coming.is_untouched();
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
                self.not_fetched(&mut coming, &error);
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
    fn not_fetched(&self, coming: &mut Coming, error: &Error) {
        tracing::debug!(%error, ino = %coming.key().ino, "not fetched ahead");
        coming.give_up(error);
        if matches!(error.kind(), Kind::Stale | Kind::NotFound | Kind::DataLoss) {
            self.catalogs.note_moved(coming.key());
        }
    }

    async fn large(&self, mut coming: Coming, base: Base) {
        let stored = Stored { base, stripes: self.stripes.clone() };
        if let Err(error) = coming.deliver_from(&stored).await {
            self.not_fetched(&mut coming, &error);
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
            self.not_fetched(&mut coming, &error);
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
