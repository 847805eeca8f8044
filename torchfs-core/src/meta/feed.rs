//! [`Feed`]: which inodes and names changed lately, for those who watch.
//!
//! It lies in memory and is bounded: who asks for more than it remembers is told that everything may have changed. It never
//! tells less than what happened, and may tell more.

use crate::ids::{ClientId, InodeId, RequestId};
use crate::meta::Name;
use crate::settings::{WATCH_CHANGES_MAX, WATCH_WAIT};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Changes remembered: tens of seconds of a busy cluster, in a few megabytes.
const REMEMBERED_MAX: usize = 32_768;

/// Something that may be another than before.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Change {
    /// An inode: its attributes, content, extended attributes or, of a folder, some of its names.
    Inode(InodeId),
    /// What a name in a folder leads to.
    Name(InodeId, Name),
}

/// What one client's request changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// What asked for it.
    pub by: RequestId,
    /// What it changed.
    pub what: Vec<Change>,
}

/// "What changed since?", asked again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Who watches.
    pub client: ClientId,
    /// The `upto` of the answer before; none at first.
    pub seen: Option<u64>,
    /// What it wants beside the changes.
    pub wish: Wish,
}

/// What a watcher wants of its lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// A lease, the first or a longer one.
    Lease,
    /// Nothing: the one that it has may run out.
    Nothing,
    /// That the one that it has ends now. It never wants one again, and an answer at once.
    Leave,
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The answer holds all changes up to here.
    pub upto: u64,
    /// In the order in which it happened; `None` if everything may have changed.
    pub changed: Option<Vec<Changed>>,
    /// For this long, counted from when it asked, the client may trust what it remembers and was not told of. Zero: not at
    /// all.
    pub lease: Duration,
}

/// The changes of one copy of the state, numbered like what caused them: rising, with gaps.
#[derive(Debug)]
pub struct Feed {
    recent: Mutex<Recent>,
    last: watch::Sender<u64>,
}

#[derive(Debug)]
struct Recent {
    entries: VecDeque<(u64, Changed)>,
    /// Changes in `entries`.
    count: usize,
    /// All that happened after this is in `entries`.
    complete_after: u64,
    last: u64,
}

impl Feed {
    /// A feed of a state that reflects everything up to `last`.
    #[must_use]
    pub fn new(last: u64) -> Self {
        let recent = Recent { entries: VecDeque::new(), count: 0, complete_after: last, last };
        Feed { recent: Mutex::new(recent), last: watch::channel(last).0 }
    }

    /// What happened at `number` is in the state now.
    pub fn push(&self, number: u64, changed: Changed) {
        let mut recent = self.recent();
        recent.last = number;
        if changed.what.is_empty() {
            return;
        }
        recent.count += changed.what.len();
        recent.entries.push_back((number, changed));
        while recent.count > REMEMBERED_MAX
            && let Some((number, forgotten)) = recent.entries.pop_front()
        {
            recent.count -= forgotten.what.len();
            recent.complete_after = number;
        }
        drop(recent);
        self.last.send_replace(number);
    }

    /// The state is another one, which reflects everything up to `last`.
    pub fn reset(&self, last: u64) {
        *self.recent() = Recent { entries: VecDeque::new(), count: 0, complete_after: last, last };
        self.last.send_replace(last);
    }

    /// The number of the last change.
    #[must_use]
    pub fn last_change(&self) -> u64 {
        *self.last.borrow()
    }

    /// The number of the last change that `client` made up to `number`, itself included, or a later one if that is not
    /// remembered.
    #[must_use]
    pub fn last_change_by(&self, client: ClientId, number: u64) -> u64 {
        let recent = self.recent();
        let mut before = recent.entries.iter().rev().skip_while(|(other, _)| *other > number);
        let last =
            before.find(|(_, changed)| changed.by.client == client).map_or(recent.complete_after, |(other, _)| *other);
        last.min(number)
    }

    /// Waits until something changed that the watcher has not seen, but not for longer than [`WATCH_WAIT`], and says what;
    /// `gather` after the first change others are taken along. Its own changes it need not be told at once.
    pub async fn changes(&self, watch: Watch, gather: Duration) -> Changes {
        let mut last = self.last.subscribe();
        let changed = async {
            while !self.has_news(watch) {
                if last.changed().await.is_err() {
                    return;
                }
            }
            // Even the shortest sleep is a millisecond.
            if !gather.is_zero() {
                tokio::time::sleep(gather).await;
            }
        };
        // However it ends, what is known then is the answer.
        let _ = tokio::time::timeout(WATCH_WAIT, changed).await;
        self.since(watch.seen)
    }

    /// Whether there is something to tell that others did.
    fn has_news(&self, watch: Watch) -> bool {
        let recent = self.recent();
        let Some(seen) = recent.known(watch.seen) else { return true };
        recent.after(seen).any(|(_, changed)| changed.by.client != watch.client)
    }

