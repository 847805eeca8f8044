//! How a node comes to vote, and how it notices that another process has its place.
//!
//! Each process greets all peers: it says which incarnation of its data folder and which start this is (see
//! [`crate::identity`]), and is listened to by those who have answered. One whose folder is not admitted waits for all.
//! - Nobody has heard of another incarnation, or no cluster was formed yet: it is new, and votes.
//! - No node is admitted: all folders were copied or restored. Together they have all there is, so they elect the one with
//!   the longest log.
//! - Otherwise its folder was wiped, copied or restored. It has forgotten votes and entries that others rely on, so it does
//!   not vote, obeys no leader older than the latest vote that its peers know, and lets a leader send it everything. When it
//!   has applied all that was committed after its start, whatever it had forgotten is there again, and it votes.
//!
//! All peers must answer, since any one may be the only other node that knows of a vote.

use super::consensus::Consensus;
use super::gate::Admission;
use super::network::{Answer, Call, Known, Refusal};
use super::peer::committed;
use super::{Vote, stopped};
use crate::identity::Met;
use futures::future::join_all;
use openraft::async_runtime::watch::WatchReceiver;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use torchfs_core::settings::META_ATTEMPT_DEADLINE;
use torchfs_core::{Error, Kind, MetaId, Result};
use tracing::{info, warn};

/// How long to wait before those are asked again who have not answered: the first time, and at most.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));

/// How often a node says for whom it waits.
const WAITING_LOG_EVERY: Duration = Duration::from_secs(5);

/// How long a peer may take to answer a greeting: it looks whether another process of this node runs.
const GREETING_DEADLINE: Duration = Duration::from_secs(3);

/// What the peers know, or why they did not say so.
type Answers = BTreeMap<MetaId, Result<Known>>;

impl Consensus {
    /// Takes part in Raft as far as is safe, and returns when that has become impossible. `members` are all nodes, this one
    /// included, that a new cluster begins with.
    pub async fn join(&self, members: &BTreeMap<MetaId, String>) -> Error {
        tokio::select! {
            error = self.come_in_and_stay(members) => error,
            error = self.greet_again() => error,
        }
    }

    async fn come_in_and_stay(&self, members: &BTreeMap<MetaId, String>) -> Error {
        match self.come_in(members).await {
            Err(error) => error,
            Ok(()) => std::future::pending().await,
        }
    }

    /// Returns once this node votes and every peer knows its start.
    async fn come_in(&self, members: &BTreeMap<MetaId, String>) -> Result<()> {
        if self.incarnations.is_admitted() {
            self.initialize(members).await?;
            self.ask_everyone(members).await?;
            return Ok(());
        }
        // What it has promised and stored in this folder.
        let own = self.raft.with_raft_state(|state| (*state.vote_ref(), state.log_ids.last().cloned()));
        let (promised, last) = own.await.map_err(stopped)?;
        let peers = self.ask_everyone(members).await?;
        let known: Vec<&Known> = peers.values().flatten().collect();
        if !known.iter().any(|peer| peer.met == Met::Another) || !known.iter().any(|peer| peer.formed) {
            self.admit().await?;
            return self.initialize(members).await;
        }
        if known.iter().all(|peer| !peer.own.admitted) {
            let longest = known.iter().map(|peer| peer.last).fold(last, Option::max);
            warn!(
                "the data folders of all metadata nodes are copies or new: the cluster goes on from what they have, which is \
                 what was acknowledged before the copies were made"
            );
            self.gate.set(Admission::Reviving(longest));
            self.raft.runtime_config().elect(last == longest);
            self.catch_up(members, promised, promised).await?;
        } else {
            warn!(
                "this metadata node's data folder is empty or old, and its peers know the node from before: what it had stored \
                 since is lost here. It takes part without a vote until a leader has sent it everything again"
            );
            let later = |floor, vote| if vote > floor { vote } else { floor };
            let floor = known.iter().map(|peer| peer.vote).fold(promised, later);
            self.gate.set(Admission::CatchingUp(floor));
            self.catch_up(members, floor, promised).await?;
        }
        self.admit().await?;
        info!("this metadata node has caught up and votes again");
        Ok(())
    }

    /// Greets those again who turn out not to know this process, until one of them says that it must end.
    async fn greet_again(&self) -> Error {
        let mut ungreeted = self.peers.ungreeted();
        loop {
            let peers = match ungreeted.wait_for(|peers| !peers.is_empty()).await {
                Ok(peers) => peers.clone(),
                Err(error) => return stopped(error),
            };
            for (peer, answer) in join_all(peers.iter().map(|id| async { (*id, self.greet(*id).await) })).await {
                match answer {
                    Err(error) if error.kind() == Kind::Exists => return error,
                    // It greets by itself when it is there again.
                    _ => self.peers.greeted(peer),
                }
            }
            sleep(ASK_AGAIN.0).await;
        }
    }

    async fn admit(&self) -> Result<()> {
        let incarnations = self.incarnations.clone();
        self.blocking(move || incarnations.admit()).await?;
        self.gate.set(Admission::Admitted);
        self.raft.runtime_config().elect(true);
        // So that they know it.
        self.peers.greet_all_again();
        Ok(())
    }

