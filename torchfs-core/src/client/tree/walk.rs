//! The local side of `put`: walks a tree and says what is there, in the order in which it should be found together.
//! It reads names, attributes, holes and extended attributes, but of content at most two bytes. Runs on a blocking thread.

use super::xattr::{self, Xattrs};
use crate::error::{Error, IoContext, Kind, Result};
use crate::meta::{Name, NewInode, NewKind, Timestamp};
use rustix::fs::SeekFrom;
use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::Sender;

/// Stands for an inode whose number is not known yet: something else refers to it.
pub(super) type Slot = usize;

/// The folder that the copied thing itself is put into.
pub(super) const TARGET_PARENT: Slot = 0;

/// One thing that was found.
#[derive(Debug)]
pub(super) enum Found {
    /// Something to copy.
    Entry(Box<Entry>),
    /// Something that cannot be looked at.
    Failed(PathBuf, Error),
}

/// A file, folder or link to copy.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where it is here.
    pub path: PathBuf,
    /// The folder that it goes into.
    pub parent: Slot,
    /// Its name there.
    pub name: Name,
    /// Set if something else refers to it.
    pub slot: Option<Slot>,
    /// What it becomes.
    pub inode: NewInode,
    /// What else there is to it.
    pub what: What,
    /// Extended attributes `user.*`.
    pub xattrs: Xattrs,
}

/// What there is to an entry beside its attributes.
#[derive(Debug)]
pub(super) enum What {
    /// A folder, a symbolic link or something special: nothing.
    Plain,
    /// A regular file's content.
    Content(Content),
    /// A regular file whose size says nothing about where it ends, as in /proc and /sys.
    Stream,
    /// Another name of a file that was found before.
    LinkTo(Slot),
}

/// Where a file's content is and by what it is recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Content {
    /// What the file looked like when it was found.
    pub stamp: Stamp,
    /// Where it has data, in order; the rest are holes.
    pub data: Vec<Range<u64>>,
}

impl Content {
    /// Bytes that are not holes.
    pub fn data_bytes(&self) -> u64 {
        self.data.iter().map(|range| range.end - range.start).sum()
    }
}

/// What differs when a file was written to or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    /// Length in bytes.
    pub size: u64,
    mtime: Timestamp,
}

impl From<&Metadata> for Stamp {
    fn from(found: &Metadata) -> Self {
        Stamp { device: found.dev(), inode: found.ino(), size: found.size(), mtime: mtime(found) }
    }
}

fn mtime(found: &Metadata) -> Timestamp {
    Timestamp { seconds: found.mtime(), nanos: found.mtime_nsec() as u32 }
}

/// Who owns what is copied in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Owner {
    /// The same as here: only root may say so.
    Kept,
    /// This user and group.
    Fixed(u32, u32),
}

/// Walks a tree, depth first, each folder in byte order of the names with its files before its folders.
#[derive(Debug)]
pub(super) struct Walker {
    owner: Owner,
    slots: Slot,
    linked: HashMap<(u64, u64), Slot>,
    found: Sender<Found>,
}

/// The receiver went away: nobody wants to know any more.
struct Unwanted;

impl Walker {
    /// Sends what it finds to `found`.
    pub fn new(owner: Owner, found: Sender<Found>) -> Self {
        Walker { owner, slots: TARGET_PARENT, linked: HashMap::new(), found }
    }

    /// Walks `source`, which becomes `name`. Ends early when the receiver is dropped.
    pub fn walk(mut self, source: &Path, name: Name) {
        // The error is the receiver's end, which needs no answer.
        drop(self.walk_all(source, name));
    }

    fn walk_all(&mut self, source: &Path, name: Name) -> Result<(), Unwanted> {
        let mut folders = Vec::new();
        self.visit(source.to_owned(), TARGET_PARENT, name, &mut folders)?;
        while let Some((path, slot)) = folders.pop() {
            let names = match sorted_names(&path) {
                Ok(names) => names,
                Err(error) => {
                    self.send(Found::Failed(path, error))?;
                    continue;
                }
            };
            let first = folders.len();
            for name in names {
                self.visit(path.join(std::ffi::OsStr::from_bytes(name.as_bytes())), slot, name, &mut folders)?;
            }
            folders[first..].reverse();
        }
        Ok(())
    }

    fn visit(
        &mut self,
        path: PathBuf,
        parent: Slot,
        name: Name,
        folders: &mut Vec<(PathBuf, Slot)>,
    ) -> Result<(), Unwanted> {
        let found = match self.look(&path, parent, name) {
            Ok(entry) => {
                if let (NewKind::Directory, Some(slot)) = (&entry.inode.kind, entry.slot) {
                    folders.push((path, slot));
                }
                Found::Entry(Box::new(entry))
            }
            Err(error) => Found::Failed(path, error),
        };
        self.send(found)
    }

