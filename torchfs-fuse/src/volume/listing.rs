//! Listing folders: readdir(3) asks for entries by their number, metadata for those after a name.

use super::{NodeAttr, Volume};
use crate::handles::{OpenDir, Pages};
use crate::node::Node;
use crate::special::Special;
use std::time::SystemTime;
use torchfs_core::meta::{Attr, DirEntry, FileKind, Name};
use torchfs_core::{InodeId, Result};

/// Entries asked of metadata at a time.
const PAGE_ENTRIES: u32 = 1024;

/// The same where an answer is of use for one request only: about what the kernel takes at a time.
const PAGE_ENTRIES_ANEW: u32 = 128;

/// When a page was fetched.
#[derive(Clone, Copy, Debug)]
enum Age {
    /// For this request.
    New,
    /// For an earlier one.
    Old,
}

/// An entry as readdir wants it.
#[derive(Debug)]
pub struct ListedEntry<'a> {
    /// The folder that is listed.
    pub dir: InodeId,
    pub node: Node,
    pub kind: FileKind,
    pub name: &'a [u8],
    /// The offset that continues after it.
    pub next: u64,
    /// Attributes, except for `.` and `..`.
    pub attr: Option<Attr>,
}

impl Volume {
    /// Gives entries from `offset` on to `take` until it says it is full (true).
    pub async fn read_dir(
        &self,
        handle: u64,
        offset: u64,
        mut take: impl FnMut(ListedEntry<'_>) -> bool,
    ) -> Result<()> {
        let dir = self.handles.dir(handle)?;
        if Special::of(dir.ino).is_some() {
            list_special(offset, self.began.1, take);
            return Ok(());
        }
        let mut pages = dir.pages.lock().await;
        if offset == 0 {
            *pages = Pages { parent: Some(self.client.meta().parent(dir.ino).await?.ino), ..Pages::default() };
        }
        let parent = pages.parent.unwrap_or(dir.ino);
        for (at, (name, ino)) in [(b".".as_slice(), dir.ino), (b"..".as_slice(), parent)].into_iter().enumerate() {
            let (node, next) = (Node::first(ino), at as u64 + 1);
            let entry = ListedEntry { dir: dir.ino, node, kind: FileKind::Directory, name, next, attr: None };
            if offset <= at as u64 && take(entry) {
                return Ok(());
            }
        }
        let mut number = offset.saturating_sub(2);
        // What the kernel is given it takes for the state of now, so what was fetched for an earlier request is of no use by itself.
        let mut age = Age::Old;
        loop {
            if self.load_page(&dir, &mut pages, number).await? {
                age = Age::New;
            }
            while let Some(entry) = pages.entry(number) {
                let Some(attr) = self.attr_of(dir.ino, entry, age) else {
                    self.fetch_from(&dir, &mut pages, number).await?;
                    age = Age::New;
                    continue;
                };
                if take(self.listed(dir.ino, entry, attr, number + 3)) {
                    return Ok(());
                }
                number += 1;
            }
            if !pages.more {
                return Ok(());
            }
        }
    }

    /// The attributes of an entry as they are now, if they are known.
    fn attr_of(&self, dir: InodeId, entry: &DirEntry, age: Age) -> Option<Attr> {
        match age {
            Age::New => Some(entry.attr.clone()),
            Age::Old => self.client.meta().remembered_entry(dir, &entry.name),
        }
    }

    fn listed<'a>(&self, dir: InodeId, entry: &'a DirEntry, attr: Attr, next: u64) -> ListedEntry<'a> {
        let (node, attr) = (self.handles.node(&attr), self.with_writes(attr));
        ListedEntry { dir, node, kind: attr.kind, name: entry.name.as_bytes(), next, attr: Some(attr) }
    }

    /// Loads the page that holds entry `number`, walking forward from the last page known; whether metadata was asked.
    async fn load_page(&self, dir: &OpenDir, pages: &mut Pages, number: u64) -> Result<bool> {
        let mut is_asked = false;
        if pages.starts.is_empty() {
            pages.starts.push((0, None));
            self.fetch_page(dir, pages, 0, PAGE_ENTRIES).await?;
            is_asked = true;
        }
        let wanted = pages.starts.partition_point(|(first, _)| *first <= number) - 1;
        if wanted != pages.page {
            self.fetch_page(dir, pages, wanted, PAGE_ENTRIES).await?;
            is_asked = true;
        }
        while pages.more && number >= pages.starts[pages.page].0 + pages.entries.len() as u64 {
            let next = pages.page + 1;
            if next == pages.starts.len() {
                let first = pages.starts[pages.page].0 + pages.entries.len() as u64;
                let after = pages.entries.last().map(|entry| entry.name.clone());
                pages.starts.push((first, after));
            }
            self.fetch_page(dir, pages, next, PAGE_ENTRIES).await?;
            is_asked = true;
        }
        Ok(is_asked)
    }

    /// Has a new page begin with the entry that the loaded one has as `number`.
    async fn fetch_from(&self, dir: &OpenDir, pages: &mut Pages, number: u64) -> Result<()> {
        let (page, first) = (pages.page, pages.starts[pages.page].0);
        pages.starts.truncate(page + 1);
        if number == first {
            return self.fetch_page(dir, pages, page, PAGE_ENTRIES_ANEW).await;
        }
        let before = pages.entry(number - 1).map(|entry| entry.name.clone());
        pages.starts.push((number, before));
        self.fetch_page(dir, pages, page + 1, PAGE_ENTRIES_ANEW).await
    }

    async fn fetch_page(&self, dir: &OpenDir, pages: &mut Pages, page: usize, entries: u32) -> Result<()> {
        let after = pages.starts[page].1.clone();
        let listing = self.client.meta().list(dir.ino, after, entries).await?;
        self.client.listed(pages.starts[page].0, &listing.entries);
        // An empty page that promises more would never end.
        pages.more = listing.more && !listing.entries.is_empty();
        pages.entries = listing.entries;
        pages.page = page;
        Ok(())
    }

    /// The kernel takes an entry of a listing for the answer to a lookup.
    pub fn tell_listed(&self, parent: InodeId, name: &[u8], shown: &NodeAttr) {
        self.handles.looked_up(shown.node, &shown.attr);
        self.handles.tell(shown.node, &shown.attr);
        if let Ok(name) = Name::new(name) {
            self.tell_name(parent, name, shown.attr.ino);
        }
    }
}

/// Gives the entries of `.torchfs` to `take`.
fn list_special(offset: u64, since: SystemTime, mut take: impl FnMut(ListedEntry<'_>) -> bool) {
    let folder = |name, ino| (name, ino, FileKind::Directory, None);
    let dots = [folder(".", Special::Folder.ino()), folder("..", InodeId::ROOT)];
    let files = Special::FILES.map(|(file, name)| (name, file.ino(), FileKind::File, Some(file.attr(since))));
    for (next, (name, ino, kind, attr)) in (1..).zip(dots.into_iter().chain(files)) {
        let (dir, node) = (Special::Folder.ino(), Node::first(ino));
        if next > offset && take(ListedEntry { dir, node, kind, name: name.as_bytes(), next, attr }) {
            return;
        }
    }
}
