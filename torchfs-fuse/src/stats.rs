//! What a mount tells of its work in `.torchfs/stats`.

use serde::{Deserialize, Serialize};
use torchfs_core::cache::{CacheStats, EpochStats};
use torchfs_core::observe::RequestStats;

/// Counters since the mount began. As JSON, fields may be added; none changes its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountStats {
    /// Seconds since it was mounted.
    pub uptime_seconds: u64,
    /// Files opened.
    pub opens: u64,
    /// How many of those the kernel reads from the cache by itself.
    pub passthrough_opens: u64,
    /// Why the kernel reads none by itself, if it cannot.
    pub passthrough_refused: Option<String>,
    /// For how many milliseconds idle processors were kept from being halted.
    #[serde(default)]
    pub awake_ms: u64,
    /// Operations of the kernel that wait for an answer.
    pub operations_in_flight: u64,
    /// What leaves the cache first when it is full.
    #[serde(default)]
    pub eviction: String,
    /// What is fetched into it before it is opened.
    #[serde(default)]
    pub prefetch: String,
    /// The disk cache, if there is one.
    pub cache: Option<CacheStats>,
    /// What each of the latest epochs found in the cache, the latest last.
    #[serde(default)]
    pub epochs: Vec<EpochStats>,
    /// Questions to metadata that needed no request.
    #[serde(default)]
    pub metadata_remembered: u64,
    /// Requests to the cluster.
    pub requests: RequestStats,
}
