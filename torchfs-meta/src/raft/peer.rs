//! Answers the other metadata nodes.

use super::consensus::Consensus;
use super::gate::Gate;
use super::network::{Answer, Call, INSTALL_DEADLINE, Known, Letter, Peers, Piece, Refusal};
use super::snapshot::{Meta, SnapshotFile};
use super::{StateMachine, StateStore, TypeConfig, decode, encode, stopped};
use crate::identity::{Incarnations, Introduction, Met};
use async_trait::async_trait;
use openraft::errors::RaftError;
use openraft::storage::Snapshot;
use openraft::{Raft, ReadPolicy};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};
use torchfs_core::folder::publish;
use torchfs_core::rpc::{Payload, RaftService};
use torchfs_core::settings::META_ATTEMPT_DEADLINE;
use torchfs_core::{Error, IoContext, Kind, MetaId, Result};

/// How long a process that has a node's place may take to say so, or to end.
const PRESENCE_DEADLINE: Duration = Duration::from_millis(1500);

/// How long to wait before it is asked again.
const PRESENCE_PAUSE: Duration = Duration::from_millis(100);

/// The Raft service of one node.
pub(super) struct Peer {
    id: MetaId,
    raft: Raft<TypeConfig, StateMachine>,
    inbox: Arc<Inbox>,
    peers: Arc<Peers>,
    gate: Arc<Gate>,
    incarnations: Arc<Incarnations>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peer").field(&self.id).finish()
    }
}

impl Peer {
    /// The service of this part in Raft.
    pub(super) fn new(of: &Consensus) -> Self {
        let inbox = Arc::new(Inbox { state: of.state.clone(), arriving: Mutex::default() });
        let (peers, gate, incarnations) = (of.peers.clone(), of.gate.clone(), of.incarnations.clone());
        Peer { id: of.id, raft: of.raft.clone(), inbox, peers, gate, incarnations }
    }

    async fn answer(&self, call: Call) -> Result<Answer> {
        match &call {
            Call::Append(request) => self.gate.obey(&request.vote).await?,
            Call::Snapshot(piece) => self.gate.obey(&piece.vote).await?,
            Call::Vote(request) | Call::PreVote(request) => self.gate.vote(request.last_log_id.as_ref()).await?,
            Call::Transfer(request) => self.gate.vote(request.last_log_id()).await?,
            Call::Hello(_) | Call::Who | Call::Committed => {}
        }
        match call {
            Call::Append(request) => self.raft.append_entries(request).await.map(Answer::Append).map_err(stopped),
            Call::Vote(request) => self.raft.vote(request).await.map(Answer::Vote).map_err(stopped),
            Call::PreVote(request) => self.raft.pre_vote(request).await.map(Answer::Vote).map_err(stopped),
            Call::Transfer(request) => {
                let answer = self.raft.handle_transfer_leader(request).await;
                answer.map(Answer::Transfer).map_err(|fatal| stopped(RaftError::<_>::Fatal(fatal)))
            }
            Call::Snapshot(piece) => self.take(piece).await,
            Call::Hello(peer) => self.greeted(peer).await,
            Call::Who => Ok(Answer::Start(self.incarnations.start())),
            Call::Committed => committed(&self.raft).await.map(Answer::Committed),
        }
    }

    async fn greeted(&self, peer: Introduction) -> Result<Answer> {
        let from = peer.from;
        let (met, is_takeover) = self.incarnations.look_at(&peer)?;
        if met != Met::Outdated && is_takeover && self.runs_already(&peer).await {
            return Ok(Answer::Refused(Refusal::Running(self.peers.addr(from)?.to_owned())));
        }
        let incarnations = self.incarnations.clone();
        let meet = move || incarnations.meet(&peer);
        let met = tokio::task::spawn_blocking(meet).await.map_err(|_| cancelled())??;
        if met == Met::Outdated {
            return Ok(Answer::Refused(Refusal::Outdated));
        }
        if met == Met::Another {
            // Its log is shorter than this node, should it lead, has seen it. That a node does not lead is no failure.
            self.raft.trigger().allow_next_revert(&from.0, true).await.map_err(stopped)?.ok();
        }
        let formed = self.raft.is_initialized().await.map_err(stopped)?;
        let (vote, last) = self
            .raft
            .with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().cloned()))
            .await
            .map_err(stopped)?;
        Ok(Answer::Known(Known { own: self.incarnations.introduction(from), met, formed, vote, last }))
    }

    /// Whether another process of this node answers at the node's address. Only after its end may its place be taken.
    async fn runs_already(&self, peer: &Introduction) -> bool {
        let end = Instant::now() + PRESENCE_DEADLINE;
        loop {
            let who = self.peers.ask(peer.from, Call::Who, end.saturating_duration_since(Instant::now())).await;
            let other = match who {
                Ok(Answer::Start(start)) if start == peer.start => return false,
                who => matches!(who, Ok(Answer::Start(_))),
            };
            if Instant::now() + PRESENCE_PAUSE >= end {
                return other;
            }
            // One that answers may be ending; one that does not may have lost a connection a moment ago.
            sleep(PRESENCE_PAUSE).await;
        }
    }

    /// Whether the two processes are those that know each other. If not, one of them learns it by a greeting.
    fn check(&self, letter: &Letter) -> Result<()> {
        let (from, to, is_greeting) = (letter.from, letter.to, letter.call.is_greeting());
        let start = self.incarnations.start();
        if letter.to_start.is_some_and(|known| known != start) {
            self.peers.greet_again(from);
        }
        if is_greeting
            || (letter.to_start == Some(start) && Some(letter.from_start) == self.incarnations.start_of(from))
        {
            return Ok(());
        }
        let message = format!("metadata node {from} and this start of metadata node {to} have not greeted each other");
        Err(Error::new(Kind::Conflict, message))
    }

    async fn take(&self, piece: Piece) -> Result<Answer> {
        let vote = piece.vote;
        let inbox = self.inbox.clone();
        let taken = tokio::task::spawn_blocking(move || inbox.take(piece)).await;
        let Some((meta, snapshot)) = taken.map_err(|_| cancelled())?? else {
            return Ok(Answer::Stored);
        };
        let install = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot });
        match timeout(INSTALL_DEADLINE, install).await {
            Ok(Ok(response)) => Ok(Answer::Installed(response)),
            Ok(Err(fatal)) => Err(stopped(RaftError::<_>::Fatal(fatal))),
            Err(_) => Err(Error::new(Kind::Timeout, "the snapshot is still being installed")),
        }
    }
}

