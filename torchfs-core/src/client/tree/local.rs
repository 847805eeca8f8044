//! The local side of `get`: makes files, folders and links, on blocking threads.
//!
//! The rule it keeps: nothing has its final name before it is whole. Files have no name at all until then, so that a
//! process that is killed leaves nothing behind. What the file system cannot make without a name is made under a temporary
//! one beside it and renamed; if copying is given up, temporary names are removed.

use super::xattr::{self, Xattrs};
use crate::error::{Error, IoContext, Kind, Result};
use crate::ids::InodeId;
use crate::meta::{Attr, FileKind};
use bytes::Bytes;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use std::fs::{File, Permissions};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

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
    Open { file: Arc<File>, place: Place },
    Done,
    Failed,
}

/// Where a file is before it is whole.
#[derive(Debug)]
enum Place {
    Nameless,
    Temporary(PathBuf),
}

impl Place {
    /// Makes an empty file for `path`.
    fn make(path: &Path) -> Result<(File, Place)> {
        if let Some(file) = make_nameless(path) {
            return Ok((file, Place::Nameless));
        }
        let temporary = temporary(path);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&temporary);
        Ok((file.io(|| shown("create", path))?, Place::Temporary(temporary)))
    }

    /// Gives the file its name, in the place of what has it.
    fn publish(&self, file: &File, path: &Path) -> Result<()> {
        match self {
            Place::Temporary(temporary) => std::fs::rename(temporary, path).io(|| shown("rename to", path)),
            Place::Nameless => match link_open_file(file, path) {
                // Only renaming replaces.
                Err(Errno::EXIST) => {
                    make_and_rename(path, |name| link_open_file(file, name).io(|| shown("create", path)))
                }
                linked => linked.io(|| shown("create", path)),
            },
        }
    }

    fn remove(&self) {
        if let Place::Temporary(temporary) = self {
            remove(temporary);
        }
    }
}

/// A file in the folder of `path` that has no name (open(2), O_TMPFILE). `None` if that cannot be had here; whatever the
/// reason is, an ordinary file fails for it too or can do without.
fn make_nameless(path: &Path) -> Option<File> {
    static OPEN_FILES: LazyLock<bool> = LazyLock::new(|| Path::new(OPEN_FILES_FOLDER).is_dir());
    if !*OPEN_FILES {
        return None;
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let flags = OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC;
    rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).ok().map(File::from)
}

/// Names of this process's open files; linking the descriptor itself takes a privilege.
const OPEN_FILES_FOLDER: &str = "/proc/self/fd";

fn link_open_file(file: &File, path: &Path) -> rustix::io::Result<()> {
    let open = format!("{OPEN_FILES_FOLDER}/{}", file.as_raw_fd());
    rustix::fs::linkat(CWD, open, CWD, path, AtFlags::SYMLINK_FOLLOW)
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
                let (file, place) = Place::make(&self.path)?;
                let file = Arc::new(file);
                *progress = Progress::Open { file: Arc::clone(&file), place };
                Ok(Some(file))
            }
        }
    }

    fn fail(&self, error: Error) -> Option<Settled> {
        match std::mem::replace(&mut *self.progress(), Progress::Failed) {
            Progress::Failed => return None,
            Progress::Open { place, .. } => place.remove(),
            Progress::New | Progress::Done => {}
        }
        Some(Settled { path: self.path.clone(), result: Err(error) })
    }

    /// Gives the file its size, attributes and name. Also for a file without a single piece.
    pub fn finish(&self) -> Option<Settled> {
        let attr = &self.looks.attr;
        let finished = self.open().and_then(|_| {
            let progress = self.progress();
            let Progress::Open { file, place } = &*progress else { return Ok(false) };
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
            place.publish(file, &self.path)?;
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
        if let Progress::Open { place, .. } = &*self.progress() {
            place.remove();
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
        FileKind::File | FileKind::Directory | FileKind::Symlink => return Err(Errno::INVAL),
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

#[cfg(test)]
mod tests {
    use super::super::rig_test;
    use super::*;

    fn file_of_two_pieces(path: &Path) -> LocalFile {
        let attr = Attr {
            mode: 0o644,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            size: 4,
            ..rig_test::attr(2, FileKind::File)
        };
        LocalFile::new(path.to_owned(), Looks { attr, xattrs: Vec::new() }, 2)
    }

    fn names(folder: &Path) -> Vec<std::ffi::OsString> {
        std::fs::read_dir(folder).expect("lists").map(|entry| entry.expect("an entry").file_name()).collect()
    }

    /// What there is in the middle is what a process that is killed leaves.
    #[test]
    fn a_file_that_is_not_whole_has_no_name() {
        let folder = tempfile::tempdir().expect("temp folder");
        if make_nameless(&folder.path().join("x")).is_none() {
            println!("skipped: no nameless files in {}", folder.path().display());
            return;
        }
        for content in ["ab", "cd"] {
            let before = names(folder.path());
            let file = file_of_two_pieces(&folder.path().join("f"));
            assert!(file.write(2, Ok(Bytes::from_static(b"34"))).is_none());
            assert_eq!(names(folder.path()), before);
            let settled = file.write(0, Ok(Bytes::from(content))).expect("the last piece");
            assert_eq!(settled.result.expect("whole"), 4);
            assert_eq!(names(folder.path()), ["f"]);
            let read = std::fs::read_to_string(folder.path().join("f")).expect("reads");
            assert_eq!(read, format!("{content}34"), "also in the place of another");
        }
    }

    #[test]
    fn a_temporary_name_is_the_other_way() {
        let folder = tempfile::tempdir().expect("temp folder");
        let (path, name) = (folder.path().join("f"), temporary(&folder.path().join("f")));
        let file = Arc::new(File::create_new(&name).expect("creates"));
        let under_way = file_of_two_pieces(&path);
        *under_way.progress() = Progress::Open { file, place: Place::Temporary(name.clone()) };
        assert!(under_way.write(0, Ok(Bytes::from_static(b"12"))).is_none());
        let settled = under_way.write(2, Ok(Bytes::from_static(b"34"))).expect("the last piece");
        assert_eq!(settled.result.expect("whole"), 4);
        assert_eq!((std::fs::read(&path).expect("reads"), names(folder.path()).len()), (b"1234".to_vec(), 1));
        let file = Arc::new(File::create_new(&name).expect("creates"));
        let given_up = file_of_two_pieces(&path);
        *given_up.progress() = Progress::Open { file, place: Place::Temporary(name) };
        drop(given_up);
        assert_eq!(names(folder.path()), ["f"]);
    }
}
