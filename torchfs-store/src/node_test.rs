//! A whole node against metadata that does what a test tells it.

use crate::disk::{DiskStore, Registration};
use crate::{Capacity, StoreConfig, StoreNode, gc};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};
use torchfs_core::checksum::block_checksums;
use torchfs_core::meta::{
    Allocate, Allocation, Changes, ClusterMap, Command, Heartbeat, HeartbeatReply, MetaAnswer, MetaOp, MetaQuery,
    MetaReply, MetaSession, MetaStore, NodeRecord, NodeState, Watch,
};
use torchfs_core::rpc::{MetaFault, MetaService, Server, StorePool};
use torchfs_core::shard::{ShardRead, ShardStore, ShardStores};
use torchfs_core::{ClusterId, Error, Kind, MapVersion, NodeId, NodeUuid, Result, ShardId, StripeId};

const CLUSTER: ClusterId = ClusterId(0xc1);
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug)]
struct FakeMeta {
    cluster: ClusterId,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    nodes: BTreeMap<NodeUuid, NodeRecord>,
    registrations: usize,
    beats: Vec<Heartbeat>,
    delete: Vec<ShardId>,
    abandoned: BTreeSet<StripeId>,
    asked: BTreeSet<StripeId>,
    failure: Option<Kind>,
    /// Registrations that are refused before one is taken.
    refuse: usize,
}

