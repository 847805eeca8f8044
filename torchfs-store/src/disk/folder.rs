//! The data folder: who may use it, and where each shard lies in it.
//!
//! ```text
//! torchfs-store.id      who it is
//! lock                  held by the one process that uses it
//! tmp/                  shards being written; emptied at start
//! data/<13 hex>/        the shards of 4096 successive stripes; the name is the first 13 of the 16 digits of their ids
//!   <16 hex>-<2 dec>    one shard
//! journal/segment-<n>   small shards that may not be durable in data/ yet
//! ```
//! Successive stripes share a folder, so that one fsync of a folder serves many puts, and names in order are ids in order.

use super::identity::{IDENTITY_FILE, IDENTITY_TEMP, Identity};
use rustix::fs::FlockOperation;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use torchfs_core::IoContext;
use torchfs_core::folder::{foreign_entry, sync};
use torchfs_core::{Error, Kind, Result, ShardId, StripeId};
use tracing::warn;

const LOCK_FILE: &str = "lock";
const GROUP_BITS: u32 = 12;

/// What may lie in a folder that is not a data folder yet: leftovers of a start that was cut off.
const HARMLESS: [&str; 2] = [LOCK_FILE, IDENTITY_TEMP];

/// The folder of 4096 successive stripes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Group(u64);

impl Group {
    /// The group of a stripe.
    #[must_use]
    pub fn of(stripe: StripeId) -> Self {
        Group(stripe.0 >> GROUP_BITS)
    }

    fn name(self) -> String {
        format!("{:013x}", self.0)
    }

    fn parse(name: &str) -> Option<Self> {
        let group = Group(u64::from_str_radix(name, 16).ok()?);
        (group.name() == name).then_some(group)
    }
}

/// An opened data folder, locked against other processes until [`Folder::unlock`] or drop.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    lock: Mutex<Option<File>>,
}

impl Folder {
    /// Opens or makes a data folder, takes its lock and removes what a crash left in `tmp/`.
    ///
    /// # Errors
    /// `InvalidInput` for a folder with something else in it, `Unavailable` if another process uses it, and those of
    /// [`Identity::load`].
    pub fn open(root: &Path) -> Result<(Self, Identity)> {
        make_folder(root)?;
        let root = root.canonicalize().io(|| format!("open {}", root.display()))?;
        let found = Identity::load(&root)?;
        if found.is_none() {
            check_unused(&root)?;
        }
        let folder = Folder { lock: Mutex::new(Some(take_lock(&root)?)), root };
        // Read again: before the lock was held another process may have made it.
        let identity = match Identity::load(&folder.root)? {
            Some(identity) => identity,
            None => {
                let identity = Identity::new();
                identity.save(&folder.root)?;
                identity
            }
        };
        make_folder(&folder.data())?;
        make_folder(&folder.temp())?;
        folder.empty_temp()?;
        Ok((folder, identity))
    }

    /// Lets others use it.
    pub fn unlock(&self) {
        // Closing the file gives up its lock.
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Its path.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where the groups are.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// Where shards are written before they have their name.
    #[must_use]
    pub fn temp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// Where the journal's segments are.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.root.join("journal")
    }

    /// A segment of the journal.
    #[must_use]
    pub fn segment(&self, number: u64) -> PathBuf {
        self.root.join(format!("journal/segment-{number}"))
    }

    /// The folder of a group.
    #[must_use]
    pub fn group(&self, group: Group) -> PathBuf {
        self.root.join("data").join(group.name())
    }

    /// The file of a shard.
    #[must_use]
    pub fn shard(&self, shard: ShardId) -> PathBuf {
        self.root.join(format!("data/{}/{shard}", Group::of(shard.stripe).name()))
    }

