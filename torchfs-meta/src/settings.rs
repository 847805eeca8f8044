//! What can be set about a metadata node, with defaults that fit.

use crate::raft::Compaction;
use std::time::Duration;
use torchfs_core::settings::{ABANDONED_AFTER, CLIENT_EXPIRY, COLLECT_INTERVAL, GARBAGE_GRACE, LEASE, NODE_DOWN_AFTER};

/// Times and sizes that tests make small. All nodes of a cluster use the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetaSettings {
    /// When the log is compacted.
    pub compaction: Compaction,
    /// A storage node that was silent for this long is taken to be down.
    pub node_down_after: Duration,
    /// How long the shards of replaced or deleted content stay readable, and a file without a name stays usable.
    pub garbage_grace: Duration,
    /// How old a stripe that was never committed must be to be given up.
    pub abandoned_after: Duration,
    /// How long the answers to a silent client's last requests are kept.
    pub client_expiry: Duration,
    /// How long a client that watches may answer from memory.
    pub lease: Duration,
    /// How often the leader has nameless inodes and silent clients collected.
    pub collect_interval: Duration,
}

impl Default for MetaSettings {
    fn default() -> Self {
        MetaSettings {
            compaction: Compaction::default(),
            node_down_after: NODE_DOWN_AFTER,
            garbage_grace: GARBAGE_GRACE,
            abandoned_after: ABANDONED_AFTER,
            client_expiry: CLIENT_EXPIRY,
            lease: LEASE,
            collect_interval: COLLECT_INTERVAL,
        }
    }
}
