//! First in, last out.

use super::{CacheEvent, EvictionPolicy, Line};
use crate::cache::CacheKey;

/// What came last leaves first: what the cache was filled with stays, for readers that begin again at the same place.
#[derive(Debug, Default)]
pub struct Filo(Line);

impl EvictionPolicy for Filo {
    fn note(&mut self, event: CacheEvent) {
        match event {
            CacheEvent::Added(key) => self.0.move_to_front_of(0, key),
            CacheEvent::Used(_) | CacheEvent::Planned(..) => {}
            CacheEvent::Removed(key) => self.0.remove(key),
        }
    }

    fn candidates(&self) -> Box<dyn Iterator<Item = CacheKey> + '_> {
        self.0.keys()
    }
}
