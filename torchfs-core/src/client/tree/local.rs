//! The local side of `get`: makes files, folders and links, on blocking threads.
//!
//! The rule it keeps: nothing has its final name before it is whole. Everything is made under a temporary name beside it
//! and renamed; if copying is given up, temporary names are removed.

use super::xattr::{self, Xattrs};
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::InodeId;
use crate::meta::{Attr, FileKind};
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps};
use std::fs::{File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// A name beside `path` that nothing else has.
fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!(".torchfs-{:016x}", rand::random::<u64>()))
}

fn shown(what: &str, path: &Path) -> String {
    format!("{what} {}", path.display())
}

/// What a file or folder has beside its content.
#[derive(Debug)]
pub(super) struct Looks {
    /// Its attributes.
    pub attr: Attr,
    /// Its extended attributes.
    pub xattrs: Xattrs,
}

/// A regular file on its way out.
#[derive(Debug)]
pub(super) struct LocalFile {
    path: PathBuf,
    looks: Looks,
    pieces_left: AtomicUsize,
    progress: Mutex<Progress>,
}

#[derive(Debug)]
enum Progress {
    New,
    Open { file: Arc<File>, temporary: PathBuf },
    Done,
    Failed,
}

/// Some bytes of a file, fetched.
#[derive(Debug)]
pub(super) struct Piece {
    /// Which file.
    pub file: Arc<LocalFile>,
    /// Where they go in it.
    pub offset: u64,
    /// The bytes, or why there are none.
    pub data: Result<Bytes>,
}

/// A file that is settled.
#[derive(Debug)]
pub(super) struct Settled {
    /// Where it is, or would be.
    pub path: PathBuf,
    /// Its size, or why it is not there.
    pub result: Result<u64>,
}

impl LocalFile {
    /// To be written in so many pieces.
    pub fn new(path: PathBuf, looks: Looks, pieces: usize) -> Self {
        LocalFile { path, looks, pieces_left: AtomicUsize::new(pieces), progress: Mutex::new(Progress::New) }
    }

    fn progress(&self) -> std::sync::MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a piece. Answers once: when the last piece is written, or when the first one fails.
    fn write(&self, offset: u64, data: Result<Bytes>) -> Option<Settled> {
        let written = data.and_then(|data| match self.open()? {
            Some(file) => file.write_all_at(&data, offset).io(|| shown("write", &self.path)),
            None => Ok(()),
        });
        let last = self.pieces_left.fetch_sub(1, Ordering::AcqRel) == 1;
        match written {
            Err(error) => self.fail(error),
            Ok(()) if last => self.finish(),
            Ok(()) => None,
        }
    }

    /// The open file; `None` if it has failed before.
    fn open(&self) -> Result<Option<Arc<File>>> {
        let mut progress = self.progress();
        match &*progress {
            Progress::Open { file, .. } => Ok(Some(Arc::clone(file))),
            Progress::Done | Progress::Failed => Ok(None),
            Progress::New => {
                let temporary = temporary(&self.path);
                let file = File::options().write(true).create_new(true).mode(0o600).open(&temporary);
                let file = Arc::new(file.io(|| shown("create", &self.path))?);
                *progress = Progress::Open { file: Arc::clone(&file), temporary };
                Ok(Some(file))
            }
        }
    }

    fn fail(&self, error: Error) -> Option<Settled> {
        match std::mem::replace(&mut *self.progress(), Progress::Failed) {
            Progress::Failed => return None,
            Progress::Open { temporary, .. } => remove(&temporary),
            Progress::New | Progress::Done => {}
        }
        Some(Settled { path: self.path.clone(), result: Err(error) })
    }

    /// Gives the file its size, attributes and name. Also for a file without a single piece.
    pub fn finish(&self) -> Option<Settled> {
        let attr = &self.looks.attr;
        let finished = self.open().and_then(|_| {
            let progress = self.progress();
            let Progress::Open { file, temporary } = &*progress else { return Ok(false) };
            // Pieces end where the last extent does; a hole at the end needs the size.
            file.set_len(attr.size).io(|| shown("resize", &self.path))?;
            xattr::set_on_file(file, &self.path, &self.looks.xattrs)?;
            set_owner_and_mode(
                attr,
                &self.path,
                |uid, gid| std::os::unix::fs::fchown(file, uid, gid),
                |mode| file.set_permissions(mode),
            )?;
            rustix::fs::futimens(file, &times(attr)).io(|| shown("set times of", &self.path))?;
            std::fs::rename(temporary, &self.path).io(|| shown("rename to", &self.path))?;
            Ok(true)
        });
        match finished {
            Ok(true) => {
                *self.progress() = Progress::Done;
                Some(Settled { path: self.path.clone(), result: Ok(attr.size) })
            }
            Ok(false) => None,
            Err(error) => self.fail(error),
        }
    }
}

impl Drop for LocalFile {
    fn drop(&mut self) {
        if let Progress::Open { temporary, .. } = &*self.progress() {
            remove(temporary);
        }
    }
}

/// Removes a temporary name. If that fails there is nothing better to do: the name tells what it is.
fn remove(temporary: &Path) {
    drop(std::fs::remove_file(temporary));
}

/// Writes fetched pieces.
pub(super) fn write_pieces(pieces: Vec<Piece>) -> Vec<Settled> {
    pieces.into_iter().filter_map(|piece| piece.file.write(piece.offset, piece.data)).collect()
}

