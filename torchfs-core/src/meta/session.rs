//! One client's use of a [`MetaStore`]: numbers its requests so that retries are exactly-once, sends what many ask at the
//! same time as batches, and gives each operation a typed method.

use super::cache::MetaCache;
use super::unnamed::Unnamed;
use super::{
    Allocate, Allocation, Attr, AttrChange, Change, Changes, ClusterMap, Command, Content, ContentChange, FsStat,
    IfExists, Listing, MetaAnswer, MetaOp, MetaQuery, MetaReply, MetaStore, Name, NewInode, RenameMode, Resolved,
    Status, XattrMode, XattrName,
};
use crate::error::{Error, Kind, Result};
use crate::gather::Gather;
use crate::ids::{ClientId, InodeId, RequestId, ShardId};
use crate::layout::Profile;
use crate::settings::META_DEADLINE;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// A change of content with more extents and stripes is not short.
const SHORT_CHANGE_MAX: usize = 64;

/// Nor is a longer value of an attribute.
const SHORT_VALUE_BYTES_MAX: usize = 4096;

/// A client of a metadata store. Cheap to clone; clones share the numbering.
#[derive(Clone, Debug)]
pub struct MetaSession {
    line: Arc<Line>,
    unnamed: Arc<Unnamed>,
    gather: Arc<Gather<MetaOp, MetaReply>>,
}

/// The store and this client's requests to it.
#[derive(Debug)]
struct Line {
    cache: Arc<MetaCache>,
    client: ClientId,
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    last: u64,
    open: BTreeSet<u64>,
}

/// Takes the number out of the open ones however the request ends, a dropped future included.
struct Open<'a> {
    line: &'a Line,
    sequence: u64,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.line.numbers().open.remove(&self.sequence);
    }
}

fn unexpected<T>(answer: impl std::fmt::Debug) -> Result<T> {
    Err(Error::new(Kind::Protocol, format!("metadata gave an answer of the wrong kind: {answer:?}")))
}

macro_rules! expect_variant {
    ($value:expr, $pattern:pat => $result:expr) => {
        match $value {
            $pattern => Ok($result),
            other => unexpected(other),
        }
    };
}

impl Line {
    fn numbers(&self) -> std::sync::MutexGuard<'_, Numbers> {
        self.numbers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, op: MetaOp) -> Result<MetaReply> {
        let (sequence, answered_below) = {
            let mut numbers = self.numbers();
            numbers.last += 1;
            let sequence = numbers.last;
            numbers.open.insert(sequence);
            (sequence, numbers.open.first().copied().unwrap_or(sequence))
        };
        let _open = Open { line: self, sequence };
        let request = RequestId { client: self.client, sequence };
        self.cache.apply(Command { request, answered_below, op }).await
    }

    async fn send_group(&self, mut ops: Vec<MetaOp>) -> Vec<Result<MetaReply>> {
        if ops.len() == 1 {
            return vec![self.send(ops.remove(0)).await];
        }
        let count = ops.len();
        let answer = match self.send(MetaOp::Batch(ops)).await {
            Ok(MetaReply::Batch(replies)) if replies.len() == count => return replies,
            Ok(other) => unexpected(other),
            Err(error) => Err(error),
        };
        vec![answer; count]
    }
}

/// Whether an operation takes little room and time in a batch with others.
fn is_short(op: &MetaOp) -> bool {
    let is_small = |change: &ContentChange| change.extents.len() + change.stripes.len() <= SHORT_CHANGE_MAX;
    match op {
        MetaOp::Create { content, .. } => content.as_ref().is_none_or(is_small),
        MetaOp::Commit { change, .. } => is_small(change),
        MetaOp::SetXattr { value, .. } => value.len() <= SHORT_VALUE_BYTES_MAX,
        MetaOp::Link { .. } | MetaOp::Unlink { .. } | MetaOp::Rmdir { .. } | MetaOp::Rename { .. } => true,
        MetaOp::SetAttr { .. } | MetaOp::RemoveXattr { .. } => true,
        MetaOp::Batch(_) | MetaOp::SetProfile { .. } => false,
        MetaOp::ReportShards(_) | MetaOp::Register { .. } | MetaOp::Internal(_) => false,
    }
}

