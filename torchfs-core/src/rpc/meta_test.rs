//! Finding the metadata leader, bridging its change, and following the cluster map, with metadata nodes made here.

use super::store_test::Running;
use super::*;
use crate::checksum::block_checksums;
use crate::ids::{ClientId, ClusterId, InodeId, MapVersion, NodeId, NodeUuid, RequestId, ShardId, StripeId};
use crate::meta::{
    Allocate, Allocation, Changes, ClusterMap, FsStat, Heartbeat, HeartbeatReply, MetaAnswer, MetaOp, MetaQuery,
    MetaReply, MetaStore, NodeRecord, NodeState, Watch,
};
use crate::placement::FailureDomain;
use crate::shard::memory::MemoryStore;
use crate::shard::{ShardStore, ShardStores};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;

const CLUSTER: ClusterId = ClusterId(7);

/// What the nodes of one made-up cluster share: who leads, and the answers given.
#[derive(Debug, Default)]
struct Cluster {
    leader: Mutex<Option<LeaderHint>>,
    applied: Mutex<BTreeMap<RequestId, usize>>,
    map: Mutex<Option<ClusterMap>>,
    maps_asked: AtomicUsize,
}

/// One node of it.
#[derive(Debug)]
struct Node {
    id: MetaId,
    cluster: Arc<Cluster>,
    behaviour: Mutex<Behaviour>,
    /// Whom it takes for the leader, if it has not heard of the election.
    misled: Mutex<Option<LeaderHint>>,
    attempts: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behaviour {
    Well,
    /// Does what it is asked and never answers.
    Mute,
    /// Has no quorum.
    Busy,
}

impl Node {
    async fn lead(&self) -> Result<(), MetaFault> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        let misled = self.misled.lock().expect("lock").clone();
        match misled.or_else(|| self.cluster.leader.lock().expect("lock").clone()) {
            Some(hint) if hint.id == self.id => Ok(()),
            hint => Err(MetaFault::NotLeader(hint)),
        }
    }

    async fn behave(&self) -> Result<(), MetaFault> {
        let behaviour = *self.behaviour.lock().expect("lock");
        match behaviour {
            Behaviour::Well => Ok(()),
            Behaviour::Mute => std::future::pending().await,
            Behaviour::Busy => Err(Error::new(Kind::Unavailable, "no quorum").into()),
        }
    }
}

#[async_trait]
impl MetaService for Node {
    async fn apply(&self, command: Command) -> Result<MetaReply, MetaFault> {
        self.lead().await?;
        self.cluster.applied.lock().expect("lock").entry(command.request).or_default();
        self.behave().await?;
        // As the state machine does: a command that comes again changes nothing.
        *self.cluster.applied.lock().expect("lock").entry(command.request).or_default() = 1;
        Ok(MetaReply::Done)
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer, MetaFault> {
        self.lead().await?;
        self.behave().await?;
        match query {
            MetaQuery::Map => {
                self.cluster.maps_asked.fetch_add(1, Ordering::SeqCst);
                Ok(MetaAnswer::Map(self.cluster.map.lock().expect("lock").clone().expect("a map")))
            }
            MetaQuery::FsStat => Ok(MetaAnswer::FsStat(FsStat::default())),
            _ => Err(Error::new(Kind::NotFound, "no such file").into()),
        }
    }

    async fn allocate(&self, _: Allocate) -> Result<Vec<Allocation>, MetaFault> {
        self.lead().await?;
        Ok(Vec::new())
    }

    async fn heartbeat(&self, _: Heartbeat) -> Result<HeartbeatReply, MetaFault> {
        self.lead().await?;
        Err(Error::new(Kind::NotFound, "never registered").into())
    }

    async fn watch(&self, watch: Watch) -> Result<Changes, MetaFault> {
        self.lead().await?;
        Ok(Changes { upto: watch.seen.unwrap_or(0), changed: None, lease: Duration::ZERO })
    }
}

struct Fixture {
    cluster: Arc<Cluster>,
    nodes: Vec<(Arc<Node>, Running)>,
}

impl Fixture {
    async fn start(count: u64) -> Fixture {
        let cluster = Arc::new(Cluster::default());
        let mut nodes = Vec::new();
        for id in 1..=count {
            let behaviour = Mutex::new(Behaviour::Well);
            let attempts = AtomicUsize::new(0);
            let (cluster, misled) = (Arc::clone(&cluster), Mutex::default());
            let node = Arc::new(Node { id: MetaId(id), cluster, behaviour, misled, attempts });
            let offered = Arc::clone(&node);
            nodes.push((node, Running::start(|server| server.meta(offered)).await));
        }
        let fixture = Fixture { cluster, nodes };
        fixture.elect(0);
        fixture
    }

