//! What every [`ShardStore`] must do, as a test suite: the memory store, the disk engine and the RPC client run it.
//!
//! It checks what can be seen from outside through the trait. What needs a hand inside (damage at rest, a full disk, power
//! loss) each implementation tests by itself. The store may hold other shards; the suite uses stripes of its own.

use super::{ShardRead, ShardStat, ShardStore};
use crate::checksum::{block_checksums, verify_blocks};
use crate::error::Kind;
use crate::ids::{ShardId, StripeId};
use crate::settings::{BLOCK_BYTES, GET_MANY_MAX, SHARD_BYTES_MAX};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// Runs everything.
///
/// # Panics
/// With what is wrong, if the store does not conform.
pub async fn suite(store: Arc<dyn ShardStore>) {
    let store = store.as_ref();
    what_was_put_is_read(store).await;
    ranges_are_widened_and_clipped(store).await;
    a_missing_shard_is_not_found(store).await;
    shards_are_immutable(store).await;
    bad_checksums_are_refused(store).await;
    impossible_lengths_are_refused(store).await;
    many_reads_are_answered_in_order(store).await;
    deleted_shards_are_gone(store).await;
    lists_are_sorted_pages(store).await;
    equal_puts_at_once_all_succeed(store).await;
}

fn shard(stripe: u64, index: u8) -> ShardId {
    ShardId { stripe: StripeId(0x00c0_4f04_0000_0000 + stripe), index }
}

fn bytes(len: usize, seed: u32) -> Bytes {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect::<Vec<u8>>().into()
}

async fn put(store: &dyn ShardStore, id: ShardId, data: &Bytes) {
    store.put(id, data.clone().into(), block_checksums(data)).await.expect("put of a new shard");
}

async fn kind_of_get(store: &dyn ShardStore, shard: ShardId, range: Range<u32>) -> Kind {
    store.get(ShardRead { shard, range }).await.expect_err("get must fail").kind()
}

async fn assert_reads(store: &dyn ShardStore, shard: ShardId, range: Range<u32>, content: &Bytes) {
    let blocks = store.get(ShardRead { shard, range: range.clone() }).await.expect("get");
    assert_blocks(&blocks, &range, content);
}

/// The answer is exactly the whole blocks that cover the range, with their checksums.
fn assert_blocks(blocks: &super::ShardBlocks, range: &Range<u32>, content: &Bytes) {
    let start = range.start as usize / BLOCK_BYTES * BLOCK_BYTES;
    let end = (range.end as usize).next_multiple_of(BLOCK_BYTES).min(content.len());
    assert_eq!(blocks.offset as usize, start, "offset of {range:?}");
    assert!(blocks.data.0 == content.slice(start..end), "bytes of {range:?}");
    verify_blocks(&blocks.data, &blocks.checksums).expect("checksums in the answer");
}

async fn what_was_put_is_read(store: &dyn ShardStore) {
    for (number, len) in
        [1, 100, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 300_001, SHARD_BYTES_MAX].iter().enumerate()
    {
        let (id, data) = (shard(1, number as u8), bytes(*len, number as u32));
        put(store, id, &data).await;
        assert_reads(store, id, 0..data.len() as u32, &data).await;
        let stat = store.stat(id).await.expect("stat");
        assert_eq!((stat.shard, stat.bytes as usize), (id, *len));
        assert!(stat.age_seconds < 3600, "a new shard is {} s old", stat.age_seconds);
    }
}

async fn ranges_are_widened_and_clipped(store: &dyn ShardStore) {
    let (id, len) = (shard(2, 0), 3 * BLOCK_BYTES + 77);
    let data = bytes(len, 2);
    put(store, id, &data).await;
    let (block, len) = (BLOCK_BYTES as u32, len as u32);
    for range in [0..1, 5..block, block - 1..block + 1, block..2 * block, 3 * block..len, len - 1..len, 10..len + 1000]
    {
        assert_reads(store, id, range, &data).await;
    }
    assert_eq!(kind_of_get(store, id, len..len + 1).await, Kind::InvalidInput);
    assert_eq!(kind_of_get(store, id, 5..5).await, Kind::InvalidInput);
    assert_eq!(kind_of_get(store, id, u32::MAX - 1..u32::MAX).await, Kind::InvalidInput);
}

async fn a_missing_shard_is_not_found(store: &dyn ShardStore) {
    assert_eq!(kind_of_get(store, shard(3, 0), 0..1).await, Kind::NotFound);
    assert_eq!(store.stat(shard(3, 0)).await.expect_err("stat").kind(), Kind::NotFound);
}

async fn shards_are_immutable(store: &dyn ShardStore) {
    let id = shard(4, 0);
    let data = bytes(70_000, 4);
    put(store, id, &data).await;
    put(store, id, &data).await;
    for other in [bytes(70_000, 5), data.slice(..69_999), bytes(70_001, 4)] {
        let error = store.put(id, other.clone().into(), block_checksums(&other)).await.expect_err("id is taken");
        assert_eq!(error.kind(), Kind::Exists);
    }
    assert_reads(store, id, 0..70_000, &data).await;
}

