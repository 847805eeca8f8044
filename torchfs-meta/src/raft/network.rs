//! What metadata nodes say to each other, and how it is sent. What is answered is in [`super::peer`].

use super::snapshot::SnapshotFile;
use super::{LogId, TypeConfig, Vote, decode, encode};
use crate::identity::{Incarnations, Introduction, Met};
use openraft::OptionalSend;
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use torchfs_core::rpc::{Payload, RaftClient};
use torchfs_core::{ClusterId, Error, Kind, MetaId, Result};

/// How long a peer may take to store entries: its disk may be busy. Heartbeats have their own, short deadline.
const APPEND_DEADLINE: Duration = Duration::from_secs(2);

/// How long a peer may take to store one piece of a snapshot, and to check and install the whole.
const PIECE_DEADLINE: Duration = Duration::from_secs(30);
pub(super) const INSTALL_DEADLINE: Duration = Duration::from_secs(300);

/// Bytes of a snapshot in one message.
const PIECE_BYTES: usize = 1 << 20;

/// A message to a peer. It names who is meant, so that a wrong address in `--peers` is noticed, and which processes speak with
/// each other, so that nobody listens to one whose place another has taken.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Letter {
    pub(super) to: MetaId,
    pub(super) to_start: Option<u128>,
    pub(super) from: MetaId,
    pub(super) from_start: u128,
    pub(super) call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) enum Call {
    Append(AppendEntriesRequest<TypeConfig>),
    Vote(VoteRequest<TypeConfig>),
    PreVote(VoteRequest<TypeConfig>),
    Transfer(TransferLeaderRequest<TypeConfig>),
    Snapshot(Piece),
    /// Who speaks: see [`super::joining`].
    Hello(Introduction),
    /// Which start answers at this address.
    Who,
    /// Up to where entries are committed, asked of a leader.
    Committed,
}

impl Call {
    /// Whether it is said before the two know each other.
    pub(super) fn is_greeting(&self) -> bool {
        matches!(self, Call::Hello(_) | Call::Who)
    }
}

/// What a node knows that a peer may have forgotten.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct Known {
    /// The one who answers.
    pub(super) own: Introduction,
    /// What the peer is to it.
    pub(super) met: Met,
    /// Whether it has ever voted or stored anything.
    pub(super) formed: bool,
    /// Its own vote.
    pub(super) vote: Vote,
    /// The last entry that it has stored.
    pub(super) last: Option<LogId>,
}

/// Why a greeting is not returned.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// A process of this node answers at its address, and it is another one.
    Running(String),
    /// The node was started from another folder since.
    Outdated,
}

/// Some bytes of a snapshot file, in order.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) struct Piece {
    pub(super) vote: Vote,
    /// Drawn anew for each attempt to send a snapshot.
    pub(super) transfer: u64,
    pub(super) offset: u64,
    pub(super) bytes: bytes::Bytes,
    /// Whether the file ends here and is to be installed.
    pub(super) last: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "")]
pub(super) enum Answer {
    Append(AppendEntriesResponse<TypeConfig>),
    Vote(VoteResponse<TypeConfig>),
    Transfer(TransferLeaderResponse<TypeConfig>),
    Stored,
    Installed(SnapshotResponse<TypeConfig>),
    Known(Known),
    Refused(Refusal),
    Start(u128),
    /// `None` from a node that does not lead, or cannot be sure that it does.
    Committed(Option<u64>),
}

/// Why a connection exists: what is urgent must not wait behind what is large.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Log,
    Pulse,
    Bulk,
}

/// The other metadata nodes and the connections to them.
#[derive(Debug)]
pub struct Peers {
    id: MetaId,
    addrs: BTreeMap<MetaId, String>,
    cluster: watch::Receiver<Option<ClusterId>>,
    clients: Mutex<BTreeMap<(u64, Lane), Arc<RaftClient>>>,
    strangers: Mutex<BTreeSet<u64>>,
    alarm: watch::Sender<Option<Error>>,
    incarnations: Arc<Incarnations>,
    ungreeted: watch::Sender<BTreeSet<MetaId>>,
}

