//! The cache's folder: plain files of content, an index of the complete ones, a lock.
//!
//! ```text
//! lock                    held by the process that uses the folder
//! index                   one record per file that became complete
//! pins                    paths whose files stay; absent if none ever did
//! files/<2 hex>/<name>    content, byte for byte; sparse until complete
//! mounts/<number>/        the same again, for each further process that uses the folder at the same time
//! ```
//! Only what the index names is believed after a restart; all else under `files` is removed. Nothing is synced: after a
//! power cut the checksums in the index tell what is whole.

use super::CacheKey;
use super::index_file::{IndexFile, Record};
use crate::error::{Error, IoContext, Kind, Result};
use crate::folder::foreign_entry;
use crate::ids::ClusterId;
use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ResolveFlags, openat2, renameat_with};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, Metadata};
use std::io::IoSliceMut;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Processes that may use one folder at the same time.
const SEATS_MAX: u32 = 16;

/// Files of up to so many bytes are used again for others: making a file costs as much as writing it.
const SPARE_BYTES_MAX: u64 = 1 << 20;

/// The folder, locked by this process.
#[derive(Debug)]
pub(super) struct Disk {
    dir: PathBuf,
    index: IndexFile,
    next_name: AtomicU64,
    spares: Mutex<Spares>,
    _lock: File,
}

/// Files that left the cache and are still there, by name and length: the next ones take their places on the disk and in memory.
#[derive(Debug, Default)]
struct Spares {
    files: Vec<(u64, u64)>,
    bytes: u64,
}

impl Spares {
    fn push(&mut self, name: u64, len: u64) {
        self.files.push((name, len));
        self.bytes += len;
    }

    fn pop(&mut self) -> Option<(u64, u64)> {
        let spare = self.files.pop();
        self.bytes -= spare.map_or(0, |(_, len)| len);
        spare
    }
}

/// What a cache folder may hold: its own, and what a client and a mount keep beside.
const KNOWN_ENTRIES: &[&str] =
    &["lock", "index", "index.new", "pins", "pins.new", "files", "mounts", "staging", "recover", "mount.log"];

impl Disk {
    /// Takes a seat in the folder, making it if need be; returns what it holds of this cluster.
    ///
    /// # Errors
    /// `Conflict` if too many processes use it, `InvalidInput` if it holds something else than a cache, or what the
    /// operating system reports.
    pub fn open(root: &Path, cluster: ClusterId) -> Result<(Disk, Vec<Record>)> {
        let (dir, lock) = take_seat(root)?;
        let dir = dir.as_path();
        let files = dir.join("files");
        let found = IndexFile::read(dir, cluster)?;
        if found.is_none() && files.exists() {
            let message = format!("{} is not a cache folder: choose an empty one", dir.display());
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let records = keep_whole(&files, found.unwrap_or_default())?;
        let index = IndexFile::create(dir, cluster, &records)?;
        for number in 0..=255u8 {
            let sub = files.join(format!("{number:02x}"));
            std::fs::create_dir_all(&sub).io(|| format!("make {}", sub.display()))?;
        }
        let next_name = records.iter().map(|record| record.name + 1).max().unwrap_or(0);
        let (next_name, spares) = (AtomicU64::new(next_name), Mutex::default());
        Ok((Disk { dir: dir.into(), index, next_name, spares, _lock: lock }, records))
    }

    /// The folder of this process: the one that was given or, if others use that too, one inside.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A name that no file has.
    pub fn new_name(&self) -> u64 {
        self.next_name.fetch_add(1, Ordering::Relaxed)
    }

    /// Where a file of this name is.
    pub fn path(&self, name: u64) -> PathBuf {
        content_path(&self.dir, name)
    }

    /// Opens a file that has something of its content.
    ///
    /// # Errors
    /// `Corrupt` if it has another length or other names, `NotFound` if somebody removed it, or what else the operating system reports.
    pub fn open_file(&self, name: u64, len: u64) -> Result<File> {
        let path = self.path(name);
        let file = File::options().read(true).write(true).open(&path);
        let file = file.io(|| format!("open {}", path.display()))?;
        let found = file.metadata().io(|| format!("look at {}", path.display()))?;
        if !is_own(&found, len) {
            let (bytes, names) = (found.len(), found.nlink());
            let message = format!("{} has {bytes} bytes and {names} names instead of {len} and one", path.display());
            return Err(Error::new(Kind::Corrupt, message));
        }
        Ok(file)
    }

    /// As [`Disk::open_file`], if the kernel has all that it takes in memory (RESOLVE_CACHED, openat2(2)).
    pub fn open_now(&self, name: u64, len: u64) -> Option<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOATIME;
        let file = File::from(openat2(CWD, self.path(name), flags, Mode::empty(), ResolveFlags::CACHED).ok()?);
        is_own(&file.metadata().ok()?, len).then_some(file)
    }

