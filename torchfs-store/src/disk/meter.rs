//! How busy the store is: requests under way, and the median time of recent writes.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Enough for a steady median, few enough to follow a disk that turns slow within a second.
const WRITES_REMEMBERED: usize = 64;

/// Counts requests and remembers recent write times.
#[derive(Debug, Default)]
pub struct Meter {
    requests: AtomicU32,
    writes: Mutex<Recent>,
}

#[derive(Debug, Default)]
struct Recent {
    micros: Vec<u32>,
    next: usize,
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub struct UnderWay<'a>(&'a Meter);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Meter {
    /// Counts a request until the answer is dropped.
    pub fn begin(&self) -> UnderWay<'_> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    /// Requests under way.
    #[must_use]
    pub fn requests(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Remembers how long a shard write took.
    pub fn wrote(&self, time: Duration) {
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let mut recent = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = recent.next % WRITES_REMEMBERED;
        match recent.micros.get_mut(slot) {
            Some(old) => *old = micros,
            None => recent.micros.push(micros),
        }
        recent.next = slot + 1;
    }

    /// Median of recent writes in microseconds; 0 if there was none.
    #[must_use]
    pub fn write_us(&self) -> u32 {
        let mut micros = self.writes.lock().unwrap_or_else(PoisonError::into_inner).micros.clone();
        micros.sort_unstable();
        micros.get(micros.len() / 2).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_follows_recent_writes() {
        let meter = Meter::default();
        assert_eq!(meter.write_us(), 0);
        for micros in [10, 30, 20] {
            meter.wrote(Duration::from_micros(micros));
        }
        assert_eq!(meter.write_us(), 20);
        for _ in 0..WRITES_REMEMBERED {
            meter.wrote(Duration::from_micros(500));
        }
        assert_eq!(meter.write_us(), 500);
    }
}
