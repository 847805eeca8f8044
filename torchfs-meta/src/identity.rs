//! Who a data folder belongs to: a small text file that is written before anything else and checked at every start.
//!
//! Also the lock that keeps a second process out of the folder, and what a node has to remember to know a peer whose folder
//! was wiped: see [`Incarnations`].

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
#[derive(Clone, Debug, PartialEq, Eq)]
struct Identity {
    id: MetaId,
    members: BTreeSet<MetaId>,
    /// Drawn when the folder is made: a folder that was emptied has another one.
    incarnation: u128,
    /// Whether the node may vote.
    admitted: bool,
    /// The first incarnation that was heard of each peer.
    met: BTreeMap<MetaId, u128>,
}

/// How a peer's incarnation compares to what was heard of it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Met {
    /// Nothing was heard of the peer before; now it is remembered.
    First,
    /// It is the one that was here before.
    Same,
    /// Another one was here before: the peer has lost what it knew.
    Another,
}

/// What a node knows about its own past and its peers', kept in its folder.
#[derive(Debug)]
pub struct Incarnations {
    folder: PathBuf,
    identity: Mutex<Identity>,
}

impl Incarnations {
    fn identity(&self) -> MutexGuard<'_, Identity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This node's own.
    #[must_use]
    pub fn own(&self) -> u128 {
        self.identity().incarnation
    }

    /// Whether this node may vote.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        self.identity().admitted
    }

    /// From now on this node may vote.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn admit(&self) -> Result<()> {
        let mut identity = self.identity();
        let admitted = Identity { admitted: true, ..identity.clone() };
        write(&admitted, &self.folder)?;
        *identity = admitted;
        Ok(())
    }

    /// Compares what a peer says of itself with what is remembered. What is new is on disk when this returns.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for a node that is none of the peers; what the operating system says.
    pub fn meet(&self, peer: MetaId, incarnation: u128) -> Result<Met> {
        let mut identity = self.identity();
        if peer == identity.id || !identity.members.contains(&peer) {
            let (id, members) = (identity.id, list(&identity.members));
            let message = format!(
                "metadata node {id} knows the nodes {members}, and node {peer} is none of its peers: \
                 give every node the same --peers, each with its own --id"
            );
            return Err(Error::new(Kind::InvalidInput, message));
        }
        match identity.met.get(&peer) {
            Some(known) if *known == incarnation => Ok(Met::Same),
            Some(_) => Ok(Met::Another),
            None => {
                let mut changed = identity.clone();
                changed.met.insert(peer, incarnation);
                write(&changed, &self.folder)?;
                *identity = changed;
                Ok(Met::First)
            }
        }
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
    let claim = Claim { _lock: lock(folder)? };
    let identity = match std::fs::read_to_string(folder.join(FILE)) {
        Ok(text) => {
            let (found, is_complete) = parse(&text, folder)?;
            compare(&found, id, members, folder)?;
            if !is_complete {
                write(&found, folder)?;
            }
            found
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            refuse_foreign(folder)?;
            let (incarnation, members) = (rand::random(), members.clone());
            let new = Identity { id, members, incarnation, admitted: false, met: BTreeMap::new() };
            write(&new, folder)?;
            new
        }
        Err(error) => return Err(Error::io(format!("read {}", folder.join(FILE).display()), error)),
    };
    Ok((claim, Incarnations { folder: folder.to_owned(), identity: Mutex::new(identity) }))
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

fn render(identity: &Identity) -> String {
    let Identity { id, members, incarnation, admitted, met } = identity;
    let admitted = if *admitted { "yes" } else { "no" };
    let mut body = format!(
        "{TITLE}\nformat {FORMAT}\nid {id}\nmembers {}\nincarnation {incarnation:032x}\nadmitted {admitted}\n",
        list(members)
    );
    for (peer, incarnation) in met {
        body.push_str(&format!("met {peer} {incarnation:032x}\n"));
    }
    let checksum = crc32c::crc32c(body.as_bytes());
    format!("{body}checksum {checksum:08x}\n")
}

/// What the file says, and whether it says everything: one written before there were incarnations does not.
fn parse(text: &str, folder: &Path) -> Result<(Identity, bool)> {
    let path = folder.join(FILE);
    let damaged = || {
        let message =
            format!("{} is damaged: restore it, or empty the folder and let the node join anew", path.display());
        Error::new(Kind::Corrupt, message)
    };
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value = |name: &str| line(name).ok_or_else(damaged);
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
    let end = text.rfind("checksum ").ok_or_else(damaged)?;
    if text[end..] != format!("checksum {:08x}\n", crc32c::crc32c(&text.as_bytes()[..end])) {
        return Err(damaged());
    }
    let number = |text: &str| text.parse().map(MetaId).map_err(|_| damaged());
    let hex = |text: &str| u128::from_str_radix(text, 16).map_err(|_| damaged());
    let id = number(value("id")?)?;
    let members = value("members")?.split(' ').map(number).collect::<Result<_>>()?;
    let Some(incarnation) = line("incarnation") else {
        // It has voted before.
        return Ok((
            Identity { id, members, incarnation: rand::random(), admitted: true, met: BTreeMap::new() },
            false,
        ));
    };
    let met = text.lines().filter_map(|line| line.strip_prefix("met ")).map(|line| {
        let (peer, incarnation) = line.split_once(' ').ok_or_else(damaged)?;
        Ok((number(peer)?, hex(incarnation)?))
    });
    let (incarnation, admitted, met) = (hex(incarnation)?, value("admitted")? == "yes", met.collect::<Result<_>>()?);
    Ok((Identity { id, members, incarnation, admitted, met }, true))
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
    fn what_was_met_is_remembered_and_an_empty_folder_is_another_incarnation() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        let open = || claim(path, MetaId(2), &members(&[1, 2, 3])).expect("opens").1;
        let new = open();
        assert!(!new.is_admitted());
        assert_eq!(new.meet(MetaId(1), 7).expect("writes"), Met::First);
        assert_eq!(new.meet(MetaId(1), 7).expect("reads"), Met::Same);
        new.admit().expect("writes");
        let again = open();
        assert!(again.is_admitted());
        assert_eq!(again.own(), new.own());
        assert_eq!(again.meet(MetaId(1), 7).expect("reads"), Met::Same);
        assert_eq!(again.meet(MetaId(1), 8).expect("reads"), Met::Another);
        assert_eq!(open().meet(MetaId(1), 8).expect("reads"), Met::Another, "the first one stays");
        for stranger in [2, 4] {
            assert_eq!(again.meet(MetaId(stranger), 7).expect_err("no peer").kind(), Kind::InvalidInput);
        }
        std::fs::remove_file(path.join(FILE)).expect("wipes");
        assert_ne!(open().own(), new.own());
        assert!(!open().is_admitted());
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
        assert_eq!(open().own(), first.own(), "it is drawn once");
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
