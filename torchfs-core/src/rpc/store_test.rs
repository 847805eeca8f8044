//! Shards over real sockets against a store in memory.

use super::*;
use crate::checksum::block_checksums;
use crate::ids::{ClusterId, ShardId, StripeId};
use crate::shard::memory::MemoryStore;
use crate::shard::{ShardRead, ShardStore};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

const CLUSTER: ClusterId = ClusterId(7);

fn shard(stripe: u64) -> ShardId {
    ShardId { stripe: StripeId(stripe), index: 0 }
}

struct Running {
    addr: String,
    _server: AbortOnDropHandle<()>,
}

async fn serve(store: Arc<dyn ShardStore>) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = listener.local_addr().expect("bound").to_string();
    let (_, cluster) = watch::channel(Some(CLUSTER));
    let server = Server::new(cluster).store(store).run(listener, CancellationToken::new());
    Running { addr, _server: AbortOnDropHandle::new(tokio::spawn(server)) }
}

#[tokio::test]
async fn a_shard_goes_there_and_back() {
    let node = serve(Arc::new(MemoryStore::default())).await;
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    let bytes: Vec<u8> = (0..1_000_000u32).map(|n| (n * 7) as u8).collect();
    client.put(shard(1), bytes.clone().into(), block_checksums(&bytes)).await.expect("stored");
    let blocks = client.get(ShardRead { shard: shard(1), range: 0..1_000_000 }).await.expect("read");
    assert_eq!(blocks.data.0, bytes);
    assert_eq!(blocks.checksums, block_checksums(&bytes));
}