    fn look(&mut self, path: &Path, parent: Slot, name: Name) -> Result<Entry> {
        let found = std::fs::symlink_metadata(path).io(|| format!("look at {}", path.display()))?;
        let mut entry = describe(path, &found, self.owner, parent, name)?;
        if found.is_dir() {
            entry.slot = Some(self.next_slot());
        } else if found.nlink() > 1 {
            match self.linked.get(&(found.dev(), found.ino())) {
                Some(&first) => (entry.what, entry.xattrs) = (What::LinkTo(first), Vec::new()),
                None => {
                    let slot = self.next_slot();
                    self.linked.insert((found.dev(), found.ino()), slot);
                    entry.slot = Some(slot);
                }
            }
        }
        if !entry.xattrs.is_empty() && entry.slot.is_none() {
            entry.slot = Some(self.next_slot());
        }
        Ok(entry)
    }

    fn next_slot(&mut self) -> Slot {
        self.slots += 1;
        self.slots
    }

    fn send(&self, found: Found) -> Result<(), Unwanted> {
        self.found.blocking_send(found).map_err(|_| Unwanted)
    }
}

fn sorted_names(folder: &Path) -> Result<Vec<Name>> {
    let entries = std::fs::read_dir(folder).io(|| format!("list {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(Name::new(entry.io(|| format!("list {}", folder.display()))?.file_name().into_vec())?);
    }
    names.sort_unstable();
    Ok(names)
}

/// Looks again at a file that changed while it was read.
///
/// # Errors
/// If it is no longer a regular file or cannot be looked at.
pub(super) fn look_again(entry: &Entry, owner: Owner) -> Result<Entry> {
    let found = std::fs::symlink_metadata(&entry.path).io(|| format!("look at {}", entry.path.display()))?;
    if !found.is_file() {
        return Err(Error::new(Kind::Conflict, "no longer a regular file"));
    }
    let again = describe(&entry.path, &found, owner, entry.parent, entry.name.clone())?;
    Ok(Entry { slot: entry.slot, ..again })
}

fn describe(path: &Path, found: &Metadata, owner: Owner, parent: Slot, name: Name) -> Result<Entry> {
    let kind = kind(path, found)?;
    let what = match kind {
        NewKind::File if found.blocks() == 0 && !ends_at(path, found.size())? => What::Stream,
        NewKind::File => What::Content(Content { stamp: Stamp::from(found), data: data_ranges(path, found)? }),
        _ => What::Plain,
    };
    let xattrs = if found.is_file() || found.is_dir() { xattr::read(path)? } else { Vec::new() };
    let (uid, gid) = match owner {
        Owner::Kept => (found.uid(), found.gid()),
        Owner::Fixed(uid, gid) => (uid, gid),
    };
    let inode = NewInode { kind, mode: found.mode() & 0o7777, uid, gid, mtime: Some(mtime(found)) };
    Ok(Entry { path: path.to_owned(), parent, name, slot: None, inode, what, xattrs })
}

fn kind(path: &Path, found: &Metadata) -> Result<NewKind> {
    let kind = found.file_type();
    if kind.is_symlink() {
        let target = std::fs::read_link(path).io(|| format!("read link {}", path.display()))?;
        return Ok(NewKind::Symlink(target.into_os_string().into_vec()));
    }
    Ok(match () {
        () if kind.is_dir() => NewKind::Directory,
        () if kind.is_fifo() => NewKind::Fifo,
        () if kind.is_socket() => NewKind::Socket,
        () if kind.is_char_device() => NewKind::CharDevice(found.rdev() as u32),
        () if kind.is_block_device() => NewKind::BlockDevice(found.rdev() as u32),
        () => NewKind::File,
    })
}

/// Opens a regular file for reading. A pipe that took its name meanwhile does not block, a link is not followed.
pub(super) fn open_source(path: &Path) -> Result<File> {
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC).bits();
    let file = File::options().read(true).custom_flags(flags as i32).open(path);
    file.io(|| format!("open {}", path.display()))
}

/// Whether a file ends where its size says. To be asked only of files without blocks: others are on a disk.
fn ends_at(path: &Path, size: u64) -> Result<bool> {
    let file = open_source(path)?;
    let is_there = |at| -> Result<bool> {
        let found = file.read_at(&mut [0], at).io(|| format!("read {}", path.display()))?;
        Ok(found > 0)
    };
    Ok(!is_there(size)? && (size == 0 || is_there(size - 1)?))
}

/// Where a file has data. Only a file with fewer blocks than its size needs is asked.
fn data_ranges(path: &Path, found: &Metadata) -> Result<Vec<Range<u64>>> {
    let size = found.size();
    if size == 0 {
        return Ok(Vec::new());
    }
    if found.blocks() * 512 >= size {
        return Ok(std::iter::once(0..size).collect());
    }
    let file = open_source(path)?;
    let mut ranges = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(&file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(error) => return Err(error).io(|| format!("find holes of {}", path.display())),
        };
        let end = rustix::fs::seek(&file, SeekFrom::Hole(start)).io(|| format!("find holes of {}", path.display()))?;
        ranges.push(start..end.min(size));
        at = end;
    }
    Ok(ranges)
}
