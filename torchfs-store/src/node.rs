//! A storage node: the disk engine, served over the network, known to the metadata cluster.
//!
//! The node talks to the leader, never the leader to the node: registration and heartbeats go out, and what is to be
//! deleted comes back with the answers.

use crate::disk::{Capacity, DiskStore, Registration, wrong_cluster};
use crate::{gc, heartbeat};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use torchfs_core::meta::{MetaOp, MetaReply, MetaSession, MetaStore};
use torchfs_core::placement::FailureDomain;
use torchfs_core::rpc::{MetaClient, Server};
use torchfs_core::settings::NODE_DOWN_AFTER;
use torchfs_core::{ClusterId, Context, Error, IoContext, Kind, NodeId, Result};
use tracing::{info, warn};

/// How long to wait before metadata that cannot be reached is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// How often a node that waits for metadata says so.
const WAITING_LOG_EVERY: Duration = Duration::from_secs(5);

/// How long another process that has the node's place may turn out to be gone. The leader's answers may be on their way for
/// a while too.
const PLACE_PATIENCE: Duration = NODE_DOWN_AFTER.saturating_add(Duration::from_secs(1));

/// What a storage node is started with.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// `host:port` of the metadata nodes, of some at least.
    pub metas: Vec<String>,
    /// The data folder: one that the node has made before, or an empty or new one.
    pub data: PathBuf,
    /// Most bytes that its shards may take.
    pub capacity: Capacity,
    /// Where the node stands.
    pub domain: FailureDomain,
    /// `host:port` at which others reach it; without it, the address it listens on.
    pub advertise: Option<String>,
}

/// A running storage node. Dropping it stops it without waiting; [`StoreNode::shutdown`] waits.
#[derive(Debug)]
pub struct StoreNode {
    addr: String,
    store: DiskStore,
    tasks: TaskTracker,
    failure: watch::Receiver<Option<Error>>,
    stop: CancellationToken,
    _stop_on_drop: DropGuard,
}

/// What registration needs, now and when the metadata cluster has forgotten the node.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub(crate) meta: MetaSession,
    pub(crate) store: DiskStore,
    pub(crate) addr: String,
    pub(crate) domain: FailureDomain,
}

impl StoreNode {
    /// Opens the data folder, joins the cluster and serves. Waits for as long as the metadata cluster is not up, since
    /// the nodes of a cluster are started in any order; drop the future to give up.
    ///
    /// # Errors
    /// Those of [`DiskStore::open`]; `Exists` if the node runs already somewhere else; `WrongCluster` for a data folder of
    /// another cluster; `InvalidInput` if others could not reach the node at its address; `Protocol` if the metadata addresses are not TorchFS of this version.
    pub async fn start(config: StoreConfig, listener: TcpListener) -> Result<Self> {
        let addr = advertised(&config, &listener)?;
        let store = open(&config).await?;
        let meta = persist("connect to metadata", || MetaClient::connect(config.metas.clone(), None)).await?;
        check_cluster(&store, meta.cluster())?;
        Self::join(Arc::new(meta), store, addr, config.domain, listener).await
    }

    /// As [`StoreNode::start`], with metadata that is reached already; `config.metas` is not used.
    ///
    /// # Errors
    /// See [`StoreNode::start`].
    pub async fn start_with(meta: Arc<dyn MetaStore>, config: StoreConfig, listener: TcpListener) -> Result<Self> {
        let addr = advertised(&config, &listener)?;
        let store = open(&config).await?;
        let session = MetaSession::new(meta.clone());
        let map = persist("ask metadata for the cluster map", || session.map()).await?;
        check_cluster(&store, map.cluster)?;
        Self::join(meta, store, addr, config.domain, listener).await
    }

    async fn join(
        meta: Arc<dyn MetaStore>,
        store: DiskStore,
        addr: String,
        domain: FailureDomain,
        listener: TcpListener,
    ) -> Result<Self> {
        let membership = Membership { meta: MetaSession::new(meta), store, addr, domain };
        let registration = membership.take_place().await?;
        info!(node = %registration.node, cluster = %registration.cluster, addr = membership.addr, "storage node is up");
        Ok(Self::serve(membership, registration, listener))
    }

    fn serve(membership: Membership, registration: Registration, listener: TcpListener) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (fail, failure) = watch::channel(None);
        let (horizon, horizon_seen) = watch::channel(None);
        let (addr, store) = (membership.addr.clone(), membership.store.clone());

