//! Who a data folder belongs to: a small text file that is written before anything else and checked at every start.
//!
//! Also the lock that keeps a second process out of the folder.

use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use torchfs_core::folder::foreign_entry;
use torchfs_core::{Error, IoContext, Kind, MetaId, Result};

const FILE: &str = "node";
const LOCK: &str = "lock";
const TITLE: &str = "torchfs metadata node";

/// The version of everything in the folder: this file, the log, the state, the snapshots.
const FORMAT: u32 = 1;

/// The claim on a data folder; it ends when this is dropped.
#[derive(Debug)]
pub struct Claim {
    // Closing the file releases the lock.
    _lock: File,
}

/// What the file says.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    id: MetaId,
    members: BTreeSet<MetaId>,
}

/// Makes `folder` that of node `id` in a cluster of `members`, or checks that it is.
///
/// # Errors
/// [`Kind::Exists`] if another process uses it; [`Kind::InvalidInput`] if it belongs to another node or to something
/// else; [`Kind::Protocol`] if it has another format version; [`Kind::Corrupt`] if the file is damaged.
pub fn claim(folder: &Path, id: MetaId, members: &BTreeSet<MetaId>) -> Result<Claim> {
    if !members.contains(&id) {
        let message = format!("metadata node {id} is not among its own peers: name its address in --peers too");
        return Err(Error::new(Kind::InvalidInput, message));
    }
    torchfs_core::folder::make(folder)?;
    let claim = Claim { _lock: lock(folder)? };
    let wanted = Identity { id, members: members.clone() };
    match std::fs::read_to_string(folder.join(FILE)) {
        Ok(text) => compare(&parse(&text, folder)?, &wanted, folder)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            refuse_foreign(folder)?;
            write(&wanted, folder)?;
        }
        Err(error) => return Err(Error::io(format!("read {}", folder.join(FILE).display()), error)),
    }
    Ok(claim)
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

fn compare(found: &Identity, wanted: &Identity, folder: &Path) -> Result<()> {
    let folder = folder.display();
    if found.id != wanted.id {
        let message = format!(
            "data folder {folder} belongs to metadata node {}, this is node {}: start it with --id {} or give another folder",
            found.id, wanted.id, found.id
        );
        return Err(Error::new(Kind::InvalidInput, message));
    }
    if found.members != wanted.members {
        let message = format!(
            "data folder {folder} belongs to a cluster of the metadata nodes {}, --peers names {}: \
             name the same nodes (their addresses may change)",
            list(&found.members),
            list(&wanted.members)
        );
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(())
}

fn list(members: &BTreeSet<MetaId>) -> String {
    members.iter().map(MetaId::to_string).collect::<Vec<_>>().join(" ")
}

fn render(identity: &Identity) -> String {
    let body = format!("{TITLE}\nformat {FORMAT}\nid {}\nmembers {}\n", identity.id, list(&identity.members));
    format!("{body}checksum {:08x}\n", crc32c::crc32c(body.as_bytes()))
}

fn parse(text: &str, folder: &Path) -> Result<Identity> {
    let path = folder.join(FILE);
    let damaged = || {
        let message =
            format!("{} is damaged: restore it, or empty the folder and let the node join anew", path.display());
        Error::new(Kind::Corrupt, message)
    };
    let value = |name: &str| {
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.ok_or_else(damaged)
    };
    if text.lines().next() != Some(TITLE) {
        return Err(damaged());
    }
    let format: u32 = value("format")?.parse().map_err(|_| damaged())?;
    if format != FORMAT {
        let message = format!(
            "data folder {} has format version {format}, this program reads {FORMAT}: use the version that wrote it",
            folder.display()
        );
        return Err(Error::new(Kind::Protocol, message));
    }
    let number = |text: &str| text.parse().map(MetaId).map_err(|_| damaged());
    let id = number(value("id")?)?;
    let members = value("members")?.split(' ').map(number).collect::<Result<_>>()?;
    let identity = Identity { id, members };
    if render(&identity) == text { Ok(identity) } else { Err(damaged()) }
}

fn aside() -> PathBuf {
    Path::new(FILE).with_extension("tmp")
}

fn write(identity: &Identity, folder: &Path) -> Result<()> {
    let aside = folder.join(aside());
    let what = || format!("write {}", aside.display());
    let mut file = File::create(&aside).io(what)?;
    file.write_all(render(identity).as_bytes()).io(what)?;
    file.sync_all().io(what)?;
    crate::raft::publish(&aside, &folder.join(FILE))
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
