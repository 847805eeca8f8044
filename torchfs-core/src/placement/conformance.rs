//! What every [`PlacementPolicy`] must do, checked from outside. Call [`run`] in a test of each implementation.

use super::domain::LEVELS;
use super::{Candidate, FailureDomain, PlacementPolicy, Placing};
use crate::ids::NodeId;
use std::collections::{BTreeMap, BTreeSet};

/// Checks the contract over many small clusters.
///
/// # Panics
/// If the policy breaks it.
pub fn run(policy: &dyn PlacementPolicy) {
    no_nodes_no_places(policy);
    equal_nodes_share_evenly(policy);
    for seed in 0..400 {
        let nodes = cluster(seed);
        let placing = Placing { shards: 1 + (seed % 6) as usize, shard_bytes: 4 << 20, key: seed };
        let order = policy.place(&nodes, &placing);
        names_every_node_with_room_once(&nodes, &placing, &order);
        spreads_as_well_as_any_choice(&nodes, &placing, &order);
        assert_eq!(order, policy.place(&nodes, &placing), "the same question got another answer");
    }
}

fn no_nodes_no_places(policy: &dyn PlacementPolicy) {
    assert!(policy.place(&[], &Placing { shards: 6, shard_bytes: 1, key: 1 }).is_empty());
}

/// The stated bound: over 3,000 stripes on nine equal nodes, each node's share of shards, and of first shards (which
/// small stripes consist of), is within 20 % of the mean.
fn equal_nodes_share_evenly(policy: &dyn PlacementPolicy) {
    let nodes: Vec<Candidate> = (1..=9).map(|number| candidate(number, "", 0)).collect();
    let (mut all, mut first) = ([0u32; 9], [0u32; 9]);
    for key in 0..3000 {
        let order = policy.place(&nodes, &Placing { shards: 6, shard_bytes: 1, key });
        first[order[0].0 as usize - 1] += 1;
        order[..6].iter().for_each(|node| all[node.0 as usize - 1] += 1);
    }
    assert!(all.iter().all(|&count| count.abs_diff(2000) <= 400), "{all:?}");
    assert!(first.iter().all(|&count| count.abs_diff(333) <= 67), "{first:?}");
}

fn names_every_node_with_room_once(nodes: &[Candidate], placing: &Placing, order: &[NodeId]) {
    let named: BTreeSet<NodeId> = order.iter().copied().collect();
    assert_eq!(named.len(), order.len(), "a node is named twice: {order:?}");
    let room = nodes.iter().filter(|node| node.free_bytes() >= placing.shard_bytes);
    assert_eq!(named, room.map(|node| node.node).collect(), "not exactly the nodes with room");
}

/// Brute force over every choice: none is more even, widest level first.
fn spreads_as_well_as_any_choice(nodes: &[Candidate], placing: &Placing, order: &[NodeId]) {
    let room: Vec<&Candidate> = nodes.iter().filter(|node| node.free_bytes() >= placing.shard_bytes).collect();
    let size = placing.shards.min(room.len());
    let subset = |bits: u32| room.iter().enumerate().filter(move |(at, _)| bits >> at & 1 == 1).map(|(_, node)| *node);
    let choices = (0u32..1 << room.len()).filter(|bits| bits.count_ones() as usize == size);
    let best = choices.map(|bits| crowding(subset(bits))).min();
    let chosen = room.iter().filter(|node| order[..size].contains(&node.node)).copied();
    assert_eq!(Some(crowding(chosen)), best, "{nodes:#?} placed as {order:?}");
}

/// For each level from the widest: how many shards each domain holds, most first. Less is better.
fn crowding<'a>(chosen: impl Iterator<Item = &'a Candidate>) -> Vec<Vec<u32>> {
    let chosen: Vec<&Candidate> = chosen.collect();
    let at_depth = |depth: usize| {
        let mut counts: BTreeMap<Vec<Option<&str>>, u32> = BTreeMap::new();
        for node in &chosen {
            *counts.entry(LEVELS[..depth].iter().map(|level| node.domain.at(level)).collect()).or_default() += 1;
        }
        let mut counts: Vec<u32> = counts.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts
    };
    (1..=LEVELS.len()).map(at_depth).collect()
}

/// Up to ten nodes in up to three racks of up to three hosts, some full, some without a domain.
fn cluster(seed: u64) -> Vec<Candidate> {
    let draw = |number: u32, what: u64, below: u64| super::spread::stable_hash(seed * 8 + what, NodeId(number)) % below;
    let node = |number: u32| {
        let domain = match draw(number, 0, 8) {
            0 => String::new(),
            1 => format!("rack=r{}", draw(number, 1, 3)),
            _ => format!("rack=r{},host=h{}", draw(number, 1, 3), draw(number, 2, 3)),
        };
        let used = if draw(number, 3, 6) == 0 { (1 << 30) - 1 } else { draw(number, 4, 1 << 29) };
        Candidate { requests: draw(number, 5, 64) as u32, ..candidate(number, &domain, used) }
    };
    (1..=1 + seed as u32 % 10).map(node).collect()
}

fn candidate(number: u32, domain: &str, used_bytes: u64) -> Candidate {
    let domain: FailureDomain = domain.parse().expect("a failure domain");
    Candidate { node: NodeId(number), domain, capacity_bytes: 1 << 30, used_bytes, requests: 0 }
}
