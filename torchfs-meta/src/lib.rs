//! TorchFS metadata node (being written).

pub mod kv;
pub mod state;
