//! [`MetaNode`]: one metadata node from its data folder to its port.

use crate::duties::Duties;
use crate::identity::{self, Claim, Incarnations};
use crate::kv::{Closing, FjallStore};
use crate::raft::{Consensus, LogStore, Peers, StateStore};
use crate::service::Desk;
use crate::settings::MetaSettings;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use torchfs_core::layout::Profile;
use torchfs_core::rpc::{MetaService, Server};
use torchfs_core::{ClusterId, Error, IoContext, Kind, MetaId, Result};
use tracing::warn;

/// Bytes of blocks kept in memory: the state is read all the time, the log only by followers that lag far behind.
const STATE_CACHE_BYTES: u64 = 64 << 20;
const LOG_CACHE_BYTES: u64 = 4 << 20;

/// How long each part of a shutdown may take before it is left to itself.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// What an operator says about a metadata node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaConfig {
    /// Its number in the cluster.
    pub id: MetaId,
    /// All metadata nodes of the cluster with their addresses, itself included.
    pub peers: BTreeMap<MetaId, String>,
    /// Its data folder.
    pub data: PathBuf,
    /// The profile of the root folder, when the cluster is founded.
    pub profile: Profile,
}

/// A running metadata node. Dropping it stops it like a crash; [`MetaNode::shutdown`] is the gentle way.
#[derive(Debug)]
pub struct MetaNode {
    addr: SocketAddr,
    desk: Arc<Desk>,
    stop: CancellationToken,
    end: watch::Receiver<Option<Result<()>>>,
    tasks: JoinSet<()>,
    closing: [Closing; 2],
    // Last, so that the folder is free only when nothing works in it any more.
    claim: Claim,
}

/// The stores of a data folder, opened.
struct Stores {
    log: LogStore,
    state: Arc<StateStore>,
    closing: [Closing; 2],
    claim: Claim,
    incarnations: Arc<Incarnations>,
}

impl MetaNode {
    /// Starts a node that serves on `listener`. Returns when it serves, be there a leader yet or not.
    ///
    /// # Errors
    /// If the data folder is in use, belongs to another node or cannot be read; each names the folder.
    pub async fn start(config: MetaConfig, listener: TcpListener) -> Result<MetaNode> {
        MetaNode::start_with(config, MetaSettings::default(), listener).await
    }

    /// As [`MetaNode::start`], with other settings.
    ///
    /// # Errors
    /// As [`MetaNode::start`].
    pub async fn start_with(config: MetaConfig, settings: MetaSettings, listener: TcpListener) -> Result<MetaNode> {
        config.profile.checked()?;
        let addr = listener.local_addr().io(|| "look up the port of a metadata node")?;
        let stores = open(&config).await?;
        let Stores { log, state, closing, claim, incarnations } = stores;
        let peers = Peers::new(config.id, config.peers.clone(), state.cluster(), incarnations.clone());
        let (alarm, peers) = (peers.alarm(), Arc::new(peers));
        let consensus =
            Consensus::start(config.id, peers, log, state.clone(), incarnations, settings.compaction).await?;
        let desk = Arc::new(Desk::new(consensus.clone(), state.clone(), config.peers.clone(), settings));

        let stop = CancellationToken::new();
        let (end_sender, end) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let server = Server::new(state.cluster()).meta(desk.clone()).raft(consensus.service());
        tasks.spawn(server.run(listener, stop.clone()));
        let duties = Duties::new(desk.clone(), config.profile);
        let stopped = stop.clone();
        tasks.spawn(async move {
            stopped.run_until_cancelled(duties.run()).await;
        });
        let (members, folder) = (config.peers, config.data);
        let guard = Guard { consensus, members, alarm, folder, stop: stop.clone(), end: end_sender };
        tasks.spawn(guard.run());
        Ok(MetaNode { addr, desk, stop, end, tasks, closing, claim })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its number.
    #[must_use]
    pub fn id(&self) -> MetaId {
        self.desk.consensus.id()
    }

    /// Who leads, as far as this node knows.
    #[must_use]
    pub fn leader(&self) -> Option<MetaId> {
        self.desk.consensus.leader()
    }

    /// What it answers to clients and storage nodes, without the network in between.
    #[must_use]
    pub fn service(&self) -> Arc<dyn MetaService> {
        self.desk.clone()
    }

    /// Its part in Raft, for changes of the membership.
    #[must_use]
    pub fn consensus(&self) -> &Consensus {
        &self.desk.consensus
    }

    /// Its copy of the state.
    #[must_use]
    pub fn state(&self) -> &Arc<StateStore> {
        &self.desk.state
    }

    /// Which cluster it belongs to, from the moment it knows.
    #[must_use]
    pub fn cluster(&self) -> watch::Receiver<Option<ClusterId>> {
        self.desk.state.cluster()
    }

    /// Waits until the node has ended: `Ok` after a shutdown, otherwise why it could not go on.
    ///
    /// # Errors
    /// What ended it: a disk that fails or is full, a folder of another cluster.
    pub async fn wait(&self) -> Result<()> {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(end) => end.clone().unwrap_or(Ok(())),
            Err(_) => Ok(()),
        }
    }

