//! The argument checks that every code makes, so that none can panic or read past a slice.

use crate::error::{Error, Kind, Result};
use crate::layout::Profile;

fn invalid<T>(message: String) -> Result<T> {
    Err(Error::new(Kind::InvalidInput, message))
}

/// Numbers and lengths for encoding.
pub(super) fn check_encode(profile: Profile, data: &[&[u8]], parity: &[&mut [u8]]) -> Result<()> {
    if data.len() != usize::from(profile.data) || parity.len() != usize::from(profile.parity) {
        return invalid(format!("{} data and {} parity shards for a {profile} code", data.len(), parity.len()));
    }
    let len = parity[0].len();
    if parity.iter().any(|shard| shard.len() != len) {
        return invalid("parity buffers differ in length".to_owned());
    }
    if let Some(shard) = data.iter().find(|shard| shard.len() > len) {
        return invalid(format!("a data shard of {} bytes with parity of {len}", shard.len()));
    }
    Ok(())
}

/// Numbers and lengths for restoring, and that enough is there.
pub(super) fn check_reconstruct(
    profile: Profile,
    shards: &[Option<&[u8]>],
    len: usize,
    wanted: &[usize],
) -> Result<()> {
    if shards.len() != profile.shards() {
        return invalid(format!("{} shards for a {profile} code", shards.len()));
    }
    if let Some(shard) = shards.iter().flatten().find(|shard| shard.len() > len) {
        return invalid(format!("a shard of {} bytes where {len} are wanted", shard.len()));
    }
    if let Some(index) = wanted.iter().find(|&&index| index >= shards.len()) {
        return invalid(format!("shard {index} of a {profile} code"));
    }
    let present = shards.iter().flatten().count();
    if present < usize::from(profile.data) {
        let message = format!("{present} shards of a {profile} stripe are left and {} are needed", profile.data);
        return Err(Error::new(Kind::DataLoss, message));
    }
    Ok(())
}