    /// Opens a file that has nothing of its content, making it with its full length if it is not there. What a new one has in it is of
    /// no file or of another.
    ///
    /// # Errors
    /// What the operating system reports.
    pub fn make_file(&self, name: u64, len: u64) -> Result<File> {
        let path = self.path(name);
        if takes_spare(len) {
            self.take_spare(&path);
        }
        let open = || {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
            file.io(|| format!("open {}", path.display()))
        };
        let look = |file: &File| file.metadata().io(|| format!("look at {}", path.display()));
        let mut file = open()?;
        let mut found = look(&file)?;
        if found.nlink() > 1 {
            // Whoever linked it is not to see what comes.
            self.remove(name);
            file = open()?;
            found = look(&file)?;
        }
        if found.len() != len {
            file.set_len(len).io(|| format!("set the length of {}", path.display()))?;
        }
        Ok(file)
    }

    /// Has a file that left the cache be one that comes, if there is one and that is not there yet.
    fn take_spare(&self, path: &Path) {
        let Some((name, len)) = self.spares().pop() else { return };
        match renameat_with(CWD, self.path(name), CWD, path, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(Errno::EXIST) => self.spares().push(name, len),
            // It may never have been made.
            Err(_) => self.remove(name),
        }
    }

    fn spares(&self) -> MutexGuard<'_, Spares> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many bytes must be freed so that `bytes` more can be written and [`reserve_bytes`] of the disk stay free.
    pub fn missing_bytes(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.free_bytes())
    }

    /// How many bytes can be written while [`reserve_bytes`] of the disk stay free.
    pub fn free_bytes(&self) -> u64 {
        // A file system that does not say how full it is, says so when it is full.
        let Ok(found) = rustix::fs::statvfs(&self.dir) else { return u64::MAX };
        let (free, total) = (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize);
        free.saturating_sub(reserve_bytes(total))
    }

    /// Lets go of a file that nobody has open or mapped, so that another may take its place, or removes it: no more than
    /// `spare_bytes_max` are kept of such.
    pub fn spare(&self, name: u64, len: u64, spare_bytes_max: u64) {
        {
            let mut spares = self.spares();
            if takes_spare(len) && spares.bytes + len <= spare_bytes_max {
                spares.push(name, len);
                return;
            }
        }
        self.remove(name);
    }

    /// Gives back the disk space of files that left the cache, and tells how much that was.
    pub fn remove_spares(&self) -> u64 {
        let spares = std::mem::take(&mut *self.spares());
        spares.files.iter().for_each(|(name, _)| self.remove(*name));
        spares.bytes
    }

    /// Removes a file. Failing wastes space until the next start.
    pub fn remove(&self, name: u64) {
        let path = self.path(name);
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a file that left the cache cannot be removed");
        }
    }

    /// Notes that a file is complete.
    ///
    /// # Errors
    /// What the operating system reports; the file then is not found after a restart.
    pub fn complete(&self, record: &Record, is_cached: impl Fn(&Record) -> bool) -> Result<()> {
        self.index.append(record)?;
        self.index.rewrite_when_due(is_cached)
    }
}

