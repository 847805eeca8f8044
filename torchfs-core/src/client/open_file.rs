//! [`OpenFile`]: what all opens of one inode through one client share. Bookkeeping under one short lock; no I/O here.

use super::content::{Base, Origin};
use super::overlay::{Overlay, Piece, Source};
use super::recover::Aside;
use super::staging::{BLOCK_BYTES, Block, FILE_MEMORY_BYTES_MAX, Prefer, Staging};
use crate::error::{Error, Kind, Result};
use crate::ids::InodeId;
use crate::layout::{Profile, Stripe};
use crate::meta::{Attr, AttrChange, Name, SetTime, Timestamp};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How many stripes of one file are encoded and sent in the background at a time.
const FILE_UPLOADS_MAX: usize = 2;

/// An inode that is open here.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub ino: InodeId,
    /// The folder and name under which this client made it, to tell people what it was.
    pub name: OnceLock<(InodeId, Name)>,
    /// Commits go one after the other.
    pub commit_turn: Semaphore,
    pub uploads: Arc<Semaphore>,
    state: Mutex<State>,
}

/// What has been written and not committed.
#[derive(Debug)]
pub(super) struct State {
    pub overlay: Overlay,
    /// What happened to size and times since the last commit began.
    pub change: SizeChange,
    /// The same for the commit that is under way.
    pub committing: Option<SizeChange>,
    /// The newest version known here.
    pub latest: Arc<Base>,
    /// Counts this client's commits: open files move to `latest` when it changes.
    pub generation: u64,
    /// Background uploads.
    pub tasks: JoinSet<()>,
    /// Whether full stripes are sent before a commit asks for them.
    pub background: Background,
    /// Counts changes of content.
    pub changes: u64,
    /// What of it is kept because it could not be committed.
    pub aside: Option<Aside>,
    last_upload: u64,
    tail: Option<Tail>,
    memory_bytes: u64,
}

/// Whether full stripes are sent in the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Background {
    /// As soon as they are full.
    Sends,
    /// Not while a commit runs, nor after a failure until the next commit.
    Waits,
}

/// The block that small writes share, and how much of it is taken.
#[derive(Debug)]
struct Tail {
    block: Arc<Block>,
    used: usize,
}

/// Changes of size, times and other attributes, in the order cut, grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SizeChange {
    /// The smallest size it was cut to.
    pub keep: Option<u64>,
    /// The least size afterwards.
    pub size_min: u64,
    /// When content last changed, or what was set after that. `None`: nothing happened.
    pub mtime: Option<SetTime>,
    /// Mode, owner and access time to set with the commit.
    pub attrs: AttrChange,
}

impl SizeChange {
    pub fn apply(&self, size: u64) -> u64 {
        self.visible(size).max(self.size_min)
    }

    /// How much of the version underneath is still to be seen.
    pub fn visible(&self, size: u64) -> u64 {
        self.keep.map_or(size, |keep| keep.min(size))
    }

    /// This change followed by a later one, as one.
    pub fn then(&self, later: &SizeChange) -> SizeChange {
        let keep = match (self.keep, later.keep) {
            (Some(first), Some(second)) => Some(first.min(second)),
            (first, second) => first.or(second),
        };
        let attrs = AttrChange {
            mode: later.attrs.mode.or(self.attrs.mode),
            uid: later.attrs.uid.or(self.attrs.uid),
            gid: later.attrs.gid.or(self.attrs.gid),
            atime: later.attrs.atime.or(self.attrs.atime),
            mtime: None,
        };
        SizeChange { keep, size_min: later.apply(self.size_min), mtime: later.mtime.or(self.mtime), attrs }
    }

    pub fn is_nothing(&self) -> bool {
        *self == SizeChange::default()
    }

    /// Attributes set by somebody at `now`, after what came before.
    pub fn set_attrs(&mut self, change: AttrChange, now: Timestamp) {
        let at = |time: Option<SetTime>| time.map(|time| if time == SetTime::Now { SetTime::At(now) } else { time });
        let later = SizeChange {
            mtime: at(change.mtime),
            attrs: AttrChange { atime: at(change.atime), mtime: None, ..change },
            ..SizeChange::default()
        };
        *self = SizeChange { size_min: self.size_min, ..self.then(&later) };
    }

