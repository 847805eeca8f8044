//! Looking at what is there: the count at start, header checks, pages of the list, empty groups. Blocking.

use super::Inner;
use super::damage::Damage;
use super::file::{self, Expected};
use super::folder::{Folder, Group};
use super::format::{HEADER_BYTES, is_shard_length};
use super::space::Space;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, Instant, SystemTime};
use torchfs_core::shard::ShardStat;
use torchfs_core::{Error, IoContext, Kind, Result, ShardId, folder};
use tracing::{info, warn};

const PROGRESS_EVERY: Duration = Duration::from_secs(5);

/// Counts every shard, remembers those whose length is impossible, and returns the groups. Names that are not ours are
/// left alone and logged.
pub fn count(folder: &Folder, space: &Space, damage: &Damage) -> Result<HashSet<Group>> {
    // Names that a process killed between mkdir and fsync left behind.
    folder::sync(&folder.data())?;
    let listed = folder.groups()?;
    log_strange(&listed.strange);
    let (mut shards, mut logged) = (0u64, Instant::now());
    for &group in &listed.known {
        let in_group = folder.shards(group)?;
        log_strange(&in_group.strange);
        for shard in in_group.known {
            let path = folder.shard(shard);
            let file_bytes = fs::symlink_metadata(&path).io(|| format!("stat {}", path.display()))?.len();
            space.add(file_bytes);
            shards += 1;
            if data_bytes(file_bytes).is_none() {
                damage.found(shard, &Error::new(Kind::Corrupt, format!("its file has {file_bytes} bytes")));
            }
        }
        if logged.elapsed() > PROGRESS_EVERY {
            info!(shards, "counting the shards in {}", folder.root().display());
            logged = Instant::now();
        }
    }
    Ok(listed.known.into_iter().collect())
}

fn log_strange(strange: &[std::path::PathBuf]) {
    if let Some(first) = strange.first() {
        let others = strange.len() - 1;
        warn!(path = %first.display(), others, "files that are not ours are in the data folder; they are left alone");
    }
}

/// Reads the headers of shards; the damaged ones are remembered.
pub fn check_headers(inner: &Inner, shards: &[ShardId]) -> Result<()> {
    for &shard in shards {
        let expected = inner.expected(shard)?;
        // A shard that was deleted meanwhile is no news, and one that cannot be read says so when it is read.
        let _ = inner.watched(shard, file::read_header(&inner.folder.shard(shard), expected));
    }
    Ok(())
}

/// What is known of one shard.
pub fn stat(folder: &Folder, expected: Expected) -> Result<ShardStat> {
    let path = folder.shard(expected.shard);
    let header = file::read_header(&path, expected)?;
    let metadata = fs::symlink_metadata(&path).io(|| format!("stat {}", path.display()))?;
    Ok(ShardStat { shard: expected.shard, bytes: header.bytes, age_seconds: age_seconds(&metadata) })
}

/// A page of all shards in rising order. Only lengths and times are looked at, not contents.
pub fn page(folder: &Folder, after: Option<ShardId>, limit: usize) -> Result<Vec<ShardStat>> {
    let first = after.map(|shard| Group::of(shard.stripe));
    let mut page = Vec::new();
    for group in folder.groups()?.known.into_iter().filter(|&group| Some(group) >= first) {
        for shard in folder.shards(group)?.known.into_iter().filter(|&shard| Some(shard) > after) {
            if page.len() == limit {
                return Ok(page);
            }
            page.extend(listed(&folder.shard(shard), shard)?);
        }
    }
    Ok(page)
}

fn listed(path: &Path, shard: ShardId) -> Result<Option<ShardStat>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => {
            let bytes = data_bytes(metadata.len()).unwrap_or(0);
            Ok(Some(ShardStat { shard, bytes, age_seconds: age_seconds(&metadata) }))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("stat {}", path.display()), error)),
    }
}

/// Removes groups without a shard; the operating system refuses it for the others.
pub fn remove_empty_groups(inner: &Inner) -> Result<()> {
    for group in inner.folder.groups()?.known {
        let mut groups = inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if fs::remove_dir(inner.folder.group(group)).is_ok() {
            groups.remove(&group);
        }
    }
    Ok(())
}

/// The data bytes in a file of this size, if there can be such a shard.
fn data_bytes(file_bytes: u64) -> Option<u32> {
    let bytes = file_bytes.checked_sub(HEADER_BYTES as u64)?;
    is_shard_length(usize::try_from(bytes).ok()?).then_some(bytes as u32)
}

fn age_seconds(metadata: &fs::Metadata) -> u64 {
    let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    SystemTime::now().duration_since(written).map_or(0, |age| age.as_secs())
}
