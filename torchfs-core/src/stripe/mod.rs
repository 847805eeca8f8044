//! Stripes in and out: what the client and, later, repair share. [`StripeIo`] writes content as k+m shards on distinct
//! nodes, and reads byte ranges back with as few shards as possible.

use crate::error::Result;
use crate::layout::{Profile, Stripe, StripeShape};
use crate::meta::MetaSession;
use crate::shard::ShardStores;
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// Reads and writes stripes over a set of storage nodes. Cheap to clone.
#[derive(Clone, Debug)]
pub struct StripeIo {
    meta: MetaSession,
    stores: Arc<dyn ShardStores>,
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
        StripeIo { meta, stores }
    }

    /// Writes one stripe and returns its record, which a commit must name before a file has it. `data` is
    /// `shape.data_bytes` long.
    ///
    /// A node that fails is replaced by a spare. If there are fewer nodes than shards, several shards go to one node as
    /// long as any one node may still be lost; the record then [is under-spread](Stripe::is_under_spread).
    ///
    /// # Errors
    /// `NoSpace` if nodes refuse for lack of space, `Unavailable` if not even one node's loss could be survived.
    pub async fn write(&self, shape: StripeShape, data: Bytes) -> Result<Stripe> {
        let _ = (shape, data, &self.meta, &self.stores);
        todo!()
    }

    /// Writes content of any length as stripes of the profile, each as large as possible, several at a time.
    ///
    /// # Errors
    /// See [`StripeIo::write`].
    pub async fn write_all(&self, profile: Profile, data: Bytes) -> Result<Vec<Stripe>> {
        let _ = (profile, data);
        todo!()
    }

    /// Reads a byte range of a stripe: its data shards first; parity for what is missing, damaged or slow.
    ///
    /// # Errors
    /// `Unavailable` if fewer than k shards can be had now, `DataLoss` if every node answered and still fewer than k are good.
    pub async fn read(&self, stripe: &Arc<Stripe>, range: Range<u32>) -> Result<Bytes> {
        let _ = (stripe, range);
        todo!()
    }

    /// Reads many ranges with one `get_many` per node, falling back to [`StripeIo::read`] for those that fail.
    pub async fn read_many(&self, reads: Vec<StripeRead>) -> Vec<Result<Bytes>> {
        let _ = reads;
        todo!()
    }
}
