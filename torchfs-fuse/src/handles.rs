//! What is open: files and folders by handle number, and files by inode, because the attributes of a file that is being
//! written are those of the open file.

use crate::caller::{Caller, Writers};
use crate::io_mode::{IoMode, IoModes};
use crate::node::Node;
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use torchfs_core::cache::CacheKey;
use torchfs_core::meta::{Attr, DirEntry, FileKind, Name};
use torchfs_core::{Error, File, InodeId, Kind, Version};

/// Callers whose next open is the second try of one that was sent back; each is so for microseconds.
const SENT_BACK_MAX: usize = 4096;

/// For how long whoever made an inode have another node may take to open that.
const NEW: Duration = Duration::from_secs(10);

/// An open file: the content is the inode's, shared by all its handles; what is to be committed when it is closed is the
/// handle's, because closing one must not commit what another is still writing.
#[derive(Clone, Debug)]
pub struct OpenFile {
    pub file: File,
    node: Node,
    pub io: IoMode,
    intent: Intent,
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

/// What the handles of one node share.
#[derive(Debug)]
struct OpenNode {
    file: File,
    handles: usize,
    /// How many of them are for writing.
    writers: usize,
    io: IoModes,
}

impl OpenNode {
    /// Whether a later version is for another node. Who writes goes on in this one, and finds the locks of others there.
    fn keeps_from(&self, version: Version) -> bool {
        let is_older = self.io.version().is_some_and(|held| held < version);
        is_older && self.writers == 0 && !self.file.is_dirty()
    }
}

#[derive(Debug, Default)]
struct Tables {
    files: HashMap<u64, OpenFile>,
    open: HashMap<Node, OpenNode>,
    dirs: HashMap<u64, Arc<OpenDir>>,
    texts: HashMap<u64, Bytes>,
    known: HashMap<Node, Known>,
    /// The nodes of inodes that have another one than their first.
    turned: HashMap<InodeId, Turned>,
    /// Those whose pages the kernel is being given.
    giving: HashSet<Node>,
    /// Whose last open was answered with ESTALE, so that the kernel looks the name up again and opens once more.
    sent_back: HashMap<Caller, InodeId>,
}

/// The node that an inode has had for a while.
#[derive(Clone, Copy, Debug)]
struct Turned {
    node: Node,
    /// How many, from the first, it has had.
    count: usize,
    since: Instant,
}

/// What the kernel knows of a file's content.
#[derive(Debug)]
struct Known {
    /// The version that its attributes are of: its size is where the kernel appends and where it stops reading.
    told: Version,
    /// The version that its pages are of.
    pages: Option<Version>,
    /// How many times it was told the node with a name, and has not forgotten it.
    lookups: u64,
    /// What was done about its pages since it was open last.
    ahead: Option<Ahead>,
}

/// What was done about the pages of a file before it is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// The kernel was given them.
    Given,
    /// It should have them, from before.
    ReliedOn,
}

impl Turned {
    fn is_new(&self) -> bool {
        self.since.elapsed() < NEW
    }
}

impl Tables {
    /// What the kernel knows of a file; of one that it knew nothing of, this version.
    fn known(&mut self, node: Node, version: Version) -> &mut Known {
        self.known.entry(node).or_insert(Known { told: version, pages: None, lookups: 0, ahead: None })
    }

    /// The node under which the kernel is told an inode.
    fn node(&self, ino: InodeId) -> Node {
        self.turned.get(&ino).map_or(Node::first(ino), |turned| turned.node)
    }

    /// All that the kernel may know an inode by.
    fn nodes(&self, ino: InodeId) -> impl Iterator<Item = Node> + use<> {
        Node::all(ino).take(self.turned.get(&ino).map_or(1, |turned| turned.count))
    }

    /// If names lead to this node, they lead to one that nobody has open from now on, and the readers of this one keep what they have.
    fn leave(&mut self, node: Node) {
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
    fn is_left(&mut self, node: Node, version: Version) -> bool {
        if self.open.get(&node).is_some_and(|open| open.keeps_from(version)) {
            self.leave(node);
        }
        self.node(node.ino()) != node
    }

    /// The node under which the kernel is told these attributes.
    fn node_of(&mut self, attr: &Attr) -> Node {
        let node = self.node(attr.ino);
        if self.is_left(node, attr.version) { self.node(attr.ino) } else { node }
    }

    /// Notes that an open is answered with ESTALE.
    fn send_back(&mut self, ino: InodeId, caller: Caller) {
        // Who did not come again would stay.
        if self.sent_back.len() >= SENT_BACK_MAX {
            self.sent_back.clear();
        }
        if caller.is_known() {
            self.sent_back.insert(caller, ino);
        }
    }
}

/// All handles of one mount.
#[derive(Debug, Default)]
pub struct Handles {
    next: AtomicU64,
    tables: Mutex<Tables>,
    given: Condvar,
}

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
        let open = OpenFile { io, file, node, intent, writing: Arc::default() };
        tables.files.insert(number, open.clone());
        let told = std::mem::replace(&mut tables.known(node, version).told, version);
        Ok(Inserted { number, open, is_told: told == version })
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
        tables.known(node, version).told = version;
        kept
    }

    /// A read ended at the end of the version that is open: if it went through the page cache, the kernel takes that for the size of the file,
    /// whatever it was told.
    pub fn ended(&self, open: &OpenFile) {
        if matches!(open.io, IoMode::Cached)
            && let Some(known) = self.tables().known.get_mut(&open.node)
        {
            known.told = open.file.attr().version;
        }
    }

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
