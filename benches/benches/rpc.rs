//! Shard reads over RPC against raw TCP with the same pattern: a request of a few bytes, an answer of 1 MiB, one
//! connection on loopback.
//!
//! Client and server are two runtimes in this process, as they are two processes in a cluster; the table also has a row for both
//! on one runtime, as in an embedded cluster. There, one request at a time, raw TCP draws one of two rates and keeps
//! it: that of one worker with both ends or that of two.
//!
//! The ratios are what counts, so they are measured in turns: a disturbance hits both sides.
//!
//! ```text
//! cargo bench -p torchfs-benches --bench rpc
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use futures::{StreamExt, stream};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use torchfs_core::checksum::block_checksums;
use torchfs_core::rpc::{self, Payload, StoreClient};
use torchfs_core::shard::{ShardBlocks, ShardRead, ShardStat, ShardStore};
use torchfs_core::{ClusterId, Error, Kind, Result, ShardId, StripeId};

const ANSWER_BYTES: usize = 1024 * 1024;
const REQUEST_BYTES: usize = 16;
const IN_FLIGHT: [usize; 2] = [8, 1];
const ROUNDS: usize = 21;
const ROUND_REQUESTS: usize = 256;

/// Gives the same bytes for every shard, so that only the wire is measured.
#[derive(Debug)]
struct Constant {
    data: Bytes,
    checksums: Vec<u32>,
}

fn refused<T>() -> Result<T> {
    Err(Error::new(Kind::Unsupported, "this store is only read from"))
}

#[async_trait]
impl ShardStore for Constant {
    async fn put(&self, _: ShardId, _: Payload, _: Vec<u32>) -> Result<()> {
        Ok(())
    }

    async fn get(&self, _: ShardRead) -> Result<ShardBlocks> {
        Ok(ShardBlocks { offset: 0, data: self.data.clone().into(), checksums: self.checksums.clone() })
    }

    async fn get_many(&self, _: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        refused()
    }

    async fn delete(&self, _: Vec<ShardId>) -> Result<()> {
        Ok(())
    }

    async fn stat(&self, _: ShardId) -> Result<ShardStat> {
        refused()
    }

    async fn list(&self, _: Option<ShardId>, _: u32) -> Result<Vec<ShardStat>> {
        refused()
    }
}

/// Both ends of the two connections.
struct Bench {
    runtime: Runtime,
    _server: Option<Runtime>,
    raw: Arc<Mutex<TcpStream>>,
    client: Arc<StoreClient>,
    data: Bytes,
}

/// Where the server runs.
#[derive(Clone, Copy, Debug)]
enum Server {
    Apart,
    OnTheSameRuntime,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

impl Bench {
    fn new(server: Server) -> Self {
        let client = runtime();
        let server = match server {
            Server::Apart => Some(runtime()),
            Server::OnTheSameRuntime => None,
        };
        let data = Bytes::from((0..ANSWER_BYTES).map(|n| (n * 31) as u8).collect::<Vec<u8>>());
        let (raw_addr, addr) = server.as_ref().unwrap_or(&client).block_on(serve(data.clone()));
        let raw = client.block_on(TcpStream::connect(raw_addr)).expect("connects");
        raw.set_nodelay(true).expect("sets");
        let store = StoreClient::new(addr.to_string(), None);
        Bench { runtime: client, _server: server, raw: Arc::new(Mutex::new(raw)), client: Arc::new(store), data }
    }

    /// Time for `count` answers, `in_flight` requests at a time, received into `buffers` buffers in turn.
    fn raw(&self, count: usize, in_flight: usize, buffers: usize) -> Duration {
        let raw = Arc::clone(&self.raw);
        self.run(async move { read_raw(&mut *raw.lock().await, count, in_flight, buffers).await })
    }

    fn rpc(&self, count: usize, in_flight: usize) -> Duration {
        let client = Arc::clone(&self.client);
        self.run(async move {
            let reads = stream::iter(0..count).map(|number| get(&client, number));
            reads.buffer_unordered(in_flight).for_each(|()| async {}).await;
        })
    }