/// Something that is made at once, without content from storage nodes.
#[derive(Debug)]
pub(super) enum Plain {
    /// A folder.
    Folder(PathBuf, Looks),
    /// A file that is empty or one hole.
    Empty(PathBuf, Looks),
    /// A symbolic link.
    Symlink(PathBuf, Attr, Vec<u8>),
    /// A pipe, socket or device.
    Special(PathBuf, Attr),
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Made {
    /// A folder that can be filled.
    Folder {
        /// Where it is.
        path: PathBuf,
        /// Which one it is there.
        ino: InodeId,
        /// What it has, if it is new: set when it is full.
        new: Option<Looks>,
    },
    /// A file.
    File(Settled),
    /// Something else.
    Other(PathBuf, Result<()>),
}

/// Makes something.
pub(super) fn make(plain: Plain) -> Option<Made> {
    match plain {
        Plain::Folder(path, looks) => Some(match make_folder(&path) {
            Ok(new) => Made::Folder { path, ino: looks.attr.ino, new: new.then_some(looks) },
            Err(error) => Made::Other(path, Err(error)),
        }),
        Plain::Empty(path, looks) => LocalFile::new(path, looks, 0).finish().map(Made::File),
        Plain::Symlink(path, attr, target) => {
            let made = make_and_rename(&path, |name| {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(&target), name)
                    .io(|| shown("make link", &path))?;
                if is_root() {
                    std::os::unix::fs::lchown(name, Some(attr.uid), Some(attr.gid))
                        .io(|| shown("set owner of", &path))?;
                }
                set_times(name, &attr)
            });
            Some(Made::Other(path, made))
        }
        Plain::Special(path, attr) => {
            let made = make_and_rename(&path, |name| {
                make_node(name, &attr).io(|| shown("make", &path))?;
                set_attributes(name, &attr)
            });
            Some(Made::Other(path, made))
        }
    }
}

/// Makes a folder, or takes the one that is there. Answers whether it is new.
pub(super) fn make_folder(path: &Path) -> Result<bool> {
    // Nobody else looks in before its own mode is set.
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let there = std::fs::symlink_metadata(path).io(|| shown("look at", path))?;
            if there.is_dir() {
                return Ok(false);
            }
            Err(Error::new(Kind::NotDirectory, format!("{} is there and is no folder", path.display())))
        }
        Err(error) => Err(error).io(|| shown("make folder", path)),
    }
}

/// Gives a folder that is full what it has beside its entries.
pub(super) fn finish_folder(path: &Path, looks: &Looks) -> Result<()> {
    xattr::set_on_folder(path, &looks.xattrs)?;
    set_attributes(path, &looks.attr)
}

/// Gives a file a second name.
pub(super) fn link(first: &Path, second: &Path) -> Result<()> {
    make_and_rename(second, |name| std::fs::hard_link(first, name).io(|| shown("link", second)))
}

fn make_and_rename(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = temporary(path);
    let made = make(&name).and_then(|()| std::fs::rename(&name, path).io(|| shown("rename to", path)));
    // Renaming over another name of the same file does nothing and leaves both, so this is right after success too.
    remove(&name);
    made
}

fn make_node(name: &Path, attr: &Attr) -> rustix::io::Result<()> {
    let kind = match attr.kind {
        FileKind::Fifo => FileType::Fifo,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharacterDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::File | FileKind::Directory | FileKind::Symlink => return Err(rustix::io::Errno::INVAL),
    };
    rustix::fs::mknodat(CWD, name, kind, Mode::from_raw_mode(0o600), attr.rdev.into())
}

/// Sets owner (as root), mode and times of what is no symbolic link.
fn set_attributes(path: &Path, attr: &Attr) -> Result<()> {
    set_owner_and_mode(
        attr,
        path,
        |uid, gid| std::os::unix::fs::lchown(path, uid, gid),
        |mode| std::fs::set_permissions(path, mode),
    )?;
    set_times(path, attr)
}

/// The owner first, because changing it clears suid bits.
fn set_owner_and_mode(
    attr: &Attr,
    path: &Path,
    set_owner: impl FnOnce(Option<u32>, Option<u32>) -> std::io::Result<()>,
    set_mode: impl FnOnce(Permissions) -> std::io::Result<()>,
) -> Result<()> {
    let mut mode = attr.mode & 0o7777;
    if is_root() {
        set_owner(Some(attr.uid), Some(attr.gid)).io(|| shown("set owner of", path))?;
    } else if attr.uid != rustix::process::geteuid().as_raw() {
        // Another's program must not run as whoever copies it.
        mode &= 0o1777;
    }
    set_mode(Permissions::from_mode(mode)).io(|| shown("set mode of", path))
}

fn set_times(path: &Path, attr: &Attr) -> Result<()> {
    rustix::fs::utimensat(CWD, path, &times(attr), AtFlags::SYMLINK_NOFOLLOW).io(|| shown("set times of", path))
}

fn times(attr: &Attr) -> Timestamps {
    let time = |at: crate::meta::Timestamp| Timespec { tv_sec: at.seconds, tv_nsec: at.nanos.into() };
    Timestamps { last_access: time(attr.atime), last_modification: time(attr.mtime) }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
