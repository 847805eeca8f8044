//! openraft's own suite for stores, and what it does not ask: restarts, torn files, purge and snapshots on disk.

use super::*;
use crate::kv::FjallStore;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use std::sync::Arc;
use tempfile::TempDir;

struct Builder;

pub(super) fn open(folder: &TempDir) -> (LogStore, StateMachine, Arc<StateStore>) {
    let open = || -> Result<_> {
        let log = FjallStore::open(&folder.path().join("log"), 1 << 20)?;
        let store = FjallStore::open(&folder.path().join("state"), 1 << 20)?;
        let state = Arc::new(StateStore::open(store.clone(), &folder.path().join("snapshots"))?);
        Ok((LogStore::open(&log, store)?, StateMachine::new(state.clone())?, state))
    };
    open().expect("opens")
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().expect("folder");
        let (log, machine, _) = open(&folder);
        Ok((folder, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_storage_suite_passes() {
    Suite::test_all(Builder).await.expect("the suite passes");
}
