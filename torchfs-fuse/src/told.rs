//! [`Told`]: what the kernel was told a moment ago and may still answer by itself, so what it must be told to forget when
//! another client changes it.
//!
//! A guess is enough: what is missing here is forgotten by the kernel itself a moment later.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use torchfs_core::InodeId;
use torchfs_core::meta::{Change, Name};

/// Names and inodes kept: what a listing of a very large folder tells. A few megabytes.
const TOLD_MAX: usize = 65_536;

/// What one mount told its kernel.
#[derive(Debug)]
pub struct Told {
    /// How long the kernel may answer from what it is told.
    pub ttl: Duration,
    told: Mutex<HashMap<Change, Entry>>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    until: Instant,
    /// Whose attributes they are, or where the name leads.
    ino: InodeId,
}

impl Told {
    pub fn new(ttl: Duration) -> Self {
        Told { ttl, told: Mutex::default() }
    }

    /// The kernel is told an inode's attributes.
    pub fn inode(&self, ino: InodeId) {
        self.add(ino, [Change::Inode(ino)]);
    }

    /// The kernel is told that this name leads to the inode, and the inode's attributes.
    pub fn entry(&self, parent: InodeId, name: Name, ino: InodeId) {
        self.add(ino, [Change::Name(parent, name), Change::Inode(ino)]);
    }

    fn add<const N: usize>(&self, ino: InodeId, changes: [Change; N]) {
        let now = Instant::now();
        let mut told = self.told();
        told.extend(changes.map(|change| (change, Entry { until: now + self.ttl, ino })));
        if told.len() > TOLD_MAX {
            told.retain(|_, entry| entry.until > now);
        }
        if told.len() > TOLD_MAX {
            told.clear();
        }
    }

    /// Whether the kernel may still answer from it, which this takes to end now.
    pub fn take(&self, change: &Change) -> bool {
        let entry = self.told().remove(change);
        entry.is_some_and(|entry| entry.until > Instant::now())
    }

    /// The names that lead to an inode and that the kernel may still answer from, which this takes to end now.
    pub fn take_names(&self, ino: InodeId) -> Vec<Change> {
        let now = Instant::now();
        let is_name = |change: &Change, entry: &mut Entry| {
            matches!(change, Change::Name(..)) && entry.ino == ino && entry.until > now
        };
        self.told().extract_if(is_name).map(|(name, _)| name).collect()
    }

    /// The names that the kernel may answer without asking, and some more: the folder, the name, and where it leads.
    pub fn names(&self) -> Vec<(InodeId, Name, InodeId)> {
        let name = |(change, entry): (&Change, &Entry)| match change {
            Change::Name(parent, name) => Some((*parent, name.clone(), entry.ino)),
            Change::Inode(_) => None,
        };
        self.told().iter().filter_map(name).collect()
    }

    fn told(&self) -> MutexGuard<'_, HashMap<Change, Entry>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    #[test]
    fn what_was_told_is_taken_back_once() {
        let told = Told::new(Duration::from_secs(3600));
        told.entry(InodeId(1), name("a"), InodeId(2));
        assert_eq!(told.take_names(InodeId(1)), []);
        assert_eq!(told.take_names(InodeId(2)), [Change::Name(InodeId(1), name("a"))]);
        assert_eq!(told.take_names(InodeId(2)), []);
        told.entry(InodeId(1), name("a"), InodeId(2));
        let (entry, inode) = (Change::Name(InodeId(1), name("a")), Change::Inode(InodeId(2)));
        assert!(!told.take(&Change::Name(InodeId(1), name("b"))) && !told.take(&Change::Inode(InodeId(1))));
        assert_eq!(told.names(), [(InodeId(1), name("a"), InodeId(2))]);
        assert!(told.take(&entry) && !told.take(&entry));
        assert!(told.names().is_empty());
        assert!(told.take(&inode));
        told.inode(InodeId(2));
        assert!(told.take(&inode));
    }

    #[test]
    fn what_the_kernel_has_forgotten_by_itself_is_not_taken_back() {
        let told = Told::new(Duration::ZERO);
        told.inode(InodeId(2));
        assert!(!told.take(&Change::Inode(InodeId(2))));
    }

    #[test]
    fn it_is_bounded() {
        let told = Told::new(Duration::from_secs(3600));
        (0..3 * TOLD_MAX as u64).for_each(|ino| told.inode(InodeId(ino)));
        assert!(told.told().len() <= TOLD_MAX);
    }
}
