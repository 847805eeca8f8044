//! Pure arithmetic: byte range of a file ↔ extents ↔ stripe ↔ shard ranges. No I/O, no policy.
//!
//! The rules that everything else relies on:
//! - Data shards are contiguous ranges of their stripe: shard `i` holds bytes `i * shard_bytes ..` of it.
//! - Bytes of a stripe past `data_bytes` are zeros: not stored, not sent. A data shard with no bytes does not exist.
//! - Parity shards are `shard_bytes` long.
//! - Bytes of a file that no extent names are zeros (a hole).

use crate::error::{Error, Kind, Result};
use crate::ids::{NodeId, ShardId, StripeId};
use crate::settings::{BLOCK_BYTES, SHARD_BYTES_MAX, SHARDS_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

/// Which erasure code made the parity shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Codec {
    /// Reed-Solomon over GF(2^8), the default.
    Gf8,
    /// Reed-Solomon over GF(2^16) by additive FFT (Lin, Chung, Han 2014), crate `reed-solomon-novelpoly`.
    Novelpoly,
}

/// How content is coded: codec, k data shards, m parity shards. Written `4+2` or `novelpoly:4+2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Profile {
    /// The erasure code.
    pub codec: Codec,
    /// k: how many shards are enough to read.
    pub data: u8,
    /// m: how many shards may be missing.
    pub parity: u8,
}

impl Profile {
    /// 4+2 in GF(2^8): survives two nodes for one and a half times the space.
    pub const DEFAULT: Profile = Profile { codec: Codec::Gf8, data: 4, parity: 2 };

    /// A profile with the default codec.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] unless k ≥ 1, m ≥ 1 and k+m ≤ 64.
    pub fn new(data: u8, parity: u8) -> Result<Self> {
        Profile { codec: Codec::Gf8, data, parity }.checked()
    }

    /// The profile itself, if it is one that can be used.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] unless k ≥ 1, m ≥ 1 and k+m ≤ 64.
    pub fn checked(self) -> Result<Self> {
        if self.data >= 1 && self.parity >= 1 && self.shards() <= SHARDS_MAX {
            return Ok(self);
        }
        let message = format!("profile {self}: at least 1+1 and at most {SHARDS_MAX} shards in all are needed");
        Err(Error::new(Kind::InvalidInput, message))
    }

    /// k+m.
    #[must_use]
    pub fn shards(self) -> usize {
        usize::from(self.data) + usize::from(self.parity)
    }

    /// Most data bytes in one stripe: k shards of 4 MiB.
    #[must_use]
    pub fn stripe_bytes_max(self) -> u64 {
        u64::from(self.data) * SHARD_BYTES_MAX as u64
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.codec {
            Codec::Gf8 => write!(f, "{}+{}", self.data, self.parity),
            Codec::Novelpoly => write!(f, "novelpoly:{}+{}", self.data, self.parity),
        }
    }
}

impl FromStr for Profile {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (codec, numbers) = match text.split_once(':') {
            None => (Some(Codec::Gf8), text),
            Some(("gf8", rest)) => (Some(Codec::Gf8), rest),
            Some(("novelpoly", rest)) => (Some(Codec::Novelpoly), rest),
            Some(_) => (None, text),
        };
        let numbers = numbers.split_once('+').and_then(|(k, m)| Some((k.parse().ok()?, m.parse().ok()?)));
        match (codec, numbers) {
            (Some(codec), Some((data, parity))) => Profile { codec, data, parity }.checked(),
            _ => {
                let message = format!("'{text}' is not a profile: write K+M, like 4+2, or novelpoly:4+2");
                Err(Error::new(Kind::InvalidInput, message))
            }
        }
    }
}

/// The sizes of a stripe, from which every shard's length follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StripeShape {
    /// How it is coded.
    pub profile: Profile,
    /// Bytes of content, padding between packed files included; at least 1.
    pub data_bytes: u32,
    /// Bytes of a full data shard and of every parity shard; at most 4 MiB.
    pub shard_bytes: u32,
}