    /// The groups there are, in order.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn groups(&self) -> Result<Listed<Group>> {
        list(&self.data(), Group::parse)
    }

    /// The shards of a group, in order; none if the group is gone.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn shards(&self, group: Group) -> Result<Listed<ShardId>> {
        let parse = |name: &str| {
            let shard: ShardId = name.parse().ok()?;
            (Group::of(shard.stripe) == group).then_some(shard)
        };
        match list(&self.group(group), parse) {
            Err(error) if error.kind() == Kind::NotFound => Ok(Listed { known: Vec::new(), strange: Vec::new() }),
            listed => listed,
        }
    }

    fn empty_temp(&self) -> Result<()> {
        let path = self.temp();
        for entry in fs::read_dir(&path).io(|| format!("list {}", path.display()))? {
            let entry = entry.io(|| format!("list {}", path.display()))?;
            if let Err(error) = fs::remove_file(entry.path()) {
                warn!(path = %entry.path().display(), %error, "cannot remove a leftover");
            }
        }
        Ok(())
    }
}

/// What a folder holds.
#[derive(Debug)]
pub struct Listed<T> {
    /// What is ours, in order.
    pub known: Vec<T>,
    /// Names that are not ours and are left alone.
    pub strange: Vec<PathBuf>,
}

fn list<T: Ord>(path: &Path, parse: impl Fn(&str) -> Option<T>) -> Result<Listed<T>> {
    let mut listed = Listed { known: Vec::new(), strange: Vec::new() };
    for entry in fs::read_dir(path).io(|| format!("list {}", path.display()))? {
        let name = entry.io(|| format!("list {}", path.display()))?.file_name();
        match name.to_str().and_then(&parse) {
            Some(known) => listed.known.push(known),
            None => listed.strange.push(path.join(name)),
        }
    }
    listed.known.sort_unstable();
    Ok(listed)
}

/// Makes a folder and its parents for good.
///
/// # Errors
/// Of the operating system.
pub fn make_folder(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    torchfs_core::folder::make(path)?;
    let parent = path.canonicalize().ok().and_then(|path| path.parent().map(Path::to_owned));
    parent.map_or(Ok(()), |parent| sync(&parent))
}

fn check_unused(root: &Path) -> Result<()> {
    match foreign_entry(root, |name| HARMLESS.iter().any(|harmless| name == *harmless))? {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "{} is no data folder of a torchfs store: it holds '{name}' and no {IDENTITY_FILE}; give an empty or new folder",
                root.display()
            );
            Err(Error::new(Kind::InvalidInput, message))
        }
    }
}

fn take_lock(root: &Path) -> Result<File> {
    let path = root.join(LOCK_FILE);
    let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.io(|| format!("open {}", path.display()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(std::io::Error::from) {
        Ok(()) => {}
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let message = format!(
                "data folder {} is in use by another process (pid {}): stop that one first, or give this one its own folder",
                root.display(),
                owner.trim()
            );
            return Err(Error::new(Kind::Exists, message));
        }
        Err(error) => return Err(Error::io(format!("lock {}", path.display()), error)),
    }
    // Only for the message above; nothing depends on it.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_order_are_ids_in_order() {
        let ids = [0, 1, 0xfff, 0x1000, 0xffff, 0x0123_4567_89ab_cdef, u64::MAX];
        let paths = ids.map(|id| format!("{}/{}", Group::of(StripeId(id)).name(), StripeId(id)));
        assert!(paths.is_sorted());
        assert_eq!(paths[3], "0000000000001/0000000000001000");
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_refused_untouched() {
        let root = tempfile::tempdir().expect("temp folder");
        fs::write(root.path().join("thesis.txt"), "x").expect("writes");
        let error = Folder::open(root.path()).expect_err("refused");
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains("thesis.txt"), "{error}");
        assert_eq!(fs::read_dir(root.path()).expect("lists").count(), 1);
    }

    #[test]
    fn one_user_at_a_time_and_the_other_is_named() {
        let root = tempfile::tempdir().expect("temp folder");
        let (first, identity) = Folder::open(root.path()).expect("opens");
        let error = Folder::open(root.path()).expect_err("in use");
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        first.unlock();
        assert_eq!(Folder::open(root.path()).expect("opens again").1, identity);
    }

    #[test]
    fn leftovers_in_tmp_are_removed() {
        let root = tempfile::tempdir().expect("temp folder");
        drop(Folder::open(root.path()).expect("opens"));
        fs::write(root.path().join("tmp/0000000000000001-00.7"), "half a shard").expect("writes");
        drop(Folder::open(root.path()).expect("opens again"));
        assert_eq!(fs::read_dir(root.path().join("tmp")).expect("lists").count(), 0);
    }
}
