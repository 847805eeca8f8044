//! Announced orders first; files that none names are expected in the order of their listing.

use super::{PrefetchEvent, PrefetchPolicy, Sequential, Timeline, View, Wanted};
use crate::cache::CacheKey;

/// A policy that follows orders, and [`Sequential`] for the files that no order names.
#[derive(Debug)]
pub struct OrListed<P> {
    orders: P,
    listed: Sequential,
}

impl<P: PrefetchPolicy> OrListed<P> {
    /// Both at once; what the given policy wants comes first.
    pub fn new(orders: P) -> Self {
        OrListed { orders, listed: Sequential::default() }
    }
}

impl<P: PrefetchPolicy> PrefetchPolicy for OrListed<P> {
    fn note(&mut self, event: PrefetchEvent<'_>, timeline: &mut Timeline) {
        match event {
            // Each learns of what it asked for itself: only what stands in an order has a place.
            PrefetchEvent::Started(Wanted { place: Some(_), .. }) => self.orders.note(event, timeline),
            PrefetchEvent::Started(_) | PrefetchEvent::Listed { .. } => self.listed.note(event, timeline),
            PrefetchEvent::Opened(_) | PrefetchEvent::Failed(_) | PrefetchEvent::Removed(_) => {
                self.orders.note(event, timeline);
                self.listed.note(event, timeline);
            }
        }
    }

    fn next(&mut self, timeline: &Timeline, view: &View<'_>) -> Option<Wanted> {
        self.orders.next(timeline, view).or_else(|| self.listed.next(timeline, view))
    }

    fn expects(&self, key: CacheKey) -> bool {
        self.orders.expects(key) || self.listed.expects(key)
    }
}