    fn show(&self, attr: &mut Attr) {
        attr.mode = self.attrs.mode.unwrap_or(attr.mode);
        attr.uid = self.attrs.uid.unwrap_or(attr.uid);
        attr.gid = self.attrs.gid.unwrap_or(attr.gid);
        if let Some(SetTime::At(time)) = self.attrs.atime {
            attr.atime = time;
        }
        if let Some(SetTime::At(time)) = self.mtime {
            attr.mtime = time;
            attr.ctime = attr.ctime.max(time);
        }
    }
}

impl OpenFile {
    pub fn new(base: Arc<Base>) -> Self {
        OpenFile {
            ino: base.attr.ino,
            name: OnceLock::new(),
            commit_turn: Semaphore::new(1),
            uploads: Arc::new(Semaphore::new(FILE_UPLOADS_MAX)),
            state: Mutex::new(State {
                overlay: Overlay::default(),
                change: SizeChange::default(),
                committing: None,
                latest: base,
                generation: 0,
                tasks: JoinSet::new(),
                background: Background::Sends,
                changes: 0,
                aside: None,
                last_upload: 0,
                tail: None,
                memory_bytes: 0,
            }),
        }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How this file's new stripes are coded.
    ///
    /// # Errors
    /// `Protocol` if metadata did not say.
    pub fn profile(&self) -> Result<Profile> {
        let unsaid = || Error::new(Kind::Protocol, format!("metadata names no profile for file {}", self.ino));
        self.state().latest.attr.profile.ok_or_else(unsaid)
    }
}

impl State {
    /// The size that a reader of `base` sees.
    pub fn size(&self, base: &Base) -> u64 {
        let size = self.committing.as_ref().map_or(base.attr.size, |change| change.apply(base.attr.size));
        self.change.apply(size)
    }

    /// How far the content of `base` is to be seen.
    pub fn visible(&self, base: &Base) -> u64 {
        let size = self.committing.as_ref().map_or(base.attr.size, |change| change.visible(base.attr.size));
        self.change.visible(size)
    }

    /// The attributes that a reader of `base` sees.
    pub fn attr(&self, base: &Base) -> Attr {
        self.attr_over(base, base.attr.clone())
    }

    /// `attr` of the version `base` with what is not committed.
    pub fn attr_over(&self, base: &Base, mut attr: Attr) -> Attr {
        attr.size = self.size(base);
        for change in [self.committing.as_ref(), Some(&self.change)].into_iter().flatten() {
            change.show(&mut attr);
        }
        attr
    }

    pub fn is_dirty(&self) -> bool {
        !self.overlay.is_empty() || !self.change.is_nothing() || self.committing.is_some()
    }

    /// Learns of a version that the cluster holds, if it is newer than the newest known.
    pub fn learn(&mut self, base: &Arc<Base>) {
        let newer = base.attr.version > self.latest.attr.version;
        let better = base.attr.version == self.latest.attr.version && self.latest.origin == Origin::Guess;
        if newer || better {
            self.latest = base.clone();
        }
    }

    /// Takes staging space for `len` bytes of a write.
    ///
    /// # Errors
    /// If there is no staging file.
    pub fn reserve(&mut self, staging: &Arc<Staging>, len: usize) -> Result<(Arc<Block>, usize)> {
        if len >= BLOCK_BYTES {
            return Ok((self.new_block(staging, len)?, 0));
        }
        if let Some(tail) = &mut self.tail
            && tail.used + len <= tail.block.len()
        {
            tail.used += len;
            return Ok((tail.block.clone(), tail.used - len));
        }
        let block = self.new_block(staging, BLOCK_BYTES)?;
        self.tail = Some(Tail { block: block.clone(), used: len });
        Ok((block, 0))
    }

