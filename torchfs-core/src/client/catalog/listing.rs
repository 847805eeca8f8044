//! Listing what a catalog is of: whole pages with extents, some folders at a time.

use super::{Catalog, Folder, NOT_A_FILE, Place, Places, QUESTIONS_AT_A_TIME, Scope, find, hash};
use crate::cache::CacheKey;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::StripeId;
use crate::layout::Stripe;
use crate::meta::{Attr, DirEntry, FileKind, Listing, MetaSession};
use crate::prefetch::{DataFile, Dataset, ENTRIES_MAX};
use crate::settings::LIST_ENTRIES_MAX;
use futures::FutureExt;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

/// Lists all of a scope. What is not there is listed as empty, unless it is all there is.
pub async fn list(meta: &MetaSession, scope: Scope) -> Result<Catalog> {
    let walk = Walk { meta: meta.clone(), scope: Arc::new(scope), stripes: Arc::default() };
    let listed = walk.run().await?;
    let Walk { scope, stripes, .. } = walk;
    let stripes = std::mem::take(&mut *stripes.lock().unwrap_or_else(PoisonError::into_inner)).all;
    blocking(move || assemble(Arc::unwrap_or_clone(scope), listed, stripes)).await?
}

struct Walk {
    meta: MetaSession,
    scope: Arc<Scope>,
    stripes: Arc<Mutex<Stripes>>,
}

/// Stripes by the order in which they were met, each once.
#[derive(Debug, Default)]
struct Stripes {
    numbers: HashMap<StripeId, u32>,
    all: Vec<Arc<Stripe>>,
}

impl Stripes {
    fn number(&mut self, stripe: &Stripe) -> u32 {
        *self.numbers.entry(stripe.id).or_insert_with(|| {
            self.all.push(Arc::new(stripe.clone()));
            self.all.len() as u32 - 1
        })
    }
}

/// One folder, of which all that is not needed any more is forgotten.
#[derive(Debug, Default)]
struct Listed {
    folder: Option<Folder>,
    files: Vec<(DataFile, Place)>,
    /// Of [`Scope::Folders`]: hashes of the names, and which of the files it is.
    names: Vec<(u64, u32)>,
    /// Of [`Scope::Tree`]: its folders, and how many of its files come before each.
    below: Vec<(u32, Attr)>,
    /// The same, of folders where the next file may still come before what is in them.
    pending: BTreeMap<Vec<u8>, Attr>,
}

impl Walk {
    /// All folders, those of the scope first, and of each the numbers of those below it.
    async fn run(&self) -> Result<Vec<(Listed, Vec<u32>)>> {
        let mut listed: Vec<(Listed, Vec<u32>)> = Vec::new();
        let (mut waiting, mut files): (Vec<(usize, Start)>, usize) = (Vec::new(), 0);
        for path in self.scope.paths() {
            waiting.push((listed.len(), Start::Path(path.clone())));
            listed.push(Default::default());
        }
        waiting.reverse();
        let mut listing: FuturesUnordered<BoxFuture<'_, Result<(usize, Listed)>>> = FuturesUnordered::new();
        loop {
            while listing.len() < QUESTIONS_AT_A_TIME
                && let Some((number, start)) = waiting.pop()
            {
                listing.push(async move { Ok((number, self.folder(start).await?)) }.boxed());
            }
            let Some(done) = listing.next().await else { return Ok(listed) };
            let (number, folder) = done?;
            files += folder.files.len();
            check_files(files)?;
            for (_, below) in &folder.below {
                let next = listed.len();
                listed[number].1.push(next as u32);
                waiting.push((next, Start::Folder(below.clone())));
                listed.push(Default::default());
            }
            listed[number].0 = folder;
        }
    }

    async fn folder(&self, start: Start) -> Result<Listed> {
        let (path, attr) = match start {
            Start::Folder(attr) => (Vec::new(), attr),
            Start::Path(path) => match self.top(&path).await? {
                Some(attr) => (path, attr),
                None => return Ok(Listed::default()),
            },
        };
        let (mut listed, mut after) = (Listed { folder: Some(Folder::from(&attr)), ..Listed::default() }, None);
        loop {
            let page = match self.meta.list_with_extents(attr.ino, after, LIST_ENTRIES_MAX as u32).await {
                // It was removed since.
                Err(error) if matches!(error.kind(), Kind::NotFound | Kind::Stale) => return Ok(Listed::default()),
                page => page?,
            };
            let more = page.more;
            after = page.entries.last().map(|entry| entry.name.clone());
            let (stripes, scope, path) = (self.stripes.clone(), self.scope.clone(), path.clone());
            listed = blocking(move || listed.with(page, &path, &scope, &stripes)).await?;
            check_files(listed.files.len())?;
            if !more {
                return Ok(listed.ended());
            }
        }
    }

