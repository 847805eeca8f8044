//! [`Names`]: paths of inodes, from the names that a trace tells.

use crate::ids::InodeId;
use crate::meta::Name;
use std::collections::HashMap;

/// More folders above each other are taken for a loop: paths are shorter.
const DEPTH_MAX: usize = 4096;

/// What everything is called, as far as it was told; the last name counts.
#[derive(Clone, Debug, Default)]
pub struct Names(HashMap<InodeId, (InodeId, Name)>);

impl Names {
    /// Notes a name.
    pub fn add(&mut self, ino: InodeId, parent: InodeId, name: Name) {
        self.0.insert(ino, (parent, name));
    }

    /// The path from the root of the mount on, `/` first; `None` if part of it was never told.
    #[must_use]
    pub fn path(&self, ino: InodeId) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut at = ino;
        while at != InodeId::ROOT {
            let (parent, name) = self.0.get(&at)?;
            names.push(name.as_bytes());
            if names.len() > DEPTH_MAX {
                return None;
            }
            at = *parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        Some(if path.is_empty() { b"/".to_vec() } else { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_known_when_all_its_names_are() {
        let mut names = Names::default();
        let mut add =
            |ino, parent, name: &str| names.add(InodeId(ino), InodeId(parent), Name::new(name).expect("a name"));
        add(2, 1, "data");
        add(3, 2, "old");
        add(3, 2, "a.png");
        add(5, 4, "lost");
        add(6, 7, "round");
        add(7, 6, "and round");
        let path = |ino| names.path(InodeId(ino));
        assert_eq!(path(1).as_deref(), Some(&b"/"[..]));
        assert_eq!(path(3).as_deref(), Some(&b"/data/a.png"[..]));
        assert_eq!((path(5), path(6), path(9)), (None, None, None));
    }
}
