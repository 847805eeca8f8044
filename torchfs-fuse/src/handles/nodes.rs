//! Which nodes an inode has to the kernel, what that knows of them, and what is open of them: docs/decisions/0018-nodes.md of the repository.

use super::open::{OpenDir, OpenFile};
use crate::caller::Caller;
use crate::io_mode::{IoMode, IoModes};
use crate::node::Node;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};
use torchfs_core::meta::Attr;
use torchfs_core::{File, InodeId, Version};

/// Callers whose next open is the second try of one that was sent back; each is so for microseconds.
const SENT_BACK_MAX: usize = 4096;

/// For how long whoever made an inode have another node may take to open that.
const NEW: Duration = Duration::from_secs(10);

/// What the handles of one node share.
#[derive(Debug)]
pub struct OpenNode {
    pub file: File,
    pub handles: usize,
    /// How many of them are for writing.
    pub writers: usize,
    pub io: IoModes,
}

impl OpenNode {
    /// Whether a later version is for another node. Who writes goes on in this one, and finds the locks of others there.
    pub fn keeps_from(&self, version: Version) -> bool {
        let is_older = self.io.version().is_some_and(|held| held < version);
        is_older && self.writers == 0 && !self.file.is_dirty()
    }
}

#[derive(Debug, Default)]
pub struct Tables {
    pub files: HashMap<u64, OpenFile>,
    pub open: HashMap<Node, OpenNode>,
    pub dirs: HashMap<u64, Arc<OpenDir>>,
    pub texts: HashMap<u64, Bytes>,
    pub known: HashMap<Node, Known>,
    /// The nodes of inodes that have another one than their first.
    pub turned: HashMap<InodeId, Turned>,
    /// Those whose pages the kernel is being given.
    pub giving: HashSet<Node>,
    /// Whose last open was answered with ESTALE, so that the kernel looks the name up again and opens once more.
    pub sent_back: HashMap<Caller, InodeId>,
}

/// The node that an inode has had for a while.
#[derive(Clone, Copy, Debug)]
pub struct Turned {
    pub node: Node,
    /// How many, from the first, it has had.
    pub count: usize,
    pub since: Instant,
}

/// What the kernel knows of a file's content.
#[derive(Debug)]
pub struct Known {
    /// The version that its attributes are of: its size is where the kernel appends and where it stops reading.
    pub told: Version,
    /// Whether it took them, once it was told another version. Of two answers that are under way at the same time it passes over the
    /// one whose question came first (`fuse_change_attributes_i` in fs/fuse/inode.c of Linux), whichever is newer.
    pub is_sure: bool,
    /// The version that its pages are of.
    pub pages: Option<Version>,
    /// How many times it was told the node with a name, and has not forgotten it.
    pub lookups: u64,
    /// What was done about its pages since it was open last.
    pub ahead: Option<Ahead>,
}

/// What was done about the pages of a file before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// The kernel was given them.
    Given,
    /// It should have them, from before.
    ReliedOn,
}

impl Known {
    /// The kernel is told the attributes of a version.
    pub fn tell(&mut self, version: Version) {
        self.is_sure &= self.told == version;
        self.told = version;
    }

    /// Whether it has those of this version.
    pub fn has_attributes_of(&self, version: Version) -> bool {
        self.is_sure && self.told == version
    }
}

impl Turned {
    pub fn is_new(&self) -> bool {
        self.since.elapsed() < NEW
    }
}

impl Tables {
    /// What the kernel knows of a file; of one that it knew nothing of, this version.
    pub fn known(&mut self, node: Node, version: Version) -> &mut Known {
        self.known.entry(node).or_insert(Known { told: version, is_sure: true, pages: None, lookups: 0, ahead: None })
    }

    /// The node under which the kernel is told an inode.
    pub fn node(&self, ino: InodeId) -> Node {
        self.turned.get(&ino).map_or(Node::first(ino), |turned| turned.node)
    }

    /// All that the kernel may know an inode by.
    pub fn nodes(&self, ino: InodeId) -> impl Iterator<Item = Node> + use<> {
        Node::all(ino).take(self.turned.get(&ino).map_or(1, |turned| turned.count))
    }

    /// If names lead to this node, they lead to one that nobody has open from now on, and the readers of this one keep what they have.
    pub fn leave(&mut self, node: Node) {
        let ino = node.ino();
        if self.node(ino) != node {
            return;
        }
        let is_free = |(_, other): &(usize, Node)| !self.open.contains_key(other);
        let Some((before, other)) = Node::all(ino).enumerate().find(is_free) else { return };
        let count = self.nodes(ino).count().max(before + 1);
        self.turned.insert(ino, Turned { node: other, count, since: Instant::now() });
        let Some(open) = self.open.get_mut(&node) else { return };
        for handle in self.files.values_mut().filter(|handle| handle.node == node) {
            handle.file = handle.file.snapshot();
            if !matches!(handle.io, IoMode::Direct) {
                open.file = handle.file.clone();
            }
        }
    }

    /// Whether names lead to another node, now that there is this version.
    pub fn is_left(&mut self, node: Node, version: Version) -> bool {
        if self.open.get(&node).is_some_and(|open| open.keeps_from(version)) {
            self.leave(node);
        }
        self.node(node.ino()) != node
    }

    /// The node under which the kernel is told these attributes.
    pub fn node_of(&mut self, attr: &Attr) -> Node {
        let node = self.node(attr.ino);
        if self.is_left(node, attr.version) { self.node(attr.ino) } else { node }
    }

    /// Notes that an open is answered with ESTALE.
    pub fn send_back(&mut self, ino: InodeId, caller: Caller) {
        // Who did not come again would stay.
        if self.sent_back.len() >= SENT_BACK_MAX {
            self.sent_back.clear();
        }
        if caller.is_known() {
            self.sent_back.insert(caller, ino);
        }
    }
}
