//! Which nodes may hold how much of one stripe: [`Spread`], pure bookkeeping for a write.
//!
//! The rule: whichever one node is lost, k shards are left. Data shards without bytes are always there. As long as every
//! shard gets stored this means at most m shards per node; each shard that is given up lowers it by one.

use crate::error::Error;
use crate::ids::NodeId;
use crate::layout::StripeShape;
use std::collections::{BTreeMap, BTreeSet};

/// Where a stripe's shards are being put.
#[derive(Debug)]
pub(super) struct Spread {
    shape: StripeShape,
    /// In order of preference.
    candidates: Vec<NodeId>,
    /// To be used only when the candidates are not enough: they failed other writes a moment ago.
    last_resort: Vec<NodeId>,
    /// Per node, which shards it holds or is being sent.
    load: BTreeMap<NodeId, Vec<usize>>,
    failed: BTreeMap<NodeId, Error>,
    /// Nodes that take long to answer and may yet fail.
    suspects: BTreeSet<NodeId>,
    given_up: usize,
}

/// How far to go to find a node for a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Only a node that has nothing of this stripe.
    Unused,
    /// Also one that has, if the rule allows it.
    Doubled,
    /// Also one that takes long, or that failed another write a moment ago.
    Doubtful,
}

impl Spread {
    pub(super) fn new(shape: StripeShape, candidates: Vec<NodeId>, last_resort: Vec<NodeId>) -> Self {
        let last_resort = last_resort.into_iter().filter(|node| !candidates.contains(node)).collect();
        let (load, failed, suspects) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Spread { shape, candidates, last_resort, load, failed, suspects, given_up: 0 }
    }

    /// Chooses a node for a shard and counts the shard as its. Never one that has failed, or has this shard already.
    pub(super) fn assign(&mut self, shard: usize, reach: Reach) -> Option<NodeId> {
        let node = self.choose(shard, reach)?;
        self.load.entry(node).or_default().push(shard);
        Some(node)
    }

