//! What the kernel has of the content of files, and giving it more.

use super::Handles;
use super::nodes::Ahead;
use crate::node::Node;
use torchfs_core::Version;
use torchfs_core::cache::CacheKey;

/// While this lives the kernel is given pages of a node.
struct Giving<'a> {
    handles: &'a Handles,
    node: Node,
}

impl Drop for Giving<'_> {
    fn drop(&mut self) {
        self.handles.tables().giving.remove(&self.node);
        self.handles.given.notify_all();
    }
}

/// What is done in the kernel to give it pages.
pub trait Kernel {
    /// Stores all pages of a file; whether that was done.
    fn store(&self, node: Node) -> bool;
    /// Has it ask for the attributes again.
    fn forget_attributes(&self, node: Node);
}

impl Handles {
    /// The kernel is about to fill pages with this version; whether those it may have are of the same one.
    pub fn pages_still_good(&self, node: Node, version: Version) -> bool {
        self.tables().known(node, version).pages.replace(version) == Some(version)
    }

    /// Gives the kernel the pages of a version, if its handle is the only one of the node, of which the kernel does not know yet: so
    /// nobody waits for us to fill pages, which are locked meanwhile. Whether it has them now.
    pub fn give_pages(&self, node: Node, version: Version, kernel: &impl Kernel) -> bool {
        {
            let mut tables = self.tables();
            let is_alone = tables.open.get(&node).is_some_and(|open| open.handles == 1);
            if !is_alone || !tables.giving.insert(node) {
                return false;
            }
        }
        self.give(node, version, None, kernel)
    }

    /// As [`Handles::give_pages`], of a file that nobody has open, and the attributes of which the kernel knows. `are_gone` says whether pages
    /// that it was given before are to be given again.
    pub fn give_pages_ahead(&self, file: CacheKey, are_gone: impl FnOnce() -> bool, kernel: &impl Kernel) {
        let node = {
            let mut tables = self.tables();
            let node = tables.node(file.ino);
            if tables.open.contains_key(&node) || tables.giving.contains(&node) {
                return;
            }
            let Some(known) = tables.known.get_mut(&node) else { return };
            if known.lookups == 0 || !known.has_attributes_of(file.version) || known.ahead.is_some() {
                return;
            }
            if known.pages == Some(file.version) && !are_gone() {
                known.ahead = Some(Ahead::ReliedOn);
                return;
            }
            tables.giving.insert(node);
            node
        };
        self.give(node, file.version, Some(Ahead::Given), kernel);
    }

    /// Gives pages of a node that is marked so. With them the kernel takes the file to be as long as they are: if it was told of another
    /// version meanwhile, it is to ask again, and they do not count.
    fn give(&self, node: Node, version: Version, ahead: Option<Ahead>, kernel: &impl Kernel) -> bool {
        // However giving ends, opens that wait for it go on.
        let _giving = Giving { handles: self, node };
        if !kernel.store(node) {
            return false;
        }
        let is_told = {
            let mut tables = self.tables();
            // One that it forgot meanwhile has neither pages nor attributes.
            let Some(known) = tables.known.get_mut(&node) else { return false };
            let is_told = known.told == version;
            known.pages = is_told.then_some(version);
            known.ahead = ahead.filter(|_| is_told);
            is_told
        };
        if !is_told {
            kernel.forget_attributes(node);
        }
        is_told
    }