impl MetaSession {
    /// Starts a session with a fresh client id.
    #[must_use]
    pub fn new(store: Arc<dyn MetaStore>) -> Self {
        let cache = Arc::new(MetaCache::new(store));
        let line = Arc::new(Line { cache, client: ClientId::random(), numbers: Mutex::default() });
        let sends = line.clone();
        let gather = Gather::new(META_DEADLINE, move |ops| {
            let line = sends.clone();
            async move { line.send_group(ops).await }
        });
        MetaSession { line, unnamed: Arc::default(), gather: Arc::new(gather) }
    }

    /// What this client has written and no file names yet.
    pub(crate) fn unnamed(&self) -> &Unnamed {
        &self.unnamed
    }

    /// The store underneath.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn MetaStore> {
        self.line.cache.store()
    }

    /// Applies any operation under a fresh request id. Short ones that are asked while others are under way go together
    /// as a batch, in which each still succeeds or fails by itself.
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn apply(&self, op: MetaOp) -> Result<MetaReply> {
        let naming = self.unnamed.naming(&op)?;
        let answer = if is_short(&op) { self.gather.ask(op).await } else { self.line.send(op).await };
        naming.answered(&answer);
        answer
    }

    /// As [`MetaSession::apply`], for operations that answer with the inode they are about.
    pub(crate) async fn apply_for_attr(&self, op: MetaOp) -> Result<Attr> {
        let reply = self.apply(op).await?;
        expect_variant!(reply, MetaReply::Attr(attr) | MetaReply::Named { attr, .. } => attr)
    }

    async fn apply_for_done(&self, op: MetaOp) -> Result<()> {
        expect_variant!(self.apply(op).await?, MetaReply::Done => ())
    }

    /// [`MetaOp::Batch`].
    ///
    /// # Errors
    /// Of the batch as a whole; each operation's own is inside.
    pub async fn batch(&self, ops: Vec<MetaOp>) -> Result<Vec<Result<MetaReply>>> {
        expect_variant!(self.apply(MetaOp::Batch(ops)).await?, MetaReply::Batch(replies) => replies)
    }

    /// [`MetaOp::Create`] without content.
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn create(&self, parent: InodeId, name: Name, inode: NewInode, if_exists: IfExists) -> Result<Attr> {
        self.apply_for_attr(MetaOp::Create { parent, name, inode, if_exists, content: None }).await
    }

    /// [`MetaOp::Link`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn link(&self, ino: InodeId, parent: InodeId, name: Name) -> Result<Attr> {
        self.apply_for_attr(MetaOp::Link { ino, parent, name }).await
    }

    /// [`MetaOp::Unlink`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn unlink(&self, parent: InodeId, name: Name) -> Result<Attr> {
        self.apply_for_attr(MetaOp::Unlink { parent, name }).await
    }

    /// [`MetaOp::Rmdir`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn rmdir(&self, parent: InodeId, name: Name) -> Result<()> {
        self.apply_for_attr(MetaOp::Rmdir { parent, name }).await.map(drop)
    }

    /// [`MetaOp::Rename`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn rename(&self, from: (InodeId, Name), to: (InodeId, Name), mode: RenameMode) -> Result<Attr> {
        let op = MetaOp::Rename { parent: from.0, name: from.1, new_parent: to.0, new_name: to.1, mode };
        expect_variant!(self.apply(op).await?, MetaReply::Renamed { moved, .. } => moved)
    }

    /// [`MetaOp::SetAttr`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn set_attr(&self, ino: InodeId, change: AttrChange) -> Result<Attr> {
        self.apply_for_attr(MetaOp::SetAttr { ino, change }).await
    }

    /// [`MetaOp::Commit`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn commit(&self, ino: InodeId, change: ContentChange) -> Result<Attr> {
        self.apply_for_attr(MetaOp::Commit { ino, change }).await
    }

    /// [`MetaOp::SetXattr`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn set_xattr(&self, ino: InodeId, name: XattrName, value: Vec<u8>, mode: XattrMode) -> Result<()> {
        self.apply_for_done(MetaOp::SetXattr { ino, name, value, mode }).await
    }

    /// [`MetaOp::RemoveXattr`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn remove_xattr(&self, ino: InodeId, name: XattrName) -> Result<()> {
        self.apply_for_done(MetaOp::RemoveXattr { ino, name }).await
    }

    /// [`MetaOp::SetProfile`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn set_profile(&self, ino: InodeId, profile: Option<Profile>) -> Result<()> {
        self.apply_for_done(MetaOp::SetProfile { ino, profile }).await
    }

    /// [`MetaOp::ReportShards`].
    ///
    /// # Errors
    /// What the operation answers.
    pub async fn report_shards(&self, shards: Vec<ShardId>) -> Result<()> {
        self.apply_for_done(MetaOp::ReportShards(shards)).await
    }

    /// [`MetaStore::allocate`].
    ///
    /// # Errors
    /// See there.
    pub async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>> {
        self.store().allocate(request).await
    }

    /// Who this is to metadata.
    #[must_use]
    pub fn client(&self) -> ClientId {
        self.line.client
    }

    /// [`MetaStore::watch`] for this client. As long as somebody calls it again and again, each time with the `upto` of the
    /// answer before, questions that were asked before are answered from memory, with what a question would be answered.
    ///
    /// # Errors
    /// If metadata does not answer.
    pub async fn watch(&self, seen: Option<u64>) -> Result<Changes> {
        self.line.cache.watch(self.line.client, seen).await
    }

    /// Ends what [`MetaSession::watch`] began: from now on nothing is answered from memory, and others need not wait for this
    /// client any more. Call it before the client ends; otherwise it holds them up once, for at most a
    /// [`LEASE`](crate::settings::LEASE).
    pub async fn leave(&self) {
        self.line.cache.leave(self.line.client).await;
    }

    /// The store and what is remembered of its answers.
    #[cfg(test)]
    pub(super) fn cache(&self) -> &Arc<MetaCache> {
        &self.line.cache
    }

    /// How many questions were answered from memory.
    #[must_use]
    pub fn remembered(&self) -> u64 {
        self.line.cache.hits()
    }

    /// What is remembered of an inode is asked for anew. Where shards are is no change of the namespace, and is not told.
    pub(crate) fn forget(&self, ino: InodeId) {
        self.line.cache.forget(&[Change::Inode(ino)]);
    }

    /// What [`MetaSession::lookup`] finds at this moment, if that is remembered: nobody is asked.
    #[must_use]
    pub fn remembered_entry(&self, parent: InodeId, name: &Name) -> Option<Attr> {
        self.line.cache.remembered(parent, name)
    }

    /// [`MetaQuery::Lookup`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn lookup(&self, parent: InodeId, name: Name) -> Result<Attr> {
        expect_variant!(self.line.cache.query(MetaQuery::Lookup { parent, name }).await?, MetaAnswer::Attr(attr) => attr)
    }

    /// [`MetaQuery::Attr`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn attr(&self, ino: InodeId) -> Result<Attr> {
        expect_variant!(self.line.cache.query(MetaQuery::Attr(ino)).await?, MetaAnswer::Attr(attr) => attr)
    }

    /// [`MetaQuery::Parent`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn parent(&self, ino: InodeId) -> Result<Attr> {
        expect_variant!(self.line.cache.query(MetaQuery::Parent(ino)).await?, MetaAnswer::Attr(attr) => attr)
    }

    /// [`MetaQuery::Open`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn open(&self, ino: InodeId) -> Result<(Attr, Content)> {
        let answer = self.line.cache.query(MetaQuery::Open(ino)).await?;
        expect_variant!(answer, MetaAnswer::Opened(attr, content) => (attr, content))
    }

    /// [`MetaQuery::List`] without extents.
    ///
    /// # Errors
    /// What the query answers.
    pub async fn list(&self, ino: InodeId, after: Option<Name>, limit: u32) -> Result<Listing> {
        let query = MetaQuery::List { ino, after, limit, extents: false };
        expect_variant!(self.line.cache.query(query).await?, MetaAnswer::Listing(listing) => listing)
    }

    /// [`MetaQuery::List`] with extents and stripes: all that is needed to read the files.
    ///
    /// # Errors
    /// What the query answers.
    pub async fn list_with_extents(&self, ino: InodeId, after: Option<Name>, limit: u32) -> Result<Listing> {
        let query = MetaQuery::List { ino, after, limit, extents: true };
        expect_variant!(self.line.cache.query(query).await?, MetaAnswer::Listing(listing) => listing)
    }

    /// [`MetaQuery::Resolve`] from the root, following a link at the end.
    ///
    /// # Errors
    /// What the query answers.
    pub async fn resolve(&self, path: &[u8]) -> Result<Resolved> {
        self.resolve_from(InodeId::ROOT, path, true).await
    }

    /// [`MetaQuery::Resolve`] from the root; a link at the end is itself the answer.
    ///
    /// # Errors
    /// What the query answers.
    pub async fn resolve_no_follow(&self, path: &[u8]) -> Result<Resolved> {
        self.resolve_from(InodeId::ROOT, path, false).await
    }

    async fn resolve_from(&self, from: InodeId, path: &[u8], follow: bool) -> Result<Resolved> {
        let query = MetaQuery::Resolve { from, path: path.to_vec(), follow };
        expect_variant!(self.line.cache.query(query).await?, MetaAnswer::Resolved(resolved) => resolved)
    }

    /// [`MetaQuery::ReadLink`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn read_link(&self, ino: InodeId) -> Result<Vec<u8>> {
        expect_variant!(self.line.cache.query(MetaQuery::ReadLink(ino)).await?, MetaAnswer::Bytes(bytes) => bytes)
    }

    /// [`MetaQuery::Xattr`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn xattr(&self, ino: InodeId, name: XattrName) -> Result<Vec<u8>> {
        expect_variant!(self.line.cache.query(MetaQuery::Xattr { ino, name }).await?, MetaAnswer::Bytes(bytes) => bytes)
    }

    /// [`MetaQuery::Xattrs`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn xattrs(&self, ino: InodeId) -> Result<Vec<XattrName>> {
        expect_variant!(self.line.cache.query(MetaQuery::Xattrs(ino)).await?, MetaAnswer::Names(names) => names)
    }

    /// [`MetaQuery::Profile`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn profile(&self, ino: InodeId) -> Result<(Profile, bool)> {
        let answer = self.line.cache.query(MetaQuery::Profile(ino)).await?;
        expect_variant!(answer, MetaAnswer::Profile(profile, own) => (profile, own))
    }

    /// [`MetaQuery::FsStat`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn fs_stat(&self) -> Result<FsStat> {
        expect_variant!(self.line.cache.query(MetaQuery::FsStat).await?, MetaAnswer::FsStat(stat) => stat)
    }

    /// [`MetaQuery::Map`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn map(&self) -> Result<ClusterMap> {
        expect_variant!(self.line.cache.query(MetaQuery::Map).await?, MetaAnswer::Map(map) => map)
    }

    /// [`MetaQuery::Status`].
    ///
    /// # Errors
    /// What the query answers.
    pub async fn status(&self) -> Result<Status> {
        expect_variant!(self.line.cache.query(MetaQuery::Status).await?, MetaAnswer::Status(status) => *status)
    }
}
