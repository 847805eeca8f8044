//! Announcing the order of an epoch: [`EpochOrder`], [`Client::announce`].
//!
//! Nothing but speed hangs on it: a file that an order does not name, or names wrongly, is read as without.

use super::Client;
use super::catalog::{Catalog, Named, Scope};
use super::path::shown;
use super::write::blocking;
use crate::cache::Cache;
use crate::error::{Error, Kind, Result};
use crate::prefetch::{DataFile, ENTRIES_MAX, EpochProgress, PREDICTED_EPOCHS, Schedule};
use std::borrow::Cow;
use std::collections::BTreeSet;

/// The order in which the files of an epoch will be read, as the one who trains knows it.
///
/// ```no_run
/// # use torchfs_core::{Client, EpochOrder};
/// # async fn run(client: &Client) -> torchfs_core::Result<()> {
/// // What a sampler has drawn of the files below /train, and that the second of four ranks reads its part of it.
/// let order = EpochOrder::indices(0, "/train", vec![3, 1, 2, 0]).with_rank(1, 4)?;
/// let announced = client.announce(order).await?;
/// println!("{} files will be fetched ahead", announced.entries);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct EpochOrder {
    epoch: u64,
    entries: Entries,
    rank: u32,
    world_size: u32,
    workers: usize,
    batch_size: usize,
}

#[derive(Clone, Debug)]
enum Entries {
    Paths(PathList),
    Indices { folder: Vec<u8>, indices: Vec<u32> },
}

/// Paths one after the other in memory.
#[derive(Clone, Debug, Default)]
pub struct PathList {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl PathList {
    /// Adds a path at the end.
    pub fn push(&mut self, path: impl AsRef<[u8]>) {
        self.bytes.extend_from_slice(path.as_ref());
        self.ends.push(self.bytes.len());
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The path at this place, if there are so many.
    #[must_use]
    pub fn get(&self, at: usize) -> Option<&[u8]> {
        let start = if at == 0 { 0 } else { *self.ends.get(at - 1)? };
        Some(&self.bytes[start..*self.ends.get(at)?])
    }
}

impl<P: AsRef<[u8]>> FromIterator<P> for PathList {
    fn from_iter<I: IntoIterator<Item = P>>(paths: I) -> Self {
        let mut list = PathList::default();
        paths.into_iter().for_each(|path| list.push(path));
        list
    }
}

/// What became of an announced order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announced {
    /// Which epoch it is of.
    pub epoch: u64,
    /// Entries that this client will read, as far as they are known.
    pub entries: u64,
    /// How many bytes these are.
    pub bytes: u64,
    /// Entries left out because there is nothing of that name, or no file with that index.
    pub unknown: u64,
    /// The first of them.
    pub first_unknown: Option<String>,
    /// Entries left out because they are folders, links or special files.
    pub not_files: u64,
    /// The first of them.
    pub first_not_file: Option<String>,
    /// Entries of files that occur earlier in the order. They are not left out.
    pub repeated: u64,
    /// The first of them.
    pub first_repeated: Option<String>,
}

impl EpochOrder {
    /// Paths from the root of the file system, with or without a leading `/`. Links on the way to a file are followed, the file
    /// itself must not be one.
    #[must_use]
    pub fn paths(epoch: u64, paths: impl Into<PathList>) -> EpochOrder {
        EpochOrder::of(epoch, Entries::Paths(paths.into()))
    }

    /// Indices into the sorted list of a folder's regular files: all below it, at any depth, sorted by the bytes of their paths
    /// relative to the folder (as `LC_ALL=C sort` does, or Python's `sorted` of byte strings); 0 is the first. Other things than
    /// regular files are not counted, links to files included; a file with several names counts at each.
    #[must_use]
    pub fn indices(epoch: u64, folder: impl Into<Vec<u8>>, indices: Vec<u32>) -> EpochOrder {
        EpochOrder::of(epoch, Entries::Indices { folder: folder.into(), indices })
    }

    fn of(epoch: u64, entries: Entries) -> EpochOrder {
        EpochOrder { epoch, entries, rank: 0, world_size: 1, workers: 1, batch_size: 1 }
    }

