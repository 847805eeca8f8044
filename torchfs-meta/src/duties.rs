//! What a leader does without being asked: founds the cluster, marks silent storage nodes as down, keeps stripe ids in
//! reserve, has garbage collected, gives up stripes that were never committed.

use crate::service::Desk;
use crate::state;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior};
use torchfs_core::layout::Profile;
use torchfs_core::meta::{InternalOp, NodeState};
use torchfs_core::rpc::MetaFault;
use torchfs_core::{ClusterId, Result};
use tracing::{debug, info};

/// How often it looks whether there is something to do. Founding waits for it, so it is short.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The duties of one node. They do nothing while another leads.
#[derive(Debug)]
pub struct Duties {
    desk: Arc<Desk>,
    /// The profile of the root folder, should this node found the cluster.
    profile: Profile,
    term: Option<u64>,
    collected: Option<Instant>,
}

impl Duties {
    /// The duties of the node behind `desk`.
    #[must_use]
    pub fn new(desk: Arc<Desk>, profile: Profile) -> Self {
        Duties { desk, profile, term: None, collected: None }
    }

    /// Does them until dropped.
    pub async fn run(mut self) {
        let mut look = tokio::time::interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            if let Err(fault) = self.look().await {
                // Another leader or a later look does it; nobody waits for it.
                debug!(?fault, "a duty of the metadata leader is put off");
            }
        }
    }

    async fn look(&mut self) -> Result<(), MetaFault> {
        let Some(term) = self.desk.consensus.leading() else {
            self.term = None;
            return Ok(());
        };
        if self.term != Some(term) {
            info!(term, "this node leads the metadata cluster");
            // From here on silence counts.
            self.desk.book().of_term(term);
            self.desk.leases.leads(term);
            self.term = Some(term);
            self.collected = Some(Instant::now());
        }
        if self.desk.state.cluster().borrow().is_none() {
            self.found().await?;
        }
        self.mark_silent(term).await?;
        self.reserve(term).await?;
        self.give_up(term).await?;
        self.collect().await
    }

    async fn found(&self) -> Result<(), MetaFault> {
        let term = self.desk.read_barrier().await?;
        if self.desk.state.cluster().borrow().is_none() {
            // Nor was there one for an earlier leader, so it had no clients.
            self.desk.leases.leads_first(term);
        }
        let found = InternalOp::Found { cluster: ClusterId::random(), profile: self.profile };
        self.desk.proposer.propose_internal(found).await.map(drop)
    }

    async fn mark_silent(&self, term: u64) -> Result<(), MetaFault> {
        let nodes = state::nodes(&*self.desk.state.view()?)?;
        let silent = self.desk.book().of_term(term).silent(&nodes, self.desk.settings.node_down_after, Instant::now());
        for node in silent {
            info!(%node, "a storage node is silent and taken to be down");
            let down = InternalOp::SetNodeState { node, state: NodeState::Down };
            self.desk.proposer.propose_internal(down).await?;
        }
        Ok(())
    }

    async fn reserve(&self, term: u64) -> Result<(), MetaFault> {
        let low = self.desk.book().of_term(term).stripes.is_low();
        if low { self.desk.reserve_stripes(term, crate::stripes::RESERVE).await } else { Ok(()) }
    }

    async fn give_up(&self, term: u64) -> Result<(), MetaFault> {
        let view = self.desk.state.view()?;
        let next = state::next_stripe(&*view)?;
        let age = self.desk.settings.abandoned_after;
        let aged = self.desk.book().of_term(term).stripes.aged(next, age, Instant::now());
        match aged {
            Some(stripe) if stripe > state::horizon(&*view)? => {
                self.desk.proposer.propose_internal(InternalOp::AdvanceHorizon { stripe }).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn collect(&mut self) -> Result<(), MetaFault> {
        let settings = &self.desk.settings;
        if self.collected.is_some_and(|at| at.elapsed() < settings.collect_interval) {
            return Ok(());
        }
        let now = self.desk.proposer.now();
        let before = now.minus(settings.garbage_grace);
        let clients_before = now.minus(settings.client_expiry);
        self.desk.proposer.propose_internal(InternalOp::Collect { before, clients_before }).await?;
        // One operation does a bounded amount of work. While something is left, the next look goes on.
        if !state::has_orphans(&*self.desk.state.view()?, before)? {
            self.collected = Some(Instant::now());
        }
        Ok(())
    }
}
