//! [`SmallWrites`]: small contents that are committed at the same time share stripes, as those of a copied tree do, so
//! that many writers of small files do not cost k+m requests each.

use super::pack::{Packed, Packer};
use crate::error::{Error, Kind, Result};
use crate::gather::Gather;
use crate::layout::{Profile, Stripe, StripeShape};
use crate::settings::{PACK_BYTES_MAX, SHARD_DEADLINE};
use crate::stripe::StripeIo;
use bytes::Bytes;
use futures::future::join_all;
use std::time::Duration;

/// How long a small content may take, the group before it included: each shard may be tried on three nodes.
const DEADLINE: Duration = SHARD_DEADLINE.saturating_mul(6);

/// Writes small contents.
#[derive(Debug)]
pub(super) struct SmallWrites {
    gather: Gather<(Profile, Bytes), Stored>,
}

/// Where a content lies.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// The stripe; other files may be in it too.
    pub stripe: Stripe,
    /// The first byte in it.
    pub offset: u32,
}

impl SmallWrites {
    pub fn new(stripes: StripeIo) -> Self {
        let gather = Gather::new(DEADLINE, move |group| {
            let stripes = stripes.clone();
            async move { write_group(&stripes, group).await }
        });
        SmallWrites { gather }
    }

    /// Whether a content of so many bytes is small.
    pub fn takes(bytes: u64) -> bool {
        (1..=PACK_BYTES_MAX).contains(&bytes)
    }

    /// Stores a small content, alone in its stripe if nothing else is on its way.
    ///
    /// # Errors
    /// What [`StripeIo::write`] reports.
    pub async fn write(&self, profile: Profile, data: Bytes) -> Result<Stored> {
        self.gather.ask((profile, data)).await
    }
}

async fn write_group(stripes: &StripeIo, group: Vec<(Profile, Bytes)>) -> Vec<Result<Stored>> {
    let lost = || Err(Error::new(Kind::Cancelled, "a small write was left out"));
    let mut answers: Vec<Result<Stored>> = group.iter().map(|_| lost()).collect();
    let written = join_all(pack(&group).into_iter().map(|packed| write_packed(stripes, packed, &group))).await;
    for (at, answer) in written.into_iter().flatten() {
        answers[at] = answer;
    }
    answers
}

/// The stripes for a group. What is alone of its profile is spread over all data shards, as any file is.
fn pack(group: &[(Profile, Bytes)]) -> Vec<Packed<usize>> {
    // Few: those of the folders that are written to at this moment.
    let mut packers: Vec<(Profile, Packer<usize>)> = Vec::new();
    let mut stripes = Vec::new();
    for (file, (profile, data)) in group.iter().enumerate() {
        let at = packers.iter().position(|(known, _)| known == profile).unwrap_or_else(|| {
            packers.push((*profile, Packer::new(*profile)));
            packers.len() - 1
        });
        stripes.extend(packers[at].1.push(file, data.len() as u32));
    }
    stripes.extend(packers.iter_mut().filter_map(|(_, packer)| packer.finish()));
    for packed in &mut stripes {
        if let [only] = packed.places.as_mut_slice() {
            packed.shape = StripeShape::for_content(packed.shape.profile, only.len.into());
            only.offset = 0;
        }
    }
    stripes
}

async fn write_packed(
    stripes: &StripeIo,
    packed: Packed<usize>,
    group: &[(Profile, Bytes)],
) -> Vec<(usize, Result<Stored>)> {
    let data = match packed.places.as_slice() {
        [only] => group[only.file].1.clone(),
        places => {
            let mut data = vec![0; packed.shape.data_bytes as usize];
            for place in places {
                data[place.offset as usize..][..place.len as usize].copy_from_slice(&group[place.file].1);
            }
            data.into()
        }
    };
    let written = stripes.write(packed.shape, data).await;
    let answer = |offset: u32| written.clone().map(|stripe| Stored { stripe, offset });
    packed.places.iter().map(|place| (place.file, answer(place.offset))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Codec;

    #[test]
    fn a_group_shares_stripes_by_profile_and_one_alone_is_spread() {
        let (even, odd) = (Profile::new(4, 2).expect("valid"), Profile::new(2, 1).expect("valid"));
        let content = |len: usize| Bytes::from(vec![1; len]);
        // As many shards, and another code.
        let other = Profile { codec: Codec::Novelpoly, ..even };
        let group = [
            (even, content(65_536)),
            (odd, content(100_000)),
            (even, content(65_536)),
            (other, content(9)),
            (even, content(7)),
        ];
        let stripes = pack(&group);
        assert_eq!(stripes.len(), 3);
        let of = |profile| stripes.iter().find(|packed| packed.shape.profile == profile).expect("there");
        assert_eq!(of(odd).shape, StripeShape::for_content(odd, 100_000));
        let files: Vec<usize> = of(even).places.iter().map(|place| place.file).collect();
        assert_eq!(files, [0, 2, 4]);
        assert_eq!(of(other).places.len(), 1);
        for place in &of(even).places {
            assert_eq!(of(even).shape.covering(place.offset..place.offset + place.len).len(), 1, "in one shard");
        }
    }
}
