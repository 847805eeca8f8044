//! A [`ShardStore`] that misbehaves on command: [`FaultyStore`] wraps any other, injects faults and counts requests.
//!
//! Deterministic: a request takes the next entry of the script if there is one, else the standing fault. Time is
//! `tokio::time`, so tests with paused time do not wait.

use super::{ShardBlocks, ShardRead, ShardStat, ShardStore};
use crate::error::{Error, Kind, Result};
use crate::ids::ShardId;
use crate::rpc::Payload;
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What goes wrong with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails at once with this kind, and nothing is done.
    Fail(Kind),
    /// It is done, but only after this long.
    Delay(Duration),
    /// It is never answered, and nothing is done.
    Hang,
    /// It is done, and then the answer gets lost: it fails with `Timeout`.
    LoseReply,
    /// Bytes in the answer differ from their checksums.
    CorruptReply,
    /// Bytes in the answer come from another place of the shard than was asked for, with matching checksums.
    MisplaceReply,
    /// The answer ends a byte too early, with matching checksums.
    ShortenReply,
    /// A `get_many` answers with fewer entries than were asked for; other requests are not affected.
    DropAnswers,
}

/// How many requests of each kind a [`FaultyStore`] was asked, whatever came of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// `put`
    pub put: usize,
    /// `get`
    pub get: usize,
    /// `get_many`
    pub get_many: usize,
    /// `delete`
    pub delete: usize,
    /// `stat` and `list`
    pub other: usize,
}

/// A store with faults.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ShardStore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    standing: Option<Fault>,
    script: VecDeque<Option<Fault>>,
    requests: Requests,
}

impl FaultyStore {
    /// Without any fault yet.
    #[must_use]
    pub fn new(inner: Arc<dyn ShardStore>) -> Self {
        FaultyStore { inner, state: Mutex::default() }
    }

    /// From now on every request that the script does not decide has this fault (`None`: none).
    pub fn set(&self, fault: Option<Fault>) {
        self.state().standing = fault;
    }

    /// The next requests have these faults, one each in order; then the standing fault applies again.
    pub fn script(&self, faults: impl IntoIterator<Item = Option<Fault>>) {
        self.state().script.extend(faults);
    }

    /// How many requests came since the last call of this.
    pub fn take_requests(&self) -> Requests {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the request and goes through whatever happens before it is done; returns what is to happen to the answer.
    async fn begin(&self, count: impl FnOnce(&mut Requests)) -> Result<Option<Fault>> {
        let fault = {
            let mut state = self.state();
            count(&mut state.requests);
            let standing = state.standing;
            state.script.pop_front().unwrap_or(standing)
        };
        match fault {
            Some(Fault::Fail(kind)) => return Err(Error::new(kind, "fault injected")),
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(Fault::Hang) => std::future::pending().await,
            _ => {}
        }
        Ok(fault)
    }
}

fn lose_reply<T>(fault: Option<Fault>, answer: Result<T>) -> Result<T> {
    match fault {
        Some(Fault::LoseReply) => Err(Error::new(Kind::Timeout, "answer lost by an injected fault")),
        _ => answer,
    }
}

fn spoil(fault: Option<Fault>, blocks: ShardBlocks) -> ShardBlocks {
    match fault {
        Some(Fault::CorruptReply) => {
            let mut data = blocks.data.to_vec();
            if let Some(byte) = data.last_mut() {
                *byte ^= 0x40;
            }
            ShardBlocks { data: data.into(), ..blocks }
        }
        Some(Fault::MisplaceReply) => {
            let offset = blocks.offset.wrapping_add(crate::settings::BLOCK_BYTES as u32);
            ShardBlocks { offset, ..blocks }
        }
        Some(Fault::ShortenReply) => {
            let data = blocks.data.slice(..blocks.data.len().saturating_sub(1));
            let checksums = crate::checksum::block_checksums(&data);
            ShardBlocks { offset: blocks.offset, data: data.into(), checksums }
        }
        _ => blocks,
    }
}

#[async_trait]
impl ShardStore for FaultyStore {
    async fn put(&self, shard: ShardId, data: Payload, checksums: Vec<u32>) -> Result<()> {
        let fault = self.begin(|requests| requests.put += 1).await?;
        lose_reply(fault, self.inner.put(shard, data, checksums).await)
    }

    async fn get(&self, read: ShardRead) -> Result<ShardBlocks> {
        let fault = self.begin(|requests| requests.get += 1).await?;
        let answer = self.inner.get(read).await.map(|blocks| spoil(fault, blocks));
        lose_reply(fault, answer)
    }

    async fn get_many(&self, reads: Vec<ShardRead>) -> Result<Vec<Result<ShardBlocks>>> {
        let fault = self.begin(|requests| requests.get_many += 1).await?;
        let mut answers = self.inner.get_many(reads).await?;
        if fault == Some(Fault::DropAnswers) {
            answers.pop();
        }
        let answers = answers.into_iter().map(|answer| answer.map(|blocks| spoil(fault, blocks))).collect();
        lose_reply(fault, Ok(answers))
    }

    async fn delete(&self, shards: Vec<ShardId>) -> Result<()> {
        let fault = self.begin(|requests| requests.delete += 1).await?;
        lose_reply(fault, self.inner.delete(shards).await)
    }

    async fn stat(&self, shard: ShardId) -> Result<ShardStat> {
        let fault = self.begin(|requests| requests.other += 1).await?;
        lose_reply(fault, self.inner.stat(shard).await)
    }

    async fn list(&self, after: Option<ShardId>, limit: u32) -> Result<Vec<ShardStat>> {
        let fault = self.begin(|requests| requests.other += 1).await?;
        lose_reply(fault, self.inner.list(after, limit).await)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::super::memory::MemoryStore;
    use super::*;

    #[tokio::test]
    async fn without_faults_it_conforms() {
        conformance::suite(Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())))).await;
    }

    #[tokio::test]
    async fn the_script_goes_before_the_standing_fault() {
        let store = FaultyStore::new(Arc::new(MemoryStore::default()));
        store.set(Some(Fault::Fail(Kind::Io)));
        store.script([None, Some(Fault::Fail(Kind::NoSpace))]);
        assert!(store.list(None, 1).await.is_ok());
        assert_eq!(store.list(None, 1).await.expect_err("script").kind(), Kind::NoSpace);
        assert_eq!(store.list(None, 1).await.expect_err("standing").kind(), Kind::Io);
        assert_eq!(store.take_requests(), Requests { other: 3, ..Requests::default() });
        assert_eq!(store.take_requests(), Requests::default());
    }
}
