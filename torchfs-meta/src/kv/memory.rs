//! A store in memory, for tests and for embedding without a disk. Nothing survives it.

use super::{Durability, Entry, Kv, KvRead, WriteBatch};
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use torchfs_core::Result;

type Tree = BTreeMap<Vec<u8>, Vec<u8>>;

/// An ordered map behind a lock. A view shares the map; the first write after it copies the map once.
#[derive(Debug, Default)]
pub struct MemoryKv {
    tree: RwLock<Arc<Tree>>,
}

#[derive(Debug)]
struct MemoryView(Arc<Tree>);

impl MemoryKv {
    /// An empty store.
    #[must_use]
    pub fn new() -> Self {
        MemoryKv::default()
    }

    fn snapshot(&self) -> Arc<Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn scan(tree: &Tree, from: &[u8], to: &[u8], limit: usize) -> Vec<Entry> {
    if from >= to {
        return Vec::new();
    }
    let range = tree.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
    range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
}

impl KvRead for MemoryKv {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.tree.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Entry>> {
        Ok(scan(&self.tree.read().unwrap_or_else(PoisonError::into_inner), from, to, limit))
    }
}

impl KvRead for MemoryView {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Entry>> {
        Ok(scan(&self.0, from, to, limit))
    }
}

impl Kv for MemoryKv {
    fn write(&self, batch: WriteBatch, _durability: Durability) -> Result<()> {
        let mut guard = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        let tree = Arc::make_mut(&mut guard);
        for (key, change) in batch.changes {
            match change {
                Some(value) => tree.insert(key, value),
                None => tree.remove(&key),
            };
        }
        Ok(())
    }

    fn view(&self) -> Result<Box<dyn KvRead>> {
        Ok(Box::new(MemoryView(self.snapshot())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(kv: &MemoryKv, key: &[u8], value: Option<&[u8]>) {
        let changes = vec![(key.to_vec(), value.map(<[u8]>::to_vec))];
        kv.write(WriteBatch { changes }, Durability::Process).expect("writes");
    }

    #[test]
    fn a_view_does_not_see_later_writes() {
        let kv = MemoryKv::new();
        put(&kv, b"a", Some(b"1"));
        let view = kv.view().expect("view");
        put(&kv, b"a", None);
        put(&kv, b"b", Some(b"2"));
        assert_eq!(view.get(b"a").expect("reads"), Some(b"1".to_vec()));
        assert_eq!(view.scan(b"", b"z", 9).expect("scans"), [(b"a".to_vec(), b"1".to_vec())]);
        assert_eq!(kv.get(b"a").expect("reads"), None);
        assert_eq!(kv.scan(b"b", b"c", 9).expect("scans"), [(b"b".to_vec(), b"2".to_vec())]);
        assert_eq!(kv.scan(b"c", b"b", 9).expect("an empty range"), []);
    }
}
