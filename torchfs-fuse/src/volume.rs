//! The file system operations as the kernel means them, on top of [`Client`]; no FUSE types here.
//!
//! Rules: a file's writes are committed when the handle that made them is closed or synced, and the result is what close(2) or
//! fsync(2) returns; attributes of a file with uncommitted writes show them.

mod asked;
mod giving;
mod listing;
mod xattrs;

pub use asked::{Allocate, Change, OpenHow, Seek, WriteAt};
pub use xattrs::readable_xattr;

use crate::MountOptions;
use crate::awake::Awake;
use crate::caller::Caller;
use crate::control::Control;
use crate::handles::{Handles, Inserted, Intent, NotInserted, OpenFile};
use crate::io_mode::{IoMode, Whole};
use crate::node::Node;
use crate::orders::Orders;
use crate::pages::Pages;
use crate::special::Special;
use crate::stats::MountStats;
use crate::told::Told;
use crate::tracer::Tracer;
use crate::written::Room;
use fuser::{BackingId, Notifier};
use std::io::ErrorKind;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};
use torchfs_core::meta::{
    Attr, AttrChange, FsStat, IfExists, MetaSession, Name, NewInode, NewKind, RenameMode, SetTime,
};
use torchfs_core::prefetch::DataFile;
use torchfs_core::{Client, Error, File, InodeId, Kind, Result};

/// Smaller files are read through the kernel's page cache, which keeps them between opens; registering each with the kernel
/// costs more than that.
const PASSTHROUGH_BYTES_MIN: u64 = 1024 * 1024;

/// A file is at rest when its content was not changed for so long.
const AT_REST: Duration = Duration::from_secs(60);

/// How long metadata may take to tell the root's attributes, until those of before have to do.
const ROOT_PATIENCE: Duration = Duration::from_secs(1);

/// Attributes for the kernel.
#[derive(Clone, Debug)]
pub enum Answer {
    /// As metadata has them now.
    Fresh(NodeAttr),
    /// As they were when the file was opened, with what was changed here since: its links, say, may be others by now. Of the root, as they
    /// were before metadata stopped to answer.
    Known(NodeAttr),
}

/// Attributes, and what the kernel calls whose they are.
#[derive(Clone, Debug)]
pub struct NodeAttr {
    pub node: Node,
    pub attr: Attr,
}

/// A file that is being opened.
#[derive(Debug)]
pub struct Opening {
    file: File,
    node: Node,
    how: OpenHow,
    whole: Option<Whole>,
}

/// A file that was just opened.
#[derive(Debug)]
pub struct Opened {
    pub handle: u64,
    pub io: IoMode,
    /// Whether pages that the kernel has of it are still right.
    pub keep_pages: bool,
    /// How long it is.
    pub bytes: u64,
    /// Whether closing it commits something.
    pub may_change: bool,
    /// Whose pages the kernel may be given next.
    pub next: Option<DataFile>,
}

/// One mounted file system.
#[derive(Debug)]
pub struct Volume {
    client: Client,
    pub handles: Handles,
    pub told: Told,
    pub pages: Pages,
    pub awake: Awake,
    /// There once the file system is mounted.
    pub notifier: OnceLock<Notifier>,
    pub tracer: Arc<Tracer>,
    /// The root's attributes, as metadata told them last.
    root: Mutex<Option<Attr>>,
    orders: Orders,
    pub control: Control,
    /// Why the kernel takes no local files to read by itself, once that is known.
    passthrough_refused: OnceLock<String>,
    opens: AtomicU64,
    passthrough_opens: AtomicU64,
    began: (Instant, SystemTime),
}

