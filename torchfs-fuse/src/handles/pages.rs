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

impl Handles {
    /// The kernel is about to fill pages with this version; whether those it may have are of the same one.
    pub fn pages_still_good(&self, node: Node, version: Version) -> bool {
        self.tables().known(node, version).pages.replace(version) == Some(version)
    }

    /// Gives the kernel the pages of a version, if its handle is the only one of the node, of which the kernel does not know yet: so
    /// nobody waits for us to fill pages, which are locked meanwhile. Whether it has them now.
    pub fn give_pages(&self, node: Node, version: Version, give: impl FnOnce() -> bool) -> bool {
        {
            let mut tables = self.tables();
            let is_alone = tables.open.get(&node).is_some_and(|open| open.handles == 1);
            if !is_alone || !tables.giving.insert(node) {
                return false;
            }
        }
        // However giving ends, other opens go on.
        let giving = Giving { handles: self, node };
        let is_given = give();
        self.tables().known(node, version).pages = is_given.then_some(version);
        drop(giving);
        is_given
    }

    /// As [`Handles::give_pages`], of a file that nobody has open, and the attributes of which the kernel knows. `are_gone` says whether pages
    /// that it was given before are to be given again.
    pub fn give_pages_ahead(&self, file: CacheKey, are_gone: impl FnOnce() -> bool, give: impl FnOnce(Node) -> bool) {
        let node = {
            let mut tables = self.tables();
            let node = tables.node(file.ino);
            if tables.open.contains_key(&node) || tables.giving.contains(&node) {
                return;
            }
            let Some(known) = tables.known.get_mut(&node) else { return };
            if known.lookups == 0 || known.told != file.version || known.ahead.is_some() {
                return;
            }
            if known.pages == Some(file.version) && !are_gone() {
                known.ahead = Some(Ahead::ReliedOn);
                return;
            }
            tables.giving.insert(node);
            node
        };
        let giving = Giving { handles: self, node };
        let is_given = give(node);
        if let Some(known) = self.tables().known.get_mut(&node)
            && is_given
        {
            (known.pages, known.ahead) = (Some(file.version), Some(Ahead::Given));
        }
        drop(giving);
    }

    /// What was done about the pages of a node before this open of it.
    pub fn take_ahead(&self, node: Node) -> Option<Ahead> {
        self.tables().known.get_mut(&node)?.ahead.take()
    }
}
