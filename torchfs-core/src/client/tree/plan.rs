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

/// A read inside one data shard, and the wants that it answers with where they lie in its bytes.
#[derive(Debug)]
pub(super) struct GroupRead {
    /// What to read.
    pub read: StripeRead,
    /// What it answers.
    pub wants: Vec<(Want, Range<usize>)>,
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

    /// The reads that fetch the group.
    pub fn into_reads(mut self) -> Vec<GroupRead> {
        self.wants.sort_unstable_by_key(|want| want.range.start);
        let shard_bytes = self.stripe.shape.shard_bytes;
        let mut reads: Vec<GroupRead> = Vec::new();
        for want in self.wants {
            let joins = reads.last().is_some_and(|GroupRead { read, .. }| {
                read.range.start / shard_bytes == want.range.start / shard_bytes
                    && want.range.start <= read.range.end.saturating_add(GAP_BYTES_MAX)
            });
            if !joins {
                let read = StripeRead { stripe: Arc::clone(&self.stripe), range: want.range.clone() };
                reads.push(GroupRead { read, wants: Vec::new() });
            }
            if let Some(GroupRead { read, wants }) = reads.last_mut() {
                read.range.end = read.range.end.max(want.range.end);
                let start = (want.range.start - read.range.start) as usize;
                let len = want.range.len();
                wants.push((want, start..start + len));
            }
        }
        reads
    }
}

#[cfg(test)]
mod tests {
    use super::super::local::Looks;
    use super::super::rig_test;
    use super::*;
    use crate::layout::{Profile, StripeShape};
    use crate::meta::FileKind;
    use proptest::prelude::*;

    fn stripe(number: u64, data_bytes: u32, shard_bytes: u32) -> Arc<Stripe> {
        let shape = StripeShape { profile: Profile::DEFAULT, data_bytes, shard_bytes };
        Arc::new(Stripe { id: StripeId(number), shape, nodes: Vec::new() })
    }

    fn file() -> Arc<LocalFile> {
        let attr = rig_test::attr(2, FileKind::File);
        Arc::new(LocalFile::new("never made".into(), Looks { attr, xattrs: Vec::new() }, 1))
    }

    fn taken(plan: &mut Plan, hurry: Hurry) -> Option<u64> {
        plan.take(hurry).map(|group| group.stripe.id.0)
    }

    #[test]
    fn a_stripe_waits_for_the_rest_of_its_files_unless_there_is_hurry() {
        let (mut plan, file) = (Plan::default(), file());
        let (first, second) = (stripe(1, 1000, 1000), stripe(2, 1000, 1000));
        plan.add(&first, &file, 0, 0..400);
        plan.add(&second, &file, 0, 0..500);
        assert_eq!(taken(&mut plan, Hurry::No), None);
        plan.add(&second, &file, 0, 500..1000);
        assert_eq!(taken(&mut plan, Hurry::No), Some(2), "complete");
        assert_eq!(taken(&mut plan, Hurry::No), None);
        assert_eq!(taken(&mut plan, Hurry::Yes), Some(1));
        assert_eq!(taken(&mut plan, Hurry::Yes), None);
        assert!(plan.is_empty());
        plan.add(&first, &file, 0, 400..1000);
        assert_eq!(taken(&mut plan, Hurry::Yes), Some(1), "more of it was listed later");
    }

    #[test]
    fn when_too_much_waits_the_oldest_goes_first() {
        let (mut plan, file) = (Plan::default(), file());
        for number in 0..9 {
            plan.add(&stripe(number, 16 << 20, 4 << 20), &file, 0, 0..8 << 20);
        }
        assert!(plan.is_full());
        assert_eq!(taken(&mut plan, Hurry::No), Some(0));
        assert_eq!(taken(&mut plan, Hurry::No), Some(1));
        assert!(!plan.is_full());
        assert_eq!(taken(&mut plan, Hurry::No), None);
    }

    #[test]
    fn an_extent_past_its_stripe_is_refused() {
        let extent = Extent { offset: 0, len: 10, stripe: StripeId(1), stripe_offset: 95 };
        assert_eq!(pieces(&extent, &stripe(1, 100, 100)).expect_err("too long").kind(), Kind::Corrupt);
        let extent = Extent { stripe_offset: u32::MAX, ..extent };
        assert_eq!(pieces(&extent, &stripe(1, 100, 100)).expect_err("overflows").kind(), Kind::Corrupt);
    }

    proptest! {
        /// Whatever is wanted, in whatever order: every want gets its own bytes, and no read crosses a shard.
        #[test]
        fn every_want_is_answered_with_its_bytes(extents in prop::collection::vec((0u32..900_000, 1u32..200_000), 1..30)) {
            let (mut plan, file) = (Plan::default(), file());
            let stripe = stripe(1, 1_000_000, 250_000);
            let mut wanted = Vec::new();
            for (start, len) in extents {
                let len = len.min(1_000_000 - start);
                let extent = Extent { offset: start.into(), len, stripe: StripeId(1), stripe_offset: start };
                for (offset, range) in pieces(&extent, &stripe).unwrap() {
                    prop_assert_eq!(offset, u64::from(range.start));
                    wanted.push(range.clone());
                    plan.add(&stripe, &file, offset, range);
                }
            }
            let mut answered = Vec::new();
            for GroupRead { read, wants } in plan.take(Hurry::Yes).unwrap().into_reads() {
                prop_assert_eq!(stripe.shape.covering(read.range.clone()).len(), 1);
                for (want, range) in wants {
                    prop_assert!(range.end <= read.range.len());
                    prop_assert_eq!(want.offset, u64::from(read.range.start) + range.start as u64);
                    answered.push(want.offset as u32..want.offset as u32 + range.len() as u32);
                }
            }
            let key = |range: &Range<u32>| (range.start, range.end);
            answered.sort_by_key(key);
            wanted.sort_by_key(key);
            prop_assert_eq!(answered, wanted);
        }
    }
}
