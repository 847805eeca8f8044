//! [`fsck`]: whether the records agree with each other. Reads everything; for tests and for a stopped cluster.

use super::inode::counters;
use super::keys;
use super::record::{Body, Counters, Entry, Inode, StripeRecord};
use super::stripe::garbage_bytes;
use super::tx::{Outcome, Tx, decode};
use super::xattr::{list_bytes, name_in};
use crate::kv::KvRead;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use torchfs_core::layout::Extent;
use torchfs_core::meta::{FileKind, Name, NodeRecord, XattrName};
use torchfs_core::{InodeId, Result, StripeId};

/// Every rule that the records break, in words; none if all is well.
///
/// # Errors
/// If the store fails or a record cannot be read.
pub fn fsck(view: &dyn KvRead) -> Result<Vec<String>> {
    let tx = Tx::new(view);
    let mut check = Check::read(&tx)?;
    check.names();
    check.folders();
    check.orphans(&tx)?;
    check.contents();
    check.xattrs(&tx)?;
    check.stripes(&tx)?;
    check.totals();
    Ok(check.wrong)
}

struct Check {
    counters: Counters,
    inodes: BTreeMap<u64, Inode>,
    /// (folder, name as text, entry).
    entries: Vec<(u64, String, Entry)>,
    extents: BTreeMap<u64, Vec<(u64, Vec<Extent>)>>,
    stripes: BTreeMap<u64, StripeRecord>,
    nodes: BTreeSet<u32>,
    wrong: Vec<String>,
}

fn table(tx: &Tx<'_>, table: u8) -> Outcome<Vec<(Vec<u8>, Vec<u8>)>> {
    tx.scan(&[table], &[table + 1], usize::MAX)
}

/// The number that follows the table's byte.
fn first_number(key: &[u8]) -> u64 {
    key.get(1..9).and_then(keys::last_number).unwrap_or(0)
}

fn numbered<T: DeserializeOwned>(tx: &Tx<'_>, which: u8) -> Outcome<BTreeMap<u64, T>> {
    table(tx, which)?.iter().map(|(key, bytes)| Ok((first_number(key), decode(key, bytes)?))).collect()
}

fn key_set(tx: &Tx<'_>, which: u8) -> Outcome<BTreeSet<Vec<u8>>> {
    Ok(table(tx, which)?.into_iter().map(|(key, _)| key).collect())
}

impl Check {
    fn read(tx: &Tx<'_>) -> Outcome<Self> {
        let mut entries = Vec::new();
        for (key, bytes) in table(tx, keys::ENTRIES)? {
            let name: Name = name_in(&key, &key[..9.min(key.len())])?;
            entries.push((first_number(&key), name.to_string(), decode(&key, &bytes)?));
        }
        let mut extents: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for (key, bytes) in table(tx, keys::EXTENTS)? {
            let chunk = (keys::last_number(&key).unwrap_or(0), decode(&key, &bytes)?);
            extents.entry(first_number(&key)).or_default().push(chunk);
        }
        let nodes = table(tx, keys::NODES)?;
        let nodes = nodes.iter().map(|(key, bytes)| Ok(decode::<NodeRecord>(key, bytes)?.id.0));
        Ok(Check {
            counters: counters(tx)?,
            inodes: numbered(tx, keys::INODES)?,
            entries,
            extents,
            stripes: numbered(tx, keys::STRIPES)?,
            nodes: nodes.collect::<Outcome<_>>()?,
            wrong: Vec::new(),
        })
    }

    fn expect(&mut self, holds: impl Into<Option<bool>>, otherwise: impl FnOnce() -> String) {
        if holds.into() != Some(true) {
            self.wrong.push(otherwise());
        }
    }

