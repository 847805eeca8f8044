//! What is open: files, and folders that are being listed.

use crate::caller::{Caller, Writers};
use crate::io_mode::IoMode;
use crate::node::Node;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use torchfs_core::meta::{DirEntry, Name};
use torchfs_core::{File, InodeId};

/// An open file: the content is the inode's, shared by all its handles; what is to be committed when it is closed is the
/// handle's, because closing one must not commit what another is still writing.
#[derive(Clone, Debug)]
pub struct OpenFile {
    pub file: File,
    pub node: Node,
    pub io: IoMode,
    pub intent: Intent,
    writing: Arc<Writing>,
}

/// What a handle is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    Read,
    Write,
}

#[derive(Debug, Default)]
struct Writing {
    changed: AtomicBool,
    writers: Mutex<Writers>,
    relies_on_pages: AtomicBool,
}

impl OpenFile {
    pub fn new(file: File, node: Node, io: IoMode, intent: Intent) -> Self {
        OpenFile { file, node, io, intent, writing: Arc::default() }
    }

    /// Something is about to be changed through this handle.
    pub fn change(&self) -> &File {
        self.writing.changed.store(true, Ordering::Release);
        &self.file
    }

    /// Whether something was changed through this handle since this was asked last.
    pub fn take_changed(&self) -> bool {
        self.writing.changed.swap(false, Ordering::AcqRel)
    }

    /// The kernel should have all pages of it already.
    pub fn rely_on_pages(&self) {
        self.writing.relies_on_pages.store(true, Ordering::Relaxed);
    }

    /// Whether it should have had them, if that was not asked yet.
    pub fn take_reliance(&self) -> bool {
        self.writing.relies_on_pages.load(Ordering::Relaxed)
            && self.writing.relies_on_pages.swap(false, Ordering::Relaxed)
    }

    /// Somebody opened it for writing, or writes.
    pub fn add_writer(&self, caller: Caller) {
        self.writers().add(caller);
    }

    /// Whether what was changed may have been changed by this process.
    pub fn may_be_written_by(&self, caller: Caller) -> bool {
        self.writers().may_include(caller)
    }

    fn writers(&self) -> MutexGuard<'_, Writers> {
        self.writing.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An open folder: one page of its entries, and where each page seen so far began.
#[derive(Debug)]
pub struct OpenDir {
    pub ino: InodeId,
    pub pages: tokio::sync::Mutex<Pages>,
}

/// Entry `n` of a listing has offset `n + 3` after it; 1 and 2 are `.` and `..`.
#[derive(Debug, Default)]
pub struct Pages {
    /// For each page begun: the number of its first entry and the name before it.
    pub starts: Vec<(u64, Option<Name>)>,
    /// Which of `starts` is loaded.
    pub page: usize,
    /// Its entries.
    pub entries: Vec<DirEntry>,
    /// Whether more follow it.
    pub more: bool,
    /// The folder above.
    pub parent: Option<InodeId>,
}

impl Pages {
    /// Entry `number` of the listing, if it is on the page that is loaded.
    pub fn entry(&self, number: u64) -> Option<&DirEntry> {
        let first = self.starts.get(self.page)?.0;
        self.entries.get(usize::try_from(number.checked_sub(first)?).ok()?)
    }
}
