//! [`Packer`]: lays small files out in stripes, many to a stripe. Pure: it sees sizes and answers with places; who uses it
//! moves the bytes.
//!
//! The rule it keeps: a file lies inside one data shard, so that reading it is one request and needs no decoding. What is
//! left at the end of a shard is padding, which reads as zeros and belongs to no file.

use crate::layout::{Profile, StripeShape};
use crate::settings::{BLOCK_BYTES, PACK_BYTES_MAX, SHARD_BYTES_MAX};

/// Most content of one stripe that is held in memory at once. Only profiles with more than 16 data shards feel it.
const STRIPE_BYTES_MAX: u64 = 64 << 20;

/// How much of a file goes into each of its stripes when a tree is copied in.
pub(super) fn content_bytes_per_stripe(profile: Profile) -> u64 {
    profile.stripe_bytes_max().min(STRIPE_BYTES_MAX)
}

/// Collects files, in the order in which they should be found together, until a stripe is full.
#[derive(Debug)]
pub(super) struct Packer<T> {
    profile: Profile,
    shard_bytes: u32,
    files: Vec<(T, u32)>,
    /// Bytes used in each data shard of a full-sized stripe.
    used: Vec<u32>,
}

/// A stripe's layout: its shape and where each file lies in it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Packed<T> {
    /// The stripe's sizes.
    pub shape: StripeShape,
    /// The files; what lies between them is padding.
    pub places: Vec<Place<T>>,
}

/// Where a file lies in its stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place<T> {
    /// Which file.
    pub file: T,
    /// Its first byte in the stripe.
    pub offset: u32,
    /// Its length.
    pub len: u32,
}

impl<T> Packer<T> {
    /// For stripes of this profile.
    pub fn new(profile: Profile) -> Self {
        let even = content_bytes_per_stripe(profile) / u64::from(profile.data);
        let shard_bytes = even.clamp(PACK_BYTES_MAX, SHARD_BYTES_MAX as u64) as u32;
        Packer { profile, shard_bytes, files: Vec::new(), used: vec![0; profile.data.into()] }
    }

    /// Adds a file of 1 byte to 1 MiB. If it no longer fits, the stripe before it is full and returned.
    ///
    /// # Panics
    /// For a length out of these bounds.
    pub fn push(&mut self, file: T, len: u32) -> Option<Packed<T>> {
        assert!((1..=PACK_BYTES_MAX).contains(&u64::from(len)), "a file of {len} bytes is not packed");
        let full = match first_fit(&mut self.used, len, self.shard_bytes) {
            Some(_) => None,
            None => {
                let full = self.finish();
                let fitted = first_fit(&mut self.used, len, self.shard_bytes);
                assert!(fitted.is_some(), "an empty stripe takes any small file");
                full
            }
        };
        self.files.push((file, len));
        full
    }

    /// The stripe so far, if there is anything in it, in the least space; the next file starts a new one.
    pub fn finish(&mut self) -> Option<Packed<T>> {
        self.used.fill(0);
        let files = std::mem::take(&mut self.files);
        let total: u64 = files.iter().map(|(_, len)| u64::from(*len)).sum();
        let largest = files.iter().map(|(_, len)| *len).max()?;
        let block = BLOCK_BYTES as u32;
        let even = total.div_ceil(self.profile.data.into()) as u32;
        let mut shard_bytes = even.max(largest).next_multiple_of(block).min(self.shard_bytes);
        // The files were accepted because they fit at full size, so this ends there at the latest.
        loop {
            let mut used = vec![0; self.profile.data.into()];
            let places: Option<Vec<_>> = files.iter().map(|(_, len)| first_fit(&mut used, *len, shard_bytes)).collect();
            match places {
                Some(places) => return Some(self.pack(files, &places, &used, shard_bytes)),
                None => shard_bytes = (shard_bytes + block).min(self.shard_bytes),
            }
        }
    }

