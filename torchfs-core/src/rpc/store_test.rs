//! Shards and Raft over real sockets, against stores in memory and peers that misbehave.

use super::*;
use crate::checksum::block_checksums;
use crate::ids::{ClusterId, ShardId, StripeId};
use crate::settings::{CONNECTION_REQUESTS_MAX, GET_MANY_MAX};
use crate::shard::memory::MemoryStore;
use crate::shard::{ShardRead, ShardStore};
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const CLUSTER: ClusterId = ClusterId(7);
const PATIENCE: Duration = Duration::from_secs(30);

pub(super) fn shard(stripe: u64) -> ShardId {
    ShardId { stripe: StripeId(stripe), index: 0 }
}

pub(super) fn whole(stripe: u64, bytes: usize) -> ShardRead {
    ShardRead { shard: shard(stripe), range: 0..bytes as u32 }
}

pub(super) fn content(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| (n * 7) as u8).collect()
}

pub(super) struct Running {
    pub(super) addr: String,
    stop: CancellationToken,
    server: AbortOnDropHandle<()>,
}

impl Running {
    pub(super) async fn start(offer: impl FnOnce(Server) -> Server) -> Running {
        Running::start_at("127.0.0.1:0", offer).await
    }

    pub(super) async fn start_at(addr: &str, offer: impl FnOnce(Server) -> Server) -> Running {
        let listener = TcpListener::bind(addr).await.expect("binds");
        let addr = listener.local_addr().expect("bound").to_string();
        let (_, cluster) = watch::channel(Some(CLUSTER));
        let stop = CancellationToken::new();
        let server = tokio::spawn(offer(Server::new(cluster)).run(listener, stop.clone()));
        Running { addr, stop, server: AbortOnDropHandle::new(server) }
    }

    pub(super) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.server).await.expect("in time").expect("no panic");
    }
}

async fn filled(stripes: u64, bytes: usize) -> Arc<MemoryStore> {
    let store = Arc::new(MemoryStore::default());
    let data = content(bytes);
    for stripe in 0..stripes {
        store.put(shard(stripe), data.clone().into(), block_checksums(&data)).await.expect("stored");
    }
    store
}

/// A store whose `get` waits until it is let go on, and which counts.
#[derive(Debug)]
struct Gated {
    inner: Arc<MemoryStore>,
    gate: Semaphore,
    now: AtomicUsize,
    most: AtomicUsize,
    puts: AtomicUsize,
}

impl Gated {
    fn new(inner: Arc<MemoryStore>) -> Arc<Self> {
        let zero = AtomicUsize::default;
        Arc::new(Gated { inner, gate: Semaphore::new(0), now: zero(), most: zero(), puts: zero() })
    }
}

#[async_trait]
impl ShardStore for Gated {
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()> {
        self.now.fetch_add(1, Ordering::SeqCst);
        self.gate.acquire().await.expect("open").forget();
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.inner.put(shard, data, checksums).await
    }

    async fn get(&self, read: ShardRead) -> Result<ShardBlocks> {
        // Later reads are answered first, so that answers come out of order.
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        self.gate.acquire().await.expect("open").forget();
        for _ in 0..(64 - read.shard.stripe.0 % 64) {
            tokio::task::yield_now().await;
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        self.inner.get(read).await
    }

    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        self.inner.get_many(reads).await
    }

    async fn delete(&self, shards: Vec<ShardId>) -> Result<()> {
        self.inner.delete(shards).await
    }

    async fn stat(&self, shard: ShardId) -> Result<ShardStat> {
        self.inner.stat(shard).await
    }

