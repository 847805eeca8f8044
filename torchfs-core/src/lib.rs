//! TorchFS as a library (being written).

pub mod cache;
pub mod checksum;
pub mod client;
pub mod erasure;
mod error;
mod ids;
pub mod layout;
pub mod meta;
pub mod placement;
pub mod rpc;
pub mod settings;
pub mod shard;
pub mod stripe;

pub use client::{Client, ClientBuilder, File, OpenMode};
pub use error::{Context, Error, IoContext, Kind, Result};
pub use ids::{
    ClientId, ClusterId, InodeId, MapVersion, MetaId, NodeId, NodeUuid, RequestId, ShardId, StripeId, Version,
};
