//! A whole TorchFS cluster inside one process: real TCP, real Raft, real disks, nodes that can be stopped and started.
//!
//! For trying things out, for tests, benches and examples. What it is not: a way to run more than one machine.
//!
//! ```no_run
//! # async fn run() -> torchfs_core::Result<()> {
//! use torchfs_local::LocalCluster;
//!
//! let cluster = LocalCluster::builder().start().await?;
//! let client = cluster.client().await?;
//! client.write_file("/hello", "world").await?;
//! cluster.stop_store(1)?;
//! assert_eq!(client.read_file("/hello").await?, "world");
//! cluster.shutdown().await
//! # }
//! ```

mod builder;
mod cluster;
mod plan;

pub use builder::Builder;
pub use cluster::LocalCluster;
