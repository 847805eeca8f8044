//! [`MemoryMeta`]: a naive namespace in plain maps, in this process.
//!
//! It is the model that the replicated state machine is tested against, and what tests of clients run over. So it is
//! written to be seen to be right: whatever can be counted when it is asked for is counted then, every operation checks
//! all first and then changes, and nothing is fast or durable.

mod cluster;
mod content;
mod names;
mod paths;

use super::{
    Allocate, Allocation, Attr, Change, Changed, Changes, Command, Feed, FileKind, Heartbeat, HeartbeatReply,
    InternalOp, Leases, MetaAnswer, MetaOp, MetaQuery, MetaReply, MetaStore, Name, NewKind, NodeRecord, Timestamp,
    Watch, XattrName,
};
use crate::error::{Error, Kind, Result};
use crate::ids::{ClientId, ClusterId, InodeId, NodeId, RequestId, StripeId, Version};
use crate::layout::{ExtentMap, Profile, Stripe};
use crate::settings::{BATCH_OPS_MAX, LEASE};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most shards that one heartbeat is told to delete.
const DELETE_MAX: usize = 256;

/// A metadata store in memory. Its clock stands still unless it is set.
#[derive(Debug)]
pub struct MemoryMeta {
    model: Mutex<Model>,
    feed: Feed,
    leases: Leases,
}

impl MemoryMeta {
    /// A new cluster with this profile on the root folder and no storage nodes; they
    /// [register](MetaOp::Register) like any other.
    #[must_use]
    pub fn new(cluster: ClusterId, profile: Profile) -> Self {
        let model = Mutex::new(Model::new(cluster, profile, Timestamp::default()));
        MemoryMeta { model, feed: Feed::new(0), leases: Leases::new(LEASE) }
    }

    /// Sets the time of later operations.
    pub fn set_time(&self, now: Timestamp) {
        self.model().now = now;
    }

    /// Applies what only the cluster itself may: see [`InternalOp`].
    ///
    /// # Errors
    /// What the operation answers.
    pub fn internal(&self, op: InternalOp) -> Result<MetaReply> {
        self.model().run_internal(&op)
    }

    /// [`MetaStore::apply`], at once: it does not wait for those who hold a lease.
    ///
    /// # Errors
    /// What the operation answers.
    pub fn apply_now(&self, command: &Command) -> Result<MetaReply> {
        self.apply_numbered(command).0
    }

    /// Also says the how manieth command it was.
    fn apply_numbered(&self, command: &Command) -> (Result<MetaReply>, u64) {
        if !command.op.is_public() {
            return (fail(Kind::NotPermitted, "only the metadata cluster itself may propose this"), 0);
        }
        let mut model = self.model();
        let mut what = model.involved(&command.op);
        let answer = model.apply(command);
        what.extend(model.involved(&command.op));
        model.applied += 1;
        self.feed.push(model.applied, Changed { by: command.request, what: what.into_iter().collect() });
        (answer, model.applied)
    }

    /// [`MetaStore::query`], at once.
    ///
    /// # Errors
    /// What the query answers.
    pub fn query_now(&self, query: &MetaQuery) -> Result<MetaAnswer> {
        self.model().query(query)
    }

    fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl MetaStore for MemoryMeta {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        let (answer, number) = self.apply_numbered(&command);
        let reply = answer?;
        let client = command.request.client;
        self.leases.seen_by_others(client, self.feed.last_change_by(client, number)).await;
        Ok(reply)
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer> {
        self.query_now(&query)
    }

    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>> {
        self.model().allocate(&request)
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply> {
        self.model().heartbeat(&beat)
    }

    async fn watch(&self, watch: Watch) -> Result<Changes> {
        Ok(self.leases.watch(&self.feed, watch, Some(Duration::ZERO)).await)
    }
}

#[derive(Debug)]
struct Model {
    now: Timestamp,
    cluster: ClusterId,
    inodes: BTreeMap<InodeId, Inode>,
    /// The entries of each folder that has a name.
    folders: BTreeMap<InodeId, BTreeMap<Name, InodeId>>,
    next_inode: u64,
    stripes: BTreeMap<StripeId, Known>,
    /// Stripes whose last shard was deleted.
    forgotten: BTreeSet<StripeId>,
    next_stripe: u64,
    horizon: StripeId,
    nodes: Vec<NodeRecord>,
    loads: BTreeMap<NodeId, super::NodeLoad>,
    map_version: u64,
    clients: BTreeMap<ClientId, Client>,
    /// Commands so far.
    applied: u64,
}

#[derive(Clone, Debug)]
struct Inode {
    kind: NewKind,
    mode: u32,
    uid: u32,
    gid: u32,
    atime: Timestamp,
    mtime: Timestamp,
    ctime: Timestamp,
    version: Version,
    /// A file's size.
    size: u64,
    extents: ExtentMap,
    /// A folder's own profile; the one in effect when a file was made.
    profile: Option<Profile>,
    /// The folder that a folder is in.
    parent: InodeId,
    xattrs: BTreeMap<XattrName, Vec<u8>>,
    /// When it lost its last name.
    orphan_since: Option<Timestamp>,
}

#[derive(Debug)]
struct Known {
    stripe: Stripe,
    bad: BTreeSet<usize>,
    garbage_since: Option<Timestamp>,
    live_bytes: u64,
    /// When it last lost some of its live bytes.
    trimmed: Option<Timestamp>,
}

#[derive(Debug, Default)]
struct Client {
    floor: u64,
    seen: Timestamp,
    answers: BTreeMap<u64, Result<MetaReply>>,
}

fn fail<T>(kind: Kind, message: impl Into<String>) -> Result<T> {
    Err(Error::new(kind, message))
}

impl Model {
    fn new(cluster: ClusterId, profile: Profile, now: Timestamp) -> Self {
        let mut root = Inode::new(NewKind::Directory, now);
        (root.mode, root.profile, root.parent) = (0o755, Some(profile), InodeId::ROOT);
        Model {
            now,
            cluster,
            inodes: BTreeMap::from([(InodeId::ROOT, root)]),
            folders: BTreeMap::from([(InodeId::ROOT, BTreeMap::new())]),
            next_inode: 2,
            stripes: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            next_stripe: 1,
            horizon: StripeId(1),
            nodes: Vec::new(),
            loads: BTreeMap::new(),
            map_version: 1,
            clients: BTreeMap::new(),
            applied: 0,
        }
    }

    fn apply(&mut self, command: &Command) -> Result<MetaReply> {
        let RequestId { client, sequence } = command.request;
        if let Some(known) = self.clients.get(&client) {
            if let Some(answer) = known.answers.get(&sequence) {
                return answer.clone();
            }
            if sequence < known.floor {
                return fail(Kind::Stale, format!("request {sequence} was answered long ago"));
            }
        }
        let answer = self.run(&command.op);
        let known = self.clients.entry(client).or_default();
        known.floor = known.floor.max(command.answered_below.min(sequence));
        known.seen = self.now;
        known.answers = known.answers.split_off(&known.floor);
        known.answers.insert(sequence, answer.clone());
        answer
    }

    fn run(&mut self, op: &MetaOp) -> Result<MetaReply> {
        match op {
            MetaOp::Batch(ops) if ops.len() > BATCH_OPS_MAX => {
                fail(Kind::InvalidInput, format!("batch of {} operations", ops.len()))
            }
            MetaOp::Batch(ops) => {
                let run = |op: &MetaOp| match op {
                    MetaOp::Batch(_) => fail(Kind::InvalidInput, "a batch inside a batch"),
                    op => self.run(op),
                };
                Ok(MetaReply::Batch(ops.iter().map(run).collect()))
            }
            MetaOp::Create { parent, name, inode, if_exists, content } => {
                let attr = self.create(*parent, name, inode, *if_exists, content.as_ref())?;
                self.named_reply(*parent, attr)
            }
            MetaOp::Link { ino, parent, name } => {
                let attr = self.link(*ino, *parent, name)?;
                self.named_reply(*parent, attr)
            }
            MetaOp::Unlink { parent, name } => {
                let attr = self.unlink(*parent, name)?;
                self.named_reply(*parent, attr)
            }
            MetaOp::Rmdir { parent, name } => {
                let attr = self.rmdir(*parent, name)?;
                self.named_reply(*parent, attr)
            }
            MetaOp::Rename { parent, name, new_parent, new_name, mode } => {
                self.rename((*parent, name), (*new_parent, new_name), *mode)
            }
            MetaOp::SetAttr { ino, change } => self.set_attr(*ino, change).map(MetaReply::Attr),
            MetaOp::Commit { ino, change } => self.commit(*ino, change).map(MetaReply::Attr),
            MetaOp::SetXattr { ino, name, value, mode } => self.set_xattr(*ino, name, value, *mode).map(done),
            MetaOp::RemoveXattr { ino, name } => self.remove_xattr(*ino, name).map(done),
            MetaOp::SetProfile { ino, profile } => self.set_profile(*ino, *profile).map(done),
            MetaOp::ReportShards(shards) => self.mark_bad(shards).map(done),
            MetaOp::Register { uuid, addr, domain, capacity_bytes } => {
                self.register(*uuid, addr, domain, *capacity_bytes)
            }
            MetaOp::Internal(op) => self.run_internal(op),
        }
    }

    fn named_reply(&self, folder: InodeId, attr: Attr) -> Result<MetaReply> {
        Ok(MetaReply::Named { attr, folder: self.attr(folder)? })
    }

    /// What an operation touches, and the inodes that the names in it lead to now: all that it can change.
    fn involved(&self, op: &MetaOp) -> BTreeSet<Change> {
        let mut involved = BTreeSet::from_iter(op.touches());
        let leads_to = |change: &Change| match change {
            Change::Name(parent, name) => self.folders.get(parent)?.get(name).copied().map(Change::Inode),
            Change::Inode(_) => None,
        };
        let inodes: Vec<Change> = involved.iter().filter_map(leads_to).collect();
        involved.extend(inodes);
        involved
    }

    fn run_internal(&mut self, op: &InternalOp) -> Result<MetaReply> {
        match op {
            InternalOp::Found { profile, .. } => profile.checked().map(|_| MetaReply::Done),
            InternalOp::SetNodeState { node, state } => self.set_node_state(*node, *state).map(done),
            InternalOp::ReserveStripes { count } => self.reserve(*count).map(MetaReply::Stripes),
            InternalOp::AdvanceHorizon { stripe } => {
                self.horizon = self.horizon.max(StripeId(stripe.0.min(self.next_stripe)));
                Ok(MetaReply::Done)
            }
            InternalOp::Deleted(shards) => self.deleted(shards).map(done),
            InternalOp::Collect { before, clients_before } => {
                self.collect(*before);
                self.clients.retain(|_, client| client.seen >= *clients_before);
                Ok(MetaReply::Done)
            }
            InternalOp::Damaged(shards) => self.mark_bad(shards).map(done),
        }
    }

    fn query(&self, query: &MetaQuery) -> Result<MetaAnswer> {
        match query {
            MetaQuery::Lookup { parent, name } => {
                let ino = self.existing(*parent, name)?;
                self.attr(ino).map(MetaAnswer::Attr)
            }
            MetaQuery::Attr(ino) => self.attr(*ino).map(MetaAnswer::Attr),
            MetaQuery::Open(ino) => self.open(*ino),
            MetaQuery::List { ino, after, limit, extents } => {
                self.list(*ino, after.as_ref(), *limit, *extents).map(MetaAnswer::Listing)
            }
            MetaQuery::Resolve { from, path, follow } => self.resolve(*from, path, *follow).map(MetaAnswer::Resolved),
            MetaQuery::Parent(ino) => {
                self.entries(*ino)?;
                self.attr(self.inode(*ino)?.parent).map(MetaAnswer::Attr)
            }
            MetaQuery::ReadLink(ino) => match &self.inode(*ino)?.kind {
                NewKind::Symlink(target) => Ok(MetaAnswer::Bytes(target.clone())),
                _ => fail(Kind::InvalidInput, format!("inode {ino} is not a symbolic link")),
            },
            MetaQuery::Xattr { ino, name } => match self.inode(*ino)?.xattrs.get(name) {
                Some(value) => Ok(MetaAnswer::Bytes(value.clone())),
                None => fail(Kind::NoAttribute, format!("there is no attribute '{name}'")),
            },
            MetaQuery::Xattrs(ino) => Ok(MetaAnswer::Names(self.inode(*ino)?.xattrs.keys().cloned().collect())),
            MetaQuery::Profile(ino) => self.profile(*ino).map(|(profile, own)| MetaAnswer::Profile(profile, own)),
            MetaQuery::FsStat => Ok(MetaAnswer::FsStat(self.fs_stat())),
            MetaQuery::Map => Ok(MetaAnswer::Map(self.map())),
            MetaQuery::Status => Ok(MetaAnswer::Status(Box::new(self.status()))),
            MetaQuery::Abandoned(stripes) => Ok(MetaAnswer::Stripes(self.abandoned(stripes))),
        }
    }

    fn inode(&self, ino: InodeId) -> Result<&Inode> {
        self.inodes.get(&ino).ok_or_else(|| Error::new(Kind::NotFound, format!("there is no inode {ino}")))
    }

    fn inode_mut(&mut self, ino: InodeId) -> Result<&mut Inode> {
        self.inodes.get_mut(&ino).ok_or_else(|| Error::new(Kind::NotFound, format!("there is no inode {ino}")))
    }

    fn attr(&self, ino: InodeId) -> Result<Attr> {
        let inode = self.inode(ino)?;
        let is_name = |other: &&InodeId| **other == ino;
        let (nlink, size) = match &inode.kind {
            NewKind::Directory => self.folders.get(&ino).map_or((0, 0), |entries| {
                let folders = entries.values().filter(|child| self.folders.contains_key(child)).count();
                (2 + folders, entries.len() as u64)
            }),
            NewKind::Symlink(target) => {
                (self.folders.values().flat_map(BTreeMap::values).filter(is_name).count(), target.len() as u64)
            }
            _ => (self.folders.values().flat_map(BTreeMap::values).filter(is_name).count(), inode.size),
        };
        Ok(Attr {
            ino,
            kind: inode.kind.kind(),
            mode: inode.mode,
            nlink: nlink as u32,
            uid: inode.uid,
            gid: inode.gid,
            size,
            allocated: inode.extents.extents().iter().map(|extent| u64::from(extent.len)).sum(),
            atime: inode.atime,
            mtime: inode.mtime,
            ctime: inode.ctime,
            version: inode.version,
            rdev: match inode.kind {
                NewKind::CharDevice(number) | NewKind::BlockDevice(number) => number,
                _ => 0,
            },
            xattr_bytes: list_bytes(inode.xattrs.keys()) as u32,
            profile: inode.profile.filter(|_| inode.kind == NewKind::File),
        })
    }
}

/// Bytes that names take in listxattr(2).
fn list_bytes<'a>(names: impl IntoIterator<Item = &'a XattrName>) -> usize {
    names.into_iter().map(|name| name.as_bytes().len() + 1).sum()
}

fn done((): ()) -> MetaReply {
    MetaReply::Done
}

impl Inode {
    fn new(kind: NewKind, now: Timestamp) -> Self {
        Inode {
            kind,
            mode: 0,
            uid: 0,
            gid: 0,
            atime: now,
            mtime: now,
            ctime: now,
            version: Version(0),
            size: 0,
            extents: ExtentMap::default(),
            profile: None,
            parent: InodeId::ROOT,
            xattrs: BTreeMap::new(),
            orphan_since: None,
        }
    }

    fn is_folder(&self) -> bool {
        self.kind.kind() == FileKind::Directory
    }
}
#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::conformance;
    use std::sync::Arc;

    #[tokio::test]
    async fn keeps_the_contract_of_every_metadata_store() {
        conformance::run(|| async { Arc::new(MemoryMeta::new(ClusterId(1), Profile::DEFAULT)) as Arc<dyn MetaStore> })
            .await;
    }
}
