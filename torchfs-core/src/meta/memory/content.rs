//! Content and stripes.

use super::names::{at, check_time};
use super::{Inode, Known, Model, fail};
use crate::error::{Kind, Result};
use crate::ids::{InodeId, ShardId, StripeId, Version};
use crate::layout::{Extent, Stripe};
use crate::meta::{Attr, Content, ContentChange, FileKind, MetaAnswer, Timestamp};
use crate::settings::FILE_BYTES_MAX;
use std::collections::{BTreeMap, BTreeSet};

/// What can be seen from the change alone.
pub(super) fn check(change: &ContentChange) -> Result<()> {
    check_time(change.mtime)?;
    let limit = u128::from(FILE_BYTES_MAX);
    let ends = || change.extents.iter().map(|extent| u128::from(extent.offset) + u128::from(extent.len));
    if u128::from(change.size_min) > limit {
        return fail(Kind::FileTooLarge, "the file would be too large");
    }
    for (extent, before) in change.extents.iter().zip([0].into_iter().chain(ends())) {
        if u128::from(extent.offset) + u128::from(extent.len) > limit {
            return fail(Kind::FileTooLarge, "the file would be too large");
        }
        if extent.len == 0 || u128::from(extent.offset) < before {
            return fail(Kind::InvalidInput, format!("{extent:?} is empty or not in order"));
        }
    }
    if change.holes.iter().any(|(offset, len)| offset.checked_add(*len).is_none()) {
        return fail(Kind::InvalidInput, "impossible hole");
    }
    change.stripes.iter().try_for_each(check_stripe)
}

fn check_stripe(stripe: &Stripe) -> Result<()> {
    let shape = stripe.shape.checked()?;
    let stored: BTreeSet<usize> = shape.stored_shards().collect();
    let placed: BTreeSet<usize> = (0..stripe.nodes.len()).filter(|&index| stripe.nodes[index].is_some()).collect();
    let data = stored.iter().filter(|&&index| index < usize::from(shape.profile.data)).count();
    if stripe.nodes.len() != shape.profile.shards() || !placed.is_subset(&stored) || placed.len() < data {
        return fail(Kind::InvalidInput, format!("impossible stripe {stripe:?}"));
    }
    Ok(())
}

impl Model {
    /// What needs the state to be seen.
    pub(super) fn check_content(&self, change: &ContentChange) -> Result<()> {
        for stripe in &change.stripes {
            if change.stripes.iter().any(|other| other.id == stripe.id && other != stripe) {
                return fail(Kind::InvalidInput, format!("stripe {} is given twice and differently", stripe.id));
            }
        }
        for extent in &change.extents {
            let given = change.stripes.iter().find(|stripe| stripe.id == extent.stripe);
            let stripe = self.check_named(extent.stripe, given)?;
            if u64::from(extent.stripe_offset) + u64::from(extent.len) > u64::from(stripe.shape.data_bytes) {
                return fail(Kind::InvalidInput, format!("{extent:?} reaches past its stripe"));
            }
        }
        let named = |stripe: &Stripe| change.extents.iter().any(|extent| extent.stripe == stripe.id);
        if !change.stripes.iter().all(named) {
            return fail(Kind::InvalidInput, "a stripe is given and no extent names it");
        }
        Ok(())
    }

    fn check_named<'a>(&'a self, id: StripeId, given: Option<&'a Stripe>) -> Result<&'a Stripe> {
        match (self.stripes.get(&id), given) {
            (Some(Known { garbage_since: Some(_), .. }), _) => fail(Kind::Stale, format!("stripe {id} is garbage")),
            (Some(known), Some(given)) if known.stripe != *given => {
                fail(Kind::InvalidInput, format!("stripe {id} was committed differently"))
            }
            (Some(known), _) => Ok(&known.stripe),
            (None, _) if id < self.horizon || self.forgotten.contains(&id) => {
                fail(Kind::Stale, format!("stripe {id} was given up or deleted"))
            }
            (None, Some(given)) if id.0 < self.next_stripe => {
                if given.nodes.iter().flatten().all(|node| self.nodes.iter().any(|record| record.id == *node)) {
                    return Ok(given);
                }
                fail(Kind::InvalidInput, format!("stripe {id} is on a node that is not known"))
            }
            (None, _) => fail(Kind::InvalidInput, format!("stripe {id} was never handed out or is not given")),
        }
    }

    pub(super) fn commit(&mut self, ino: InodeId, change: &ContentChange) -> Result<Attr> {
        check(change)?;
        self.require_file(ino)?;
        self.check_content(change)?;
        self.change_content(ino, change)?;
        self.attr(ino)
    }

    fn require_file(&self, ino: InodeId) -> Result<()> {
        match self.inode(ino)?.kind.kind() {
            FileKind::File => Ok(()),
            FileKind::Directory => fail(Kind::IsDirectory, format!("inode {ino} is a folder")),
            _ => fail(Kind::InvalidInput, format!("inode {ino} is not a regular file")),
        }
    }

