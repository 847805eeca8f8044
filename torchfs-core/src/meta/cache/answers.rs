//! [`Answers`]: what metadata answered, as far as nothing came between. Bookkeeping only: no I/O, no clock.
//!
//! Each piece of an answer hangs on one inode or one name. When one of these changes, the moment is noted in a slot that it
//! may share with others; a piece counts if it was asked for after the moment in its slot. So nothing needs to be found and
//! removed, and an answer that was under way while its subject changed does not count from the beginning.

use super::names::FolderNames;
use super::told::Told;
use crate::error::{Error, Kind, Result};
use crate::ids::{InodeId, StripeId};
use crate::layout::Stripe;
use crate::meta::{
    Attr, Change, Content, DirEntry, FileKind, Listing, MetaAnswer, MetaOp, MetaQuery, MetaReply, Name, XattrName,
};
use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::size_of;

/// Twice what a very busy moment has of changes.
const SLOTS: usize = 65_536;

/// What is kept in all; about 200,000 files that were opened.
const BYTES_MAX: usize = 128 << 20;

/// A moment: how often something was forgotten before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

/// Which piece of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Attr(InodeId),
    Content(InodeId),
    Parent(InodeId),
    Target(InodeId),
    Xattrs(InodeId),
    Xattr(InodeId, XattrName),
    Page(InodeId, Option<Name>, u32),
    Entry(InodeId, Name),
    /// A name that is not there, or not in a folder: hangs on the inode, which every new name in it changes.
    Missing(InodeId, Name),
}

#[derive(Clone, Debug)]
pub(super) enum Piece {
    Attr(Attr),
    Content(Content),
    Ino(InodeId),
    Bytes(Vec<u8>),
    Names(Vec<XattrName>),
    Page { entries: Vec<Listed>, more: bool },
    Failure(Error),
}

/// An entry of a page without its attributes, which are a piece of their own.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    name: Name,
    ino: InodeId,
    target: Option<Vec<u8>>,
}

#[derive(Debug)]
struct Kept {
    asked: Moment,
    piece: Piece,
}

/// Answers by what was asked.
#[derive(Debug, Default)]
pub struct Answers {
    now: Moment,
    /// When what falls into each slot changed last; empty as long as nothing is remembered.
    changed: Vec<Moment>,
    all_changed: Moment,
    /// What was used lately.
    young: HashMap<Key, Kept>,
    young_bytes: usize,
    /// What was not used since `young` was last full; it goes when `young` is full again.
    old: HashMap<Key, Kept>,
    names: FolderNames,
}

impl Key {
    /// What it hangs on.
    pub fn subject(&self) -> Change {
        match self {
            Key::Entry(parent, name) => Change::Name(*parent, name.clone()),
            key => Change::Inode(key.ino()),
        }
    }

    fn ino(&self) -> InodeId {
        match self {
            Key::Attr(ino)
            | Key::Content(ino)
            | Key::Parent(ino)
            | Key::Target(ino)
            | Key::Xattrs(ino)
            | Key::Xattr(ino, _)
            | Key::Missing(ino, _)
            | Key::Entry(ino, _)
            | Key::Page(ino, ..) => *ino,
        }
    }

    fn slot(&self) -> usize {
        match self {
            Key::Entry(parent, name) => slot(*parent, Some(name)),
            key => slot(key.ino(), None),
        }
    }
}

impl Answers {
    /// Now, for [`Answers::learn`].
    pub fn now(&self) -> Moment {
        self.now
    }