impl StripeShape {
    /// The shape for `data_bytes` of content written by itself: spread evenly over the data shards in whole 64 KiB
    /// blocks, so that little content makes few shards (64 KiB or less: one data shard).
    ///
    /// # Panics
    /// If `data_bytes` is 0 or more than [`Profile::stripe_bytes_max`].
    #[must_use]
    pub fn for_content(profile: Profile, data_bytes: u64) -> Self {
        assert!(
            (1..=profile.stripe_bytes_max()).contains(&data_bytes),
            "{data_bytes} bytes do not fit a {profile} stripe"
        );
        let even = data_bytes.div_ceil(u64::from(profile.data));
        let shard_bytes = even.next_multiple_of(BLOCK_BYTES as u64).min(data_bytes).min(SHARD_BYTES_MAX as u64);
        StripeShape { profile, data_bytes: data_bytes as u32, shard_bytes: shard_bytes as u32 }
    }

    /// The shape itself, if it obeys the rules of the format. Call it on every shape from the wire.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`].
    pub fn checked(self) -> Result<Self> {
        self.profile.checked()?;
        let fits = self.data_bytes >= 1
            && self.shard_bytes >= 1
            && self.shard_bytes as usize <= SHARD_BYTES_MAX
            && u64::from(self.data_bytes) <= u64::from(self.shard_bytes) * u64::from(self.profile.data);
        if fits { Ok(self) } else { Err(Error::new(Kind::InvalidInput, format!("impossible stripe shape {self:?}"))) }
    }

    /// Bytes stored in shard `index`: 0 for a data shard past the content, which then does not exist.
    #[must_use]
    pub fn shard_len(&self, index: usize) -> usize {
        if index >= usize::from(self.profile.data) {
            return if index < self.profile.shards() { self.shard_bytes as usize } else { 0 };
        }
        let start = index as u64 * u64::from(self.shard_bytes);
        u64::from(self.data_bytes).saturating_sub(start).min(u64::from(self.shard_bytes)) as usize
    }

    /// The indices of the shards that exist, data first.
    pub fn stored_shards(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.profile.shards()).filter(|&index| self.shard_len(index) > 0)
    }

    /// Bytes of the stripe that shard `index` (a data shard) holds.
    #[must_use]
    pub fn data_range(&self, index: usize) -> Range<u32> {
        let start = index as u32 * self.shard_bytes;
        start..start + self.shard_len(index) as u32
    }

    /// Bytes on disk over all nodes, without headers.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        u64::from(self.data_bytes) + u64::from(self.profile.parity) * u64::from(self.shard_bytes)
    }

    /// Which data shards a byte range of the stripe touches, and which bytes of each.
    ///
    /// # Panics
    /// If the range reaches past `data_bytes`.
    #[must_use]
    pub fn covering(&self, range: Range<u32>) -> Vec<ShardRange> {
        assert!(range.end <= self.data_bytes, "range {range:?} of a stripe of {} bytes", self.data_bytes);
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let index = at / self.shard_bytes;
            let shard_start = index * self.shard_bytes;
            let end = range.end.min(shard_start + self.shard_bytes);
            pieces.push(ShardRange { index: index as u8, range: at - shard_start..end - shard_start });
            at = end;
        }
        pieces
    }
}

/// Some bytes of one shard.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ShardRange {
    /// Which shard.
    pub index: u8,
    /// Which of its bytes.
    pub range: Range<u32>,
}

/// `range` widened to whole blocks, but not past `len`: what has to be read so that checksums can be checked.
#[must_use]
pub fn widen_to_blocks(range: &Range<u32>, len: u32) -> Range<u32> {
    let block = BLOCK_BYTES as u32;
    range.start / block * block..range.end.min(len).next_multiple_of(block).min(len)
}

