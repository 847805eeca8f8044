//! Writing stripes: encode, place, send to all nodes at once, replace those that fail or hang.
//!
//! The rule: a stripe that is reported as written can lose any one node and still be read ([`may_be_acknowledged`]). Its shards
//! are on distinct nodes; see `spread` for what is done when there are fewer nodes than shards. If there are too few even for
//! that, the write fails, and what was sent is deleted again as far as possible.

use super::grants::Grants;
use super::spread::{Reach, Spread, may_be_acknowledged};
use super::{STRIPE_DEADLINE, Shared, StripeIo, ask, offload};
use crate::checksum::block_checksums;
use crate::erasure;
use crate::error::{Error, Kind, Result};
use crate::ids::{NodeId, ShardId, StripeId};
use crate::layout::{Profile, Stripe, StripeShape};
use crate::meta::{Allocate, Allocation, NodeState, StoreStatus};
use crate::shard::{ShardStores, no_space, node_is_full};
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

/// Stripes that [`StripeIo::write_all`] works on at once: one is encoded while others are sent. Bounds memory to parity for so many.
const STRIPES_IN_FLIGHT: usize = 3;
/// A node that failed a write is not asked for again for this long, if there are others.
const AVOID_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// A shard's write is given this long before a spare gets it too, however fast the others were.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// And this many times as long as the faster half of the shards took.
const PATIENCE_FACTOR: u32 = 4;
/// How much longer to wait when there is no unused spare, and the shard is left out or a node gets a second one.
const NO_SPARE_FACTOR: u32 = 3;
/// Clean-ups under way; further ones are left to garbage collection.
const CHORES_MAX: usize = 64;
/// How long a failed write tries to delete what it has sent before it returns.
const UNDO_DEADLINE: Duration = Duration::from_secs(2);
/// How long a failed write asks which nodes are down, for its error.
const EXPLAIN_DEADLINE: Duration = Duration::from_secs(1);

/// What is remembered between writes.
#[derive(Debug, Default)]
pub(super) struct Writes {
    grants: Grants,
    failed: Mutex<HashMap<NodeId, Instant>>,
    chores: Mutex<JoinSet<()>>,
    under_way: TaskTracker,
}

impl Writes {
    fn note_failure(&self, node: NodeId) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).insert(node, Instant::now());
    }

    fn to_avoid(&self) -> Vec<NodeId> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, at| at.elapsed() < AVOID_AFTER_FAILURE);
        let mut nodes: Vec<NodeId> = failed.keys().copied().collect();
        nodes.sort_unstable();
        nodes
    }

    /// Runs a clean-up in the background, for as long as the owner lives.
    fn spawn_chore(&self, chore: impl Future<Output = ()> + Send + 'static) {
        let mut chores = self.chores.lock().unwrap_or_else(PoisonError::into_inner);
        while chores.try_join_next().is_some() {}
        if chores.len() < CHORES_MAX {
            chores.spawn(chore);
        }
    }

    /// Waits for the writes under way, and for the clean-ups after them.
    async fn settle(&self) {
        self.under_way.close();
        self.under_way.wait().await;
        let mut chores = std::mem::take(&mut *self.chores.lock().unwrap_or_else(PoisonError::into_inner));
        while chores.join_next().await.is_some() {}
    }
}

/// A shard ready to be sent.
#[derive(Clone, Debug)]
struct Coded {
    index: usize,
    data: Bytes,
    checksums: Vec<u32>,
}

impl StripeIo {
    /// Writes one stripe and returns its record, which a commit must name before a file has it. `data` is
    /// `shape.data_bytes` long.
    ///
    /// A node that fails or hangs is replaced by a spare. If there are fewer nodes than shards, shards are left out, down to
    /// k+1; with k nodes some hold two. Any one node may still be lost, and the record
    /// [is under-spread](Stripe::is_under_spread).
    ///
    /// # Errors
    /// `NoSpace` if nodes refuse for lack of space, `Unavailable` if fewer than k nodes answer, or k where m is 1.
    pub async fn write(&self, shape: StripeShape, data: Bytes) -> Result<Stripe> {
        self.write_pieces(shape, vec![data]).await
    }

