//! Who a data folder belongs to: a small text file that is written before anything else and checked at every start.
//!
//! Also the lock that keeps a second process out of the folder, the notice that the folder is a copy, and what a node has to
//! remember to know a peer whose folder was wiped, copied or restored: see [`Incarnations`].

mod file;
mod incarnations;

pub use self::incarnations::{Incarnations, Introduction, Met};

use self::file::{FILE, Identity, aside};
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;
use torchfs_core::folder::foreign_entry;
use torchfs_core::{Error, IoContext, Kind, MetaId, Result};
use tracing::warn;

const LOCK: &str = "lock";

/// The claim on a data folder; it ends when this is dropped.
#[derive(Debug)]
pub struct Claim {
    // Closing the file releases the lock.
    _lock: File,
}

/// Where a data folder is, as told from its file `lock`, which is made once and stays: a copy of the folder has another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    inode: u64,
    /// When the file was made, if the file system knows.
    born_ns: Option<u128>,
}

impl Place {
    fn of(lock: &File) -> Result<Self> {
        let found = lock.metadata().io(|| "look at the lock of a data folder")?;
        let born = found.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
        Ok(Place { inode: found.ino(), born_ns: born.map(|born| born.as_nanos()) })
    }

    fn is_same(self, other: Place) -> bool {
        let differ = self.born_ns.zip(other.born_ns).is_some_and(|(one, other)| one != other);
        self.inode == other.inode && !differ
    }
}

/// Makes `folder` that of node `id` in a cluster of `members`, or checks that it is.
///
/// # Errors
/// [`Kind::Exists`] if another process uses it; [`Kind::InvalidInput`] if it belongs to another node or to something
/// else; [`Kind::Protocol`] if it has another format version; [`Kind::Corrupt`] if the file is damaged.
pub fn claim(folder: &Path, id: MetaId, members: &BTreeSet<MetaId>) -> Result<(Claim, Incarnations)> {
    if !members.contains(&id) {
        let message = format!("metadata node {id} is not among its own peers: name its address in --peers too");
        return Err(Error::new(Kind::InvalidInput, message));
    }
    torchfs_core::folder::make(folder)?;
    let lock = lock(folder)?;
    let place = Place::of(&lock)?;
    let identity = match std::fs::read_to_string(folder.join(FILE)) {
        Ok(text) => {
            let mut identity = Identity::parse(&text, folder)?;
            compare(&identity, id, members, folder)?;
            resume(&mut identity, place, folder);
            identity
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            refuse_foreign(folder)?;
            Identity::new(id, members.clone(), place)
        }
        Err(error) => return Err(Error::io(format!("read {}", folder.join(FILE).display()), error)),
    };
    identity.write(folder)?;
    Ok((Claim { _lock: lock }, Incarnations::new(folder.to_owned(), identity)))
}

fn resume(identity: &mut Identity, place: Place, folder: &Path) {
    if identity.place.is_some_and(|known| !known.is_same(place)) {
        warn!(
            "data folder {} was copied, moved to another file system or restored from a backup, so it may lack what metadata \
             node {} has acknowledged since: the node does not vote until it has caught up",
            folder.display(),
            identity.id
        );
        identity.renew();
    } else {
        identity.start();
    }
    identity.place = Some(place);
}

fn lock(folder: &Path) -> Result<File> {
    let path = folder.join(LOCK);
    let what = || format!("lock data folder {}", folder.display());
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).io(what)?;
    match file.try_lock() {
        Ok(()) => {
            // Only for the message below; nothing depends on it.
            let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            let _ = file.read_to_string(&mut owner);
            let message = format!(
                "data folder {} is in use by another process (pid {}): stop that one first, or give this one its own folder",
                folder.display(),
                owner.trim()
            );
            Err(Error::new(Kind::Exists, message))
        }
        Err(TryLockError::Error(error)) => Err(Error::io(what(), error)),
    }
}

fn refuse_foreign(folder: &Path) -> Result<()> {
    // What a first start that was interrupted leaves.
    match foreign_entry(folder, |name| name == LOCK || name == aside().as_os_str())? {
        None => Ok(()),
        Some(name) => {
            let message = format!(
                "data folder {} holds '{name}' and is not that of a metadata node: give an empty folder",
                folder.display()
            );
            Err(Error::new(Kind::InvalidInput, message))
        }
    }
}

