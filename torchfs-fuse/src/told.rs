//! [`Told`]: what the kernel was told a moment ago and may still answer by itself, so what it must be told to forget when
//! another client changes it.
//!
//! A guess is enough: what is missing here is forgotten by the kernel itself a moment later.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
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
    until: Mutex<HashMap<Change, Instant>>,
}

impl Told {
    pub fn new(ttl: Duration) -> Self {
        Told { ttl, until: Mutex::default() }
    }

    /// The kernel is told an inode's attributes.
    pub fn inode(&self, ino: InodeId) {
        self.add([Change::Inode(ino)]);
    }

    /// The kernel is told that this name leads to the inode, and the inode's attributes.
    pub fn entry(&self, parent: InodeId, name: Name, ino: InodeId) {
        self.add([Change::Name(parent, name), Change::Inode(ino)]);
    }

    fn add<const N: usize>(&self, told: [Change; N]) {
        let now = Instant::now();
        let mut until = self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.extend(told.map(|change| (change, now + self.ttl)));
        if until.len() > TOLD_MAX {
            until.retain(|_, until| *until > now);
        }
        if until.len() > TOLD_MAX {
            until.clear();
        }
    }

    /// Whether the kernel may still answer from it, which this takes to end now.
    pub fn take(&self, change: &Change) -> bool {
        let until = self.until.lock().unwrap_or_else(PoisonError::into_inner).remove(change);
        until.is_some_and(|until| until > Instant::now())
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
        let (entry, inode) = (Change::Name(InodeId(1), name("a")), Change::Inode(InodeId(2)));
        assert!(!told.take(&Change::Name(InodeId(1), name("b"))) && !told.take(&Change::Inode(InodeId(1))));
        assert!(told.take(&entry) && !told.take(&entry));
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
        assert!(told.until.lock().expect("lock").len() <= TOLD_MAX);
    }
}
