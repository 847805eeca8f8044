//! [`RangeSet`]: a set of byte offsets as sorted runs.

use std::collections::BTreeMap;
use std::ops::Range;

/// Byte offsets, kept as runs that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    /// Start of each run to its end.
    runs: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// Adds a range; runs that touch it become one.
    pub fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let Range { mut start, mut end } = range;
        while let Some((&run_start, &run_end)) = self.runs.range(..=end).next_back() {
            if run_end < start {
                break;
            }
            self.runs.remove(&run_start);
            start = start.min(run_start);
            end = end.max(run_end);
        }
        self.runs.insert(start, end);
    }

    /// Takes a range out.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.runs.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.runs.remove(&start);
            if end > range.end {
                self.runs.insert(range.end, end);
            }
            if start < range.start {
                self.runs.insert(start, range.start);
            }
        }
    }

    /// The run that holds `at`.
    pub fn run_at(&self, at: u64) -> Option<Range<u64>> {
        let (&start, &end) = self.runs.range(..=at).next_back()?;
        (at < end).then_some(start..end)
    }

    /// The runs in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs.iter().map(|(&start, &end)| start..end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_holds_what_a_row_of_flags_holds(steps in prop::collection::vec((any::<bool>(), 0u64..40, 0u64..12), 1..60)) {
            let mut set = RangeSet::default();
            let mut flags = [false; 64];
            for (insert, start, len) in steps {
                if insert { set.insert(start..start + len) } else { set.remove(start..start + len) }
                flags[start as usize..(start + len) as usize].fill(insert);
                for (at, &flag) in flags.iter().enumerate() {
                    let run = set.run_at(at as u64);
                    prop_assert_eq!(run.is_some(), flag);
                    if let Some(run) = run {
                        prop_assert!(run.start == 0 || !flags[run.start as usize - 1]);
                        prop_assert!(!flags[run.end as usize]);
                    }
                }
                let runs: Vec<_> = set.iter().collect();
                prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            }
        }
    }
}
