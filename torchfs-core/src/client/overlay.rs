//! [`Overlay`]: which ranges of an open file this client has written since the last commit, and where those bytes are.
//!
//! Pure bookkeeping: no I/O. Ranges that are not in the overlay show the version underneath.

use super::ranges::RangeSet;
use super::staging::Block;
use crate::layout::Stripe;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Where bytes of a written range are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In the staging area, from `at` in a block.
    Staged { block: Arc<Block>, at: u32 },
    /// In the staging area and on the way into the cluster with this upload.
    Sending { upload: u64, block: Arc<Block>, at: u32 },
    /// In a stripe that no commit has named yet.
    Sent { stripe: Arc<Stripe>, at: u32 },
    /// Nowhere: zeros, whatever the version underneath has there. Belongs to the commit with this number, if one has begun.
    Hole { upload: Option<u64> },
}

impl Source {
    /// The source of the same bytes from `skip` bytes on.
    pub fn skip(&self, skip: u64) -> Source {
        let mut source = self.clone();
        match &mut source {
            Source::Staged { at, .. } | Source::Sending { at, .. } | Source::Sent { at, .. } => *at += skip as u32,
            Source::Hole { .. } => {}
        }
        source
    }

    fn continues(&self, len: u64, next: &Source) -> bool {
        match (self, next) {
            (Source::Staged { block, at }, Source::Staged { block: other, at: next }) => {
                Arc::ptr_eq(block, other) && u64::from(*at) + len == u64::from(*next)
            }
            (Source::Hole { upload }, Source::Hole { upload: other }) => upload == other,
            _ => false,
        }
    }
}

/// A written range and where its bytes are.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub range: Range<u64>,
    pub source: Source,
}

impl Piece {
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    pub fn is_hole(&self) -> bool {
        matches!(self.source, Source::Hole { .. })
    }

    /// The part of it inside `range`, which it overlaps.
    pub fn slice(&self, range: &Range<u64>) -> Piece {
        let start = self.range.start.max(range.start);
        let end = self.range.end.min(range.end);
        Piece { range: start..end, source: self.source.skip(start - self.range.start) }
    }
}

