//! Many connections to one server, most of which mean no good: what is bounded, and that the others are served.

use super::store_test::{Running, content, shard, silent_after, whole};
use super::*;
use crate::checksum::block_checksums;
use crate::ids::ClusterId;
use crate::shard::ShardStore;
use crate::shard::memory::MemoryStore;
use futures::future::join_all;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

const CLUSTER: ClusterId = ClusterId(7);
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;

async fn start(connections: usize, arriving_bytes: usize) -> Running {
    let limits = seats::Limits { connections, arriving_bytes };
    Running::start(|server| server.store(Arc::new(MemoryStore::default())).limits(limits)).await
}

fn put_frame(bytes: usize) -> Vec<u8> {
    let message =
        StoreRpcRequest::Put { shard: shard(1), data: content(bytes).into(), checksums: vec![0; bytes / 65_536] };
    let mut frame = bytes::BytesMut::new();
    let call = transport::Call::Request { id: 1, deadline_ms: 60_000, message };
    let payloads = codec::encode(&call, &mut frame).expect("encodes");
    frame.extend_from_slice(&payloads.concat());
    frame.to_vec()
}

async fn is_hung_up_on(stream: &mut TcpStream) -> bool {
    let mut byte = [0];
    timeout(Duration::from_millis(1), stream.read(&mut byte))
        .await
        .is_ok_and(|read| read.map_or(true, |bytes| bytes == 0))
}

async fn put(client: &StoreClient, stripe: u64, bytes: usize) -> Result<()> {
    let data = content(bytes);
    let checksums = block_checksums(&data);
    timeout(PATIENCE, client.put(shard(stripe), data.into(), checksums)).await.expect("in time")
}

#[tokio::test]
async fn half_frames_of_silent_peers_do_not_keep_others_out_for_long() {
    let node = start(100, 4 * MIB).await;
    let half = put_frame(MIB)[..MIB / 2].to_vec();
    let mut silent: Vec<TcpStream> = Vec::new();
    // The last ones wait in their socket buffers, which are large enough to take them.
    for _ in 0..20 {
        silent.push(silent_after(&node, &half).await);
    }
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    put(&client, 7, MIB).await.expect("stored");
    assert_eq!(client.get(whole(7, MIB)).await.expect("read").data.len(), MIB);
    let mut ended = 0;
    for stream in &mut silent {
        ended += usize::from(is_hung_up_on(stream).await);
    }
    assert!(ended > 0, "somebody made room");
}

#[tokio::test]
async fn more_than_fits_at_once_arrives_one_after_the_other_and_nobody_is_sent_away() {
    let node = start(100, MIB).await;
    let clients: Vec<StoreClient> = (0..16).map(|_| StoreClient::new(&node.addr, Some(CLUSTER))).collect();
    for round in 0..4 {
        let puts = clients.iter().zip(0..).map(|(client, number)| put(client, round * 16 + number, 4 * MIB));
        for stored in join_all(puts).await {
            stored.expect("stored at the first attempt");
        }
    }
    for stripe in 0..64 {
        let read = clients[0].get(whole(stripe, 4 * MIB)).await.expect("read");
        assert!(read.data[..] == content(4 * MIB)[..]);
    }
}

#[tokio::test]
async fn silent_connections_make_room_for_a_new_client() {
    let node = start(10, MIB).await;
    let busy = StoreClient::new(&node.addr, Some(CLUSTER));
    put(&busy, 1, 1000).await.expect("stored");
    let mut silent = Vec::new();
    for _ in 0..30 {
        silent.push(silent_after(&node, b"").await);
    }
    let client = StoreClient::new(&node.addr, Some(CLUSTER));
    put(&client, 2, 1000).await.expect("served at once");
    // The first ones are gone, the last ones are there.
    for stream in &mut silent[..20] {
        assert!(timeout(PATIENCE, stream.read(&mut [0])).await.expect("hung up on").map_or(true, |bytes| bytes == 0));
    }
    assert!(!is_hung_up_on(silent.last_mut().expect("one")).await);
    client.get(whole(1, 1000)).await.expect("read");
    busy.get(whole(2, 1000)).await.expect("it dials again");
}