    fn elect(&self, at: usize) {
        let (node, running) = &self.nodes[at];
        let hint = LeaderHint { id: node.id, addr: running.addr.clone() };
        *self.cluster.leader.lock().expect("lock") = Some(hint);
    }

    fn addrs(&self) -> Vec<String> {
        self.nodes.iter().map(|(_, running)| running.addr.clone()).collect()
    }

    fn set(&self, at: usize, behaviour: Behaviour) {
        *self.nodes[at].0.behaviour.lock().expect("lock") = behaviour;
    }
}

fn command(sequence: u64) -> Command {
    let request = RequestId { client: ClientId(1), sequence };
    Command { request, answered_below: sequence, op: MetaOp::SetProfile { ino: InodeId::ROOT, profile: None } }
}

async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    listener.local_addr().expect("bound").to_string()
}

#[tokio::test]
async fn the_leader_is_found_behind_any_address() {
    let fixture = Fixture::start(3).await;
    fixture.elect(2);
    // Only a follower and an address where nobody listens are given.
    let client = MetaClient::connect(vec![nobody().await, fixture.addrs()[0].clone()], None).await.expect("connects");
    assert_eq!(client.cluster(), CLUSTER);
    assert_eq!(client.apply(command(1)).await.expect("applied"), MetaReply::Done);
    assert!(
        client
            .allocate(Allocate { profile: crate::layout::Profile::DEFAULT, stripes: 1, shard_bytes: 1, avoid: vec![] })
            .await
            .is_ok()
    );
    let before = fixture.nodes[0].0.attempts.load(Ordering::SeqCst);
    client.query(MetaQuery::FsStat).await.expect("answered");
    assert_eq!(fixture.nodes[0].0.attempts.load(Ordering::SeqCst), before, "the leader is remembered");
}

