//! The erasure code and the placement policy alone, for somebody with a store of their own: no cluster, no network.
//!
//! Run it with `cargo run -p torchfs-examples --example erasure_only`.

use torchfs_core::NodeId;
use torchfs_core::Result;
use torchfs_core::erasure;
use torchfs_core::layout::{Profile, StripeShape};
use torchfs_core::placement::{Candidate, LeastLoaded, PlacementPolicy, Placing};

fn main() -> Result<()> {
    let profile = Profile::new(4, 2)?;
    let content: Vec<u8> = (0..1_000_000u64).map(|at| (at * at / 128) as u8).collect();
    let shape = StripeShape::for_content(profile, content.len() as u64);

    // Which six of nine nodes: spread over the racks, those with most room first.
    let nodes = (1..=9).map(candidate).collect::<Result<Vec<_>>>()?;
    let placing = Placing { shards: profile.shards(), shard_bytes: shape.shard_bytes.into(), key: 1 };
    let order = LeastLoaded.place(&nodes, &placing);
    println!("{profile} of {} bytes goes to {:?}, spares are {:?}", content.len(), &order[..6], &order[6..]);

    // Data shards are ranges of the content; only parity is computed.
    let data: Vec<&[u8]> = (0..4)
        .map(|index| {
            let range = shape.data_range(index);
            &content[range.start as usize..range.end as usize]
        })
        .collect();
    let mut parity = vec![vec![0; shape.shard_bytes as usize]; 2];
    let code = erasure::code(profile)?;
    code.encode(&data, &mut parity.iter_mut().map(Vec::as_mut_slice).collect::<Vec<_>>())?;

    // Shards 0 and 3 are lost; any four bring them back.
    let left = [None, Some(data[1]), Some(data[2]), None, Some(&parity[0][..]), Some(&parity[1][..])];
    let restored = code.reconstruct(&left, shape.shard_bytes as usize, &[0, 3])?;
    assert_eq!(restored[0], data[0]);
    assert_eq!(&restored[1][..data[3].len()], data[3]);
    println!("shards 0 and 3 came back from the four others, byte for byte");
    Ok(())
}

fn candidate(number: u32) -> Result<Candidate> {
    Ok(Candidate {
        node: NodeId(number),
        domain: format!("rack=r{},host=h{number}", number % 3).parse()?,
        capacity_bytes: 1 << 40,
        used_bytes: u64::from(number) << 30,
        requests: 0,
    })
}