    /// These may be others from now on.
    pub fn forget<'a>(&mut self, changes: impl IntoIterator<Item = &'a Change>) {
        self.now.0 += 1;
        if self.changed.is_empty() {
            return;
        }
        for change in changes {
            let slot = match change {
                Change::Inode(ino) => slot(*ino, None),
                Change::Name(parent, name) => slot(*parent, Some(name)),
            };
            self.changed[slot] = self.now;
        }
    }

    /// Everything may be another from now on.
    pub fn forget_all(&mut self) {
        self.now.0 += 1;
        self.all_changed = self.now;
        self.changed = vec![Moment::default(); SLOTS];
        (self.young, self.old, self.young_bytes) = (HashMap::new(), HashMap::new(), 0);
        self.names = FolderNames::default();
    }

    /// An operation of this client was sent at `sent` and is done: what it touches is forgotten, and what its answer tells
    /// is known, unless something else came between.
    pub fn done(&mut self, sent: Moment, op: &MetaOp, reply: &MetaReply) {
        if self.changed.is_empty() {
            return;
        }
        let touched: Vec<Change> = op.touches().into_iter().chain(reply.touches()).collect();
        let told = Told::by(op, reply);
        let pieces: Vec<_> = told.pieces.into_iter().filter(|(key, _)| self.counts(key.slot(), sent)).collect();
        let made: Vec<_> = told.made.into_iter().filter(|ino| self.counts(slot(*ino, None), sent)).collect();
        let folders: Vec<InodeId> = inodes(&touched).filter(|ino| self.knows_names(*ino)).collect();
        self.forget(&touched);
        let now = self.now;
        made.into_iter().for_each(|ino| self.names.made(now, ino));
        folders.into_iter().for_each(|ino| self.names.renew(now, ino));
        told.names.iter().for_each(|(folder, name)| self.names.add(*folder, name));
        told.removed.into_iter().for_each(|ino| self.names.forget(ino));
        pieces.into_iter().for_each(|(key, piece)| self.put(key, now, piece));
    }

    /// Whether it is a folder of which it is known what names it has.
    fn knows_names(&self, folder: InodeId) -> bool {
        self.names.asked(folder).is_some_and(|asked| self.counts(slot(folder, None), asked))
    }

    /// Up to which name it is known what names the folder has: all, if that is `None`.
    pub fn names_upto(&self, folder: InodeId) -> Option<Option<&Name>> {
        if self.knows_names(folder) { self.names.upto(folder) } else { None }
    }

    /// What the question was answered with, if that can still be said.
    pub fn answer(&mut self, query: &MetaQuery) -> Option<Result<MetaAnswer>> {
        let answer = match query {
            MetaQuery::Lookup { parent, name } => {
                if let Some(Piece::Failure(error)) = self.get(Key::Missing(*parent, name.clone())) {
                    return Some(Err(error.clone()));
                }
                match self.get(Key::Entry(*parent, name.clone())) {
                    Some(Piece::Ino(ino)) => {
                        let ino = *ino;
                        MetaAnswer::Attr(self.attr(ino)?)
                    }
                    Some(_) => return None,
                    None => {
                        let is_missing = self.knows_names(*parent) && self.names.lacks(*parent, name);
                        let missing = || Error::new(Kind::NotFound, format!("there is no '{name}'"));
                        return is_missing.then(|| Err(missing()));
                    }
                }
            }
            MetaQuery::Attr(ino) => MetaAnswer::Attr(self.attr(*ino)?),
            MetaQuery::Open(ino) => match self.get(Key::Content(*ino))? {
                Piece::Content(content) => {
                    let content = content.clone();
                    MetaAnswer::Opened(self.attr(*ino)?, content)
                }
                _ => return None,
            },
            MetaQuery::Parent(ino) => match self.get(Key::Parent(*ino))? {
                Piece::Ino(parent) => {
                    let parent = *parent;
                    MetaAnswer::Attr(self.attr(parent)?)
                }
                _ => return None,
            },
            MetaQuery::List { ino, after, limit, extents: false } => {
                self.page(Key::Page(*ino, after.clone(), *limit))?
            }
            query => match self.get(key_of_plain(query)?)? {
                Piece::Bytes(bytes) => MetaAnswer::Bytes(bytes.clone()),
                Piece::Names(names) => MetaAnswer::Names(names.clone()),
                Piece::Failure(error) => return Some(Err(error.clone())),
                _ => return None,
            },
        };
        Some(Ok(answer))
    }

    fn attr(&mut self, ino: InodeId) -> Option<Attr> {
        match self.get(Key::Attr(ino))? {
            Piece::Attr(attr) => Some(attr.clone()),
            _ => None,
        }
    }

    fn page(&mut self, key: Key) -> Option<MetaAnswer> {
        let Piece::Page { entries, more } = self.get(key)? else { return None };
        let (entries, more) = (entries.clone(), *more);
        let entry =
            |Listed { name, ino, target }| Some(DirEntry { name, attr: self.attr(ino)?, target, extents: Vec::new() });
        let entries = entries.into_iter().map(entry).collect::<Option<Vec<_>>>()?;
        Some(MetaAnswer::Listing(Listing { entries, stripes: Vec::new(), more }))
    }

    /// The answer to a question that was asked at `asked`.
    pub fn learn(&mut self, asked: Moment, query: MetaQuery, answer: &Result<MetaAnswer>) {
        match (query, answer) {
            (MetaQuery::Lookup { parent, name }, Ok(MetaAnswer::Attr(attr))) => {
                self.put(Key::Entry(parent, name), asked, Piece::Ino(attr.ino));
                self.put_attr(asked, attr);
            }
            (MetaQuery::Attr(_), Ok(MetaAnswer::Attr(attr))) => self.put_attr(asked, attr),
            (MetaQuery::Open(ino), Ok(MetaAnswer::Opened(attr, content))) => {
                self.put(Key::Content(ino), asked, Piece::Content(content.clone()));
                self.put_attr(asked, attr);
            }
            (MetaQuery::Parent(ino), Ok(MetaAnswer::Attr(parent))) => {
                self.put(Key::Parent(ino), asked, Piece::Ino(parent.ino));
                self.put_attr(asked, parent);
            }
            (MetaQuery::List { ino, after, limit, extents: false }, Ok(MetaAnswer::Listing(listing))) => {
                self.learn_entries(asked, ino, after.as_ref(), listing);
                self.learn_page(asked, Key::Page(ino, after, limit), listing);
            }
            (MetaQuery::List { ino, after, extents: true, .. }, Ok(MetaAnswer::Listing(listing))) => {
                self.learn_entries(asked, ino, after.as_ref(), listing);
                self.learn_contents(asked, listing);
            }
            (MetaQuery::Lookup { parent, name }, Err(error)) if is_outcome(error) => {
                self.put(Key::Missing(parent, name), asked, Piece::Failure(error.clone()));
            }
            (query, answer) => {
                let piece = match answer {
                    Ok(MetaAnswer::Bytes(bytes)) => Piece::Bytes(bytes.clone()),
                    Ok(MetaAnswer::Names(names)) => Piece::Names(names.clone()),
                    Err(error) if is_outcome(error) => Piece::Failure(error.clone()),
                    _ => return,
                };
                if let Some(key) = key_of_plain(&query) {
                    self.put(key, asked, piece);
                }
            }
        }
    }

    fn learn_page(&mut self, asked: Moment, key: Key, listing: &Listing) {
        let listed =
            |entry: &DirEntry| Listed { name: entry.name.clone(), ino: entry.attr.ino, target: entry.target.clone() };
        let entries = listing.entries.iter().map(listed).collect();
        self.put(key, asked, Piece::Page { entries, more: listing.more });
    }

    fn learn_entries(&mut self, asked: Moment, dir: InodeId, after: Option<&Name>, listing: &Listing) {
        if self.counts(slot(dir, None), asked) && (after.is_none() || self.knows_names(dir)) {
            self.names.listed(asked, dir, after, listing);
        }
        for entry in &listing.entries {
            self.put(Key::Entry(dir, entry.name.clone()), asked, Piece::Ino(entry.attr.ino));
            self.put_attr(asked, &entry.attr);
        }
    }

    fn learn_contents(&mut self, asked: Moment, listing: &Listing) {
        let stripes: HashMap<StripeId, &Stripe> = listing.stripes.iter().map(|stripe| (stripe.id, stripe)).collect();
        for DirEntry { attr, extents, .. } in &listing.entries {
            let ids: BTreeSet<StripeId> = extents.iter().map(|extent| extent.stripe).collect();
            let named: Option<Vec<Stripe>> = ids.iter().map(|id| stripes.get(id).copied().cloned()).collect();
            if let (FileKind::File, Some(stripes)) = (attr.kind, named) {
                self.put(Key::Content(attr.ino), asked, Piece::Content(Content { extents: extents.clone(), stripes }));
            }
        }
    }

    fn put_attr(&mut self, asked: Moment, attr: &Attr) {
        self.put(Key::Attr(attr.ino), asked, Piece::Attr(attr.clone()));
    }

    fn put(&mut self, key: Key, asked: Moment, piece: Piece) {
        if !self.counts(key.slot(), asked) {
            return;
        }
        let bytes = bytes_of(&key, &piece);
        if bytes > BYTES_MAX / 4 {
            return;
        }
        if self.young_bytes + bytes > BYTES_MAX / 2 {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.old.remove(&key);
        self.young_bytes += bytes;
        if let Some(before) = self.young.insert(key.clone(), Kept { asked, piece }) {
            self.young_bytes -= bytes_of(&key, &before.piece);
        }
    }

    fn get(&mut self, key: Key) -> Option<&Piece> {
        if let Some(kept) = self.old.remove(&key) {
            self.put(key.clone(), kept.asked, kept.piece);
        }
        let asked = self.young.get(&key)?.asked;
        if self.counts(key.slot(), asked) { self.young.get(&key).map(|kept| &kept.piece) } else { None }
    }

    /// Whether nothing came between, as far as anybody watches.
    fn counts(&self, slot: usize, asked: Moment) -> bool {
        asked >= self.all_changed && self.changed.get(slot).is_some_and(|changed| asked >= *changed)
    }
}