        let (_, cluster) = watch::channel(Some(registration.cluster));
        let server = Server::new(cluster).node(registration.node).store(Arc::new(store.clone()));
        tasks.spawn(server.run(listener, stop.child_token()));
        let collector = gc::run(store.clone(), membership.meta.clone(), horizon_seen);
        tasks.spawn(stop.clone().run_until_cancelled_owned(collector));
        tasks.spawn(stop.clone().run_until_cancelled_owned(check_headers(store.clone())));
        let ended = stop.clone();
        tasks.spawn(stop.clone().run_until_cancelled_owned(async move {
            let error = heartbeat::run(membership, horizon).await;
            fail.send_replace(Some(error));
            // A node that cannot go on must not look alive.
            ended.cancel();
        }));
        tasks.close();
        StoreNode { addr, store, tasks, failure, _stop_on_drop: stop.clone().drop_guard(), stop }
    }

    /// `host:port` at which others reach it.
    #[must_use]
    pub fn addr(&self) -> &str {
        &self.addr
    }

    /// Its number in the cluster.
    #[must_use]
    pub fn id(&self) -> NodeId {
        // A running node is registered; the number 0 is never given out.
        self.store.identity().registration.map_or(NodeId(0), |registration| registration.node)
    }

    /// Its shards.
    #[must_use]
    pub fn store(&self) -> &DiskStore {
        &self.store
    }

    /// Waits until the node cannot go on, or is stopped.
    ///
    /// # Errors
    /// Why it cannot go on: metadata that is now of another cluster, or another process that has taken the node's place.
    pub async fn wait(&self) -> Result<()> {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.ok().and_then(|error| error.clone()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Stops serving, waits for what is under way and lets others use the data folder.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.wait().await;
        self.store.close().await;
    }
}

impl Membership {
    /// Registers for the first time since the start. The cluster may still take the process before this one for alive, if
    /// that was at another address and has ended only now; longer than that, another process does run there.
    async fn take_place(&self) -> Result<Registration> {
        let mut refused_since: Option<Instant> = None;
        loop {
            let attempt = Instant::now();
            match persist("register", || self.register()).await {
                Err(error) if error.kind() == Kind::Exists => {
                    let since = *refused_since.get_or_insert_with(|| {
                        info!(%error, "waiting for the node's place");
                        attempt
                    });
                    if attempt.duration_since(since) > PLACE_PATIENCE {
                        return Err(error);
                    }
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                other => return other,
            }
        }
    }

    /// Makes the node known to the metadata cluster, or known again, and writes down who it is.
    pub(crate) async fn register(&self) -> Result<Registration> {
        let store = self.store.clone();
        let load = blocking(move || store.load()).await?;
        let op = MetaOp::Register {
            uuid: self.store.identity().uuid,
            addr: self.addr.clone(),
            domain: self.domain.clone(),
            capacity_bytes: load.capacity_bytes,
        };
        let registration = match self.meta.apply(op).await? {
            MetaReply::Registered { node, cluster } => Registration { cluster, node },
            other => {
                return Err(Error::new(Kind::Protocol, format!("metadata answered a registration with {other:?}")));
            }
        };
        let store = self.store.clone();
        blocking(move || store.register(registration)).await?;
        Ok(registration)
    }
}

/// Runs disk work that is not on behalf of a request.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::caused(Kind::Cancelled, "disk work was given up", error))?
}

async fn open(config: &StoreConfig) -> Result<DiskStore> {
    let (path, capacity) = (config.data.clone(), config.capacity);
    blocking(move || DiskStore::open(&path, capacity)).await
}

/// Tells of damage that only looking at every header finds.
async fn check_headers(store: DiskStore) {
    if let Err(error) = store.check_headers().await {
        warn!(%error, "the shards' headers were not all checked");
    }
}

fn check_cluster(store: &DiskStore, found: ClusterId) -> Result<()> {
    match store.identity().registration {
        Some(own) if own.cluster != found => Err(wrong_cluster(store.root(), own, found)),
        _ => Ok(()),
    }
}

fn advertised(config: &StoreConfig, listener: &TcpListener) -> Result<String> {
    if let Some(advertise) = &config.advertise {
        let port = advertise.rsplit_once(':').and_then(|(host, port)| port.parse().ok().filter(|_| !host.is_empty()));
        return match port {
            Some(1u16..) => Ok(advertise.clone()),
            _ => Err(Error::new(Kind::InvalidInput, format!("'{advertise}' is no address: write HOST:PORT"))),
        };
    }
    let local = listener.local_addr().io(|| "address of the listening socket")?;
    if local.ip().is_unspecified() {
        let message =
            format!("others cannot reach this node at {local}: say with --advertise HOST:PORT where they can");
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(local.to_string())
}

/// Repeats an attempt until it succeeds or fails for a reason that waiting does not cure.
async fn persist<T, F: Future<Output = Result<T>>>(what: &str, mut attempt: impl FnMut() -> F) -> Result<T> {
    let mut logged: Option<Instant> = None;
    loop {
        match attempt().await {
            Err(error) if error.kind().is_transient() => {
                if logged.is_none_or(|last| last.elapsed() >= WAITING_LOG_EVERY) {
                    warn!(%error, "waiting for the metadata cluster: {what}");
                    logged = Some(Instant::now());
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            other => return other.context(|| what),
        }
    }
}
