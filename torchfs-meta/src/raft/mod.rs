//! Raft between the metadata nodes. No other folder knows openraft.
//!
//! Log and state machine are two stores in two folders, because an append has to be on disk before it counts and an apply
//! has not: in one journal every apply would wait for the appends' disk writes.
//! - The **log** ([`log`]) is synchronous: one disk write per group of appends.
//! - The **state** ([`machine`]) is not: it carries the id of the last entry it reflects in the same batch as the
//!   entry's changes, so after a power cut it is a consistent older state and the log catches it up. That is why the log
//!   is purged only after the state was synchronised.

mod consensus;
mod gate;
mod joining;
mod log;
mod machine;
mod network;
mod peer;
#[cfg(test)]
mod raft_test;
mod snapshot;

pub use self::consensus::{Compaction, Consensus, Place, Refused, Standing};
pub use self::log::LogStore;
pub use self::machine::{StateMachine, StateStore};
pub use self::network::Peers;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::fmt;
use torchfs_core::meta::{Command, MetaReply, Timestamp};
use torchfs_core::{Error, Kind, Result};

openraft::declare_raft_types!(
    /// The types of our Raft.
    pub TypeConfig:
        D = Proposal,
        R = Applied,
);

/// An entry of the log.
pub type Entry = openraft::type_config::alias::EntryOf<TypeConfig>;
/// The id of an entry.
pub type LogId = openraft::type_config::alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = openraft::type_config::alias::VoteOf<TypeConfig>;
/// The metadata nodes, and which entry said so.
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<TypeConfig>;

/// What a leader proposes: a command and the leader's time, encoded once and carried as bytes from there on.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    encoded: Bytes,
}

impl Proposal {
    /// Encodes a proposal.
    ///
    /// # Errors
    /// Never in practice: everything in a command can be encoded.
    pub fn new(time: Timestamp, command: &Command) -> Result<Self> {
        Ok(Proposal { encoded: encode(&(time, command))?.into() })
    }

    /// The leader's time and the command.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] if this is not a proposal of this version.
    pub fn decode(&self) -> Result<(Timestamp, Command)> {
        decode(&self.encoded, "a log entry")
    }

    /// Bytes of it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.encoded.len()
    }

    /// Whether it has no bytes, which no proposal has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.encoded.is_empty()
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "proposal of {} bytes", self.encoded.len())
    }
}

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What came of a proposal: the outcome goes to whoever proposed it, be it good or bad.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Applied(pub Result<MetaReply, Error>);

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    postcard::to_allocvec(value).map_err(|error| Error::caused(Kind::Protocol, "encode", error))
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T> {
    postcard::from_bytes(bytes).map_err(|error| Error::caused(Kind::Corrupt, format!("decode {what}"), error))
}

/// Raft has ended.
fn stopped(error: impl fmt::Display) -> Error {
    Error::new(Kind::Unavailable, format!("the metadata node has stopped: {error}"))
}

/// Our errors as openraft takes them from a store.
fn storage(error: Error) -> std::io::Error {
    std::io::Error::other(error)
}