impl FakeMeta {
    fn new(cluster: ClusterId) -> Arc<Self> {
        Arc::new(FakeMeta { cluster, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with it")
    }

    /// Waits until a beat is as wanted.
    async fn beat(&self, what: &str, wanted: impl Fn(&Heartbeat) -> bool) -> Heartbeat {
        let start = tokio::time::Instant::now();
        loop {
            if let Some(beat) = self.state().beats.iter().find(|beat| wanted(beat)) {
                return beat.clone();
            }
            assert!(start.elapsed() < PATIENCE, "no heartbeat with {what}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[async_trait]
impl MetaStore for FakeMeta {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        let MetaOp::Register { uuid, addr, domain, capacity_bytes } = command.op else { panic!("{:?}", command.op) };
        let mut state = self.state();
        if state.refuse > 0 {
            state.refuse -= 1;
            return Err(Error::new(Kind::Exists, "the node runs somewhere else"));
        }
        state.registrations += 1;
        let next = NodeId(state.nodes.len() as u32 + 1);
        let id = state.nodes.get(&uuid).map_or(next, |record| record.id);
        state.nodes.insert(uuid, NodeRecord { id, uuid, addr, domain, capacity_bytes, state: NodeState::Up });
        Ok(MetaReply::Registered { node: id, cluster: self.cluster })
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer> {
        let mut state = self.state();
        match query {
            MetaQuery::Map => {
                let nodes = state.nodes.values().cloned().collect();
                Ok(MetaAnswer::Map(ClusterMap { cluster: self.cluster, version: MapVersion(1), nodes }))
            }
            MetaQuery::Abandoned(stripes) => {
                state.asked.extend(&stripes);
                Ok(MetaAnswer::Stripes(stripes.into_iter().filter(|id| state.abandoned.contains(id)).collect()))
            }
            other => panic!("{other:?}"),
        }
    }

    async fn allocate(&self, _: Allocate) -> Result<Vec<Allocation>> {
        Err(Error::new(Kind::Unsupported, "not in this test"))
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply> {
        let mut state = self.state();
        if let Some(kind) = state.failure {
            return Err(Error::new(kind, "as the test wants"));
        }
        if !state.nodes.contains_key(&beat.uuid) {
            return Err(Error::new(Kind::NotFound, "never registered"));
        }
        state.delete.retain(|shard| !beat.deleted.contains(shard));
        state.beats.push(beat);
        Ok(HeartbeatReply { map: MapVersion(1), delete: state.delete.clone(), horizon: StripeId(0) })
    }

    async fn watch(&self, _: Watch) -> Result<Changes> {
        Err(Error::new(Kind::Unsupported, "not in this test"))
    }
}

#[async_trait]
impl MetaService for FakeMeta {
    async fn apply(&self, command: Command) -> Result<MetaReply, MetaFault> {
        Ok(MetaStore::apply(self, command).await?)
    }
    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer, MetaFault> {
        Ok(MetaStore::query(self, query).await?)
    }
    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>, MetaFault> {
        Ok(MetaStore::allocate(self, request).await?)
    }
    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply, MetaFault> {
        Ok(MetaStore::heartbeat(self, beat).await?)
    }
    async fn watch(&self, watch: Watch) -> Result<Changes, MetaFault> {
        Ok(MetaStore::watch(self, watch).await?)
    }
}

/// Serves metadata over the network until the guard is dropped.
fn serve(meta: Arc<FakeMeta>, listener: TcpListener) -> DropGuard {
    let stop = CancellationToken::new();
    let (_, cluster) = watch::channel(Some(meta.cluster));
    tokio::spawn(Server::new(cluster).meta(meta).run(listener, stop.clone()));
    stop.drop_guard()
}

async fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").await.expect("binds")
}

fn config(data: &Path, metas: Vec<String>) -> StoreConfig {
    let domain = "host=h1".parse().expect("parses");
    StoreConfig { metas, data: data.to_owned(), capacity: Capacity::Bytes(1 << 30), domain, advertise: None }
}

async fn start(meta: &Arc<FakeMeta>, data: &Path) -> Result<StoreNode> {
    let meta = Arc::clone(meta) as Arc<dyn MetaStore>;
    StoreNode::start_with(meta, config(data, Vec::new()), listener().await).await
}

fn shard(stripe: u64, index: u8) -> ShardId {
    ShardId { stripe: StripeId(stripe), index }
}

async fn put(store: &dyn ShardStore, shard: ShardId) {
    let data = Bytes::from_static(b"some bytes");
    store.put(shard, data.clone().into(), block_checksums(&data)).await.expect("put");
}

async fn get(store: &dyn ShardStore, shard: ShardId) -> Result<Bytes> {
    let blocks = store.get(ShardRead { shard, range: 0..10 }).await?;
    Ok(blocks.data.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_serves_and_is_the_same_node_after_a_restart() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta = FakeMeta::new(CLUSTER);
    let meta_listener = listener().await;
    let metas = vec![meta_listener.local_addr().expect("address").to_string()];
    let _serving = serve(meta.clone(), meta_listener);

    let node = StoreNode::start(config(data.path(), metas.clone()), listener().await).await.expect("starts");
    assert_eq!(node.id(), NodeId(1));
    let pool = StorePool::new(meta.clone(), CLUSTER);
    put(pool.store(NodeId(1)).await.expect("reached").as_ref(), shard(1, 0)).await;
    let beat = meta.beat("one shard", |beat| beat.load.shards == 1).await;
    assert_eq!((beat.node, beat.addr.as_str(), beat.load.capacity_bytes), (NodeId(1), node.addr(), 1 << 30));
    assert_eq!(beat.load.used_bytes, 4096);
    node.shutdown().await;

    let node = StoreNode::start(config(data.path(), metas), listener().await).await.expect("starts again");
    assert_eq!(node.id(), NodeId(1));
    assert_eq!(meta.state().nodes.len(), 1);
    assert_eq!(meta.state().nodes[&beat.uuid].addr, node.addr(), "the new address is known");
    let pool = StorePool::new(meta.clone(), CLUSTER);
    let bytes = get(pool.store(NodeId(1)).await.expect("reached").as_ref(), shard(1, 0)).await.expect("reads");
    assert_eq!(bytes, Bytes::from_static(b"some bytes"));
    node.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_started_before_its_metadata_waits_for_it() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta_listener = listener().await;
    let addr = meta_listener.local_addr().expect("address");
    drop(meta_listener);
    let starting = tokio::spawn(StoreNode::start(config(data.path(), vec![addr.to_string()]), listener().await));
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!starting.is_finished(), "it waits");
    let _serving = serve(FakeMeta::new(CLUSTER), TcpListener::bind(addr).await.expect("binds"));
    let node = tokio::time::timeout(PATIENCE, starting).await.expect("in time").expect("no panic").expect("starts");
    node.shutdown().await;
}

#[tokio::test]
async fn a_folder_of_another_cluster_is_refused_and_not_registered() {
    let data = tempfile::tempdir().expect("temp folder");
    start(&FakeMeta::new(CLUSTER), data.path()).await.expect("starts").shutdown().await;
    let other = FakeMeta::new(ClusterId(0xc2));
    let error = start(&other, data.path()).await.expect_err("refused");
    assert_eq!(error.kind(), Kind::WrongCluster);
    for part in [data.path().display().to_string(), CLUSTER.to_string(), ClusterId(0xc2).to_string()] {
        assert!(error.to_string().contains(&part), "{part} in: {error}");
    }
    assert_eq!(other.state().registrations, 0);
    start(&FakeMeta::new(CLUSTER), data.path()).await.expect("its own cluster takes it").shutdown().await;
}

#[tokio::test]
async fn an_address_that_others_cannot_use_is_refused() {
    let data = tempfile::tempdir().expect("temp folder");
    let start = async |advertise: Option<&str>| {
        let any = TcpListener::bind("0.0.0.0:0").await.expect("binds");
        let config = StoreConfig { advertise: advertise.map(str::to_owned), ..config(data.path(), Vec::new()) };
        StoreNode::start_with(FakeMeta::new(CLUSTER), config, any).await
    };
    let error = start(None).await.expect_err("0.0.0.0");
    assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("--advertise"), "{error}");
    for bad in ["", "host", ":7000", "host:", "host:port", "host:0"] {
        assert_eq!(start(Some(bad)).await.expect_err(bad).kind(), Kind::InvalidInput);
    }
    let node = start(Some("storage-1.example:7000")).await.expect("starts");
    assert_eq!(node.addr(), "storage-1.example:7000");
    node.shutdown().await;
}

#[tokio::test]
async fn it_deletes_what_it_is_told_and_confirms_it() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta = FakeMeta::new(CLUSTER);
    let node = start(&meta, data.path()).await.expect("starts");
    for index in 0..5 {
        put(node.store(), shard(1, index)).await;
    }
    let doomed = [shard(1, 1), shard(1, 3), shard(9, 9)];
    meta.state().delete = doomed.to_vec();
    let beat = meta.beat("deletions", |beat| !beat.deleted.is_empty()).await;
    assert_eq!(beat.deleted.iter().copied().collect::<BTreeSet<_>>(), doomed.into());
    assert!(meta.state().delete.is_empty());
    let left: Vec<u8> = node.store().list(None, 10).await.expect("lists").iter().map(|stat| stat.shard.index).collect();
    assert_eq!(left, [0, 2, 4]);
    meta.state().beats.clear();
    meta.beat("nothing more to confirm", |beat| beat.deleted.is_empty() && beat.load.shards == 3).await;
    node.shutdown().await;
}

#[tokio::test]
async fn damage_reaches_the_leader_also_when_nobody_reads_it() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta = FakeMeta::new(CLUSTER);
    let node = start(&meta, data.path()).await.expect("starts");
    put(node.store(), shard(1, 0)).await;
    put(node.store(), shard(1, 1)).await;
    node.shutdown().await;
    let path = data.path().join("data/0000000000000/0000000000000001-01");
    let mut bytes = std::fs::read(&path).expect("reads");
    bytes[45] ^= 1;
    std::fs::write(&path, bytes).expect("writes");
    let node = start(&meta, data.path()).await.expect("starts again");
    let beat = meta.beat("damage", |beat| !beat.damaged.is_empty()).await;
    assert_eq!(beat.damaged, [shard(1, 1)]);
    node.shutdown().await;
}

#[tokio::test]
async fn a_node_that_metadata_has_forgotten_registers_again() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta = FakeMeta::new(CLUSTER);
    let node = start(&meta, data.path()).await.expect("starts");
    meta.beat("anything", |_| true).await;
    {
        let mut state = meta.state();
        state.nodes.clear();
        state.beats.clear();
    }
    meta.beat("anything, again", |_| true).await;
    assert_eq!(meta.state().registrations, 2);
    node.shutdown().await;
}

#[tokio::test]
async fn beats_go_on_after_failures_and_end_with_another_cluster() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta = FakeMeta::new(CLUSTER);
    let node = start(&meta, data.path()).await.expect("starts");
    meta.state().failure = Some(Kind::Unavailable);
    tokio::time::sleep(Duration::from_millis(700)).await;
    {
        let mut state = meta.state();
        state.failure = None;
        state.beats.clear();
    }
    meta.beat("anything", |_| true).await;
    assert!(tokio::time::timeout(Duration::from_millis(50), node.wait()).await.is_err(), "it goes on");
    meta.state().failure = Some(Kind::WrongCluster);
    let end = tokio::time::timeout(PATIENCE, node.wait()).await.expect("it ends");
    assert_eq!(end.expect_err("with the reason").kind(), Kind::WrongCluster);
    node.shutdown().await;
}

#[tokio::test]
async fn a_place_that_stays_taken_is_an_error_and_one_that_becomes_free_is_not() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta = FakeMeta::new(CLUSTER);
    meta.state().refuse = 3;
    start(&meta, data.path()).await.expect("the one before has ended").shutdown().await;
    meta.state().refuse = usize::MAX;
    let starting = tokio::time::timeout(PATIENCE, start(&meta, data.path())).await.expect("it gives up");
    let error = starting.expect_err("refused");
    assert!(error.kind() == Kind::Exists && error.to_string().contains("somewhere else"), "{error}");
    assert_eq!(meta.state().registrations, 1);
}