impl Peers {
    /// The peers of node `id`, reached at `addrs`.
    #[must_use]
    pub fn new(
        id: MetaId,
        addrs: BTreeMap<MetaId, String>,
        cluster: watch::Receiver<Option<ClusterId>>,
        incarnations: Arc<Incarnations>,
    ) -> Self {
        let ((alarm, _), (ungreeted, _)) = (watch::channel(None), watch::channel(BTreeSet::new()));
        let (clients, strangers) = Default::default();
        Peers { id, addrs, cluster, clients, strangers, alarm, incarnations, ungreeted }
    }

    /// Set when most peers say that they belong to another cluster: then it is this node that is in the wrong one.
    #[must_use]
    pub fn alarm(&self) -> watch::Receiver<Option<Error>> {
        self.alarm.subscribe()
    }

    /// Who turned out not to know this process, or to be another one than is known; they are to be greeted again.
    pub(super) fn ungreeted(&self) -> watch::Receiver<BTreeSet<MetaId>> {
        self.ungreeted.subscribe()
    }

    pub(super) fn greet_again(&self, peer: MetaId) {
        self.ungreeted.send_if_modified(|peers| peers.insert(peer));
    }

    pub(super) fn greet_all_again(&self) {
        self.addrs.keys().filter(|id| **id != self.id).for_each(|id| self.greet_again(*id));
    }

    pub(super) fn greeted(&self, peer: MetaId) {
        self.ungreeted.send_if_modified(|peers| peers.remove(&peer));
    }

    /// Where a peer is.
    pub(super) fn addr(&self, peer: MetaId) -> Result<&str> {
        let missing = || Error::new(Kind::NotFound, format!("metadata node {peer} is none of the peers"));
        self.addrs.get(&peer).map(String::as_str).ok_or_else(missing)
    }

    /// Asks a peer something, outside of openraft.
    pub(super) async fn ask(&self, peer: MetaId, call: Call, deadline: Duration) -> Result<Answer> {
        self.exchange(&self.client(peer.0, self.addr(peer)?, Lane::Pulse), peer, call, deadline).await
    }

    async fn exchange(&self, client: &RaftClient, target: MetaId, call: Call, deadline: Duration) -> Result<Answer> {
        let (is_greeting, to_start) = (call.is_greeting(), self.incarnations.start_of(target));
        if !is_greeting && to_start.is_none() {
            return Err(Error::new(Kind::Unavailable, format!("metadata node {target} has not been greeted yet")));
        }
        let from_start = self.incarnations.start();
        let letter = encode(&Letter { to: target, to_start, from: self.id, from_start, call })?;
        let answer = client.call(Payload::from(letter), deadline).await;
        self.heard(target, answer.as_ref().err());
        if !is_greeting && self.incarnations.start_of(target) != to_start {
            return Err(Error::new(Kind::Unavailable, format!("metadata node {target} was started again meanwhile")));
        }
        decode(&answer?, "a peer's answer").map_err(|error: Error| error.with_kind(Kind::Protocol))
    }

    fn client(&self, target: u64, addr: &str, lane: Lane) -> Arc<RaftClient> {
        let addr = self.addrs.get(&MetaId(target)).map_or(addr, String::as_str).to_owned();
        let mut clients = lock(&self.clients);
        let client = || Arc::new(RaftClient::new(addr, self.cluster.clone()));
        clients.entry((target, lane)).or_insert_with(client).clone()
    }

