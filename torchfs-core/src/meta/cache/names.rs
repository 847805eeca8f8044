//! [`FolderNames`]: what names a folder may have, so that others need not be asked for. Bookkeeping only.
//!
//! The rule: more names than there are do no harm, one fewer would. So removed names stay, and of each only a hash is kept.

use super::answers::Moment;
use crate::ids::InodeId;
use crate::meta::{Listing, Name};
use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Names kept in all: some 30 MB.
const NAMES_MAX: usize = 1 << 20;

/// Folders kept; the names of all are forgotten when there are more.
const FOLDERS_MAX: usize = 4096;

/// The names of some folders.
#[derive(Debug, Default)]
pub struct FolderNames {
    folders: HashMap<InodeId, Known>,
    names: usize,
}

#[derive(Debug)]
struct Known {
    /// As of then.
    asked: Moment,
    /// Names behind this one are not known; `None`: all are.
    upto: Option<Name>,
    hashes: HashSet<u64>,
}

impl FolderNames {
    /// As of when the folder's names are known, or those at its beginning.
    pub fn asked(&self, folder: InodeId) -> Option<Moment> {
        self.folders.get(&folder).map(|known| known.asked)
    }

    /// Up to which name they are known: all, if that is `None`.
    pub fn upto(&self, folder: InodeId) -> Option<Option<&Name>> {
        self.folders.get(&folder).map(|known| known.upto.as_ref())
    }

    /// Whether the folder had no such name when its names were asked for.
    pub fn lacks(&self, folder: InodeId, name: &Name) -> bool {
        self.folders.get(&folder).is_some_and(|known| {
            known.upto.as_ref().is_none_or(|upto| name <= upto) && !known.hashes.contains(&hash(name))
        })
    }

    /// A page of a folder, after a name if that is given, as it was at `asked`.
    pub fn listed(&mut self, asked: Moment, folder: InodeId, after: Option<&Name>, listing: &Listing) {
        if after.is_none() {
            self.forget(folder);
            self.folders.insert(folder, Known { asked, upto: None, hashes: HashSet::new() });
        }
        // A page goes on where the one before ended, or says nothing new.
        match self.folders.get_mut(&folder) {
            Some(known) if after.is_none() || (known.upto.is_some() && known.upto.as_ref() == after) => {
                known.upto = listing.entries.last().filter(|_| listing.more).map(|entry| entry.name.clone());
            }
            _ => return,
        }
        listing.entries.iter().for_each(|entry| self.add(folder, &entry.name));
    }

    /// The folder is new.
    pub fn made(&mut self, asked: Moment, folder: InodeId) {
        self.listed(asked, folder, None, &Listing { entries: Vec::new(), stripes: Vec::new(), more: false });
    }

    /// The folder may have this name, too.
    pub fn add(&mut self, folder: InodeId, name: &Name) {
        if let Some(known) = self.folders.get_mut(&folder) {
            self.names += usize::from(known.hashes.insert(hash(name)));
        }
        if self.names > NAMES_MAX || self.folders.len() > FOLDERS_MAX {
            *self = FolderNames::default();
        }
    }

    /// What is known of the folder holds at this moment, too.
    pub fn renew(&mut self, now: Moment, folder: InodeId) {
        if let Some(known) = self.folders.get_mut(&folder) {
            known.asked = now;
        }
    }

    /// Nothing is known of the folder.
    pub fn forget(&mut self, folder: InodeId) {
        if let Some(known) = self.folders.remove(&folder) {
            self.names -= known.hashes.len();
        }
    }
}

fn hash(name: &Name) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::cache::answers::test::entry;

    const FOLDER: InodeId = InodeId(7);

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    fn page(names: &[&str], more: bool) -> Listing {
        Listing { entries: names.iter().map(|text| entry(text)).collect(), stripes: Vec::new(), more }
    }

    fn lacking(names: &FolderNames, asked: &[&str]) -> Vec<bool> {
        asked.iter().map(|text| names.lacks(FOLDER, &name(text))).collect()
    }

    #[test]
    fn pages_tell_up_to_where_they_reach() {
        let mut names = FolderNames::default();
        let asked = ["a", "b", "c", "d", "e"];
        assert_eq!(lacking(&names, &asked), [false; 5], "nothing is known");
        names.listed(Moment::default(), FOLDER, Some(&name("a")), &page(&["b"], false));
        assert_eq!(lacking(&names, &asked), [false; 5], "nothing is known of the beginning");
        names.listed(Moment::default(), FOLDER, None, &page(&["b"], true));
        assert_eq!(lacking(&names, &asked), [true, false, false, false, false]);
        names.listed(Moment::default(), FOLDER, Some(&name("c")), &page(&["e"], false));
        assert_eq!(lacking(&names, &asked), [true, false, false, false, false], "c might be there");
        names.listed(Moment::default(), FOLDER, Some(&name("b")), &page(&["d"], false));
        assert_eq!(lacking(&names, &asked), [true, false, true, false, true]);
        names.add(FOLDER, &name("e"));
        assert!(!names.lacks(FOLDER, &name("e")));
        // All of it is known: a page from within says nothing more.
        names.listed(Moment::default(), FOLDER, Some(&name("d")), &page(&[], true));
        assert!(names.lacks(FOLDER, &name("f")));
        names.listed(Moment::default(), FOLDER, None, &page(&["b"], false));
        assert!(names.lacks(FOLDER, &name("e")) && names.names == 1);
    }

    #[test]
    fn a_new_folder_has_no_names() {
        let mut names = FolderNames::default();
        names.made(Moment::default(), FOLDER);
        assert!(names.lacks(FOLDER, &name("a")));
        assert!(!names.lacks(InodeId(8), &name("a")));
        names.forget(FOLDER);
        assert!(!names.lacks(FOLDER, &name("a")));
    }

    #[test]
    fn it_is_bounded() {
        let mut names = FolderNames::default();
        names.made(Moment::default(), FOLDER);
        for number in 0..NAMES_MAX + 10 {
            names.add(FOLDER, &name(&number.to_string()));
            assert!(names.names <= NAMES_MAX);
        }
        assert!(!names.lacks(FOLDER, &name("a")), "forgotten as a whole");
        for number in 0..=FOLDERS_MAX as u64 {
            names.made(Moment::default(), InodeId(number));
            names.add(InodeId(number), &name("a"));
        }
        assert!(names.folders.len() <= FOLDERS_MAX && names.names <= NAMES_MAX);
    }
}
