//! The driver of `put`: walker → reading → stripes → metadata batches, all at once and each within a bound.
//!
//! One task per stripe reads its content and writes it, a handful at a time, so that disk and network are both busy. The
//! driver itself only decides; it never waits for one thing while another could go on.

use super::super::Client;
use super::super::pack::{Packed, Packer, content_bytes_per_stripe};
use super::commit::{Op, OpKind, OpQueue, Outcome, only_mtime};
use super::source::{Cutter, FileItem, GivenUp, ReadPack, extents_at, read_pack, read_part, second_look};
use super::stream::store;
use super::walk::{Entry, Found, Owner, Slot, Walker, What, open_source};
use super::{SourceLink, TreeOptions, TreeReport, blocking, stripes_in_flight};
use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::ids::InodeId;
use crate::layout::{Extent, Profile, Stripe, StripeShape};
use crate::meta::{
    AttrChange, ContentChange, FileKind, IfExists, MetaOp, MetaReply, MetaSession, Name, NewKind, RenameMode, SetTime,
};
use crate::settings::PACK_BYTES_MAX;
use std::collections::{HashMap, VecDeque};
use std::fs::Metadata;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

/// Found entries that wait to be looked at.
const FOUND_MAX: usize = 1024;

/// Operations that wait to be sent; a few megabytes.
const OPS_MAX: usize = 16 * 1024;

/// A file of more pieces than this is not packed: it would make a long operation among short ones.
const PACKED_PIECES_MAX: usize = 64;

/// Copies a local file or folder to `target`.
pub(super) async fn put_tree(
    client: &Client,
    source: &Path,
    target: &[u8],
    options: TreeOptions,
) -> Result<TreeReport> {
    let (source, link) = (source.to_owned(), options.source_link);
    let (source, found) = blocking(move || look_at_source(source, link)).await??;
    let destination = Destination::find(client.meta(), target, found.is_dir()).await?;
    let (profile, _) = client.meta().profile(destination.into.unwrap_or(destination.parent)).await?;
    let owner = match (rustix::process::geteuid().is_root(), client.inner.owner) {
        (true, _) => Owner::Kept,
        (false, (uid, gid)) => Owner::Fixed(uid, gid),
    };
    let (sender, found) = mpsc::channel(FOUND_MAX);
    let walker = Walker::new(owner, sender);
    let name = destination.name.clone();
    // The walker ends when the receiver does, so it needs no other owner.
    let walk = tokio::task::spawn_blocking(move || walker.walk(&source, name));
    let report = Put::new(client, profile, owner, &destination, options).run(found).await;
    super::joined(walk.await)?;
    report
}

/// The source, without a link if links are followed, and what it is.
fn look_at_source(source: PathBuf, link: SourceLink) -> Result<(PathBuf, Metadata)> {
    let what = || format!("look at {}", source.display());
    let path = match link {
        SourceLink::Copy => source.clone(),
        SourceLink::Follow => std::fs::canonicalize(&source).io(what)?,
    };
    let found = std::fs::symlink_metadata(&path).io(what)?;
    Ok((path, found))
}

/// Where the copy goes.
#[derive(Debug)]
struct Destination {
    parent: InodeId,
    name: Name,
    /// The folder that is already there.
    into: Option<InodeId>,
}

impl Destination {
    async fn find(meta: &MetaSession, target: &[u8], folder: bool) -> Result<Self> {
        let shown = || String::from_utf8_lossy(target).into_owned();
        let resolved = meta.resolve(target).await.context(shown)?;
        let into = match &resolved.attr {
            Some(attr) if attr.kind == FileKind::Directory && folder => Some(attr.ino),
            Some(attr) if attr.kind == FileKind::Directory => {
                return Err(Error::new(Kind::IsDirectory, format!("{}: a folder is there already", shown())));
            }
            Some(_) if folder => {
                return Err(Error::new(Kind::NotDirectory, format!("{}: is there and is no folder", shown())));
            }
            _ => None,
        };
        // The root has no name; as it is there already, the name is never used.
        let name = resolved.name.map_or_else(|| Name::new("root"), Ok)?;
        Ok(Destination { parent: resolved.parent, name, into })
    }
}

