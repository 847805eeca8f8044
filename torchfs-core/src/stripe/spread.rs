//! Which nodes may hold how much of one stripe: [`Spread`], pure bookkeeping for a write.
//!
//! The rule: every shard is on a node of its own, and whichever one node is lost, k shards are left. Data shards without bytes
//! are always there. So with fewer than k+m nodes some shards are left out, down to k+1. When there are k nodes, that is
//! when m are away, some of them hold two shards, which is the only way to survive one more; with fewer nothing is written.

use crate::error::Error;
use crate::ids::NodeId;
use crate::layout::StripeShape;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Where a stripe's shards are being put.
#[derive(Debug)]
pub(super) struct Spread {
    shape: StripeShape,
    /// In order of preference.
    nodes: Vec<NodeId>,
    /// Per node, which shards it holds or is being sent.
    load: BTreeMap<NodeId, Vec<usize>>,
    failed: BTreeMap<NodeId, Error>,
    /// Nodes that take long to answer or failed other writes a moment ago.
    suspects: BTreeSet<NodeId>,
}

/// How far to go to find a node for a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Only a node that has nothing of this stripe.
    Unused,
    /// Also one that has, if the rule allows it.
    Doubled,
    /// Also one that takes long, or that failed another write a moment ago, if the stripe cannot be stored without.
    Doubtful,
}

impl Spread {
    /// Over these nodes, best first; the doubtful ones, which may be among them, come last.
    pub(super) fn new(shape: StripeShape, mut nodes: Vec<NodeId>, doubtful: Vec<NodeId>) -> Self {
        let further: Vec<NodeId> = doubtful.iter().filter(|node| !nodes.contains(node)).copied().collect();
        nodes.extend(further);
        let suspects = doubtful.into_iter().collect();
        Spread { shape, nodes, load: BTreeMap::new(), failed: BTreeMap::new(), suspects }
    }

    /// Chooses a node for a shard and counts the shard as its. Never one that has failed, or has this shard already.
    pub(super) fn assign(&mut self, shard: usize, reach: Reach) -> Option<NodeId> {
        let node = self.choose(shard, reach)?;
        self.load.entry(node).or_default().push(shard);
        Some(node)
    }

    fn choose(&self, shard: usize, reach: Reach) -> Option<NodeId> {
        let open = || self.nodes.iter().copied().filter(|node| !self.failed.contains_key(node));
        let trusted = || open().filter(|node| !self.suspects.contains(node));
        let unused = trusted().find(|&node| self.load_of(node) == 0);
        if unused.is_some() || reach == Reach::Unused {
            return unused;
        }
        let counts = |node: &NodeId| !self.failed.contains_key(node) || self.load_of(*node) > 0;
        let all = self.nodes.iter().filter(|node| counts(node)).count();
        let reliable = self.nodes.iter().filter(|node| counts(node) && !self.suspects.contains(node)).count();
        let doubled = match self.compare_with_needed(reliable) {
            // Enough nodes for k+1 shards: this one is left out.
            Ordering::Greater => return None,
            Ordering::Equal => self.least_loaded(trusted(), shard),
            Ordering::Less => None,
        };
        if doubled.is_some() || reach == Reach::Doubled {
            return doubled;
        }
        let doubtful = open().find(|&node| self.load_of(node) == 0);
        let may_double = self.compare_with_needed(all) == Ordering::Equal;
        doubtful.or_else(|| may_double.then(|| self.least_loaded(open(), shard)).flatten())
    }

    /// Whether shards on so many nodes of their own are fewer than k, k, or more.
    fn compare_with_needed(&self, nodes: usize) -> Ordering {
        (nodes + empty_shards(&self.shape)).cmp(&usize::from(self.shape.profile.data))
    }

    /// The node with the fewest shards that may have this one too.
    fn least_loaded(&self, nodes: impl Iterator<Item = NodeId>, shard: usize) -> Option<NodeId> {
        let has_it = |node: &NodeId| self.load.get(node).is_some_and(|shards| shards.contains(&shard));
        let per_node = usize::from(self.shape.profile.parity);
        nodes.filter(|node| !has_it(node) && self.load_of(*node) < per_node).min_by_key(|node| self.load_of(*node))
    }

