//! Reading many ranges with few requests: one `get_many` per node and few MiB, as prefetch and `get -r` of small files want.
//!
//! It only knows the good case. Whatever does not arrive in time and undamaged is read again by [`StripeIo::read`], which
//! knows the others. Bytes in flight are bounded; what has arrived is the caller's to bound, by how much it asks for.

use super::fetch::{check_range, checked, join};
use super::{StripeIo, StripeRead, ask, offload};
use crate::error::Result;
use crate::ids::{NodeId, ShardId};
use crate::layout::widen_to_blocks;
use crate::settings::{GET_MANY_MAX, SHARD_BYTES_MAX};
use crate::shard::{ShardBlocks, ShardRead};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::StreamExt;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes asked for in one request: as much as one shard, so that no request is much slower than others.
const REQUEST_BYTES_MAX: u32 = SHARD_BYTES_MAX as u32;
/// Requests under way at once: 64 MiB at most.
const REQUESTS_IN_FLIGHT: usize = 16;
/// Reads that failed and are read one by one at once.
const RETRIES_IN_FLIGHT: usize = 16;
/// A request of many reads seeks more than one of the same size: it is given so much more time before it counts as late.
const PATIENCE_FACTOR: u32 = 4;
const PATIENCE_MIN: Duration = Duration::from_millis(250);

/// Where a shard's bytes are: a shard of one node.
type Place = (NodeId, ShardId);

/// What arrived, by place, sorted by offset.
type Arrived = BTreeMap<Place, Vec<(u32, Bytes)>>;

/// One `get_many`.
#[derive(Debug, Default)]
struct Request {
    reads: Vec<ShardRead>,
    bytes: u32,
}

impl StripeIo {
    /// Reads many ranges with one `get_many` per node, falling back to [`StripeIo::read`] for those that fail. The answers
    /// are in the order of the reads.
    pub async fn read_many(&self, reads: Vec<StripeRead>) -> Vec<Result<Bytes>> {
        let requests = plan(&reads);
        let answers = requests.into_iter().map(|(node, request)| Box::pin(self.get_many(node, request)));
        let mut in_flight = futures::stream::iter(answers).buffer_unordered(REQUESTS_IN_FLIGHT);
        let mut arrived = Arrived::new();
        while let Some(answers) = in_flight.next().await {
            for (place, start, bytes) in answers {
                arrived.entry(place).or_default().push((start, bytes));
            }
        }
        drop(in_flight);
        arrived.values_mut().for_each(|parts| parts.sort_by_key(|(start, _)| *start));
        let arrived = &arrived;
        // Boxed with their type said: an unnamed closure type in here would keep callers from spawning this future.
        let results: Vec<BoxFuture<'_, Result<Bytes>>> =
            reads.iter().map(|read| self.one_of_many(read, arrived).boxed()).collect();
        futures::stream::iter(results).buffered(RETRIES_IN_FLIGHT).collect().await
    }

    async fn one_of_many(&self, read: &StripeRead, arrived: &Arrived) -> Result<Bytes> {
        check_range(&read.stripe, &read.range)?;
        let pieces: Option<Vec<Bytes>> = pieces_of(read).map(|(place, range)| find(arrived, place?, &range)).collect();
        match pieces {
            Some(pieces) => join(pieces).await,
            None => self.read(&read.stripe, read.range.clone()).await,
        }
    }

    /// What of the request arrived, undamaged. The rest is left to [`StripeIo::read`], which sees the reason again.
    async fn get_many(&self, node: NodeId, request: Request) -> Vec<(Place, u32, Bytes)> {
        let began = Instant::now();
        let reads = request.reads.clone();
        let patience = self.shared.latencies.patience(node, request.bytes) * PATIENCE_FACTOR;
        let answers = ask(&self.shared.stores, node, |store| async move { store.get_many(reads).await });
        let answers = match tokio::time::timeout(patience.max(PATIENCE_MIN), answers).await {
            Ok(Ok(answers)) if answers.len() == request.reads.len() => answers,
            Ok(Ok(answers)) => {
                tracing::warn!(%node, asked = request.reads.len(), answered = answers.len(), "answers are missing");
                return Vec::new();
            }
            Ok(Err(error)) => {
                tracing::debug!(%node, %error, "reading many shards failed; reading them one by one");
                return Vec::new();
            }
            Err(_) => {
                self.shared.latencies.overtaken(node, request.bytes, began.elapsed());
                return Vec::new();
            }
        };
        self.shared.latencies.answered(node, request.bytes, began.elapsed());
        let bytes = request.bytes as usize;
        offload(bytes, move || keep_good(node, request.reads, answers)).await.unwrap_or_default()
    }
}