/// Written ranges, none overlapping another.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    /// By start: end and source.
    pieces: BTreeMap<u64, (u64, Source)>,
    /// What is staged and not on its way, as runs.
    staged: RangeSet,
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Lays a piece over whatever was there.
    pub fn insert(&mut self, piece: Piece) {
        if piece.range.is_empty() {
            return;
        }
        self.remove(piece.range.clone());
        if matches!(piece.source, Source::Staged { .. }) {
            self.staged.insert(piece.range.clone());
        }
        let Range { start, end } = piece.range;
        if let Some((&before, (before_end, source))) = self.pieces.range_mut(..start).next_back()
            && *before_end == start
            && source.continues(start - before, &piece.source)
        {
            *before_end = end;
            return;
        }
        self.pieces.insert(start, (end, piece.source));
    }

    /// Forgets what was written in a range.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.staged.remove(range.clone());
        while let Some((&start, (end, _))) = self.pieces.range(..range.end).next_back() {
            if *end <= range.start {
                break;
            }
            let Some((end, source)) = self.pieces.remove(&start) else { break };
            if end > range.end {
                self.pieces.insert(range.end, (end, source.skip(range.end - start)));
            }
            if start < range.start {
                self.pieces.insert(start, (range.start, source));
            }
        }
    }

    /// The written parts of a range, in order.
    pub fn within(&self, range: Range<u64>) -> Vec<Piece> {
        let first = self.pieces.range(..=range.start).next_back().map_or(range.start, |(&start, _)| start);
        self.pieces
            .range(first..range.end.max(first))
            .filter(|(_, (end, _))| *end > range.start)
            .map(|(&start, (end, source))| Piece { range: start..*end, source: source.clone() }.slice(&range))
            .collect()
    }

    /// All written ranges, in order.
    pub fn pieces(&self) -> Vec<Piece> {
        self.within(0..u64::MAX)
    }

    /// The run of staged bytes around `at` that is not on its way.
    pub fn staged_run(&self, at: u64) -> Option<Range<u64>> {
        self.staged.run_at(at)
    }

    /// Marks all staged bytes of a range as on their way, and returns them; and its holes as told.
    pub fn start_sending(&mut self, range: Range<u64>, upload: u64) -> Vec<Piece> {
        let mut sending = Vec::new();
        for piece in self.within(range) {
            match piece.source {
                Source::Staged { block, at } => {
                    let piece = Piece { range: piece.range, source: Source::Sending { upload, block, at } };
                    self.insert(piece.clone());
                    sending.push(piece);
                }
                Source::Hole { upload: None } => {
                    self.insert(Piece { range: piece.range, source: Source::Hole { upload: Some(upload) } });
                }
                _ => {}
            }
        }
        sending
    }

    /// Takes what an upload was sending, unless it was overwritten meanwhile, as staged again.
    pub fn stop_sending(&mut self, wanted: impl Fn(u64) -> bool) {
        for piece in self.pieces() {
            let source = match piece.source {
                Source::Sending { upload, block, at } if wanted(upload) => Source::Staged { block, at },
                Source::Hole { upload: Some(upload) } if wanted(upload) => Source::Hole { upload: None },
                _ => continue,
            };
            self.insert(Piece { range: piece.range, source });
        }
    }

    /// What an upload was sending is in a stripe now: `sent`, in order, one after the other from the stripe's start.
    /// Parts that were overwritten meanwhile stay overwritten.
    pub fn finish_sending(&mut self, upload: u64, sent: &[Piece], stripe: &Arc<Stripe>) {
        let mut stripe_at = 0;
        for part in sent {
            for piece in self.within(part.range.clone()) {
                if matches!(piece.source, Source::Sending { upload: current, .. } if current == upload) {
                    let at = stripe_at + (piece.range.start - part.range.start) as u32;
                    let source = Source::Sent { stripe: stripe.clone(), at };
                    self.insert(Piece { range: piece.range, source });
                }
            }
            stripe_at += part.len() as u32;
        }
    }

    /// Forgets what a commit has stored: what its upload was sending, and stripes that it named.
    pub fn committed(&mut self, upload: u64, named: impl Fn(&Stripe) -> bool) {
        for piece in self.pieces() {
            let stored = match &piece.source {
                Source::Staged { .. } => false,
                Source::Sending { upload: current, .. } => *current == upload,
                Source::Hole { upload: current } => *current == Some(upload),
                Source::Sent { stripe, .. } => named(stripe),
            };
            if stored {
                self.remove(piece.range);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::staging::{Prefer, Staging};
    use super::*;
    use crate::ids::StripeId;
    use crate::layout::{Profile, StripeShape};
    use proptest::prelude::*;

    const LEN: usize = 96;

    /// Stands for a byte of a hole in the model.
    const HOLE: u32 = u32::MAX;

    /// Every byte that was ever staged differs, so that where a byte comes from can be told from its value.
    struct Harness {
        staging: Arc<Staging>,
        overlay: Overlay,
        model: Vec<Option<u32>>,
        origin: Vec<Vec<u32>>,
        blocks: Vec<Arc<Block>>,
        stripes: Vec<Vec<u32>>,
        next: u32,
    }

    impl Harness {
        fn write(&mut self, range: Range<u64>) {
            let len = (range.end - range.start) as usize;
            let block = self.staging.block(len.max(1), Prefer::Memory).expect("block");
            let values: Vec<u32> = (self.next..self.next + len as u32).collect();
            self.next += len as u32;
            self.model[range.start as usize..range.end as usize]
                .iter_mut()
                .zip(&values)
                .for_each(|(slot, value)| *slot = Some(*value));
            self.origin.push(values);
            self.blocks.push(block.clone());
            self.overlay.insert(Piece { range, source: Source::Staged { block, at: 0 } });
        }

        fn value(&self, source: &Source) -> u32 {
            match source {
                Source::Staged { block, at } | Source::Sending { block, at, .. } => {
                    let index = self.blocks.iter().position(|other| Arc::ptr_eq(other, block)).expect("known");
                    self.origin[index][*at as usize]
                }
                Source::Sent { stripe, at } => self.stripes[stripe.id.0 as usize][*at as usize],
                Source::Hole { .. } => HOLE,
            }
        }

        fn check(&self) {
            let mut seen = vec![None; LEN];
            for piece in self.overlay.pieces() {
                for at in piece.range.clone() {
                    assert!(seen[at as usize].is_none(), "no overlap");
                    seen[at as usize] = Some(self.value(&piece.source.skip(at - piece.range.start)));
                    let staged = matches!(piece.source, Source::Staged { .. });
                    assert_eq!(self.overlay.staged_run(at).is_some(), staged);
                }
            }
            assert_eq!(seen, self.model);
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_found_where_it_was_last_put(
            steps in prop::collection::vec((0u8..7, 0u64..64, 1u64..32), 1..40),
        ) {
            let mut harness = Harness {
                staging: Staging::new("unused", None),
                overlay: Overlay::default(),
                model: vec![None; LEN],
                origin: Vec::new(),
                blocks: Vec::new(),
                stripes: Vec::new(),
                next: 0,
            };
            let mut under_way: Vec<(u64, Vec<Piece>)> = Vec::new();
            for (number, (step, start, len)) in steps.into_iter().enumerate() {
                let range = start..start + len;
                match step {
                    0 | 1 => harness.write(range),
                    2 => {
                        harness.overlay.remove(range.clone());
                        harness.model[start as usize..(start + len) as usize].fill(None);
                    }
                    3 => {
                        let sending = harness.overlay.start_sending(range, number as u64);
                        under_way.push((number as u64, sending));
                    }
                    4 => if let Some((upload, sent)) = under_way.pop() {
                        let bytes = sent.iter()
                            .flat_map(|piece| (0..piece.len()).map(|skip| harness.value(&piece.source.skip(skip))))
                            .collect();
                        harness.stripes.push(bytes);
                        let stripe = Stripe {
                            id: StripeId(harness.stripes.len() as u64 - 1),
                            shape: StripeShape::for_content(Profile::DEFAULT, 1),
                            nodes: Vec::new(),
                        };
                        harness.overlay.finish_sending(upload, &sent, &Arc::new(stripe));
                    },
                    5 => {
                        harness.overlay.insert(Piece { range, source: Source::Hole { upload: None } });
                        harness.model[start as usize..(start + len) as usize].fill(Some(HOLE));
                    }
                    _ => {
                        under_way.clear();
                        harness.overlay.stop_sending(|_| true);
                    }
                }
                harness.check();
            }
            harness.overlay.start_sending(0..u64::MAX, u64::MAX);
            under_way.clear();
            harness.overlay.stop_sending(|upload| upload != u64::MAX);
            harness.overlay.start_sending(0..u64::MAX, u64::MAX);
            harness.overlay.committed(u64::MAX, |_| true);
            prop_assert!(harness.overlay.is_empty());
        }
    }
}
