//! Warming: [`Client::warm`] brings files into the cache before anybody reads them.

use super::Client;
use super::catalog::{Catalog, Catalogs, Scope, find};
use super::path::shown;
use super::schedule::{EpochOrder, plain};
use super::write::blocking;
use crate::cache::{self, Cache, CacheKey, Warmth};
use crate::error::{Context, Error, Kind, Result};
use crate::meta::{FileKind, MetaSession};
use crate::prefetch::{DataFile, Dataset};
use std::sync::Arc;

/// Which files are to be in the cache, and in which order they come.
///
/// ```no_run
/// # use torchfs_core::{Client, WarmOrder};
/// # async fn run(client: &Client) -> torchfs_core::Result<()> {
/// let warming = client.warm(WarmOrder::below("/train")).await?;
/// warming.ended().await;
/// let warmth = warming.warmth();
/// println!("{} of {} files are in the cache", warmth.cached_files, warmth.files);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct WarmOrder {
    path: Vec<u8>,
    order: Option<EpochOrder>,
}

impl WarmOrder {
    /// A file, or all files below a folder in the order of their paths.
    #[must_use]
    pub fn below(path: impl Into<Vec<u8>>) -> WarmOrder {
        WarmOrder { path: path.into(), order: None }
    }

    /// Of these, the ones that an epoch's order names, in that order.
    #[must_use]
    pub fn in_order_of(mut self, order: EpochOrder) -> WarmOrder {
        self.order = Some(order);
        self
    }
}

/// Files that are being brought into the cache. Ends when it is dropped; what has come stays.
#[derive(Debug)]
pub struct Warming {
    warming: cache::Warming,
    named: Named,
}

impl Warming {
    /// How far it is.
    #[must_use]
    pub fn warmth(&self) -> Warmth {
        self.named.add_to(self.warming.warmth())
    }

    /// Returns when nothing is to come any more: all is there, or the rest has no room or cannot be fetched.
    pub async fn ended(&self) {
        self.warming.ended().await;
    }
}

/// What an order of files leads to.
#[derive(Clone, Debug)]
struct Named {
    files: Arc<Dataset>,
    order: Option<Vec<u32>>,
    unknown: u64,
    first_unknown: Option<String>,
}

impl Named {
    fn all(files: Arc<Dataset>) -> Named {
        Named { files, order: None, unknown: 0, first_unknown: None }
    }

    fn add_to(&self, warmth: Warmth) -> Warmth {
        Warmth { unknown: self.unknown, first_unknown: self.first_unknown.clone(), ..warmth }
    }
}

impl Client {
    /// Brings files into the cache: those that are missing are fetched, in batches that ask each storage node once, when no
    /// announced order wants anything. What an announced order needs does not leave for it. Files are listed as they are now.
    ///
    /// # Errors
    /// `Unsupported` without a cache, `NotFound` if there is nothing at the path or the order names nothing, `InvalidInput` if it is
    /// no file or folder, `TooLarge` for more than [`ENTRIES_MAX`](crate::prefetch::ENTRIES_MAX) files, or what metadata answers.
    pub async fn warm(&self, order: WarmOrder) -> Result<Warming> {
        let cache = self.cache_to_warm()?;
        let mut named = self.named(order).await?;
        blocking(move || {
            let warming = cache.warm(&named.files, named.order.take());
            Ok(Warming { warming, named })
        })
        .await
    }

    /// How much of some files is in the cache. Fetches nothing.
    ///
    /// # Errors
    /// As [`Client::warm`].
    pub async fn warmth(&self, order: WarmOrder) -> Result<Warmth> {
        let cache = self.cache_to_warm()?;
        let mut named = self.named(order).await?;
        blocking(move || {
            let warmth = cache.warmth(&named.files, named.order.take());
            Ok(named.add_to(warmth))
        })
        .await
    }

    fn cache_to_warm(&self) -> Result<Cache> {
        let without = || Error::new(Kind::Unsupported, "there is no cache to bring files into: give one a folder");
        self.inner.cache.clone().ok_or_else(without)
    }

    async fn named(&self, WarmOrder { path, order }: WarmOrder) -> Result<Named> {
        let is_root = plain(&path).is_empty();
        let Some(order) = order else {
            return Ok(Named::all(list(self.meta(), &self.inner.catalogs, &path).await?.files));
        };
        order.check()?;
        let below = if is_root { None } else { Some(list(self.meta(), &self.inner.catalogs, &path).await?.files) };
        let (order, scope) = blocking(move || {
            let scope = order.scope();
            Ok((order, scope))
        })
        .await?;
        let catalog = self.inner.catalogs.anew(self.meta(), scope).await?;
        blocking(move || {
            let (announced, schedule) = order.resolve(&catalog)?;
            let files = catalog.dataset().clone();
            let is_below = |at: &u32| {
                let key = files.files()[*at as usize].key;
                below.as_ref().is_none_or(|below| below.as_listed(key).is_some())
            };
            let order: Vec<u32> = schedule.order().iter().copied().filter(is_below).collect();
            if order.is_empty() {
                let message = format!("none of the {} files of the order is below it", schedule.order().len());
                return Err(Error::new(Kind::NotFound, message)).context(|| shown(&path));
            }
            Ok(Named {
                files,
                order: Some(order),
                unknown: announced.unknown + announced.not_files,
                first_unknown: announced.first_unknown.or(announced.first_not_file),
            })
        })
        .await
    }
}

/// The files at a path, as they were when they were listed.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub files: Arc<Dataset>,
    /// Of a folder.
    catalog: Option<Arc<Catalog>>,
}

/// A file, or all below a folder, as they are now.
///
/// # Errors
/// `NotFound` if there is nothing, `InvalidInput` if it is no file or folder, `TooLarge` for too many files, or what metadata answers.
pub(super) async fn list(meta: &MetaSession, catalogs: &Catalogs, path: &[u8]) -> Result<Listed> {
    let attr = find(meta, &plain(path)).await.context(|| shown(path))?;
    match attr.kind {
        FileKind::Directory => {
            let catalog = catalogs.anew(meta, Scope::Tree(plain(path).into_owned())).await?;
            Ok(Listed { files: catalog.dataset().clone(), catalog: Some(catalog) })
        }
        FileKind::File => {
            let key = CacheKey { ino: attr.ino, version: attr.version };
            Ok(Listed { files: Dataset::new(vec![DataFile { key, bytes: attr.size }])?, catalog: None })
        }
        _ => {
            let message = format!("{} is no file or folder: only these are brought into the cache", shown(path));
            Err(Error::new(Kind::InvalidInput, message))
        }
    }
}

impl Listed {
    /// That there is nothing.
    ///
    /// # Errors
    /// None.
    pub fn nothing() -> Result<Listed> {
        Ok(Listed { files: Dataset::new(Vec::new())?, catalog: None })
    }

    /// Whether a folder still lists the same, as far as that can be told without listing it. A file does not tell.
    pub async fn is_current(&self, meta: &MetaSession) -> bool {
        match &self.catalog {
            Some(catalog) => catalog.is_current(meta).await,
            None => false,
        }
    }

    /// Has it listed again when it is looked at next.
    pub fn forget_source(&mut self) {
        self.catalog = None;
    }

    /// Whether the same files are in both, in the same versions.
    pub fn is_same(&self, other: &Listed) -> bool {
        self.files.files() == other.files.files()
    }
}

#[cfg(test)]
#[path = "warm_test.rs"]
mod tests;
