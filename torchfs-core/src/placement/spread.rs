//! What the policies share: choosing over failure domains from ranked nodes, and a stable hash.
//!
//! A domain is a path of levels from the widest down, so `rack=r1` in two zones is two racks. A node is a domain of its own
//! below its host. Nodes that do not name a level share one unnamed domain there.

use super::domain::LEVELS;
use super::{Candidate, Placing};
use crate::ids::NodeId;
use std::collections::BTreeMap;

/// Orders ranked nodes (best first): the first `placing.shards` spread over failure domains as evenly as possible, widest
/// level first, better-ranked nodes winning where domains are alike; then the rest by rank. Nodes without room are left out.
pub(super) fn choose(ranked: &[&Candidate], placing: &Placing) -> Vec<NodeId> {
    let mut left: Vec<(&Candidate, Vec<usize>)> = number_domains(ranked, placing);
    let mut taken: Vec<usize> = vec![0; left.iter().flat_map(|(_, path)| path).max().map_or(0, |last| last + 1)];
    let mut chosen = Vec::with_capacity(left.len());
    // Filling the emptiest domain level by level keeps every level's counts as even as its nodes allow.
    for _ in 0..placing.shards.min(left.len()) {
        let best =
            (0..left.len()).min_by_key(|&at| (left[at].1.iter().map(|&domain| taken[domain]).collect::<Vec<_>>(), at));
        let Some(best) = best else { break };
        let (node, path) = left.remove(best);
        path.iter().for_each(|&domain| taken[domain] += 1);
        chosen.push(node.node);
    }
    chosen.extend(left.iter().map(|(node, _)| node.node));
    chosen
}

/// Each node with room and the numbers of the domains that it lies in, widest first.
fn number_domains<'a>(ranked: &[&'a Candidate], placing: &Placing) -> Vec<(&'a Candidate, Vec<usize>)> {
    let mut numbers: BTreeMap<Vec<Option<&str>>, usize> = BTreeMap::new();
    let mut number = |prefix: &[Option<&'a str>]| {
        let next = numbers.len();
        *numbers.entry(prefix.to_vec()).or_insert(next)
    };
    let room = ranked.iter().filter(|node| node.free_bytes() >= placing.shard_bytes);
    room.map(|&node| {
        let values: Vec<Option<&str>> = LEVELS.iter().map(|level| node.domain.at(level)).collect();
        (node, (1..=values.len()).map(|depth| number(&values[..depth])).collect())
    })
    .collect()
}

/// A hash of a key and a node that is the same on every machine and in every version: the finalizer of SplitMix64
/// (Steele, Lea, Flood 2014) over both.
pub(super) fn stable_hash(key: u64, node: NodeId) -> u64 {
    mix(mix(key.wrapping_add(0x9e37_79b9_7f4a_7c15)) ^ u64::from(node.0).wrapping_mul(0xd6e8_feb8_6659_fd93))
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}