/// The key of a question whose answer is one piece that hangs on the inode alone.
fn key_of_plain(query: &MetaQuery) -> Option<Key> {
    match query {
        MetaQuery::ReadLink(ino) => Some(Key::Target(*ino)),
        MetaQuery::Xattr { ino, name } => Some(Key::Xattr(*ino, name.clone())),
        MetaQuery::Xattrs(ino) => Some(Key::Xattrs(*ino)),
        _ => None,
    }
}

fn inodes(changes: &[Change]) -> impl Iterator<Item = InodeId> {
    changes.iter().filter_map(|change| if let Change::Inode(ino) = change { Some(*ino) } else { None })
}

/// Whether the failure says something of the namespace, and not of this attempt.
fn is_outcome(error: &Error) -> bool {
    matches!(error.kind(), Kind::NotFound | Kind::NoAttribute)
}

fn slot(ino: InodeId, name: Option<&Name>) -> usize {
    let mut hasher = DefaultHasher::new();
    (ino, name).hash(&mut hasher);
    hasher.finish() as usize % SLOTS
}

/// About what it takes in memory.
fn bytes_of(key: &Key, piece: &Piece) -> usize {
    let named = match key {
        Key::Entry(_, name) | Key::Missing(_, name) | Key::Page(_, Some(name), _) => name.as_bytes().len(),
        Key::Xattr(_, name) => name.as_bytes().len(),
        _ => 0,
    };
    let more = match piece {
        Piece::Attr(_) | Piece::Ino(_) => 0,
        Piece::Content(content) => content.bytes(),
        Piece::Bytes(bytes) => bytes.len(),
        Piece::Names(names) => names.iter().map(|name| size_of::<XattrName>() + name.as_bytes().len()).sum(),
        Piece::Page { entries, .. } => entries.iter().map(Listed::bytes).sum(),
        Piece::Failure(_) => 100,
    };
    // Twice: a table that grows is half empty.
    2 * size_of::<(Key, Kept)>() + named + more
}

impl Listed {
    fn bytes(&self) -> usize {
        size_of::<Listed>() + self.name.as_bytes().len() + self.target.as_ref().map_or(0, Vec::len)
    }
}

#[cfg(test)]
#[path = "answers_test.rs"]
pub(super) mod test;