    /// What was done about the pages of a node before this open of it.
    pub fn take_ahead(&self, node: Node) -> Option<Ahead> {
        self.tables().known.get_mut(&node)?.ahead.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::special::Special;
    use std::cell::Cell;
    use std::time::SystemTime;
    use torchfs_core::InodeId;
    use torchfs_core::meta::{Attr, FileKind};

    const OLD: Version = Version(3);
    const NEW: Version = Version(4);

    fn attr(version: Version) -> Attr {
        let any = Special::Stats.attr(SystemTime::UNIX_EPOCH);
        Attr { ino: InodeId(7), kind: FileKind::File, version, size: 10, ..any }
    }

    fn node() -> Node {
        Node::first(InodeId(7))
    }

    /// One that does something else while it stores.
    struct Busy<F> {
        meanwhile: F,
        stores: Cell<u32>,
        forgets: Cell<u32>,
    }

    impl<F: Fn()> Busy<F> {
        fn with(meanwhile: F) -> Self {
            Busy { meanwhile, stores: Cell::new(0), forgets: Cell::new(0) }
        }
    }

    impl<F: Fn()> Kernel for Busy<F> {
        fn store(&self, stored: Node) -> bool {
            assert_eq!(stored, node());
            self.stores.set(self.stores.get() + 1);
            (self.meanwhile)();
            true
        }

        fn forget_attributes(&self, _node: Node) {
            self.forgets.set(self.forgets.get() + 1);
        }
    }

    fn ahead(handles: &Handles, version: Version, are_gone: bool, meanwhile: impl Fn()) -> (u32, u32, Option<Ahead>) {
        let kernel = Busy::with(meanwhile);
        handles.give_pages_ahead(CacheKey { ino: InodeId(7), version }, || are_gone, &kernel);
        assert!(handles.tables().giving.is_empty());
        (kernel.stores.get(), kernel.forgets.get(), handles.take_ahead(node()))
    }

    #[test]
    fn pages_go_ahead_to_a_kernel_that_knows_that_version_of_the_file() {
        let handles = Handles::default();
        assert_eq!(ahead(&handles, OLD, true, || ()), (0, 0, None), "it knows no such file");
        handles.looked_up(node(), &attr(OLD));
        assert_eq!(ahead(&handles, NEW, true, || ()), (0, 0, None), "it knows another version");
        assert_eq!(ahead(&handles, OLD, true, || ()), (1, 0, Some(Ahead::Given)));
        assert_eq!(ahead(&handles, OLD, false, || ()), (0, 0, Some(Ahead::ReliedOn)), "it has them");
        assert_eq!(ahead(&handles, OLD, true, || ()), (1, 0, Some(Ahead::Given)), "they are gone");
        assert!(handles.pages_still_good(node(), OLD));
        handles.forget(node(), 1);
        assert_eq!(ahead(&handles, OLD, true, || ()), (0, 0, None), "it knows it no more");
    }

    #[test]
    fn pages_that_a_change_overtakes_do_not_count_and_attributes_are_asked_for_again() {
        let handles = Handles::default();
        handles.looked_up(node(), &attr(OLD));
        assert!(!handles.pages_still_good(node(), OLD));
        let told = || {
            handles.tell(node(), &attr(NEW));
        };
        assert_eq!(ahead(&handles, OLD, true, told), (1, 1, None), "another client's change");
        assert!(!handles.pages_still_good(node(), NEW));
        assert_eq!(ahead(&handles, NEW, true, || ()), (0, 0, None), "it may have passed over what it was told");
        handles.attributes_forgotten(node(), OLD);
        assert_eq!(ahead(&handles, NEW, true, || ()), (0, 0, None), "another version is open");
        handles.attributes_forgotten(node(), NEW);
        assert_eq!(ahead(&handles, NEW, true, || ()), (1, 0, Some(Ahead::Given)));
        handles.not_stored(node());
        assert!(!handles.pages_still_good(node(), NEW), "somebody wrote over them");
        handles.tell(node(), &attr(OLD));
        handles.attributes_forgotten(node(), OLD);
        assert!(!handles.pages_still_good(node(), OLD));
        assert_eq!(ahead(&handles, OLD, true, || handles.committed(InodeId(7), NEW)), (1, 1, None), "truncate(2) here");
        assert!(!handles.pages_still_good(node(), NEW), "they are of the version before");
        handles.tell(node(), &attr(OLD));
        handles.attributes_forgotten(node(), OLD);
        assert_eq!(ahead(&handles, OLD, true, || handles.forget(node(), 1)), (1, 0, None));
        assert!(handles.tables().known.is_empty(), "what the kernel forgot meanwhile is forgotten");
    }
}