/// A stripe and where its shards are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stripe {
    /// Its id.
    pub id: StripeId,
    /// Its sizes.
    pub shape: StripeShape,
    /// The node of each of the k+m shards. `None`: the shard does not exist, because it has no bytes or because it could
    /// not be written (a degraded stripe).
    pub nodes: Vec<Option<NodeId>>,
}

impl Stripe {
    /// The id of one of its shards.
    #[must_use]
    pub fn shard(&self, index: usize) -> ShardId {
        ShardId { stripe: self.id, index: index as u8 }
    }

    /// Whether the stripe was stored with less redundancy than its profile asks for: a shard is missing, or two are on one node.
    #[must_use]
    pub fn is_under_spread(&self) -> bool {
        let mut nodes: Vec<NodeId> = self.nodes.iter().flatten().copied().collect();
        let stored = nodes.len();
        nodes.sort_unstable();
        nodes.dedup();
        stored < self.shape.stored_shards().count() || nodes.len() < stored
    }
}

/// A contiguous byte range of a file that lives in one stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// Where it starts in the file.
    pub offset: u64,
    /// Its length, at least 1.
    pub len: u32,
    /// The stripe.
    pub stripe: StripeId,
    /// Where it starts in the stripe.
    pub stripe_offset: u32,
}

impl Extent {
    /// Where it ends in the file.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }

    /// The part of it inside `range` of the file, if any.
    #[must_use]
    pub fn slice(&self, range: &Range<u64>) -> Option<Extent> {
        let start = self.offset.max(range.start);
        let end = self.end().min(range.end);
        (start < end).then(|| Extent {
            offset: start,
            len: (end - start) as u32,
            stripe: self.stripe,
            stripe_offset: self.stripe_offset + (start - self.offset) as u32,
        })
    }

    fn continues(&self, next: &Extent) -> bool {
        self.stripe == next.stripe
            && self.end() == next.offset
            && self.stripe_offset.checked_add(self.len) == Some(next.stripe_offset)
            && self.len.checked_add(next.len).is_some()
    }
}

/// A file's extents: sorted, not overlapping, neighbours of one run merged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtentMap(Vec<Extent>);

impl ExtentMap {
    /// Takes extents in any order; a later one covers an earlier one.
    #[must_use]
    pub fn new(extents: impl IntoIterator<Item = Extent>) -> Self {
        let mut map = ExtentMap::default();
        for extent in extents {
            map.insert(extent);
        }
        map
    }

