//! Shards in memory (being written).
