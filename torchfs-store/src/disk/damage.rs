//! Shards found damaged, kept until the leader knows of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use torchfs_core::{Error, ShardId};
use tracing::warn;

/// Most damaged shards that are remembered; a disk with more has failed, and further ones are found again when read.
const DAMAGED_MAX: usize = 10_000;

/// The damaged shards, and whether the leader knows.
#[derive(Debug, Default)]
pub struct Damage(Mutex<BTreeMap<ShardId, Report>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Report {
    Due,
    Done,
}

impl Damage {
    /// Remembers a shard; the first time it is logged.
    pub fn found(&self, shard: ShardId, error: &Error) {
        let mut shards = self.shards();
        if shards.len() < DAMAGED_MAX && !shards.contains_key(&shard) {
            warn!(%shard, %error, "a shard is damaged");
            shards.insert(shard, Report::Due);
        }
    }

    /// The damaged file is gone.
    pub fn gone(&self, shard: ShardId) {
        self.shards().remove(&shard);
    }

    /// Some that the leader does not know of.
    pub fn unreported(&self, limit: usize) -> Vec<ShardId> {
        let shards = self.shards();
        let due = shards.iter().filter(|(_, report)| **report == Report::Due);
        due.map(|(&shard, _)| shard).take(limit).collect()
    }

    /// The leader knows of these.
    pub fn reported(&self, reported: &[ShardId]) {
        let mut shards = self.shards();
        for shard in reported {
            if let Some(report) = shards.get_mut(shard) {
                *report = Report::Done;
            }
        }
    }

    /// The leader may have lost what it was told.
    pub fn report_again(&self) {
        self.shards().values_mut().for_each(|report| *report = Report::Due);
    }

    fn shards(&self) -> MutexGuard<'_, BTreeMap<ShardId, Report>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
