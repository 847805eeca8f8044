//! Paths, as path_resolution(7) has it: component by component, links and `..` followed on the way.

use super::inode;
use super::keys;
use super::record::{Body, Inode};
use super::tx::{Outcome, Tx, broken, decode, fail, successor};
use super::xattr::name_in;
use torchfs_core::meta::{Name, Resolved};
use torchfs_core::settings::{LINKS_FOLLOWED_MAX, PATH_BYTES_MAX};
use torchfs_core::{InodeId, Kind};

/// What to do with a link that is the last component.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastLink {
    Follow,
    Keep,
}

/// Where a walk stands, and what is still to be walked.
struct Walk {
    /// The folder reached.
    at: InodeId,
    /// The names that lead to it from where the walk started or from the root, with their folders.
    trail: Vec<(InodeId, Name)>,
    /// Components still to go, the next one last.
    todo: Vec<Vec<u8>>,
    /// The path, or a link that ended it, ends in `/` or `.`: what is there must be a folder.
    wants_folder: bool,
    links: usize,
}

pub(super) fn resolve(tx: &Tx<'_>, from: InodeId, path: &[u8], last: LastLink) -> Outcome<Resolved> {
    if path.len() > PATH_BYTES_MAX {
        let message = format!("path of {} bytes; at most {PATH_BYTES_MAX} are possible", path.len());
        return fail(Kind::NameTooLong, message);
    }
    inode::folder(tx, from)?;
    let mut walk = Walk { at: from, trail: Vec::new(), todo: Vec::new(), wants_folder: false, links: 0 };
    walk.push(path);
    while let Some(component) = walk.todo.pop() {
        if component == b".." {
            walk.up(tx)?;
        } else if let Some(resolved) = walk.step(tx, Name::new(component)?, last)? {
            return Ok(resolved);
        }
    }
    walk.arrive(tx)
}

impl Walk {
    /// Puts the components of `path` in front of what is still to go.
    fn push(&mut self, path: &[u8]) {
        let parts = || path.split(|&byte| byte == b'/');
        if self.todo.is_empty() && parts().next_back().is_some_and(|last| last.is_empty() || last == b".") {
            self.wants_folder |= !path.is_empty();
        }
        let real = parts().filter(|part| !part.is_empty() && *part != b".");
        self.todo.extend(real.rev().map(<[u8]>::to_vec));
    }

    fn up(&mut self, tx: &Tx<'_>) -> Outcome<()> {
        self.at = match self.trail.pop() {
            Some((parent, _)) => parent,
            None => inode::parent_of(self.at, &inode::get_named(tx, self.at)?)?,
        };
        Ok(())
    }

    /// Goes one component further; answers if it was the last one and no folder to stand in.
    fn step(&mut self, tx: &Tx<'_>, name: Name, last: LastLink) -> Outcome<Option<Resolved>> {
        let is_last = self.todo.is_empty();
        let Some(entry) = inode::entry(tx, (self.at, &name))? else {
            if is_last {
                return Ok(Some(Resolved { parent: self.at, name: Some(name), attr: None }));
            }
            return fail(Kind::NotFound, format!("there is no '{name}' on the way"));
        };
        let inode = inode::get_named(tx, entry.ino)?;
        match &inode.body {
            Body::Directory { .. } => {
                self.trail.push((self.at, name));
                self.at = entry.ino;
                Ok(None)
            }
            Body::Symlink(target) if !is_last || self.wants_folder || last == LastLink::Follow => {
                self.follow(target)?;
                Ok(None)
            }
            _ if !is_last || self.wants_folder => fail(Kind::NotDirectory, format!("'{name}' is not a folder")),
            _ => Ok(Some(Resolved { parent: self.at, name: Some(name), attr: Some(inode.attr(entry.ino)) })),
        }
    }

    fn follow(&mut self, target: &[u8]) -> Outcome<()> {
        self.links += 1;
        if self.links > LINKS_FOLLOWED_MAX {
            return fail(Kind::SymlinkLoop, format!("more than {LINKS_FOLLOWED_MAX} symbolic links on the way"));
        }
        if target.first() == Some(&b'/') {
            self.at = InodeId::ROOT;
            self.trail.clear();
        }
        self.push(target);
        Ok(())
    }

    /// The walk ended in a folder.
    fn arrive(mut self, tx: &Tx<'_>) -> Outcome<Resolved> {
        let folder = inode::get_named(tx, self.at)?;
        let attr = Some(folder.attr(self.at));
        if self.at == InodeId::ROOT {
            return Ok(Resolved { parent: InodeId::ROOT, name: None, attr });
        }
        let (parent, name) = match self.trail.pop() {
            Some(place) => place,
            None => place_of(tx, self.at, &folder)?,
        };
        Ok(Resolved { parent, name: Some(name), attr })
    }
}

/// The name of a folder, by looking through the folder above it.
fn place_of(tx: &Tx<'_>, ino: InodeId, folder: &Inode) -> Outcome<(InodeId, Name)> {
    let parent = inode::parent_of(ino, folder)?;
    let prefix = keys::entries(parent);
    let (mut from, to) = (prefix.clone(), keys::end_of(&prefix));
    loop {
        let page = tx.scan(&from, &to, 1024)?;
        for (key, bytes) in &page {
            if decode::<super::record::Entry>(key, bytes)?.ino == ino {
                return Ok((parent, name_in(key, &prefix)?));
            }
        }
        match page.last() {
            Some((key, _)) => from = successor(key),
            None => return broken(format!("folder {ino} has no name in its parent {parent}")),
        }
    }
}
