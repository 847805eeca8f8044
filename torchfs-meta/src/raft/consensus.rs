//! [`Consensus`]: Raft as the rest of this crate uses it, without a type of openraft in sight.

use super::gate::{Admission, Gate};
use super::network::{Network, Peers};
use super::peer::Peer;
use super::{Applied, LogStore, Proposal, StateMachine, StateStore, TypeConfig};
use crate::identity::Incarnations;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::impls::BasicNode;
use openraft::raft::linearizable_read::LinearizerOption;
use openraft::{Config, Instant, Raft, SnapshotPolicy};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use torchfs_core::rpc::RaftService;
use torchfs_core::settings::META_ATTEMPT_DEADLINE;
use torchfs_core::{Error, Kind, MetaId, Result};

/// How often the leader proves to be alive.
const HEARTBEAT_MS: u64 = 150;

/// Followers wait for the leader's lease (the larger number) plus a random time between the two before they stand for
/// election: 0.9 to 1.2 s of silence. That leaves room for a second round within two seconds, and a leader that gets no
/// processor for half a second stays leader.
const ELECTION_MS: (u64, u64) = (300, 600);

/// A node that does not vote yet greets its peers at least this often.
const JOINING_SILENCE: Duration = Duration::from_secs(6);

/// Why something was not done.
#[derive(Debug)]
pub enum Refused {
    /// This node does not lead; perhaps that one does. Nothing was done.
    NotLeader(Option<MetaId>),
    /// It failed, or its outcome is not known.
    Failed(Error),
}

/// Where a proposal is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The term of the leader that ordered it.
    pub term: u64,
    /// Its index.
    pub index: u64,
}

/// How a metadata node stands, as the leader sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Which node.
    pub id: MetaId,
    /// Its address in the membership.
    pub addr: String,
    /// `leader`, `follower`, `joining`, `learner` or `down`.
    pub state: &'static str,
}

/// When the log is compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// Entries after which a snapshot is made.
    pub entries: u64,
    /// Entries before the snapshot that are kept, for followers that lag a little.
    pub keep: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Compaction { entries: 20_000, keep: 5_000 }
    }
}

/// One node's part in Raft.
#[derive(Clone)]
pub struct Consensus {
    pub(super) id: MetaId,
    pub(super) raft: Raft<TypeConfig, StateMachine>,
    pub(super) state: Arc<StateStore>,
    pub(super) peers: Arc<Peers>,
    pub(super) gate: Arc<Gate>,
    pub(super) incarnations: Arc<Incarnations>,
}

impl fmt::Debug for Consensus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Consensus").field(&self.id).finish()
    }
}

impl Consensus {
    /// Starts node `id` on its log and state. It takes part in Raft only after [`Consensus::join`], or after what the
    /// node did before this start.
    ///
    /// # Errors
    /// What the storage says.
    pub async fn start(
        id: MetaId,
        peers: Arc<Peers>,
        log: LogStore,
        state: Arc<StateStore>,
        incarnations: Arc<Incarnations>,
        compaction: Compaction,
    ) -> Result<Self> {
        let machine = StateMachine::new(state.clone())?;
        let is_admitted = incarnations.is_admitted();
        let config = Config { enable_elect: is_admitted, ..config(compaction)? };
        let gate = Arc::new(Gate::new(if is_admitted { Admission::Admitted } else { Admission::Unknown }));
        let raft = Raft::new(id.0, Arc::new(config), Network(peers.clone()), log, machine).await;
        let raft = raft.map_err(|fatal| Error::new(Kind::Io, format!("start Raft: {fatal}")))?;
        Ok(Consensus { id, raft, state, peers, gate, incarnations })
    }