    async fn list(&self, after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>> {
        self.inner.list(after, limit).await
    }
}

async fn until(what: impl Fn() -> bool) {
    let wait = async {
        while !what() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("happens in time");
}

#[tokio::test]
async fn every_request_goes_there_and_back() {
    let node = Running::start(|server| server.store(Arc::new(MemoryStore::default()))).await;
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    let bytes = content(1_000_000);
    client.put(shard(1), bytes.clone().into(), block_checksums(&bytes)).await.expect("stored");
    let blocks = client.get(whole(1, bytes.len())).await.expect("read");
    assert_eq!(blocks.data.0, bytes);
    assert_eq!(blocks.checksums, block_checksums(&bytes));
    let error = client.get(whole(9, 1)).await.expect_err("not there");
    assert_eq!(error.kind(), Kind::NotFound);
    assert_eq!(client.stat(shard(1)).await.expect("known").bytes, 1_000_000);
    assert_eq!(client.list(None, 10).await.expect("listed").len(), 1);
    client.delete(vec![shard(1)]).await.expect("deleted");
    assert!(client.list(None, 10).await.expect("listed").is_empty());
}

#[tokio::test]
async fn payloads_of_an_answer_share_one_allocation() {
    let store = filled(3, 70_000).await;
    let node = Running::start(|server| server.store(store)).await;
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    let answers = client.get_many((0..3).map(|stripe| whole(stripe, 70_000)).collect()).await.expect("read");
    let parts: Vec<Bytes> = answers.into_iter().map(|answer| answer.expect("read").data.0).collect();
    for (number, part) in parts.iter().enumerate() {
        assert_eq!(part[..], content(70_000));
        assert_eq!(part.as_ptr() as usize, parts[0].as_ptr() as usize + number * 70_000);
    }
}

#[tokio::test]
async fn more_reads_than_one_frame_holds_are_split() {
    let store = filled(1, 4 << 20).await;
    let node = Running::start(|server| server.store(store)).await;
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    let mut reads = vec![whole(0, 4 << 20); 40];
    reads.extend(vec![whole(0, 1); GET_MANY_MAX]);
    let answers = client.get_many(reads).await.expect("read");
    assert_eq!(answers.len(), 40 + GET_MANY_MAX);
    for (at, answer) in answers.into_iter().enumerate() {
        let expected = if at < 40 { 4 << 20 } else { 65_536 };
        assert_eq!(answer.expect("read").data.len(), expected);
    }
}

#[tokio::test]
async fn an_answer_too_large_for_a_frame_is_an_error_and_not_the_end() {
    #[derive(Debug)]
    struct Inflating;

    #[async_trait]
    impl RaftService for Inflating {
        async fn call(&self, request: Payload) -> Result<Payload> {
            Ok(Payload::from(vec![0; request.len() * crate::settings::FRAME_BYTES_MAX]))
        }
    }
    let node = Running::start(|server| server.raft(Arc::new(Inflating))).await;
    let (_, cluster) = watch::channel(Some(CLUSTER));
    let client = RaftClient::new(&node.addr, cluster);
    let error = client.call(vec![1; 2].into(), PATIENCE).await.expect_err("too large");
    assert_eq!(error.kind(), Kind::TooLarge);
    assert!(client.call(Payload::default(), PATIENCE).await.expect("still there").is_empty());
}

#[tokio::test]
async fn two_hundred_requests_share_a_connection_and_are_bounded() {
    let store = Gated::new(filled(200, 1000).await);
    let offered = Arc::clone(&store);
    let node = Running::start(|server| server.store(offered)).await;
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    let mut reads: FuturesUnordered<_> = (0..200)
        .map(|stripe| {
            let client = &client;
            async move { (stripe, client.get(whole(stripe, 1000)).await) }
        })
        .collect();
    let collect = async {
        let mut order = Vec::new();
        while let Some((stripe, blocks)) = reads.next().await {
            assert_eq!(blocks.expect("read").data.0, content(1000));
            order.push(stripe);
        }
        order
    };
    let release = async {
        until(|| store.now.load(Ordering::SeqCst) == CONNECTION_REQUESTS_MAX).await;
        store.gate.add_permits(1000);
    };
    let (mut order, ()) = tokio::join!(collect, release);
    assert_eq!(store.most.load(Ordering::SeqCst), CONNECTION_REQUESTS_MAX, "never more at once");
    assert!(!order.is_sorted(), "answers overtake each other");
    order.sort_unstable();
    assert_eq!(order, (0..200).collect::<Vec<u64>>());
}

#[tokio::test]
async fn a_client_that_ignores_the_bound_is_held_back() {
    // Written by hand: the client of this crate keeps the bound by itself.
    let store = Gated::new(filled(1, 1000).await);
    let offered = Arc::clone(&store);
    let node = Running::start(|server| server.store(offered)).await;
    let mut stream = TcpStream::connect(&node.addr).await.expect("connects");
    handshake::greet(&mut stream, &node.addr, Service::Store, Default::default()).await.expect("greeted");
    for id in 0..400 {
        let message = StoreRpcRequest::Get { read: whole(0, 1000) };
        let mut frame = bytes::BytesMut::new();
        let call = transport::Call::Request { id, deadline_ms: 60_000, message };
        codec::encode(&call, &mut frame).expect("encodes");
        stream.write_all(&frame).await.expect("taken by the kernel");
    }
    until(|| store.now.load(Ordering::SeqCst) == CONNECTION_REQUESTS_MAX).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(store.most.load(Ordering::SeqCst), CONNECTION_REQUESTS_MAX);
    node.stop().await;
}

#[tokio::test]
async fn a_change_that_was_begun_is_finished_though_nobody_waits() {
    let store = Gated::new(Arc::new(MemoryStore::default()));
    let offered = Arc::clone(&store);
    let node = Running::start(|server| server.store(offered)).await;
    let client = Arc::new(StoreClient::new(&node.addr, Some(CLUSTER)));
    let putting = {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.put(shard(1), content(10).into(), block_checksums(&content(10))).await })
    };
    until(|| store.now.load(Ordering::SeqCst) == 1).await;
    putting.abort();
    drop(client);
    tokio::time::sleep(Duration::from_millis(50)).await;
    store.gate.add_permits(1);
    until(|| store.puts.load(Ordering::SeqCst) == 1).await;
    until(|| store.inner.held() == [shard(1)]).await;
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let store = filled(1, 1000).await;
    let offered = Arc::clone(&store);
    let node = Running::start(|server| server.store(offered)).await;
    let addr = node.addr.clone();
    let client = StoreClient::new(&addr, Some(CLUSTER));
    client.get(whole(0, 1000)).await.expect("read");
    node.stop().await;
    let error = client.get(whole(0, 1000)).await.expect_err("stopped");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains(&addr), "{error}");
    let _node = Running::start_at(&addr, |server| server.store(store)).await;
    let again = async {
        while client.get(whole(0, 1000)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.expect("found again");
}

#[tokio::test]
async fn stopping_does_not_wait_for_requests_that_hang() {
    let store = Gated::new(filled(1, 1000).await);
    let offered = Arc::clone(&store);
    let node = Running::start(|server| server.store(offered)).await;
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    let stop = async {
        until(|| store.now.load(Ordering::SeqCst) == 1).await;
        node.stop().await;
    };
    let (answer, ()) = tokio::join!(client.get(whole(0, 1000)), stop);
    assert_eq!(answer.expect_err("the server is gone").kind(), Kind::Unavailable);
}

#[tokio::test]
async fn a_hung_server_ends_at_the_deadline() {
    #[derive(Debug)]
    struct Hung;

    #[async_trait]
    impl RaftService for Hung {
        async fn call(&self, _: Payload) -> Result<Payload> {
            std::future::pending().await
        }
    }
    let node = Running::start(|server| server.raft(Arc::new(Hung))).await;
    let (_, cluster) = watch::channel(Some(CLUSTER));
    let client = RaftClient::new(&node.addr, cluster);
    let error = client.call(Payload::default(), Duration::from_millis(50)).await.expect_err("hung");
    assert_eq!(error.kind(), Kind::Timeout);
}

#[tokio::test]
async fn strangers_do_not_disturb_a_server() {
    let store = filled(1, 1000).await;
    let node = Running::start(|server| server.store(store)).await;
    let mut open = Vec::new();
    for greeting in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"", b"TORCHFS\0", &[0xff; 100]] {
        let mut stream = TcpStream::connect(&node.addr).await.expect("connects");
        stream.write_all(greeting).await.expect("sends");
        open.push(stream);
    }
    // A peer with good manners at first, whose first frame announces 4 GiB.
    let mut liar = TcpStream::connect(&node.addr).await.expect("connects");
    handshake::greet(&mut liar, &node.addr, Service::Store, Default::default()).await.expect("greeted");
    liar.write_all(b"TFm\x01\xff\xff\xff\xff\xff\xff\xff\xff").await.expect("sends");
    let mut end = Vec::new();
    let read = tokio::time::timeout(PATIENCE, liar.read_to_end(&mut end)).await.expect("is hung up on");
    assert!(read.map_or(true, |bytes| bytes == 0));

    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    client.get(whole(0, 1000)).await.expect("served as ever");
}

