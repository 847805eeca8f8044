//! [`Ahead`]: which part of a folder to ask for before its names are looked up. Bookkeeping only.
//!
//! The rule: a folder in which names are looked up one after the other is listed from there on, with all that opening its files
//! takes; and more of it only as long as what was listed is used, so that a few names of a large folder stay cheap. One in
//! which names are looked up that are not there, as before each file that is made, is listed from the beginning, for as many
//! entries as those lookups cost.

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

/// Entries that may be listed for each name that was not there: about as much work for a metadata node as one more lookup.
const ENTRIES_PER_ABSENT: u64 = 64;

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
    /// Lookups of names that are not there, and were not answered from memory.
    absent: u64,
    /// Entries that were asked for because of them.
    named: u64,
    is_listing: bool,
}

impl Folder {
    fn new(ino: InodeId) -> Self {
        Folder {
            ino,
            missed: 0,
            used: 0,
            listed: 0,
            next_entries: FIRST_ENTRIES,
            absent: 0,
            named: 0,
            is_listing: false,
        }
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

    /// A name that is not there was looked up, and that was not known; up to where the folder's names are known, if from the
    /// beginning. What to ask now, if anything: [`Ahead::listed`] follows.
    pub fn absent(&mut self, parent: InodeId, upto: Option<Option<Name>>) -> Option<MetaQuery> {
        let folder = self.folder(parent);
        folder.absent += 1;
        let room = (folder.absent * ENTRIES_PER_ABSENT).saturating_sub(folder.named);
        let page = (u64::from(LOOKUPS_MIN) * ENTRIES_PER_ABSENT).max(folder.named).min(u64::from(ENTRIES_MAX));
        let is_whole = upto == Some(None);
        if folder.is_listing || is_whole || room < page {
            return None;
        }
        folder.is_listing = true;
        folder.named += page;
        Some(MetaQuery::List { ino: parent, after: upto.flatten(), limit: page as u32, extents: false })
    }

    /// A lookup that found something was answered from memory.
    pub fn used(&mut self, parent: InodeId) {
        if let Some(folder) = self.folders.iter_mut().rev().find(|folder| folder.ino == parent) {
            folder.used += 1;
        }
    }

    /// The page came, with so many entries that may be used.
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
    fn names_that_are_not_there_have_it_listed_from_the_beginning_for_what_they_cost() {
        let mut ahead = Ahead::default();
        let (mut upto, mut asked) = (None, 0);
        for absent in 1..=1000 {
            if let Some(MetaQuery::List { ino: FOLDER, after, limit, extents: false }) =
                ahead.absent(FOLDER, upto.clone())
            {
                assert_eq!(Some(after.clone()), upto.clone().or(Some(None)), "it goes on where it ended");
                assert_eq!(ahead.absent(FOLDER, upto.clone()), None, "one at a time");
                ahead.listed(FOLDER, 0);
                upto = Some(Some(name(absent)));
                asked += u64::from(limit);
            }
            assert!(asked <= 2 * u64::from(absent) * ENTRIES_PER_ABSENT);
        }
        assert!(asked > 50_000, "{asked}");
        assert!((0..100).all(|_| ahead.absent(FOLDER, Some(None)).is_none()), "all of it is known");
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
