//! The metadata node of TorchFS: the namespace, ordered by Raft, on an embedded key-value store.
//!
//! [`state`] is the pure state machine; [`raft`] orders what it applies; [`kv`] keeps both on disk; [`node`] is a node from
//! its data folder to its port.

mod duties;
mod identity;
pub mod kv;
pub mod node;
mod nodes;
mod propose;
pub mod raft;
mod service;
mod settings;
pub mod state;
mod stripes;

pub use node::{MetaConfig, MetaNode};
pub use settings::MetaSettings;
