//! Fetching in the order of the folder's listing, as long as that is how files are read.

use super::{AHEAD_PART, DataFile, Dataset, PrefetchEvent, PrefetchPolicy, Timeline, Urgency, View, Wanted};
use crate::cache::CacheKey;
use crate::cache::policy::Plan;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Readers that are followed at the same time, such as the workers of a data loader.
const STREAMS_MAX: usize = 8;

/// Most files of listings that are remembered; the oldest listing is forgotten first. About 120 bytes per file.
const LISTED_MAX: usize = 1 << 20;

/// So many opens one after the other in the listing are taken for a reader in that order.
const TRUST_OPENS: u32 = 3;

/// Most that are asked for after many failures.
const TRUST_OPENS_MAX: u32 = 4096;

/// A run of so many opens that were predicted makes trust easier again.
const TRUST_REGAINED_OPENS: u32 = 64;

/// Follows readers through listings: the window before each slides with every open, hit or miss, and is half as long as the
/// reader was followed. When one turns away from what was fetched for it, the next must be followed four times as long before
/// anything is fetched; so readers in no order, or who soon leave it, cost almost nothing.
#[derive(Debug)]
pub struct Sequential {
    listings: VecDeque<Listing>,
    listed: usize,
    /// The number of the first of the listings, which are numbered as they come.
    first_listing: u64,
    places: HashMap<CacheKey, Spot>,
    /// The last to go on is the last.
    streams: Vec<Stream>,
    /// Fetched for a reader that is followed, and not opened yet.
    asked: HashMap<CacheKey, u64>,
    asked_bytes: u64,
    trust_opens: u32,
}

#[derive(Debug)]
struct Listing(Arc<Dataset>);

/// A file's place in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spot {
    listing: u64,
    index: u32,
}

/// A reader in the order of a listing.
#[derive(Debug)]
struct Stream {
    listing: u64,
    /// What it opened first.
    first: u32,
    /// What it opened last.
    head: u32,
    /// How many it opened.
    run: u32,
    /// One beyond the last that was asked for it, or tried.
    asked_to: u32,
    /// Files that were fetched for it and left the cache unread.
    lost: u32,
}

impl Default for Sequential {
    fn default() -> Self {
        Sequential {
            listings: VecDeque::new(),
            listed: 0,
            first_listing: 0,
            places: HashMap::new(),
            streams: Vec::new(),
            asked: HashMap::new(),
            asked_bytes: 0,
            trust_opens: TRUST_OPENS,
        }
    }
}

impl PrefetchPolicy for Sequential {
    fn note(&mut self, event: PrefetchEvent<'_>, _timeline: &mut Timeline) {
        match event {
            PrefetchEvent::Listed(files) => self.list(files),
            PrefetchEvent::Opened(file) => {
                self.forget(file.key);
                if let Some(&spot) = self.places.get(&file.key) {
                    self.follow(spot);
                }
            }
            PrefetchEvent::Started(wanted) => {
                self.asked.insert(wanted.key, wanted.bytes);
                self.asked_bytes += wanted.bytes;
            }
            PrefetchEvent::Failed(key) => self.forget(key),
            PrefetchEvent::Removed(key) => self.lose(key),
        }
    }

    fn next(&mut self, timeline: &Timeline, view: &View<'_>) -> Option<Wanted> {
        let room = view.ahead_bytes_max.min(view.limit_bytes / AHEAD_PART);
        let file = self.search(view)?;
        let place = match timeline.plan(file.key) {
            Plan::At(place) => Some(place),
            Plan::Read | Plan::Unknown => None,
        };
        let fits = self.asked.is_empty() || self.asked_bytes + file.bytes <= room;
        fits.then_some(Wanted { key: file.key, bytes: file.bytes, place, urgency: Urgency::Ahead })
    }

    fn expects(&self, key: CacheKey) -> bool {
        self.asked.contains_key(&key)
    }
}

impl Sequential {
    fn list(&mut self, files: &Arc<Dataset>) {
        if self.listings.iter().any(|Listing(known)| Arc::ptr_eq(known, files)) {
            return;
        }
        let listing = self.first_listing + self.listings.len() as u64;
        self.listed += files.files().len();
        for (index, file) in files.files().iter().enumerate() {
            self.places.insert(file.key, Spot { listing, index: index as u32 });
        }
        self.listings.push_back(Listing(files.clone()));
        while self.listed > LISTED_MAX
            && let Some(Listing(oldest)) = self.listings.pop_front()
        {
            self.listed -= oldest.files().len();
            let gone = self.first_listing;
            self.places.retain(|_, spot| spot.listing != gone);
            self.streams.retain(|stream| stream.listing != gone);
            self.first_listing += 1;
        }
    }

