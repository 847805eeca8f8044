//! Reading: this client's writes over the version that was opened over zeros.

use super::content::{Base, Origin};
use super::file::View;
use super::overlay::{Piece, Source};
use super::write::blocking;
use super::{Client, File};
use crate::cache::{ByteSource, CacheKey, Pinned};
use crate::error::{Error, Kind, Result};
use crate::layout::Stripe;
use crate::stripe::StripeIo;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, TryStreamExt, stream};
use std::ops::Range;
use std::sync::{Arc, Weak};
use std::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// The first window of a reader that starts at the beginning of a file.
const WINDOW_BYTES_MIN: u64 = 1024 * 1024;

/// The largest window: two of them are in memory for a sequential reader. Two full data shards.
const WINDOW_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// A read this close to where the last one ended still counts as sequential: the kernel sends its readahead in parallel,
/// so that requests arrive a little out of order.
const SEQUENTIAL_SLACK_BYTES: u64 = 1024 * 1024;

/// How many pieces of one read are fetched at a time.
const PIECES_AT_A_TIME: usize = 8;

/// A part of a read.
enum Part {
    Written(Piece),
    Base(Range<u64>),
}

impl File {
    pub(super) async fn read_layers(&self, offset: u64, len: usize) -> Result<Bytes> {
        let (base, parts, range) = {
            let state = self.open.state();
            let base = self.view.base(&state);
            let end = state.size(&base).min(offset.saturating_add(len as u64));
            if offset >= end {
                return Ok(Bytes::new());
            }
            let parts = split(state.overlay.within(offset..end), offset..end);
            (ReadBase { visible: state.visible(&base), base }, parts, offset..end)
        };
        if let [part] = &parts[..] {
            return self.read_part(&base, part).await;
        }
        let reads: Vec<BoxFuture<'_, Result<Bytes>>> =
            parts.iter().map(|part| self.read_part(&base, part).boxed()).collect();
        let pieces: Vec<Bytes> = stream::iter(reads).buffered(PIECES_AT_A_TIME).try_collect().await?;
        let mut out = BytesMut::with_capacity((range.end - range.start) as usize);
        pieces.iter().for_each(|piece| out.extend_from_slice(piece));
        Ok(out.freeze())
    }

    async fn read_part(&self, base: &ReadBase, part: &Part) -> Result<Bytes> {
        match part {
            Part::Written(piece) => read_piece(self.client.stripes(), piece).await,
            Part::Base(range) => self.read_base(base, range.clone()).await,
        }
    }

    /// Bytes of the version underneath, zeros past what is to be seen of it.
    async fn read_base(&self, base: &ReadBase, range: Range<u64>) -> Result<Bytes> {
        let end = range.end.min(base.visible);
        if range.start >= end {
            return Ok(BytesMut::zeroed((range.end - range.start) as usize).freeze());
        }
        let bytes = self.read_version(&base.base, range.start..end).await?;
        if end == range.end {
            return Ok(bytes);
        }
        let mut out = BytesMut::zeroed((range.end - range.start) as usize);
        out[..bytes.len()].copy_from_slice(&bytes);
        Ok(out.freeze())
    }

    async fn read_version(&self, base: &Arc<Base>, range: Range<u64>) -> Result<Bytes> {
        let fetcher = Fetcher { client: self.client.clone(), base: base.clone(), view: Arc::downgrade(&self.view) };
        if let Some(pinned) = self.pinned(base) {
            let source: Arc<dyn ByteSource> = Arc::new(fetcher);
            return pinned.read(&source, range).await;
        }
        let mut window = self.view.window.lock().await;
        window.read(&Arc::new(fetcher), range).await
    }

    /// This version's place in the cache, if there is a cache and it takes files of this size.
    pub(super) fn pinned(&self, base: &Base) -> Option<Arc<Pinned>> {
        let cache = self.client.inner.cache.as_ref()?;
        if base.origin == Origin::Guess {
            return None;
        }
        let key = CacheKey { ino: base.attr.ino, version: base.attr.version };
        self.view.pinned(key, || cache.pin(key, base.attr.size).map(Arc::new))
    }
}

/// The version underneath and how much of it is to be seen.
struct ReadBase {
    base: Arc<Base>,
    visible: u64,
}

/// Written pieces and what lies between them.
fn split(pieces: Vec<Piece>, range: Range<u64>) -> Vec<Part> {
    let mut parts = Vec::with_capacity(2 * pieces.len() + 1);
    let mut at = range.start;
    for piece in pieces {
        if at < piece.range.start {
            parts.push(Part::Base(at..piece.range.start));
        }
        at = piece.range.end;
        parts.push(Part::Written(piece));
    }
    if at < range.end {
        parts.push(Part::Base(at..range.end));
    }
    parts
}

async fn read_piece(stripes: &StripeIo, piece: &Piece) -> Result<Bytes> {
    let len = piece.len() as usize;
    match &piece.source {
        Source::Hole { .. } => Ok(BytesMut::zeroed(len).freeze()),
        Source::Sent { stripe, at } => stripes.read(stripe, *at..*at + len as u32).await,
        Source::Staged { block, at } | Source::Sending { block, at, .. } => {
            let (block, at) = (block.clone(), *at as usize);
            let in_memory = block.is_memory();
            let read = move || {
                let mut out = BytesMut::zeroed(len);
                block.read(at, &mut out)?;
                Ok(out.freeze())
            };
            if in_memory { read() } else { blocking(read).await }
        }
    }
}

