//! Least frequently used.

use super::{CacheEvent, EvictionPolicy, Line};
use crate::cache::CacheKey;

/// What was opened the fewest times since it came leaves first; of those, what was not opened for the longest time.
///
/// A new version of a file is a new entry. How often entries were opened is not kept over a restart.
#[derive(Debug, Default)]
pub struct Lfu(Line);

impl EvictionPolicy for Lfu {
    fn note(&mut self, event: CacheEvent) {
        match event {
            CacheEvent::Added(key) => self.0.move_to_end_of(0, key),
            CacheEvent::Used(key) => {
                if let Some(uses) = self.0.rank(key) {
                    self.0.move_to_end_of(uses + 1, key);
                }
            }
            CacheEvent::Planned(..) => {}
            CacheEvent::Removed(key) => self.0.remove(key),
        }
    }

    fn candidates(&self) -> Box<dyn Iterator<Item = CacheKey> + '_> {
        self.0.keys()
    }
}