    /// Asks until every peer has answered.
    async fn ask_everyone(&self, members: &BTreeMap<MetaId, String>) -> Result<Answers> {
        let mut answers = Answers::new();
        let (mut pause, mut log_at) = (ASK_AGAIN.0, Instant::now() + WAITING_LOG_EVERY);
        loop {
            // One that does not vote yet asks all again, which shows that it is there.
            let has_answered = |id: &MetaId| self.incarnations.is_admitted() && matches!(answers.get(id), Some(Ok(_)));
            let asked = members.keys().filter(|id| **id != self.id && !has_answered(id));
            let asked = asked.map(|id| async { (*id, self.greet(*id).await) });
            let answered = join_all(asked).await;
            answers.extend(answered);
            let silent: Vec<_> = answers.iter().filter_map(|(id, answer)| Some((id, answer.as_ref().err()?))).collect();
            if silent.is_empty() {
                return Ok(answers);
            }
            if let Some((_, error)) = silent.iter().find(|(_, error)| error.kind() == Kind::Exists) {
                return Err((*error).clone());
            }
            if Instant::now() >= log_at && !self.incarnations.is_admitted() {
                let each: Vec<String> = silent.iter().map(|(id, error)| format!("node {id} ({error})")).collect();
                let each = each.join(", ");
                info!(
                    "this metadata node's data folder is new or a copy, and it waits for its peers to say which: {each}"
                );
                log_at = Instant::now() + WAITING_LOG_EVERY;
            }
            sleep(pause).await;
            pause = (pause * 2).min(ASK_AGAIN.1);
        }
    }

    /// Tells a peer who this is, and remembers who the peer is.
    ///
    /// # Errors
    /// `Exists` if this process must not take part, because another one has its place or had it since.
    async fn greet(&self, peer: MetaId) -> Result<Known> {
        let own = self.incarnations.introduction(peer);
        let incarnations = self.incarnations.clone();
        match self.peers.ask(peer, Call::Hello(own), GREETING_DEADLINE).await {
            Ok(Answer::Known(known)) => {
                let their = known.own.clone();
                let met =
                    self.blocking(move || incarnations.told(peer).and_then(|()| incarnations.meet(&their))).await?;
                if met == Met::Outdated {
                    // It is told so when it greets this node.
                    return Err(Error::new(Kind::Unavailable, "another start of it was here before"));
                }
                Ok(known)
            }
            Ok(Answer::Refused(Refusal::Outdated)) => {
                self.blocking(move || incarnations.renew()).await?;
                Err(self.outdated(peer))
            }
            Ok(Answer::Refused(Refusal::Running(addr))) => Err(self.runs_already(&addr)),
            Err(error) if error.kind() == Kind::Exists => Err(error.with_kind(Kind::Unavailable)),
            Err(error) => Err(error),
            Ok(_) => {
                Err(Error::new(Kind::Protocol, format!("metadata node {peer} answers a greeting with something else")))
            }
        }
    }

    fn outdated(&self, peer: MetaId) -> Error {
        let id = self.id;
        let message = format!(
            "metadata node {id} was started from another data folder since, says node {peer}: this one is out of date (was \
             it copied, or restored from a backup?). Only one may run; started again, this one takes no vote until it has \
             caught up"
        );
        Error::new(Kind::Exists, message)
    }

    fn runs_already(&self, addr: &str) -> Error {
        let id = self.id;
        let message = format!(
            "metadata node {id} runs at {addr} and cannot run a second time: stop it first; if this data folder is a copy of \
             its, remove the copy"
        );
        Error::new(Kind::Exists, message)
    }

    /// Waits until this node has, on its disk, everything that was committed before some moment after its start.
    async fn catch_up(&self, members: &BTreeMap<MetaId, String>, floor: Vote, promised: Vote) -> Result<()> {
        let index = self.committed(members).await?;
        let mut metrics = self.raft.metrics();
        loop {
            let (applied, vote) = {
                let now = metrics.borrow_watched();
                (now.last_applied.map(|id| id.index), now.vote)
            };
            if applied >= Some(index) && (vote >= floor || promised >= floor) {
                break;
            }
            metrics.changed().await.map_err(stopped)?;
        }
        let state = self.state.clone();
        self.blocking(move || state.sync()).await
    }

    /// The index up to which a leader, confirmed by a majority just now, knows entries to be committed.
    async fn committed(&self, members: &BTreeMap<MetaId, String>) -> Result<u64> {
        let mut log_at = Instant::now() + WAITING_LOG_EVERY;
        loop {
            if let Some(index) = committed(&self.raft).await? {
                return Ok(index);
            }
            let others = members.keys().filter(|id| **id != self.id);
            let asked = others.map(|id| self.peers.ask(*id, Call::Committed, META_ATTEMPT_DEADLINE));
            let answers = join_all(asked).await;
            let committed = answers.into_iter().find_map(|answer| match answer {
                Ok(Answer::Committed(index)) => index,
                _ => None,
            });
            if let Some(index) = committed {
                return Ok(index);
            }
            if Instant::now() >= log_at {
                info!(
                    "this metadata node waits for a leader: more than half of all metadata nodes must run besides it"
                );
                log_at = Instant::now() + WAITING_LOG_EVERY;
            }
            sleep(ASK_AGAIN.1).await;
        }
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|_| Error::new(Kind::Cancelled, "the node is shutting down"))?
    }
}
