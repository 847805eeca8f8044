//! Erasure codes: [`ErasureCode`] and its implementations.
//!
//! A code here is *systematic over contiguous shards*: the k data shards are the content itself, one range after the
//! other, and only parity is computed. Data shards that are shorter than the longest (the last one) or empty count as
//! padded with zeros.

mod check;
pub mod conformance;
mod gf8;
mod naive;
mod novelpoly;

pub use gf8::Gf8;
pub use naive::Naive;
pub use novelpoly::Novelpoly;

use crate::error::Result;
use crate::layout::{Codec, Profile};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Makes parity shards and restores lost shards.
///
/// # Contract for implementors
/// Pure. Position-wise in runs of 64 KiB: bytes `a..b` of every parity shard depend only on bytes `a..b` of the data
/// shards when `a` and `b` are multiples of 64 KiB or `b` is the end, so that a range of a lost shard is restored from the
/// same range of k others.
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

/// The code for a profile. It is built once per process and shared.
///
/// # Errors
/// [`Kind::InvalidInput`](crate::Kind::InvalidInput) for an impossible profile.
pub fn code(profile: Profile) -> Result<Arc<dyn ErasureCode>> {
    /// Bounded by the number of possible profiles.
    static CODES: OnceLock<Mutex<HashMap<Profile, Arc<dyn ErasureCode>>>> = OnceLock::new();
    let mut codes = CODES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(code) = codes.get(&profile) {
        return Ok(code.clone());
    }
    let code: Arc<dyn ErasureCode> = match profile.codec {
        Codec::Gf8 => Arc::new(Gf8::new(profile)?),
        Codec::Novelpoly => Arc::new(Novelpoly::new(profile)?),
    };
    codes.insert(profile, code.clone());
    Ok(code)
}
