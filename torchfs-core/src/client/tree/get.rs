//! The driver of `get`: lists folders ahead, fetches stripes, writes files, all at once and each within a bound.
//!
//! A folder is made before it is listed, so that whatever is found has a place. Listing runs several folders at a time and
//! stops while enough is waiting; stripes are fetched in the order in which they were first seen.

use super::super::Client;
use super::commit::is_of_the_cluster;
use super::local::{
    LocalFile, Looks, Made, Piece, Plain, Settled, finish_folder, link, make, make_folder, write_pieces,
};
use super::plan::{Group, GroupRead, Hurry, Plan, pieces};
use super::xattr::{self, Xattrs};
use super::{BYTES_IN_FLIGHT, SourceLink, TreeOptions, TreeReport, blocking};
use crate::error::{Context, Error, Kind, Result};
use crate::ids::{InodeId, StripeId};
use crate::layout::Stripe;
use crate::meta::{Attr, DirEntry, FileKind, Listing, MetaSession, Name};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use tokio::task::JoinSet;

/// Entries per metadata request.
const PAGE_ENTRIES: u32 = 2048;

/// Folders listed at a time: round trips overlap without crowding out others at the leader.
const LISTINGS_MAX: usize = 8;

/// After so many stripes in a row that could not be had the cluster is taken to be away.
const FAILURES_MAX: u32 = 8;

/// Copies a file or folder out to the local path `target`.
pub(super) async fn get_tree(
    client: &Client,
    source: &[u8],
    target: &Path,
    options: TreeOptions,
) -> Result<TreeReport> {
    let shown = || String::from_utf8_lossy(source).into_owned();
    let resolved = match options.source_link {
        SourceLink::Copy => client.meta().resolve_no_follow(source).await,
        SourceLink::Follow => client.meta().resolve(source).await,
    };
    let resolved = resolved.context(shown)?;
    let attr = resolved.attr.ok_or_else(|| Error::new(Kind::NotFound, format!("{}: no such file", shown())))?;
    let mut get = Get::new(client, options);
    let target = target.to_owned();
    if attr.kind == FileKind::Directory {
        let (made, path) = blocking(move || (make_folder(&target), target)).await?;
        let xattrs = xattr::fetch(client.meta(), std::iter::once(&attr)).await.context(shown)?;
        let ino = attr.ino;
        let new = made?.then(|| Looks { attr, xattrs: xattrs.into_values().flatten().collect() });
        get.made(Made::Folder { path, ino, new })?;
    } else {
        let (there, target) = blocking(move || (std::fs::symlink_metadata(&target), target)).await?;
        if there.is_ok_and(|there| there.is_dir()) {
            return Err(Error::new(Kind::IsDirectory, format!("{}: a folder is there already", target.display())));
        }
        let page = list_one(client.meta(), attr).await.context(shown)?;
        let path = |_: &Name| target.clone();
        get.listed(path, page)?;
    }
    get.run().await
}

/// A page of a folder with its entries' extended attributes.
#[derive(Debug)]
struct Page {
    listing: Listing,
    xattrs: HashMap<InodeId, Xattrs>,
}

impl Page {
    async fn complete(meta: &MetaSession, listing: Listing) -> Result<Self> {
        let xattrs = xattr::fetch(meta, listing.entries.iter().map(|entry| &entry.attr)).await?;
        Ok(Page { listing, xattrs })
    }
}

/// A single inode as the only entry of a page. Its name is not used.
async fn list_one(meta: &MetaSession, attr: Attr) -> Result<Page> {
    let mut listing = Listing { entries: Vec::new(), stripes: Vec::new(), more: false };
    let mut entry = DirEntry { name: Name::new("file")?, attr, target: None, extents: Vec::new() };
    match entry.attr.kind {
        FileKind::File => {
            let (attr, content) = meta.open(entry.attr.ino).await?;
            (entry.attr, entry.extents, listing.stripes) = (attr, content.extents, content.stripes);
        }
        FileKind::Symlink => entry.target = Some(meta.read_link(entry.attr.ino).await?),
        _ => {}
    }
    listing.entries.push(entry);
    Page::complete(meta, listing).await
}

async fn list(meta: &MetaSession, folder: &Folder) -> Result<Page> {
    let listing = meta.list_with_extents(folder.ino, folder.after.clone(), PAGE_ENTRIES).await?;
    Page::complete(meta, listing).await
}

/// A folder of which more is to be listed.
#[derive(Debug)]
struct Folder {
    ino: InodeId,
    path: PathBuf,
    after: Option<Name>,
}

#[derive(Debug)]
struct Get<'a> {
    client: &'a Client,
    options: TreeOptions,
    report: TreeReport,
    folders: Vec<Folder>,
    listings: JoinSet<(Folder, Result<Page>)>,
    making: JoinSet<Result<Vec<Made>>>,
    plan: Plan,
    fetches: JoinSet<Result<Fetched>>,
    bytes_in_flight: u64,
    failures: u32,
    /// Files with several names: where the first is.
    linked: HashMap<InodeId, PathBuf>,
    links: Vec<(PathBuf, PathBuf)>,
    new_folders: Vec<(PathBuf, Looks)>,
}

