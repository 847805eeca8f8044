//! The storage nodes of a cluster by number: [`StorePool`] follows the cluster map and keeps one connection per node.

use super::StoreClient;
use crate::error::{Error, Kind, Result};
use crate::ids::{ClusterId, NodeId};
use crate::meta::{ClusterMap, MetaAnswer, MetaQuery, MetaStore, NodeState};
use crate::settings::CONNECT_DEADLINE;
use crate::shard::{ShardStore, ShardStores};
use async_trait::async_trait;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

/// The map is not asked for more often than this, whatever fails.
const REFRESH_INTERVAL: Duration = Duration::from_millis(500);

/// Reaches storage nodes over the network. The cluster map is asked for when it is first needed, and again when a node is
/// unknown, down or unreachable: it may have come back, perhaps at another address.
#[derive(Debug)]
pub struct StorePool {
    meta: Arc<dyn MetaStore>,
    cluster: ClusterId,
    /// One refresh at a time; who waited for it uses its result.
    refreshing: Semaphore,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    nodes: HashMap<NodeId, Member>,
    asked: Option<Instant>,
}

#[derive(Debug)]
struct Member {
    state: NodeState,
    client: Arc<StoreClient>,
}

impl StorePool {
    /// For the nodes that this metadata knows, which must belong to `cluster`.
    #[must_use]
    pub fn new(meta: Arc<dyn MetaStore>, cluster: ClusterId) -> Self {
        StorePool { meta, cluster, refreshing: Semaphore::new(1), known: Mutex::default() }
    }

    async fn find(&self, node: NodeId) -> Result<Arc<dyn ShardStore>> {
        if let Some(client) = self.usable(node)
            && client.connect().await.is_ok()
        {
            return Ok(client);
        }
        self.refresh().await?;
        let (state, client) = self
            .member(node)
            .ok_or_else(|| Error::new(Kind::Unavailable, format!("storage node {node} is not in the cluster map")))?;
        if state == NodeState::Down {
            let message = format!("storage node {node} ({}) is down", client.addr());
            return Err(Error::new(Kind::Unavailable, message));
        }
        client.connect().await.map_err(|error| unreachable(node, error))?;
        Ok(client)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn member(&self, node: NodeId) -> Option<(NodeState, Arc<StoreClient>)> {
        self.known().nodes.get(&node).map(|member| (member.state, Arc::clone(&member.client)))
    }

    fn usable(&self, node: NodeId) -> Option<Arc<StoreClient>> {
        let (state, client) = self.member(node)?;
        (state != NodeState::Down && !client.is_paused()).then_some(client)
    }

    /// Asks for the map unless that was done a moment ago.
    async fn refresh(&self) -> Result<()> {
        let _turn = self.refreshing.acquire().await;
        let is_fresh = self.known().asked.is_some_and(|asked| asked.elapsed() < REFRESH_INTERVAL);
        if is_fresh {
            return Ok(());
        }
        match self.meta.query(MetaQuery::Map).await? {
            MetaAnswer::Map(map) => {
                self.follow(map);
                Ok(())
            }
            _ => Err(Error::new(Kind::Protocol, "metadata answered another question than for the cluster map")),
        }
    }

    fn follow(&self, map: ClusterMap) {
        let mut known = self.known();
        known.asked = Some(Instant::now());
        let mut before = std::mem::take(&mut known.nodes);
        for record in map.nodes {
            let same = before.remove(&record.id).filter(|member| member.client.addr() == record.addr);
            let client = match same {
                Some(member) => member.client,
                None => Arc::new(StoreClient::new(record.addr, Some(self.cluster)).of_node(record.id)),
            };
            known.nodes.insert(record.id, Member { state: record.state, client });
        }
    }
}

/// Whatever keeps a node from being reached, to its user it is not available now.
fn unreachable(node: NodeId, error: Error) -> Error {
    let kind = if error.kind() == Kind::WrongCluster { Kind::WrongCluster } else { Kind::Unavailable };
    error.with_kind(kind).context(format!("storage node {node}"))
}

#[async_trait]
impl ShardStores for StorePool {
    async fn store(&self, node: NodeId) -> Result<Arc<dyn ShardStore>> {
        timeout(CONNECT_DEADLINE, self.find(node)).await.unwrap_or_else(|_| {
            let message = format!("storage node {node} cannot be reached within {} s", CONNECT_DEADLINE.as_secs());
            Err(Error::new(Kind::Unavailable, message))
        })
    }
}