    /// [`StripeIo::write`] of content that lies in several buffers. A shard that lies within one of them is not copied.
    ///
    /// # Errors
    /// See [`StripeIo::write`].
    pub async fn write_pieces(&self, shape: StripeShape, pieces: Vec<Bytes>) -> Result<Stripe> {
        let shape = shape.checked()?;
        let given: usize = pieces.iter().map(Bytes::len).sum();
        if given != shape.data_bytes as usize {
            let message = format!("{given} bytes for a stripe of {}", shape.data_bytes);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let _under_way = self.shared.writes.under_way.token();
        let avoid = self.shared.writes.to_avoid();
        let coding = offload(given, move || code_stripe(shape, &pieces));
        let (allocation, shards) = tokio::join!(self.allocate(shape, &avoid), coding);
        let (allocation, shards) = (allocation?, shards??);
        let spread = Spread::new(shape, allocation.nodes, avoid);
        let stripe = Box::pin(Write::new(&self.shared, allocation.stripe, shape, shards, spread).run()).await?;
        self.shared.meta.unnamed().add(&stripe);
        Ok(stripe)
    }

    /// Writes content of any length as stripes of the profile, each as large as possible, several at a time.
    ///
    /// # Errors
    /// See [`StripeIo::write`]. Stripes already written are deleted again as far as possible.
    pub async fn write_all(&self, profile: Profile, data: Bytes) -> Result<Vec<Stripe>> {
        let stripe_bytes = profile.checked()?.stripe_bytes_max() as usize;
        let mut starts = (0..data.len()).step_by(stripe_bytes);
        let mut under_way = FuturesOrdered::new();
        let (mut stripes, mut failure) = (Vec::new(), None);
        loop {
            while failure.is_none()
                && under_way.len() < STRIPES_IN_FLIGHT
                && let Some(start) = starts.next()
            {
                let content = data.slice(start..data.len().min(start + stripe_bytes));
                let shape = StripeShape::for_content(profile, content.len() as u64);
                under_way.push_back(Box::pin(self.write(shape, content)));
            }
            match under_way.next().await {
                Some(Ok(stripe)) => stripes.push(stripe),
                // The others are waited for, so that what they store is known and can be deleted.
                Some(Err(error)) => failure = failure.or(Some(error)),
                None => break,
            }
        }
        match failure {
            None => Ok(stripes),
            Some(error) => {
                self.discard(&stripes);
                Err(error)
            }
        }
    }

    /// Deletes the shards of stripes that no commit has named or will name, in the background and as far as possible.
    /// What is left over is garbage collected later.
    pub fn discard(&self, stripes: &[Stripe]) {
        self.shared.meta.unnamed().forget(stripes);
        let copies: Vec<Copy> = stripes.iter().flat_map(copies_of).collect();
        if !copies.is_empty() {
            self.shared.writes.spawn_chore(delete_copies(self.shared.stores.clone(), copies));
        }
    }

    /// Deletes the shards of everything that was written and that no file names or will name, as far as that is possible
    /// within `deadline`. For the end of a client: a commit that still names any of it is refused as `Stale`.
    pub async fn give_back(&self, deadline: Duration) {
        let give_back = async {
            self.shared.writes.settle().await;
            let copies: Vec<Copy> = self.shared.meta.unnamed().give_back().iter().flat_map(copies_of).collect();
            delete_copies(self.shared.stores.clone(), copies).await;
        };
        if tokio::time::timeout(deadline, give_back).await.is_err() {
            tracing::debug!("shards that no file names are left to garbage collection");
        }
    }

    async fn allocate(&self, shape: StripeShape, avoid: &[NodeId]) -> Result<Allocation> {
        if avoid.is_empty() {
            return self.shared.writes.grants.place(&self.shared.meta, shape).await;
        }
        // Places that were granted before may be on these nodes.
        self.shared.writes.grants.forget();
        let mut request =
            Allocate { profile: shape.profile, stripes: 1, shard_bytes: shape.shard_bytes, avoid: avoid.to_vec() };
        let mut answer = self.shared.meta.allocate(request.clone()).await;
        if answer.is_err() {
            request.avoid.clear();
            answer = self.shared.meta.allocate(request).await;
        }
        answer?.pop().ok_or_else(|| Error::new(Kind::Protocol, "metadata allocated no stripe"))
    }
}

/// Cuts content into the shards that exist, makes parity, and computes all checksums.
fn code_stripe(shape: StripeShape, pieces: &[Bytes]) -> Result<Vec<Coded>> {
    let data: Vec<Bytes> =
        (0..usize::from(shape.profile.data)).map(|index| gather(pieces, shape.data_range(index))).collect();
    let mut parity = vec![vec![0; shape.shard_bytes as usize]; usize::from(shape.profile.parity)];
    let inputs: Vec<&[u8]> = data.iter().map(Bytes::as_ref).collect();
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    erasure::code(shape.profile)?.encode(&inputs, &mut outputs)?;
    let all = data.into_iter().chain(parity.into_iter().map(Bytes::from)).enumerate();
    let stored = all.filter(|(_, data)| !data.is_empty());
    Ok(stored.map(|(index, data)| Coded { index, checksums: block_checksums(&data), data }).collect())
}

/// The bytes of `range` in the concatenation of `pieces`; a slice if one piece has them all.
fn gather(pieces: &[Bytes], range: Range<u32>) -> Bytes {
    let range = range.start as usize..range.end as usize;
    let mut found = Vec::new();
    let mut start = 0;
    for piece in pieces {
        let from = range.start.max(start);
        let to = range.end.min(start + piece.len());
        if from < to {
            found.push(piece.slice(from - start..to - start));
        }
        start += piece.len();
    }
    if found.len() == 1 {
        return found.swap_remove(0);
    }
    let mut joined = BytesMut::with_capacity(range.len());
    found.iter().for_each(|piece| joined.extend_from_slice(piece));
    joined.freeze()
}

/// A shard on a node.
type Copy = (NodeId, ShardId);

fn copies_of(stripe: &Stripe) -> impl Iterator<Item = Copy> + '_ {
    let held = stripe.nodes.iter().enumerate();
    held.filter_map(|(index, node)| node.map(|node| (node, stripe.shard(index))))
}

