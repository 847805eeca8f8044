//! Erasure codes: [`ErasureCode`] and its implementations.
//!
//! A code here is *systematic over contiguous shards*: the k data shards are the content itself, one range after the
//! other, and only parity is computed. Data shards that are shorter than the longest (the last one) or empty count as
//! padded with zeros.

use crate::error::Result;
use crate::layout::{Codec, Profile};
use std::fmt::Debug;
use std::sync::Arc;

/// Makes parity shards and restores lost shards.
///
/// # Contract for implementors
/// Pure. Position-wise in runs of 64 KiB: bytes `a..b` of every parity shard depend only on bytes `a..b` of the data
/// shards when `a` is a multiple of 64 KiB, so that a range of a lost shard is restored from the same range of k others.
/// Any k shards restore all others exactly.
pub trait ErasureCode: Debug + Send + Sync {
    /// The k and m it was made for.
    fn profile(&self) -> Profile;

    /// Fills the m `parity` buffers (all of one length) from the k `data` shards, each at most that long and counted as
    /// padded with zeros.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`](crate::Kind::InvalidInput) for wrong numbers or lengths.
    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<()>;

    /// Restores the shards in `wanted` into new buffers of `len` bytes, in the order asked. `shards` has k+m entries;
    /// those present are at most `len` long and counted as padded with zeros.
    ///
    /// # Errors
    /// [`Kind::DataLoss`](crate::Kind::DataLoss) if fewer than k are present, `InvalidInput` for wrong numbers or lengths.
    fn reconstruct(&self, shards: &[Option<&[u8]>], len: usize, wanted: &[usize]) -> Result<Vec<Vec<u8>>>;
}

/// The code for a profile. Building one costs about a microsecond per matrix element; keep it.
///
/// # Errors
/// [`Kind::InvalidInput`](crate::Kind::InvalidInput) for an impossible profile.
pub fn code(profile: Profile) -> Result<Arc<dyn ErasureCode>> {
    match profile.checked()?.codec {
        Codec::Gf8 => todo!(),
        Codec::Novelpoly => todo!(),
    }
}
