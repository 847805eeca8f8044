//! Reading one range of a stripe: exactly the data shards that cover it; others only for what is missing, damaged or slow.
//!
//! A shard that does not deliver is replaced by the same bytes of other shards, from which the missing ones are restored.
//! A shard that is merely late (see [`latency`](super::latency)) is replaced too, and whichever is there first wins.
//! Every answer is checked against the writer's checksums; one with other bytes than were asked for counts as damaged.
//!
//! # Too few shards
//! - `DataLoss`: every holder answered, and fewer than k shards are good.
//! - `Stale`: not one good or damaged copy was seen, and either more than m holders, or all, say that they never heard of
//!   the shard: the stripe was deleted. Open the file again.
//! - `Unavailable`: anything else. A node that does not answer may have what is missing.

use super::{INLINE_BYTES_MAX, STRIPE_DEADLINE, Shared, StripeIo, ask, offload};
use crate::checksum::verify_blocks;
use crate::erasure;
use crate::error::{Error, Kind, Result};
use crate::ids::{NodeId, ShardId};
use crate::layout::{ShardRange, Stripe, StripeShape, widen_to_blocks};
use crate::shard::{ShardBlocks, ShardRead};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use std::ops::Range;
use std::sync::Arc;
use tokio::time::Instant;

impl StripeIo {
    /// Reads a byte range of a stripe: its data shards first; parity for what is missing, damaged or slow.
    ///
    /// # Errors
    /// `Unavailable` if fewer than k shards can be had now, `DataLoss` if every node answered and still fewer than k are
    /// good, `Stale` if the stripe is gone, `InvalidInput` for a range that the stripe does not have.
    pub async fn read(&self, stripe: &Arc<Stripe>, range: Range<u32>) -> Result<Bytes> {
        check_range(stripe, &range)?;
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        Box::pin(Fetch::new(&self.shared, stripe, range).run()).await
    }
}

/// What a record from the wire and a range must obey before anything is computed with them.
pub(super) fn check_range(stripe: &Stripe, range: &Range<u32>) -> Result<()> {
    let shape = stripe.shape.checked()?;
    if stripe.nodes.len() != shape.profile.shards() {
        let message = format!("stripe {} names {} nodes for {}", stripe.id, stripe.nodes.len(), shape.profile);
        return Err(Error::new(Kind::InvalidInput, message));
    }
    if range.start > range.end || range.end > shape.data_bytes {
        let message = format!("range {range:?} of stripe {} of {} bytes", stripe.id, shape.data_bytes);
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(())
}

/// Checks that an answer is exactly the blocks `range` of the shard, and undamaged.
pub(super) fn checked(range: &Range<u32>, blocks: ShardBlocks) -> Result<Bytes> {
    let (offset, len) = (blocks.offset, blocks.data.len());
    if offset != range.start || len != range.len() {
        let message = format!("{len} bytes at {offset} came for bytes {range:?}");
        return Err(Error::new(Kind::Corrupt, message));
    }
    verify_blocks(&blocks.data, &blocks.checksums)?;
    Ok(blocks.data.0)
}

/// Whether this failure says that the copy is bad, rather than that it cannot be reached. A range past the end of what a
/// node has means that its copy is too short.
fn is_damage(kind: Kind) -> bool {
    matches!(kind, Kind::Corrupt | Kind::InvalidInput)
}

/// Good bytes of one shard.
#[derive(Clone, Debug)]
struct Held {
    start: u32,
    bytes: Bytes,
}

impl Held {
    fn covers(&self, range: &Range<u32>) -> bool {
        self.start <= range.start && range.end as usize <= self.start as usize + self.bytes.len()
    }

    fn slice(&self, range: &Range<u32>) -> Bytes {
        self.bytes.slice((range.start - self.start) as usize..(range.end - self.start) as usize)
    }
}

/// A request under way.
#[derive(Clone, Debug)]
struct Asked {
    range: Range<u32>,
    at: Instant,
    late_at: Instant,
    is_late: bool,
}

/// What is known of one of the k+m shards.
#[derive(Debug, Default)]
struct Shard {
    held: Vec<Held>,
    asked: Vec<Asked>,
    failure: Option<Error>,
}

struct Answer {
    index: usize,
    range: Range<u32>,
    result: Result<Bytes>,
}

/// One read under way.
struct Fetch<'a> {
    shared: &'a Shared,
    stripe: &'a Arc<Stripe>,
    shape: StripeShape,
    wanted: Vec<ShardRange>,
    shards: Vec<Shard>,
    requests: FuturesUnordered<BoxFuture<'a, Answer>>,
}

