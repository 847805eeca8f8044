//! [`Catalog`]: the files of some folders as they were listed, known by path or by place, and where their content is.
//!
//! It is made for millions of files: names are kept as hashes, and of content only where a file of one stripe begins. What it
//! says of a version is right as long as there is that version; whoever opens a file asks metadata as always.

mod listing;

use crate::cache::CacheKey;
use crate::error::Result;
use crate::ids::InodeId;
use crate::layout::Stripe;
use crate::meta::{Attr, FileKind, MetaSession, Name, Timestamp};
use crate::prefetch::{Dataset, ENTRIES_MAX};
use crate::stripe::StripeRead;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Catalogs that are remembered: training and validation take turns.
const CATALOGS_MAX: usize = 4;

/// Questions to metadata under way for one catalog.
const QUESTIONS_AT_A_TIME: usize = 16;

/// A name that leads to something else than a regular file.
const NOT_A_FILE: u32 = u32::MAX;

/// What a catalog lists. Paths are from the root, without `/` at the beginning and the end; the root's is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// All below a folder.
    Tree(Vec<u8>),
    /// What is in these folders, and not what is below.
    Folders(BTreeSet<Vec<u8>>),
}

impl Scope {
    fn covers(&self, other: &Scope) -> bool {
        match (self, other) {
            (Scope::Tree(one), Scope::Tree(other)) => one == other,
            (Scope::Folders(all), Scope::Folders(some)) => all.is_superset(some),
            _ => false,
        }
    }

    fn paths(&self) -> Vec<&Vec<u8>> {
        match self {
            Scope::Tree(path) => vec![path],
            Scope::Folders(paths) => paths.iter().collect(),
        }
    }
}

/// A listing of files.
#[derive(Debug)]
pub(super) struct Catalog {
    scope: Scope,
    dataset: Arc<Dataset>,
    /// The numbers of the listed files in the dataset, if some have several names; otherwise they are the same.
    files: Option<Vec<u32>>,
    /// Hashes of the paths, in order, and the files' numbers in the dataset; only of [`Scope::Folders`].
    names: Vec<(u64, u32)>,
    /// The listed folders: those of the scope first, in their order.
    folders: Vec<Folder>,
    places: Places,
    is_outdated: AtomicBool,
}

/// A folder as it was when it was listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Folder {
    ino: InodeId,
    mtime: Timestamp,
    ctime: Timestamp,
}

impl From<&Attr> for Folder {
    fn from(attr: &Attr) -> Self {
        Folder { ino: attr.ino, mtime: attr.mtime, ctime: attr.ctime }
    }
}

/// Where the files of one stripe are, by number.
#[derive(Debug, Default)]
struct Places {
    stripes: Vec<Arc<Stripe>>,
    files: Vec<Place>,
}

/// The number of a file's only stripe and where in it the file begins.
#[derive(Clone, Copy, Debug)]
struct Place {
    stripe: u32,
    at: u32,
}

impl Place {
    /// Metadata has to be asked: it has several stripes, or holes.
    const UNKNOWN: Place = Place { stripe: u32::MAX, at: 0 };
}

/// What a path of an order leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Named {
    /// The file of this number in the dataset.
    File(u32),
    NotAFile,
    Unknown,
}

impl Catalog {
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// How many files are listed; one with several names counts as often.
    pub fn len(&self) -> usize {
        self.files.as_ref().map_or(self.dataset.files().len(), Vec::len)
    }

    /// The file that is listed at this place.
    pub fn at(&self, place: u32) -> Named {
        let file = match &self.files {
            Some(files) => files.get(place as usize).copied(),
            None => Some(place).filter(|&place| (place as usize) < self.dataset.files().len()),
        };
        file.map_or(Named::Unknown, Named::File)
    }

    /// The file of this name in a folder of the scope.
    pub fn named(&self, folder: &[u8], name: &[u8]) -> Named {
        match self.names.binary_search_by_key(&hash(folder, name), |(hash, _)| *hash) {
            Ok(at) if self.names[at].1 == NOT_A_FILE => Named::NotAFile,
            Ok(at) => Named::File(self.names[at].1),
            Err(_) => Named::Unknown,
        }
    }

    /// Where this version of a small file is.
    fn read(&self, key: CacheKey) -> Option<StripeRead> {
        let number = self.dataset.index_of(key)?;
        let Place { stripe, at } = *self.places.files.get(number as usize)?;
        let stripe = self.places.stripes.get(stripe as usize)?.clone();
        let len = self.dataset.files()[number as usize].bytes as u32;
        Some(StripeRead { stripe, range: at..at + len })
    }

