//! Paths.

use super::{Model, fail};
use crate::error::{Kind, Result};
use crate::ids::InodeId;
use crate::meta::{Name, NewKind, Resolved};
use crate::settings::{LINKS_FOLLOWED_MAX, PATH_BYTES_MAX};

impl Model {
    pub(super) fn resolve(&self, from: InodeId, path: &[u8], follow: bool) -> Result<Resolved> {
        if path.len() > PATH_BYTES_MAX {
            return fail(Kind::NameTooLong, format!("path of {} bytes", path.len()));
        }
        self.entries(from)?;
        self.walk(from, path.to_vec(), follow, 0)
    }

    /// Goes one component, then the rest. A link is put in front of the rest as text.
    fn walk(&self, at: InodeId, path: Vec<u8>, follow: bool, links: usize) -> Result<Resolved> {
        let mut parts = path.splitn(2, |&byte| byte == b'/');
        let (first, rest) = (parts.next().unwrap_or_default().to_vec(), parts.next().map(<[u8]>::to_vec));
        if first.is_empty() || first == b"." {
            return match rest {
                Some(rest) => self.walk(at, rest, follow, links),
                None => self.arrive(at),
            };
        }
        if first == b".." {
            return self.walk(self.inode(at)?.parent, rest.unwrap_or_default(), follow, links);
        }
        let name = Name::new(first)?;
        // What follows is only slashes and dots: this is the last component, and has to be a folder.
        let is_last = rest
            .as_deref()
            .is_none_or(|rest| rest.split(|&byte| byte == b'/').all(|part| part.is_empty() || part == b"."));
        let Some(&ino) = self.entries(at)?.get(&name) else {
            if is_last {
                return Ok(Resolved { parent: at, name: Some(name), attr: None });
            }
            return fail(Kind::NotFound, format!("there is no '{name}' on the way"));
        };
        match (&self.inode(ino)?.kind, rest) {
            (NewKind::Directory, rest) => self.walk(ino, rest.unwrap_or_default(), follow, links),
            (NewKind::Symlink(target), rest) if rest.is_some() || follow => {
                if links == LINKS_FOLLOWED_MAX {
                    return fail(Kind::SymlinkLoop, "too many symbolic links on the way");
                }
                let start = if target[0] == b'/' { InodeId::ROOT } else { at };
                let path = rest.map_or_else(|| target.clone(), |rest| [target, &b"/"[..], &rest].concat());
                self.walk(start, path, follow, links + 1)
            }
            (_, Some(_)) => fail(Kind::NotDirectory, format!("'{name}' is not a folder")),
            (_, None) => Ok(Resolved { parent: at, name: Some(name), attr: Some(self.attr(ino)?) }),
        }
    }

    /// The path led to a folder.
    fn arrive(&self, at: InodeId) -> Result<Resolved> {
        let parent = self.inode(at)?.parent;
        let name = self.entries(parent)?.iter().find(|(_, ino)| **ino == at).map(|(name, _)| name.clone());
        Ok(Resolved { parent, name, attr: Some(self.attr(at)?) })
    }
}