/// What came of fetching a group.
#[derive(Debug)]
struct Fetched {
    wanted_bytes: u64,
    settled: Vec<Settled>,
    /// The cluster's failure, if there was one.
    failure: Option<Error>,
}

impl<'a> Get<'a> {
    fn new(client: &'a Client, options: TreeOptions) -> Self {
        Get {
            client,
            options,
            report: TreeReport::default(),
            folders: Vec::new(),
            listings: JoinSet::new(),
            making: JoinSet::new(),
            plan: Plan::default(),
            fetches: JoinSet::new(),
            bytes_in_flight: 0,
            failures: 0,
            linked: HashMap::new(),
            links: Vec::new(),
            new_folders: Vec::new(),
        }
    }

    async fn run(mut self) -> Result<TreeReport> {
        loop {
            self.start_listings();
            self.start_fetches();
            tokio::select! {
                Some(done) = self.fetches.join_next() => self.fetched(super::joined(done)??)?,
                Some(done) = self.making.join_next() => {
                    super::joined(done)??.into_iter().try_for_each(|made| self.made(made))?;
                }
                Some(done) = self.listings.join_next() => {
                    let (folder, page) = super::joined(done)?;
                    self.listed_folder(folder, page)?;
                }
                else => break,
            }
        }
        assert!(self.folders.is_empty() && self.plan.is_empty(), "everything listed is settled");
        self.finish().await
    }

    fn start_listings(&mut self) {
        // What waits to be made is bounded with what is listed: each page is made by one job.
        while !self.plan.is_full() && self.listings.len() + self.making.len() < LISTINGS_MAX {
            let Some(folder) = self.folders.pop() else { break };
            let meta = self.client.meta().clone();
            self.listings.spawn(async move {
                let page = list(&meta, &folder).await;
                (folder, page)
            });
        }
    }

    fn start_fetches(&mut self) {
        loop {
            let listing = !(self.folders.is_empty() && self.listings.is_empty() && self.making.is_empty());
            let hurry = if listing && !self.fetches.is_empty() { Hurry::No } else { Hurry::Yes };
            if self.bytes_in_flight >= BYTES_IN_FLIGHT {
                break;
            }
            let Some(group) = self.plan.take(hurry) else { break };
            self.bytes_in_flight += group.bytes;
            self.fetches.spawn(fetch(self.client.clone(), group));
        }
    }

    fn listed_folder(&mut self, folder: Folder, page: Result<Page>) -> Result<()> {
        let page = match page {
            Ok(page) => page,
            Err(error) if is_of_the_cluster(error.kind()) => return Err(error.context(folder.path.display())),
            Err(error) => {
                self.report.failed.push((folder.path, error));
                return Ok(());
            }
        };
        if let (true, Some(last)) = (page.listing.more, page.listing.entries.last()) {
            let after = Some(last.name.clone());
            self.folders.push(Folder { ino: folder.ino, path: folder.path.clone(), after });
        }
        self.listed(|name| folder.path.join(OsStr::from_bytes(name.as_bytes())), page)
    }

    fn listed(&mut self, path: impl Fn(&Name) -> PathBuf, page: Page) -> Result<()> {
        let Page { listing, mut xattrs } = page;
        let stripes = listing.stripes.into_iter().map(|stripe| (stripe.id, Arc::new(stripe)));
        let stripes: HashMap<StripeId, Arc<Stripe>> = stripes.collect();
        let mut plain = Vec::new();
        for entry in listing.entries {
            let path = path(&entry.name);
            let mut xattrs = || xattrs.remove(&entry.attr.ino).unwrap_or_default();
            match entry.attr.kind {
                FileKind::Directory => {
                    let xattrs = xattrs();
                    plain.push(Plain::Folder(path, Looks { attr: entry.attr, xattrs }));
                }
                FileKind::Symlink => match entry.target {
                    Some(target) => plain.push(Plain::Symlink(path, entry.attr, target)),
                    None => {
                        let error = Error::new(Kind::Protocol, "metadata lists a link without its target");
                        self.report.failed.push((path, error));
                    }
                },
                FileKind::File => {
                    let xattrs = xattrs();
                    plain.extend(self.add_file(path, entry, xattrs, &stripes));
                }
                _ => plain.push(Plain::Special(path, entry.attr)),
            }
        }
        if !plain.is_empty() {
            self.making.spawn(async move { blocking(|| plain.into_iter().filter_map(make).collect()).await });
        }
        Ok(())
    }