    /// Makes a checked change.
    pub(super) fn change_content(&mut self, ino: InodeId, change: &ContentChange) -> Result<()> {
        for stripe in &change.stripes {
            let known = || Known {
                stripe: stripe.clone(),
                bad: BTreeSet::new(),
                garbage_since: None,
                live_bytes: 0,
                trimmed: None,
            };
            self.stripes.entry(stripe.id).or_insert_with(known);
        }
        let now = self.now;
        let inode = self.inode_mut(ino)?;
        if let Some(keep) = change.keep_bytes {
            inode.size = inode.size.min(keep);
            inode.extents.remove(keep..u64::MAX);
        }
        change.holes.iter().for_each(|&(offset, len)| inode.extents.remove(offset..offset + len));
        change.extents.iter().for_each(|extent| inode.extents.insert(*extent));
        let reach = change.extents.iter().map(Extent::end).max().unwrap_or(0);
        inode.size = inode.size.max(reach).max(change.size_min);
        inode.version = Version(inode.version.0 + 1);
        (inode.mtime, inode.ctime) = (at(change.mtime, now), now);
        self.count_live(now);
        Ok(())
    }

    /// Removes the inodes that lost their last name before a time.
    pub(super) fn collect(&mut self, before: Timestamp) {
        let orphans = self.inodes.iter().filter_map(|(&ino, inode)| Some((inode.orphan_since?, ino)));
        for (since, ino) in orphans.filter(|(since, _)| *since < before).collect::<BTreeSet<_>>() {
            self.inodes.remove(&ino);
            // Those who had it open had the time since then to read on.
            self.count_live(since);
        }
    }

    /// Counts what is left of each stripe after a change, and finds those that no extent names any more: garbage since
    /// their last bytes went, which readers know as `time`.
    fn count_live(&mut self, time: Timestamp) {
        let live = live_bytes(self.inodes.values());
        for (id, known) in &mut self.stripes {
            let before = std::mem::replace(&mut known.live_bytes, live.get(id).copied().unwrap_or(0));
            if known.live_bytes < before {
                known.trimmed = known.trimmed.max(Some(time));
            }
            if known.live_bytes == 0 {
                known.garbage_since = known.garbage_since.or(known.trimmed).or(Some(time));
            }
        }
    }

    /// The stripes that hold content of files with a name.
    pub(super) fn in_use(&self) -> BTreeSet<StripeId> {
        live_bytes(self.inodes.values().filter(|inode| inode.orphan_since.is_none())).into_keys().collect()
    }

    pub(super) fn open(&self, ino: InodeId) -> Result<MetaAnswer> {
        self.require_file(ino)?;
        let extents = self.inode(ino)?.extents.extents().to_vec();
        let stripes = self.stripes_of(extents.iter());
        Ok(MetaAnswer::Opened(self.attr(ino)?, Content { extents, stripes }))
    }

    /// Each once, by id.
    pub(super) fn stripes_of<'a>(&self, extents: impl Iterator<Item = &'a Extent>) -> Vec<Stripe> {
        let ids: BTreeSet<StripeId> = extents.map(|extent| extent.stripe).collect();
        ids.iter().filter_map(|id| self.stripes.get(id)).map(|known| known.stripe.clone()).collect()
    }

    pub(super) fn mark_bad(&mut self, shards: &[ShardId]) -> Result<()> {
        for shard in shards {
            let Some(known) = self.stripes.get_mut(&shard.stripe).filter(|known| known.garbage_since.is_none()) else {
                continue;
            };
            if known.stripe.nodes.get(usize::from(shard.index)).is_some_and(Option::is_some) {
                known.bad.insert(shard.index.into());
            }
        }
        Ok(())
    }

    pub(super) fn deleted(&mut self, shards: &[ShardId]) -> Result<()> {
        for shard in shards {
            let Some(known) = self.stripes.get_mut(&shard.stripe).filter(|known| known.garbage_since.is_some()) else {
                continue;
            };
            if let Some(place) = known.stripe.nodes.get_mut(usize::from(shard.index)) {
                *place = None;
            }
            if known.stripe.nodes.iter().all(Option::is_none) {
                self.stripes.remove(&shard.stripe);
                self.forgotten.insert(shard.stripe);
            }
        }
        Ok(())
    }

    pub(super) fn abandoned(&self, stripes: &[StripeId]) -> Vec<StripeId> {
        let given_up = |id: &&StripeId| **id < self.horizon || self.forgotten.contains(id);
        stripes.iter().filter(given_up).filter(|id| !self.stripes.contains_key(id)).copied().collect()
    }
}

/// How many bytes of each stripe the extents of some inodes name.
fn live_bytes<'a>(inodes: impl Iterator<Item = &'a Inode>) -> BTreeMap<StripeId, u64> {
    let mut live = BTreeMap::new();
    for extent in inodes.flat_map(|inode| inode.extents.extents()) {
        *live.entry(extent.stripe).or_default() += u64::from(extent.len);
    }
    live
}
