//! Least recently used.

use super::{CacheEvent, EvictionPolicy, Line};
use crate::cache::CacheKey;

/// What was not opened for the longest time leaves first.
#[derive(Debug, Default)]
pub struct Lru(Line);

impl EvictionPolicy for Lru {
    fn note(&mut self, event: CacheEvent) {
        match event {
            CacheEvent::Added(key) => self.0.move_to_end_of(0, key),
            CacheEvent::Used(key) if self.0.rank(key).is_some() => self.0.move_to_end_of(0, key),
            CacheEvent::Used(_) | CacheEvent::Planned(..) => {}
            CacheEvent::Removed(key) => self.0.remove(key),
        }
    }

    fn candidates(&self) -> Box<dyn Iterator<Item = CacheKey> + '_> {
        self.0.keys()
    }
}