    /// On a worker of the runtime, where the tasks of a real client are.
    fn run(&self, work: impl Future<Output = ()> + Send + 'static) -> Duration {
        self.runtime.block_on(async {
            let start = Instant::now();
            tokio::spawn(work).await.expect("no panic");
            start.elapsed()
        })
    }
}

/// Serves the raw pattern at the first address and the RPC at the second.
async fn serve(data: Bytes) -> (SocketAddr, SocketAddr) {
    let raw = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addrs = (raw.local_addr().expect("bound"), listener.local_addr().expect("bound"));
    tokio::spawn(serve_raw(raw, data.clone()));
    let (_, cluster) = watch::channel(Some(ClusterId(1)));
    let store = Constant { checksums: block_checksums(&data), data };
    tokio::spawn(rpc::Server::new(cluster).store(Arc::new(store)).run(listener, CancellationToken::new()));
    addrs
}

async fn serve_raw(listener: TcpListener, data: Bytes) {
    let (mut stream, _) = listener.accept().await.expect("accepts");
    stream.set_nodelay(true).expect("sets");
    let mut request = [0; REQUEST_BYTES];
    while stream.read_exact(&mut request).await.is_ok() {
        stream.write_all(&data).await.expect("writes");
    }
}

/// A reader that hands answers on needs a buffer for each that is in flight, as the RPC does. With a single one the receiving
/// core overwrites what it has in its cache again and again, which no real reader can.
async fn read_raw(stream: &mut TcpStream, count: usize, in_flight: usize, buffers: usize) {
    let mut answers = vec![vec![0; ANSWER_BYTES]; buffers];
    for asked in 0..count + in_flight {
        if asked >= in_flight {
            stream.read_exact(&mut answers[asked % buffers]).await.expect("reads");
        }
        if asked < count {
            stream.write_all(&[1; REQUEST_BYTES]).await.expect("writes");
        }
    }
}

async fn get(client: &StoreClient, number: usize) {
    let shard = ShardId { stripe: StripeId(number as u64), index: 0 };
    let blocks = client.get(ShardRead { shard, range: 0..ANSWER_BYTES as u32 }).await.expect("reads");
    assert_eq!(blocks.data.len(), ANSWER_BYTES);
}

/// A quarter, half and three quarters of the values lie below these.
fn quartiles(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

fn print_ratios(name: &str, bench: &Bench) {
    println!("{name}. raw: a buffer for each answer in flight; raw 1: one buffer for all");
    println!("{:>9} {:>9} {:>9} {:>9} {:>20} {:>20}", "in flight", "raw GB/s", "raw 1", "rpc", "rpc/raw", "rpc/raw 1");
    for in_flight in IN_FLIGHT {
        let rounds: Vec<[f64; 3]> = (0..=ROUNDS).map(|_| round(bench, in_flight)).collect();
        // The first round warms up.
        let rounds = &rounds[1..];
        let column = |at: usize| quartiles(rounds.iter().map(|rates| rates[at]));
        let ratio = |at: usize| quartiles(rounds.iter().map(|rates| rates[2] / rates[at]));
        let [[_, raw, _], [_, single, _], [_, rpc, _]] = [column(0), column(1), column(2)];
        let words = |[low, middle, high]: [f64; 3]| format!("{middle:.2} ({low:.2}..{high:.2})");
        let (to_raw, to_single) = (words(ratio(0)), words(ratio(1)));
        println!("{in_flight:>9} {raw:>9.2} {single:>9.2} {rpc:>9.2} {to_raw:>20} {to_single:>20}");
    }
}

/// GB/s of raw TCP with a buffer per answer, with one buffer, and of the RPC, one after the other.
fn round(bench: &Bench, in_flight: usize) -> [f64; 3] {
    let gigabytes = (ROUND_REQUESTS * ANSWER_BYTES) as f64 / 1e9;
    let times = [
        bench.raw(ROUND_REQUESTS, in_flight, in_flight),
        bench.raw(ROUND_REQUESTS, in_flight, 1),
        bench.rpc(ROUND_REQUESTS, in_flight),
    ];
    times.map(|time| gigabytes / time.as_secs_f64())
}

fn measure(criterion: &mut Criterion, bench: &Bench) {
    let mut group = criterion.benchmark_group("rpc get 1 MiB");
    group.throughput(Throughput::Bytes(ANSWER_BYTES as u64));
    for in_flight in IN_FLIGHT {
        let custom = |work: &dyn Fn(usize) -> Duration, iterations: u64| work(iterations as usize);
        group.bench_function(BenchmarkId::new("raw TCP, in flight", in_flight), |bencher| {
            bencher.iter_custom(|iterations| custom(&|count| bench.raw(count, in_flight, in_flight), iterations));
        });
        group.bench_function(BenchmarkId::new("RPC, in flight", in_flight), |bencher| {
            bencher.iter_custom(|iterations| custom(&|count| bench.rpc(count, in_flight), iterations));
        });
    }
    // What one copy of the answer costs: every avoided copy is worth this much.
    group.bench_function("memcpy", |bencher| {
        bencher.iter_batched(
            || vec![0u8; ANSWER_BYTES],
            |mut to| to.copy_from_slice(&bench.data),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn main() {
    print_ratios("both ends on one runtime", &Bench::new(Server::OnTheSameRuntime));
    let bench = Bench::new(Server::Apart);
    print_ratios("each end on its own runtime", &bench);
    let mut criterion = Criterion::default().configure_from_args();
    measure(&mut criterion, &bench);
    criterion.final_summary();
}
