//! A file much larger than what may be in memory.

use super::Rig;
use crate::checksum::verify_blocks;
use crate::error::{Error, Kind, Result};
use crate::ids::{NodeId, ShardId};
use crate::layout::{Profile, widen_to_blocks};
use crate::rpc::Payload;
use crate::settings::BLOCK_BYTES;
use crate::shard::{ShardBlocks, ShardRead, ShardStat, ShardStore, ShardStores};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

const MIB: u64 = 1024 * 1024;

/// Every word of the file is its own number, so that a data shard is known by its first word.
fn words(first: u64, count: usize) -> Bytes {
    (first..first + count as u64).flat_map(u64::to_le_bytes).collect::<Vec<u8>>().into()
}

/// First word, length and checksums.
type Held = (u64, usize, Vec<u32>);

/// Keeps of each shard its first word, its length and its checksums, and makes data shards again from that.
#[derive(Debug, Default)]
struct WordStore {
    shards: Mutex<BTreeMap<ShardId, Held>>,
}

#[async_trait]
impl ShardStore for WordStore {
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()> {
        verify_blocks(&data, &checksums)?;
        let first = u64::from_le_bytes(data[..8].try_into().expect("a word"));
        self.shards.lock().expect("lock").insert(shard, (first, data.len(), checksums));
        Ok(())
    }

    async fn get(&self, read: ShardRead) -> Result<ShardBlocks> {
        let known = self.shards.lock().expect("lock").get(&read.shard).cloned();
        let known = known.filter(|_| read.shard.index < Profile::DEFAULT.data);
        let (first, len, checksums) = known.ok_or_else(|| Error::new(Kind::NotFound, "no such shard"))?;
        let range = widen_to_blocks(&read.range, len as u32);
        let bytes = (range.end - range.start) as usize;
        let data = words(first + u64::from(range.start) / 8, bytes / 8);
        let block = range.start as usize / BLOCK_BYTES;
        let checksums = checksums[block..block + bytes.div_ceil(BLOCK_BYTES)].to_vec();
        verify_blocks(&data, &checksums)?;
        Ok(ShardBlocks { offset: range.start, data: data.into(), checksums })
    }

    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        let mut answers = Vec::new();
        for read in reads {
            answers.push(self.get(read).await);
        }
        Ok(answers)
    }

    async fn delete(&self, _: Vec<ShardId>) -> Result<()> {
        Ok(())
    }

    async fn stat(&self, _: ShardId) -> Result<ShardStat> {
        Err(Error::new(Kind::Unsupported, "not needed here"))
    }

    async fn list(&self, _: Option<ShardId>, _: u32) -> Result<Vec<ShardStat>> {
        Ok(Vec::new())
    }
}

#[derive(Debug, Default)]
struct WordStores(Mutex<BTreeMap<NodeId, Arc<WordStore>>>);

#[async_trait]
impl ShardStores for WordStores {
    async fn store(&self, node: NodeId) -> Result<Arc<dyn ShardStore>> {
        Ok(self.0.lock().expect("lock").entry(node).or_default().clone())
    }
}

#[tokio::test]
async fn a_file_of_more_than_400_mb_is_stored_whole() {
    const LEN: u64 = 432 * MIB;
    let rig = Rig::over(Arc::new(WordStores::default())).await;
    let client = rig.client().await;
    let file = client.create("/large").await.expect("created");
    for start in (0..LEN).step_by(MIB as usize) {
        file.write_at(start, words(start / 8, MIB as usize / 8)).await.expect("written");
    }
    file.commit().await.expect("committed");
    let file = rig.client().await.open("/large").await.expect("opened");
    assert_eq!(file.attr().size, LEN);
    for start in (0..LEN).step_by(MIB as usize) {
        let piece = file.read_at(start, MIB as usize).await.expect("read");
        assert!(piece == words(start / 8, MIB as usize / 8), "at {start}");
    }
}
