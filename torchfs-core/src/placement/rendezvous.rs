//! [`Rendezvous`]: places by hash alone, so that a change of the nodes moves as little as possible.

use super::spread::{choose, stable_hash};
use super::{Candidate, PlacementPolicy, Placing};
use crate::ids::NodeId;

/// Highest random weight (Thaler, Ravishankar 1998), weighted by capacity with the logarithm method: node i scores
/// -ln(u) / capacity with u in (0, 1) drawn from the hash of stripe and node, and the lowest scores win. A node is then
/// first with a probability proportional to its capacity, whatever other nodes there are.
///
/// Fullness and load do not count, except that a node without room is left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rendezvous;

impl PlacementPolicy for Rendezvous {
    fn place(&self, nodes: &[Candidate], placing: &Placing) -> Vec<NodeId> {
        let mut scored: Vec<(f64, &Candidate)> = nodes.iter().map(|node| (score(node, placing.key), node)).collect();
        scored.sort_by(|(a, left), (b, right)| a.total_cmp(b).then(left.node.cmp(&right.node)));
        let ranked: Vec<&Candidate> = scored.into_iter().map(|(_, node)| node).collect();
        choose(&ranked, placing)
    }
}

fn score(node: &Candidate, key: u64) -> f64 {
    // 53 bits fill the mantissa; the half keeps u off 0 and 1.
    let uniform = ((stable_hash(key, node.node) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    -uniform.ln() / node.capacity_bytes.max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;
    use proptest::prelude::*;

    fn nodes(count: u32) -> Vec<Candidate> {
        let node = |number| Candidate {
            node: NodeId(number),
            domain: Default::default(),
            capacity_bytes: u64::from(number % 3 + 1) << 40,
            used_bytes: 0,
            requests: 0,
        };
        (1..=count).map(node).collect()
    }

    fn first(nodes: &[Candidate], shards: usize, key: u64) -> Vec<NodeId> {
        let mut order = Rendezvous.place(nodes, &Placing { shards, shard_bytes: 1, key });
        order.truncate(shards);
        order
    }

    #[test]
    fn conforms() {
        conformance::run(&Rendezvous);
    }

    #[test]
    fn the_hash_never_changes() {
        assert_eq!(stable_hash(0, NodeId(1)), 16_785_006_753_071_639_542);
        assert_eq!(first(&nodes(9), 6, 12345).iter().map(|node| node.0).collect::<Vec<_>>(), [2, 9, 5, 7, 8, 4]);
    }

    #[test]
    fn a_node_is_first_as_often_as_its_capacity_says() {
        let nodes = nodes(6);
        let mut wins = [0u32; 6];
        (0..12_000).for_each(|key| wins[first(&nodes, 1, key)[0].0 as usize - 1] += 1);
        for (node, won) in nodes.iter().zip(wins) {
            let expected = (node.capacity_bytes >> 40) as f64 * 1000.0;
            assert!((f64::from(won) - expected).abs() < 0.12 * expected, "{}: {won} of {expected}", node.node);
        }
    }

    proptest! {
        #[test]
        fn a_node_more_or_less_moves_one_shard_at_most(count in 2u32..20, gone in 0usize..20, shards in 1usize..8, key: u64) {
            let all = nodes(count);
            let mut fewer = all.clone();
            let gone = fewer.remove(gone % all.len()).node;
            let (with, without) = (first(&all, shards, key), first(&fewer, shards, key));
            let kept: Vec<_> = with.iter().copied().filter(|&node| node != gone).collect();
            prop_assert_eq!(&without[..kept.len()], &kept[..]);
            prop_assert!(without.len() <= kept.len() + usize::from(with.contains(&gone)));
        }
    }
}