/// Fetches bytes of one version; asks metadata again where the shards are when they cannot be had.
#[derive(Clone, Debug)]
struct Fetcher {
    client: Client,
    base: Arc<Base>,
    view: Weak<View>,
}

#[async_trait]
impl ByteSource for Fetcher {
    async fn fetch(&self, range: Range<u64>) -> Result<Bytes> {
        let failed = match self.base.fetch(self.client.stripes(), range.clone()).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        // Shards may have moved since the file was opened, or the version may have been replaced and collected.
        self.client.meta().forget(self.base.attr.ino);
        let Ok((attr, content)) = self.client.meta().open(self.base.attr.ino).await else { return Err(failed) };
        if attr.version != self.base.attr.version {
            let gone = matches!(failed.kind(), Kind::DataLoss | Kind::NotFound);
            return Err(if gone { replaced(&failed) } else { failed });
        }
        let is_elsewhere =
            |stripe: &Stripe| self.base.stripes.get(&stripe.id).is_none_or(|known| known.nodes != stripe.nodes);
        if !content.stripes.iter().any(is_elsewhere) {
            return Err(failed);
        }
        let base = Arc::new(Base::new(attr, content));
        if let Some(view) = self.view.upgrade() {
            view.refresh(base.clone());
        }
        base.fetch(self.client.stripes(), range).await
    }
}

fn replaced(failed: &Error) -> Error {
    let message = format!("this version was replaced and its content collected, open the file again ({failed})");
    Error::new(Kind::Stale, message)
}

/// What a sequential reader without a cache keeps in memory: the run that was fetched last, and the next one on its way.
#[derive(Debug, Default)]
pub(super) struct Window {
    version: u64,
    run: Run,
    ahead: Option<Ahead>,
    bytes: u64,
    /// Where a sequential reader reads next.
    expected: u64,
}

#[derive(Clone, Debug, Default)]
struct Run {
    start: u64,
    data: Bytes,
}

impl Run {
    fn end(&self) -> u64 {
        self.start + self.data.len() as u64
    }

    fn contains(&self, at: u64) -> bool {
        (self.start..self.end()).contains(&at)
    }
}

#[derive(Debug)]
struct Ahead {
    range: Range<u64>,
    task: AbortOnDropHandle<Result<Bytes>>,
}

impl Window {
    async fn read(&mut self, fetcher: &Arc<Fetcher>, range: Range<u64>) -> Result<Bytes> {
        if self.version != fetcher.base.attr.version.0 {
            *self = Window { version: fetcher.base.attr.version.0, ..Window::default() };
        }
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut at = range.start;
        while at < range.end {
            if !self.run.contains(at) {
                self.fetch_run(fetcher, at..range.end).await?;
            }
            let end = range.end.min(self.run.end());
            let skip = (at - self.run.start) as usize;
            pieces.push(self.run.data.slice(skip..skip + (end - at) as usize));
            at = end;
            self.look_ahead(fetcher, at);
        }
        self.expected = range.end;
        Ok(match pieces.len() {
            1 => pieces.swap_remove(0),
            _ => pieces.concat().into(),
        })
    }

    /// Makes `run` one that holds the first byte of `wanted`.
    async fn fetch_run(&mut self, fetcher: &Arc<Fetcher>, wanted: Range<u64>) -> Result<()> {
        let began = Instant::now();
        self.run = self.next_run(fetcher, wanted).await?;
        if let Some(cache) = &fetcher.client.inner.cache {
            cache.passed_by(self.run.data.len() as u64, began.elapsed());
        }
        Ok(())
    }

    async fn next_run(&mut self, fetcher: &Arc<Fetcher>, wanted: Range<u64>) -> Result<Run> {
        if let Some(ahead) = self.ahead.take_if(|ahead| ahead.range.contains(&wanted.start)) {
            let data =
                ahead.task.await.map_err(|error| Error::caused(Kind::Cancelled, "readahead was given up", error))?;
            return Ok(Run { start: ahead.range.start, data: data? });
        }
        self.ahead = None;
        let size = fetcher.base.attr.size;
        let start = wanted.start.min(self.expected);
        let sequential = wanted.start.abs_diff(self.expected) <= SEQUENTIAL_SLACK_BYTES;
        let range = if sequential {
            self.bytes = (self.bytes * 2).clamp(WINDOW_BYTES_MIN, WINDOW_BYTES_MAX);
            start..start.saturating_add(self.bytes).max(wanted.end).min(size)
        } else {
            self.bytes = 0;
            wanted
        };
        Ok(Run { start: range.start, data: fetcher.fetch(range).await? })
    }

    /// Once the reader is well into a run, has the next one fetched.
    fn look_ahead(&mut self, fetcher: &Arc<Fetcher>, at: u64) {
        let size = fetcher.base.attr.size;
        let start = self.run.end();
        let halfway = self.run.start + self.run.data.len() as u64 / 2;
        if self.ahead.is_some() || self.bytes == 0 || start >= size || at < halfway {
            return;
        }
        self.bytes = (self.bytes * 2).min(WINDOW_BYTES_MAX);
        let range = start..start.saturating_add(self.bytes).min(size);
        let (fetcher, fetched) = (fetcher.clone(), range.clone());
        let task = tokio::spawn(async move { fetcher.fetch(fetched).await });
        self.ahead = Some(Ahead { range, task: AbortOnDropHandle::new(task) });
    }
}
