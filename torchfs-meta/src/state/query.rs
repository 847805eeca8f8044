//! Questions that the state alone can answer.

use super::inode::{self, parent_of};
use super::record::{Body, Inode};
use super::tx::{Outcome, Tx, fail};
use super::{content, dir, extent, list, resolve, stripe, totals, xattr};
use crate::kv::KvRead;
use std::collections::BTreeSet;
use torchfs_core::layout::{Extent, Stripe};
use torchfs_core::meta::{Content, MetaAnswer, MetaQuery, Name};
use torchfs_core::{InodeId, Kind, Result, StripeId};

/// Answers a query. [`MetaQuery::FsStat`] and [`MetaQuery::Status`] need what heartbeats say too and are `Unsupported`
/// here; see [`totals`](super::totals()) and [`fs_stat`](super::fs_stat()).
///
/// # Errors
/// What the query answers; [`Kind::Corrupt`] or an error of the store if that fails.
pub fn query(view: &dyn KvRead, query: &MetaQuery) -> Result<MetaAnswer> {
    let tx = Tx::new(view);
    match query {
        MetaQuery::Map => return totals::map(view).map(MetaAnswer::Map),
        MetaQuery::Abandoned(stripes) => return totals::abandoned(view, stripes).map(MetaAnswer::Stripes),
        _ => {}
    }
    Ok(answer(&tx, query)?)
}

fn answer(tx: &Tx<'_>, query: &MetaQuery) -> Outcome<MetaAnswer> {
    match query {
        MetaQuery::Lookup { parent, name } => lookup(tx, *parent, name),
        MetaQuery::Attr(ino) => Ok(MetaAnswer::Attr(inode::get(tx, *ino)?.attr(*ino))),
        MetaQuery::Open(ino) => open(tx, *ino),
        MetaQuery::List { ino, after, limit, extents } => {
            let wanted = if *extents { list::Wanted::Content } else { list::Wanted::Attributes };
            list::list(tx, *ino, after.as_ref(), *limit, wanted).map(MetaAnswer::Listing)
        }
        MetaQuery::Resolve { from, path, follow } => {
            let last = if *follow { resolve::LastLink::Follow } else { resolve::LastLink::Keep };
            resolve::resolve(tx, *from, path, last).map(MetaAnswer::Resolved)
        }
        MetaQuery::Parent(ino) => parent(tx, *ino),
        MetaQuery::ReadLink(ino) => read_link(tx, *ino),
        MetaQuery::Xattr { ino, name } => {
            inode::get(tx, *ino)?;
            xattr::get(tx, *ino, name).map(MetaAnswer::Bytes)
        }
        MetaQuery::Xattrs(ino) => {
            inode::get(tx, *ino)?;
            xattr::names(tx, *ino).map(MetaAnswer::Names)
        }
        MetaQuery::Profile(ino) => profile(tx, *ino),
        MetaQuery::FsStat | MetaQuery::Status | MetaQuery::Map | MetaQuery::Abandoned(_) => {
            fail(Kind::Unsupported, "the state alone cannot answer this")
        }
    }
}

fn lookup(tx: &Tx<'_>, parent: InodeId, name: &Name) -> Outcome<MetaAnswer> {
    inode::folder(tx, parent)?;
    let entry = dir::existing(tx, (parent, name))?;
    Ok(MetaAnswer::Attr(inode::get_named(tx, entry.ino)?.attr(entry.ino)))
}

fn open(tx: &Tx<'_>, ino: InodeId) -> Outcome<MetaAnswer> {
    let inode = inode::get(tx, ino)?;
    content::require_file(ino, &inode)?;
    let extents = extent::all(tx, ino)?;
    let stripes = stripes_of(tx, extents.iter())?;
    Ok(MetaAnswer::Opened(inode.attr(ino), Content { extents, stripes }))
}

/// The stripes that extents name, once each, by id.
pub(super) fn stripes_of<'a>(tx: &Tx<'_>, extents: impl Iterator<Item = &'a Extent>) -> Outcome<Vec<Stripe>> {
    let ids: BTreeSet<StripeId> = extents.map(|extent| extent.stripe).collect();
    ids.into_iter().map(|id| Ok(stripe::get_named(tx, id)?.stripe)).collect()
}

fn parent(tx: &Tx<'_>, ino: InodeId) -> Outcome<MetaAnswer> {
    let folder = inode::folder(tx, ino)?;
    let parent = parent_of(ino, &folder)?;
    Ok(MetaAnswer::Attr(inode::get_named(tx, parent)?.attr(parent)))
}

fn read_link(tx: &Tx<'_>, ino: InodeId) -> Outcome<MetaAnswer> {
    match inode::get(tx, ino)?.body {
        Body::Symlink(target) => Ok(MetaAnswer::Bytes(target)),
        _ => fail(Kind::InvalidInput, format!("inode {ino} is not a symbolic link")),
    }
}

fn profile(tx: &Tx<'_>, ino: InodeId) -> Outcome<MetaAnswer> {
    let found: Inode = inode::get(tx, ino)?;
    let (profile, own) = match found.body {
        Body::File { profile } => (profile, false),
        Body::Directory { .. } => inode::folder_profile(tx, ino, &inode::folder(tx, ino)?)?,
        _ => return fail(Kind::InvalidInput, format!("inode {ino} has no content and no profile")),
    };
    Ok(MetaAnswer::Profile(profile, own))
}