    /// A folder of the scope; of several ones it may be missing.
    async fn top(&self, path: &[u8]) -> Result<Option<Attr>> {
        let found = find(&self.meta, path).await;
        let found = found.and_then(|attr| match attr.kind {
            FileKind::Directory => Ok(attr),
            _ => Err(Error::new(Kind::NotDirectory, "this is not a folder")),
        });
        match found {
            Ok(attr) => Ok(Some(attr)),
            Err(error) if matches!(*self.scope, Scope::Tree(_)) => {
                Err(error).context(|| super::super::path::shown(path))
            }
            Err(error)
                if matches!(
                    error.kind(),
                    Kind::NotFound | Kind::NotDirectory | Kind::InvalidInput | Kind::NameTooLong
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

fn check_files(files: usize) -> Result<()> {
    if files <= ENTRIES_MAX {
        return Ok(());
    }
    let message = format!("there are more than {ENTRIES_MAX} files: announce the order of a part of them");
    Err(Error::new(Kind::TooLarge, message))
}

enum Start {
    Path(Vec<u8>),
    Folder(Attr),
}

impl Listed {
    /// With another page.
    fn with(mut self, page: Listing, path: &[u8], scope: &Scope, stripes: &Mutex<Stripes>) -> Listed {
        let by_id: HashMap<StripeId, &Stripe> = page.stripes.iter().map(|stripe| (stripe.id, stripe)).collect();
        let mut stripes = stripes.lock().unwrap_or_else(PoisonError::into_inner);
        for entry in &page.entries {
            let is_file = entry.attr.kind == FileKind::File;
            match scope {
                Scope::Folders(_) => {
                    let number = if is_file { self.files.len() as u32 } else { NOT_A_FILE };
                    self.names.push((hash(path, entry.name.as_bytes()), number));
                }
                Scope::Tree(_) if is_file => self.settle(Some(entry.name.as_bytes())),
                Scope::Tree(_) if entry.attr.kind == FileKind::Directory => {
                    let inside = [entry.name.as_bytes(), b"/"].concat();
                    self.pending.insert(inside, entry.attr.clone());
                }
                Scope::Tree(_) => {}
            }
            if is_file {
                let key = CacheKey { ino: entry.attr.ino, version: entry.attr.version };
                let place = place_of(entry, &by_id, &mut stripes);
                self.files.push((DataFile { key, bytes: entry.attr.size }, place));
            }
        }
        self
    }

    /// Gives the folders their place that come before a file of this name, or all.
    fn settle(&mut self, name: Option<&[u8]>) {
        while let Some(first) = self.pending.first_entry()
            && name.is_none_or(|name| first.key().as_slice() < name)
        {
            self.below.push((self.files.len() as u32, first.remove()));
        }
    }

    fn ended(mut self) -> Listed {
        self.settle(None);
        self
    }
}

fn place_of(entry: &DirEntry, by_id: &HashMap<StripeId, &Stripe>, stripes: &mut Stripes) -> Place {
    match &entry.extents[..] {
        [only] if only.offset == 0 && u64::from(only.len) == entry.attr.size => match by_id.get(&only.stripe) {
            Some(stripe) => Place { stripe: stripes.number(stripe), at: only.stripe_offset },
            None => Place::UNKNOWN,
        },
        _ => Place::UNKNOWN,
    }
}

/// All files in the order of their paths.
fn assemble(scope: Scope, mut listed: Vec<(Listed, Vec<u32>)>, stripes: Vec<Arc<Stripe>>) -> Result<Catalog> {
    let is_missing = listed.iter().any(|(folder, _)| folder.folder.is_none());
    let folders = listed.iter().filter_map(|(listed, _)| listed.folder).collect();
    let (mut files, mut names) = (Vec::new(), Vec::new());
    for top in 0..scope.paths().len() {
        let first = files.len() as u32;
        let of_folder = listed[top].0.names.drain(..);
        names.extend(of_folder.map(|(hash, file)| (hash, if file == NOT_A_FILE { file } else { first + file })));
        flatten(&mut listed, top, &mut files);
    }
    drop(listed);
    let numbers = number_once(&mut files);
    if let Some(numbers) = &numbers {
        names.iter_mut().filter(|(_, file)| *file != NOT_A_FILE).for_each(|(_, file)| *file = numbers[*file as usize]);
    }
    names.sort_unstable();
    let (files, places): (Vec<DataFile>, Vec<Place>) = files.into_iter().unzip();
    let dataset = Dataset::new(files)?;
    let places = Places { stripes, files: places };
    Ok(Catalog { scope, dataset, files: numbers, names, folders, places, is_outdated: AtomicBool::new(is_missing) })
}

/// The files of a folder and of those below it, which are taken out.
fn flatten(listed: &mut [(Listed, Vec<u32>)], top: usize, files: &mut Vec<(DataFile, Place)>) {
    // A folder, how many of its files and how many of its folders are done.
    let mut open = vec![(top, 0, 0)];
    while let Some((folder, file, below)) = open.pop() {
        let (content, numbers) = &mut listed[folder];
        let until = content.below.get(below).map_or(content.files.len(), |(place, _)| *place as usize);
        files.extend_from_slice(&content.files[file..until]);
        match numbers.get(below) {
            Some(&next) => {
                open.push((folder, until, below + 1));
                open.push((next as usize, 0, 0));
            }
            None => content.files = Vec::new(),
        }
    }
}

/// Leaves of each file with several names the first, and says which one each was; `None` if there are no such files.
fn number_once(files: &mut Vec<(DataFile, Place)>) -> Option<Vec<u32>> {
    let key = |at: u32| files[at as usize].0.key;
    let mut by_key: Vec<u32> = (0..files.len() as u32).collect();
    by_key.sort_unstable_by_key(|&at| (key(at), at));
    let mut firsts: Option<Vec<u32>> = None;
    for run in by_key.chunk_by(|&one, &other| key(one) == key(other)).filter(|run| run.len() > 1) {
        let firsts = firsts.get_or_insert_with(|| (0..files.len() as u32).collect());
        run.iter().for_each(|&at| firsts[at as usize] = run[0]);
    }
    let mut numbers = firsts?;
    let mut kept = Vec::with_capacity(files.len());
    for at in 0..files.len() {
        let first = numbers[at] as usize;
        if first == at {
            kept.push(files[at]);
            numbers[at] = kept.len() as u32 - 1;
        } else {
            numbers[at] = numbers[first];
        }
    }
    *files = kept;
    Some(numbers)
}

async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let ran = tokio::task::spawn_blocking(run).await;
    ran.map_err(|error| Error::caused(Kind::Cancelled, "list an order's files", error))
}
