//! Identifiers. Each is its own type, so that two numbers of different meaning cannot be swapped.
//!
//! Ids come from the wire as numbers, never as text that could be joined into a path.

use crate::error::{Error, Kind, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }
    };
}

id!(
    /// One cluster; drawn at random when its metadata is first made, checked on every connection.
    ClusterId(u128), "{:032x}"
);
id!(
    /// A metadata node: its Raft id, given by the operator.
    MetaId(u64), "{}"
);
id!(
    /// A storage node, numbered from 1 by the metadata cluster when the node first registers.
    NodeId(u32), "{}"
);
id!(
    /// What a storage node keeps in its data folder to prove that it is the same node after a restart.
    NodeUuid(u128), "{:032x}"
);
id!(
    /// A file, folder or link. Never reused. The root folder is 1.
    InodeId(u64), "{}"
);
id!(
    /// A stripe. Handed out in rising order and never reused.
    StripeId(u64), "{:016x}"
);
id!(
    /// One running client; drawn at random when it connects.
    ClientId(u64), "{:016x}"
);
id!(
    /// How often a file's content was committed. Content is cached by (inode, version).
    Version(u64), "{}"
);
id!(
    /// How often the cluster map has changed.
    MapVersion(u64), "{}"
);

impl InodeId {
    /// The root folder.
    pub const ROOT: InodeId = InodeId(1);
}

impl Version {
    /// A file that nothing was ever committed to, which is empty.
    pub const NEW: Version = Version(0);
}

macro_rules! random_id {
    ($name:ident) => {
        impl $name {
            /// Draws an id; the chance of drawing one twice is negligible.
            #[must_use]
            pub fn random() -> Self {
                Self(rand::random())
            }
        }
    };
}
random_id!(ClusterId);
random_id!(NodeUuid);
random_id!(ClientId);

/// One mutation by one client. A retry carries the same id, so it is applied once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Who asks.
    pub client: ClientId,
    /// Counts up from 1 within the client.
    pub sequence: u64,
}

/// One of the k+m pieces of a stripe: indices 0..k are data, k..k+m parity.
///
/// Written `<16 hex digits>-<2 decimal digits>`, which is also the name of its file on a storage node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ShardId {
    /// The stripe.
    pub stripe: StripeId,
    /// Position in the stripe.
    pub index: u8,
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:02}", self.stripe, self.index)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShardId({self})")
    }
}

impl FromStr for ShardId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parsed = text.split_once('-').and_then(|(stripe, index)| {
            let stripe = u64::from_str_radix(stripe, 16).ok()?;
            Some(ShardId { stripe: StripeId(stripe), index: index.parse().ok()? })
        });
        match parsed {
            Some(id) if id.to_string() == text => Ok(id),
            _ => Err(Error::new(Kind::InvalidInput, format!("'{text}' is not a shard id"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_id_text_is_exact_both_ways() {
        let id = ShardId { stripe: StripeId(0xabc), index: 5 };
        assert_eq!(id.to_string(), "0000000000000abc-05");
        assert_eq!(id.to_string().parse::<ShardId>().expect("parses"), id);
        for bad in ["", "abc-5", "../../etc/passwd", "0000000000000abc-5", "0000000000000ABC-05", "+000000000000abc-05"]
        {
            assert!(bad.parse::<ShardId>().is_err(), "{bad}");
        }
    }
}