    fn load_of(&self, node: NodeId) -> usize {
        self.load.get(&node).map_or(0, Vec::len)
    }

    /// The node does not have the shard after all, because another one was faster.
    pub(super) fn release(&mut self, shard: usize, node: NodeId) {
        if let Some(shards) = self.load.get_mut(&node) {
            shards.retain(|&other| other != shard);
        }
    }

    /// The node takes long: no other shard goes there while there is a choice.
    pub(super) fn suspect(&mut self, node: NodeId) {
        self.suspects.insert(node);
    }

    /// The node answered after all.
    pub(super) fn trust(&mut self, node: NodeId) {
        self.suspects.remove(&node);
    }

    /// The node failed and gets nothing more of this stripe. What it has already stays.
    pub(super) fn fail(&mut self, shard: usize, node: NodeId, error: Error) {
        self.release(shard, node);
        self.failed.entry(node).or_insert(error);
    }

    /// The nodes that failed, and how.
    pub(super) fn failed(&self) -> &BTreeMap<NodeId, Error> {
        &self.failed
    }

    /// How many nodes were to choose from.
    pub(super) fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Whether the stripe could have been stored if nodes without space had had some: those that refused it, and so many that
    /// were no choice.
    pub(super) fn space_is_why(&self, others: usize) -> bool {
        let is_full = |node: &&NodeId| self.failed.get(node).is_some_and(|error| error.kind() == crate::Kind::NoSpace);
        let full = self.nodes.iter().filter(is_full).count() + others;
        let usable = self.nodes.iter().filter(|node| !self.failed.contains_key(node)).count() + full;
        let would_do = match self.compare_with_needed(usable) {
            Ordering::Greater => true,
            Ordering::Equal => {
                self.shape.stored_shards().count().div_ceil(usable) <= usize::from(self.shape.profile.parity)
            }
            Ordering::Less => false,
        };
        full > 0 && would_do
    }
}

/// Data shards without bytes: they are not stored, and never lost.
fn empty_shards(shape: &StripeShape) -> usize {
    shape.profile.shards() - shape.stored_shards().count()
}

