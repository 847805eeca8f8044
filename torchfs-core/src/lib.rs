//! TorchFS as a library: everything that knows the file system without being a server of it.
//!
//! [`Client`] is where to start: files by path over a cluster of metadata and storage nodes. What it stands on is public
//! too, each part useful by itself: [`erasure`] codes, [`placement`] policies, the [`cache`] of whole files over any source
//! of bytes, which fetches ahead what a [`prefetch`] policy foresees, and the two boundaries, [`meta::MetaStore`] and [`shard::ShardStore`], with implementations in memory.
//!
//! On the way of a read: [`client`] asks [`meta`] once what a file consists of, [`layout`] turns a byte range into ranges of
//! shards, [`stripe`] has them fetched over [`rpc`] from several [`shard`] stores and repairs with [`erasure`] what is
//! missing, [`checksum`] proves every block, and [`cache`] keeps the result.
//!
//! A whole file system in this process, nodes in memory:
//!
//! ```
//! use std::sync::Arc;
//! use torchfs_core::layout::Profile;
//! use torchfs_core::meta::memory::MemoryMeta;
//! use torchfs_core::meta::{MetaOp, MetaSession};
//! use torchfs_core::placement::FailureDomain;
//! use torchfs_core::shard::memory::MemoryStores;
//! use torchfs_core::{Client, ClusterId, NodeId, NodeUuid, Result};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let meta = Arc::new(MemoryMeta::new(ClusterId::random(), Profile::DEFAULT));
//! for number in 1..=6 {
//!     let addr = format!("node {number}");
//!     let (uuid, domain) = (NodeUuid::random(), FailureDomain::default());
//!     MetaSession::new(meta.clone()).apply(MetaOp::Register { uuid, addr, domain, capacity_bytes: 1 << 30 }).await?;
//! }
//! let stores = Arc::new(MemoryStores::with_nodes(6));
//! let client = Client::builder().over(meta, stores.clone()).await?;
//!
//! client.mkdir_all("/data/train").await?;
//! let file = client.create("/data/train/labels").await?;
//! file.write_at(0, "cat dog cat".into()).await?;
//! file.commit().await?; // Durable, and visible to others, only now.
//!
//! stores.set_down(NodeId(1)); // Any two of the six nodes may be missing.
//! stores.set_down(NodeId(4));
//! assert_eq!(client.read_file("/data/train/labels").await?, "cat dog cat");
//! # Ok(())
//! # }
//! ```
//!
//! Against a real cluster it is `Client::connect(["meta1:7100", "meta2:7100"])`, and all else is the same.

pub mod cache;
pub mod checksum;
pub mod client;
pub mod erasure;
mod error;
pub mod folder;
mod gather;
mod ids;
pub mod layout;
pub mod meta;
pub mod observe;
pub mod placement;
pub mod prefetch;
pub mod rpc;
pub mod settings;
pub mod shard;
pub mod sim;
pub mod stripe;
pub mod trace;

pub use client::{Announced, Client, ClientBuilder, EpochOrder, File, OpenMode, PathList, Pin, WarmOrder, Warming};
pub use error::{Context, Error, IoContext, Kind, Result};
pub use ids::{
    ClientId, ClusterId, InodeId, MapVersion, MetaId, NodeId, NodeUuid, RequestId, ShardId, StripeId, Version,
};
