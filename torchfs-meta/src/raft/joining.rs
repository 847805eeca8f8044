//! How a node with a new data folder comes to vote.
//!
//! Every node draws an incarnation when its folder is made, and its peers remember the first one they hear. A node that is
//! not admitted asks all of them.
//! - Nobody has heard of another incarnation, or no cluster was formed yet: it is new, and votes.
//! - Otherwise its folder was wiped. It has forgotten votes and entries that others rely on, so it does not vote, obeys no
//!   leader older than the latest vote that its peers know, and lets a leader send it everything. When it has applied all
//!   that was committed after its start, whatever it had forgotten is there again, and it votes.
//!
//! All peers must answer, since any one may be the only other node that knows of a vote.

use super::consensus::Consensus;
use super::gate::Admission;
use super::network::{Answer, Call, Hello, Known};
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

/// What the peers know, or why they did not say so.
type Answers = BTreeMap<MetaId, Result<Known>>;

impl Consensus {
    /// Takes part in Raft as far as is safe, and returns once this node votes and every peer knows its incarnation.
    /// `members` are all nodes, this one included, that a new cluster begins with.
    ///
    /// # Errors
    /// What the storage says.
    pub async fn join(&self, members: &BTreeMap<MetaId, String>) -> Result<()> {
        if self.incarnations.is_admitted() {
            self.initialize(members).await?;
            self.ask_everyone(members).await?;
            return Ok(());
        }
        // What it has promised since its folder was wiped, if this is not its first start since.
        let promised = self.raft.with_raft_state(|state| *state.vote_ref()).await.map_err(stopped)?;
        let peers = self.ask_everyone(members).await?;
        let known: Vec<&Known> = peers.values().flatten().collect();
        if !known.iter().any(|peer| peer.met == Met::Another) || !known.iter().any(|peer| peer.formed) {
            self.admit().await?;
            return self.initialize(members).await;
        }
        warn!(
            "this metadata node has an empty data folder, and its peers know it from before: what it had stored is lost here. \
             It takes part without a vote until a leader has sent it everything again"
        );
        let floor =
            known.iter().map(|peer| peer.vote).fold(promised, |floor, vote| if vote > floor { vote } else { floor });
        self.gate.set(Admission::CatchingUp(floor));
        self.catch_up(members, floor, promised).await?;
        self.admit().await?;
        info!("this metadata node has caught up and votes again");
        Ok(())
    }

    async fn admit(&self) -> Result<()> {
        let incarnations = self.incarnations.clone();
        self.blocking(move || incarnations.admit()).await?;
        self.gate.set(Admission::Admitted);
        self.raft.runtime_config().elect(true);
        Ok(())
    }

    /// Asks until every peer has answered.
    async fn ask_everyone(&self, members: &BTreeMap<MetaId, String>) -> Result<Answers> {
        let mut answers = Answers::new();
        let (mut pause, mut log_at) = (ASK_AGAIN.0, Instant::now() + WAITING_LOG_EVERY);
        loop {
            let silent = members.keys().filter(|id| **id != self.id && !matches!(answers.get(id), Some(Ok(_))));
            let asked = silent.map(|id| async { (*id, self.greet(*id).await) });
            answers.extend(join_all(asked).await);
            let silent: Vec<_> = answers.iter().filter_map(|(id, answer)| Some((id, answer.as_ref().err()?))).collect();
            if silent.is_empty() {
                return Ok(answers);
            }
            if Instant::now() >= log_at && !self.incarnations.is_admitted() {
                let each: Vec<String> = silent.iter().map(|(id, error)| format!("node {id} ({error})")).collect();
                let each = each.join(", ");
                info!("this metadata node has a new data folder and waits for its peers to say that it is new: {each}");
                log_at = Instant::now() + WAITING_LOG_EVERY;
            }
            sleep(pause).await;
            pause = (pause * 2).min(ASK_AGAIN.1);
        }
    }

    /// Tells a peer who this is, and remembers who the peer is.
    async fn greet(&self, peer: MetaId) -> Result<Known> {
        let hello = Hello { from: self.id, incarnation: self.incarnations.own() };
        match self.peers.ask(peer, Call::Hello(hello), META_ATTEMPT_DEADLINE).await? {
            Answer::Known(known) => {
                let (incarnations, incarnation) = (self.incarnations.clone(), known.incarnation);
                self.blocking(move || incarnations.meet(peer, incarnation)).await?;
                Ok(known)
            }
            _ => {
                Err(Error::new(Kind::Protocol, format!("metadata node {peer} answers a greeting with something else")))
            }
        }
    }

    /// Waits until this node has, on its disk, everything that was committed before some moment after its start.
    async fn catch_up(&self, members: &BTreeMap<MetaId, String>, floor: Vote, promised: Vote) -> Result<()> {
        let index = self.committed(members).await;
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
    async fn committed(&self, members: &BTreeMap<MetaId, String>) -> u64 {
        let mut log_at = Instant::now() + WAITING_LOG_EVERY;
        loop {
            let others = members.keys().filter(|id| **id != self.id);
            let asked = others.map(|id| self.peers.ask(*id, Call::Committed, META_ATTEMPT_DEADLINE));
            let answers = join_all(asked).await;
            let committed = answers.into_iter().find_map(|answer| match answer {
                Ok(Answer::Committed(index)) => index,
                _ => None,
            });
            if let Some(index) = committed {
                return index;
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