impl<'a> Fetch<'a> {
    fn new(shared: &'a Shared, stripe: &'a Arc<Stripe>, range: Range<u32>) -> Self {
        let shape = stripe.shape;
        let shards = std::iter::repeat_with(Shard::default).take(shape.profile.shards()).collect();
        let requests = FuturesUnordered::new();
        Fetch { shared, stripe, shape, wanted: shape.covering(range), shards, requests }
    }

    async fn run(mut self) -> Result<Bytes> {
        let deadline = Instant::now() + STRIPE_DEADLINE;
        for piece in self.wanted.clone() {
            let index = usize::from(piece.index);
            self.request(index, widen_to_blocks(&piece.range, self.shape.shard_len(index) as u32));
        }
        self.ask_for_help();
        loop {
            if self.can_finish() {
                self.report();
                return self.finish().await;
            }
            let late_at = self.next_late().unwrap_or(deadline);
            tokio::select! {
                biased;
                answer = self.requests.next() => match answer {
                    Some(answer) => self.note(answer),
                    None => return Err(self.give_up()),
                },
                () = tokio::time::sleep_until(deadline) => return Err(self.give_up()),
                () = tokio::time::sleep_until(late_at) => self.note_late(),
            }
            self.ask_for_help();
        }
    }

    /// Asks the shard's node for `range` of it, unless there is no such node.
    fn request(&mut self, index: usize, range: Range<u32>) {
        let Some(node) = self.stripe.nodes[index] else {
            self.shards[index].failure = Some(Error::new(Kind::NotFound, "was not stored"));
            return;
        };
        let at = Instant::now();
        let late_at = at + self.shared.latencies.patience(node, range.len() as u32);
        self.shards[index].asked.push(Asked { range: range.clone(), at, late_at, is_late: false });
        let shard = self.stripe.shard(index);
        self.requests.push(Box::pin(self.answer(index, node, shard, range)));
    }