    fn file(&self, listing: u64, index: u32) -> Option<DataFile> {
        let Listing(files) = self.listings.get((listing.checked_sub(self.first_listing)?) as usize)?;
        files.files().get(index as usize).copied()
    }

    /// The next file that a followed reader will come to and that is not held, of the reader that went on last.
    fn search(&mut self, view: &View<'_>) -> Option<DataFile> {
        for at in (0..self.streams.len()).rev() {
            while let Some(file) = self.predicted(at) {
                if file.bytes > 0 && file.bytes <= view.limit_bytes && !(view.is_held)(file.key) {
                    return Some(file);
                }
                self.streams[at].asked_to += 1;
            }
        }
        None
    }

    /// What comes next in a stream's window, beyond what was asked for already.
    fn predicted(&mut self, at: usize) -> Option<DataFile> {
        let trust_opens = self.trust_opens;
        let stream = &mut self.streams[at];
        stream.asked_to = stream.asked_to.max(stream.head + 1);
        let window = if stream.run < trust_opens { 0 } else { (stream.run / 2).max(2) };
        let (listing, next, end) = (stream.listing, stream.asked_to, stream.head.saturating_add(window));
        let is_read = |other: &Stream| other.listing == listing && (other.first..=other.head).contains(&next);
        // Where another reader has been, this one will not go.
        if next > end || self.streams.iter().any(is_read) { None } else { self.file(listing, next) }
    }

    fn follow(&mut self, spot: Spot) {
        match self.streams.iter().position(|stream| stream.goes_on_at(spot)) {
            Some(at) => {
                let mut stream = self.streams.remove(at);
                stream.head = stream.head.max(spot.index);
                stream.run = stream.run.saturating_add(1);
                if stream.run.is_multiple_of(TRUST_REGAINED_OPENS) {
                    self.trust_opens = (self.trust_opens / 2).max(TRUST_OPENS);
                }
                self.streams.push(stream);
            }
            None => self.begin(spot),
        }
    }

    fn begin(&mut self, spot: Spot) {
        let Spot { listing, index } = spot;
        // Where one has been comes another: that is the next epoch.
        let is_over = |stream: &Stream| stream.listing == listing && (stream.first..=stream.head).contains(&index);
        let over = self.streams.iter().position(is_over);
        if let Some(at) = over.or((self.streams.len() >= STREAMS_MAX).then_some(0)) {
            let ended = self.streams.remove(at);
            self.end(&ended);
        }
        self.streams.push(Stream { listing, first: index, head: index, run: 1, asked_to: index + 1, lost: 0 });
    }

    /// A reader was not seen for long. What it left unread is not kept for it.
    fn end(&mut self, stream: &Stream) {
        let fetched = (stream.head + 1..stream.asked_to).filter_map(|index| self.file(stream.listing, index));
        let unread: Vec<CacheKey> = fetched.map(|file| file.key).filter(|key| self.asked.contains_key(key)).collect();
        unread.iter().for_each(|&key| self.forget(key));
        if stream.lost > 0 || !unread.is_empty() {
            self.trust_opens = (self.trust_opens * 4).min(TRUST_OPENS_MAX);
        }
    }

    /// A file left the cache. If it was fetched for a reader, that was in vain.
    fn lose(&mut self, key: CacheKey) {
        if self.asked.contains_key(&key)
            && let Some(spot) = self.places.get(&key)
        {
            let is_for = |stream: &&mut Stream| {
                stream.listing == spot.listing && (stream.head..stream.asked_to).contains(&spot.index)
            };
            self.streams.iter_mut().filter(is_for).for_each(|stream| stream.lost += 1);
        }
        self.forget(key);
    }

    fn forget(&mut self, key: CacheKey) {
        self.asked_bytes -= self.asked.remove(&key).unwrap_or(0);
    }
}

impl Stream {
    /// Whether an open is this reader's next: what follows, or what was asked for, or near that, the longer it has been
    /// followed the farther.
    fn goes_on_at(&self, spot: Spot) -> bool {
        let tolerated = 1 + self.run / 8;
        let behind = self.run.min(tolerated);
        let ahead = tolerated.max(self.asked_to.saturating_sub(self.head + 1));
        let near = spot.index > self.head.saturating_sub(behind) && spot.index <= self.head.saturating_add(ahead);
        spot.listing == self.listing && near && spot.index != self.head
    }
}
