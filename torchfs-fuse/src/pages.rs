//! [`Pages`]: small files of an announced order are given to the kernel whole (FUSE_NOTIFY_STORE), so that it need not ask for their bytes: of
//! the time that such a file takes, a third was that question. A single reader is given the next one while it is busy with the one before;
//! others get theirs when they open it.
//!
//! Pages that the kernel was given or read before it may still have, and giving them again takes longer than opening the file. It does
//! not tell, but it asks for what it lacks. So opens are watched: those that rely on pages of before, and whether these are asked for.

use crate::caller::Caller;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// One of so many opens relies on pages of before, also while others found them gone.
const TRIED_OF: u32 = 16;

thread_local! {
    /// Where files are read into before the kernel copies them: less than 1 MiB for each thread that does so.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Lends so many bytes, which are anything.
pub fn with_buffer<T>(bytes: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        work(&mut buffer[..bytes])
    })
}

/// What is known of the kernel's memory.
#[derive(Debug, Default)]
pub struct Pages {
    are_gone: AtomicBool,
    opens: AtomicU32,
    last_reader: AtomicU32,
}

impl Pages {
    /// Whether pages that the kernel had are to be given again.
    pub fn may_be_gone(&self) -> bool {
        self.are_gone.load(Ordering::Relaxed) && !self.opens.fetch_add(1, Ordering::Relaxed).is_multiple_of(TRIED_OF)
    }

    /// Notes who opens a file of an announced order; whether the one before was opened by the same. Several readers keep all of the machine
    /// busy, and one of them is about to open what comes next: it would wait for whoever gives that ahead.
    pub fn is_same_reader(&self, reader: Caller) -> bool {
        self.last_reader.swap(reader.0, Ordering::Relaxed) == reader.0
    }

    /// A handle relied on pages: they were gone, or it was closed without asking for any.
    pub fn found(&self, are_gone: bool) {
        self.are_gone.store(are_gone, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_open_finds_the_next_ones_go_by_and_some_try_again() {
        let pages = Pages::default();
        assert!((0..100).all(|_| !pages.may_be_gone()), "nothing is known");
        pages.found(true);
        let given = (0..160).filter(|_| pages.may_be_gone()).count();
        assert_eq!(given, 150);
        pages.found(false);
        assert!(!pages.may_be_gone());
    }
}
