//! Reads local files into stripe buffers, on blocking threads, and notices when they change meanwhile.

use super::super::pack::Packed;
use super::walk::{Content, Entry, Stamp, What, look_again, open_source};
use crate::error::{Error, IoContext, Kind, Result};
use crate::layout::{Extent, StripeShape};
use bytes::Bytes;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// How often a file is read again because it changed, before it is given up.
const ATTEMPTS_MAX: u32 = 2;

/// A regular file on its way in.
#[derive(Debug)]
pub(super) struct FileItem {
    /// What it becomes.
    pub entry: Entry,
    /// Where its bytes are.
    pub content: Content,
    /// How often it was found changed.
    pub attempt: u32,
}

impl FileItem {
    /// From what the walker found, if it is a regular file.
    pub fn new(mut entry: Entry, attempt: u32) -> std::result::Result<Self, Entry> {
        match std::mem::replace(&mut entry.what, What::Plain) {
            What::Content(content) => Ok(FileItem { entry, content, attempt }),
            what => Err(Entry { what, ..entry }),
        }
    }
}

/// A stripe's content, read.
#[derive(Debug)]
pub(super) struct ReadPack {
    /// The stripe's sizes.
    pub shape: StripeShape,
    /// Its bytes.
    pub data: Bytes,
    /// The files that are in it whole, and where.
    pub whole: Vec<(FileItem, u32)>,
    /// Files that changed while they were read or could not be read; their place in the stripe is waste.
    pub bad: Vec<(FileItem, Error)>,
}

/// Reads the files of a packed stripe each to its place.
pub(super) fn read_pack(packed: Packed<FileItem>) -> ReadPack {
    let mut data = vec![0; packed.shape.data_bytes as usize];
    let (mut whole, mut bad) = (Vec::with_capacity(packed.places.len()), Vec::new());
    for place in packed.places {
        let room = &mut data[place.offset as usize..][..place.len as usize];
        match read_ranges(&place.file.entry, &place.file.content, &place.file.content.data, room) {
            Ok(()) => whole.push((place.file, place.offset)),
            Err(error) => {
                // Half a file's bytes must not stay: a stripe holds whole files and zeros.
                room.fill(0);
                bad.push((place.file, error));
            }
        }
    }
    ReadPack { shape: packed.shape, data: data.into(), whole, bad }
}

/// Reads some ranges of a file into one buffer, one after the other.
///
/// # Errors
/// `Conflict` if the file is not what it was when it was found, or an error of the system.
pub(super) fn read_part(item: &FileItem, ranges: &[Range<u64>]) -> Result<Bytes> {
    let bytes: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    let mut data = vec![0; bytes as usize];
    read_ranges(&item.entry, &item.content, ranges, &mut data)?;
    Ok(data.into())
}

fn read_ranges(entry: &Entry, content: &Content, ranges: &[Range<u64>], mut room: &mut [u8]) -> Result<()> {
    let file = open_source(&entry.path)?;
    check_unchanged(&file, content.stamp)?;
    for range in ranges {
        let (piece, rest) = room.split_at_mut((range.end - range.start) as usize);
        file.read_exact_at(piece, range.start).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => changed(),
            _ => Error::io(format!("read {}", entry.path.display()), error),
        })?;
        room = rest;
    }
    check_unchanged(&file, content.stamp)
}

fn check_unchanged(file: &File, stamp: Stamp) -> Result<()> {
    let now = Stamp::from(&file.metadata().io(|| "look at an open file")?);
    if now == stamp { Ok(()) } else { Err(changed()) }
}

fn changed() -> Error {
    Error::new(Kind::Conflict, "it changes while it is read; stop what writes to it and copy it again")
}

/// What to do about a file that could not be read whole: look again, or give the reason to give up.
///
/// # Errors
/// The reason.
pub(super) fn second_look(item: FileItem, error: Error, owner: super::walk::Owner) -> Result<FileItem, (Entry, Error)> {
    let attempt = item.attempt + 1;
    if error.kind() != Kind::Conflict || attempt >= ATTEMPTS_MAX {
        return Err((item.entry, error));
    }
    look_again(&item.entry, owner)
        .map_err(|error| (item.entry, error))
        .and_then(|entry| FileItem::new(entry, attempt).map_err(|entry| (entry, changed())))
}

/// The extents of ranges of a file that lie one after the other from `at` on in a stripe.
pub(super) fn extents_at(ranges: &[Range<u64>], stripe: crate::ids::StripeId, mut at: u32) -> Vec<Extent> {
    let extent = |range: &Range<u64>| {
        let extent = Extent { offset: range.start, len: (range.end - range.start) as u32, stripe, stripe_offset: at };
        at += extent.len;
        extent
    };
    ranges.iter().map(extent).collect()
}

/// Cuts a large file's data into the content of one stripe after the other.
#[derive(Debug)]
pub(super) struct Cutter {
    left: std::vec::IntoIter<Range<u64>>,
    rest: Range<u64>,
    stripe_bytes: u64,
}

impl Cutter {
    /// Stripes hold up to `stripe_bytes` each.
    pub fn new(data: Vec<Range<u64>>, stripe_bytes: u64) -> Self {
        Cutter { left: data.into_iter(), rest: 0..0, stripe_bytes }
    }
}

impl Iterator for Cutter {
    type Item = Vec<Range<u64>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut part = Vec::new();
        let mut room = self.stripe_bytes;
        while room > 0 {
            if self.rest.is_empty() {
                match self.left.next() {
                    Some(range) => self.rest = range,
                    None => break,
                }
            }
            let end = self.rest.end.min(self.rest.start + room);
            room -= end - self.rest.start;
            part.push(self.rest.start..end);
            self.rest.start = end;
        }
        (!part.is_empty()).then_some(part)
    }
}
