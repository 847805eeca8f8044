//! The embedded key-value store boundary: ordered keys, atomic batches, consistent views.
//!
//! Synchronous, because both implementations answer from memory or the local disk; callers on the async runtime move long
//! work off its threads.

#[cfg(test)]
pub(crate) mod conformance;
mod fjall;
pub mod memory;

pub use self::fjall::{Closing, FjallKv, FjallStore};

use std::fmt::Debug;
use torchfs_core::Result;

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// A key that is larger than every key in use: names, and numbers after a tag of one byte, all end earlier.
pub const END: [u8; 16] = [0xff; 16];

/// Reading, of a live store or of a view of it.
pub trait KvRead: Debug + Send + Sync {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>>;

    /// At most `limit` entries with `from <= key < to`, in rising byte order of the keys.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Entry>>;
}

/// Changes that become visible and durable together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriteBatch {
    /// `Some` puts, `None` deletes; of two changes to one key the later one counts.
    pub changes: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

/// How far a write has got when it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Survives the end of the process, perhaps not a power cut. Batches are lost only from the end, never from the middle.
    Process,
    /// Survives a power cut, and so does every batch before it.
    Disk,
}

/// One ordered key space that can be written.
pub trait Kv: KvRead {
    /// Applies a batch atomically.
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<()>;

    /// A consistent view of this moment.
    fn view(&self) -> Result<Box<dyn KvRead>>;
}