    fn names(&mut self) {
        let mut names: BTreeMap<u64, u32> = BTreeMap::new();
        for (folder, name, entry) in self.entries.clone() {
            *names.entry(entry.ino.0).or_default() += 1;
            let kind = self.inodes.get(&entry.ino.0).map(Inode::kind);
            self.expect(kind == Some(entry.kind), || format!("'{name}' in {folder} is {entry:?}, its inode {kind:?}"));
            let in_folder = self.inodes.get(&folder).is_some_and(|folder| folder.is_folder() && folder.nlink > 0);
            self.expect(in_folder, || format!("'{name}' is in {folder}, which is not a folder with a name"));
        }
        for (ino, inode) in self.inodes.clone() {
            let found = names.get(&ino).copied().unwrap_or(0);
            let expected = match inode.is_folder() {
                true if ino == InodeId::ROOT.0 => 0,
                true => u32::from(inode.nlink > 0),
                false => inode.nlink,
            };
            self.expect(found == expected, || format!("inode {ino} has {found} names, should have {expected}"));
            self.expect(ino < self.counters.next_inode, || format!("inode {ino} was never handed out"));
        }
    }

    fn folders(&mut self) {
        let (mut sizes, mut subfolders): (BTreeMap<u64, u64>, BTreeMap<u64, u32>) = Default::default();
        for (folder, name, entry) in self.entries.clone() {
            *sizes.entry(folder).or_default() += 1;
            if entry.kind == FileKind::Directory {
                *subfolders.entry(folder).or_default() += 1;
                let parent = match self.inodes.get(&entry.ino.0).map(|inode| &inode.body) {
                    Some(Body::Directory { parent, .. }) => parent.0,
                    _ => 0,
                };
                self.expect(parent == folder, || {
                    format!("folder '{name}' is in {folder} and thinks it is in {parent}")
                });
            }
        }
        for (ino, inode) in self.inodes.clone().into_iter().filter(|(_, inode)| inode.is_folder() && inode.nlink > 0) {
            let (size, subfolders) = (sizes.get(&ino).unwrap_or(&0), subfolders.get(&ino).unwrap_or(&0));
            self.expect(inode.size == *size, || format!("folder {ino} counts {}, has {size} entries", inode.size));
            self.expect(inode.nlink == 2 + subfolders, || format!("folder {ino} has nlink {}", inode.nlink));
        }
    }

    fn orphans(&mut self, tx: &Tx<'_>) -> Outcome<()> {
        let queued = key_set(tx, keys::ORPHANS)?;
        let orphans = self.inodes.iter().filter(|(_, inode)| inode.nlink == 0);
        let since = |inode: &Inode| inode.orphan_since.unwrap_or_default();
        let expected: BTreeSet<_> = orphans.map(|(&ino, inode)| keys::orphan(since(inode), InodeId(ino))).collect();
        self.expect(queued == expected, || "the queue of inodes without a name is not what the inodes say".to_owned());
        Ok(())
    }

    fn contents(&mut self) {
        let mut live: BTreeMap<u64, u64> = BTreeMap::new();
        for (ino, chunks) in self.extents.clone() {
            let mut end = 0;
            for (key_end, chunk) in &chunks {
                for extent in chunk {
                    self.expect(extent.len > 0 && extent.offset >= end, || {
                        format!("inode {ino}: {extent:?} is out of order")
                    });
                    end = extent.end();
                    *live.entry(extent.stripe.0).or_default() += u64::from(extent.len);
                }
                self.expect(*key_end == end, || format!("inode {ino}: a chunk ends at {end}, its key says {key_end}"));
            }
            let size = self.inodes.get(&ino).filter(|inode| inode.kind() == FileKind::File).map(|inode| inode.size);
            self.expect(size.map(|size| end <= size), || format!("inode {ino}: extents to {end}, size {size:?}"));
        }
        for (ino, inode) in self.inodes.clone() {
            let extents = self.extents.get(&ino).into_iter().flatten().flat_map(|(_, chunk)| chunk);
            let allocated: u64 = extents.map(|extent| u64::from(extent.len)).sum();
            self.expect(inode.allocated == allocated, || {
                format!("inode {ino} counts {} of {allocated}", inode.allocated)
            });
        }
        for id in live.keys().filter(|id| !self.stripes.contains_key(id)).copied().collect::<Vec<_>>() {
            self.wrong.push(format!("stripe {} is named and not there", StripeId(id)));
        }
        for (id, record) in self.stripes.clone() {
            let found = live.get(&id).copied().unwrap_or(0);
            let garbage = record.garbage_since.is_some();
            self.expect(record.live_bytes == found, || format!("stripe {id} counts {} of {found}", record.live_bytes));
            self.expect(garbage == (found == 0), || format!("stripe {id}: garbage {garbage}, {found} live bytes"));
        }
    }