    fn choose(&self, shard: usize, reach: Reach) -> Option<NodeId> {
        let per_node = usize::from(self.shape.profile.parity).saturating_sub(self.given_up);
        let may_have = |node: &&NodeId| {
            let has_it = self.load.get(node).is_some_and(|shards| shards.contains(&shard));
            !self.failed.contains_key(node) && !has_it && self.load_of(**node) < per_node.max(1)
        };
        let trusted = || self.candidates.iter().filter(|node| !self.suspects.contains(node)).filter(may_have);
        let unused = trusted().find(|node| self.load_of(**node) == 0);
        if unused.is_some() || reach == Reach::Unused {
            return unused.copied();
        }
        let doubled = trusted().filter(|node| self.load_of(**node) < per_node).min_by_key(|node| self.load_of(**node));
        if doubled.is_some() || reach == Reach::Doubled {
            return doubled.copied();
        }
        let doubtful = self.last_resort.iter().chain(&self.candidates).filter(may_have);
        doubtful.min_by_key(|node| self.load_of(**node)).copied()
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

    /// A shard will not be stored.
    pub(super) fn give_up(&mut self) {
        self.given_up += 1;
    }

    /// The nodes that failed, and how.
    pub(super) fn failed(&self) -> &BTreeMap<NodeId, Error> {
        &self.failed
    }

    /// Whether the stripe could have been stored if nodes without space had had some.
    pub(super) fn space_is_why(&self) -> bool {
        let is_full = |node: &&NodeId| self.failed.get(node).is_some_and(|error| error.kind() == crate::Kind::NoSpace);
        let full = self.candidates.iter().filter(is_full).count();
        let usable = self.candidates.iter().filter(|node| !self.failed.contains_key(node)).count() + full;
        full > 0 && usable * usize::from(self.shape.profile.parity) >= self.shape.stored_shards().count()
    }
}

/// Whether at least k shards are left whichever one node is lost.
pub(super) fn survives_any_one_node(shape: &StripeShape, nodes: &[Option<NodeId>]) -> bool {
    let needed = usize::from(shape.profile.data);
    let left_without = |lost: Option<NodeId>| {
        let is_left = |&index: &usize| match nodes.get(index).copied().flatten() {
            Some(node) => Some(node) != lost,
            None => shape.shard_len(index) == 0 && index < needed,
        };
        (0..shape.profile.shards()).filter(is_left).count()
    };
    left_without(None) >= needed && nodes.iter().flatten().all(|&node| left_without(Some(node)) >= needed)
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

    #[test]
    fn the_rule() {
        let small = StripeShape::for_content(Profile::DEFAULT, 100);
        let cases: [(StripeShape, &[u32], bool); 9] = [
            (full(), &[1, 2, 3, 4, 5, 6], true),
            (full(), &[1, 2, 3, 1, 2, 3], true),
            (full(), &[1, 2, 1, 2, 1, 2], false),
            (full(), &[1, 2, 3, 4, 5, 0], true),
            (full(), &[1, 2, 3, 4, 0, 0], false),
            (full(), &[1, 2, 3, 4, 4, 0], false),
            (small, &[1, 0, 0, 0, 2, 3], true),
            (small, &[1, 0, 0, 0, 2, 2], true),
            (small, &[1, 0, 0, 0, 1, 1], false),
        ];
        for (shape, numbers, expected) in cases {
            assert_eq!(survives_any_one_node(&shape, &placed(numbers)), expected, "{numbers:?}");
        }
    }

    #[test]
    fn spares_first_then_doubling_then_nodes_that_failed_before() {
        let mut spread = Spread::new(full(), nodes(&[4, 2, 7]), nodes(&[2, 9]));
        let order: Vec<Option<NodeId>> = (0..7).map(|shard| spread.assign(shard, Reach::Doubtful)).collect();
        assert_eq!(order, placed(&[4, 2, 7, 4, 2, 7, 9]));
        assert_eq!(spread.assign(9, Reach::Unused), None);
        spread.fail(1, NodeId(2), Error::new(Kind::Io, "broken"));
        assert_eq!(spread.assign(1, Reach::Doubtful), Some(NodeId(9)), "node 2 is not tried again");
    }

    #[test]
    fn nodes_that_take_long_come_last() {
        let mut spread = Spread::new(full(), nodes(&[1, 2, 3]), Vec::new());
        (0..2).for_each(|shard| assert!(spread.assign(shard, Reach::Unused).is_some()));
        spread.suspect(NodeId(1));
        spread.suspect(NodeId(3));
        assert_eq!(spread.assign(2, Reach::Unused), None);
        assert_eq!(spread.assign(2, Reach::Doubled), Some(NodeId(2)));
        assert_eq!(spread.assign(3, Reach::Doubled), None);
        assert_eq!(spread.assign(3, Reach::Doubtful), Some(NodeId(3)));
        spread.trust(NodeId(1));
        assert_eq!(spread.assign(4, Reach::Doubled), Some(NodeId(1)));
    }

    #[test]
    fn a_shard_given_up_leaves_less_room_for_doubling() {
        let mut spread = Spread::new(full(), nodes(&[1, 2]), Vec::new());
        spread.give_up();
        assert_eq!(spread.assign(0, Reach::Doubtful), Some(NodeId(1)));
        assert_eq!(spread.assign(1, Reach::Doubtful), Some(NodeId(2)));
        assert_eq!(spread.assign(2, Reach::Doubtful), None);
        spread.release(1, NodeId(2));
        assert_eq!(spread.assign(3, Reach::Doubtful), Some(NodeId(2)));
    }

    #[test]
    fn space_is_why_only_if_space_would_have_helped() {
        let full_disk = || Error::new(Kind::NoSpace, "full");
        let mut spread = Spread::new(full(), nodes(&[1, 2, 3]), Vec::new());
        spread.fail(0, NodeId(1), full_disk());
        assert!(spread.space_is_why());
        spread.fail(0, NodeId(2), Error::new(Kind::Io, "broken"));
        assert!(!spread.space_is_why());
    }
}
