//! [`Feed`]: which inodes and names changed lately, for those who watch.
//!
//! It lies in memory and is bounded: who asks for more than it remembers is told that everything may have changed. It never
//! tells less than what happened, and may tell more.

use crate::ids::{ClientId, InodeId};
use crate::meta::Name;
use crate::settings::{WATCH_CHANGES_MAX, WATCH_WAIT};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// Changes remembered: tens of seconds of a busy cluster, in a few megabytes.
const REMEMBERED_MAX: usize = 32_768;

/// How long an answer waits for further changes after the first, so that a busy cluster makes no watcher ask more than 200
/// times a second.
const GATHER: Duration = Duration::from_millis(5);

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
    /// Who asked for it.
    pub by: ClientId,
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
}

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// The answer holds all changes up to here.
    pub upto: u64,
    /// In the order in which it happened; `None` if everything may have changed.
    pub changed: Option<Vec<Changed>>,
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

    /// Waits until something changed after `seen`, but not for longer than [`WATCH_WAIT`], and says what.
    pub async fn changes(&self, seen: Option<u64>) -> Changes {
        let mut last = self.last.subscribe();
        let changed = async {
            while self.since(seen).changed.is_some_and(|changed| changed.is_empty()) {
                if last.changed().await.is_err() {
                    return;
                }
            }
            tokio::time::sleep(GATHER).await;
        };
        // However it ends, what is known then is the answer.
        let _ = tokio::time::timeout(WATCH_WAIT, changed).await;
        self.since(seen)
    }

    /// What changed after `seen`, or the beginning of it.
    #[must_use]
    pub fn since(&self, seen: Option<u64>) -> Changes {
        let recent = self.recent();
        let Some(seen) = seen.filter(|seen| (recent.complete_after..=recent.last).contains(seen)) else {
            return Changes { upto: recent.last, changed: None };
        };
        let first = recent.entries.partition_point(|(number, _)| *number <= seen);
        let (mut changed, mut room) = (Vec::new(), WATCH_CHANGES_MAX);
        for (number, entry) in recent.entries.range(first..) {
            changed.push(entry.clone());
            room = room.saturating_sub(entry.what.len());
            if room == 0 {
                return Changes { upto: *number, changed: Some(changed) };
            }
        }
        Changes { upto: recent.last, changed: Some(changed) }
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(client: u64, inos: impl IntoIterator<Item = u64>) -> Changed {
        Changed { by: ClientId(client), what: inos.into_iter().map(|ino| Change::Inode(InodeId(ino))).collect() }
    }

    #[test]
    fn tells_what_came_after_and_nothing_else() {
        let feed = Feed::new(10);
        feed.push(11, by(1, [5]));
        feed.push(12, by(1, []));
        feed.push(13, by(2, [6, 7]));
        assert_eq!(feed.since(Some(10)), Changes { upto: 13, changed: Some(vec![by(1, [5]), by(2, [6, 7])]) });
        assert_eq!(feed.since(Some(11)), Changes { upto: 13, changed: Some(vec![by(2, [6, 7])]) });
        assert_eq!(feed.since(Some(13)), Changes { upto: 13, changed: Some(vec![]) });
    }

    #[test]
    fn what_it_does_not_know_may_be_everything() {
        let feed = Feed::new(10);
        feed.push(11, by(1, [5]));
        let everything = Changes { upto: 11, changed: None };
        for seen in [None, Some(9), Some(12)] {
            assert_eq!(feed.since(seen), everything, "{seen:?}");
        }
        feed.reset(20);
        assert_eq!(feed.since(Some(11)).changed, None);
        assert_eq!(feed.since(Some(20)).changed, Some(vec![]));
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
        // One change too large to remember is everything, too.
        feed.push(pushed + 1, by(1, 0..2 * REMEMBERED_MAX as u64));
        assert_eq!(feed.since(Some(pushed)), Changes { upto: pushed + 1, changed: None });
        assert_eq!(feed.recent().count, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn it_waits_for_the_next_change_and_not_for_ever() {
        let feed = Feed::new(3);
        assert_eq!(feed.changes(Some(3)).await, Changes { upto: 3, changed: Some(vec![]) });
        let push = async {
            tokio::task::yield_now().await;
            feed.push(4, by(1, [9]));
        };
        let (changes, ()) = tokio::join!(feed.changes(Some(3)), push);
        assert_eq!(changes, Changes { upto: 4, changed: Some(vec![by(1, [9])]) });
    }
}
