//! TorchFS metadata node (being written).

pub mod kv;