/// Whether a stripe stored like this may be acknowledged: k shards are left whichever one node is lost, and k have a node
/// each.
pub(super) fn may_be_acknowledged(shape: &StripeShape, nodes: &[Option<NodeId>]) -> bool {
    let needed = usize::from(shape.profile.data);
    let stored = || shape.stored_shards().filter_map(|index| nodes.get(index).copied().flatten());
    let holders: BTreeSet<NodeId> = stored().collect();
    let empty = empty_shards(shape);
    let left_without = |lost: NodeId| stored().filter(|&node| node != lost).count() + empty;
    holders.len() + empty >= needed && holders.iter().all(|&node| left_without(node) >= needed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::layout::Profile;

    fn full() -> StripeShape {
        StripeShape::for_content(Profile::DEFAULT, 1 << 20)
    }

    fn nodes(numbers: &[u32]) -> Vec<NodeId> {
        numbers.iter().copied().map(NodeId).collect()
    }

    fn placed(numbers: &[u32]) -> Vec<Option<NodeId>> {
        numbers.iter().map(|&number| (number > 0).then_some(NodeId(number))).collect()
    }

    /// Where shards 0, 1, 2, ... go one after the other.
    fn assign_all(spread: &mut Spread, shards: usize) -> Vec<Option<NodeId>> {
        (0..shards).map(|shard| spread.assign(shard, Reach::Doubtful)).collect()
    }

    #[test]
    fn the_rule() {
        let small = StripeShape::for_content(Profile::DEFAULT, 100);
        let mirror = StripeShape::for_content(Profile::new(1, 1).expect("profile"), 100);
        let cases: [(StripeShape, &[u32], bool); 13] = [
            (full(), &[1, 2, 3, 4, 5, 6], true),
            (full(), &[1, 2, 3, 4, 5, 0], true),
            (full(), &[1, 2, 3, 4, 1, 2], true),
            (full(), &[1, 2, 3, 1, 2, 3], false),
            (full(), &[1, 2, 1, 2, 1, 2], false),
            (full(), &[1, 2, 3, 4, 0, 0], false),
            (full(), &[1, 2, 3, 4, 4, 0], false),
            (small, &[1, 0, 0, 0, 2, 3], true),
            (small, &[1, 0, 0, 0, 2, 0], true),
            (small, &[1, 0, 0, 0, 1, 1], false),
            (small, &[0, 0, 0, 0, 0, 0], false),
            (mirror, &[1, 2], true),
            (mirror, &[1, 1], false),
        ];
        for (shape, numbers, expected) in cases {
            assert_eq!(may_be_acknowledged(&shape, &placed(numbers)), expected, "{numbers:?}");
        }
    }

    #[test]
    fn with_k_plus_1_nodes_shards_are_left_out_and_with_k_they_double() {
        for (have, expected) in
            [(6, [1, 2, 3, 4, 5, 6]), (5, [1, 2, 3, 4, 5, 0]), (4, [1, 2, 3, 4, 1, 2]), (3, [1, 2, 3, 0, 0, 0])]
        {
            let mut spread = Spread::new(full(), (1..=have).map(NodeId).collect(), Vec::new());
            assert_eq!(assign_all(&mut spread, 6), placed(&expected), "{have} nodes");
        }
        let small = StripeShape::for_content(Profile::DEFAULT, 100);
        let mut spread = Spread::new(small, nodes(&[1, 2]), Vec::new());
        assert_eq!(assign_all(&mut spread, 3), placed(&[1, 2, 0]));
    }

    #[test]
    fn doubtful_nodes_are_used_only_if_the_others_are_too_few() {
        for (good, expected) in [
            (&[1, 2, 3, 4, 5][..], [1, 2, 3, 4, 5, 0]),
            (&[1, 2, 3, 4], [1, 2, 3, 4, 1, 2]),
            (&[1, 2, 3], [1, 2, 3, 8, 9, 0]),
        ] {
            let mut spread = Spread::new(full(), nodes(good), nodes(&[8, 9]));
            assert_eq!(assign_all(&mut spread, 6), placed(&expected), "{good:?}");
        }
    }

    #[test]
    fn nodes_that_take_long_come_last() {
        let mut spread = Spread::new(full(), nodes(&[1, 2, 3, 4, 5, 6]), Vec::new());
        (0..6).for_each(|shard| assert!(spread.assign(shard, Reach::Unused).is_some()));
        spread.suspect(NodeId(5));
        assert_eq!(spread.assign(4, Reach::Doubled), None, "five others are enough");
        spread.suspect(NodeId(6));
        assert_eq!(spread.assign(4, Reach::Unused), None);
        assert_eq!(spread.assign(4, Reach::Doubled), Some(NodeId(1)));
        spread.suspect(NodeId(4));
        assert_eq!(spread.assign(5, Reach::Doubled), None, "three are too few to double on");
        spread.trust(NodeId(4));
        assert_eq!(spread.assign(5, Reach::Doubled), Some(NodeId(2)));
    }

    #[test]
    fn a_node_that_failed_gets_nothing_more_and_what_it_has_counts() {
        let mut spread = Spread::new(full(), nodes(&[1, 2, 3, 4]), Vec::new());
        assign_all(&mut spread, 4);
        assert_eq!(spread.assign(4, Reach::Doubtful), Some(NodeId(1)));
        spread.fail(4, NodeId(1), Error::new(Kind::NoSpace, "full"));
        assert_eq!(spread.assign(4, Reach::Doubtful), Some(NodeId(2)), "node 1 still has its first");
        spread.fail(1, NodeId(2), Error::new(Kind::Io, "broken"));
        spread.release(4, NodeId(2));
        assert_eq!(spread.assign(1, Reach::Doubtful), None, "three nodes are left");
    }

    #[test]
    fn space_is_why_only_if_space_would_have_helped() {
        let full_disk = || Error::new(Kind::NoSpace, "full");
        let mut spread = Spread::new(full(), nodes(&[1, 2, 3, 4]), Vec::new());
        spread.fail(0, NodeId(1), full_disk());
        assert!(spread.space_is_why(0));
        spread.fail(0, NodeId(2), Error::new(Kind::Io, "broken"));
        assert!(!spread.space_is_why(0));
        assert!(spread.space_is_why(1), "a node that had no room from the beginning");
    }
}
