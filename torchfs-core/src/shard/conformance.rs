//! What every `ShardStore` must do (being written).