impl Volume {
    /// A volume on a cluster.
    pub fn new(client: Client, mountpoint: &Path, options: &MountOptions) -> Self {
        let passthrough_refused = OnceLock::new();
        if !options.passthrough {
            let _ = passthrough_refused.set("the mount option nopassthrough".to_owned());
        }
        let room = Room::default();
        Volume {
            client,
            handles: Handles::default(),
            told: Told::new(options.kernel_ttl),
            pages: Pages::default(),
            awake: if options.awake { Awake::on_this_machine() } else { Awake::new(None) },
            notifier: OnceLock::new(),
            tracer: Arc::default(),
            root: Mutex::default(),
            orders: Orders::new(mountpoint.to_owned(), room.clone()),
            control: Control::new(mountpoint.to_owned(), room),
            passthrough_refused,
            opens: AtomicU64::new(0),
            passthrough_opens: AtomicU64::new(0),
            began: (Instant::now(), SystemTime::now()),
        }
    }

    fn stats(&self, operations_in_flight: u64) -> MountStats {
        let (eviction, prefetch) = self.client.policies();
        MountStats {
            uptime_seconds: self.began.0.elapsed().as_secs(),
            opens: self.opens.load(Ordering::Relaxed),
            passthrough_opens: self.passthrough_opens.load(Ordering::Relaxed),
            passthrough_refused: self.passthrough_refused.get().cloned(),
            awake_ms: self.awake.spent().as_millis() as u64,
            operations_in_flight,
            eviction: eviction.to_string(),
            prefetch: prefetch.to_string(),
            cache: self.client.cache_stats(),
            epochs: self.client.epochs().unwrap_or_default(),
            metadata_remembered: self.client.meta().remembered(),
            requests: self.client.request_stats(),
        }
    }

    /// open(2) of what is in `.torchfs`; `None` for all other inodes.
    pub fn open_special(&self, ino: InodeId, how: OpenHow, operations_in_flight: u64) -> Option<Result<u64>> {
        let special = Special::of(ino)?;
        if how.intent == Intent::Write {
            return Some(match special {
                Special::Schedule => Ok(self.orders.open(self.handles.number())),
                Special::Control => Ok(self.control.open(self.handles.number())),
                _ => Special::refuse(ino).map(|()| 0),
            });
        }
        let text = match special {
            Special::Folder => return Some(Err(Error::new(Kind::IsDirectory, "this is a folder"))),
            Special::Trace => return Some(self.tracer.open(self.handles.number(), || self.told.names())),
            Special::Version => Ok(env!("CARGO_PKG_VERSION").to_owned()),
            Special::Stats => serde_json::to_string_pretty(&self.stats(operations_in_flight)),
            Special::Schedule => self.orders.show(&self.client),
            Special::Control => return Some(Ok(self.control.open(self.handles.number()))),
        };
        let text = text.map_err(|error| Error::caused(Kind::Io, "write it as JSON", error));
        Some(text.map(|text| self.handles.insert_text((text + "\n").into())))
    }

    pub fn cache_dir(&self) -> Option<&Path> {
        self.client.cache_dir()
    }

    pub fn meta(&self) -> &MetaSession {
        self.client.meta()
    }

    /// As [`Volume::tell`], with the name that leads there.
    fn tell_entry(&self, parent: InodeId, name: Name, attr: Attr) -> NodeAttr {
        self.tell_name(parent, name, attr.ino);
        let node = self.handles.node(&attr);
        self.handles.looked_up(node, &attr);
        self.tell(node, attr)
    }

    /// The kernel is told where a name leads.
    fn tell_name(&self, parent: InodeId, name: Name, ino: InodeId) {
        self.tracer.name(parent, &name, ino);
        self.told.entry(parent, name, ino);
    }

    /// Attributes for the kernel, which is taken to know them from now on.
    fn tell(&self, node: Node, attr: Attr) -> NodeAttr {
        self.told.inode(attr.ino);
        let attr = match self.handles.tell(node, &attr) {
            Some(Attr { version, size, allocated, mtime, .. }) => Attr { version, size, allocated, mtime, ..attr },
            None => self.with_writes(attr),
        };
        NodeAttr { node, attr }
    }

    /// `attr` with what is written and set here and not committed yet.
    fn with_writes(&self, attr: Attr) -> Attr {
        match self.handles.file_of(attr.ino) {
            Some(file) => file.with_uncommitted(attr),
            None => attr,
        }
    }