/// One stripe's worth of work.
#[derive(Debug)]
enum Unit {
    Pack(Packed<FileItem>),
    Part { file: u64, item: Arc<FileItem>, ranges: Vec<Range<u64>> },
    Again(Box<FileItem>, Error),
    Stream(Box<Entry>),
}

/// What came of it.
#[derive(Debug)]
enum Done {
    Pack(ReadPack, Option<Stripe>),
    Part { file: u64, stored: Result<(Stripe, Vec<Extent>)> },
    Again(Result<FileItem, GivenUp>),
    Stream(Box<Entry>, Result<ContentChange>),
}

/// A batch with its answers.
type Answered = (Vec<Op>, Result<Vec<Result<MetaReply>>>);

/// A large file whose stripes are under way.
#[derive(Debug)]
struct Large {
    item: Arc<FileItem>,
    all_cut: bool,
    under_way: usize,
    extents: Vec<Extent>,
    stripes: Vec<Stripe>,
    bad: Option<Error>,
}

#[derive(Debug)]
struct Put<'a> {
    client: &'a Client,
    profile: Profile,
    owner: Owner,
    options: TreeOptions,
    report: TreeReport,
    /// The folder that is already there, until the walker has named it.
    into: Option<InodeId>,
    packer: Packer<FileItem>,
    units: VecDeque<Unit>,
    cutting: VecDeque<(u64, Cutter)>,
    large: HashMap<u64, Large>,
    large_seen: u64,
    work: JoinSet<Result<Done>>,
    ops: OpQueue,
    commits: JoinSet<Answered>,
    folders: Vec<(PathBuf, Slot, AttrChange)>,
}

impl<'a> Put<'a> {
    fn new(
        client: &'a Client,
        profile: Profile,
        owner: Owner,
        destination: &Destination,
        options: TreeOptions,
    ) -> Self {
        Put {
            client,
            profile,
            owner,
            options,
            report: TreeReport::default(),
            into: destination.into,
            packer: Packer::new(profile),
            units: VecDeque::new(),
            cutting: VecDeque::new(),
            large: HashMap::new(),
            large_seen: 0,
            work: JoinSet::new(),
            ops: OpQueue::new(destination.parent),
            commits: JoinSet::new(),
            folders: Vec::new(),
        }
    }

    async fn run(mut self, mut found: mpsc::Receiver<Found>) -> Result<TreeReport> {
        let mut walking = true;
        let mut entries = Vec::new();
        loop {
            if !walking && self.has_room() {
                self.units.extend(self.packer.finish().map(Unit::Pack));
            }
            self.start_work();
            self.start_commits();
            let accepts = walking && self.has_room();
            if !accepts && self.is_idle() && !self.start_what_is_left() {
                break;
            }
            tokio::select! {
                Some(done) = self.work.join_next() => self.worked(super::joined(done)??),
                Some(done) = self.commits.join_next() => self.committed(super::joined(done)?)?,
                count = found.recv_many(&mut entries, 64), if accepts => {
                    walking = count > 0;
                    entries.drain(..).for_each(|found| self.found(found));
                }
            }
        }
        assert!(!walking && self.ops.is_empty() && self.large.is_empty(), "everything found is settled");
        Ok(self.report)
    }

    fn has_room(&self) -> bool {
        self.work.len() < stripes_in_flight(self.profile)
            && self.units.is_empty()
            && self.cutting.is_empty()
            && self.ops.len() < OPS_MAX
    }

    fn is_idle(&self) -> bool {
        self.work.is_empty() && self.commits.is_empty()
    }