async fn delete_copies(stores: Arc<dyn ShardStores>, copies: Vec<Copy>) {
    let mut by_node: BTreeMap<NodeId, Vec<ShardId>> = BTreeMap::new();
    for (node, shard) in copies {
        by_node.entry(node).or_default().push(shard);
    }
    let deletes = by_node.into_iter().map(|(node, shards)| {
        let stores = stores.clone();
        async move {
            let count = shards.len();
            if let Err(error) = ask(&stores, node, |store| async move { store.delete(shards).await }).await {
                tracing::debug!(%node, %error, count, "shards left to garbage collection");
            }
        }
    });
    futures::future::join_all(deletes).await;
}

/// How one attempt to put a shard on a node went.
struct Sent {
    shard: usize,
    node: NodeId,
    result: Result<()>,
}

/// What is known of one shard of the stripe.
#[derive(Debug)]
struct Progress {
    coded: Coded,
    stored_on: Option<NodeId>,
    /// Nodes it is being sent to.
    sending_to: Vec<NodeId>,
    last_sent: Instant,
    hedges: u32,
    /// It took too long, and there is no other node for it.
    is_given_up: bool,
}

impl Progress {
    fn is_unsent(&self) -> bool {
        self.stored_on.is_none() && self.sending_to.is_empty()
    }

    fn is_settled(&self) -> bool {
        self.stored_on.is_some() || self.sending_to.is_empty()
    }
}

/// One stripe on its way.
struct Write<'a> {
    shared: &'a Shared,
    id: StripeId,
    shape: StripeShape,
    spread: Spread,
    shards: Vec<Progress>,
    sends: FuturesUnordered<BoxFuture<'static, Sent>>,
    /// Copies that may exist and that the record will not name.
    stray: Vec<Copy>,
    began: Instant,
    /// How long the faster half of the shards took, once it is done.
    half_took: Option<Duration>,
    is_recorded: bool,
}

/// A write that fails or is given up midway leaves nothing that could be deleted.
impl Drop for Write<'_> {
    fn drop(&mut self) {
        if !self.is_recorded && tokio::runtime::Handle::try_current().is_ok() {
            self.clean_up();
        }
    }
}

impl<'a> Write<'a> {
    fn new(shared: &'a Shared, id: StripeId, shape: StripeShape, coded: Vec<Coded>, spread: Spread) -> Self {
        let began = Instant::now();
        let progress = |coded| Progress {
            coded,
            stored_on: None,
            sending_to: Vec::new(),
            last_sent: began,
            hedges: 0,
            is_given_up: false,
        };
        let shards = coded.into_iter().map(progress).collect();
        let (sends, stray) = (FuturesUnordered::new(), Vec::new());
        Write { shared, id, shape, spread, shards, sends, stray, began, half_took: None, is_recorded: false }
    }

