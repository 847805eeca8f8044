//! When is a node slow? [`Latencies`] remembers how long each node's answers took lately, and says how long to wait for the
//! next one before asking somewhere else too.
//!
//! The wait is twice the node's own 95th percentile for answers of this size, but not more than four times what its peers
//! usually need: a node that became slow would otherwise teach us to be patient with it.

use crate::ids::NodeId;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Never ask twice before this: below it the second request costs more than the wait.
const WAIT_MIN: Duration = Duration::from_millis(20);
/// Never wait longer than this before asking somewhere else too.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// While nothing is known of any node.
const WAIT_UNKNOWN: Duration = Duration::from_millis(250);
/// Answers remembered per node and size class.
const REMEMBERED: usize = 32;
/// Fewer answers than this say nothing.
const TELLING: usize = 4;
/// A node that was late this often in a row is no longer waited for at all.
const LATE_IN_A_ROW_MAX: u32 = 3;
/// Answers up to 64 KiB, up to 1 MiB and above differ in what is usual.
const CLASS_BYTES: [u32; 2] = [64 * 1024, 1024 * 1024];

/// How long the nodes' answers took lately.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    nodes: Mutex<HashMap<NodeId, Node>>,
}

#[derive(Debug, Default)]
struct Node {
    classes: [Answers; CLASS_BYTES.len() + 1],
    late_in_a_row: u32,
}

/// The last answers, in a ring.
#[derive(Debug, Default)]
struct Answers {
    took: Vec<Duration>,
    next: usize,
}

impl Answers {
    fn add(&mut self, took: Duration) {
        if self.took.len() < REMEMBERED {
            self.took.push(took);
        } else {
            self.took[self.next] = took;
        }
        self.next = (self.next + 1) % REMEMBERED;
    }

    /// The time that 19 of 20 answers kept to; `None` while too few are known.
    fn p95(&self) -> Option<Duration> {
        if self.took.len() < TELLING {
            return None;
        }
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        Some(sorted[(sorted.len() * 95).div_ceil(100) - 1])
    }
}

fn class(bytes: u32) -> usize {
    CLASS_BYTES.iter().position(|&most| bytes <= most).unwrap_or(CLASS_BYTES.len())
}

impl Node {
    /// For answers of this class, or of the next larger one of which enough is known.
    fn p95(&self, class: usize) -> Option<Duration> {
        self.classes[class..].iter().find_map(Answers::p95)
    }
}

impl Latencies {
    /// The node answered a request for `bytes` bytes after `took`.
    pub(super) fn answered(&self, node: NodeId, bytes: u32, took: Duration) {
        self.with(node, |known| {
            known.classes[class(bytes)].add(took);
            known.late_in_a_row = 0;
        });
    }

    /// The node was given up after `waited`, when others had already answered in its place.
    pub(super) fn overtaken(&self, node: NodeId, bytes: u32, waited: Duration) {
        self.with(node, |known| {
            known.classes[class(bytes)].add(waited);
            known.late_in_a_row = known.late_in_a_row.saturating_add(1);
        });
    }

    fn with(&self, node: NodeId, change: impl FnOnce(&mut Node)) {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        change(nodes.entry(node).or_default());
    }

    /// How long to wait for the node's answer of `bytes` bytes before asking others too.
    pub(super) fn patience(&self, node: NodeId, bytes: u32) -> Duration {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.get(&node).is_some_and(|known| known.late_in_a_row >= LATE_IN_A_ROW_MAX) {
            return Duration::ZERO;
        }
        let class = class(bytes);
        let mut peers: Vec<Duration> = nodes.values().filter_map(|known| known.p95(class)).collect();
        peers.sort_unstable();
        let usual = peers.get(peers.len() / 2).copied();
        let own = nodes.get(&node).and_then(|known| known.p95(class));
        let wait = match (own, usual) {
            (Some(own), Some(usual)) => (own * 2).min(usual * 4),
            (None, Some(usual)) => usual * 4,
            _ => WAIT_UNKNOWN,
        };
        wait.clamp(WAIT_MIN, WAIT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn nodes(usual_ms: u32, count: u32) -> Latencies {
        let latencies = Latencies::default();
        for node in 1..=count {
            for _ in 0..REMEMBERED {
                latencies.answered(NodeId(node), 1000, MS * usual_ms);
            }
        }
        latencies
    }

    #[test]
    fn patience_follows_the_nodes_own_answers() {
        assert_eq!(Latencies::default().patience(NodeId(1), 1), WAIT_UNKNOWN);
        let latencies = nodes(100, 5);
        assert_eq!(latencies.patience(NodeId(1), 1000), MS * 200);
        assert_eq!(latencies.patience(NodeId(9), 1000), MS * 400, "a new node is judged by its peers");
        assert_eq!(latencies.patience(NodeId(1), 4 << 20), WAIT_UNKNOWN, "large answers are another matter");
        latencies.with(NodeId(1), |known| known.classes.swap(0, 1));
        assert_eq!(latencies.patience(NodeId(1), 1000), MS * 200, "a larger answer tells something of a smaller one");
        latencies.with(NodeId(1), |known| known.classes.swap(0, 1));
        assert_eq!(nodes(1, 5).patience(NodeId(1), 1000), WAIT_MIN);
        assert_eq!(nodes(9000, 5).patience(NodeId(1), 1000), WAIT_MAX);
    }

    #[test]
    fn one_slow_answer_in_twenty_does_not_matter() {
        let latencies = nodes(50, 3);
        latencies.answered(NodeId(1), 1000, MS * 5000);
        assert_eq!(latencies.patience(NodeId(1), 1000), MS * 100);
    }

    #[test]
    fn a_node_that_became_slow_is_not_waited_for_longer_than_its_peers_need() {
        let latencies = nodes(100, 5);
        for _ in 0..REMEMBERED {
            latencies.answered(NodeId(1), 1000, MS * 3000);
        }
        assert_eq!(latencies.patience(NodeId(1), 1000), MS * 400);
        for _ in 0..LATE_IN_A_ROW_MAX {
            latencies.overtaken(NodeId(1), 1000, MS * 400);
        }
        assert_eq!(latencies.patience(NodeId(1), 1000), Duration::ZERO);
        latencies.answered(NodeId(1), 1000, MS);
        assert_eq!(latencies.patience(NodeId(1), 1000), MS * 400, "one answer in time and it is trusted again");
    }
}