    /// Gives a node that has never run its first members. Every node of a new cluster does it, with the same members, and
    /// one of them is elected.
    pub(super) async fn initialize(&self, members: &BTreeMap<MetaId, String>) -> Result<()> {
        let failed = |error: String| Error::new(Kind::Io, format!("initialize Raft: {error}"));
        if self.raft.is_initialized().await.map_err(|fatal| failed(fatal.to_string()))? {
            return Ok(());
        }
        let members: BTreeMap<u64, BasicNode> = members.iter().map(|(id, addr)| (id.0, BasicNode::new(addr))).collect();
        match self.raft.initialize(members).await {
            // A leader was faster.
            Ok(()) | Err(RaftError::APIError(openraft::errors::InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(failed(error.to_string())),
        }
    }

    /// This node.
    #[must_use]
    pub fn id(&self) -> MetaId {
        self.id
    }

    /// The service for the other nodes.
    #[must_use]
    pub fn service(&self) -> Arc<dyn RaftService> {
        Arc::new(Peer::new(self))
    }

    /// Has a proposal ordered, stored by a majority and applied, and says in which place.
    ///
    /// # Errors
    /// [`Refused::NotLeader`] if nothing was done, `Timeout` or `Unavailable` if the outcome is not known. The outcome of the
    /// command itself is in [`Applied`].
    pub async fn propose(&self, proposal: Proposal) -> Result<(Applied, Place), Refused> {
        let Ok(written) = timeout(META_ATTEMPT_DEADLINE, self.raft.client_write(proposal)).await else {
            let message = format!(
                "no majority of metadata nodes stored the change within {} s; retry it under the same request id",
                META_ATTEMPT_DEADLINE.as_secs()
            );
            return Err(Refused::Failed(Error::new(Kind::Timeout, message)));
        };
        match written {
            Ok(response) => {
                let place = Place { term: response.log_id.leader_id.term, index: response.log_id.index };
                Ok((response.data, place))
            }
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// Returns when this node's state reflects every change acknowledged before the call, with the leader's term. Costs no
    /// message while a majority has confirmed the leader within its lease; else a round of heartbeats.
    ///
    /// # Errors
    /// [`Refused::NotLeader`], or `Unavailable` if no majority answers.
    pub async fn read_barrier(&self) -> Result<u64, Refused> {
        let option = LinearizerOption::new(None, true).with_wait_timeout(META_ATTEMPT_DEADLINE / 2);
        let Ok(ready) = timeout(META_ATTEMPT_DEADLINE, self.raft.ensure_linearizable(option)).await else {
            return Err(Refused::Failed(Error::new(Kind::Timeout, "the metadata leader is too busy to answer")));
        };
        match ready {
            Ok(read) => Ok(read.committed_leader_id().term),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(lack))) => {
                let answering: Vec<String> = lack.got.iter().map(u64::to_string).collect();
                let message = format!(
                    "only metadata node {} answers, and that is no majority: start the others",
                    answering.join(" and ")
                );
                Err(Refused::Failed(Error::new(Kind::Unavailable, message)))
            }
            Err(error) => Err(unavailable(&error)),
        }
    }

    /// How long ago a majority was asked that has confirmed since that this node leads: no other one led before. `None` if
    /// none has.
    #[must_use]
    pub fn confirmed(&self) -> Option<Duration> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        if metrics.membership_config.voter_ids().eq([self.id.0]) {
            return Some(Duration::ZERO);
        }
        metrics.last_quorum_acked.map(|asked| asked.elapsed())
    }

    /// The term in which this node leads, as far as it knows.
    #[must_use]
    pub fn leading(&self) -> Option<u64> {
        self.raft.as_leader().ok().map(|leader| leader.leader_id().term)
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<MetaId> {
        self.raft.metrics().borrow_watched().current_leader.map(MetaId)
    }

    /// All metadata nodes. Who does not vote yet is `joining`; who does not answer the leader is `down`.
    #[must_use]
    pub fn standings(&self) -> Vec<Standing> {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        let silence = Duration::from_millis(2 * ELECTION_MS.1);
        let answers = |id: &u64| {
            let heard = metrics.heartbeat.as_ref().and_then(|heard| heard.get(id)).copied().flatten();
            heard.is_some_and(|at| at.elapsed() < silence)
        };
        // One that waits for its peers' answers only greets, and less often than a leader is heard.
        let joins = |id: &u64| match self.incarnations.joining(MetaId(*id)) {
            Some(greeted) => answers(id) || greeted < JOINING_SILENCE,
            None => false,
        };
        let state = |id: &u64| match () {
            () if *id == self.id.0 => "leader",
            () if joins(id) => "joining",
            () if !answers(id) => "down",
            () if voters.contains(id) => "follower",
            () => "learner",
        };
        let nodes = metrics.membership_config.nodes();
        nodes.map(|(id, node)| Standing { id: MetaId(*id), addr: node.addr.clone(), state: state(id) }).collect()
    }

    /// Makes a snapshot soon, which lets the log be purged.
    ///
    /// # Errors
    /// If the node has stopped.
    pub async fn compact(&self) -> Result<()> {
        self.raft.trigger().snapshot().await.map_err(|fatal| Error::new(Kind::Unavailable, fatal.to_string()))
    }

    /// The index of the last entry that was purged, if any.
    #[must_use]
    pub fn purged(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().purged.map(|id| id.index)
    }

    /// The index of the last entry that was applied here, if any.
    #[must_use]
    pub fn applied(&self) -> Option<u64> {
        self.raft.metrics().borrow_watched().last_applied.map(|id| id.index)
    }

    /// Adds a node that receives everything and does not vote yet; returns when it has caught up.
    ///
    /// # Errors
    /// [`Refused::NotLeader`], or why it cannot be added.
    pub async fn add_learner(&self, id: MetaId, addr: &str) -> Result<(), Refused> {
        changed(self.raft.add_learner(id.0, BasicNode::new(addr), true).await)
    }

    /// Makes these nodes, all of which are members or learners, the voting members. The others are removed.
    ///
    /// # Errors
    /// [`Refused::NotLeader`], or why it cannot be done.
    pub async fn set_voters(&self, voters: &BTreeSet<MetaId>) -> Result<(), Refused> {
        let voters: BTreeSet<u64> = voters.iter().map(|id| id.0).collect();
        changed(self.raft.change_membership(voters, false).await)
    }

    /// Waits until Raft has stopped by itself, and says why.
    pub async fn stopped(&self) -> Error {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return Error::new(Kind::Io, fatal.to_string());
            }
            if metrics.changed().await.is_err() {
                return Error::new(Kind::Cancelled, "raft stopped");
            }
        }
    }