    async fn run(mut self) -> Result<Stripe> {
        let plan: Vec<Option<NodeId>> =
            (0..self.shards.len()).map(|shard| self.spread.assign(shard, Reach::Doubtful)).collect();
        let by_index = |index| self.shards.iter().position(|shard| shard.coded.index == index);
        let planned: Vec<Option<NodeId>> =
            (0..self.shape.profile.shards()).map(|index| by_index(index).and_then(|shard| plan[shard])).collect();
        if !may_be_acknowledged(&self.shape, &planned) {
            return Err(self.failure().await);
        }
        for (shard, node) in plan.into_iter().enumerate() {
            if let Some(node) = node {
                self.send(shard, node);
            }
        }
        self.settle().await;
        self.finish().await
    }

    /// Works until every shard is stored, or left out, or not worth waiting for any longer, or time is up.
    async fn settle(&mut self) {
        let deadline = self.began + STRIPE_DEADLINE;
        while !self.is_done() {
            let hedge_at = self.next_hedge().unwrap_or(deadline);
            tokio::select! {
                biased;
                Some(sent) = self.sends.next() => self.note(sent),
                () = tokio::time::sleep_until(deadline) => break,
                () = tokio::time::sleep_until(hedge_at) => self.hedge(),
            }
        }
    }

    fn is_done(&self) -> bool {
        let is_waited_for = |shard: &Progress| !shard.is_settled() && !shard.is_given_up;
        self.shards.iter().all(Progress::is_settled)
            || !self.shards.iter().any(is_waited_for) && may_be_acknowledged(&self.shape, &self.stored_on())
    }

    /// The node that each of the k+m shards is stored on by now.
    fn stored_on(&self) -> Vec<Option<NodeId>> {
        let mut nodes = vec![None; self.shape.profile.shards()];
        for shard in &self.shards {
            nodes[shard.coded.index] = shard.stored_on;
        }
        nodes
    }

    fn send(&mut self, shard: usize, node: NodeId) {
        let progress = &mut self.shards[shard];
        progress.sending_to.push(node);
        progress.last_sent = Instant::now();
        let Coded { index, data, checksums } = progress.coded.clone();
        let id = ShardId { stripe: self.id, index: index as u8 };
        let stores = self.shared.stores.clone();
        self.sends.push(Box::pin(async move {
            let result = ask(&stores, node, |store| async move { store.put(id, data.into(), checksums).await }).await;
            Sent { shard, node, result }
        }));
    }

    fn note(&mut self, sent: Sent) {
        let progress = &mut self.shards[sent.shard];
        progress.sending_to.retain(|&node| node != sent.node);
        let copy = (sent.node, ShardId { stripe: self.id, index: progress.coded.index as u8 });
        if sent.result.is_ok() {
            self.spread.trust(sent.node);
        }
        match sent.result {
            Ok(()) if progress.stored_on.is_none() => {
                progress.stored_on = Some(sent.node);
                self.note_half();
            }
            Ok(()) => {
                self.spread.release(sent.shard, sent.node);
                self.stray.push(copy);
            }
            Err(error) => {
                self.shared.writes.note_failure(sent.node);
                // A request that was not answered may have been carried out.
                if error.kind() != Kind::NoSpace {
                    self.stray.push(copy);
                }
                self.spread.fail(sent.shard, sent.node, error);
                self.send_unsent(Reach::Doubtful);
            }
        }
    }

    /// Finds nodes for the shards that are neither stored nor on their way: a node that was to have one has failed, or so
    /// many have that nodes may now hold two.
    fn send_unsent(&mut self, reach: Reach) {
        for shard in 0..self.shards.len() {
            if self.shards[shard].is_unsent()
                && let Some(node) = self.spread.assign(shard, reach)
            {
                self.send(shard, node);
            }
        }
    }

    fn note_half(&mut self) {
        let stored = self.shards.iter().filter(|shard| shard.stored_on.is_some()).count();
        if self.half_took.is_none() && stored * 2 >= self.shards.len() {
            self.half_took = Some(self.began.elapsed());
        }
    }

    /// When the next shard has taken so long that another node should get it too.
    fn next_hedge(&self) -> Option<Instant> {
        (0..self.shards.len()).filter_map(|shard| self.hedge_time(shard)).min()
    }

    fn hedge_time(&self, shard: usize) -> Option<Instant> {
        let patience = (self.half_took? * PATIENCE_FACTOR).max(PATIENCE_MIN);
        let progress = &self.shards[shard];
        match (progress.is_settled(), progress.hedges) {
            (false, 0) => Some(progress.last_sent + patience),
            (false, 1) => Some(progress.last_sent + patience * NO_SPARE_FACTOR),
            _ => None,
        }
    }

