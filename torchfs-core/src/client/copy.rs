//! Copying ranges between open files without moving their bytes: the copy shares the stripes of what it copies, and of
//! what is not committed yet the staging space.

use super::File;
use super::content::Base;
use super::open_file::State;
use super::overlay::{Piece, Source};
use crate::error::{Error, Kind, Result};
use std::ops::Range;

impl File {
    /// Makes what this file has from `offset` on what `target` has from `target_offset` on, `len` bytes or to the end of this
    /// file, as if it were read and written: holes stay holes, later changes of the one do not show in the other, and it is
    /// visible to others when `target` is committed. Returns how many bytes that were. No data is moved.
    ///
    /// # Errors
    /// `FileTooLarge`, `NotPermitted` if `target` was opened for reading, `InvalidInput` for ranges of one file that overlap.
    pub fn copy_range(&self, offset: u64, target: &File, target_offset: u64, len: u64) -> Result<u64> {
        let pieces = {
            let state = self.open.state();
            let base = self.view.base(&state);
            let end = state.size(&base).min(offset.saturating_add(len));
            shared(&state, &base, offset..end.max(offset))?
        };
        let len: u64 = pieces.iter().map(Piece::len).sum();
        target.check_change(target_offset.checked_add(len))?;
        if self.ino() == target.ino() && offset.abs_diff(target_offset) < len {
            return Err(Error::new(Kind::InvalidInput, "a range cannot be copied over a part of itself"));
        }
        if len > 0 {
            target.open.state().share(pieces, offset, target_offset);
        }
        Ok(len)
    }
}

/// What a reader of `base` sees in a range, without a gap, as pieces that another file can have too.
fn shared(state: &State, base: &Base, range: Range<u64>) -> Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut at = range.start;
    for piece in state.overlay.within(range.clone()) {
        pieces.extend(underneath(state, base, at..piece.range.start)?);
        at = piece.range.end;
        let source = match piece.source {
            Source::Sending { block, at, .. } => Source::Staged { block, at },
            Source::Hole { .. } => Source::Hole { upload: None },
            source => source,
        };
        pieces.push(Piece { range: piece.range, source });
    }
    pieces.extend(underneath(state, base, at..range.end)?);
    Ok(pieces)
}

/// The same of the version underneath: its extents, and holes between them.
fn underneath(state: &State, base: &Base, range: Range<u64>) -> Result<Vec<Piece>> {
    let hole = |range: Range<u64>| Piece { range, source: Source::Hole { upload: None } };
    let seen = range.start..range.end.min(state.visible(base)).max(range.start);
    let mut pieces = Vec::new();
    let mut at = range.start;
    for extent in base.extents.within(seen) {
        let stripe = base.stripe(&extent)?;
        if at < extent.offset {
            pieces.push(hole(at..extent.offset));
        }
        at = extent.end();
        let source = Source::Sent { stripe: stripe.clone(), at: extent.stripe_offset };
        pieces.push(Piece { range: extent.offset..at, source });
    }
    if at < range.end {
        pieces.push(hole(at..range.end));
    }
    Ok(pieces)
}
