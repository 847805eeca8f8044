//! [`Ahead`]: which part of a folder to ask for before its names are looked up. Bookkeeping only.
//!
//! The rule: a folder in which names are looked up one after the other is listed from there on, with all that opening its files
//! takes; and more of it only as long as what was listed is used, so that a few names of a large folder stay cheap.

use crate::ids::InodeId;
use crate::meta::{MetaQuery, Name};

/// Folders that are followed: those of which names were looked up last.
const FOLDERS_MAX: usize = 64;

/// Names that are looked up in a folder before it is listed.
const LOOKUPS_MIN: u32 = 4;

/// Entries of the first page; each further one has twice as many.
const FIRST_ENTRIES: u32 = 64;

/// Most entries of a page: a few milliseconds of a metadata node.
const ENTRIES_MAX: u32 = 1024;

/// One of so many entries that were listed must have been used before more are.
const USED_PART: u64 = 16;

/// Lists folders ahead of lookups.
#[derive(Debug, Default)]
pub struct Ahead {
    /// The one of which a name was looked up last is the last.
    folders: Vec<Folder>,
}

#[derive(Debug)]
struct Folder {
    ino: InodeId,
    /// Lookups that were not answered from memory.
    missed: u32,
    /// Lookups that were.
    used: u64,
    listed: u64,
    next_entries: u32,
    is_listing: bool,
}

impl Folder {
    fn new(ino: InodeId) -> Self {
        Folder { ino, missed: 0, used: 0, listed: 0, next_entries: FIRST_ENTRIES, is_listing: false }
    }
}

impl Ahead {
    /// A name that is there was looked up, and not known. What to ask now, if anything: [`Ahead::listed`] follows.
    pub fn missed(&mut self, parent: InodeId, name: &Name) -> Option<MetaQuery> {
        let folder = self.folder(parent);
        folder.missed += 1;
        let is_used = folder.used * USED_PART >= folder.listed;
        if folder.missed < LOOKUPS_MIN || folder.is_listing || !is_used {
            return None;
        }
        folder.is_listing = true;
        let limit = folder.next_entries;
        folder.next_entries = (limit * 2).min(ENTRIES_MAX);
        Some(MetaQuery::List { ino: parent, after: Some(name.clone()), limit, extents: true })
    }

    /// A lookup was answered from memory.
    pub fn used(&mut self, parent: InodeId) {
        if let Some(folder) = self.folders.iter_mut().rev().find(|folder| folder.ino == parent) {
            folder.used += 1;
        }
    }

    /// So much came.
    pub fn listed(&mut self, parent: InodeId, entries: usize) {
        let folder = self.folder(parent);
        folder.is_listing = false;
        folder.listed += entries as u64;
    }

    fn folder(&mut self, ino: InodeId) -> &mut Folder {
        let known = self.folders.iter().rposition(|folder| folder.ino == ino);
        let folder = known.map_or_else(|| Folder::new(ino), |at| self.folders.remove(at));
        if self.folders.len() == FOLDERS_MAX {
            self.folders.remove(0);
        }
        self.folders.push(folder);
        let last = self.folders.len() - 1;
        &mut self.folders[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLDER: InodeId = InodeId(7);

    fn name(number: u32) -> Name {
        Name::new(format!("{number:06}")).expect("a name")
    }

    /// What is asked when a name is looked up: the entries after it, how many.
    fn asked(ahead: &mut Ahead, number: u32) -> Option<u32> {
        match ahead.missed(FOLDER, &name(number)) {
            Some(MetaQuery::List { ino: FOLDER, after: Some(after), limit, extents: true })
                if after == name(number) =>
            {
                Some(limit)
            }
            None => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_folder_is_listed_in_growing_pages_while_its_names_are_looked_up() {
        let mut ahead = Ahead::default();
        assert_eq!([1, 2, 3].map(|number| asked(&mut ahead, number)), [None; 3]);
        let mut expected = FIRST_ENTRIES;
        for _ in 0..8 {
            assert_eq!(asked(&mut ahead, 4), Some(expected));
            assert_eq!(asked(&mut ahead, 5), None, "one at a time");
            ahead.listed(FOLDER, expected as usize);
            (0..expected).for_each(|_| ahead.used(FOLDER));
            expected = (expected * 2).min(ENTRIES_MAX);
        }
    }

    #[test]
    fn what_is_not_used_ends_it_until_it_is() {
        let mut ahead = Ahead::default();
        assert_eq!((0..4).find_map(|number| asked(&mut ahead, number)), Some(FIRST_ENTRIES));
        ahead.listed(FOLDER, FIRST_ENTRIES as usize);
        assert_eq!((0..1000).find_map(|number| asked(&mut ahead, number)), None);
        (0..u64::from(FIRST_ENTRIES) / USED_PART).for_each(|_| ahead.used(FOLDER));
        assert_eq!(asked(&mut ahead, 9), Some(2 * FIRST_ENTRIES));
    }

    #[test]
    fn folders_are_followed_by_themselves_and_so_many_at_most() {
        let mut ahead = Ahead::default();
        for ino in 0..10_000 {
            assert_eq!(ahead.missed(InodeId(ino), &name(1)), None);
        }
        assert_eq!(ahead.folders.len(), FOLDERS_MAX);
        assert_eq!(ahead.folder(InodeId(9_999)).missed, 1);
        assert_eq!(ahead.folder(InodeId(1)).missed, 0, "forgotten");
    }
}