    /// When nothing is under way and nothing more is accepted: first the stripe that is not full, which others may wait
    /// for, then the folders' times.
    fn start_what_is_left(&mut self) -> bool {
        if let Some(packed) = self.packer.finish() {
            self.units.push_back(Unit::Pack(packed));
            return self.start_work();
        }
        for (path, of, change) in std::mem::take(&mut self.folders) {
            // A folder that failed was reported; that its time is not set either is no news.
            drop(self.ops.submit(Op { path, what: OpKind::SetAttr { of, change }, slot: None }));
        }
        self.start_commits()
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Failed(path, error) => self.report.failed.push((path, error)),
            Found::Entry(entry) => match FileItem::new(entry, 0) {
                Ok(item) => {
                    self.options.progress.files_total.fetch_add(1, Relaxed);
                    self.options.progress.bytes_total.fetch_add(item.content.data_bytes(), Relaxed);
                    self.add_file(item);
                }
                Err(entry) if matches!(entry.what, What::Stream) => {
                    self.options.progress.files_total.fetch_add(1, Relaxed);
                    self.units.push_back(Unit::Stream(entry));
                }
                Err(entry) => self.add_plain(*entry),
            },
        }
    }

    fn add_plain(&mut self, mut entry: Entry) {
        if let (NewKind::Directory, Some(slot)) = (&entry.inode.kind, entry.slot) {
            if self.into != Some(InodeId::ROOT) {
                self.folders.push((entry.path.clone(), slot, only_mtime(&entry.inode)));
            }
            if let Some(ino) = self.into.take() {
                self.report.directories += 1;
                let waited = self.ops.know(slot, ino);
                assert!(waited.is_empty(), "nothing waits for the first folder");
                return;
            }
        }
        match std::mem::replace(&mut entry.what, What::Plain) {
            What::LinkTo(of) => {
                let what = OpKind::Link { of, parent: entry.parent, name: entry.name };
                self.submit(Op { path: entry.path, what, slot: entry.slot });
            }
            _ => self.create(entry, None),
        }
    }

    fn add_file(&mut self, item: FileItem) {
        let bytes = item.content.data_bytes();
        if bytes == 0 {
            self.create_file(item, Vec::new(), Vec::new());
        } else if bytes <= PACK_BYTES_MAX && item.content.data.len() <= PACKED_PIECES_MAX {
            self.units.extend(self.packer.push(item, bytes as u32).map(Unit::Pack));
        } else {
            self.large_seen += 1;
            let cutter = Cutter::new(item.content.data.clone(), content_bytes_per_stripe(self.profile));
            let large = Large {
                item: Arc::new(item),
                all_cut: false,
                under_way: 0,
                extents: Vec::new(),
                stripes: Vec::new(),
                bad: None,
            };
            self.large.insert(self.large_seen, large);
            self.cutting.push_back((self.large_seen, cutter));
        }
    }

    fn create_file(&mut self, item: FileItem, extents: Vec<Extent>, stripes: Vec<Stripe>) {
        let mtime = mtime_of(&item.entry);
        let size_min = item.content.stamp.size;
        let change = ContentChange { keep_bytes: Some(0), extents, holes: Vec::new(), stripes, size_min, mtime };
        self.create(*item.entry, Some(change));
    }

    fn create(&mut self, entry: Entry, content: Option<ContentChange>) {
        let Entry { path, parent, name, slot, inode, xattrs, .. } = entry;
        self.submit(Op { path: path.clone(), what: OpKind::Create { parent, name, inode, content }, slot });
        for (name, value) in xattrs {
            if let Some(of) = slot {
                self.submit(Op { path: path.clone(), what: OpKind::Xattr { of, name, value }, slot: None });
            }
        }
    }

    fn submit(&mut self, op: Op) {
        let failed = self.ops.submit(op);
        self.report_failed(failed);
    }

    fn report_failed(&mut self, failed: Vec<(Op, Error)>) {
        self.report.failed.extend(failed.into_iter().map(|(op, error)| (op.path, error)));
    }

    fn give_up(&mut self, entry: Entry, error: Error) {
        if let Some(slot) = entry.slot {
            let failed = self.ops.forget(slot, error.kind());
            self.report_failed(failed);
        }
        self.report.failed.push((entry.path, error));
    }

    /// Starts as many stripes as may be under way. Answers whether any is.
    fn start_work(&mut self) -> bool {
        while self.work.len() < stripes_in_flight(self.profile) {
            let Some(unit) = self.units.pop_front().or_else(|| self.cut()) else { break };
            self.work.spawn(work(self.client.clone(), self.profile, self.owner, unit));
        }
        !self.work.is_empty()
    }

    /// The next stripe of the large file whose turn it is.
    fn cut(&mut self) -> Option<Unit> {
        while let Some((file, cutter)) = self.cutting.front_mut() {
            let (file, Some(large)) = (*file, self.large.get_mut(file)) else {
                self.cutting.pop_front();
                continue;
            };
            let ranges = if large.bad.is_none() { cutter.next() } else { None };
            if let Some(ranges) = ranges {
                large.under_way += 1;
                return Some(Unit::Part { file, item: Arc::clone(&large.item), ranges });
            }
            large.all_cut = true;
            self.cutting.pop_front();
            if let Some(again) = self.finish_large(file) {
                return Some(again);
            }
        }
        None
    }

    /// Commits a large file once all its stripes are stored; or says that it needs a second look.
    fn finish_large(&mut self, file: u64) -> Option<Unit> {
        if !self.large.get(&file).is_some_and(|large| large.all_cut && large.under_way == 0) {
            return None;
        }
        let large = self.large.remove(&file)?;
        let item = Arc::into_inner(large.item);
        let mut item = item.unwrap_or_else(|| unreachable!("every stripe's task has ended and let go of its file"));
        if let Some(error) = large.bad {
            return Some(Unit::Again(Box::new(item), error));
        }
        let mut extents = large.extents;
        extents.sort_unstable_by_key(|extent| extent.offset);
        item.content.data = Vec::new();
        self.create_file(item, extents, large.stripes);
        None
    }

    fn worked(&mut self, done: Done) {
        match done {
            Done::Pack(read, stripe) => self.packed(read, stripe),
            Done::Part { file, stored } => {
                if let Some(large) = self.large.get_mut(&file) {
                    large.under_way -= 1;
                    match stored {
                        Ok((stripe, extents)) => {
                            self.options
                                .progress
                                .bytes
                                .fetch_add(extents.iter().map(|e| u64::from(e.len)).sum(), Relaxed);
                            large.stripes.push(stripe);
                            large.extents.extend(extents);
                        }
                        Err(error) => large.bad = Some(error),
                    }
                }
                let again = self.finish_large(file);
                self.units.extend(again);
            }
            Done::Again(Ok(item)) => self.add_file(item),
            Done::Again(Err(given_up)) => self.give_up(*given_up.entry, given_up.error),
            Done::Stream(entry, Ok(content)) => {
                self.options.progress.bytes_total.fetch_add(content.size_min, Relaxed);
                self.options.progress.bytes.fetch_add(content.size_min, Relaxed);
                self.create(*entry, Some(content));
            }
            Done::Stream(entry, Err(error)) => self.give_up(*entry, error),
        }
    }

    fn packed(&mut self, read: ReadPack, stripe: Option<Stripe>) {
        for (item, at) in read.whole {
            let Some(stripe) = &stripe else { unreachable!("a stripe with whole files in it was written") };
            self.options.progress.bytes.fetch_add(item.content.data_bytes(), Relaxed);
            let extents = extents_at(&item.content.data, stripe.id, at);
            self.create_file(item, extents, vec![stripe.clone()]);
        }
        self.units.extend(read.bad.into_iter().map(|(item, error)| Unit::Again(Box::new(item), error)));
    }

    /// Sends the batches that are worth sending. Answers whether any is under way.
    fn start_commits(&mut self) -> bool {
        while let Some(batch) = self.ops.take(self.commits.len()) {
            let ops = batch.iter().map(|op| self.ops.to_meta(op)).collect();
            let meta = self.client.meta().clone();
            self.commits.spawn(async move { (batch, meta.batch(ops).await) });
        }
        !self.commits.is_empty()
    }

    fn committed(&mut self, (batch, replies): Answered) -> Result<()> {
        let replies = replies?;
        if replies.len() != batch.len() {
            return Err(Error::new(Kind::Protocol, "metadata answered another number of operations than it was sent"));
        }
        for (op, reply) in batch.into_iter().zip(replies) {
            for outcome in self.ops.answered(op, reply)? {
                self.settled(outcome);
            }
        }
        Ok(())
    }

    fn settled(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Done(op) => self.count(&op),
            Outcome::Failed(op, error) => self.report.failed.push((op.path, error)),
            Outcome::Taken(op) => {
                let (meta, what) = (self.client.meta().clone(), self.ops.to_meta(&op));
                self.commits.spawn(async move { (vec![op], Ok(vec![replace(&meta, what).await])) });
            }
        }
    }

    fn count(&mut self, op: &Op) {
        match &op.what {
            OpKind::Create { content: Some(content), .. } => {
                self.report.files += 1;
                self.report.bytes += content.size_min;
                self.options.progress.files.fetch_add(1, Relaxed);
            }
            OpKind::Create { inode, .. } if inode.kind == NewKind::Directory => self.report.directories += 1,
            OpKind::Create { .. } | OpKind::Link { .. } => self.report.others += 1,
            OpKind::Xattr { .. } | OpKind::SetAttr { .. } => {}
        }
    }
}