    fn heard(&self, peer: MetaId, outcome: Option<&Error>) {
        let mut strangers = lock(&self.strangers);
        match outcome {
            None => {
                strangers.remove(&peer.0);
            }
            Some(error) if error.kind() == Kind::Conflict => self.greet_again(peer),
            Some(error) if error.kind() == Kind::WrongCluster => {
                strangers.insert(peer.0);
                let others = self.addrs.keys().filter(|&&id| id != self.id).count();
                if strangers.len() * 2 > others {
                    self.alarm.send_replace(Some(error.clone()));
                }
            }
            Some(_) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes connections for openraft.
#[derive(Debug)]
pub(super) struct Network(pub(super) Arc<Peers>);

impl Network {
    fn link(&self, target: u64, node: &BasicNode, lane: Lane) -> Link {
        Link { peers: self.0.clone(), target, client: self.0.client(target, &node.addr, lane), lane }
    }
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        self.link(target, node, Lane::Log)
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &BasicNode) -> Link {
        self.link(target, node, Lane::Pulse)
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &BasicNode) -> Link {
        self.link(target, node, Lane::Bulk)
    }
}

/// One way to one peer.
#[derive(Debug)]
pub(super) struct Link {
    peers: Arc<Peers>,
    target: u64,
    client: Arc<RaftClient>,
    lane: Lane,
}

impl Link {
    async fn ask(&self, call: Call, deadline: Duration) -> Result<Answer> {
        self.peers.exchange(&self.client, MetaId(self.target), call, deadline).await
    }

    async fn send_pieces(&self, vote: Vote, snapshot: SnapshotFile) -> Result<SnapshotResponse<TypeConfig>> {
        let transfer = rand::random();
        let mut offset = 0;
        loop {
            let file = snapshot.clone();
            let read = tokio::task::spawn_blocking(move || file.read_at(offset, PIECE_BYTES)).await;
            let bytes: bytes::Bytes = read.map_err(|_| cancelled())??.into();
            let end = offset + bytes.len() as u64;
            let last = end >= snapshot.bytes();
            let deadline = if last { INSTALL_DEADLINE } else { PIECE_DEADLINE };
            match self.ask(Call::Snapshot(Piece { vote, transfer, offset, bytes, last }), deadline).await? {
                Answer::Installed(response) => return Ok(response),
                Answer::Stored if !last => offset = end,
                _ => return Err(unexpected()),
            }
        }
    }
}

impl RaftNetworkV2<TypeConfig> for Link {
    type SnapshotData = SnapshotFile;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RPCError<TypeConfig>> {
        let deadline = if self.lane == Lane::Pulse { option.hard_ttl() } else { APPEND_DEADLINE };
        match self.ask(Call::Append(request), deadline).await {
            Ok(Answer::Append(response)) => Ok(response),
            other => Err(failed(other)),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(Call::Vote(request), option.hard_ttl()).await {
            Ok(Answer::Vote(response)) => Ok(response),
            other => Err(failed(other)),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(Call::PreVote(request), option.hard_ttl()).await {
            Ok(Answer::Vote(response)) => Ok(response),
            other => Err(failed(other)),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        tokio::select! {
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_pieces(vote, snapshot.snapshot) => sent.map_err(|error| match error.kind() {
                Kind::Timeout | Kind::Protocol => StreamingError::Network(NetworkError::new(&error)),
                _ => StreamingError::Unreachable(Unreachable::new(&error)),
            }),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RPCError<TypeConfig>> {
        match self.ask(Call::Transfer(request), option.hard_ttl()).await {
            Ok(Answer::Transfer(response)) => Ok(response),
            other => Err(failed(other)),
        }
    }
}

fn failed(answer: Result<Answer>) -> RPCError<TypeConfig> {
    match answer {
        Ok(_) => RPCError::Network(NetworkError::new(&unexpected())),
        Err(error) if error.kind() == Kind::Timeout => RPCError::Network(NetworkError::new(&error)),
        Err(error) => RPCError::Unreachable(Unreachable::new(&error)),
    }
}

fn unexpected() -> Error {
    Error::new(Kind::Protocol, "a metadata node gave an answer of the wrong kind")
}

fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "the node is shutting down")
}