    /// Says that the order is that of several clients together, and this one reads the entries `rank`, `rank + world_size` and so
    /// on. As torch's `DistributedSampler` does it: if the entries cannot be divided, the first ones are read again at the end.
    ///
    /// # Errors
    /// `InvalidInput` if there is no such rank.
    pub fn with_rank(mut self, rank: u32, world_size: u32) -> Result<EpochOrder> {
        if rank >= world_size {
            let message = format!("rank {rank} of {world_size}: ranks are counted from 0");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        (self.rank, self.world_size) = (rank, world_size);
        Ok(self)
    }

    /// Says that a data loader's workers read it, each whole batches in turn: see [`Schedule::with_workers`]. Without workers
    /// the loader reads itself.
    #[must_use]
    pub fn with_workers(mut self, workers: usize, batch_size: usize) -> EpochOrder {
        (self.workers, self.batch_size) = (workers.max(1), batch_size.max(1));
        self
    }

    /// How many entries the whole order has.
    fn all(&self) -> usize {
        match &self.entries {
            Entries::Paths(paths) => paths.len(),
            Entries::Indices { indices, .. } => indices.len(),
        }
    }

    /// Refuses more entries than memory should be spent on, and numbers that are those of predicted epochs.
    pub(super) fn check(&self) -> Result<()> {
        if self.epoch >= PREDICTED_EPOCHS {
            let message = format!("epoch {}: the highest number is {}", self.epoch, PREDICTED_EPOCHS - 1);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let entries = self.share().len();
        if entries <= ENTRIES_MAX {
            return Ok(());
        }
        let message = format!(
            "epoch {} has {entries} entries for this client, and at most {ENTRIES_MAX} are kept: announce a part at a time, as \
             epochs of their own",
            self.epoch,
        );
        Err(Error::new(Kind::TooLarge, message))
    }

    /// The places in the whole order of the entries that this client reads.
    fn share(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
        let (all, rank, world) = (self.all(), self.rank as usize, self.world_size as usize);
        (0..all.div_ceil(world)).map(move |entry| (entry * world + rank) % all)
    }

    /// What has to be listed to know its files.
    pub(super) fn scope(&self) -> Scope {
        match &self.entries {
            Entries::Indices { folder, .. } => Scope::Tree(plain(folder).into_owned()),
            Entries::Paths(paths) => {
                let mut folders = BTreeSet::new();
                for (folder, _) in self.share().filter_map(|at| split(paths.get(at)?)) {
                    if !folders.contains(&*folder) {
                        folders.insert(folder.into_owned());
                    }
                }
                Scope::Folders(folders)
            }
        }
    }

    fn named(&self, catalog: &Catalog, at: usize) -> Named {
        match &self.entries {
            Entries::Indices { indices, .. } => catalog.at(indices[at]),
            Entries::Paths(paths) => {
                let named = paths.get(at).and_then(split);
                named.map_or(Named::Unknown, |(folder, name)| catalog.named(&folder, name))
            }
        }
    }

    fn shown(&self, catalog: &Catalog, at: usize) -> String {
        match &self.entries {
            Entries::Paths(paths) => shown(paths.get(at).unwrap_or_default()),
            Entries::Indices { folder, indices } => {
                format!("index {} of the {} files below {}", indices[at], catalog.len(), shown(folder))
            }
        }
    }

    /// What of it is known, and the order in which it is read.
    pub(super) fn resolve(&self, catalog: &Catalog) -> Result<(Announced, Schedule)> {
        let mut announced = Announced { epoch: self.epoch, ..Announced::default() };
        let mut seen = vec![false; catalog.dataset().files().len()];
        let mut order = Vec::new();
        for at in self.share() {
            match self.named(catalog, at) {
                Named::File(file) => {
                    if std::mem::replace(&mut seen[file as usize], true) {
                        announced.repeated += 1;
                        announced.first_repeated.get_or_insert_with(|| self.shown(catalog, at));
                    }
                    order.push(file);
                }
                Named::NotAFile => {
                    announced.not_files += 1;
                    announced.first_not_file.get_or_insert_with(|| self.shown(catalog, at));
                }
                Named::Unknown => {
                    announced.unknown += 1;
                    announced.first_unknown.get_or_insert_with(|| self.shown(catalog, at));
                }
            }
        }
        let first = announced.first_unknown.as_ref().or(announced.first_not_file.as_ref());
        if let (true, Some(first)) = (order.is_empty(), first) {
            let message = format!(
                "epoch {}: none of its {} entries is a file here, the first is {first}: name files from the root of the file \
                 system, or by indices into the sorted list of a folder's files",
                self.epoch,
                announced.unknown + announced.not_files,
            );
            return Err(Error::new(Kind::NotFound, message));
        }
        let schedule = Schedule::new(self.epoch, catalog.dataset().clone(), order)?;
        let schedule = if self.workers > 1 { schedule.with_workers(self.workers, self.batch_size) } else { schedule };
        (announced.entries, announced.bytes) = (schedule.order().len() as u64, schedule.bytes());
        Ok((announced, schedule))
    }
}

impl From<Vec<String>> for PathList {
    fn from(paths: Vec<String>) -> Self {
        paths.into_iter().collect()
    }
}

impl Client {
    /// Says in which order this client will read files in an epoch. From now on what comes next is fetched ahead, and what is
    /// needed last leaves the cache first. The next epoch can be announced before this one ends; one of the same or a higher
    /// number that was announced before is replaced.
    ///
    /// Entries that lead to nothing are left out and counted in the result. The folders are listed once, and again when something
    /// in them has changed; a file that changes or goes after that is read by whoever opens it as it is then.
    ///
    /// # Errors
    /// `Unsupported` without a cache, `InvalidInput` for an empty order or an epoch of 2^63 or more, `NotFound` if none of its entries is known, `TooLarge`
    /// for more than [`ENTRIES_MAX`] entries or files, or what metadata answers.
    pub async fn announce(&self, order: EpochOrder) -> Result<Announced> {
        let without =
            || Error::new(Kind::Unsupported, "an order is of use with a cache only: give the client a cache folder");
        let cache = self.inner.cache.clone().ok_or_else(without)?;
        order.check()?;
        let (order, scope) = blocking(move || {
            let scope = order.scope();
            Ok((order, scope))
        })
        .await?;
        let catalog = self.inner.catalogs.get(self.meta(), scope).await?;
        blocking(move || {
            let (announced, schedule) = order.resolve(&catalog)?;
            cache.announce(schedule)?;
            Ok(announced)
        })
        .await
    }

    /// How far each announced epoch is read, by number. One that is over goes when the next is begun.
    #[must_use]
    pub fn announced(&self) -> Vec<EpochProgress> {
        self.inner.cache.as_ref().map(Cache::progress).unwrap_or_default()
    }

    /// Fills `out` with the whole content of a file, such as the [next one of an order](super::File::next_announced), if the cache has it at
    /// hand: for somebody who is about to open it. Whether it did. It waits for nothing, and counts as no open.
    #[must_use]
    pub fn read_now(&self, file: DataFile, out: &mut [u8]) -> bool {
        self.inner.cache.as_ref().is_some_and(|cache| cache.read_now(file.key, out))
    }

    /// Forgets all announced orders, as if there had been none. What is in the cache stays.
    pub fn forget_announced(&self) {
        if let Some(cache) = &self.inner.cache {
            cache.forget_schedules();
        }
    }
}

/// A path in one form: no `/` at the beginning and the end, none twice, no `.`.
pub(super) fn plain(path: &[u8]) -> Cow<'_, [u8]> {
    let is_idle = |part: &[u8]| part.is_empty() || part == b".";
    let start = path.iter().position(|&byte| byte != b'/').unwrap_or(path.len());
    let end = path.iter().rposition(|&byte| byte != b'/').map_or(start, |last| last + 1);
    let inner = &path[start..end];
    if !inner.is_empty() && inner.split(|&byte| byte == b'/').any(is_idle) {
        let parts: Vec<&[u8]> = inner.split(|&byte| byte == b'/').filter(|part| !is_idle(part)).collect();
        return Cow::Owned(parts.join(&b'/'));
    }
    Cow::Borrowed(inner)
}

/// A file's folder and name; `None` if it has no name.
fn split(path: &[u8]) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let end = path.iter().rposition(|&byte| byte != b'/')? + 1;
    let start = path[..end].iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
    Some((plain(&path[..start]), &path[start..end]))
}

#[cfg(test)]
#[path = "schedule_test.rs"]
mod tests;
