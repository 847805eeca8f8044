//! Fetching in the order of the folders' listings, as long as that is how files are read.

use super::{AHEAD_PART, DataFile, FORESEEN_BYTES_MAX, PrefetchEvent, PrefetchPolicy, Timeline, Urgency, View, Wanted};
use crate::cache::CacheKey;
use crate::cache::policy::Plan;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;

/// Readers that are followed at the same time, such as the workers of a data loader.
const STREAMS_MAX: usize = 8;

/// Most files that are remembered as listed; those that were listed first are forgotten first. About 90 bytes per file.
const LISTED_MAX: usize = 1 << 20;

/// So many opens one after the other in the listing are taken for a reader in that order.
const TRUST_OPENS: u32 = 3;

/// Most that are asked for after many failures.
const TRUST_OPENS_MAX: u32 = 4096;

/// A run of so many opens that were predicted makes trust easier again.
const TRUST_REGAINED_OPENS: u32 = 64;

/// Follows readers through listings, one folder after the other as they were listed: the window before each slides with every
/// open, hit or miss, and is half as long as the reader was followed. It ends where the folder does, until the reader has gone
/// on into the next. When one turns away from what was fetched for it, the next must be followed four times as long before
/// anything is fetched; so readers in no order, or who soon leave it, cost almost nothing.
///
/// Files that an announced order names are left to that, and large ones to their readers: [`FORESEEN_BYTES_MAX`].
#[derive(Debug)]
pub struct Sequential {
    listed: VecDeque<DataFile>,
    /// The number of the first of them. They are numbered as they come.
    first: u64,
    /// Where folders begin.
    folders: BTreeSet<u64>,
    /// Whether the folder that is being listed ends at the last of them.
    end: End,
    places: HashMap<CacheKey, u64>,
    /// The last to go on is the last.
    streams: Vec<Stream>,
    /// Fetched for a reader that is followed, and not opened yet.
    asked: HashMap<CacheKey, u64>,
    asked_bytes: u64,
    trust_opens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    Closed,
}

/// A reader in the order of listings.
#[derive(Debug)]
struct Stream {
    /// What it opened first.
    first: u64,
    /// What it opened last.
    head: u64,
    /// How many it opened.
    run: u32,
    /// One beyond the last that was asked for it, or tried.
    asked_to: u64,
    /// Files that were fetched for it and left the cache unread.
    lost: u32,
    /// How often it went on from one folder into the next.
    crossed: u32,
}

impl Default for Sequential {
    fn default() -> Self {
        Sequential {
            listed: VecDeque::new(),
            first: 0,
            folders: BTreeSet::new(),
            end: End::Closed,
            places: HashMap::new(),
            streams: Vec::new(),
            asked: HashMap::new(),
            asked_bytes: 0,
            trust_opens: TRUST_OPENS,
        }
    }
}

