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
use futures::stream::{FuturesUnordered, Stream, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::iter::Enumerate;
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
const PATIENCE_MIN: Duration = Duration::from_millis(100);
/// For a node that was late again and again: long enough to find out that it is well again.
const PATIENCE_WITH_THE_LATE: Duration = Duration::from_millis(20);

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
        let mut answers: Vec<(usize, Result<Bytes>)> = self.read_each(reads).collect().await;
        answers.sort_unstable_by_key(|(read, _)| *read);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    /// As [`StripeIo::read_many`], each answer with the number of its read as soon as its nodes have answered.
    pub fn read_each(&self, reads: Vec<StripeRead>) -> impl Stream<Item = (usize, Result<Bytes>)> + Send + '_ {
        let many = Many::new(self, reads);
        futures::stream::unfold(many, |mut many| async move { many.next().await.map(|answer| (answer, many)) })
    }

    async fn one_of_many(&self, read: StripeRead, pieces: Option<Vec<Bytes>>) -> Result<Bytes> {
        check_range(&read.stripe, &read.range)?;
        match pieces {
            Some(pieces) => join(pieces).await,
            None => self.read(&read.stripe, read.range.clone()).await,
        }
    }

    /// What of the request arrived, undamaged. The rest is left to [`StripeIo::read`], which sees the reason again.
    async fn get_many(&self, node: NodeId, request: Request) -> Vec<Got> {
        let began = Instant::now();
        let reads = request.reads.clone();
        let patience = match self.shared.latencies.patience(node, request.bytes) {
            Duration::ZERO => PATIENCE_WITH_THE_LATE,
            usual => (usual * PATIENCE_FACTOR).max(PATIENCE_MIN),
        };
        let answers = ask(&self.shared.stores, node, |store| async move { store.get_many(reads).await });
        let answers = match tokio::time::timeout(patience, answers).await {
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

/// What came of a place, from where in it on.
type Got = (Place, u32, Bytes);

/// Reads under way.
struct Many<'a> {
    io: &'a StripeIo,
    reads: Vec<StripeRead>,
    /// The requests to make; each with its number.
    requests: Enumerate<std::vec::IntoIter<(NodeId, Request)>>,
    in_flight: FuturesUnordered<BoxFuture<'a, (usize, Vec<Got>)>>,
    /// By request: the reads that wait for it.
    waiting: Vec<Vec<usize>>,
    /// By read: the requests that it waits for.
    missing: Vec<usize>,
    arrived: Arrived,
    /// Reads that wait for no request any more.
    ready: VecDeque<usize>,
    finishing: FuturesUnordered<BoxFuture<'a, (usize, Result<Bytes>)>>,
}

impl<'a> Many<'a> {
    fn new(io: &'a StripeIo, reads: Vec<StripeRead>) -> Self {
        let requests = plan(&reads);
        let by_shard = by_shard(&requests);
        let mut waiting = vec![Vec::new(); requests.len()];
        let mut missing = vec![0; reads.len()];
        for (number, read) in reads.iter().enumerate() {
            for request in awaited(&by_shard, read) {
                waiting[request].push(number);
                missing[number] += 1;
            }
        }
        let ready = (0..reads.len()).filter(|&read| missing[read] == 0).collect();
        let (in_flight, finishing) = (FuturesUnordered::new(), FuturesUnordered::new());
        let requests = requests.into_iter().enumerate();
        Many { io, reads, requests, in_flight, waiting, missing, arrived: Arrived::new(), ready, finishing }
    }

    async fn next(&mut self) -> Option<(usize, Result<Bytes>)> {
        loop {
            self.start();
            tokio::select! {
                Some(answer) = self.finishing.next() => return Some(answer),
                Some((request, arrived)) = self.in_flight.next() => self.note(request, arrived),
                else => return None,
            }
        }
    }

    fn start(&mut self) {
        while self.in_flight.len() < REQUESTS_IN_FLIGHT
            && let Some((number, (node, request))) = self.requests.next()
        {
            let io = self.io;
            self.in_flight.push(async move { (number, io.get_many(node, request).await) }.boxed());
        }
        while self.finishing.len() < RETRIES_IN_FLIGHT
            && let Some(number) = self.ready.pop_front()
        {
            let (io, read) = (self.io, self.reads[number].clone());
            let pieces: Option<Vec<Bytes>> = match check_range(&read.stripe, &read.range) {
                Ok(()) => pieces_of(&read).map(|(place, range)| find(&self.arrived, place?, &range)).collect(),
                Err(_) => None,
            };
            self.finishing.push(async move { (number, io.one_of_many(read, pieces).await) }.boxed());
        }
    }

    fn note(&mut self, request: usize, arrived: Vec<Got>) {
        for (place, start, bytes) in arrived {
            let parts = self.arrived.entry(place).or_default();
            parts.insert(parts.partition_point(|(other, _)| *other < start), (start, bytes));
        }
        for read in std::mem::take(&mut self.waiting[request]) {
            self.missing[read] -= 1;
            if self.missing[read] == 0 {
                self.ready.push_back(read);
            }
        }
    }
}

/// By shard: where the ranges that are asked for begin, and in which request.
type Asked = BTreeMap<Place, Vec<(u32, usize)>>;

fn by_shard(requests: &[(NodeId, Request)]) -> Asked {
    let mut asked = Asked::new();
    for (number, (node, request)) in requests.iter().enumerate() {
        for read in &request.reads {
            asked.entry((*node, read.shard)).or_default().push((read.range.start, number));
        }
    }
    asked.values_mut().for_each(|ranges| ranges.sort_unstable());
    asked
}

/// The requests that bring the pieces of a read, which is a range that its stripe has; once each.
fn awaited(asked: &Asked, read: &StripeRead) -> BTreeSet<usize> {
    if check_range(&read.stripe, &read.range).is_err() {
        return BTreeSet::new();
    }
    let request_of = |(place, range): (Option<Place>, Range<u32>)| {
        let ranges = asked.get(&place?)?;
        let after = ranges.partition_point(|(start, _)| *start <= range.start);
        Some(ranges.get(after.checked_sub(1)?)?.1)
    };
    pieces_of(read).filter_map(request_of).collect()
}

fn keep_good(node: NodeId, reads: Vec<ShardRead>, answers: Vec<Result<ShardBlocks>>) -> Vec<Got> {
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
