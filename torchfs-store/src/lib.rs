//! A TorchFS storage node: erasure-coded shards as plain immutable files on a POSIX file system.
//!
//! [`StoreNode`] is a whole node: it joins the cluster, serves its shards, reports to the leader and deletes what it is
//! told to. [`disk`] is the engine underneath; it alone touches files.

pub mod disk;
mod gc;
mod heartbeat;
mod node;
#[cfg(test)]
mod node_test;

pub use disk::{Capacity, DiskStore};
pub use node::{StoreConfig, StoreNode};