impl PrefetchPolicy for Sequential {
    fn note(&mut self, event: PrefetchEvent<'_>, timeline: &mut Timeline) {
        match event {
            PrefetchEvent::Listed { first, files } => self.list(first, files),
            PrefetchEvent::Opened(file) => {
                self.forget(file.key);
                if let Some(&place) = self.places.get(&file.key)
                    && timeline.plan(file.key) == Plan::Unknown
                {
                    self.follow(place);
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
        let file = self.search(timeline, view)?;
        let fits = self.asked.is_empty() || self.asked_bytes + file.bytes <= room;
        fits.then_some(Wanted { key: file.key, bytes: file.bytes, place: None, urgency: Urgency::Ahead })
    }

    fn expects(&self, key: CacheKey) -> bool {
        self.asked.contains_key(&key)
    }
}

impl Sequential {
    fn list(&mut self, first: u64, files: &[DataFile]) {
        if first == 0 {
            self.end = End::Closed;
        }
        if self.are_known(files) {
            self.end = if files.is_empty() { self.end } else { End::Closed };
            return;
        }
        if self.end == End::Closed {
            self.folders.insert(self.listed_to());
        }
        self.end = End::Open;
        for &file in files {
            self.places.insert(file.key, self.listed_to());
            self.listed.push_back(file);
        }
        while self.listed.len() > LISTED_MAX {
            self.forget_first();
        }
    }

    /// One beyond the last that is listed.
    fn listed_to(&self) -> u64 {
        self.first + self.listed.len() as u64
    }

    /// Whether they were listed before, in this order.
    fn are_known(&self, files: &[DataFile]) -> bool {
        let place = |file: &DataFile| self.places.get(&file.key).copied();
        let Some(first) = files.first() else { return true };
        place(first)
            .is_some_and(|first| files.iter().zip(first..).all(|(file, expected)| place(file) == Some(expected)))
    }

    fn forget_first(&mut self) {
        if let Some(file) = self.listed.pop_front() {
            if self.places.get(&file.key) == Some(&self.first) {
                self.places.remove(&file.key);
            }
            self.folders.remove(&self.first);
            self.first += 1;
        }
    }

    fn file(&self, place: u64) -> Option<DataFile> {
        self.listed.get(usize::try_from(place.checked_sub(self.first)?).ok()?).copied()
    }

    /// The next file that a followed reader will come to and that is not held, of the reader that went on last.
    fn search(&mut self, timeline: &Timeline, view: &View<'_>) -> Option<DataFile> {
        for at in (0..self.streams.len()).rev() {
            while let Some(file) = self.predicted(at) {
                let fits = file.bytes > 0 && file.bytes <= view.limit_bytes.min(FORESEEN_BYTES_MAX);
                if fits && !(view.is_held)(file.key) && timeline.plan(file.key) == Plan::Unknown {
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
        let (next, end, crossed) = (stream.asked_to, stream.head + u64::from(window), stream.crossed);
        let is_beyond = || crossed == 0 && self.begins_folder(self.streams[at].head + 1..next + 1);
        let is_read = |other: &Stream| (other.first..=other.head).contains(&next);
        // Where another reader has been, this one will not go.
        if next > end || is_beyond() || self.streams.iter().any(is_read) { None } else { self.file(next) }
    }

    /// Whether a folder begins at one of these places, of which there are none for a reader that goes back.
    fn begins_folder(&self, places: Range<u64>) -> bool {
        !places.is_empty() && self.folders.range(places).next().is_some()
    }

    fn follow(&mut self, place: u64) {
        match self.streams.iter().position(|stream| stream.goes_on_at(place)) {
            Some(at) => {
                let mut stream = self.streams.remove(at);
                stream.crossed += u32::from(self.begins_folder(stream.head + 1..place + 1));
                stream.head = stream.head.max(place);
                stream.run = stream.run.saturating_add(1);
                if stream.run.is_multiple_of(TRUST_REGAINED_OPENS) {
                    self.trust_opens = (self.trust_opens / 2).max(TRUST_OPENS);
                }
                self.streams.push(stream);
            }
            None => self.begin(place),
        }
    }

    fn begin(&mut self, place: u64) {
        // Where one has been comes another: that is the next epoch.
        let is_over = |stream: &Stream| (stream.first..=stream.head).contains(&place);
        let over = self.streams.iter().position(is_over);
        if let Some(at) = over.or((self.streams.len() >= STREAMS_MAX).then_some(0)) {
            let ended = self.streams.remove(at);
            self.end(&ended);
        }
        self.streams.push(Stream { first: place, head: place, run: 1, asked_to: place + 1, lost: 0, crossed: 0 });
    }

    /// A reader was not seen for long. What it left unread is not kept for it.
    fn end(&mut self, stream: &Stream) {
        let fetched = (stream.head + 1..stream.asked_to).filter_map(|place| self.file(place));
        let unread: Vec<CacheKey> = fetched.map(|file| file.key).filter(|key| self.asked.contains_key(key)).collect();
        unread.iter().for_each(|&key| self.forget(key));
        if stream.lost > 0 || !unread.is_empty() {
            self.trust_opens = (self.trust_opens * 4).min(TRUST_OPENS_MAX);
        }
    }

    /// A file left the cache. If it was fetched for a reader, that was in vain.
    fn lose(&mut self, key: CacheKey) {
        if self.asked.contains_key(&key)
            && let Some(place) = self.places.get(&key)
        {
            let is_for = |stream: &&mut Stream| (stream.head..stream.asked_to).contains(place);
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
    fn goes_on_at(&self, place: u64) -> bool {
        let tolerated = u64::from(1 + self.run / 8);
        let behind = tolerated.min(u64::from(self.run));
        let ahead = tolerated.max(self.asked_to.saturating_sub(self.head + 1));
        place > self.head.saturating_sub(behind) && place <= self.head + ahead && place != self.head
    }
}
