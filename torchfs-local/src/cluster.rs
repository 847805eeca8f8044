//! [`LocalCluster`]: the running nodes.
//!
//! Nodes are numbered from 1, as their folders are: `meta-1`, `store-1`.

use crate::Builder;
use crate::plan::{Bound, Plan, listen};
use futures::FutureExt;
use futures::future::{join_all, try_join_all};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};
use torchfs_core::meta::NodeState;
use torchfs_core::{Client, Context, Error, Kind, MetaId, Result};
use torchfs_meta::{MetaConfig, MetaNode};
use torchfs_store::{Capacity, StoreConfig, StoreNode};

/// How long a node may take to start: an election, and for storage nodes the registration after it.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// How long a node that is started again waits for what the stopped one held: its port, the lock on its folder.
const RELEASE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a node may take to stop in order; after that it is dropped.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(10);

/// How often it is looked whether a node has failed; somebody who waits for this waits for hours.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A cluster in this process. Dropping it stops all nodes at once.
#[derive(Debug)]
pub struct LocalCluster {
    metas: Mutex<Vec<Option<MetaNode>>>,
    stores: Mutex<Vec<Option<StoreNode>>>,
    plan: Plan,
    data: PathBuf,
    store_capacity: Capacity,
    /// Removed after the nodes are gone.
    _temporary: Option<TempDir>,
}

impl LocalCluster {
    /// How to make one.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Whether a data folder holds a cluster already.
    #[must_use]
    pub fn is_in(data: &std::path::Path) -> bool {
        Plan::is_in(data)
    }

    pub(crate) async fn start(
        bound: Bound,
        data: PathBuf,
        store_capacity: Capacity,
        temporary: Option<TempDir>,
    ) -> Result<LocalCluster> {
        let cluster = LocalCluster {
            metas: Mutex::new(bound.plan.metas.iter().map(|_| None).collect()),
            stores: Mutex::new(bound.plan.stores.iter().map(|_| None).collect()),
            plan: bound.plan,
            data,
            store_capacity,
            _temporary: temporary,
        };
        // All at once: a metadata node may be ready only when it sees the others.
        let metas = (1..).zip(bound.metas).map(|(number, listener)| cluster.run_meta(number, listener));
        try_join_all(metas).await?;
        // One after the other: each registers and gets the next number of the cluster, which so is that of its folder.
        for (number, listener) in (1..).zip(bound.stores) {
            cluster.run_store(number, listener).await?;
        }
        Ok(cluster)
    }

    /// Where everything is kept.
    #[must_use]
    pub fn data_dir(&self) -> &std::path::Path {
        &self.data
    }

    /// Addresses of the metadata nodes, stopped ones included.
    #[must_use]
    pub fn meta_addrs(&self) -> Vec<String> {
        self.plan.metas.iter().map(SocketAddr::to_string).collect()
    }

    /// Addresses of the storage nodes, stopped ones included.
    #[must_use]
    pub fn store_addrs(&self) -> Vec<String> {
        self.plan.stores.iter().map(SocketAddr::to_string).collect()
    }

    /// A new client without a cache.
    ///
    /// # Errors
    /// See [`Client::connect`].
    pub async fn client(&self) -> Result<Client> {
        Client::connect(self.meta_addrs()).await
    }

    /// Which metadata node leads.
    ///
    /// # Errors
    /// `Unavailable` if none does.
    pub async fn leader(&self) -> Result<usize> {
        Ok(self.client().await?.status().await?.leader.0 as usize)
    }

    /// The metadata nodes that were stopped.
    #[must_use]
    pub fn stopped_metas(&self) -> Vec<usize> {
        stopped(&lock(&self.metas))
    }

    /// The storage nodes that were stopped.
    #[must_use]
    pub fn stopped_stores(&self) -> Vec<usize> {
        stopped(&lock(&self.stores))
    }

    /// Stops a metadata node at once, as if its process were killed.
    ///
    /// # Errors
    /// `NotFound` if there is no such node. Stopping a stopped one is fine.
    pub fn stop_meta(&self, number: usize) -> Result<()> {
        drop(slot(&mut lock(&self.metas), "meta", number)?.take());
        Ok(())
    }

    /// Starts a stopped metadata node with what it had kept, at its old address.
    ///
    /// # Errors
    /// `NotFound` if there is no such node, `Exists` if it runs; what its start fails with.
    pub async fn start_meta(&self, number: usize) -> Result<()> {
        must_be_stopped(slot(&mut lock(&self.metas), "meta", number)?.is_some(), "meta", number)?;
        let released = Instant::now() + RELEASE_DEADLINE;
        loop {
            let started = async {
                let listener = listen(&format!("meta-{number}"), self.plan.metas[number - 1]).await?;
                self.run_meta(number, listener).await
            };
            match started.await {
                Err(_) if Instant::now() < released => sleep(POLL_INTERVAL).await,
                outcome => return outcome,
            }
        }
    }

    /// Stops a storage node at once, as if its process were killed.
    ///
    /// # Errors
    /// `NotFound` if there is no such node. Stopping a stopped one is fine.
    pub fn stop_store(&self, number: usize) -> Result<()> {
        drop(slot(&mut lock(&self.stores), "store", number)?.take());
        Ok(())
    }

