//! Clusters of real processes for the tests in `tests/`: the `torchfs` binary started as a user starts it, killed with
//! SIGKILL, restarted, with its data folders open to be damaged.
//!
//! Each cluster has a loopback address of its own, so that tests can run side by side on fixed ports.

mod cluster;
mod content;
mod mount;
mod small_disk;

pub use cluster::{Cluster, ClusterOptions, Finished, binary, exit, run, run_with_input, wait_until};
pub use content::{Noise, assert_same_tree, write_file, write_small_files};
pub use mount::{Mount, fuse_or_skip, mounted_or_skip, mounts_below};
pub use small_disk::SmallDisk;
