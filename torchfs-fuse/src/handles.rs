//! What is open: files and folders by handle number, and files by inode, because the attributes of a file that is being
//! written are those of the open file.

mod nodes;
mod open;
mod pages;

pub use nodes::Ahead;
pub use open::{Intent, OpenDir, OpenFile, Pages};
pub use pages::Kernel;

use crate::caller::Caller;
use crate::io_mode::{IoMode, IoModes};
use crate::node::Node;
use bytes::Bytes;
use nodes::{OpenNode, Tables, Turned};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use torchfs_core::meta::{Attr, FileKind};
use torchfs_core::{Error, File, InodeId, Kind, Version};

/// A new handle.
#[derive(Debug)]
pub struct Inserted {
    pub number: u64,
    pub open: OpenFile,
    /// Whether the kernel has the attributes of the version that is open. If not, it must forget them.
    pub is_told: bool,
}

/// Why there is no new handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotInserted {
    /// It belongs to another node of the inode, to which names lead now.
    Elsewhere,
    /// A later version was opened meanwhile.
    Outdated,
}

/// All handles of one mount.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    tables: Mutex<Tables>,
    given: Condvar,
}

fn bad_handle(number: u64) -> Error {
    Error::new(Kind::InvalidInput, format!("handle {number} is not open"))
}

impl Handles {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number that no other handle has.
    pub fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What an open goes on with that found `file`; `None` if it must be sent back: names lead to another node, or the kernel has attributes of
    /// another version. It tries again once. The second try finds the node that names lead to; or it came without a name, as from /proc/self/fd;
    /// or there was another change meanwhile. What readers keep there is right then.
    pub fn admit(&self, node: Node, file: File, intent: Intent, caller: Caller) -> Option<File> {
        let mut tables = self.tables();
        let is_second = tables.sent_back.remove(&caller) == Some(node.ino());
        let version = file.attr().version;
        let is_told = tables.known.get(&node).is_none_or(|known| known.told == version);
        let admitted = if tables.is_left(node, version) {
            let kept = tables.open.get(&node).filter(|_| is_second && intent == Intent::Read);
            kept.map(|open| open.file.clone())
        } else {
            (is_second || is_told).then_some(file)
        };
        if admitted.is_none() && !is_second {
            tables.send_back(node.ino(), caller);
        }
        admitted
    }

    /// A new handle. `choose` says how the kernel may do its input and output, given how others of the node do.
    pub fn insert_file(
        &self,
        node: Node,
        file: File,
        intent: Intent,
        caller: Caller,
        choose: impl FnOnce(&mut IoModes) -> Option<IoMode>,
    ) -> Result<Inserted, NotInserted> {
        let number = self.number();
        let is_giving = |tables: &mut Tables| tables.giving.contains(&node);
        let mut tables = self.given.wait_while(self.tables(), is_giving).unwrap_or_else(PoisonError::into_inner);
        let version = file.attr().version;
        let is_left = tables.is_left(node, version);
        let first = || OpenNode { file: file.clone(), handles: 0, writers: 0, io: IoModes::default() };
        let held = tables.open.get(&node).filter(|open| open.writers == 0).and_then(|open| open.io.version());
        if !is_left && held.is_some_and(|held| held > version) {
            return Err(NotInserted::Outdated);
        }
        let may_join = !is_left || intent == Intent::Read && held == Some(version);
        let opened = may_join.then(|| tables.open.entry(node).or_insert_with(first));
        let Some((opened, io)) = opened.and_then(|opened| choose(&mut opened.io).map(|io| (opened, io))) else {
            tables.leave(node);
            tables.send_back(node.ino(), caller);
            return Err(NotInserted::Elsewhere);
        };
        opened.handles += 1;
        opened.writers += usize::from(intent == Intent::Write);
        let file = if is_left { file.snapshot() } else { file };
        let open = OpenFile::new(file, node, io, intent);
        tables.files.insert(number, open.clone());
        let known = tables.known(node, version);
        known.tell(version);
        Ok(Inserted { number, open, is_told: known.is_sure })
    }

    /// The kernel forgot the attributes of a node, of which this version is open: whatever it asks for from now on is answered with that, or
    /// with a later one.
    pub fn attributes_forgotten(&self, node: Node, version: Version) {
        if let Some(known) = self.tables().known.get_mut(&node) {
            known.is_sure |= known.told == version;
        }
    }

    /// What was written to a node is not stored, and may never be: the pages that the kernel has of it, and how long it takes it to be, are of no
    /// version.
    pub fn not_stored(&self, node: Node) {
        if let Some(known) = self.tables().known.get_mut(&node) {
            (known.pages, known.is_sure, known.ahead) = (None, false, None);
        }
    }

    /// The node under which the kernel is told these attributes.
    pub fn node(&self, attr: &Attr) -> Node {
        self.tables().node_of(attr)
    }

    /// One that the kernel reads from no local file.
    pub fn node_for_io(&self, attr: &Attr) -> Node {
        let mut tables = self.tables();
        let node = tables.node_of(attr);
        if tables.open.get(&node).is_some_and(|open| open.io.backing_version().is_some()) {
            tables.leave(node);
        }
        tables.node(attr.ino)
    }

    /// All that the kernel may know an inode by.
    pub fn nodes(&self, ino: InodeId) -> Vec<Node> {
        let tables = self.tables();
        match tables.turned.get(&ino) {
            Some(_) => tables.nodes(ino).filter(|node| tables.known.contains_key(node)).collect(),
            None => vec![Node::first(ino)],
        }
    }

