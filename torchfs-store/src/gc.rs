//! Collecting leftovers: shards of stripes that were written and never committed, because their writer died first.
//!
//! Only stripes below the horizon are looked at: the metadata cluster refuses any commit that names one of them, so what
//! no file names now no file will ever name.

use crate::disk::DiskStore;
use crate::heartbeat::delete_all;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::sync::watch;
use torchfs_core::meta::{MetaAnswer, MetaQuery, MetaSession};
use torchfs_core::settings::LIST_ENTRIES_MAX;
use torchfs_core::shard::ShardStore;
use torchfs_core::{Error, Kind, Result, ShardId, StripeId};
use tracing::{info, warn};

/// Leftovers only cost space, and looking for them asks for every stripe on the node.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

/// Collects once an hour.
pub(crate) async fn run(store: DiskStore, meta: MetaSession, horizon: watch::Receiver<Option<StripeId>>) {
    loop {
        tokio::time::sleep(COLLECT_EVERY).await;
        let Some(horizon) = *horizon.borrow() else { continue };
        match collect(&store, &meta, horizon).await {
            Ok(0) => {}
            Ok(shards) => info!(shards, "deleted shards that were never committed"),
            Err(error) => warn!(%error, "leftover shards are not collected; the next try is in an hour"),
        }
    }
}

/// Deletes the shards below `horizon` whose stripes are abandoned, then empty folders. Returns how many were deleted.
pub(crate) async fn collect(store: &DiskStore, meta: &MetaSession, horizon: StripeId) -> Result<usize> {
    let mut deleted = 0;
    let mut after = None;
    loop {
        let page = store.list(after, LIST_ENTRIES_MAX as u32).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.shard);
        let old: Vec<ShardId> = page.iter().map(|stat| stat.shard).take_while(|shard| shard.stripe < horizon).collect();
        if old.is_empty() {
            break;
        }
        let abandoned = abandoned(meta, &old).await?;
        let shards = old.into_iter().filter(|shard| abandoned.contains(&shard.stripe)).collect();
        deleted += delete_all(store.clone(), shards).await.len();
    }
    store.remove_empty_groups().await?;
    Ok(deleted)
}

async fn abandoned(meta: &MetaSession, shards: &[ShardId]) -> Result<BTreeSet<StripeId>> {
    let stripes: BTreeSet<StripeId> = shards.iter().map(|shard| shard.stripe).collect();
    match meta.store().query(MetaQuery::Abandoned(stripes.into_iter().collect())).await? {
        MetaAnswer::Stripes(stripes) => Ok(stripes.into_iter().collect()),
        other => Err(Error::new(Kind::Protocol, format!("metadata answered a question for stripes with {other:?}"))),
    }
}
