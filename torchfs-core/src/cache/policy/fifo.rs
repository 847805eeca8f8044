//! First in, first out.

use super::{CacheEvent, EvictionPolicy, Line};
use crate::cache::CacheKey;

/// What came first leaves first.
#[derive(Debug, Default)]
pub struct Fifo(Line);

impl EvictionPolicy for Fifo {
    fn note(&mut self, event: CacheEvent) {
        match event {
            CacheEvent::Added(key) => self.0.move_to_end_of(0, key),
            CacheEvent::Used(_) | CacheEvent::Planned(..) => {}
            CacheEvent::Removed(key) => self.0.remove(key),
        }
    }

    fn candidates(&self) -> Box<dyn Iterator<Item = CacheKey> + '_> {
        self.0.keys()
    }
}