    /// Whether the folders still list the same. Changes of the files themselves are noticed when they are opened.
    pub async fn is_current(&self, meta: &MetaSession) -> bool {
        if self.is_outdated.load(Ordering::Relaxed) {
            return false;
        }
        let paths = self.scope.paths();
        let (named, below) = self.folders.split_at(paths.len());
        let mut asked: Vec<BoxFuture<'static, bool>> = Vec::new();
        for (path, &folder) in paths.into_iter().zip(named) {
            let (meta, path) = (meta.clone(), path.to_owned());
            let is_same = async move { find(&meta, &path).await.is_ok_and(|attr| Folder::from(&attr) == folder) };
            asked.push(is_same.boxed());
        }
        for &folder in below {
            let meta = meta.clone();
            let is_same = async move { meta.attr(folder.ino).await.is_ok_and(|attr| Folder::from(&attr) == folder) };
            asked.push(is_same.boxed());
        }
        let mut same = stream::iter(asked).buffer_unordered(QUESTIONS_AT_A_TIME);
        while let Some(same) = same.next().await {
            if !same {
                return false;
            }
        }
        true
    }
}

/// The catalogs of a client: the latest last.
#[derive(Debug, Default)]
pub(super) struct Catalogs {
    known: Mutex<VecDeque<Arc<Catalog>>>,
}

impl Catalogs {
    fn known(&self) -> MutexGuard<'_, VecDeque<Arc<Catalog>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A catalog of all that is in the scope; the same as before if nothing there has changed.
    ///
    /// # Errors
    /// What metadata answers; of [`Scope::Tree`] also if there is no such folder. `TooLarge` for more files than are kept.
    pub async fn get(&self, meta: &MetaSession, scope: Scope) -> Result<Arc<Catalog>> {
        let before = self.known().iter().rev().find(|catalog| catalog.scope.covers(&scope)).cloned();
        if let Some(before) = before
            && before.is_current(meta).await
        {
            return Ok(before);
        }
        self.anew(meta, scope).await
    }

    /// As [`Catalogs::get`], listed now: files that changed while their folders did not are as they are.
    ///
    /// # Errors
    /// The same.
    pub async fn anew(&self, meta: &MetaSession, scope: Scope) -> Result<Arc<Catalog>> {
        let catalog = Arc::new(listing::list(meta, scope).await?);
        let mut known = self.known();
        known.retain(|before| !catalog.scope.covers(&before.scope));
        known.push_back(catalog.clone());
        let too_many =
            |known: &VecDeque<Arc<Catalog>>| known.iter().map(|catalog| catalog.len()).sum::<usize>() > ENTRIES_MAX;
        while known.len() > 1 && (known.len() > CATALOGS_MAX || too_many(&known)) {
            known.pop_front();
        }
        Ok(catalog)
    }

    /// Where this version of a small file is, if a catalog says.
    pub fn read(&self, key: CacheKey) -> Option<StripeRead> {
        self.known().iter().rev().find_map(|catalog| catalog.read(key))
    }

    /// A file is opened, or was found changed: what lists another version of it is out of date.
    pub fn note_version(&self, key: CacheKey) {
        let known = self.known();
        let others = known.iter().filter(|catalog| catalog.dataset.as_listed(key).is_some_and(|file| file.key != key));
        others.for_each(|catalog| catalog.is_outdated.store(true, Ordering::Relaxed));
    }

    /// This version is gone, or is not where it was.
    pub fn note_moved(&self, key: CacheKey) {
        let known = self.known();
        let listing = known.iter().filter(|catalog| catalog.dataset.index_of(key).is_some());
        listing.for_each(|catalog| catalog.is_outdated.store(true, Ordering::Relaxed));
    }
}

/// What is at a path, links followed. Name by name, which a client that holds a lease is answered from memory; links by metadata.
pub(super) async fn find(meta: &MetaSession, path: &[u8]) -> Result<Attr> {
    let mut attr = meta.attr(InodeId::ROOT).await?;
    for name in path.split(|&byte| byte == b'/').filter(|name| !name.is_empty()) {
        attr = meta.lookup(attr.ino, Name::new(name)?).await?;
        if attr.kind == FileKind::Symlink {
            let missing = || crate::Error::new(crate::Kind::NotFound, "nothing is there");
            return meta.resolve(path).await?.attr.ok_or_else(missing);
        }
    }
    Ok(attr)
}

fn hash(folder: &[u8], name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (folder, name).hash(&mut hasher);
    hasher.finish()
}
