//! [`Tx`]: writes that are pending over a store that is only read, with savepoints.
//!
//! Every access of the state machine to the store goes through here, so that here alone a failure of the store becomes
//! [`Abort::Broken`] and cannot be taken for the outcome of an operation.

use crate::kv::{Entry, KvRead, WriteBatch};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::ops::Bound;
use torchfs_core::{Error, Kind, Result};

/// The first byte of every record: the version of its format.
const FORMAT: u8 = 1;

/// Why an operation did not complete.
#[derive(Debug)]
pub(super) enum Abort {
    /// The operation's outcome is this error, on every replica alike.
    Outcome(Error),
    /// This replica's store failed or holds what cannot be.
    Broken(Error),
}

/// Errors of checks are outcomes; those of the store are told apart inside [`Tx`].
impl From<Error> for Abort {
    fn from(error: Error) -> Self {
        Abort::Outcome(error)
    }
}

impl From<Abort> for Error {
    fn from(abort: Abort) -> Self {
        match abort {
            Abort::Outcome(error) | Abort::Broken(error) => error,
        }
    }
}

/// What steps of an operation return.
pub(super) type Outcome<T> = Result<T, Abort>;

/// An outcome error.
pub(super) fn fail<T>(kind: Kind, message: impl Into<String>) -> Outcome<T> {
    Err(Abort::Outcome(Error::new(kind, message)))
}

/// A record that cannot be.
pub(super) fn broken<T>(message: impl Into<String>) -> Outcome<T> {
    Err(Abort::Broken(Error::new(Kind::Corrupt, message)))
}

/// Encodes a record with its format byte.
pub(super) fn encode<T: Serialize>(record: &T) -> Outcome<Vec<u8>> {
    postcard::to_extend(record, vec![FORMAT])
        .map_err(|error| Abort::Broken(Error::caused(Kind::Corrupt, "encode a metadata record", error)))
}

/// Decodes what [`encode`] made.
pub(super) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Outcome<T> {
    let Some((&FORMAT, body)) = bytes.split_first() else {
        let message = format!(
            "metadata record {key:02x?} is not of format {FORMAT}; this program is too old or the disk is damaged"
        );
        return broken(message);
    };
    match postcard::take_from_bytes(body) {
        Ok((record, [])) => Ok(record),
        Ok((_, rest)) => broken(format!("metadata record {key:02x?} has {} bytes too many", rest.len())),
        Err(error) => {
            let message = format!("metadata record {key:02x?} cannot be read");
            Err(Abort::Broken(Error::caused(Kind::Corrupt, message, error)))
        }
    }
}

/// A value to be put, or that the key is to be deleted.
type Pending = Option<Vec<u8>>;

/// Pending writes over a view.
#[derive(Debug)]
pub(super) struct Tx<'a> {
    base: &'a dyn KvRead,
    pending: BTreeMap<Vec<u8>, Pending>,
    /// What each write replaced in `pending`, newest last.
    undo: Vec<(Vec<u8>, Option<Pending>)>,
}

/// A point to roll back to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Savepoint(usize);

impl<'a> Tx<'a> {
    pub(super) fn new(base: &'a dyn KvRead) -> Self {
        Tx { base, pending: BTreeMap::new(), undo: Vec::new() }
    }

    pub(super) fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Outcome<Option<T>> {
        match self.pending.get(key) {
            Some(None) => Ok(None),
            Some(Some(bytes)) => decode(key, bytes).map(Some),
            None => self.base.get(key).map_err(Abort::Broken)?.map(|bytes| decode(key, &bytes)).transpose(),
        }
    }

    pub(super) fn put<T: Serialize>(&mut self, key: Vec<u8>, record: &T) -> Outcome<()> {
        let bytes = encode(record)?;
        self.change(key, Some(bytes));
        Ok(())
    }

    pub(super) fn delete(&mut self, key: Vec<u8>) {
        self.change(key, None);
    }

    fn change(&mut self, key: Vec<u8>, value: Pending) {
        let before = self.pending.insert(key.clone(), value);
        self.undo.push((key, before));
    }

