//! [`LeastLoaded`]: new stripes go where there is most room and least work, the default.

use super::spread::{choose, stable_hash};
use super::{Candidate, PlacementPolicy, Placing};
use crate::ids::NodeId;

/// Prefers nodes by how full and how busy they are. Nodes that are about alike take turns by the stripe's number, so that
/// reports that are half a second old do not send every stripe to one node.
#[derive(Clone, Copy, Debug, Default)]
pub struct LeastLoaded;

/// One step of fullness: differences below 1/32 of the capacity (3 %) are not worth making a node hot for.
const FULLNESS_STEPS: u64 = 32;

/// So many requests under way weigh as much as one step of fullness.
const REQUESTS_PER_STEP: u32 = 16;

/// No queue weighs more than this many steps: fullness does not heal by itself, a queue does.
const BUSY_STEPS_MAX: u32 = 8;

impl PlacementPolicy for LeastLoaded {
    fn place(&self, nodes: &[Candidate], placing: &Placing) -> Vec<NodeId> {
        let mut ranked: Vec<&Candidate> = nodes.iter().collect();
        ranked.sort_by_key(|node| (burden(node), stable_hash(placing.key, node.node), node.node));
        choose(&ranked, placing)
    }
}

/// How full and busy a node is, in steps.
fn burden(node: &Candidate) -> u64 {
    let capacity = u128::from(node.capacity_bytes.max(1));
    let full = u128::from(node.used_bytes.min(node.capacity_bytes)) * u128::from(FULLNESS_STEPS) / capacity;
    full as u64 + u64::from((node.requests / REQUESTS_PER_STEP).min(BUSY_STEPS_MAX))
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    fn node(number: u32, used_bytes: u64, requests: u32) -> Candidate {
        Candidate { node: NodeId(number), domain: Default::default(), capacity_bytes: 1 << 30, used_bytes, requests }
    }

    #[test]
    fn conforms() {
        conformance::run(&LeastLoaded);
    }

    #[test]
    fn fuller_and_busier_nodes_are_left_out() {
        let nodes = [node(1, 800 << 20, 0), node(2, 0, 500), node(3, 0, 0), node(4, 1 << 20, 3), node(5, 0, 1)];
        for key in 0..100 {
            let order = LeastLoaded.place(&nodes, &Placing { shards: 3, shard_bytes: 1, key });
            let mut choice = order[..3].to_vec();
            choice.sort_unstable();
            assert_eq!(choice, [NodeId(3), NodeId(4), NodeId(5)], "key {key}");
            assert_eq!(order[3..], [NodeId(2), NodeId(1)], "key {key}");
        }
    }

    /// The bound that the policy promises: over many stripes, nodes of different sizes fill to within two steps of each other.
    #[test]
    fn nodes_of_all_sizes_fill_at_the_same_pace() {
        let mut nodes: Vec<Candidate> = (1..=8).map(|number| node(number, 0, 0)).collect();
        nodes.iter_mut().for_each(|node| node.capacity_bytes *= u64::from(node.node.0 / 3 + 1));
        nodes.push(Candidate { used_bytes: 300 << 20, ..node(9, 0, 0) });
        for key in 0..500 {
            for chosen in &LeastLoaded.place(&nodes, &Placing { shards: 6, shard_bytes: 4 << 20, key })[..6] {
                nodes[chosen.0 as usize - 1].used_bytes += 4 << 20;
            }
        }
        let full: Vec<u64> = nodes.iter().map(burden).collect();
        let (least, most) = (full.iter().min().expect("nodes"), full.iter().max().expect("nodes"));
        assert!(most - least <= 2, "{full:?} of {FULLNESS_STEPS} steps");
    }
}
