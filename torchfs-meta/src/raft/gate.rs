//! [`Gate`]: what of Raft a node takes part in while it is not known what its data folder lacks.
//!
//! Raft relies on nodes that never forget: neither what they stored nor whom they voted for. A node whose data folder is new
//! or a copy may be one that has forgotten both, so it waits at the gate until its peers have said so: see
//! [`super::joining`].

use super::{LogId, Vote};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;
use torchfs_core::{Error, Kind, Result};

/// How long a message waits for the gate to open: when a cluster is formed, nodes are admitted within moments of each other.
const PATIENCE: Duration = Duration::from_millis(200);

/// How far a node takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Not at all: it may have forgotten anything.
    Unknown,
    /// It stores what a leader sends, and does not vote. It has forgotten whom it voted for, but not for longer than this: so
    /// it obeys no leader that its peers know to be replaced.
    CatchingUp(Vote),
    /// No node may vote, so what they have together is all there is. It votes for whoever has this entry, which is the last
    /// of the longest log.
    Reviving(Option<LogId>),
    /// Like every other node.
    Admitted,
}

/// Lets messages of other nodes through, or not yet.
#[derive(Debug)]
pub(super) struct Gate(watch::Sender<Admission>);

impl Gate {
    pub(super) fn new(admission: Admission) -> Self {
        Gate(watch::channel(admission).0)
    }

    pub(super) fn set(&self, admission: Admission) {
        self.0.send_replace(admission);
    }

    /// Whether a vote for a node whose last entry is `last` may be asked of this node.
    pub(super) async fn vote(&self, last: Option<&LogId>) -> Result<()> {
        let mut admission = self.0.subscribe();
        let admitted = admission.wait_for(|now| *now != Admission::Unknown);
        match timeout(PATIENCE, admitted).await.ok().and_then(Result::ok).as_deref() {
            Some(Admission::Admitted) => Ok(()),
            Some(Admission::Reviving(longest)) if last >= longest.as_ref() => Ok(()),
            Some(Admission::Reviving(_)) => Err(refused("it votes for the node with the longest log")),
            _ => Err(refused("it does not vote yet")),
        }
    }

    /// Whether a leader with this vote may send entries or a snapshot.
    pub(super) async fn obey(&self, leader: &Vote) -> Result<()> {
        let mut admission = self.0.subscribe();
        let known = admission.wait_for(|now| *now != Admission::Unknown);
        match timeout(PATIENCE, known).await.ok().and_then(Result::ok).as_deref() {
            Some(Admission::Admitted | Admission::Reviving(_)) => Ok(()),
            Some(Admission::CatchingUp(floor)) if leader >= floor => Ok(()),
            Some(Admission::CatchingUp(_)) => Err(refused("its peers know a later leader")),
            _ => Err(refused("it waits for its peers to say whether it was here before")),
        }
    }
}

fn refused(why: &str) -> Error {
    Error::new(Kind::Unavailable, format!("this metadata node's data folder is new or a copy: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vote(term: u64, node: u64) -> Vote {
        Vote::new_committed(term, node)
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_passes_before_it_is_known_and_no_votes_before_the_node_has_caught_up() {
        let gate = Gate::new(Admission::Unknown);
        assert!(gate.vote(None).await.is_err() && gate.obey(&vote(9, 1)).await.is_err());
        gate.set(Admission::CatchingUp(vote(3, 1)));
        assert!(gate.vote(None).await.is_err());
        assert!(gate.obey(&vote(2, 3)).await.is_err(), "a leader that was replaced");
        assert!(gate.obey(&vote(3, 1)).await.is_ok() && gate.obey(&vote(4, 3)).await.is_ok());
        let entry = |index| LogId::new(*vote(3, 1).leader_id(), index);
        gate.set(Admission::Reviving(Some(entry(7))));
        assert!(gate.vote(None).await.is_err() && gate.vote(Some(&entry(6))).await.is_err());
        assert!(gate.vote(Some(&entry(7))).await.is_ok() && gate.obey(&vote(1, 1)).await.is_ok());
        gate.set(Admission::Admitted);
        assert!(gate.vote(None).await.is_ok() && gate.obey(&vote(1, 1)).await.is_ok());
    }
}