/// Reads and writes one stripe. An error is one of the cluster; those of files are inside.
async fn work(client: Client, profile: Profile, owner: Owner, unit: Unit) -> Result<Done> {
    match unit {
        Unit::Pack(packed) => {
            let mut read = blocking(move || read_pack(packed)).await?;
            if read.whole.is_empty() {
                return Ok(Done::Pack(read, None));
            }
            let stripe = client.stripes().write(read.shape, std::mem::take(&mut read.data)).await?;
            Ok(Done::Pack(read, Some(stripe)))
        }
        Unit::Part { file, item, ranges } => {
            let read = blocking(move || (read_part(&item, &ranges), ranges)).await?;
            let (data, ranges) = match read {
                (Ok(data), ranges) => (data, ranges),
                (Err(error), _) => return Ok(Done::Part { file, stored: Err(error) }),
            };
            let shape = StripeShape::for_content(profile, data.len() as u64);
            let stripe = client.stripes().write(shape, data).await?;
            let extents = extents_at(&ranges, stripe.id, 0);
            Ok(Done::Part { file, stored: Ok((stripe, extents)) })
        }
        Unit::Again(item, error) => Ok(Done::Again(blocking(move || second_look(*item, error, owner)).await?)),
        Unit::Stream(entry) => {
            let (opened, entry) = blocking(move || (open_source(&entry.path), entry)).await?;
            let content = match opened {
                Ok(file) => store(&client, profile, tokio::fs::File::from_std(file)).await?.content(mtime_of(&entry)),
                Err(error) => Err(error),
            };
            Ok(Done::Stream(entry, content))
        }
    }
}