    fn new_block(&mut self, staging: &Arc<Staging>, len: usize) -> Result<Arc<Block>> {
        let memory_bytes = self.memory_bytes + len as u64;
        let prefer = if memory_bytes <= FILE_MEMORY_BYTES_MAX { Prefer::Memory } else { Prefer::Disk };
        let block = staging.block(len, prefer)?;
        if block.is_memory() {
            self.memory_bytes = memory_bytes;
        }
        Ok(block)
    }

    /// Notes that bytes of a block are now what the file holds from `offset` on.
    pub fn written(&mut self, offset: u64, len: usize, block: Arc<Block>, at: usize) {
        let end = offset + len as u64;
        self.overlay.insert(Piece { range: offset..end, source: Source::Staged { block, at: at as u32 } });
        self.change.size_min = self.change.size_min.max(end);
        self.touch();
    }

    /// Lays pieces over the file that another one has at `from` and this one has at `to` now.
    pub fn share(&mut self, pieces: Vec<Piece>, from: u64, to: u64) {
        for Piece { range, source } in pieces {
            let range = range.start - from + to..range.end - from + to;
            self.change.size_min = self.change.size_min.max(range.end);
            self.overlay.insert(Piece { range, source });
        }
        self.touch();
    }

    /// Cuts or grows the file for a reader of `base`.
    pub fn truncate(&mut self, base: &Base, size: u64) {
        if size < self.size(base) {
            self.overlay.remove(size..u64::MAX);
            self.change.keep = Some(self.change.keep.map_or(size, |keep| keep.min(size)));
        }
        self.change.size_min = size;
        self.touch();
    }

    /// Makes a range, as far as it is inside the file, a hole for a reader of `base`.
    pub fn punch(&mut self, base: &Base, range: Range<u64>) {
        let range = range.start..range.end.min(self.size(base));
        if !range.is_empty() {
            self.overlay.insert(Piece { range, source: Source::Hole { upload: None } });
            self.touch();
        }
    }

    /// Sets attributes with the next commit. `false` if no commit is due that could take them along.
    pub fn set_attrs(&mut self, change: AttrChange) -> bool {
        let is_due = !self.overlay.is_empty() || !self.change.is_nothing();
        if is_due && self.committing.is_none() {
            self.change.set_attrs(change, Timestamp::from(SystemTime::now()));
            return true;
        }
        false
    }

    /// Content changed now.
    fn touch(&mut self) {
        self.changes += 1;
        self.change.mtime = Some(SetTime::At(Timestamp::from(SystemTime::now())));
    }

    /// A number for an upload.
    pub fn next_upload(&mut self) -> u64 {
        self.last_upload += 1;
        self.last_upload
    }

    /// The first full stripe of the staged run around `at`, if there is one and it may be sent now.
    pub fn full_stripe(&self, at: u64, stripe_bytes: u64) -> Option<Range<u64>> {
        if self.background == Background::Waits {
            return None;
        }
        let run = self.overlay.staged_run(at)?;
        (run.end - run.start >= stripe_bytes).then(|| run.start..run.start + stripe_bytes)
    }

    /// Starts a commit: what is written now belongs to it. Returns its number and all that it has to store.
    pub fn freeze(&mut self) -> (u64, Vec<Piece>, SizeChange) {
        // Uploads have ended by now; one that panicked left its pieces behind.
        self.overlay.stop_sending(|_| true);
        let number = self.next_upload();
        self.overlay.start_sending(0..u64::MAX, number);
        let change = std::mem::take(&mut self.change);
        self.committing = Some(change.clone());
        self.tail = None;
        (number, self.overlay.pieces(), change)
    }

    /// A commit failed or was given up: all is as if it had not begun.
    pub fn thaw(&mut self) {
        self.overlay.stop_sending(|_| true);
        if let Some(change) = self.committing.take() {
            self.change = change.then(&self.change);
        }
        self.background = Background::Sends;
    }

    /// A commit has stored what it froze; `base` is the version that it made.
    pub fn committed(&mut self, number: u64, named: impl Fn(&Stripe) -> bool, base: Arc<Base>) {
        self.overlay.committed(number, named);
        self.committing = None;
        self.memory_bytes = 0;
        self.latest = base;
        self.generation += 1;
        self.background = Background::Sends;
    }
}