    /// Plans a file's pieces, or answers with it if it has none.
    fn add_file(
        &mut self,
        path: PathBuf,
        entry: DirEntry,
        xattrs: Xattrs,
        stripes: &HashMap<StripeId, Arc<Stripe>>,
    ) -> Option<Plain> {
        if entry.attr.nlink > 1 {
            if let Some(first) = self.linked.get(&entry.attr.ino) {
                self.links.push((first.clone(), path));
                return None;
            }
            self.linked.insert(entry.attr.ino, path.clone());
        }
        self.options.progress.files_total.fetch_add(1, Relaxed);
        self.options.progress.bytes_total.fetch_add(entry.attr.allocated, Relaxed);
        let mut wanted = Vec::new();
        for extent in &entry.extents {
            let stripe = stripes.get(&extent.stripe).ok_or_else(|| {
                Error::new(Kind::Protocol, format!("metadata lists an extent without its stripe {}", extent.stripe))
            });
            match stripe.and_then(|stripe| Ok((stripe, pieces(extent, stripe)?))) {
                Ok((stripe, pieces)) => wanted.extend(pieces.into_iter().map(|piece| (stripe, piece))),
                Err(error) => {
                    self.report.failed.push((path, error));
                    return None;
                }
            }
        }
        let looks = Looks { attr: entry.attr, xattrs };
        if wanted.is_empty() {
            return Some(Plain::Empty(path, looks));
        }
        let file = Arc::new(LocalFile::new(path, looks, wanted.len()));
        for (stripe, (offset, range)) in wanted {
            self.plan.add(stripe, &file, offset, range);
        }
        None
    }

    fn made(&mut self, made: Made) -> Result<()> {
        match made {
            Made::Folder { path, ino, new } => {
                self.report.directories += 1;
                self.new_folders.extend(new.map(|looks| (path.clone(), looks)));
                self.folders.push(Folder { ino, path, after: None });
            }
            Made::File(settled) => self.settled(settled)?,
            Made::Other(_, Ok(())) => self.report.others += 1,
            Made::Other(path, Err(error)) => self.failed(path, error)?,
        }
        Ok(())
    }

    fn settled(&mut self, settled: Settled) -> Result<()> {
        match settled.result {
            Ok(bytes) => {
                self.report.files += 1;
                self.report.bytes += bytes;
                self.options.progress.files.fetch_add(1, Relaxed);
                Ok(())
            }
            Err(error) => self.failed(settled.path, error),
        }
    }

    /// Notes what could not be made; a full local disk ends it all.
    fn failed(&mut self, path: PathBuf, error: Error) -> Result<()> {
        if matches!(error.kind(), Kind::NoSpace | Kind::ReadOnly) {
            return Err(error);
        }
        self.report.failed.push((path, error));
        Ok(())
    }

    fn fetched(&mut self, fetched: Fetched) -> Result<()> {
        self.bytes_in_flight -= fetched.wanted_bytes;
        self.options.progress.bytes.fetch_add(fetched.wanted_bytes, Relaxed);
        fetched.settled.into_iter().try_for_each(|settled| self.settled(settled))?;
        match fetched.failure {
            None => self.failures = 0,
            Some(error) => {
                self.failures += 1;
                if self.failures >= FAILURES_MAX {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// What has to come last: hard links, then the folders' attributes from the inside out.
    async fn finish(mut self) -> Result<TreeReport> {
        let (links, mut folders) = (std::mem::take(&mut self.links), std::mem::take(&mut self.new_folders));
        let linked = blocking(move || {
            let make = |(first, second): (PathBuf, PathBuf)| (link(&first, &second), second);
            links.into_iter().map(make).collect::<Vec<_>>()
        });
        for (result, path) in linked.await? {
            self.made(Made::Other(path, result))?;
        }
        // A folder is always made before those in it.
        folders.reverse();
        let failed = blocking(move || {
            let set = |(path, looks): (PathBuf, Looks)| Some((finish_folder(&path, &looks).err()?, path));
            folders.into_iter().filter_map(set).collect::<Vec<_>>()
        });
        for (error, path) in failed.await? {
            self.failed(path, error)?;
        }
        Ok(self.report)
    }
}

/// Fetches a group and writes its pieces.
async fn fetch(client: Client, group: Group) -> Result<Fetched> {
    let wanted_bytes = group.bytes;
    let reads = group.into_reads().into_iter().map(|GroupRead { read, wants }| (read, wants));
    let (reads, wants): (Vec<_>, Vec<_>) = reads.unzip();
    let answers = client.stripes().read_many(reads).await;
    let transient = |answer: &Result<_>| answer.as_ref().err().filter(|error| error.kind().is_transient()).cloned();
    let failure = answers.iter().find_map(transient);
    let mut fetched = Vec::new();
    for (answer, wants) in answers.into_iter().zip(wants) {
        for (want, range) in wants {
            let data = answer.as_ref().map(|bytes| bytes.slice(range)).map_err(Clone::clone);
            fetched.push(Piece { file: want.file, offset: want.offset, data });
        }
    }
    let settled = blocking(move || write_pieces(fetched)).await?;
    Ok(Fetched { wanted_bytes, settled, failure })
}