    /// What changed after `seen`, or the beginning of it.
    #[must_use]
    pub fn since(&self, seen: Option<u64>) -> Changes {
        let recent = self.recent();
        let Some(seen) = recent.known(seen) else {
            return Changes { upto: recent.last, changed: None, lease: Duration::ZERO };
        };
        let (mut changed, mut room) = (Vec::new(), WATCH_CHANGES_MAX);
        for (number, entry) in recent.after(seen) {
            changed.push(entry.clone());
            room = room.saturating_sub(entry.what.len());
            if room == 0 {
                return Changes { upto: *number, changed: Some(changed), lease: Duration::ZERO };
            }
        }
        Changes { upto: recent.last, changed: Some(changed), lease: Duration::ZERO }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Recent {
    /// What was seen, if everything after it is remembered.
    fn known(&self, seen: Option<u64>) -> Option<u64> {
        seen.filter(|seen| (self.complete_after..=self.last).contains(seen))
    }

    fn after(&self, seen: u64) -> impl Iterator<Item = &(u64, Changed)> {
        self.entries.range(self.entries.partition_point(|(number, _)| *number <= seen)..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::WATCH_GATHER;

    fn by(client: u64, inos: impl IntoIterator<Item = u64>) -> Changed {
        let by = RequestId { client: ClientId(client), sequence: 1 };
        Changed { by, what: inos.into_iter().map(|ino| Change::Inode(InodeId(ino))).collect() }
    }

    fn watch(seen: u64) -> Watch {
        Watch { client: ClientId(2), seen: Some(seen), wish: Wish::Lease }
    }

    fn told_all(upto: u64) -> Changes {
        told(upto, None)
    }

    fn told(upto: u64, changed: Option<Vec<Changed>>) -> Changes {
        Changes { upto, changed, lease: Duration::ZERO }
    }

    #[test]
    fn tells_what_came_after_and_nothing_else() {
        let feed = Feed::new(10);
        feed.push(11, by(1, [5]));
        feed.push(12, by(1, []));
        feed.push(13, by(2, [6, 7]));
        assert_eq!(feed.since(Some(10)), told(13, Some(vec![by(1, [5]), by(2, [6, 7])])));
        assert_eq!(feed.since(Some(11)), told(13, Some(vec![by(2, [6, 7])])));
        assert_eq!(feed.since(Some(13)), told(13, Some(vec![])));
    }

    #[test]
    fn what_it_does_not_know_may_be_everything() {
        let feed = Feed::new(10);
        feed.push(11, by(1, [5]));
        let everything = told(11, None);
        for seen in [None, Some(9), Some(12)] {
            assert_eq!(feed.since(seen), everything, "{seen:?}");
        }
        feed.reset(20);
        assert_eq!(feed.since(Some(11)).changed, None);
        assert_eq!(feed.since(Some(20)).changed, Some(vec![]));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_woken_by_its_own_changes_and_all_are_told_of_them() {
        let feed = Feed::new(3);
        let start = tokio::time::Instant::now();
        feed.push(4, by(2, [9]));
        assert_eq!(feed.changes(watch(3), WATCH_GATHER).await, told(4, Some(vec![by(2, [9])])));
        assert!(start.elapsed() >= WATCH_WAIT);
        feed.push(5, by(1, [9]));
        let start = tokio::time::Instant::now();
        feed.changes(watch(3), Duration::ZERO).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[test]
    fn it_knows_which_change_of_a_client_was_the_last_until_then() {
        let feed = Feed::new(3);
        for (number, client) in [(4, 1), (5, 2), (7, 1), (8, 2)] {
            feed.push(number, by(client, [9]));
        }
        feed.push(9, by(1, []));
        let last = |number| feed.last_change_by(ClientId(1), number);
        assert_eq!([2, 3, 4, 5, 6, 7, 8, 9, 10].map(last), [2, 3, 4, 4, 4, 7, 7, 7, 7]);
        feed.reset(20);
        assert_eq!([19, 21].map(|number| feed.last_change_by(ClientId(1), number)), [19, 20]);
    }

    #[test]
    fn it_is_bounded_and_so_are_its_answers() {
        let feed = Feed::new(0);
        let each = 100;
        let pushed = (2 * REMEMBERED_MAX / each) as u64;
        (1..=pushed).for_each(|number| feed.push(number, by(1, 0..each as u64)));
        assert!(feed.recent().count <= REMEMBERED_MAX && feed.recent().entries.len() <= REMEMBERED_MAX / each);
        assert_eq!(feed.since(Some(1)).changed, None);
        let (mut seen, mut told) = (feed.recent().complete_after, 0);
        let expected = feed.recent().count;
        while seen < pushed {
            let changes = feed.since(Some(seen));
            let count: usize = changes.changed.expect("it remembers").iter().map(|changed| changed.what.len()).sum();
            assert!(count > 0 && count < WATCH_CHANGES_MAX + each);
            (seen, told) = (changes.upto, told + count);
        }
        assert_eq!(told, expected);
        let everything = told_all(pushed + 1);
        // One change too large to remember is everything, too.
        feed.push(pushed + 1, by(1, 0..2 * REMEMBERED_MAX as u64));
        assert_eq!(feed.since(Some(pushed)), everything);
        assert_eq!(feed.recent().count, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_the_next_change_and_not_for_ever() {
        let feed = Feed::new(3);
        assert_eq!(feed.changes(watch(3), WATCH_GATHER).await, told(3, Some(vec![])));
        let push = async {
            tokio::task::yield_now().await;
            feed.push(4, by(1, [9]));
        };
        let (changes, ()) = tokio::join!(feed.changes(watch(3), WATCH_GATHER), push);
        assert_eq!(changes, told(4, Some(vec![by(1, [9])])));
    }
}