#[tokio::test]
async fn a_node_whose_place_was_taken_ends_and_serves_no_more() {
    let data = tempfile::tempdir().expect("temp folder");
    let meta = FakeMeta::new(CLUSTER);
    let node = start(&meta, data.path()).await.expect("starts");
    meta.state().failure = Some(Kind::Exists);
    let end = tokio::time::timeout(PATIENCE, node.wait()).await.expect("it ends");
    assert_eq!(end.expect_err("with the reason").kind(), Kind::Exists);
    let begin = tokio::time::Instant::now();
    while tokio::net::TcpStream::connect(node.addr()).await.is_ok() {
        assert!(begin.elapsed() < PATIENCE, "it still listens");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.shutdown().await;
}

#[tokio::test]
async fn only_abandoned_stripes_below_the_horizon_are_collected() {
    let data = tempfile::tempdir().expect("temp folder");
    let store = DiskStore::open(data.path(), None).expect("opens");
    store.register(Registration { cluster: CLUSTER, node: NodeId(1) }).expect("registers");
    for stripe in [1, 2, 0x3000, 0x5000, 0x5001] {
        put(&store, shard(stripe, 0)).await;
    }
    let meta = FakeMeta::new(CLUSTER);
    meta.state().abandoned = [1, 0x3000, 0x5001].map(StripeId).into();
    let session = MetaSession::new(meta.clone());
    assert_eq!(gc::collect(&store, &session, StripeId(0x5001)).await.expect("collects"), 2);
    let left: Vec<u64> = store.list(None, 10).await.expect("lists").iter().map(|stat| stat.shard.stripe.0).collect();
    assert_eq!(left, [2, 0x5000, 0x5001]);
    assert_eq!(meta.state().asked, [1, 2, 0x3000, 0x5000].map(StripeId).into());
    assert_eq!(std::fs::read_dir(data.path().join("data")).expect("lists").count(), 2, "empty groups are gone");
}