/// Whether it is a file of this length that nothing else has a name for: what is written to it would be there, too.
fn is_own(found: &Metadata, len: u64) -> bool {
    found.len() == len && found.nlink() == 1
}

/// Whether a file takes the place of one that left the cache.
pub(super) fn takes_spare(len: u64) -> bool {
    len <= SPARE_BYTES_MAX
}

/// How much of a disk of so many bytes the cache leaves free, for written bytes that wait for the cluster and for others
/// who use the disk: 5 %, at most 1 GiB.
fn reserve_bytes(disk_bytes: u64) -> u64 {
    (disk_bytes / 20).min(1 << 30)
}

/// Gives back the disk space of a part of a cache file.
pub(super) fn punch(file: &File, offset: u64, len: u64) {
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    // Failing wastes space until the file leaves the cache.
    let _ = rustix::fs::fallocate(file, flags, offset, len);
}

/// Writes to a cache file at a position.
///
/// # Errors
/// What the operating system reports.
pub(super) fn write_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    file.write_all_at(bytes, offset).io(|| "write to the cache")
}

/// Reads what the kernel has in memory, without waiting for the disk (RWF_NOWAIT, preadv2(2)); false if that is not all.
pub(super) fn read_now(file: &File, out: &mut [u8], offset: u64) -> bool {
    let bytes = out.len();
    preadv2(file, &mut [IoSliceMut::new(out)], offset, ReadWriteFlags::NOWAIT).is_ok_and(|read| read == bytes)
}

/// Fills `out` from a cache file.
///
/// # Errors
/// What the operating system reports.
pub(super) fn read_at(file: &File, out: &mut [u8], offset: u64) -> Result<()> {
    file.read_exact_at(out, offset).io(|| "read from the cache")
}

fn file_path(files: &Path, name: u64) -> PathBuf {
    files.join(format!("{:02x}", name & 0xff)).join(format!("{name:016x}"))
}

/// Where the content of a name is in the folder of a process.
pub(super) fn content_path(dir: &Path, name: u64) -> PathBuf {
    file_path(&dir.join("files"), name)
}

/// The folders of all processes that use or used a cache folder.
pub(crate) fn seats(root: &Path) -> Vec<PathBuf> {
    let seats = (1..=SEATS_MAX).map(|number| seat(root, number));
    seats.filter(|seat| seat.join("index").exists()).collect()
}

fn seat(root: &Path, number: u32) -> PathBuf {
    if number == 1 { root.to_owned() } else { root.join("mounts").join(number.to_string()) }
}

/// The first folder that no other process has, and its lock.
fn take_seat(root: &Path) -> Result<(PathBuf, File)> {
    for number in 1..=SEATS_MAX {
        let dir = seat(root, number);
        std::fs::create_dir_all(&dir).io(|| format!("make the cache folder {}", dir.display()))?;
        if let Some(other) = foreign_entry(&dir, |name| KNOWN_ENTRIES.iter().any(|known| name == *known))? {
            let message = format!("{} is not a cache folder, it holds {other}: choose an empty one", dir.display());
            return Err(Error::new(Kind::InvalidInput, message));
        }
        if let Some(lock) = take_lock(&dir)? {
            return Ok((dir, lock));
        }
    }
    let message = format!(
        "{SEATS_MAX} mounts use the cache folder {} already, which is as many as can: choose another one (--cache-dir)",
        root.display()
    );
    Err(Error::new(Kind::Conflict, message))
}

/// `None` if another process has it.
fn take_lock(dir: &Path) -> Result<Option<File>> {
    let path = dir.join("lock");
    let lock = File::options().write(true).create(true).truncate(false).open(&path);
    let lock = lock.io(|| format!("open {}", path.display()))?;
    match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(Error::io(format!("lock {}", path.display()), error.into())),
    }
}