    /// Sends the shards that have taken too long to another node too.
    fn hedge(&mut self) {
        let now = Instant::now();
        let is_late = |shard: &usize| self.hedge_time(*shard).is_some_and(|time| time <= now);
        let late: Vec<usize> = (0..self.shards.len()).filter(is_late).collect();
        for node in late.iter().flat_map(|&shard| self.shards[shard].sending_to.clone()) {
            self.shared.writes.note_failure(node);
            self.spread.suspect(node);
        }
        let mut is_second = false;
        for shard in late {
            let reach = if self.shards[shard].hedges == 0 { Reach::Unused } else { Reach::Doubled };
            is_second |= reach == Reach::Doubled;
            self.shards[shard].hedges += 1;
            match self.spread.assign(shard, reach) {
                Some(node) => self.send(shard, node),
                None => self.shards[shard].is_given_up = reach == Reach::Doubled,
            }
        }
        if is_second {
            self.send_unsent(Reach::Doubled);
        }
    }

    async fn finish(mut self) -> Result<Stripe> {
        let stripe = Stripe { id: self.id, shape: self.shape, nodes: self.stored_on() };
        if may_be_acknowledged(&self.shape, &stripe.nodes) {
            self.is_recorded = true;
            self.clean_up();
            return Ok(stripe);
        }
        let undo = delete_copies(self.shared.stores.clone(), copies_of(&stripe).collect());
        // What cannot be deleted in this time is deleted in the background, or is garbage that no file names.
        if tokio::time::timeout(UNDO_DEADLINE, undo).await.is_ok() {
            self.shards.iter_mut().for_each(|shard| shard.stored_on = None);
        }
        Err(self.failure().await)
    }

    /// Waits in the background for the attempts that lost their race, then deletes every copy that is not in the record.
    fn clean_up(&mut self) {
        let (stores, id) = (self.shared.stores.clone(), self.id);
        let indices: Vec<usize> = self.shards.iter().map(|shard| shard.coded.index).collect();
        let mut stray = std::mem::take(&mut self.stray);
        if !self.is_recorded {
            let stored = self.shards.iter().filter_map(|shard| Some((shard.stored_on?, shard.coded.index)));
            stray.extend(stored.map(|(node, index)| (node, ShardId { stripe: id, index: index as u8 })));
        }
        let mut sends = std::mem::take(&mut self.sends);
        if stray.is_empty() && sends.is_empty() {
            return;
        }
        self.shared.writes.spawn_chore(async move {
            while let Some(sent) = sends.next().await {
                stray.push((sent.node, ShardId { stripe: id, index: indices[sent.shard] as u8 }));
            }
            delete_copies(stores, stray).await;
        });
    }

    async fn failure(&mut self) -> Error {
        let profile = self.shape.profile;
        let message = format!("stripe {} ({profile}) cannot be stored on enough nodes", self.id);
        // Nodes that were no choice: they are down, or have no room.
        let mut others = known_nodes(self.shared).await;
        others.retain(|node| !self.spread.nodes().contains(&node.record.id));
        let (up, down): (Vec<_>, Vec<_>) = others.iter().partition(|node| node.record.state == NodeState::Up);
        if self.spread.space_is_why(up.len()) {
            let failed = self.spread.failed().iter().map(|(&node, error)| (node, error.clone()));
            let load = |node: &StoreStatus| node.load.unwrap_or_default();
            let full = up.iter().map(|node| {
                let load = load(node);
                (node.record.id, node_is_full(load.used_bytes, load.capacity_bytes))
            });
            return no_space(failed.chain(full)).context(message);
        }
        let failed = self.spread.failed().iter().map(|(node, error)| format!("node {node}: {error}"));
        let pending = self.shards.iter().flat_map(|shard| &shard.sending_to);
        let hanging = pending.map(|node| format!("node {node}: no answer yet"));
        let mut reasons: Vec<String> = failed.chain(hanging).collect();
        reasons.extend(down.iter().map(|node| format!("node {}: not up", node.record.id)));
        reasons.dedup();
        if reasons.is_empty() {
            let least = usize::from(profile.data) + usize::from(profile.parity < 2);
            reasons.push(format!("{} nodes take writes, at least {least} are needed", self.spread.nodes().len()));
        }
        Error::new(Kind::Unavailable, format!("{message}: {}; see 'torchfs status'", reasons.join("; ")))
    }
}

/// The nodes and how full they are, as far as metadata answers at once.
async fn known_nodes(shared: &Shared) -> Vec<StoreStatus> {
    let status = tokio::time::timeout(EXPLAIN_DEADLINE, shared.meta.status()).await;
    status.ok().and_then(Result::ok).map(|status| status.stores).unwrap_or_default()
}