    pub async fn lookup(&self, parent: InodeId, name: Name) -> Result<NodeAttr> {
        if let Some(special) = Special::lookup(parent, &name) {
            return special.map(|special| self.special(special));
        }
        let attr = self.client.meta().lookup(parent, name.clone()).await?;
        Ok(self.tell_entry(parent, name, attr))
    }

    fn special(&self, special: Special) -> NodeAttr {
        NodeAttr { node: Node::first(special.ino()), attr: special.attr(self.began.1) }
    }

    pub async fn attr(&self, node: Node) -> Result<Answer> {
        let ino = node.ino();
        if let Some(special) = Special::of(ino) {
            return Ok(Answer::Fresh(self.special(special)));
        }
        if ino == InodeId::ROOT {
            return self.root_attr().await;
        }
        match self.client.meta().attr(ino).await {
            Ok(attr) => Ok(Answer::Fresh(self.tell(node, attr))),
            // Collected while it is still open here.
            Err(error) if error.kind() == Kind::NotFound => match self.handles.file_at(node) {
                Some(file) => Ok(Answer::Fresh(NodeAttr { node, attr: Attr { nlink: 0, ..file.attr() } })),
                None => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// As they were, when metadata does not answer in time: `.torchfs` is behind the root, and says what is the matter.
    async fn root_attr(&self) -> Result<Answer> {
        let (node, asked) = (Node::first(InodeId::ROOT), self.client.meta().attr(InodeId::ROOT));
        let root = || self.root.lock().unwrap_or_else(PoisonError::into_inner);
        let before = root().clone();
        let fresh = match before {
            Some(attr) => match tokio::time::timeout(ROOT_PATIENCE, asked).await {
                Ok(Ok(fresh)) => fresh,
                Ok(Err(_)) | Err(_) => return Ok(Answer::Known(NodeAttr { node, attr })),
            },
            None => asked.await?,
        };
        *root() = Some(fresh.clone());
        Ok(Answer::Fresh(self.tell(node, fresh)))
    }

    pub async fn set_attr(&self, node: Node, change: Change, handle: Option<u64>) -> Result<Answer> {
        let ino = node.ino();
        Special::refuse(ino)?;
        if let Some(size) = change.size {
            self.truncate(node, size, handle).await?;
        }
        if change.rest == AttrChange::default() {
            return self.attr(node).await;
        }
        let others = self.handles.nodes(ino).into_iter().filter(|other| *other != node);
        // A file that is being written takes them along with its commit: one operation instead of two, and no question.
        if let Some(file) = self.handles.file_of(ino)
            && file.set_attr_at_commit(&change.rest)
        {
            self.forget_attributes(others);
            return Ok(Answer::Known(self.tell(node, file.attr())));
        }
        let attr = self.client.set_attr_inode(ino, change.rest).await?;
        self.forget_attributes(others);
        Ok(Answer::Fresh(self.tell(node, attr)))
    }

    /// The kernel is to ask for attributes again before it uses them.
    pub fn forget_attributes(&self, nodes: impl IntoIterator<Item = Node>) {
        const ATTRIBUTES_ONLY: i64 = -1;
        let Some(notifier) = self.notifier.get() else { return };
        for node in nodes {
            if let Err(error) = notifier.inval_inode(node.number(), ATTRIBUTES_ONLY, 0) {
                tracing::debug!("the kernel keeps what it knows of {node:?} for a moment: {error}");
            }
        }
    }

    /// ftruncate(2) stays with the open file until it is committed; truncate(2) is a change by itself.
    async fn truncate(&self, node: Node, size: u64, handle: Option<u64>) -> Result<()> {
        if let Some(number) = handle {
            return self.handles.file(number)?.change().truncate(size).await;
        }
        let file = match self.client.open_inode(node.ino()).await {
            // Collected while it is still open here.
            Err(error) if error.kind() == Kind::NotFound => self.handles.file_of(node.ino()).ok_or(error)?,
            opened => opened?,
        };
        if self.handles.is_left(node, file.attr().version) {
            return Err(Error::new(Kind::Stale, "readers have an older version of it open: names lead elsewhere"));
        }
        file.truncate(size).await?;
        self.commit(&file).await
    }

    async fn commit(&self, file: &File) -> Result<()> {
        if file.is_dirty() {
            let attr = file.commit().await?;
            self.handles.committed(attr.ino, attr.version);
        }
        Ok(())
    }

    pub async fn make(&self, parent: InodeId, name: Name, inode: NewInode) -> Result<NodeAttr> {
        Special::refuse_name(parent, &name)?;
        let attr = self.client.meta().create(parent, name.clone(), inode, IfExists::Fail).await?;
        Ok(self.tell_entry(parent, name, attr))
    }

    /// open(2) with O_CREAT.
    pub async fn create(
        &self,
        parent: InodeId,
        name: Name,
        inode: NewInode,
        if_exists: IfExists,
        how: OpenHow,
    ) -> Result<(NodeAttr, Opened)> {
        Special::refuse_name(parent, &name)?;
        let file = self.client.create_inode(parent, name.clone(), inode, if_exists).await?;
        self.tell_name(parent, name, file.ino());
        let node = self.handles.node_for_io(&file.attr());
        self.handles.tell(node, &file.attr());
        let opening = Opening { file: file.clone(), node, how, whole: None };
        let opened = self.opened(opening, |_| Err(ErrorKind::Unsupported.into())).await?;
        let opened = opened.ok_or_else(|| Error::new(Kind::Stale, "a later version was opened meanwhile"))?;
        self.handles.looked_up(node, &file.attr());
        Ok((NodeAttr { node, attr: file.attr() }, opened))
    }

    /// open(2), first half: everything that takes time.
    pub async fn open(&self, node: Node, how: OpenHow) -> Result<Opening> {
        let file = self.client.open_inode(node.ino()).await?;
        let admitted = self.handles.admit(node, file, how.intent, how.caller);
        let changed = || Error::new(Kind::Stale, "the content changed since the name was looked up");
        let file = admitted.ok_or_else(changed)?;
        if how.intent == Intent::Read {
            file.begin_reading();
        }
        let whole = self.whole(node, &file, how).await;
        Ok(Opening { file, node, how, whole })
    }

    /// The local file that the kernel may read instead of asking us. A file that is written to must not be read past us:
    /// the reader would miss what the writer, on this mount, writes after it opened. So only files at rest count. A recording
    /// of the mount is to have all reads; only what others read so already goes on so.
    async fn whole(&self, node: Node, file: &File, how: OpenHow) -> Option<Whole> {
        let attr = file.attr();
        let is_at_rest = || SystemTime::from(attr.mtime).elapsed().is_ok_and(|age| age >= AT_REST);
        let begins = || is_at_rest() && !self.tracer.is_recording() && !self.handles.turned_lately(attr.ino);
        let goes_on = || self.handles.passes_through(node, attr.version);
        if how.intent == Intent::Write
            || attr.size < PASSTHROUGH_BYTES_MIN
            || self.passthrough_refused.get().is_some()
            || !(begins() || goes_on())
        {
            return None;
        }
        let file = file.cached_file().await?;
        Some(Whole { file })
    }

    /// open(2), second half: the handle; `None` if all is to be done again. `register` tells the kernel of a local file.
    pub async fn opened(
        &self,
        opening: Opening,
        register: impl FnOnce(&std::fs::File) -> std::io::Result<BackingId>,
    ) -> Result<Option<Opened>> {
        let Opening { file, node, how, whole } = opening;
        let attr = file.attr();
        let version = attr.version;
        let mut refused = None;
        let inserted = self.handles.insert_file(node, file, how.intent, how.caller, |modes| {
            let (mode, reason) = modes.choose(version, whole, register)?;
            refused = reason;
            Some(mode)
        });
        let Inserted { number: handle, open, is_told } = match inserted {
            Ok(inserted) => inserted,
            Err(NotInserted::Outdated) => return Ok(None),
            Err(NotInserted::Elsewhere) => {
                return Err(Error::new(Kind::Stale, "others read what this is not to read: it needs another node"));
            }
        };
        if !is_told {
            self.forget_attributes([node]);
            self.handles.attributes_forgotten(node, version);
        }
        if let Some(reason) = refused
            && self.passthrough_refused.set(reason.to_string()).is_ok()
        {
            tracing::info!("the kernel does not read cached files by itself ({reason}); reads go through this process");
        }
        self.opens.fetch_add(1, Ordering::Relaxed);
        if matches!(open.io, IoMode::Passthrough(_)) {
            self.passthrough_opens.fetch_add(1, Ordering::Relaxed);
        }
        if how.intent == Intent::Write {
            open.add_writer(how.caller);
        }
        if how.truncate
            && let Err(error) = open.change().truncate(0).await
        {
            self.handles.remove_file(handle);
            return Err(error);
        }
        let keep_pages = match open.io {
            IoMode::Cached if how.intent == Intent::Read => self.has_pages(node, &open, &attr),
            IoMode::Cached => self.handles.pages_still_good(node, version),
            _ => false,
        };
        let bytes = if how.truncate { 0 } else { attr.size };
        let may_change = how.intent == Intent::Write;
        let next = if may_change { None } else { self.next_to_give(&open, how.caller) };
        Ok(Some(Opened { handle, io: open.io, keep_pages: keep_pages && !how.truncate, bytes, may_change, next }))
    }

    pub async fn read(&self, handle: u64, offset: u64, len: usize) -> Result<bytes::Bytes> {
        if self.tracer.is_read_by(handle) {
            return Ok(self.tracer.read(len).await);
        }
        if let Some(talk) = self.control.talk(handle) {
            return Ok(self.control.read(&talk, &self.client, len).await);
        }
        if let Some(text) = self.handles.text(handle) {
            let start = text.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
            return Ok(text.slice(start..text.len().min(start.saturating_add(len))));
        }
        let open = self.handles.file(handle)?;
        if open.take_reliance() {
            self.pages.found(true);
        }
        let data = open.file.read_at(offset, len).await?;
        if data.len() < len {
            self.handles.ended(&open);
        }
        Ok(data)
    }

    pub async fn write(&self, handle: u64, at: WriteAt, data: bytes::Bytes, caller: Caller) -> Result<()> {
        if let Some(text) = self.orders.text(handle) {
            return self.orders.write(&text, at, &data, caller);
        }
        if let Some(talk) = self.control.talk(handle) {
            return talk.write(at, &data).await;
        }
        let open = self.handles.file(handle)?;
        open.add_writer(caller);
        let file = open.change();
        file.write_at(at.offset(file.attr().size), data).await
    }

    /// close(2) of any descriptor of the handle: commits what was changed through it. A process that only inherited the
    /// descriptor says nothing about whether its parent is done.
    pub async fn flush(&self, handle: u64, caller: Caller) -> Result<()> {
        if self.tracer.is_read_by(handle) || self.handles.text(handle).is_some() || self.control.talk(handle).is_some()
        {
            return Ok(());
        }
        if let Some(text) = self.orders.text(handle) {
            return if text.is_written_by(caller) { self.orders.take(&self.client, &text).await } else { Ok(()) };
        }
        let open = self.handles.file(handle)?;
        if open.may_be_written_by(caller) && open.take_changed() { self.commit_changed(&open).await } else { Ok(()) }
    }

    /// fsync(2): commits whatever is written to the file, through any handle.
    pub async fn sync(&self, handle: u64) -> Result<()> {
        if let Some(text) = self.orders.text(handle) {
            return self.orders.take(&self.client, &text).await;
        }
        if self.control.talk(handle).is_some() {
            return Ok(());
        }
        let open = self.handles.file(handle)?;
        open.take_changed();
        self.commit_changed(&open).await
    }

    /// Commits on behalf of a handle; after a failure the handle has still something to commit.
    async fn commit_changed(&self, open: &OpenFile) -> Result<()> {
        let committed = self.commit(&open.file).await;
        if committed.is_err() {
            open.change();
            self.handles.not_stored(open.node);
        }
        committed
    }

    /// The last reference to a handle is gone. What a memory mapping wrote after close(2) is committed here.
    pub async fn release(&self, handle: u64) -> Result<()> {
        let is_text = self.tracer.close(handle) || self.handles.remove_text(handle) || self.control.close(handle);
        if is_text || self.orders.close(&self.client, handle) {
            return Ok(());
        }
        let Some(open) = self.handles.remove_file(handle) else { return Ok(()) };
        if open.take_reliance() {
            self.pages.found(false);
        }
        let committed = if open.take_changed() { self.commit(&open.file).await } else { Ok(()) };
        // It is gone with the last handle; others may have opened the file since the commit failed, and seen it.
        if open.file.is_dirty() && self.handles.file_at(open.node).is_none() {
            self.handles.not_stored(open.node);
        }
        committed
    }

    /// fallocate(2). Space in the cluster cannot be set aside: what is left of asking for it is the size.
    pub async fn allocate(&self, handle: u64, range: Range<u64>, how: Allocate) -> Result<()> {
        let open = self.handles.file(handle)?;
        if how.zero {
            open.change().punch(range.clone())?;
        }
        if how.grow && range.end > open.file.attr().size {
            open.change().truncate(range.end).await?;
        }
        Ok(())
    }

    /// copy_file_range(2): from a handle and offset to another. What was written to the source and is not committed counts.
    pub fn copy_range(&self, from: (u64, u64), to: (u64, u64), bytes: u64, caller: Caller) -> Result<u64> {
        let (source, target) = (self.handles.file(from.0)?.file, self.handles.file(to.0)?);
        target.add_writer(caller);
        source.copy_range(from.1, target.change(), to.1, bytes)
    }

    /// lseek(2) with SEEK_DATA and SEEK_HOLE; `None` if there is nothing of the kind.
    pub fn seek(&self, handle: u64, offset: u64, what: Seek) -> Result<Option<u64>> {
        let file = self.handles.file(handle)?.file;
        Ok(match what {
            Seek::Data => file.next_data(offset),
            Seek::Hole => file.next_hole(offset),
        })
    }

    pub async fn unlink(&self, parent: InodeId, name: Name) -> Result<()> {
        Special::refuse_name(parent, &name)?;
        self.client.meta().unlink(parent, name).await.map(drop)
    }

    pub async fn rmdir(&self, parent: InodeId, name: Name) -> Result<()> {
        Special::refuse_name(parent, &name)?;
        self.client.meta().rmdir(parent, name).await
    }

    pub async fn rename(&self, from: (InodeId, Name), to: (InodeId, Name), mode: RenameMode) -> Result<()> {
        Special::refuse_name(from.0, &from.1)?;
        Special::refuse_name(to.0, &to.1)?;
        let moved = self.client.meta().rename(from, to.clone(), mode).await?;
        self.tracer.name(to.0, &to.1, moved.ino);
        Ok(())
    }

    pub async fn link(&self, ino: InodeId, parent: InodeId, name: Name) -> Result<NodeAttr> {
        Special::refuse(ino)?;
        Special::refuse_name(parent, &name)?;
        let attr = self.client.meta().link(ino, parent, name.clone()).await?;
        Ok(self.tell_entry(parent, name, attr))
    }

    pub async fn read_link(&self, ino: InodeId) -> Result<Vec<u8>> {
        self.client.meta().read_link(ino).await
    }

    pub async fn fs_stat(&self) -> Result<FsStat> {
        self.client.meta().fs_stat().await
    }
}

/// A new inode owned by the caller.
pub fn new_inode(kind: NewKind, mode: u32, uid: u32, gid: u32) -> NewInode {
    NewInode { kind, mode: mode & 0o7777, uid, gid, mtime: None }
}

/// The change of setattr without the size, from its parts.
pub fn attr_change(
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    atime: Option<SetTime>,
    mtime: Option<SetTime>,
) -> AttrChange {
    AttrChange { mode: mode.map(|mode| mode & 0o7777), uid, gid, atime, mtime }
}