    /// Stops serving, leaves Raft, writes everything out and frees the data folder.
    pub async fn shutdown(mut self) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(SHUTDOWN_DEADLINE, ended).await.is_err() {
            warn!("a metadata node's tasks do not end; they are dropped");
            self.tasks.abort_all();
        }
        if timeout(SHUTDOWN_DEADLINE, self.desk.consensus.shutdown()).await.is_err() {
            warn!("raft does not end");
        }
        let state = self.desk.state.clone();
        let synced = tokio::task::spawn_blocking(move || state.sync());
        if let Ok(Ok(Err(error))) = timeout(SHUTDOWN_DEADLINE, synced).await {
            // Nothing is lost: the log has it.
            warn!(%error, "the state is not synchronised");
        }
        let MetaNode { desk, tasks, closing, claim, .. } = self;
        drop((desk, tasks));
        let closed = async {
            while !closing.iter().all(Closing::is_closed) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SHUTDOWN_DEADLINE, closed).await.is_err() {
            warn!("a metadata node's stores stay open");
        }
        drop(claim);
    }
}

async fn open(config: &MetaConfig) -> Result<Stores> {
    let (folder, id) = (config.data.clone(), config.id);
    let members: BTreeSet<MetaId> = config.peers.keys().copied().collect();
    let opened = tokio::task::spawn_blocking(move || open_folder(&folder, id, &members)).await;
    opened.map_err(|_| Error::new(Kind::Cancelled, "the node is shutting down"))?
}

fn open_folder(folder: &Path, id: MetaId, members: &BTreeSet<MetaId>) -> Result<Stores> {
    let (claim, incarnations) = identity::claim(folder, id, members)?;
    let log = FjallStore::open(&folder.join("log"), LOG_CACHE_BYTES)?;
    let store = FjallStore::open(&folder.join("state"), STATE_CACHE_BYTES)?;
    let state = Arc::new(StateStore::open(store.clone(), &folder.join("snapshots"))?);
    let closing = [log.closing(), store.closing()];
    let log = LogStore::open(&log, store)?;
    Ok(Stores { log, state, closing, claim, incarnations: Arc::new(incarnations) })
}

/// Has the node join, and watches for what it cannot survive.
struct Guard {
    consensus: Consensus,
    members: BTreeMap<MetaId, String>,
    alarm: watch::Receiver<Option<Error>>,
    folder: PathBuf,
    stop: CancellationToken,
    end: watch::Sender<Option<Result<()>>>,
}

impl Guard {
    async fn run(mut self) {
        let end = tokio::select! {
            () = self.stop.cancelled() => Ok(()),
            error = self.consensus.join(&self.members) => {
                Err(error.context(format!("join the metadata cluster with data folder {}", self.folder.display())))
            }
            error = self.consensus.stopped() => {
                Err(error.context(format!("metadata node with data folder {}", self.folder.display())))
            }
            error = Self::alarmed(&mut self.alarm) => Err(error.context(format!(
                "data folder {} belongs to another cluster than the --peers it was started with; \
                 start it with its own peers, or give it an empty folder",
                self.folder.display()
            ))),
        };
        // A node that cannot go on must not look alive.
        self.stop.cancel();
        self.end.send_replace(Some(end));
    }

    async fn alarmed(alarm: &mut watch::Receiver<Option<Error>>) -> Error {
        match alarm.wait_for(Option::is_some).await.map(|error| error.clone()) {
            Ok(Some(error)) => error,
            // Without peers nobody can say so.
            _ => std::future::pending().await,
        }
    }
}
