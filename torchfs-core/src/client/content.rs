//! [`Base`]: one committed version of a file, as a reader holds it.

use crate::error::Result;
use crate::ids::StripeId;
use crate::layout::{Extent, ExtentMap, Stripe};
use crate::meta::{Attr, Content, ContentChange};
use crate::stripe::{StripeIo, StripeRead};
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A committed version: attributes, extents and where their stripes are.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub attr: Attr,
    pub extents: ExtentMap,
    pub stripes: BTreeMap<StripeId, Arc<Stripe>>,
    pub origin: Origin,
}

/// Where a [`Base`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// It is what the cluster holds under this version.
    Cluster,
    /// This client's commit over the version it had open, while others committed in between and the result could not be
    /// fetched: right for this reader, but not what others see under this version.
    Guess,
}

impl Base {
    pub fn new(attr: Attr, content: Content) -> Self {
        let stripes = content.stripes.into_iter().map(|stripe| (stripe.id, Arc::new(stripe))).collect();
        Base { attr, extents: ExtentMap::new(content.extents), stripes, origin: Origin::Cluster }
    }

    /// What a commit makes of this version, if nobody else commits in between.
    pub fn changed(&self, change: &ContentChange, attr: Attr) -> Base {
        let mut extents = self.extents.clone();
        if let Some(keep) = change.keep_bytes {
            extents.remove(keep..u64::MAX);
        }
        for &(offset, len) in &change.holes {
            extents.remove(offset..offset.saturating_add(len));
        }
        for &extent in &change.extents {
            extents.insert(extent);
        }
        let mut stripes = self.stripes.clone();
        stripes.extend(change.stripes.iter().map(|stripe| (stripe.id, Arc::new(stripe.clone()))));
        let named: std::collections::BTreeSet<StripeId> =
            extents.extents().iter().map(|extent| extent.stripe).collect();
        stripes.retain(|id, _| named.contains(id));
        let follows = attr.version.0 == self.attr.version.0 + 1 && self.origin == Origin::Cluster;
        let origin = if follows { Origin::Cluster } else { Origin::Guess };
        Base { attr, extents, stripes, origin }
    }

    /// Reads a range straight from the storage nodes; holes and what lies past the extents are zeros.
    ///
    /// # Errors
    /// What [`StripeIo::read`] reports.
    pub async fn fetch(&self, stripes: &StripeIo, range: Range<u64>) -> Result<Bytes> {
        let extents: Vec<Extent> = self.extents.within(range.clone()).collect();
        if let [only] = extents[..]
            && only.offset == range.start
            && only.end() == range.end
        {
            return stripes.read(self.stripe(&only)?, stripe_range(&only)).await;
        }
        let (places, reads): (Vec<u64>, Vec<StripeRead>) = self.reads(range.clone())?.into_iter().unzip();
        let parts = places.into_iter().zip(stripes.read_many(reads).await);
        assemble(range.end - range.start, parts)
    }

    /// What has to be read for a range, and where in it each part begins.
    ///
    /// # Errors
    /// `Protocol` if metadata did not say where it is.
    pub fn reads(&self, range: Range<u64>) -> Result<Vec<(u64, StripeRead)>> {
        let read = |extent: Extent| {
            let read = StripeRead { stripe: self.stripe(&extent)?.clone(), range: stripe_range(&extent) };
            Ok((extent.offset - range.start, read))
        };
        self.extents.within(range.clone()).map(read).collect()
    }

    /// The stripe of one of its extents.
    ///
    /// # Errors
    /// `Protocol` if metadata did not say where it is.
    pub fn stripe(&self, extent: &Extent) -> Result<&Arc<Stripe>> {
        self.stripes.get(&extent.stripe).ok_or_else(|| {
            let message = format!("metadata names stripe {} and does not say where it is", extent.stripe);
            crate::Error::new(crate::Kind::Protocol, message)
        })
    }
}

/// Bytes from their parts and where each begins; what lies between them is zeros.
///
/// # Errors
/// Of the first part that could not be had.
pub(super) fn assemble(len: u64, parts: impl IntoIterator<Item = (u64, Result<Bytes>)>) -> Result<Bytes> {
    let mut parts = parts.into_iter().peekable();
    if let Some((0, Ok(only))) = parts.peek()
        && only.len() as u64 == len
    {
        return Ok(only.clone());
    }
    let mut out = BytesMut::zeroed(len as usize);
    for (at, part) in parts {
        let part = part?;
        out[at as usize..at as usize + part.len()].copy_from_slice(&part);
    }
    Ok(out.freeze())
}

fn stripe_range(extent: &Extent) -> Range<u32> {
    extent.stripe_offset..extent.stripe_offset + extent.len
}