    /// Starts a stopped storage node with the shards it had kept, at its old address. When this returns it is registered.
    ///
    /// # Errors
    /// `NotFound` if there is no such node, `Exists` if it runs; what its start fails with.
    pub async fn start_store(&self, number: usize) -> Result<()> {
        must_be_stopped(slot(&mut lock(&self.stores), "store", number)?.is_some(), "store", number)?;
        let released = Instant::now() + RELEASE_DEADLINE;
        loop {
            let started = async {
                let listener = listen(&format!("store-{number}"), self.plan.stores[number - 1]).await?;
                self.run_store(number, listener).await
            };
            match started.await {
                Err(_) if Instant::now() < released => sleep(POLL_INTERVAL).await,
                outcome => return outcome,
            }
        }
    }

    /// Waits until the cluster itself sees that `up` storage nodes can be used, no more and no fewer.
    ///
    /// # Errors
    /// `Timeout` with what it sees instead.
    pub async fn wait_for_stores(&self, up: usize, deadline: Duration) -> Result<()> {
        let client = self.client().await?;
        let deadline = Instant::now() + deadline;
        loop {
            let map = client.meta().map().await?;
            let seen = map.nodes.iter().filter(|node| node.state == NodeState::Up).count();
            if seen == up {
                return Ok(());
            }
            if Instant::now() > deadline {
                let message = format!("{seen} storage nodes are up, {up} are waited for");
                return Err(Error::new(Kind::Timeout, message));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Returns when a running node cannot go on: which node it is, and why.
    pub async fn wait_for_failure(&self) -> Error {
        loop {
            if let Some(error) = self.failure() {
                return error;
            }
            sleep(WATCH_INTERVAL).await;
        }
    }

    fn failure(&self) -> Option<Error> {
        let meta = first_failure("meta", &lock(&self.metas), |node| node.wait().now_or_never());
        meta.or_else(|| first_failure("store", &lock(&self.stores), |node| node.wait().now_or_never()))
    }

    /// Stops all nodes in order: storage first.
    ///
    /// # Errors
    /// None now; a node that does not stop in time is dropped.
    pub async fn shutdown(self) -> Result<()> {
        let stores = std::mem::take(&mut *lock(&self.stores));
        let stopping = stores.into_iter().flatten().map(|node| async move {
            let _ = timeout(SHUTDOWN_DEADLINE, node.shutdown()).await;
        });
        join_all(stopping).await;
        let metas = std::mem::take(&mut *lock(&self.metas));
        let stopping = metas.into_iter().flatten().map(|node| async move {
            let _ = timeout(SHUTDOWN_DEADLINE, node.shutdown()).await;
        });
        join_all(stopping).await;
        Ok(())
    }

    async fn run_meta(&self, number: usize, listener: TcpListener) -> Result<()> {
        let peers = (1..).map(MetaId).zip(self.meta_addrs()).collect();
        let data = self.data.join(format!("meta-{number}"));
        let config = MetaConfig { id: MetaId(number as u64), peers, data, profile: self.plan.profile };
        let name = format!("start meta-{number}");
        let node = in_time(MetaNode::start(config, listener)).await.context(|| name)?;
        *slot(&mut lock(&self.metas), "meta", number)? = Some(node);
        Ok(())
    }

    async fn run_store(&self, number: usize, listener: TcpListener) -> Result<()> {
        let config = StoreConfig {
            metas: self.meta_addrs(),
            data: self.data.join(format!("store-{number}")),
            capacity: self.store_capacity,
            // As if each had a machine of its own, so that placement spreads over them.
            domain: format!("host=store-{number}").parse()?,
            advertise: None,
        };
        let name = format!("start store-{number}");
        let node = in_time(StoreNode::start(config, listener)).await.context(|| name)?;
        *slot(&mut lock(&self.stores), "store", number)? = Some(node);
        Ok(())
    }
}

async fn in_time<T>(start: impl Future<Output = Result<T>>) -> Result<T> {
    let late = || Error::new(Kind::Timeout, format!("not ready after {} s", START_DEADLINE.as_secs()));
    timeout(START_DEADLINE, Box::pin(start)).await.unwrap_or_else(|_| Err(late()))
}

fn lock<T>(nodes: &Mutex<T>) -> MutexGuard<'_, T> {
    nodes.lock().unwrap_or_else(PoisonError::into_inner)
}

fn slot<'a, T>(nodes: &'a mut [Option<T>], kind: &str, number: usize) -> Result<&'a mut Option<T>> {
    let count = nodes.len();
    let missing = || Error::new(Kind::NotFound, format!("no {kind}-{number}: they are numbered 1 to {count}"));
    number.checked_sub(1).and_then(|at| nodes.get_mut(at)).ok_or_else(missing)
}

/// The first node that has ended by itself.
fn first_failure<T>(kind: &str, nodes: &[Option<T>], ended: impl Fn(&T) -> Option<Result<()>>) -> Option<Error> {
    (1..).zip(nodes).find_map(|(number, node): (usize, _)| {
        let error = match ended(node.as_ref()?)? {
            Ok(()) => Error::new(Kind::Unavailable, "it has ended"),
            Err(error) => error,
        };
        Some(error.context(format!("{kind}-{number}")))
    })
}

fn stopped<T>(nodes: &[Option<T>]) -> Vec<usize> {
    (1..).zip(nodes).filter_map(|(number, node)| node.is_none().then_some(number)).collect()
}

fn must_be_stopped(runs: bool, kind: &str, number: usize) -> Result<()> {
    if runs { Err(Error::new(Kind::Exists, format!("{kind}-{number} runs already"))) } else { Ok(()) }
}
