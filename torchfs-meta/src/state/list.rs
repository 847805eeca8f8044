//! A page of a folder, bounded in entries and in bytes.

use super::record::{Body, Entry};
use super::tx::{Outcome, Tx, decode, fail, successor};
use super::{extent, inode, keys, stripe, xattr};
use std::collections::BTreeMap;
use torchfs_core::layout::{Extent, Stripe};
use torchfs_core::meta::{DirEntry, Listing, Name};
use torchfs_core::settings::{LIST_BYTES_MAX, LIST_ENTRIES_MAX};
use torchfs_core::{InodeId, Kind, StripeId};

/// About how many bytes an entry takes besides its name, link target, extents and stripes.
const ENTRY_BYTES: usize = 100;

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Attributes,
    /// Files' extents and stripes too.
    Content,
}

pub(super) fn list(tx: &Tx<'_>, ino: InodeId, after: Option<&Name>, limit: u32, wanted: Wanted) -> Outcome<Listing> {
    let limit = limit as usize;
    if !(1..=LIST_ENTRIES_MAX).contains(&limit) {
        return fail(Kind::InvalidInput, format!("a page of {limit} entries; 1 to {LIST_ENTRIES_MAX} are possible"));
    }
    inode::folder(tx, ino)?;
    let prefix = keys::entries(ino);
    let from = after.map_or_else(|| prefix.clone(), |after| successor(&keys::entry(ino, after)));
    let found = tx.scan(&from, &keys::end_of(&prefix), limit + 1)?;
    let mut page = Page::default();
    for (key, bytes) in found.iter().take(limit) {
        if page.bytes >= LIST_BYTES_MAX {
            break;
        }
        page.add(tx, xattr::name_in(key, &prefix)?, decode(key, bytes)?, wanted)?;
    }
    let more = page.entries.len() < found.len();
    Ok(Listing { entries: page.entries, stripes: page.stripes.into_values().collect(), more })
}

#[derive(Debug, Default)]
struct Page {
    entries: Vec<DirEntry>,
    stripes: BTreeMap<StripeId, Stripe>,
    bytes: usize,
}

impl Page {
    fn add(&mut self, tx: &Tx<'_>, name: Name, entry: Entry, wanted: Wanted) -> Outcome<()> {
        let found = inode::get_named(tx, entry.ino)?;
        let attr = found.attr(entry.ino);
        let extents = match found.body {
            Body::File { .. } if wanted == Wanted::Content && attr.allocated > 0 => extent::all(tx, entry.ino)?,
            _ => Vec::new(),
        };
        for extent in &extents {
            self.add_stripe(tx, extent.stripe)?;
        }
        let target = if let Body::Symlink(target) = found.body { Some(target) } else { None };
        let variable = name.as_bytes().len() + target.as_ref().map_or(0, Vec::len);
        self.bytes += ENTRY_BYTES + variable + extents.len() * size_of::<Extent>();
        self.entries.push(DirEntry { name, attr, target, extents });
        Ok(())
    }

    fn add_stripe(&mut self, tx: &Tx<'_>, id: StripeId) -> Outcome<()> {
        if !self.stripes.contains_key(&id) {
            let stripe = stripe::get_named(tx, id)?.stripe;
            self.bytes += size_of::<Stripe>() + stripe.nodes.len() * 6;
            self.stripes.insert(id, stripe);
        }
        Ok(())
    }
}