/// A connection made by hand, from which a few bytes are sent. Then the clock runs ahead whenever nothing else happens.
pub(super) async fn silent_after(node: &Running, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(&node.addr).await.expect("connects");
    handshake::greet(&mut stream, &node.addr, Service::Store, Default::default()).await.expect("greeted");
    stream.write_all(bytes).await.expect("sends");
    stream
}

/// How long until the server hangs up.
async fn hung_up_after(mut stream: TcpStream) -> Duration {
    let start = tokio::time::Instant::now();
    let mut end = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(3600), stream.read_to_end(&mut end)).await;
    assert!(read.expect("is hung up on").map_or(true, |bytes| bytes == 0));
    start.elapsed()
}

#[tokio::test]
async fn a_frame_that_stops_halfway_costs_its_buffer_for_seconds_only() {
    let node = Running::start(|server| server.store(Arc::new(MemoryStore::default()))).await;
    let message = StoreRpcRequest::Put { shard: shard(1), data: content(200_000).into(), checksums: vec![0; 4] };
    let mut frame = bytes::BytesMut::new();
    let call = transport::Call::Request { id: 1, deadline_ms: 60_000, message };
    let payloads = codec::encode(&call, &mut frame).expect("encodes");
    frame.extend_from_slice(&payloads[0]);
    tokio::time::pause();
    for sent in [3, codec::HEADER_BYTES + 1, 100_000] {
        let took = hung_up_after(silent_after(&node, &frame[..sent]).await).await;
        assert!((Duration::from_secs(25)..Duration::from_secs(60)).contains(&took), "{took:?} after {sent} bytes");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_its_client_does_not_notice() {
    let node = Running::start(|server| server.store(Arc::new(MemoryStore::default()))).await;
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    let data = content(1000);
    client.put(shard(1), data.clone().into(), block_checksums(&data)).await.expect("stored");
    let silent = silent_after(&node, b"").await;
    tokio::time::pause();
    let took = hung_up_after(silent).await;
    assert!((Duration::from_secs(240)..Duration::from_secs(600)).contains(&took), "{took:?}");
    tokio::time::sleep(Duration::from_secs(600)).await;
    tokio::time::resume();
    client.get(whole(1, 1000)).await.expect("read over a new connection");
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_is_a_protocol_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound").to_string();
    let garbage = async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        handshake::welcome(&mut stream, &[Service::Store], handshake::Peer { cluster: Some(CLUSTER), node: None })
            .await
            .expect("greeted");
        stream.write_all(&[0x55; 64]).await.expect("sends");
        // Stays open: it is the garbage that ends the request.
        std::future::pending::<()>().await;
    };
    let _server = AbortOnDropHandle::new(tokio::spawn(garbage));
    let client = StoreClient::new(addr, Some(CLUSTER));
    let error = client.get(whole(0, 1)).await.expect_err("garbage");
    assert!(matches!(error.kind(), Kind::Protocol | Kind::Unavailable), "{error:?}");
}

#[tokio::test]
async fn another_kind_of_node_and_another_cluster_are_told_apart() {
    let node = Running::start(|server| server.store(Arc::new(MemoryStore::default()))).await;
    let error = StoreClient::new(&node.addr, Some(ClusterId(8))).connect().await.expect_err("another cluster");
    assert_eq!(error.kind(), Kind::WrongCluster);
    let error = MetaClient::connect(vec![node.addr.clone()], None).await.expect_err("no metadata node");
    assert_eq!(error.kind(), Kind::Protocol);
    assert!(error.to_string().contains("is a storage node, a metadata node is needed"), "{error}");
}
