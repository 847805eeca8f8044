//! Stripes in and out: what the client and, later, repair share. [`StripeIo`] writes content as k+m shards on distinct
//! nodes, and reads byte ranges back with as few shards as possible.
//!
//! - `store` writes: encode, place, send, replace nodes that fail. `grants` are places asked for ahead.
//! - `fetch` reads one range: data shards first, others for what is missing, damaged or slow.
//! - `many` reads many ranges with few requests.
//! - `spread` is the rule about which nodes may hold how much of a stripe; `latency` decides when a node is slow;
//!   `report` tells metadata about damage.
//!
//! Rule of this module: no byte leaves it that was not checked against the writer's checksum, or restored from such bytes.

mod fetch;
mod grants;
mod latency;
mod many;
mod report;
mod spread;
mod store;

#[cfg(test)]
mod fetch_test;
#[cfg(test)]
mod many_test;
#[cfg(test)]
mod rig_test;
#[cfg(test)]
mod store_test;

use crate::error::{Error, Kind, Result};
use crate::ids::NodeId;
use crate::layout::Stripe;
use crate::meta::MetaSession;
use crate::settings::SHARD_DEADLINE;
use crate::shard::{ShardStore, ShardStores};
use latency::Latencies;
use report::Reporter;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// Longest that one stripe is worked on: a node that lets its deadline pass, then its replacement, then one more.
const STRIPE_DEADLINE: Duration = SHARD_DEADLINE.saturating_mul(3);

/// Work on more bytes than this (checksums, copies, decoding: about 0.2 ms) leaves the runtime's threads.
const INLINE_BYTES_MAX: usize = 512 * 1024;

/// Reads and writes stripes over a set of storage nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StripeIo {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    meta: MetaSession,
    stores: Arc<dyn ShardStores>,
    latencies: Latencies,
    reporter: Reporter,
    writes: store::Writes,
}

/// One read of [`StripeIo::read_many`].
#[derive(Clone, Debug)]
pub struct StripeRead {
    /// The stripe and where its shards are.
    pub stripe: Arc<Stripe>,
    /// Bytes of the stripe.
    pub range: Range<u32>,
}

impl StripeIo {
    /// Over this metadata (for places to write, and to report damage to) and these nodes.
    #[must_use]
    pub fn new(meta: MetaSession, stores: Arc<dyn ShardStores>) -> Self {
        let reporter = Reporter::new(meta.clone());
        let shared =
            Shared { meta, stores, latencies: Latencies::default(), reporter, writes: store::Writes::default() };
        StripeIo { shared: Arc::new(shared) }
    }
}

/// Does something with a node's store within the deadline of a shard request.
async fn ask<T, F>(
    stores: &Arc<dyn ShardStores>,
    node: NodeId,
    request: impl FnOnce(Arc<dyn ShardStore>) -> F,
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let whole = async { request(stores.store(node).await?).await };
    match tokio::time::timeout(SHARD_DEADLINE, whole).await {
        Ok(result) => result,
        Err(_) => Err(Error::new(Kind::Timeout, format!("no answer within {SHARD_DEADLINE:?}"))),
    }
}

/// Runs work on `bytes` bytes where it does not hold up the runtime.
async fn offload<T: Send + 'static>(bytes: usize, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    if bytes <= INLINE_BYTES_MAX {
        return Ok(work());
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Ok(result),
        Err(error) => Err(Error::caused(Kind::Cancelled, "work on a blocking thread", error)),
    }
}
