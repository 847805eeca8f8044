//! Giving the kernel the pages of small files of an announced order: with their open, or ahead of it.

use super::{PASSTHROUGH_BYTES_MIN, Volume};
use crate::caller::Caller;
use crate::handles::{Ahead, Kernel, OpenFile};
use crate::node::Node;
use crate::pages;
use torchfs_core::meta::Attr;
use torchfs_core::prefetch::DataFile;

/// Whether a file is read through the kernel's page cache.
fn is_small(bytes: u64) -> bool {
    (1..PASSTHROUGH_BYTES_MIN).contains(&bytes)
}

/// A file whose pages the kernel may be given.
struct Give<'a, R> {
    volume: &'a Volume,
    bytes: u64,
    /// Reads all of it, if that takes no waiting.
    read: R,
}

impl<R: Fn(&mut [u8]) -> bool> Kernel for Give<'_, R> {
    fn store(&self, node: Node) -> bool {
        let Some(notifier) = self.volume.notifier.get() else { return false };
        let store = |bytes: &[u8]| notifier.store(node.number(), 0, bytes).is_ok();
        pages::with_buffer(self.bytes as usize, |buffer| (self.read)(buffer) && store(buffer))
    }

    fn forget_attributes(&self, node: Node) {
        self.volume.forget_attributes([node]);
    }
}

impl Volume {
    /// Whether the kernel has pages of this version, which are given to it if it will want them and they are at hand.
    pub(super) fn has_pages(&self, node: Node, open: &OpenFile, attr: &Attr) -> bool {
        let are_known = self.handles.pages_still_good(node, attr.version);
        let ahead = self.handles.take_ahead(node);
        if !is_small(attr.size) || self.tracer.is_recording() || !open.file.is_announced() {
            return are_known;
        }
        if are_known && ahead == Some(Ahead::Given) {
            return true;
        }
        if are_known && (ahead == Some(Ahead::ReliedOn) || !self.pages.may_be_gone()) {
            open.rely_on_pages();
            return true;
        }
        let read = |out: &mut [u8]| open.file.read_now(out);
        self.handles.give_pages(node, attr.version, &Give { volume: self, bytes: attr.size, read }) || are_known
    }

    /// The small file that an announced order has after this one, if one reader alone follows the order.
    pub(super) fn next_to_give(&self, open: &OpenFile, reader: Caller) -> Option<DataFile> {
        let next = open.file.next_announced()?;
        if !is_small(next.bytes) || !self.pages.is_same_reader(reader) {
            return None;
        }
        self.awake.opened();
        Some(next)
    }

    /// Gives the kernel the pages of a file that is about to be opened, while its reader is busy with the one before.
    pub fn give_pages_ahead(&self, next: DataFile) {
        if !self.tracer.is_recording() {
            let read = |out: &mut [u8]| self.client.read_now(next, out);
            let give = Give { volume: self, bytes: next.bytes, read };
            self.handles.give_pages_ahead(next.key, || self.pages.may_be_gone(), &give);
        }
    }
}