    /// At most `limit` entries with `from <= key < to`, pending writes included.
    pub(super) fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Outcome<Vec<Entry>> {
        let mut found = Vec::new();
        let mut from = from.to_vec();
        while found.len() < limit && from.as_slice() < to {
            let wanted = limit - found.len();
            let stored = self.base.scan(&from, to, wanted).map_err(Abort::Broken)?;
            // Past the last stored entry of a full page only the next page knows what is stored.
            let next = (stored.len() == wanted).then(|| stored.last().map(|(key, _)| successor(key))).flatten();
            let end = next.clone().unwrap_or_else(|| to.to_vec());
            let room = limit - found.len();
            found.extend(self.overlay(stored, &from, &end).into_iter().take(room));
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        Ok(found)
    }

    fn overlay(&self, stored: Vec<Entry>, from: &[u8], to: &[u8]) -> Vec<Entry> {
        let range = (Bound::Included(from), Bound::Excluded(to));
        let mut pending = self.pending.range::<[u8], _>(range).peekable();
        if pending.peek().is_none() {
            return stored;
        }
        let mut merged: BTreeMap<Vec<u8>, Vec<u8>> = stored.into_iter().collect();
        for (key, value) in pending {
            match value {
                Some(value) => merged.insert(key.clone(), value.clone()),
                None => merged.remove(key),
            };
        }
        merged.into_iter().collect()
    }

    pub(super) fn savepoint(&self) -> Savepoint {
        Savepoint(self.undo.len())
    }

    pub(super) fn rollback(&mut self, to: Savepoint) {
        while self.undo.len() > to.0 {
            match self.undo.pop() {
                Some((key, Some(before))) => self.pending.insert(key, before),
                Some((key, None)) => self.pending.remove(&key),
                None => break,
            };
        }
    }

    /// The writes, in key order.
    pub(super) fn into_batch(self) -> WriteBatch {
        WriteBatch { changes: self.pending.into_iter().collect() }
    }
}

/// The smallest key after `key`.
pub(super) fn successor(key: &[u8]) -> Vec<u8> {
    let mut next = key.to_vec();
    next.push(0);
    next
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::memory::MemoryKv;
    use crate::kv::{Durability, Kv};

    #[test]
    fn scan_shows_the_store_as_if_the_writes_were_done() {
        let kv = MemoryKv::new();
        let stored = (0u8..20).map(|key| (vec![key], Some(encode(&key).expect("encodes"))));
        kv.write(WriteBatch { changes: stored.collect() }, Durability::Process).expect("writes");
        let mut tx = Tx::new(&kv);
        (0..10).for_each(|key| tx.delete(vec![key]));
        tx.put(vec![12, 0], &99u8).expect("puts");
        tx.put(vec![30], &30u8).expect("puts");
        for limit in 1..20 {
            let keys: Vec<_> = tx.scan(&[0], &[40], limit).expect("scans").into_iter().map(|(key, _)| key).collect();
            let all = (10..=12).map(|key| vec![key]).chain([vec![12, 0]]).chain((13..20).map(|key| vec![key]));
            assert_eq!(keys, all.chain([vec![30]]).take(limit).collect::<Vec<_>>());
        }
    }

    #[test]
    fn rollback_leaves_nothing_behind() {
        let kv = MemoryKv::new();
        let mut tx = Tx::new(&kv);
        tx.put(vec![1], &1u8).expect("puts");
        let savepoint = tx.savepoint();
        tx.put(vec![1], &2u8).expect("puts");
        tx.put(vec![2], &2u8).expect("puts");
        tx.delete(vec![1]);
        tx.rollback(savepoint);
        assert_eq!(tx.get::<u8>(&[1]).expect("reads"), Some(1));
        assert_eq!(tx.into_batch().changes.len(), 1);
    }

    #[test]
    fn a_record_of_another_format_or_length_breaks_the_store() {
        assert!(matches!(decode::<u8>(b"k", &[2, 7]), Err(Abort::Broken(_))));
        assert!(matches!(decode::<u8>(b"k", &[FORMAT, 7, 7]), Err(Abort::Broken(_))));
        assert!(matches!(decode::<u8>(b"k", &[]), Err(Abort::Broken(_))));
    }
}