fn compare(found: &Identity, id: MetaId, members: &BTreeSet<MetaId>, folder: &Path) -> Result<()> {
    let folder = folder.display();
    if found.id != id {
        let message = format!(
            "data folder {folder} belongs to metadata node {}, this is node {id}: start it with --id {} or give another folder",
            found.id, found.id
        );
        return Err(Error::new(Kind::InvalidInput, message));
    }
    if found.members != *members {
        let message = format!(
            "data folder {folder} belongs to a cluster of the metadata nodes {}, --peers names {}: \
             name the same nodes (their addresses may change)",
            list(&found.members),
            list(members)
        );
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(())
}

fn list(members: &BTreeSet<MetaId>) -> String {
    members.iter().map(MetaId::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(ids: &[u64]) -> BTreeSet<MetaId> {
        ids.iter().map(|&id| MetaId(id)).collect()
    }

    fn refused(folder: &Path, id: u64, ids: &[u64]) -> Error {
        let error = claim(folder, MetaId(id), &members(ids)).expect_err("refused");
        assert!(error.to_string().contains(&folder.display().to_string()) || id == 9, "{error}");
        error
    }

    #[test]
    fn a_folder_is_taken_back_by_the_same_node_and_refused_to_others() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        drop(claim(path, MetaId(2), &members(&[1, 2, 3])).expect("new"));
        drop(claim(path, MetaId(2), &members(&[1, 2, 3])).expect("again"));
        assert!(refused(path, 1, &[1, 2, 3]).to_string().contains("--id 2"));
        assert!(refused(path, 2, &[1, 2]).to_string().contains("--peers"));
        assert_eq!(refused(path, 9, &[1, 2]).kind(), Kind::InvalidInput);
    }

    #[test]
    fn an_empty_folder_or_a_copy_is_another_incarnation_and_does_not_vote() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("original");
        let open = |path: &Path| claim(path, MetaId(2), &members(&[1, 2, 3])).expect("opens").1;
        let incarnation = |node: &Incarnations| node.introduction(MetaId(1)).incarnation;
        let new = open(&path);
        assert!(!new.is_admitted());
        new.admit().expect("writes");
        let first = incarnation(&new);
        drop(new);
        let again = open(&path);
        assert!(again.is_admitted());
        assert_eq!(incarnation(&again), first);
        drop(again);

        let copy = folder.path().join("copy");
        std::fs::create_dir(&copy).expect("makes");
        for file in [FILE, LOCK] {
            std::fs::copy(path.join(file), copy.join(file)).expect("copies");
        }
        let copied = open(&copy);
        assert!(!copied.is_admitted() && copied.introduction(MetaId(1)).before.is_empty());
        assert_ne!(incarnation(&copied), first);
        copied.admit().expect("writes");
        drop(copied);
        assert!(open(&copy).is_admitted(), "it is noticed once");
        let moved = folder.path().join("moved");
        std::fs::rename(&path, &moved).expect("moves");
        assert!(open(&moved).is_admitted(), "another name is not another folder");

        std::fs::remove_file(moved.join(FILE)).expect("wipes");
        assert_ne!(incarnation(&open(&moved)), first);
        assert!(!open(&moved).is_admitted());
    }

    #[test]
    fn a_folder_of_the_time_before_incarnations_may_vote() {
        let folder = tempfile::tempdir().expect("folder");
        let body = "torchfs metadata node\nformat 1\nid 2\nmembers 1 2 3\n";
        let text = format!("{body}checksum {:08x}\n", crc32c::crc32c(body.as_bytes()));
        std::fs::write(folder.path().join(FILE), text).expect("writes");
        let open = || claim(folder.path(), MetaId(2), &members(&[1, 2, 3])).expect("opens").1;
        let first = open();
        assert!(first.is_admitted());
        let incarnation = |node: &Incarnations| node.introduction(MetaId(1)).incarnation;
        assert_eq!(incarnation(&open()), incarnation(&first), "it is drawn once");
    }

    #[test]
    fn a_folder_in_use_of_another_format_damaged_or_foreign_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        let held = claim(path, MetaId(1), &members(&[1])).expect("new");
        let error = refused(path, 1, &[1]);
        assert_eq!(error.kind(), Kind::Exists);
        assert!(error.to_string().contains(&format!("pid {}", std::process::id())), "{error}");
        drop(held);
        let text = std::fs::read_to_string(path.join(FILE)).expect("reads");
        std::fs::write(path.join(FILE), text.replace("format 1", "format 2")).expect("writes");
        assert_eq!(refused(path, 1, &[1]).kind(), Kind::Protocol);
        std::fs::write(path.join(FILE), text.replace("id 1", "id 3")).expect("writes");
        assert_eq!(refused(path, 3, &[3]).kind(), Kind::Corrupt);
        std::fs::remove_file(path.join(FILE)).expect("removes");
        std::fs::write(path.join("holiday.jpg"), "x").expect("writes");
        assert_eq!(refused(path, 1, &[1]).kind(), Kind::InvalidInput);
    }
}
