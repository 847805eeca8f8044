//! Answers the other metadata nodes.

use super::gate::Gate;
use super::network::{Answer, Call, Hello, INSTALL_DEADLINE, Known, Letter, Piece};
use super::snapshot::{Meta, SnapshotFile};
use super::{StateMachine, StateStore, TypeConfig, decode, encode, stopped};
use crate::identity::{Incarnations, Met};
use async_trait::async_trait;
use openraft::errors::RaftError;
use openraft::storage::Snapshot;
use openraft::{Raft, ReadPolicy};
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use torchfs_core::rpc::{Payload, RaftService};
use torchfs_core::settings::META_ATTEMPT_DEADLINE;
use torchfs_core::{Error, IoContext, Kind, MetaId, Result};

/// The Raft service of one node.
pub(super) struct Peer {
    id: MetaId,
    raft: Raft<TypeConfig, StateMachine>,
    inbox: Arc<Inbox>,
    gate: Arc<Gate>,
    incarnations: Arc<Incarnations>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peer").field(&self.id).finish()
    }
}

impl Peer {
    pub(super) fn new(
        id: MetaId,
        raft: Raft<TypeConfig, StateMachine>,
        state: Arc<StateStore>,
        gate: Arc<Gate>,
        incarnations: Arc<Incarnations>,
    ) -> Self {
        Peer { id, raft, inbox: Arc::new(Inbox { state, arriving: Mutex::default() }), gate, incarnations }
    }

    async fn answer(&self, call: Call) -> Result<Answer> {
        match &call {
            Call::Append(request) => self.gate.obey(&request.vote).await?,
            Call::Snapshot(piece) => self.gate.obey(&piece.vote).await?,
            Call::Vote(_) | Call::PreVote(_) | Call::Transfer(_) => self.gate.vote().await?,
            Call::Hello(_) | Call::Committed => {}
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
            Call::Hello(hello) => self.greeted(hello).await.map(Answer::Known),
            Call::Committed => self.committed().await.map(Answer::Committed),
        }
    }

    async fn greeted(&self, hello: Hello) -> Result<Known> {
        let (incarnations, from) = (self.incarnations.clone(), hello.from);
        let meet = move || incarnations.meet(from, hello.incarnation);
        let met = tokio::task::spawn_blocking(meet).await.map_err(|_| cancelled())??;
        if met == Met::Another {
            // Its log is shorter than this node, should it lead, has seen it. That a node does not lead is no failure.
            self.raft.trigger().allow_next_revert(&from.0, true).await.map_err(stopped)?.ok();
        }
        let formed = self.raft.is_initialized().await.map_err(stopped)?;
        let vote = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(stopped)?;
        Ok(Known { incarnation: self.incarnations.own(), met, formed, vote })
    }

    async fn committed(&self) -> Result<Option<u64>> {
        // By asking a majority now: an earlier confirmation may be from before the one who asks had started.
        let confirmed = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        match tokio::time::timeout(META_ATTEMPT_DEADLINE / 2, confirmed).await {
            Ok(Ok(read)) => Ok(Some(read.read_log_id().index())),
            Ok(Err(RaftError::APIError(_))) | Err(_) => Ok(None),
            Ok(Err(fatal)) => Err(stopped(fatal)),
        }
    }

    async fn take(&self, piece: Piece) -> Result<Answer> {
        let vote = piece.vote;
        let inbox = self.inbox.clone();
        let taken = tokio::task::spawn_blocking(move || inbox.take(piece)).await;
        let Some((meta, snapshot)) = taken.map_err(|_| cancelled())?? else {
            return Ok(Answer::Stored);
        };
        let install = self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot });
        match tokio::time::timeout(INSTALL_DEADLINE, install).await {
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
        if letter.to != self.id.0 {
            let message = format!(
                "this is metadata node {}, not {}: give every node the same --peers, each with its own --id",
                self.id, letter.to
            );
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(encode(&self.answer(letter.call).await?)?.into())
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
        super::snapshot::publish(&arriving.path, &whole)?;
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
