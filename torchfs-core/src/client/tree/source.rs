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
    pub entry: Box<Entry>,
    /// Where its bytes are.
    pub content: Content,
    /// How often it was found changed.
    pub attempt: u32,
}

impl FileItem {
    /// From what the walker found, if it is a regular file.
    ///
    /// # Errors
    /// The entry, if it is something else.
    pub fn new(mut entry: Box<Entry>, attempt: u32) -> Result<Self, Box<Entry>> {
        match std::mem::replace(&mut entry.what, What::Plain) {
            What::Content(content) => Ok(FileItem { entry, content, attempt }),
            what => {
                entry.what = what;
                Err(entry)
            }
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

/// A file that is not copied.
#[derive(Debug)]
pub(super) struct GivenUp {
    /// Which.
    pub entry: Box<Entry>,
    /// Why.
    pub error: Error,
}

/// What to do about a file that could not be read whole: look again.
///
/// # Errors
/// The reason to give it up.
pub(super) fn second_look(item: FileItem, error: Error, owner: super::walk::Owner) -> Result<FileItem, GivenUp> {
    let attempt = item.attempt + 1;
    let give_up = |entry, error| GivenUp { entry, error };
    if error.kind() != Kind::Conflict || attempt >= ATTEMPTS_MAX {
        return Err(give_up(item.entry, error));
    }
    match look_again(&item.entry, owner) {
        Ok(entry) => FileItem::new(Box::new(entry), attempt).map_err(|entry| give_up(entry, changed())),
        Err(error) => Err(give_up(item.entry, error)),
    }
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

#[cfg(test)]
mod tests {
    use super::super::walk::{Found, Owner, Walker};
    use super::*;
    use crate::client::pack::Packer;
    use crate::layout::Profile;
    use crate::meta::Name;
    use proptest::prelude::*;
    use std::path::Path;

    fn find(path: &Path) -> FileItem {
        let (sender, mut found) = tokio::sync::mpsc::channel(8);
        Walker::new(Owner::Fixed(1, 1), sender).walk(path, Name::new("f").unwrap());
        match found.blocking_recv() {
            Some(Found::Entry(entry)) => FileItem::new(entry, 0).expect("a regular file"),
            other => panic!("{other:?}"),
        }
    }

    fn read(item: FileItem, beside: FileItem) -> ReadPack {
        let mut packer = Packer::new(Profile::DEFAULT);
        for item in [item, beside] {
            let bytes = item.content.data_bytes() as u32;
            assert!(packer.push(item, bytes).is_none());
        }
        read_pack(packer.finish().unwrap())
    }

    #[test]
    fn a_file_that_changes_is_looked_at_once_more_and_then_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let (path, calm) = (folder.path().join("f"), folder.path().join("calm"));
        std::fs::write(&path, "first").unwrap();
        std::fs::write(&calm, "calm").unwrap();
        let item = find(&path);
        std::fs::write(&path, "then longer").unwrap();
        let mut read_one = read(item, find(&calm));
        assert_eq!(&read_one.data[..], b"\0\0\0\0\0calm");
        let (item, error) = read_one.bad.pop().unwrap();
        let again = second_look(item, error, Owner::Fixed(1, 1)).expect("one more look");
        assert_eq!(again.content.stamp.size, 11);
        assert_eq!(&read_part(&again, &[0..4, 9..11]).unwrap()[..], b"thener");
        std::fs::write(&path, "short").unwrap();
        let (item, error) = read(again, find(&calm)).bad.pop().unwrap();
        let given_up = second_look(item, error, Owner::Fixed(1, 1)).expect_err("no third look");
        assert_eq!((given_up.entry.path, given_up.error.kind()), (path, Kind::Conflict));
    }

    #[test]
    fn a_file_that_vanishes_is_given_up_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "here").unwrap();
        let item = find(&path);
        std::fs::remove_file(&path).unwrap();
        let (item, error) = read(
            item,
            find(&{
                std::fs::write(folder.path().join("calm"), "calm").unwrap();
                folder.path().join("calm")
            }),
        )
        .bad
        .pop()
        .unwrap();
        assert_eq!(second_look(item, error, Owner::Kept).expect_err("gone").error.kind(), Kind::NotFound);
    }

    proptest! {
        #[test]
        fn cutting_keeps_every_byte_in_order(pieces in prop::collection::vec((1u64..50, 0u64..5), 0..30), stripe in 1u64..40) {
            let mut at = 0;
            let ranges: Vec<_> = pieces.iter().map(|(len, hole)| {
                let range = at + hole..at + hole + len;
                at = range.end;
                range
            }).collect();
            let parts: Vec<_> = Cutter::new(ranges.clone(), stripe).collect();
            let bytes = |ranges: &[Range<u64>]| ranges.iter().cloned().flatten().collect::<Vec<_>>();
            prop_assert_eq!(bytes(&parts.concat()), bytes(&ranges));
            let sizes: Vec<_> = parts.iter().map(|part| bytes(part).len() as u64).collect();
            prop_assert!(sizes.iter().rev().skip(1).all(|&size| size == stripe));
            prop_assert!(sizes.last().is_none_or(|&size| size <= stripe));
        }
    }
}