/// Removes every file that no record names, and returns the records whose file is there at its full length.
fn keep_whole(files: &Path, records: Vec<Record>) -> Result<Vec<Record>> {
    let mut newest: BTreeMap<CacheKey, usize> = BTreeMap::new();
    for (number, record) in records.iter().enumerate() {
        newest.insert(record.key(), number);
    }
    let is_whole = |record: &Record| {
        let whole = record.checksums.len() as u64 == record.len.div_ceil(super::CHUNK_BYTES);
        whole && std::fs::metadata(file_path(files, record.name)).is_ok_and(|found| is_own(&found, record.len))
    };
    let kept: Vec<Record> = (records.into_iter().enumerate())
        .filter(|(number, record)| newest.get(&record.key()) == Some(number) && is_whole(record))
        .map(|(_, record)| record)
        .collect();
    let names: HashSet<PathBuf> = kept.iter().map(|record| file_path(files, record.name)).collect();
    for folder in entries(files)? {
        for path in entries(&folder)? {
            if !names.contains(&path) {
                std::fs::remove_file(&path).io(|| format!("remove {}", path.display()))?;
            }
        }
    }
    Ok(kept)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(format!("read {}", dir.display()), error)),
        Ok(entries) => entries.map(|entry| Ok(entry.io(|| format!("read {}", dir.display()))?.path())).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::index_file::record;
    use super::*;

    #[test]
    fn a_folder_of_something_else_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join("thesis.txt"), "x").expect("writes");
        let error = Disk::open(dir.path(), ClusterId(1)).expect_err("refused");
        assert!(error.kind() == Kind::InvalidInput && error.to_string().contains("thesis.txt"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).expect("lists").count(), 1, "nothing was put into it");
    }

    #[test]
    fn files_take_the_places_of_others_that_left() {
        let dir = tempfile::tempdir().expect("folder");
        let (disk, _) = Disk::open(dir.path(), ClusterId(5)).expect("opened");
        let number = |file: &File| file.metadata().expect("stat").ino();
        let first = number(&disk.make_file(1, 100).expect("made"));
        disk.complete(&record(1, 100), |_| true).expect("noted");
        disk.spare(1, 100, 150);
        disk.make_file(2, 60).expect("made");
        assert!(!disk.path(1).exists());
        assert_eq!(number(&disk.make_file(2, 60).expect("is there")), first);
        disk.make_file(8, 100).expect("made");
        disk.spare(8, 100, 150);
        disk.take_spare(&disk.path(2));
        assert_eq!(number(&disk.make_file(2, 60).expect("is there")), first, "somebody made it just before");
        assert!(disk.path(8).exists() && disk.spares().pop() == Some((8, 100)), "it waits for the next");
        disk.remove(8);
        disk.spare(2, 60, 150);
        let large = disk.make_file(3, SPARE_BYTES_MAX + 1).expect("made");
        assert_ne!(number(&large), first);
        disk.make_file(4, 100).expect("made");
        assert!(!disk.path(2).exists() && disk.path(4).exists());
        for name in [3, 4, 5] {
            disk.spare(name, disk.path(name).metadata().map_or(60, |found| found.len()), 150);
        }
        assert!(!disk.path(3).exists() && disk.path(4).exists(), "too large, and not");
        assert_eq!(disk.spares().bytes, 100, "5 would be too much");
        disk.remove_spares();
        assert!(!disk.path(4).exists() && disk.spares().bytes == 0);
        disk.spare(6, 50, 150);
        disk.make_file(7, 50).expect("made, as 6 never was");
        drop((large, disk));
        let (_, records) = Disk::open(dir.path(), ClusterId(5)).expect("opened again");
        assert!(records.is_empty(), "1 is not there any more: {records:?}");
    }

    #[test]
    fn a_file_that_has_another_name_is_given_up_and_not_written() {
        let dir = tempfile::tempdir().expect("folder");
        let (disk, _) = Disk::open(dir.path(), ClusterId(5)).expect("opened");
        let link = dir.path().join("files/00/link");
        let files: Vec<File> = (0..3).map(|name| disk.make_file(name, 100).expect("made")).collect();
        write_at(&files[0], &[1; 100], 0).expect("written");
        std::fs::hard_link(disk.path(0), &link).expect("linked");
        assert_eq!(disk.open_file(0, 100).expect_err("is linked").kind(), Kind::Corrupt);
        assert!(disk.open_now(0, 100).is_none() && disk.open_now(1, 100).is_some());
        // In place, and as the one that comes.
        write_at(&disk.make_file(0, 100).expect("made anew"), &[2; 100], 0).expect("written");
        std::fs::hard_link(disk.path(1), dir.path().join("files/00/other")).expect("linked");
        disk.spare(1, 100, 1000);
        write_at(&disk.make_file(7, 100).expect("made anew"), &[3; 100], 0).expect("written");
        assert!(std::fs::read(&link).expect("reads") == [1; 100]);
        assert!(std::fs::read(dir.path().join("files/00/other")).expect("reads") == [0; 100]);
        disk.complete(&record(2, 100), |_| true).expect("noted");
        std::fs::hard_link(disk.path(2), dir.path().join("files/01/third")).expect("linked");
        drop(disk);
        let (_, records) = Disk::open(dir.path(), ClusterId(5)).expect("opened again");
        assert!(records.is_empty(), "{records:?}");
    }

    #[test]
    fn only_what_the_index_names_survives_a_restart() {
        let dir = tempfile::tempdir().expect("folder");
        let cluster = ClusterId(5);
        let (disk, records) = Disk::open(dir.path(), cluster).expect("opened");
        assert!(records.is_empty());
        for number in 0..4 {
            disk.make_file(number, 100).expect("made");
        }
        disk.complete(&record(0, 100), |_| true).expect("noted");
        disk.complete(&record(1, 200), |_| true).expect("noted");
        disk.complete(&record(2, 100), |_| true).expect("noted");
        drop(disk);
        // A crash in the middle of a record.
        let index = dir.path().join("index");
        let bytes = std::fs::read(&index).expect("read");
        std::fs::write(&index, &bytes[..bytes.len() - 1]).expect("cut");

        let (disk, records) = Disk::open(dir.path(), cluster).expect("opened again");
        assert_eq!(records, [record(0, 100)], "1 has another length, 2 is half a record, 3 was never complete");
        assert!(disk.path(0).exists());
        (1..4).for_each(|number| assert!(!disk.path(number).exists(), "{number}"));
        drop(disk);
        let (disk, records) = Disk::open(dir.path(), ClusterId(6)).expect("another cluster");
        assert!(records.is_empty() && !disk.path(0).exists());
    }

    #[test]
    fn those_who_share_a_folder_have_one_each_inside_and_the_next_takes_what_is_free() {
        let root = tempfile::tempdir().expect("folder");
        let open = || Disk::open(root.path(), ClusterId(1)).map(|(disk, _)| disk);
        let mut disks: Vec<Disk> = (0..SEATS_MAX).map(|_| open().expect("there is room")).collect();
        let dirs: HashSet<&Path> = disks.iter().map(Disk::dir).collect();
        assert!(dirs.len() == SEATS_MAX as usize && dirs.contains(root.path()));
        assert_eq!(seats(root.path()).len(), SEATS_MAX as usize);
        assert_eq!(open().expect_err("is full").kind(), Kind::Conflict);
        let third = disks.remove(2).dir().to_owned();
        assert_eq!(open().expect("a seat is free").dir(), third);
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_left_alone() {
        let dir = tempfile::tempdir().expect("folder");
        let precious = dir.path().join("files");
        std::fs::create_dir(&precious).expect("made");
        std::fs::write(precious.join("thesis"), b"text").expect("written");
        assert_eq!(Disk::open(dir.path(), ClusterId(1)).expect_err("refused").kind(), Kind::InvalidInput);
        assert!(precious.join("thesis").exists());
    }
}