async fn bad_checksums_are_refused(store: &dyn ShardStore) {
    let id = shard(5, 0);
    let data = bytes(2 * BLOCK_BYTES, 6);
    let mut flipped = block_checksums(&data);
    flipped[1] ^= 1;
    let few = block_checksums(&data)[..1].to_vec();
    let many = [block_checksums(&data), vec![0]].concat();
    for checksums in [flipped, few, many, Vec::new()] {
        let error = store.put(id, data.clone().into(), checksums).await.expect_err("checksums do not match");
        assert_eq!(error.kind(), Kind::Corrupt);
        assert_eq!(kind_of_get(store, id, 0..1).await, Kind::NotFound);
    }
    put(store, id, &data).await;
}

async fn impossible_lengths_are_refused(store: &dyn ShardStore) {
    for data in [Bytes::new(), bytes(SHARD_BYTES_MAX + 1, 7)] {
        let error = store.put(shard(6, 0), data.clone().into(), block_checksums(&data)).await.expect_err("length");
        assert_eq!(error.kind(), Kind::InvalidInput);
    }
    assert_eq!(store.stat(shard(6, 0)).await.expect_err("not kept").kind(), Kind::NotFound);
}

async fn many_reads_are_answered_in_order(store: &dyn ShardStore) {
    let contents: Vec<Bytes> = (0..5).map(|number| bytes(1000 + number * BLOCK_BYTES, 100 + number as u32)).collect();
    for (number, data) in contents.iter().enumerate() {
        put(store, shard(7, number as u8), data).await;
    }
    let order = [3u8, 0, 99, 4, 3, 1];
    let reads = order.iter().map(|&index| ShardRead { shard: shard(7, index), range: 10..20 }).collect();
    let answers = store.get_many(reads).await.expect("get_many");
    assert_eq!(answers.len(), order.len());
    for (index, answer) in order.into_iter().zip(answers) {
        match contents.get(usize::from(index)) {
            Some(content) => assert_blocks(&answer.expect("held"), &(10..20), content),
            None => assert_eq!(answer.expect_err("not held").kind(), Kind::NotFound),
        }
    }
    assert!(store.get_many(Vec::new()).await.expect("no reads").is_empty());
    let read = ShardRead { shard: shard(7, 0), range: 0..1 };
    assert_eq!(store.get_many(vec![read.clone(); GET_MANY_MAX]).await.expect("as many as allowed").len(), GET_MANY_MAX);
    let error = store.get_many(vec![read; GET_MANY_MAX + 1]).await.expect_err("more than allowed");
    assert_eq!(error.kind(), Kind::InvalidInput);
}

async fn deleted_shards_are_gone(store: &dyn ShardStore) {
    let (gone, kept) = (shard(8, 0), shard(8, 1));
    let data = bytes(5000, 8);
    put(store, gone, &data).await;
    put(store, kept, &data).await;
    store.delete(vec![gone, shard(8, 50)]).await.expect("delete, also of what is not there");
    store.delete(vec![gone]).await.expect("delete again");
    assert_eq!(kind_of_get(store, gone, 0..1).await, Kind::NotFound);
    assert_reads(store, kept, 0..5000, &data).await;
    put(store, gone, &bytes(10, 9)).await;
    assert_reads(store, gone, 0..10, &bytes(10, 9)).await;
}

async fn lists_are_sorted_pages(store: &dyn ShardStore) {
    let mut expected = Vec::new();
    // Put in falling order, so that the order of arrival is not the order of the list.
    for stripe in (10..20).rev() {
        for index in [200, 0] {
            put(store, shard(stripe, index), &bytes(10 + usize::from(index), 10)).await;
            expected.insert(0, shard(stripe, index));
        }
    }
    let mut seen: Vec<ShardStat> = Vec::new();
    let mut after = Some(shard(9, u8::MAX));
    loop {
        let page = store.list(after, 7).await.expect("list");
        assert!(page.len() <= 7, "a page of {}", page.len());
        let Some(last) = page.last() else { break };
        after = Some(last.shard);
        seen.extend(page);
    }
    let ids: Vec<ShardId> = seen.iter().map(|stat| stat.shard).collect();
    assert!(ids.is_sorted(), "rising order");
    assert!(ids.starts_with(&expected), "all shards after the start, once each");
    assert!(seen[..20].iter().all(|stat| stat.bytes == 10 + u32::from(stat.shard.index)));
    let first = store.list(None, 1).await.expect("list from the start");
    assert_eq!(first.len(), 1);
}

async fn equal_puts_at_once_all_succeed(store: &dyn ShardStore) {
    let (id, data) = (shard(30, 0), bytes(200_000, 30));
    let puts = (0..8).map(|_| store.put(id, data.clone().into(), block_checksums(&data)));
    for result in futures::future::join_all(puts).await {
        result.expect("put of the same bytes");
    }
    assert_reads(store, id, 0..200_000, &data).await;
}