    fn answer(
        &self,
        index: usize,
        node: NodeId,
        shard: ShardId,
        range: Range<u32>,
    ) -> impl Future<Output = Answer> + Send + use<'a> {
        let shared = self.shared;
        async move {
            let read = ShardRead { shard, range: range.clone() };
            let answer = ask(&shared.stores, node, |store| async move { store.get(read).await }).await;
            let expected = range.clone();
            let result = match answer {
                Ok(blocks) => offload(expected.len(), move || checked(&expected, blocks)).await.and_then(|good| good),
                Err(error) => Err(error),
            };
            Answer { index, range, result }
        }
    }

    fn note(&mut self, answer: Answer) {
        let shard = &mut self.shards[answer.index];
        let asked = shard.asked.iter().position(|asked| asked.range == answer.range);
        let asked = asked.map(|at| shard.asked.swap_remove(at));
        match answer.result {
            Ok(bytes) => {
                if let (Some(asked), Some(node)) = (asked, self.stripe.nodes[answer.index]) {
                    self.shared.latencies.answered(node, answer.range.len() as u32, asked.at.elapsed());
                }
                shard.held.push(Held { start: answer.range.start, bytes });
            }
            Err(error) => shard.failure = Some(error),
        }
    }

    fn next_late(&self) -> Option<Instant> {
        let asked = self.shards.iter().flat_map(|shard| &shard.asked);
        asked.filter(|asked| !asked.is_late).map(|asked| asked.late_at).min()
    }

    fn note_late(&mut self) {
        let now = Instant::now();
        for asked in self.shards.iter_mut().flat_map(|shard| &mut shard.asked) {
            asked.is_late |= asked.late_at <= now;
        }
    }

    /// The bytes `range` of a shard that exist: beyond them it is zeros.
    fn existing(&self, index: usize, range: &Range<u32>) -> Range<u32> {
        let len = self.shape.shard_len(index) as u32;
        range.start.min(len)..range.end.min(len)
    }

    fn good(&self, index: usize, range: &Range<u32>) -> Option<Bytes> {
        let range = self.existing(index, range);
        if range.is_empty() {
            return Some(Bytes::new());
        }
        self.shards[index].held.iter().find(|held| held.covers(&range)).map(|held| held.slice(&range))
    }

    fn has(&self, index: usize, range: &Range<u32>) -> bool {
        let range = self.existing(index, range);
        range.is_empty() || self.shards[index].held.iter().any(|held| held.covers(&range))
    }

    /// Whether a request is under way, and in time, that will bring `range` of the shard.
    fn is_coming(&self, index: usize, range: &Range<u32>) -> bool {
        let range = self.existing(index, range);
        let brings = |asked: &Asked| asked.range.start <= range.start && range.end <= asked.range.end;
        self.shards[index].asked.iter().any(|asked| !asked.is_late && brings(asked))
    }

    fn has_late_request(&self, index: usize) -> bool {
        self.shards[index].asked.iter().any(|asked| asked.is_late)
    }

    fn is_missing(&self, piece: &ShardRange) -> bool {
        !self.has(piece.index.into(), &piece.range)
    }

    /// The blocks that have to be had of k shards to restore these pieces.
    fn blocks_around<'p>(&self, pieces: impl Iterator<Item = &'p ShardRange>) -> Option<Range<u32>> {
        let hull = pieces.map(|piece| piece.range.clone()).reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))?;
        Some(widen_to_blocks(&hull, self.shape.shard_bytes))
    }

    /// Requests as many further shards as are needed to restore what failed or is late.
    fn ask_for_help(&mut self) {
        let lost = self.wanted.iter().filter(|piece| {
            let index = usize::from(piece.index);
            self.is_missing(piece) && !self.is_coming(index, &piece.range)
        });
        let Some(range) = self.blocks_around(lost) else { return };
        let count = self.shards.len();
        let expected = (0..count).filter(|&index| self.has(index, &range) || self.is_coming(index, &range)).count();
        let mut needed = usize::from(self.shape.profile.data).saturating_sub(expected);
        for index in self.order_of_help() {
            if needed == 0 {
                return;
            }
            let is_of_use = self.shards[index].failure.is_none() && !self.has_late_request(index);
            if !is_of_use || self.has(index, &range) || self.is_coming(index, &range) {
                continue;
            }
            let existing = self.existing(index, &range);
            self.request(index, existing);
            if self.shards[index].failure.is_none() {
                needed -= 1;
            }
        }
    }

    /// Shards that this read asks anyway, then parity, whose nodes are otherwise idle, then the rest.
    fn order_of_help(&self) -> Vec<usize> {
        let data = usize::from(self.shape.profile.data);
        let is_wanted = |index: &usize| self.wanted.iter().any(|piece| usize::from(piece.index) == *index);
        let wanted = (0..data).filter(is_wanted);
        let rest = (0..data).filter(|index| !is_wanted(index));
        wanted.chain(data..self.shards.len()).chain(rest).collect()
    }

    /// The blocks from which the missing pieces can be restored; `None` if nothing is missing.
    fn range_to_restore(&self) -> Option<Range<u32>> {
        self.blocks_around(self.wanted.iter().filter(|piece| self.is_missing(piece)))
    }

    fn can_finish(&self) -> bool {
        match self.range_to_restore() {
            None => true,
            Some(range) => {
                let good = (0..self.shards.len()).filter(|&index| self.has(index, &range)).count();
                good >= usize::from(self.shape.profile.data)
            }
        }
    }

    async fn finish(mut self) -> Result<Bytes> {
        self.note_overtaken();
        if let Some(range) = self.range_to_restore() {
            self.restore(range).await?;
        }
        let pieces: Vec<Bytes> =
            self.wanted.iter().filter_map(|piece| self.good(piece.index.into(), &piece.range)).collect();
        join(pieces).await
    }

    /// Computes the missing pieces' blocks from those of the other shards.
    async fn restore(&mut self, range: Range<u32>) -> Result<()> {
        let lost: Vec<usize> =
            self.wanted.iter().filter(|piece| self.is_missing(piece)).map(|piece| piece.index.into()).collect();
        let shards: Vec<Option<Bytes>> = (0..self.shards.len()).map(|index| self.good(index, &range)).collect();
        let (profile, wanted, len) = (self.shape.profile, lost.clone(), range.len());
        let restored = offload(len * (shards.len() + lost.len()), move || {
            let slices: Vec<Option<&[u8]>> = shards.iter().map(|shard| shard.as_deref()).collect();
            erasure::code(profile)?.reconstruct(&slices, len, &wanted)
        });
        for (index, bytes) in lost.into_iter().zip(restored.await??) {
            self.shards[index].held.push(Held { start: range.start, bytes: bytes.into() });
        }
        Ok(())
    }

    /// Lets the latencies know of requests that are dropped because others were faster.
    fn note_overtaken(&self) {
        for (index, shard) in self.shards.iter().enumerate() {
            let Some(node) = self.stripe.nodes[index] else { continue };
            for asked in shard.asked.iter().filter(|asked| asked.is_late) {
                self.shared.latencies.overtaken(node, asked.range.len() as u32, asked.at.elapsed());
            }
        }
    }

    /// Reports the shards that were found damaged or gone. Those that were never stored are known already.
    fn report(&self) {
        let is_bad = |kind: Kind| is_damage(kind) || kind == Kind::NotFound;
        let bad = |index: &usize| {
            self.stripe.nodes[*index].is_some()
                && self.shards[*index].failure.as_ref().is_some_and(|error| is_bad(error.kind()))
        };
        let shards: Vec<ShardId> = (0..self.shards.len()).filter(bad).map(|index| self.stripe.shard(index)).collect();
        self.shared.reporter.report(&shards);
    }

    /// Nothing more can come in time: says what that means.
    fn give_up(&self) -> Error {
        let kind = self.kind_of_failure();
        if kind != Kind::Stale {
            self.report();
        }
        let reasons: Vec<String> = (0..self.shards.len()).filter_map(|index| self.reason(index)).collect();
        let profile = self.shape.profile;
        let meaning = match kind {
            Kind::DataLoss => "cannot be restored",
            Kind::Stale => "was deleted; open the file again",
            _ => "cannot be read now",
        };
        Error::new(kind, format!("stripe {} ({profile}) {meaning}: {}", self.stripe.id, reasons.join("; ")))
    }

    fn reason(&self, index: usize) -> Option<String> {
        let shard = &self.shards[index];
        let why = match &shard.failure {
            Some(error) => error.to_string(),
            None if !shard.asked.is_empty() => "no answer yet".to_owned(),
            None => return None,
        };
        let node = self.stripe.nodes[index].map_or(String::new(), |node| format!(" on node {node}"));
        Some(format!("shard {index}{node}: {why}"))
    }

    fn kind_of_failure(&self) -> Kind {
        let (mut gone, mut damaged, mut good, mut unknown) = (0, 0, 0, 0);
        for index in self.shape.stored_shards().filter(|&index| self.stripe.nodes[index].is_some()) {
            let shard = &self.shards[index];
            match shard.failure.as_ref().map(Error::kind) {
                Some(Kind::NotFound) => gone += 1,
                Some(kind) if is_damage(kind) => damaged += 1,
                None if !shard.held.is_empty() => good += 1,
                _ => unknown += 1,
            }
        }
        let most_may_be_lost = usize::from(self.shape.profile.parity);
        if good + damaged == 0 && (gone > most_may_be_lost || (gone > 0 && unknown == 0)) {
            Kind::Stale
        } else if unknown == 0 {
            Kind::DataLoss
        } else {
            Kind::Unavailable
        }
    }
}

/// Pieces one after the other; a single one is not copied.
pub(super) async fn join(mut pieces: Vec<Bytes>) -> Result<Bytes> {
    if pieces.len() == 1 {
        return Ok(pieces.swap_remove(0));
    }
    let len = pieces.iter().map(Bytes::len).sum();
    let copy = move || {
        let mut joined = BytesMut::with_capacity(len);
        pieces.iter().for_each(|piece| joined.extend_from_slice(piece));
        joined.freeze()
    };
    if len <= INLINE_BYTES_MAX { Ok(copy()) } else { offload(len, copy).await }
}