fn keep_good(node: NodeId, reads: Vec<ShardRead>, answers: Vec<Result<ShardBlocks>>) -> Vec<(Place, u32, Bytes)> {
    let good = reads.into_iter().zip(answers).filter_map(|(read, answer)| {
        let bytes = answer.and_then(|blocks| checked(&read.range, blocks)).ok()?;
        Some(((node, read.shard), read.range.start, bytes))
    });
    good.collect()
}

/// The shard ranges that a read consists of; no place if the shard was not stored.
fn pieces_of(read: &StripeRead) -> impl Iterator<Item = (Option<Place>, Range<u32>)> + '_ {
    let stripe = &read.stripe;
    stripe.shape.covering(read.range.clone()).into_iter().map(|piece| {
        let index = usize::from(piece.index);
        (stripe.nodes[index].map(|node| (node, stripe.shard(index))), piece.range)
    })
}

fn find(arrived: &Arrived, place: Place, range: &Range<u32>) -> Option<Bytes> {
    let parts = arrived.get(&place)?;
    let after = parts.partition_point(|(start, _)| *start <= range.start);
    let (start, bytes) = parts.get(after.checked_sub(1)?)?;
    let (from, to) = ((range.start - start) as usize, (range.end - start) as usize);
    (to <= bytes.len()).then(|| bytes.slice(from..to))
}

/// The requests to make: whole blocks, neighbours and overlaps of a shard merged, no request too large, and requests of
/// different nodes taking turns.
fn plan(reads: &[StripeRead]) -> Vec<(NodeId, Request)> {
    let mut blocks: BTreeMap<Place, Vec<Range<u32>>> = BTreeMap::new();
    for read in reads.iter().filter(|read| check_range(&read.stripe, &read.range).is_ok()) {
        for (place, range) in pieces_of(read) {
            let Some((node, shard)) = place else { continue };
            let len = read.stripe.shape.shard_len(shard.index.into()) as u32;
            blocks.entry((node, shard)).or_default().push(widen_to_blocks(&range, len));
        }
    }
    let mut by_node: BTreeMap<NodeId, Vec<Request>> = BTreeMap::new();
    for ((node, shard), ranges) in blocks {
        let requests = by_node.entry(node).or_default();
        for range in merged(ranges) {
            add(requests, ShardRead { shard, range });
        }
    }
    take_turns(by_node)
}

fn merged(mut ranges: Vec<Range<u32>>) -> Vec<Range<u32>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u32>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn add(requests: &mut Vec<Request>, read: ShardRead) {
    let bytes = read.range.len() as u32;
    let has_room =
        |request: &&mut Request| request.reads.len() < GET_MANY_MAX && request.bytes + bytes <= REQUEST_BYTES_MAX;
    match requests.last_mut().filter(has_room) {
        Some(request) => {
            request.reads.push(read);
            request.bytes += bytes;
        }
        None => requests.push(Request { reads: vec![read], bytes }),
    }
}

fn take_turns(by_node: BTreeMap<NodeId, Vec<Request>>) -> Vec<(NodeId, Request)> {
    let numbered = by_node.into_iter().flat_map(|(node, requests)| {
        requests.into_iter().enumerate().map(move |(turn, request)| (turn, node, request))
    });
    let mut all: Vec<(usize, NodeId, Request)> = numbered.collect();
    all.sort_by_key(|&(turn, node, _)| (turn, node));
    all.into_iter().map(|(_, node, request)| (node, request)).collect()
}