    /// Whether names lead to another node, or are about to as there is this version.
    pub fn is_left(&self, node: Node, version: Version) -> bool {
        self.tables().is_left(node, version)
    }

    /// Whether names of an inode will lead to another node once the kernel hears that another client changed its content.
    pub fn will_keep(&self, ino: InodeId) -> bool {
        let tables = self.tables();
        tables.open.get(&tables.node(ino)).is_some_and(|open| open.keeps_from(Version(u64::MAX)))
    }

    /// Whether the inode got another node a moment ago: whoever needs it is about to open it.
    pub fn turned_lately(&self, ino: InodeId) -> bool {
        self.tables().turned.get(&ino).is_some_and(Turned::is_new)
    }

    pub fn file(&self, number: u64) -> torchfs_core::Result<OpenFile> {
        self.tables().files.get(&number).cloned().ok_or_else(|| bad_handle(number))
    }

    /// An open file of the inode that goes along with what is written here, if there is one.
    pub fn file_of(&self, ino: InodeId) -> Option<File> {
        let tables = self.tables();
        tables.open.get(&tables.node(ino)).map(|open| open.file.clone())
    }

    /// An open file of the node, if there is one.
    pub fn file_at(&self, node: Node) -> Option<File> {
        self.tables().open.get(&node).map(|open| open.file.clone())
    }

    /// Whether the kernel reads this version from a local file for a handle.
    pub fn passes_through(&self, node: Node, version: Version) -> bool {
        self.tables().open.get(&node).is_some_and(|open| open.io.backing_version() == Some(version))
    }

    /// Closes a handle.
    pub fn remove_file(&self, number: u64) -> Option<OpenFile> {
        let mut tables = self.tables();
        let closed = tables.files.remove(&number)?;
        if let Some(open) = tables.open.get_mut(&closed.node) {
            open.handles -= 1;
            open.writers -= usize::from(closed.intent == Intent::Write);
            open.io.closed(&closed.io);
            if open.handles == 0 {
                tables.open.remove(&closed.node);
            }
        }
        Some(closed)
    }

    /// A new handle on a text that stays as it is while it is open.
    pub fn insert_text(&self, text: Bytes) -> u64 {
        let number = self.number();
        self.tables().texts.insert(number, text);
        number
    }

    pub fn text(&self, number: u64) -> Option<Bytes> {
        self.tables().texts.get(&number).cloned()
    }

    /// Closes a handle on a text, if it is one.
    pub fn remove_text(&self, number: u64) -> bool {
        self.tables().texts.remove(&number).is_some()
    }

    pub fn insert_dir(&self, ino: InodeId) -> u64 {
        let number = self.number();
        let dir = OpenDir { ino, pages: tokio::sync::Mutex::default() };
        self.tables().dirs.insert(number, Arc::new(dir));
        number
    }

    pub fn dir(&self, number: u64) -> torchfs_core::Result<Arc<OpenDir>> {
        self.tables().dirs.get(&number).cloned().ok_or_else(|| bad_handle(number))
    }

    pub fn remove_dir(&self, number: u64) {
        self.tables().dirs.remove(&number);
    }

    /// The kernel is told these attributes; of a file it keeps in mind which version they are of. If readers keep an older one, that
    /// is the one to tell.
    pub fn tell(&self, node: Node, attr: &Attr) -> Option<Attr> {
        if attr.kind != FileKind::File {
            return None;
        }
        let mut tables = self.tables();
        let is_left = tables.is_left(node, attr.version);
        let kept = tables.open.get(&node).filter(|_| is_left).map(|open| open.file.attr());
        let version = kept.as_ref().map_or(attr.version, |kept| kept.version);
        tables.known(node, version).tell(version);
        kept
    }

    /// A read ended at the end of the version that is open: if it went through the page cache, the kernel takes that for the size of the file,
    /// whatever it was told.
    pub fn ended(&self, open: &OpenFile) {
        if matches!(open.io, IoMode::Cached)
            && let Some(known) = self.tables().known.get_mut(&open.node)
        {
            known.tell(open.file.attr().version);
        }
    }

    /// This mount itself committed `version`: what the kernel knows already shows it, unless another client came between.
    pub fn committed(&self, ino: InodeId, version: Version) {
        let mut tables = self.tables();
        let node = tables.node(ino);
        if let Some(open) = tables.open.get_mut(&node) {
            open.io.committed(version);
        }
        let Some(known) = tables.known.get_mut(&node) else { return };
        let follows = |known: Version| known.0 + 1 == version.0;
        if follows(known.told) {
            known.told = version;
        }
        if known.pages.is_some_and(follows) {
            known.pages = Some(version);
        }
    }

    /// The kernel is told a file's node with a name: it will say when it forgets it.
    pub fn looked_up(&self, node: Node, attr: &Attr) {
        if attr.kind == FileKind::File {
            self.tables().known(node, attr.version).lookups += 1;
        }
    }

    /// The kernel forgot so many of the times that it was told a node. After the last it has no pages of it either.
    pub fn forget(&self, node: Node, lookups: u64) {
        let mut tables = self.tables();
        let Some(known) = tables.known.get_mut(&node) else { return };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups > 0 {
            return;
        }
        tables.known.remove(&node);
        let first = Node::first(node.ino());
        let is_unused = |node| !tables.open.contains_key(&node) && (node == first || !tables.known.contains_key(&node));
        let is_over = |turned: &Turned| !turned.is_new() && tables.nodes(node.ino()).all(is_unused);
        if tables.turned.get(&node.ino()).is_some_and(is_over) {
            tables.turned.remove(&node.ino());
        }
    }
}
