//! Telling metadata about damaged and missing shards: [`Reporter`], a bounded queue and one task that empties it.
//!
//! A read never waits for it and never fails because of it. Each shard is reported once per [`REPEAT_AFTER`]; what cannot be
//! reported now is reported when it is seen again.

use crate::ids::ShardId;
use crate::meta::MetaSession;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Reports waiting; beyond this they are dropped.
const QUEUE_MAX: usize = 1024;
/// Shards remembered as reported; beyond this all are forgotten and may be reported again.
const REMEMBERED_MAX: usize = 16 * 1024;
/// Shards in one report.
const REPORT_MAX: usize = 256;
/// A shard that is seen damaged again after this long is reported again: it was repaired meanwhile, or the report was lost.
const REPEAT_AFTER: Duration = Duration::from_secs(600);

/// Reports damage in the background. Its task ends with it.
#[derive(Debug)]
pub(super) struct Reporter {
    meta: MetaSession,
    reported: Arc<Mutex<HashMap<ShardId, Instant>>>,
    task: Mutex<Option<Task>>,
}

#[derive(Debug)]
struct Task {
    queue: mpsc::Sender<ShardId>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Reporter {
    pub(super) fn new(meta: MetaSession) -> Self {
        Reporter { meta, reported: Arc::default(), task: Mutex::new(None) }
    }

    /// Queues what was not reported lately. Must be called within a runtime.
    pub(super) fn report(&self, shards: &[ShardId]) {
        if shards.is_empty() {
            return;
        }
        let queue = self.queue();
        for &shard in shards {
            if self.is_new(shard) && queue.try_send(shard).is_err() {
                lock(&self.reported).remove(&shard);
            }
        }
    }

    fn is_new(&self, shard: ShardId) -> bool {
        let mut reported = lock(&self.reported);
        if reported.get(&shard).is_some_and(|at| at.elapsed() < REPEAT_AFTER) {
            return false;
        }
        if reported.len() >= REMEMBERED_MAX {
            reported.clear();
        }
        reported.insert(shard, Instant::now());
        true
    }

    /// The queue of the task, which starts when it is first needed.
    fn queue(&self) -> mpsc::Sender<ShardId> {
        let mut task = lock(&self.task);
        let running = task.take().filter(|task| !task.handle.is_finished());
        let running = running.unwrap_or_else(|| {
            let (queue, waiting) = mpsc::channel(QUEUE_MAX);
            let handle = tokio::spawn(send_reports(self.meta.clone(), waiting, self.reported.clone()));
            Task { queue, handle }
        });
        task.insert(running).queue.clone()
    }
}

async fn send_reports(
    meta: MetaSession,
    mut waiting: mpsc::Receiver<ShardId>,
    reported: Arc<Mutex<HashMap<ShardId, Instant>>>,
) {
    let mut shards = Vec::new();
    while waiting.recv_many(&mut shards, REPORT_MAX).await > 0 {
        let batch = std::mem::take(&mut shards);
        if let Err(error) = meta.report_shards(batch.clone()).await {
            tracing::warn!(%error, shards = batch.len(), "damaged shards could not be reported");
            let mut reported = lock(&reported);
            batch.iter().for_each(|shard| {
                reported.remove(shard);
            });
        }
    }
}
