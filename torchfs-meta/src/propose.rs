//! Fills in what only the leader may decide about a proposal (its time), has it ordered and applied, and returns its
//! outcome.

use crate::raft::{Consensus, Place, Proposal, Refused};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;
use torchfs_core::meta::{Command, InternalOp, MetaOp, MetaReply, Timestamp};
use torchfs_core::rpc::{LeaderHint, MetaFault};
use torchfs_core::settings::BATCH_OPS_MAX;
use torchfs_core::{ClientId, Error, Kind, MetaId, RequestId, Result};

/// Largest proposal: a batch of the largest extended attributes fits, and a frame holds it.
const PROPOSAL_BYTES_MAX: usize = 72 << 20;

/// Proposes changes on one node.
#[derive(Debug)]
pub struct Proposer {
    consensus: Consensus,
    addrs: BTreeMap<MetaId, String>,
    client: ClientId,
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    time: Timestamp,
    sequence: u64,
    open: BTreeSet<u64>,
}

/// Takes the number of a request of our own out of the open ones, however it ends.
struct Open<'a>(&'a Proposer, u64);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.last().open.remove(&self.1);
    }
}

impl Proposer {
    /// A proposer for the node that `consensus` is part of; `addrs` is where its peers are.
    #[must_use]
    pub fn new(consensus: Consensus, addrs: BTreeMap<MetaId, String>) -> Self {
        Proposer { consensus, addrs, client: ClientId::random(), last: Mutex::default() }
    }

    fn last(&self) -> MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has a client's command applied, and returns its outcome and its place in the log.
    ///
    /// # Errors
    /// `NotLeader` if nothing was done; `NotPermitted` and `InvalidInput` for what no client may propose; `Timeout` and
    /// `Unavailable` if the outcome is not known; otherwise the outcome itself.
    pub async fn propose(&self, command: Command) -> Result<(MetaReply, Place), MetaFault> {
        check(&command.op)?;
        self.propose_unchecked(command).await
    }

    /// Has a change of the leader's own applied.
    ///
    /// # Errors
    /// As for [`Proposer::propose`].
    pub async fn propose_internal(&self, op: InternalOp) -> Result<MetaReply, MetaFault> {
        self.propose_own(MetaOp::Internal(op)).await
    }

    /// Has a change applied that the leader itself wants and a client might.
    ///
    /// # Errors
    /// As for [`Proposer::propose`].
    pub async fn propose_own(&self, op: MetaOp) -> Result<MetaReply, MetaFault> {
        let (sequence, answered_below) = {
            let mut last = self.last();
            last.sequence += 1;
            let sequence = last.sequence;
            last.open.insert(sequence);
            (sequence, last.open.first().copied().unwrap_or(sequence))
        };
        let _open = Open(self, sequence);
        let request = RequestId { client: self.client, sequence };
        self.propose_unchecked(Command { request, answered_below, op }).await.map(|(reply, _)| reply)
    }

    async fn propose_unchecked(&self, command: Command) -> Result<(MetaReply, Place), MetaFault> {
        // A follower says so before it encodes anything.
        if self.consensus.leading().is_none() {
            return Err(self.not_leader(self.consensus.leader()));
        }
        let proposal = Proposal::new(self.now(), &command)?;
        if proposal.len() > PROPOSAL_BYTES_MAX {
            let message =
                format!("a change of {} bytes; at most {PROPOSAL_BYTES_MAX} are possible: split it", proposal.len());
            return Err(Error::new(Kind::TooLarge, message).into());
        }
        let (applied, place) = self.consensus.propose(proposal).await.map_err(|refused| self.fault(refused))?;
        Ok((applied.0?, place))
    }

    /// The clock, but never earlier than before. That it is not earlier than another leader's is seen to when it is applied.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        let mut last = self.last();
        last.time = Timestamp::from(SystemTime::now()).max(last.time);
        last.time
    }

    /// What a client is told instead of an answer.
    #[must_use]
    pub fn fault(&self, refused: Refused) -> MetaFault {
        match refused {
            Refused::NotLeader(leader) => self.not_leader(leader),
            Refused::Failed(error) => MetaFault::Failed(error),
        }
    }

    fn not_leader(&self, leader: Option<MetaId>) -> MetaFault {
        MetaFault::NotLeader(leader.and_then(|id| Some(LeaderHint { id, addr: self.addrs.get(&id)?.clone() })))
    }
}

fn check(op: &MetaOp) -> Result<()> {
    if !op.is_public() {
        return Err(Error::new(Kind::NotPermitted, "only the metadata leader itself makes this change"));
    }
    match op {
        MetaOp::Batch(ops) if ops.len() > BATCH_OPS_MAX => {
            let message = format!("batch of {} operations; at most {BATCH_OPS_MAX} are possible", ops.len());
            Err(Error::new(Kind::InvalidInput, message))
        }
        _ => Ok(()),
    }
}
