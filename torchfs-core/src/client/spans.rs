//! Keeping files from falling to pieces: where a commit would leave a span of a file in too many extents, it writes that
//! span anew as one. So a reader never needs many requests for few bytes, and metadata stays small.

use super::content::Base;
use super::overlay::{Piece, Source};
use crate::ids::StripeId;
use crate::layout::{Extent, ExtentMap};
use std::collections::BTreeSet;
use std::ops::Range;

/// More extents than this within one [`SPAN_BYTES`] are too many.
const SPAN_EXTENTS_MAX: usize = 16;

/// A span starts at a multiple of this.
const SPAN_BYTES: u64 = 4 * 1024 * 1024;

/// Stands for the stripes that staged pieces will be in.
const NEW_STRIPE: StripeId = StripeId(u64::MAX);

/// The spans that the pieces of a commit touch and that would be in too many extents after it.
pub(super) fn crowded(base: &Base, keep: Option<u64>, pieces: &[Piece]) -> Vec<Range<u64>> {
    let extents = extents_after(base, keep, pieces);
    let mut touched: BTreeSet<u64> = BTreeSet::new();
    for piece in pieces {
        touched.extend(piece.range.start / SPAN_BYTES..piece.range.end.div_ceil(SPAN_BYTES));
    }
    let span = |number: u64| number * SPAN_BYTES..(number + 1) * SPAN_BYTES;
    touched.into_iter().map(span).filter(|span| extents.within(span.clone()).count() > SPAN_EXTENTS_MAX).collect()
}

/// What the file will consist of: neighbours in the file that are staged will be neighbours in a stripe.
fn extents_after(base: &Base, keep: Option<u64>, pieces: &[Piece]) -> ExtentMap {
    let mut extents = base.extents.clone();
    if let Some(keep) = keep {
        extents.remove(keep..u64::MAX);
    }
    let mut new_at = 0u32;
    for piece in pieces {
        let len = piece.len() as u32;
        let (stripe, stripe_offset) = match &piece.source {
            Source::Hole { .. } => {
                extents.remove(piece.range.clone());
                continue;
            }
            Source::Sent { stripe, at } => (stripe.id, *at),
            Source::Staged { .. } | Source::Sending { .. } => (NEW_STRIPE, new_at),
        };
        new_at = new_at.wrapping_add(len);
        extents.insert(Extent { offset: piece.range.start, len, stripe, stripe_offset });
    }
    extents
}

/// What a commit does with its pieces when some spans are to be written anew.
pub(super) struct Plan {
    /// Pieces that are in stripes already, to be named.
    pub name: Vec<Piece>,
    /// Pieces to write into new stripes, in file order.
    pub write: Vec<Piece>,
}

/// Everything in `spans` is written, what the version underneath has there included; of the rest, what is not in a stripe.
pub(super) fn plan(base: &Base, keep: Option<u64>, pieces: &[Piece], spans: &[Range<u64>]) -> Plan {
    let mut plan = Plan { name: Vec::new(), write: Vec::new() };
    let mut at = 0;
    for span in spans.iter().cloned().chain(std::iter::once(u64::MAX..u64::MAX)) {
        for piece in overlapping(pieces, at..span.start) {
            match piece.source {
                Source::Sent { .. } => plan.name.push(piece),
                Source::Staged { .. } | Source::Sending { .. } => plan.write.push(piece),
                // The commit names holes by themselves.
                Source::Hole { .. } => {}
            }
        }
        plan.write.extend(whole_span(base, keep, pieces, &span));
        at = span.end;
    }
    plan
}

fn overlapping(pieces: &[Piece], range: Range<u64>) -> impl Iterator<Item = Piece> + '_ {
    let overlaps = {
        let range = range.clone();
        move |piece: &&Piece| piece.range.start < range.end && range.start < piece.range.end
    };
    pieces.iter().filter(overlaps).map(move |piece| piece.slice(&range))
}

/// All of a span in order: pieces over the version underneath. Holes stay holes.
fn whole_span(base: &Base, keep: Option<u64>, pieces: &[Piece], span: &Range<u64>) -> Vec<Piece> {
    let visible = span.start..span.end.min(keep.unwrap_or(u64::MAX)).max(span.start);
    let mut under = ExtentMap::new(base.extents.within(visible));
    let mut all: Vec<Piece> = overlapping(pieces, span.clone()).collect();
    all.iter().for_each(|piece| under.remove(piece.range.clone()));
    all.retain(|piece| !piece.is_hole());
    for extent in under.extents() {
        if let Some(stripe) = base.stripes.get(&extent.stripe) {
            let source = Source::Sent { stripe: stripe.clone(), at: extent.stripe_offset };
            all.push(Piece { range: extent.offset..extent.end(), source });
        }
    }
    all.sort_by_key(|piece| piece.range.start);
    all
}
