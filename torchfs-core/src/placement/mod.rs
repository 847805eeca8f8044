//! Where the shards of a new stripe go: [`PlacementPolicy`], a pure decision over a view of the nodes.

pub mod conformance;
mod domain;
mod least_loaded;
mod rendezvous;
mod spread;

pub use domain::FailureDomain;
pub use least_loaded::LeastLoaded;
pub use rendezvous::Rendezvous;

use crate::ids::NodeId;
use std::fmt::Debug;

/// A node as a policy sees it. Only nodes that take writes are shown to a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its number.
    pub node: NodeId,
    /// Where it stands.
    pub domain: FailureDomain,
    /// Bytes it may use.
    pub capacity_bytes: u64,
    /// Bytes it uses, what was handed out and not yet reported included.
    pub used_bytes: u64,
    /// Requests under way there.
    pub requests: u32,
}

impl Candidate {
    /// Bytes still free.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.capacity_bytes.saturating_sub(self.used_bytes)
    }
}

/// What is to be placed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placing {
    /// How many shards: k+m.
    pub shards: usize,
    /// How large each is at most; a node with less free space is no choice.
    pub shard_bytes: u64,
    /// Varies the choice between stripes and is the key for hashing policies: the stripe's number.
    pub key: u64,
}

/// Decides which nodes get a stripe's shards.
///
/// # Contract for implementors
/// Pure: the answer depends on the arguments alone. It names no node twice and none without room. The first
/// `placing.shards` nodes (or all, if there are fewer) are the choice and lie in failure domains as evenly as possible,
/// widest level first: no domain gets a second shard where another could take its first. All other nodes with room follow
/// as spares.
///
/// The suite in [`conformance`] runs against every implementation.
pub trait PlacementPolicy: Debug + Send + Sync {
    /// The nodes in order of preference.
    fn place(&self, nodes: &[Candidate], placing: &Placing) -> Vec<NodeId>;
}
