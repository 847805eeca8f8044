//! What a start makes of the journal: every shard that a segment names is as its last record says, and durable, before
//! anything else looks at the shards.

use super::Shape;
use super::record::{Change, Epoch, PAGE_BYTES, Place};
use super::segment::Segment;
use crate::disk::file::{self, Expected};
use crate::disk::folder::{Folder, Group, make_folder};
use crate::disk::format::{HEADER_BYTES, Header};
use crate::disk::identity::Identity;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::Path;
use torchfs_core::{Context, Error, IoContext, Kind, Result, ShardId, folder};
use tracing::{info, warn};

/// A segment as it was found.
struct Old {
    segment: Segment,
    /// Of its records.
    epoch: Epoch,
    is_damaged: bool,
}

/// The last record of a shard.
#[derive(Clone, Copy)]
struct Last {
    change: Change,
    segment: usize,
    at: u64,
    place: Place,
}

/// Replays the journal of a folder and empties it. Returns its segments, or none if they are to be made anew.
///
/// # Errors
/// `Protocol` for another format version, `Corrupt` for a journal of something else, or of the operating system; then the
/// journal is as it was.
pub fn replay(folder: &Folder, identity: Identity, shape: &Shape) -> Result<Vec<(Segment, Epoch)>> {
    let old = find(folder)?;
    let last = read(&old)?;
    if !last.is_empty() {
        apply(folder, identity, &old, &last).context(|| format!("journal in {}", folder.root().display()))?;
    }
    let is_whole = |old: &Old| !old.is_damaged && old.segment.bytes() == shape.segment_bytes;
    let fits = old.len() as u64 == shape.segments && old.iter().all(is_whole);
    if fits && last.is_empty() {
        return Ok(old.into_iter().map(|old| (old.segment, old.epoch)).collect());
    }
    let segments = reset(old)?;
    if fits {
        return Ok(segments);
    }
    for (segment, _) in segments {
        fs::remove_file(segment.path()).io(|| format!("delete {}", segment.path().display()))?;
    }
    Ok(Vec::new())
}

/// The segments that are there, in the order of their use.
fn find(folder: &Folder) -> Result<Vec<Old>> {
    let mut found = Vec::new();
    for number in 0.. {
        let Some(segment) = Segment::open(&folder.segment(number))? else { break };
        let epoch = segment.epoch()?;
        if epoch.is_none() {
            warn!("the first page of {} is damaged; its records are replayed", segment.path().display());
        }
        let records = match epoch {
            Some(epoch) => epoch,
            // Torn while it was freed, which is too early for a record of the next use.
            None => segment.first_record()?.unwrap_or(Epoch(0)),
        };
        found.push(Old { segment, epoch: records, is_damaged: epoch.is_none() });
    }
    found.sort_by_key(|old| old.epoch);
    Ok(found)
}

/// The last record of every shard. A record that is torn or of an earlier use ends its segment.
fn read(old: &[Old]) -> Result<BTreeMap<ShardId, Last>> {
    let mut last = BTreeMap::new();
    for (number, Old { segment, epoch, .. }) in old.iter().enumerate() {
        let mut at = PAGE_BYTES as u64;
        for index in 0.. {
            let place = Place { epoch: *epoch, index };
            let Some((found, _)) = segment.record(at, place)? else { break };
            last.insert(found.shard, Last { change: found.change, segment: number, at, place });
            at += found.padded_bytes() as u64;
        }
    }
    Ok(last)
}

fn apply(folder: &Folder, identity: Identity, old: &[Old], last: &BTreeMap<ShardId, Last>) -> Result<()> {
    let Some(registration) = identity.registration else {
        return Err(Error::new(Kind::Corrupt, "it holds shards, and the folder never joined a cluster"));
    };
    let (mut written, mut deleted) = (0, 0);
    for (&shard, record) in last {
        let expected = Expected { cluster: registration.cluster, shard };
        match record.change {
            Change::Put => written += u64::from(put(folder, expected, old, record)?),
            Change::Delete => deleted += u64::from(delete(&folder.shard(shard))?),
        }
    }
    let groups: BTreeSet<Group> = last.keys().map(|shard| Group::of(shard.stripe)).collect();
    for path in groups.into_iter().map(|group| folder.group(group)).filter(|path| path.is_dir()) {
        folder::sync(&path)?;
    }
    folder::sync(&folder.data())?;
    info!(shards = last.len(), written, deleted, "replayed the journal of {}", folder.root().display());
    Ok(())
}

/// Makes a shard durable; whether it had to be written again.
fn put(folder: &Folder, expected: Expected, old: &[Old], record: &Last) -> Result<bool> {
    let path = folder.shard(expected.shard);
    match file::read_all(&path, expected) {
        Ok(_) => {
            // It may be in memory only.
            File::open(&path).and_then(|file| file.sync_data()).io(|| format!("fdatasync {}", path.display()))?;
            return Ok(false);
        }
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Corrupt) => {}
        Err(error) => return Err(error),
    }
    let Some((_, body)) = old[record.segment].segment.record(record.at, record.place)? else {
        return Err(Error::new(
            Kind::Corrupt,
            format!("the record of shard {} changes under our hands", expected.shard),
        ));
    };
    check(&body, expected)?;
    let temp = folder.temp().join(format!("{}.replay", expected.shard));
    let write = || {
        fs::write(&temp, &body)?;
        File::open(&temp)?.sync_data()?;
        fs::rename(&temp, &path)
    };
    make_folder(&folder.group(Group::of(expected.shard.stripe)))?;
    write().io(|| format!("write {}", path.display()))?;
    Ok(true)
}

fn check(body: &[u8], expected: Expected) -> Result<()> {
    let mut head = [0; HEADER_BYTES];
    head.copy_from_slice(&body[..HEADER_BYTES]);
    let header = Header::decode(&head)?;
    if header.cluster != expected.cluster || header.shard != expected.shard {
        let message = format!("it holds shard {} of cluster {} as {}", header.shard, header.cluster, expected.shard);
        return Err(Error::new(Kind::Corrupt, message));
    }
    Ok(())
}

/// Whether there was something to delete.
fn delete(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("delete {}", path.display()), error)),
    }
}

/// Begins another use of every segment.
fn reset(old: Vec<Old>) -> Result<Vec<(Segment, Epoch)>> {
    let mut epoch = old.iter().map(|old| old.epoch).max().unwrap_or(Epoch(0));
    let mut segments = Vec::new();
    // The oldest first: what is left after a crash is never an older change without the newer one.
    for Old { segment, .. } in old {
        epoch = epoch.next();
        segment.reset(epoch).io(|| format!("write and fdatasync {}", segment.path().display()))?;
        segments.push((segment, epoch));
    }
    Ok(segments)
}
