//! Which stripes `get` fetches in which order. Pure: gathers the pieces that are wanted of each stripe, so that a packed
//! stripe is fetched once for all its files.

use super::local::LocalFile;
use crate::error::{Error, Kind, Result};
use crate::ids::StripeId;
use crate::layout::{Extent, Stripe};
use crate::settings::BLOCK_BYTES;
use crate::stripe::StripeRead;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// Wanted bytes that wait for the rest of their stripe to be listed. Past this the oldest stripe no longer waits.
const WAITING_BYTES_MAX: u64 = 64 << 20;

/// Wanted pieces that wait likewise.
const WAITING_PIECES_MAX: usize = 64 * 1024;

/// Two wanted ranges of a shard with less than this between them are one read: it is what a read is rounded to anyway.
const GAP_BYTES_MAX: u32 = BLOCK_BYTES as u32;

/// A piece of a file that is wanted; it lies inside one data shard.
#[derive(Debug)]
pub(super) struct Want {
    /// Which file.
    pub file: Arc<LocalFile>,
    /// Where it goes in the file.
    pub offset: u64,
    range: Range<u32>,
}

/// What is wanted of one stripe.
#[derive(Debug)]
pub(super) struct Group {
    stripe: Arc<Stripe>,
    wants: Vec<Want>,
    /// How many bytes are wanted.
    pub bytes: u64,
}

/// The stripes of which something is wanted, in the order in which they were first seen.
#[derive(Debug, Default)]
pub(super) struct Plan {
    groups: HashMap<StripeId, Group>,
    /// Those first seen first; also some that were taken since.
    order: VecDeque<StripeId>,
    /// Those of which about everything is wanted; also some that were taken since.
    complete: VecDeque<StripeId>,
    bytes: u64,
    pieces: usize,
}

/// The pieces of one extent: where in the file, and which bytes of its stripe, none across two shards.
pub(super) fn pieces(extent: &Extent, stripe: &Stripe) -> Result<Vec<(u64, Range<u32>)>> {
    let end = extent.stripe_offset.checked_add(extent.len).filter(|end| *end <= stripe.shape.data_bytes);
    let (Some(end), Ok(shape)) = (end, stripe.shape.checked()) else {
        return Err(Error::new(Kind::Corrupt, format!("an extent reaches past the end of stripe {}", stripe.id)));
    };
    let mut at = extent.stripe_offset;
    let mut pieces = Vec::new();
    for covered in shape.covering(extent.stripe_offset..end) {
        let len = covered.range.end - covered.range.start;
        pieces.push((extent.offset + u64::from(at - extent.stripe_offset), at..at + len));
        at += len;
    }
    Ok(pieces)
}

impl Plan {
    /// Wants a piece.
    pub fn add(&mut self, stripe: &Arc<Stripe>, file: &Arc<LocalFile>, offset: u64, range: Range<u32>) {
        let group = self.groups.entry(stripe.id).or_insert_with(|| {
            self.order.push_back(stripe.id);
            Group { stripe: Arc::clone(stripe), wants: Vec::new(), bytes: 0 }
        });
        let bytes = u64::from(range.end - range.start);
        let before = group.is_complete();
        group.bytes += bytes;
        if !before && group.is_complete() {
            self.complete.push_back(stripe.id);
        }
        self.bytes += bytes;
        self.pieces += 1;
        group.wants.push(Want { file: Arc::clone(file), offset, range });
    }

    /// Whether enough waits that nothing more should be listed.
    pub fn is_full(&self) -> bool {
        self.bytes >= WAITING_BYTES_MAX || self.pieces >= WAITING_PIECES_MAX
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The next stripe to fetch: one that is complete, else the oldest if it should wait no longer.
    pub fn take(&mut self, hurry: Hurry) -> Option<Group> {
        let complete = next(&mut self.complete, &mut self.groups);
        let group = match complete {
            None if hurry == Hurry::Yes || self.is_full() => next(&mut self.order, &mut self.groups),
            complete => complete,
        }?;
        self.bytes -= group.bytes;
        self.pieces -= group.wants.len();
        Some(group)
    }
}

fn next(order: &mut VecDeque<StripeId>, groups: &mut HashMap<StripeId, Group>) -> Option<Group> {
    std::iter::from_fn(|| order.pop_front()).find_map(|stripe| groups.remove(&stripe))
}

/// Whether a stripe should be fetched although more of it may yet be wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hurry {
    /// Yes.
    Yes,
    /// It can wait.
    No,
}

impl Group {
    /// Whether about everything of the stripe is wanted; the rest is padding, or files that are not copied.
    fn is_complete(&self) -> bool {
        self.bytes >= u64::from(self.stripe.shape.data_bytes) / 16 * 15
    }

    /// The reads that fetch the group, each inside one data shard, and for each the wants that it answers, with where
    /// they lie in its bytes.
    pub fn into_reads(mut self) -> Vec<(StripeRead, Vec<(Want, Range<usize>)>)> {
        self.wants.sort_unstable_by_key(|want| want.range.start);
        let shard_bytes = self.stripe.shape.shard_bytes;
        let mut reads: Vec<(StripeRead, Vec<(Want, Range<usize>)>)> = Vec::new();
        for want in self.wants {
            let joins = reads.last().is_some_and(|(read, _)| {
                read.range.start / shard_bytes == want.range.start / shard_bytes
                    && want.range.start <= read.range.end.saturating_add(GAP_BYTES_MAX)
            });
            if !joins {
                reads.push((StripeRead { stripe: Arc::clone(&self.stripe), range: want.range.clone() }, Vec::new()));
            }
            if let Some((read, wants)) = reads.last_mut() {
                read.range.end = read.range.end.max(want.range.end);
                let start = (want.range.start - read.range.start) as usize;
                let len = want.range.len();
                wants.push((want, start..start + len));
            }
        }
        reads
    }
}
