//! A TorchFS storage node: erasure-coded shards as plain immutable files on a POSIX file system.
//!
//! [`disk`] is the engine; it alone touches files.

pub mod disk;

pub use disk::DiskStore;
