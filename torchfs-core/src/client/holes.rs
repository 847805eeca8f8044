//! Holes of open files: making them and finding them (fallocate(2), and lseek(2) with SEEK_DATA and SEEK_HOLE).

use super::File;
use super::open_file::State;
use crate::error::Result;
use std::ops::Range;

impl File {
    /// Makes a range a hole: it reads as zeros and takes no space once it is committed. The file keeps its size.
    ///
    /// # Errors
    /// `FileTooLarge`, `NotPermitted` if it was opened for reading.
    pub fn punch(&self, range: Range<u64>) -> Result<()> {
        self.check_change(Some(range.end))?;
        let mut state = self.open.state();
        let base = self.view.base(&state);
        state.punch(&base, range);
        Ok(())
    }

    /// Where the first data at or after `offset` is; `None` if only a hole follows, or nothing.
    #[must_use]
    pub fn next_data(&self, offset: u64) -> Option<u64> {
        let (data, _) = self.data_from(offset);
        data.first().map(|range| range.start)
    }

    /// Where the first hole at or after `offset` is; the end of the file counts as one. `None` past the end.
    #[must_use]
    pub fn next_hole(&self, offset: u64) -> Option<u64> {
        let (data, size) = self.data_from(offset);
        (offset < size)
            .then(|| data.iter().fold(offset, |hole, range| if range.start == hole { range.end } else { hole }))
    }

    /// The ranges with data from `offset` on, in order, and the size.
    fn data_from(&self, offset: u64) -> (Vec<Range<u64>>, u64) {
        let state = self.open.state();
        let base = self.view.base(&state);
        let size = state.size(&base);
        let visible = state.visible(&base);
        let under = |range: Range<u64>| {
            let range = range.start..range.end.min(visible).max(range.start);
            base.extents.within(range).map(|extent| extent.offset..extent.end()).collect::<Vec<_>>()
        };
        (data_ranges(&state, offset..size.max(offset), under), size)
    }
}

/// Written ranges that are no holes, and what `under` has between the written ranges.
fn data_ranges(state: &State, range: Range<u64>, under: impl Fn(Range<u64>) -> Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut data = Vec::new();
    let mut at = range.start;
    for piece in state.overlay.within(range.clone()) {
        data.extend(under(at..piece.range.start));
        at = piece.range.end;
        if !piece.is_hole() {
            data.push(piece.range);
        }
    }
    data.extend(under(at..range.end));
    data
}
