//! Shard reads over RPC against raw TCP with the same pattern: a request of a few bytes, an answer of 1 MiB, one
//! connection, both ends in this process on loopback and on the same runtime.
//!
//! The ratios are what counts, so they are also measured in turns: a disturbance hits both sides.
//!
//! ```text
//! cargo bench -p torchfs-benches --bench rpc
//! ```

use async_trait::async_trait;
use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;
use torchfs_core::checksum::block_checksums;
use torchfs_core::rpc::{Payload, Server, StoreClient};
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
    raw: Arc<Mutex<TcpStream>>,
    client: Arc<StoreClient>,
    data: Bytes,
}

impl Bench {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
        let data = Bytes::from((0..ANSWER_BYTES).map(|n| (n * 31) as u8).collect::<Vec<u8>>());
        let (raw, client) = runtime.block_on(connect(data.clone()));
        Bench { runtime, raw: Arc::new(Mutex::new(raw)), client: Arc::new(client), data }
    }

    /// Time for `count` answers, `in_flight` requests at a time.
    fn raw(&self, count: usize, in_flight: usize) -> Duration {
        let raw = Arc::clone(&self.raw);
        self.run(async move { read_raw(&mut *raw.lock().await, count, in_flight).await })
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

async fn connect(data: Bytes) -> (TcpStream, StoreClient) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(serve_raw(listener, data.clone()));
    let raw = TcpStream::connect(addr).await.expect("connects");
    raw.set_nodelay(true).expect("sets");

    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound");
    let (_, cluster) = watch::channel(Some(ClusterId(1)));
    let store = Constant { checksums: block_checksums(&data), data };
    tokio::spawn(Server::new(cluster).store(Arc::new(store)).run(listener, CancellationToken::new()));
    (raw, StoreClient::new(addr.to_string(), None))
}

async fn serve_raw(listener: TcpListener, data: Bytes) {
    let (mut stream, _) = listener.accept().await.expect("accepts");
    stream.set_nodelay(true).expect("sets");
    let mut request = [0; REQUEST_BYTES];
    while stream.read_exact(&mut request).await.is_ok() {
        stream.write_all(&data).await.expect("writes");
    }
}

async fn read_raw(stream: &mut TcpStream, count: usize, in_flight: usize) {
    let mut answer = vec![0; ANSWER_BYTES];
    for asked in 0..count + in_flight {
        if asked >= in_flight {
            stream.read_exact(&mut answer).await.expect("reads");
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

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn print_ratios(bench: &Bench) {
    println!("{:>9} {:>12} {:>12} {:>22}", "in flight", "raw GB/s", "rpc GB/s", "rpc/raw (25%..75%)");
    for in_flight in IN_FLIGHT {
        let (mut raw, mut rpc, mut ratio) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let gigabytes = (ROUND_REQUESTS * ANSWER_BYTES) as f64 / 1e9;
            let raw_rate = gigabytes / bench.raw(ROUND_REQUESTS, in_flight).as_secs_f64();
            let rpc_rate = gigabytes / bench.rpc(ROUND_REQUESTS, in_flight).as_secs_f64();
            // The first round warms up.
            if round > 0 {
                raw.push(raw_rate);
                rpc.push(rpc_rate);
                ratio.push(rpc_rate / raw_rate);
            }
        }
        ratio.sort_by(f64::total_cmp);
        let (low, high) = (ratio[ROUNDS / 4], ratio[ROUNDS * 3 / 4]);
        let middle = median(ratio);
        println!("{in_flight:>9} {:>12.2} {:>12.2} {middle:>8.2} ({low:.2}..{high:.2})", median(raw), median(rpc));
    }
}

fn measure(criterion: &mut Criterion, bench: &Bench) {
    let mut group = criterion.benchmark_group("rpc get 1 MiB");
    group.throughput(Throughput::Bytes(ANSWER_BYTES as u64));
    for in_flight in IN_FLIGHT {
        let custom = |work: &dyn Fn(usize) -> Duration, iterations: u64| work(iterations as usize);
        group.bench_function(BenchmarkId::new("raw TCP, in flight", in_flight), |bencher| {
            bencher.iter_custom(|iterations| custom(&|count| bench.raw(count, in_flight), iterations));
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
    let bench = Bench::new();
    print_ratios(&bench);
    let mut criterion = Criterion::default().configure_from_args();
    measure(&mut criterion, &bench);
    criterion.final_summary();
}
