//! The one wording for full disks, whoever finds them full: a node that refuses a shard, the leader that finds no room for a
//! stripe, or the client that tried one node after the other. It says which nodes, how full each is, and what to do.

use crate::error::{Error, Kind};
use crate::ids::NodeId;

/// So many nodes are named; with more it is said how many.
const NAMED_MAX: usize = 6;

/// What a node says that has no room for a shard.
#[must_use]
pub fn node_is_full(used_bytes: u64, capacity_bytes: u64) -> Error {
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let (used, capacity) = (mebibytes(used_bytes), mebibytes(capacity_bytes));
    Error::new(Kind::NoSpace, format!("full, {used:.1} of {capacity:.1} MiB used"))
}

/// What is said when a stripe finds no room: why each node has not taken a shard.
#[must_use]
pub fn no_space(nodes: impl IntoIterator<Item = (NodeId, Error)>) -> Error {
    let each: Vec<String> = nodes.into_iter().map(|(node, error)| format!("storage node {node}: {error}")).collect();
    let more = each.len().saturating_sub(NAMED_MAX);
    let mut text = each.into_iter().take(NAMED_MAX).collect::<Vec<_>>().join("; ");
    if more > 0 {
        text += &format!("; and {more} more");
    }
    Error::new(Kind::NoSpace, format!("no space: {text}; delete files or add a storage node"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_nodes_how_full_and_what_to_do() {
        let node = |id| (NodeId(id), node_is_full((10 << 20) - 1000, 10 << 20));
        let error = no_space([node(1), (NodeId(2), Error::new(Kind::Unavailable, "refused the connection"))]);
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(
            error.to_string(),
            "no space: storage node 1: full, 10.0 of 10.0 MiB used; storage node 2: refused the connection; \
             delete files or add a storage node"
        );
        let many = no_space((1..=100).map(node)).to_string();
        assert!(many.contains("storage node 6:") && many.contains("; and 94 more;"), "{many}");
    }
}