    /// The extents in file order.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.0
    }

    /// Whether there is none: the file is empty or one hole.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Where the last extent ends, 0 if there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, Extent::end)
    }

    /// The parts of extents inside `range`; what lies between them is a hole.
    pub fn within(&self, range: Range<u64>) -> impl Iterator<Item = Extent> + '_ {
        let first = self.0.partition_point(|extent| extent.end() <= range.start);
        self.0[first..].iter().map_while(move |extent| extent.slice(&range))
    }

    /// Puts `extent` over whatever was there.
    pub fn insert(&mut self, extent: Extent) {
        if extent.len == 0 {
            return;
        }
        // Appending in order is the common case and costs nothing.
        if extent.offset < self.end() {
            self.remove(extent.offset..extent.end());
        }
        let at = self.0.partition_point(|other| other.offset < extent.offset);
        self.0.insert(at, extent);
        self.merge_at(at + 1);
        self.merge_at(at);
    }

    /// Makes `range` a hole.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|extent| extent.end() <= range.start);
        let last = self.0.partition_point(|extent| extent.offset < range.end);
        if first >= last {
            return;
        }
        let left = self.0[first].slice(&(0..range.start));
        let right = self.0[last - 1].slice(&(range.end..u64::MAX));
        self.0.splice(first..last, left.into_iter().chain(right));
    }

    fn merge_at(&mut self, at: usize) {
        if at == 0 || at >= self.0.len() || !self.0[at - 1].continues(&self.0[at]) {
            return;
        }
        self.0[at - 1].len += self.0[at].len;
        self.0.remove(at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(data_bytes: u64) -> StripeShape {
        StripeShape::for_content(Profile::DEFAULT, data_bytes)
    }

    #[test]
    fn little_content_makes_one_data_shard_of_its_own_length() {
        for bytes in [1, 10_000, 65_536] {
            let shape = shape(bytes);
            assert_eq!(shape.shard_bytes, bytes as u32);
            assert_eq!(shape.stored_shards().collect::<Vec<_>>(), [0, 4, 5]);
            assert_eq!(shape.stored_bytes(), 3 * bytes);
        }
    }

    #[test]
    fn a_full_stripe_is_four_times_4_mib_and_half_again() {
        let shape = shape(Profile::DEFAULT.stripe_bytes_max());
        assert_eq!(shape.shard_bytes as usize, SHARD_BYTES_MAX);
        assert_eq!(shape.stored_bytes(), 24 << 20);
    }

    #[test]
    fn an_empty_hole_splits_no_extent() {
        let extent = Extent { offset: 0, len: 10, stripe: StripeId(1), stripe_offset: 0 };
        let mut map = ExtentMap::new([extent]);
        map.remove(5..5);
        assert_eq!(map.extents(), [extent]);
    }

    #[test]
    fn profiles_read_as_they_are_written() {
        for text in ["4+2", "10+4", "novelpoly:6+3"] {
            assert_eq!(text.parse::<Profile>().expect("parses").to_string(), text);
        }
        for bad in ["", "4", "4+0", "0+2", "60+9", "x:4+2", "4+2+1", "-4+2"] {
            assert_eq!(bad.parse::<Profile>().expect_err(bad).kind(), Kind::InvalidInput);
        }
    }

    proptest! {
        #[test]
        fn covering_ranges_are_the_bytes_asked_for(bytes in 1u64..=16 << 20, a in 0.0..1.0, b in 0.0..1.0) {
            let shape = shape(bytes);
            prop_assert!(shape.checked().is_ok());
            let (a, b) = ((a * bytes as f64) as u32, (b * bytes as f64) as u32);
            let range = a.min(b)..a.max(b);
            let mut at = range.start;
            for piece in shape.covering(range.clone()) {
                let start = u32::from(piece.index) * shape.shard_bytes;
                prop_assert_eq!(start + piece.range.start, at);
                prop_assert!(piece.range.end as usize <= shape.shard_len(piece.index.into()));
                at = start + piece.range.end;
            }
            prop_assert_eq!(at, range.end);
            let stored: usize = shape.stored_shards().map(|index| shape.shard_len(index)).sum();
            prop_assert_eq!(stored as u64, shape.stored_bytes());
        }

        /// The map against the naive model: one (stripe, offset in stripe) per byte.
        #[test]
        fn extent_map_is_the_byte_array(steps in prop::collection::vec((0u64..60, 1u32..20, 0u64..3, any::<bool>()), 0..40)) {
            let mut map = ExtentMap::default();
            let mut model = vec![None; 80];
            for (number, (offset, len, stripe, hole)) in steps.into_iter().enumerate() {
                let range = offset..offset + u64::from(len);
                if hole {
                    map.remove(range.clone());
                } else {
                    map.insert(Extent { offset, len, stripe: StripeId(stripe), stripe_offset: offset as u32 + 100 * (number as u32 % 2) });
                }
                for at in range {
                    model[at as usize] = (!hole).then_some((stripe, at as u32 + 100 * (number as u32 % 2)));
                }
            }
            let mut seen = vec![None; 80];
            for extent in map.within(0..80) {
                for byte in 0..extent.len {
                    let slot: &mut Option<(u64, u32)> = &mut seen[(extent.offset + u64::from(byte)) as usize];
                    prop_assert!(slot.is_none());
                    *slot = Some((extent.stripe.0, extent.stripe_offset + byte));
                }
            }
            prop_assert_eq!(seen, model);
            prop_assert!(map.extents().windows(2).all(|pair| !pair[0].continues(&pair[1])));
        }
    }
}