    fn xattrs(&mut self, tx: &Tx<'_>) -> Outcome<()> {
        let mut bytes: BTreeMap<u64, u32> = BTreeMap::new();
        for (key, _) in table(tx, keys::XATTRS)? {
            let name: XattrName = name_in(&key, &key[..9.min(key.len())])?;
            *bytes.entry(first_number(&key)).or_default() += list_bytes(&name);
        }
        for (ino, inode) in self.inodes.clone() {
            let found = bytes.remove(&ino).unwrap_or(0);
            self.expect(inode.xattr_bytes == found, || format!("inode {ino}: names of attributes take {found}"));
        }
        self.expect(bytes.is_empty(), || format!("attributes of inodes that are not there: {bytes:?}"));
        Ok(())
    }

    fn stripes(&mut self, tx: &Tx<'_>) -> Outcome<()> {
        let (mut of_node, mut flawed, mut garbage) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for (id, record) in self.stripes.clone() {
            let stripe = &record.stripe;
            self.expect(stripe.id.0 == id, || format!("stripe {id} says it is {}", stripe.id.0));
            self.expect(stripe.id < self.counters.next_stripe, || format!("stripe {id} was never handed out"));
            for (index, node) in stripe.nodes.iter().enumerate() {
                let Some(node) = node else { continue };
                self.expect(self.nodes.contains(&node.0), || format!("stripe {id} is on node {node}, not known"));
                match record.garbage_since {
                    Some(since) => garbage.insert(keys::garbage(*node, since, stripe.shard(index))),
                    None => of_node.insert(keys::stripe_of_node(*node, stripe.id)),
                };
            }
            if record.garbage_since.is_none() && record.is_flawed() {
                flawed.insert(keys::flawed(stripe.id));
            }
        }
        let is_trimmed =
            |key: &Vec<u8>| self.stripes.get(&first_number(key)).is_some_and(|record| record.garbage_since.is_none());
        let trimmed = key_set(tx, keys::TRIMMED)?.iter().all(is_trimmed);
        self.expect(trimmed, || "a stripe that is not in use is noted as trimmed".to_owned());
        let of_garbage = self.stripes.values().filter(|record| record.garbage_since.is_some());
        let (bytes, counted) = (of_garbage.map(StripeRecord::stored_bytes).sum::<u64>(), garbage_bytes(tx)?);
        self.expect(counted == bytes, || format!("{counted} bytes of garbage are counted, should be {bytes}"));
        let tables = [(keys::STRIPES_OF_NODE, of_node), (keys::FLAWED, flawed), (keys::GARBAGE, garbage)];
        for (which, expected) in tables {
            let found = key_set(tx, which)?;
            self.expect(found == expected, || format!("table {which:#x} of stripes is not what the stripes say"));
        }
        for id in key_set(tx, keys::FORGOTTEN)?.iter().map(|key| first_number(key)) {
            self.expect(!self.stripes.contains_key(&id), || format!("stripe {id} is forgotten and there"));
        }
        Ok(())
    }

    fn totals(&mut self) {
        let named: Vec<_> = self.inodes.values().filter(|inode| inode.nlink > 0).collect();
        let files = named.iter().filter(|inode| inode.kind() == FileKind::File);
        let live = || self.stripes.values().filter(|record| record.garbage_since.is_none());
        let expected = Counters {
            inodes: named.len() as u64,
            files: files.clone().count() as u64,
            bytes: files.map(|inode| u128::from(inode.size)).sum(),
            stripes: live().count() as u64,
            stored_bytes: live().map(StripeRecord::stored_bytes).sum(),
            bad_shards: live().map(|record| u64::from(record.bad.count_ones())).sum(),
            ..self.counters.clone()
        };
        if self.counters != expected {
            self.wrong.push(format!("totals {:?}, should be {expected:?}", self.counters));
        }
    }
}