    fn pack(&self, files: Vec<(T, u32)>, places: &[(u32, u32)], used: &[u32], shard_bytes: u32) -> Packed<T> {
        let last = used.iter().rposition(|&bytes| bytes > 0).unwrap_or(0);
        let data_bytes = last as u32 * shard_bytes + used[last];
        // A single data shard is as long as its content, and so are its parity shards.
        let shard_bytes = shard_bytes.min(data_bytes);
        let shape = StripeShape { profile: self.profile, data_bytes, shard_bytes };
        let place = |((file, len), &(shard, start))| Place { file, offset: shard * shard_bytes + start, len };
        Packed { shape, places: files.into_iter().zip(places).map(place).collect() }
    }
}

/// Takes `len` bytes in the first shard with room: (shard, offset in it).
fn first_fit(used: &mut [u32], len: u32, shard_bytes: u32) -> Option<(u32, u32)> {
    let shard = used.iter().position(|&bytes| bytes + len <= shard_bytes)?;
    let start = used[shard];
    used[shard] += len;
    Some((shard as u32, start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(profile: Profile, sizes: &[u32]) -> Vec<Packed<usize>> {
        let mut packer = Packer::new(profile);
        let mut stripes: Vec<_> = sizes.iter().enumerate().filter_map(|(file, &len)| packer.push(file, len)).collect();
        stripes.extend(packer.finish());
        assert_eq!(packer.finish(), None);
        stripes
    }

    #[test]
    fn files_of_64_kib_fill_a_stripe_to_the_last_byte() {
        let stripes = pack(Profile::DEFAULT, &[65536; 257]);
        assert_eq!(stripes.len(), 2);
        assert_eq!(u64::from(stripes[0].shape.data_bytes), Profile::DEFAULT.stripe_bytes_max());
        assert_eq!(stripes[1].shape, StripeShape::for_content(Profile::DEFAULT, 65536));
    }

    #[test]
    fn a_few_small_files_share_one_data_shard() {
        let stripes = pack(Profile::DEFAULT, &[10, 20, 30]);
        assert_eq!(stripes.len(), 1);
        assert_eq!(stripes[0].shape, StripeShape { profile: Profile::DEFAULT, data_bytes: 60, shard_bytes: 60 });
        assert_eq!(stripes[0].places[2], Place { file: 2, offset: 30, len: 30 });
    }

    fn sizes() -> impl Strategy<Value = Vec<u32>> {
        let max = PACK_BYTES_MAX as u32;
        prop_oneof![
            prop::collection::vec(1..=max, 0..80),
            prop::collection::vec(1..=20_000u32, 0..800),
            prop::collection::vec(prop_oneof![Just(max), 1..100u32, Just(max / 2 + 1)], 0..60),
        ]
    }

    proptest! {
        #[test]
        fn every_file_lies_in_one_shard_and_none_overlaps(sizes in sizes(), k in 1u8..=20) {
            let profile = Profile::new(k, 2).expect("a profile");
            let stripes = pack(profile, &sizes);
            let mut seen = Vec::new();
            for Packed { shape, places } in &stripes {
                prop_assert!(shape.checked().is_ok(), "{shape:?}");
                let mut ranges: Vec<_> = places.iter().map(|place| place.offset..place.offset + place.len).collect();
                for range in &ranges {
                    prop_assert_eq!(shape.covering(range.clone()).len(), 1);
                }
                ranges.sort_by_key(|range| range.start);
                prop_assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start));
                prop_assert_eq!(ranges.last().map(|range| range.end), Some(shape.data_bytes));
                seen.extend(places.iter().map(|place| (place.file, place.len)));
            }
            prop_assert_eq!(seen, sizes.iter().copied().enumerate().collect::<Vec<_>>());
        }

        /// A full stripe wastes less in each shard than the file that did not fit; the last one less than that or a block.
        #[test]
        fn waste_is_bounded(sizes in sizes(), k in 1u8..=20) {
            let profile = Profile::new(k, 2).expect("a profile");
            let largest = sizes.iter().copied().max().unwrap_or(0);
            let slack = u64::from(largest.max(BLOCK_BYTES as u32)) * u64::from(k);
            for Packed { shape, places } in pack(profile, &sizes) {
                let content: u64 = places.iter().map(|place| u64::from(place.len)).sum();
                prop_assert!(u64::from(shape.data_bytes) - content <= slack);
                prop_assert!(u64::from(shape.shard_bytes) * u64::from(k) <= content + 2 * slack || k == 1 || u64::from(shape.shard_bytes) == content);
            }
        }
    }
}