fn mtime_of(entry: &Entry) -> SetTime {
    entry.inode.mtime.map_or(SetTime::Now, SetTime::At)
}

/// Puts something in the place of what has the name: made under a temporary name and renamed over it.
async fn replace(meta: &MetaSession, op: MetaOp) -> Result<MetaReply> {
    let temporary = Name::new(format!(".torchfs-{:016x}", rand::random::<u64>()))?;
    let (parent, name, make) = match op {
        MetaOp::Create { parent, name, inode, content, .. } => {
            let name_there = temporary.clone();
            (parent, name, MetaOp::Create { parent, name: name_there, inode, if_exists: IfExists::Fail, content })
        }
        MetaOp::Link { ino, parent, name } => {
            let there = meta.lookup(parent, name.clone()).await?;
            if there.ino == ino {
                return Ok(MetaReply::Attr(there));
            }
            (parent, name, MetaOp::Link { ino, parent, name: temporary.clone() })
        }
        other => unreachable!("only what makes a name can find it taken: {other:?}"),
    };
    meta.apply(make).await?;
    match meta.rename((parent, temporary.clone()), (parent, name), RenameMode::Replace).await {
        Ok(attr) => Ok(MetaReply::Attr(attr)),
        Err(error) => {
            // If this fails too, the first failure is still the one to tell.
            drop(meta.unlink(parent, temporary).await);
            // A name that is taken for good must not be tried again.
            Err(if error.kind() == Kind::Exists { error.with_kind(Kind::IsDirectory) } else { error })
        }
    }
}
