//! Stripe ids that this leader may hand out: runs reserved through Raft, so that no two leaders ever hand out the same.

use std::collections::VecDeque;
use std::ops::Range;
use std::time::Duration;
use tokio::time::Instant;
use torchfs_core::StripeId;

/// Ids reserved at a time. What is left when a leader goes is lost, which costs nothing.
pub const RESERVE: u32 = 4096;

/// More are reserved in the background when fewer than these are left.
const RESERVE_AT: u64 = 1024;

/// How finely the age of ids is remembered, as a part of the time after which they are given up.
const MARKS: u32 = 48;

/// The ids of one leadership.
#[derive(Debug, Default)]
pub struct Stripes {
    runs: VecDeque<Range<u64>>,
    /// Ids from here on were not handed out before the time beside it.
    marks: VecDeque<(Instant, StripeId)>,
}

impl Stripes {
    /// Adds a reserved run.
    pub fn add(&mut self, first: StripeId, count: u32) {
        self.runs.push_back(first.0..first.0 + u64::from(count));
    }

    /// Takes `count` ids, if so many are left.
    pub fn take(&mut self, count: u32) -> Option<Vec<StripeId>> {
        if self.left() < u64::from(count) {
            return None;
        }
        let mut taken = Vec::with_capacity(count as usize);
        while taken.len() < count as usize
            && let Some(run) = self.runs.front_mut()
        {
            match run.next() {
                Some(id) => taken.push(StripeId(id)),
                None => drop(self.runs.pop_front()),
            }
        }
        Some(taken)
    }

    /// Whether more should be reserved before they are missed: only by a leader that is asked for ids at all.
    #[must_use]
    pub fn is_low(&self) -> bool {
        !self.runs.is_empty() && self.left() < RESERVE_AT
    }

    fn left(&self) -> u64 {
        self.runs.iter().map(|run| run.end - run.start).sum()
    }

    /// Notes how far ids are handed out by `now`, `next` being the first id that no leader has reserved, and returns an id
    /// below which all were handed out more than `age` ago.
    ///
    /// A leader knows only its own past: after a change of leader it takes `age` until the first id is returned.
    pub fn aged(&mut self, next: StripeId, age: Duration, now: Instant) -> Option<StripeId> {
        if self.marks.back().is_none_or(|(at, _)| now.duration_since(*at) >= age / MARKS) {
            let first = self.runs.iter().map(|run| run.start).min().unwrap_or(next.0);
            self.marks.push_back((now, StripeId(first)));
        }
        let mut aged = None;
        while let Some(&(at, stripe)) = self.marks.front()
            && now.duration_since(at) >= age
        {
            self.marks.pop_front();
            aged = Some(stripe);
        }
        aged
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_handed_out_once_over_the_edges_of_runs() {
        let mut stripes = Stripes::default();
        assert_eq!(stripes.take(1), None);
        stripes.add(StripeId(10), 3);
        stripes.add(StripeId(20), 2);
        assert_eq!(stripes.take(6), None);
        assert_eq!(stripes.take(4), Some([10, 11, 12, 20].map(StripeId).to_vec()));
        assert_eq!(stripes.take(1), Some(vec![StripeId(21)]));
        assert_eq!(stripes.take(1), None);
    }

    #[test]
    fn ids_age_from_the_moment_they_can_be_handed_out() {
        let (age, begin) = (Duration::from_secs(480), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut stripes = Stripes::default();
        stripes.add(StripeId(10), 10);
        assert_eq!(stripes.aged(StripeId(20), age, at(0)), None);
        stripes.take(5);
        assert_eq!(stripes.aged(StripeId(20), age, at(100)), None);
        let aged = stripes.aged(StripeId(20), age, at(480));
        assert_eq!(aged, Some(StripeId(10)), "5 ids were handed out right after the first mark");
        assert_eq!(stripes.aged(StripeId(20), age, at(580)), Some(StripeId(15)));
    }
}