#[async_trait]
impl RaftService for Peer {
    async fn call(&self, request: Payload) -> Result<Payload> {
        let letter: Letter = decode(&request, "a peer's message").map_err(|error| error.with_kind(Kind::Protocol))?;
        if letter.to != self.id {
            let message = format!(
                "this is metadata node {}, not {}: give every node the same --peers, each with its own --id",
                self.id, letter.to
            );
            return Err(Error::new(Kind::InvalidInput, message));
        }
        self.check(&letter)?;
        Ok(encode(&self.answer(letter.call).await?)?.into())
    }
}

/// The index up to which this node knows entries to be committed, if it leads and a majority confirms it.
pub(super) async fn committed(raft: &Raft<TypeConfig, StateMachine>) -> Result<Option<u64>> {
    // By asking a majority now: an earlier confirmation may be from before the one who asks had started.
    let confirmed = raft.get_read_linearizer(ReadPolicy::ReadIndex);
    match timeout(META_ATTEMPT_DEADLINE / 2, confirmed).await {
        Ok(Ok(read)) => Ok(Some(read.read_log_id().index())),
        Ok(Err(RaftError::APIError(_))) | Err(_) => Ok(None),
        Ok(Err(fatal)) => Err(stopped(fatal)),
    }
}

fn cancelled() -> Error {
    Error::new(Kind::Cancelled, "the node is shutting down")
}

/// Where the pieces of a snapshot are put together. A new transfer takes the place of an unfinished one.
#[derive(Debug)]
struct Inbox {
    state: Arc<StateStore>,
    arriving: Mutex<Option<Arriving>>,
}

#[derive(Debug)]
struct Arriving {
    transfer: u64,
    file: File,
    path: PathBuf,
    bytes: u64,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        // After the last piece the file has got another name; otherwise it is a leftover, removed at the latest at start.
        std::fs::remove_file(&self.path).ok();
    }
}

impl Inbox {
    fn take(&self, piece: Piece) -> Result<Option<(Meta, SnapshotFile)>> {
        let mut slot = self.arriving.lock().unwrap_or_else(PoisonError::into_inner);
        if piece.offset == 0 {
            *slot = None;
            *slot = Some(self.begin(piece.transfer)?);
        }
        let end = piece.offset + piece.bytes.len() as u64;
        let arriving = match slot.as_mut() {
            // A message that was sent again because its answer was lost.
            Some(arriving) if arriving.transfer == piece.transfer && arriving.bytes == end && !piece.last => {
                return Ok(None);
            }
            Some(arriving) if arriving.transfer == piece.transfer && arriving.bytes == piece.offset => arriving,
            _ => return Err(Error::new(Kind::Conflict, "this piece does not continue the snapshot that is arriving")),
        };
        let what = || format!("write {}", arriving.path.display());
        arriving.file.write_all_at(&piece.bytes, piece.offset).io(what)?;
        arriving.bytes = end;
        if !piece.last {
            return Ok(None);
        }
        arriving.file.sync_all().io(what)?;
        let whole = arriving.path.with_extension("received");
        publish(&arriving.path, &whole)?;
        *slot = None;
        let (meta, snapshot) = SnapshotFile::open(&whole)?;
        // Looked at from end to end before any of it is used.
        snapshot.for_each(|_| Ok(()))?;
        Ok(Some((meta, snapshot)))
    }

    fn begin(&self, transfer: u64) -> Result<Arriving> {
        let path = self.state.snapshot_folder().join(format!("{transfer:016x}.tmp"));
        let file = File::create(&path).io(|| format!("make {}", path.display()))?;
        Ok(Arriving { transfer, file, path, bytes: 0 })
    }
}
