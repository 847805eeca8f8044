//! A file's extents, in chunks of bounded size, so that a change touches only the chunks around it.
//!
//! A chunk's key holds where its last extent ends. The chunks that a range of the file touches are then those from the
//! first key past the start of the range on, which a forward scan finds.

use super::keys;
use super::tx::{Outcome, Tx, decode};
use std::collections::BTreeMap;
use std::ops::Range;
use torchfs_core::layout::Extent;
use torchfs_core::meta::ContentChange;
use torchfs_core::{InodeId, StripeId};

/// Most extents in one chunk: about 16 KiB of record.
const CHUNK_EXTENTS: usize = 1024;

/// Chunks that one scan brings.
const SCAN_CHUNKS: usize = 16;

/// By how many bytes the extents that name each stripe grew or shrank.
pub(super) type LiveChange = BTreeMap<StripeId, i64>;

/// Lays a change over a file's extents.
pub(super) fn rewrite(tx: &mut Tx<'_>, ino: InodeId, change: &ContentChange) -> Outcome<LiveChange> {
    let removed = removed_ranges(change);
    let (Some(first), Some(last)) = (removed.first(), removed.last()) else { return Ok(LiveChange::new()) };
    let mut old = Vec::new();
    for (key, chunk) in load(tx, ino, first.start..last.end)? {
        tx.delete(key);
        old.extend(chunk);
    }
    let mut new = subtract(&old, &removed);
    new.extend_from_slice(&change.extents);
    new.sort_by_key(|extent| extent.offset);
    let new = merged(new);
    for chunk in new.chunks(CHUNK_EXTENTS) {
        let end = chunk.last().map_or(0, Extent::end);
        tx.put(keys::extents(ino, end), &chunk)?;
    }
    let mut live = LiveChange::new();
    old.iter().for_each(|extent| *live.entry(extent.stripe).or_default() -= i64::from(extent.len));
    new.iter().for_each(|extent| *live.entry(extent.stripe).or_default() += i64::from(extent.len));
    live.retain(|_, bytes| *bytes != 0);
    Ok(live)
}

/// Removes all extents of a file; and how many there were.
pub(super) fn clear(tx: &mut Tx<'_>, ino: InodeId) -> Outcome<(LiveChange, usize)> {
    let (mut live, mut count) = (LiveChange::new(), 0);
    for (key, chunk) in load(tx, ino, 0..u64::MAX)? {
        tx.delete(key);
        count += chunk.len();
        chunk.iter().for_each(|extent| *live.entry(extent.stripe).or_default() -= i64::from(extent.len));
    }
    Ok((live, count))
}

/// How many bytes of each stripe a file's extents name; and how many extents there are.
pub(super) fn live(tx: &Tx<'_>, ino: InodeId) -> Outcome<(BTreeMap<StripeId, u64>, usize)> {
    let (mut live, mut count) = (BTreeMap::new(), 0);
    for (_, chunk) in load(tx, ino, 0..u64::MAX)? {
        count += chunk.len();
        chunk.iter().for_each(|extent| *live.entry(extent.stripe).or_default() += u64::from(extent.len));
    }
    Ok((live, count))
}

/// All extents of a file in order, runs that continue each other merged.
pub(super) fn all(tx: &Tx<'_>, ino: InodeId) -> Outcome<Vec<Extent>> {
    Ok(merged(load(tx, ino, 0..u64::MAX)?.into_iter().flat_map(|(_, chunk)| chunk).collect()))
}

/// The chunks that touch a range, or end exactly where it starts: an append goes on with the last one.
fn load(tx: &Tx<'_>, ino: InodeId, range: Range<u64>) -> Outcome<Vec<(Vec<u8>, Vec<Extent>)>> {
    let mut chunks = Vec::new();
    let mut from = keys::extents(ino, range.start);
    let to = keys::end_of(&keys::extents_of(ino));
    loop {
        let found = tx.scan(&from, &to, SCAN_CHUNKS)?;
        let full = found.len() == SCAN_CHUNKS;
        for (key, bytes) in found {
            let chunk: Vec<Extent> = decode(&key, &bytes)?;
            if chunk.first().is_none_or(|first| first.offset >= range.end) {
                return Ok(chunks);
            }
            from = super::tx::successor(&key);
            chunks.push((key, chunk));
        }
        if !full {
            return Ok(chunks);
        }
    }
}

/// Which ranges of the file lose what they had: sorted, not touching.
fn removed_ranges(change: &ContentChange) -> Vec<Range<u64>> {
    let cut = change.keep_bytes.map(|keep| keep..u64::MAX);
    let holes = change.holes.iter().map(|&(offset, len)| offset..offset.saturating_add(len));
    let covered = change.extents.iter().map(|extent| extent.offset..extent.end());
    let mut ranges: Vec<_> = cut.into_iter().chain(holes).chain(covered).filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| range.start);
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// What is left of sorted extents without some sorted ranges.
fn subtract(extents: &[Extent], removed: &[Range<u64>]) -> Vec<Extent> {
    let mut left = Vec::with_capacity(extents.len());
    let mut at = 0;
    for extent in extents {
        while removed.get(at).is_some_and(|range| range.end <= extent.offset) {
            at += 1;
        }
        let mut start = extent.offset;
        for range in removed[at..].iter().take_while(|range| range.start < extent.end()) {
            left.extend(extent.slice(&(start..range.start.max(start))));
            start = range.end;
        }
        if start < extent.end() {
            left.extend(extent.slice(&(start..extent.end())));
        }
    }
    left
}

/// Joins neighbours that are one run in file and stripe.
fn merged(extents: Vec<Extent>) -> Vec<Extent> {
    let mut joined: Vec<Extent> = Vec::with_capacity(extents.len());
    for extent in extents {
        match joined.last_mut() {
            Some(last) if continues(last, &extent) => last.len += extent.len,
            _ => joined.push(extent),
        }
    }
    joined
}

fn continues(first: &Extent, next: &Extent) -> bool {
    first.stripe == next.stripe
        && first.end() == next.offset
        && first.stripe_offset.checked_add(first.len) == Some(next.stripe_offset)
        && first.len.checked_add(next.len).is_some()
}