    /// Stops taking part. What was acknowledged is on disk already.
    pub async fn shutdown(&self) {
        // The task's own panic, if any, was reported when it happened.
        self.raft.shutdown().await.ok();
    }
}

fn config(compaction: Compaction) -> Result<Config> {
    let config = Config {
        cluster_name: "torchfs".into(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS.0,
        election_timeout_max: ELECTION_MS.1,
        install_snapshot_timeout: super::network::INSTALL_DEADLINE.as_millis() as u64,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(compaction.entries),
        max_in_snapshot_log_to_keep: compaction.keep,
        purge_batch_size: 256,
        replication_lag_threshold: compaction.entries.saturating_mul(2),
        max_payload_entries: 1024,
        // Followers write to their disks while the leader writes to its own.
        broadcast_submitted_on_append: Some(true),
        enable_pre_vote: Some(true),
        ..Config::default()
    };
    config.validate().map_err(|error| Error::caused(Kind::InvalidInput, "settings of Raft", error))
}

fn not_leader(forward: &ForwardToLeader<TypeConfig>) -> Refused {
    Refused::NotLeader(forward.leader_id.map(MetaId))
}

fn unavailable(error: &impl fmt::Display) -> Refused {
    Refused::Failed(Error::new(Kind::Unavailable, error.to_string()))
}

fn changed<T>(result: Result<T, RaftError<TypeConfig, ClientWriteError<TypeConfig>>>) -> Result<(), Refused> {
    match result {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => Err(not_leader(&forward)),
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
            Err(Refused::Failed(Error::new(Kind::Conflict, error.to_string())))
        }
        Err(error) => Err(unavailable(&error)),
    }
}
