//! The heartbeat: tells the leader how the node is and carries out what the answers ask for.
//!
//! A beat never waits for the disk: space is asked of the file system in the background and the last answer is sent, and
//! deletions run in the background, one batch at a time. What the leader asked for and was not done it asks for again.

use crate::disk::DiskStore;
use crate::node::{Membership, blocking};
use futures::StreamExt;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use torchfs_core::meta::{Heartbeat, HeartbeatReply, NodeLoad};
use torchfs_core::settings::HEARTBEAT_INTERVAL;
use torchfs_core::shard::ShardStore;
use torchfs_core::{Error, Kind, Result, ShardId, StripeId};
use tracing::{info, warn};

/// Most damaged shards in one beat, so that it stays small.
const DAMAGED_PER_BEAT_MAX: usize = 256;

/// Most shards deleted per beat, whatever the leader asks for.
const DELETIONS_PER_BEAT_MAX: usize = 1024;

/// Deletions at once: few, since writes share the disk.
const DELETIONS_AT_ONCE: usize = 4;

/// How often all known damage is reported again, in case a leader died between answering and recording it.
const DAMAGE_AGAIN_AFTER: Duration = Duration::from_secs(60);

/// How long a beat waits for the file system to say how full it is before it sends the last answer.
const SPACE_PATIENCE: Duration = Duration::from_millis(50);

/// Beats until the node cannot go on, and says why. `horizon` is set from the answers.
pub(crate) async fn run(membership: Membership, horizon: watch::Sender<Option<StripeId>>) -> Error {
    let mut beats = Beats {
        space: Space::new(membership.store.clone()),
        deletions: Deletions::new(membership.store.clone()),
        damage_again: Instant::now() + DAMAGE_AGAIN_AFTER,
        is_failing: false,
        membership,
    };
    let mut ticks = tokio::time::interval(HEARTBEAT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match beats.beat().await {
            Ok(reply) => {
                horizon.send_replace(Some(reply.horizon));
            }
            // Another cluster does not go away by itself, nor does the one who has this node's place: clients do not come
            // here any more. Everything else may, and reads are served meanwhile.
            Err(error) if matches!(error.kind(), Kind::WrongCluster | Kind::Exists) => return error,
            Err(error) => beats.log_failure(&error),
        }
    }
}

#[derive(Debug)]
struct Beats {
    membership: Membership,
    space: Space,
    deletions: Deletions,
    damage_again: Instant,
    is_failing: bool,
}

impl Beats {
    async fn beat(&mut self) -> Result<HeartbeatReply> {
        if Instant::now() >= self.damage_again {
            self.membership.store.report_damage_again();
            self.damage_again = Instant::now() + DAMAGE_AGAIN_AFTER;
        }
        let beat = self.next_beat().await?;
        let (deleted, damaged) = (beat.deleted.clone(), beat.damaged.clone());
        match self.membership.meta.store().heartbeat(beat).await {
            Ok(reply) => {
                self.deletions.confirmed(&deleted);
                self.deletions.start(&reply.delete);
                self.membership.store.damage_reported(&damaged);
                self.log_success();
                Ok(reply)
            }
            Err(error) if error.kind() == Kind::NotFound => {
                let registration = self.membership.register().await?;
                info!(node = %registration.node, "metadata did not know this node; it is registered again");
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn next_beat(&mut self) -> Result<Heartbeat> {
        let store = &self.membership.store;
        let identity = store.identity();
        let Some(registration) = identity.registration else {
            return Err(Error::new(Kind::NotFound, "this node is not registered"));
        };
        Ok(Heartbeat {
            node: registration.node,
            uuid: identity.uuid,
            addr: self.membership.addr.clone(),
            load: self.space.load().await,
            deleted: self.deletions.done(),
            damaged: store.damaged(DAMAGED_PER_BEAT_MAX),
        })
    }

    fn log_failure(&mut self, error: &Error) {
        if !self.is_failing {
            warn!(%error, "the leader does not take heartbeats");
        }
        self.is_failing = true;
    }

    fn log_success(&mut self) {
        if self.is_failing {
            info!("the leader takes heartbeats again");
        }
        self.is_failing = false;
    }
}

/// Space and load, asked for in the background.
#[derive(Debug)]
struct Space {
    store: DiskStore,
    last: NodeLoad,
    asking: JoinSet<Result<NodeLoad>>,
}

impl Space {
    fn new(store: DiskStore) -> Self {
        Space { store, last: NodeLoad::default(), asking: JoinSet::new() }
    }

    async fn load(&mut self) -> NodeLoad {
        if self.asking.is_empty() {
            let store = self.store.clone();
            self.asking.spawn(blocking(move || store.load()));
        }
        match tokio::time::timeout(SPACE_PATIENCE, self.asking.join_next()).await {
            Ok(Some(Ok(Ok(load)))) => self.last = load,
            Ok(Some(Ok(Err(error)))) => warn!(%error, "space on the disk is not known"),
            // A disk that is slow to say how full it is: what it said last is sent, with the load of now.
            _ => {}
        }
        NodeLoad { requests: self.store.requests(), ..self.last }
    }
}

/// Deletions that the leader asked for.
#[derive(Debug)]
struct Deletions {
    store: DiskStore,
    running: JoinSet<Vec<ShardId>>,
    unconfirmed: Vec<ShardId>,
}

impl Deletions {
    fn new(store: DiskStore) -> Self {
        Deletions { store, running: JoinSet::new(), unconfirmed: Vec::new() }
    }

    /// Starts a batch unless one is running.
    fn start(&mut self, shards: &[ShardId]) {
        if shards.is_empty() || !self.running.is_empty() || !self.unconfirmed.is_empty() {
            return;
        }
        let shards = shards.iter().copied().take(DELETIONS_PER_BEAT_MAX).collect();
        self.running.spawn(delete_all(self.store.clone(), shards));
    }

    /// What is gone and not yet confirmed to the leader.
    fn done(&mut self) -> Vec<ShardId> {
        if let Some(Ok(deleted)) = self.running.try_join_next() {
            self.unconfirmed = deleted;
        }
        self.unconfirmed.clone()
    }

    fn confirmed(&mut self, shards: &[ShardId]) {
        if !shards.is_empty() {
            self.unconfirmed.clear();
        }
    }
}

/// Deletes the shards and returns those that are gone.
pub(crate) async fn delete_all(store: DiskStore, shards: Vec<ShardId>) -> Vec<ShardId> {
    let deletions = futures::stream::iter(shards).map(|shard| {
        let store = &store;
        async move {
            match store.delete(vec![shard]).await {
                Ok(()) => Some(shard),
                Err(error) => {
                    warn!(%shard, %error, "a shard is not deleted; it will be tried again");
                    None
                }
            }
        }
    });
    deletions.buffer_unordered(DELETIONS_AT_ONCE).filter_map(std::future::ready).collect().await
}