#[tokio::test]
async fn an_outcome_is_not_tried_again() {
    let fixture = Fixture::start(1).await;
    let client = MetaClient::connect(fixture.addrs(), Some(CLUSTER)).await.expect("connects");
    assert_eq!(client.query(MetaQuery::Attr(InodeId(5))).await.expect_err("not there").kind(), Kind::NotFound);
    assert_eq!(fixture.nodes[0].0.attempts.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn the_death_of_the_leader_is_bridged() {
    let mut fixture = Fixture::start(3).await;
    let client = Arc::new(MetaClient::connect(fixture.addrs(), None).await.expect("connects"));
    client.apply(command(1)).await.expect("applied");
    let (_, dead) = fixture.nodes.remove(0);
    dead.stop().await;
    let waiting = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.apply(command(2)).await })
    };
    // An election: for a while the others still name the dead leader, then none.
    tokio::time::sleep(Duration::from_millis(200)).await;
    *fixture.cluster.leader.lock().expect("lock") = None;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    fixture.elect(1);
    waiting.await.expect("no panic").expect("applied by the new leader");
    let applied = fixture.cluster.applied.lock().expect("lock").clone();
    assert_eq!(applied.into_values().collect::<Vec<_>>(), [1, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_names_a_dead_leader_does_not_keep_a_client_from_the_others() {
    let fixture = Fixture::start(2).await;
    let dead = nobody().await;
    let addrs = [vec![dead.clone()], fixture.addrs()].concat();
    let client = MetaClient::connect(addrs, None).await.expect("connects");
    client.apply(command(1)).await.expect("applied");
    *fixture.nodes[0].0.misled.lock().expect("lock") = Some(LeaderHint { id: MetaId(9), addr: dead });
    fixture.elect(1);
    client.apply(command(2)).await.expect("applied by the new leader");
}

#[tokio::test]
async fn a_leader_that_falls_silent_is_left_when_another_leads() {
    let fixture = Fixture::start(3).await;
    let client = MetaClient::connect(fixture.addrs(), None).await.expect("connects");
    client.apply(command(1)).await.expect("applied");
    fixture.set(0, Behaviour::Mute);
    let elect = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fixture.elect(1);
    };
    let start = tokio::time::Instant::now();
    let (reply, ()) = tokio::join!(client.apply(command(2)), elect);
    reply.expect("applied by the new leader");
    // An order of magnitude under the operation's deadline; the attempt's own deadline is 2 s.
    assert!(start.elapsed() < Duration::from_secs(10));
    let applied = fixture.cluster.applied.lock().expect("lock").clone();
    assert_eq!(applied.len(), 2, "the retry carried the same id");
    assert!(fixture.nodes[1].0.attempts.load(Ordering::SeqCst) > 0);
}

#[tokio::test]
async fn a_leader_without_a_quorum_is_asked_again() {
    let fixture = Fixture::start(1).await;
    let client = MetaClient::connect(fixture.addrs(), None).await.expect("connects");
    fixture.set(0, Behaviour::Busy);
    let recover = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        fixture.set(0, Behaviour::Well);
    };
    let (reply, ()) = tokio::join!(client.apply(command(1)), recover);
    reply.expect("applied in the end");
    assert!(fixture.nodes[0].0.attempts.load(Ordering::SeqCst) > 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_leader_every_node_is_named_with_what_it_said() {
    let fixture = Fixture::start(2).await;
    let dead = nobody().await;
    let addrs = [fixture.addrs(), vec![dead.clone()]].concat();
    let client = MetaClient::connect(addrs, None).await.expect("connects");
    *fixture.cluster.leader.lock().expect("lock") = None;
    let text = client.apply(command(1)).await.expect_err("nobody leads").to_string();
    for addr in fixture.addrs() {
        assert!(text.contains(&format!("{addr} knows of no leader")), "{text}");
    }
    assert!(text.contains(&format!("{dead} refused the connection")), "{text}");
    assert!(text.contains("more than half of the metadata nodes must run"), "{text}");

    fixture.elect(0);
    fixture.set(0, Behaviour::Busy);
    let text = client.apply(command(2)).await.expect_err("no quorum").to_string();
    assert!(text.contains(&format!("{}: no quorum", fixture.addrs()[0])), "{text}");
}

#[tokio::test]
async fn an_unreachable_cluster_is_described_soon() {
    let stranger = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let strange = stranger.local_addr().expect("bound").to_string();
    let answering = tokio::spawn(async move {
        loop {
            let (mut stream, _) = stranger.accept().await.expect("accepts");
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let refused = nobody().await;
    let connecting = MetaClient::connect(vec![refused.clone(), strange.clone()], None);
    let error = tokio::time::timeout(Duration::from_secs(5), connecting).await.expect("soon").expect_err("nobody");
    answering.abort();
    assert_eq!(error.kind(), Kind::Unavailable);
    let text = error.to_string();
    assert!(text.contains(&format!("{refused} refused the connection")), "{text}");
    assert!(text.contains(&format!("{strange} does not speak the TorchFS protocol")), "{text}");

    for nonsense in [vec![], vec!["nonsense".to_owned()]] {
        assert_eq!(MetaClient::connect(nonsense, None).await.expect_err("nonsense").kind(), Kind::InvalidInput);
    }
    let fixture = Fixture::start(1).await;
    let error = MetaClient::connect(fixture.addrs(), Some(ClusterId(8))).await.expect_err("another cluster");
    assert_eq!(error.kind(), Kind::WrongCluster);
}

fn map_of(nodes: &[(u32, &str, NodeState)]) -> ClusterMap {
    let record = |&(id, addr, state): &(u32, &str, NodeState)| NodeRecord {
        id: NodeId(id),
        uuid: NodeUuid(id.into()),
        addr: addr.to_owned(),
        domain: FailureDomain::default(),
        capacity_bytes: 1,
        state,
    };
    ClusterMap { cluster: CLUSTER, version: MapVersion(1), nodes: nodes.iter().map(record).collect() }
}

async fn storage_node() -> Running {
    Running::start(|server| server.store(Arc::new(MemoryStore::default()))).await
}

#[tokio::test]
async fn the_pool_follows_the_cluster_map() {
    let fixture = Fixture::start(1).await;
    let meta: Arc<dyn MetaStore> = Arc::new(MetaClient::connect(fixture.addrs(), None).await.expect("connects"));
    let set = |nodes: &[_]| *fixture.cluster.map.lock().expect("lock") = Some(map_of(nodes));
    let (one, two) = (storage_node().await, storage_node().await);
    let old = one.addr.clone();
    set(&[(1, &old, NodeState::Up), (2, &two.addr, NodeState::Down)]);
    let pool = StorePool::new(meta, CLUSTER);
    let stat = pool.store(NodeId(1)).await.expect("up").list(None, 1).await;
    assert!(stat.expect("answers").is_empty());
    for _ in 0..20 {
        let error = pool.store(NodeId(2)).await.expect_err("down");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("storage node 2"), "{error}");
        assert_eq!(pool.store(NodeId(3)).await.expect_err("unknown").kind(), Kind::Unavailable);
    }
    assert!(fixture.cluster.maps_asked.load(Ordering::SeqCst) < 10, "the map is not asked for at every failure");

    // Node 1 comes back at another address, and node 2 is up again.
    one.stop().await;
    let moved = storage_node().await;
    set(&[(1, &moved.addr, NodeState::Up), (2, &two.addr, NodeState::Up)]);
    for node in [NodeId(1), NodeId(2)] {
        let found = async {
            while reach(&pool, node).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), found).await.expect("found again");
    }
}

/// A client with an old map must not write one node's shards to another.
#[tokio::test]
async fn the_pool_is_not_fooled_by_nodes_that_change_addresses() {
    let fixture = Fixture::start(1).await;
    let meta: Arc<dyn MetaStore> = Arc::new(MetaClient::connect(fixture.addrs(), None).await.expect("connects"));
    let set = |nodes: &[_]| *fixture.cluster.map.lock().expect("lock") = Some(map_of(nodes));
    let stores = [1, 2].map(|number| (NodeId(number), Arc::new(MemoryStore::default())));
    let serve = async |at: &str, (node, store): &(NodeId, Arc<MemoryStore>)| {
        Running::start_at(at, |server| server.node(*node).store(store.clone())).await
    };
    let (one, two) = (serve("127.0.0.1:0", &stores[0]).await, serve("127.0.0.1:0", &stores[1]).await);
    let (a, b) = (one.addr.clone(), two.addr.clone());
    set(&[(1, &a, NodeState::Up), (2, &b, NodeState::Up)]);
    let pool = StorePool::new(meta, CLUSTER);
    for (node, _) in &stores {
        reach(&pool, *node).await.expect("reached");
    }
    one.stop().await;
    two.stop().await;
    let _two = serve(&a, &stores[1]).await;
    let _one = serve(&b, &stores[0]).await;
    set(&[(1, &b, NodeState::Up), (2, &a, NodeState::Up)]);
    for (node, store) in &stores {
        let shard = ShardId { stripe: StripeId(node.0.into()), index: 0 };
        let put = async || pool.store(*node).await?.put(shard, vec![1; 10].into(), block_checksums(&[1; 10])).await;
        let stored = async {
            while put().await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), stored).await.expect("stored");
        store.stat(shard).await.expect("on the node it was meant for");
    }
}

async fn reach(pool: &StorePool, node: NodeId) -> Result<()> {
    pool.store(node).await?.list(None, 1).await.map(drop)
}
