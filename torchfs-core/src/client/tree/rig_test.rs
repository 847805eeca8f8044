//! What the tests of copying stand on: a cluster in memory, and a way to compare two local trees.

use super::xattr::{self, Xattrs};
use crate::client::Client;
use crate::ids::{ClusterId, InodeId, NodeId, NodeUuid, Version};
use crate::layout::Profile;
use crate::meta::memory::MemoryMeta;
use crate::meta::{Attr, FileKind, MetaOp, MetaSession, Timestamp};
use crate::shard::fault::{Fault, FaultyStore};
use crate::shard::memory::{MemoryStore, MemoryStores};
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The attributes of an inode of which a test looks at the number and the kind only.
pub(super) fn attr(ino: u64, kind: FileKind) -> Attr {
    let time = Timestamp::default();
    Attr {
        ino: InodeId(ino),
        kind,
        mode: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: 0,
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        version: Version(1),
        rdev: 0,
        xattr_bytes: 0,
        profile: None,
    }
}

/// Six nodes in memory.
#[derive(Debug)]
pub(super) struct Rig {
    pub client: Client,
    pub faults: Vec<Arc<FaultyStore>>,
}

impl Rig {
    pub async fn new() -> Self {
        let meta = Arc::new(MemoryMeta::new(ClusterId(7), Profile::DEFAULT));
        let session = MetaSession::new(meta.clone());
        let stores = Arc::new(MemoryStores::default());
        let mut faults = Vec::new();
        for number in 1..=6 {
            let register = MetaOp::Register {
                uuid: NodeUuid(number.into()),
                addr: format!("node{number}:1"),
                domain: Default::default(),
                capacity_bytes: 1 << 40,
            };
            session.apply(register).await.expect("registers");
            let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::default())));
            stores.insert(NodeId(number), store.clone());
            faults.push(store);
        }
        let client = Client::builder().over(meta, stores).await.expect("a client");
        Rig { client, faults }
    }

    /// The first `count` nodes fail every request from now on; the others work.
    pub fn fail(&self, count: usize, fault: Fault) {
        for (at, store) in self.faults.iter().enumerate() {
            store.set((at < count).then_some(fault));
        }
    }

    /// Storage requests for reading since the last call.
    pub fn reads(&self) -> usize {
        self.faults.iter().map(|store| store.take_requests()).map(|requests| requests.get + requests.get_many).sum()
    }

    pub async fn put(&self, source: &Path, target: &str) -> super::TreeReport {
        let report = self.client.put_tree(source, target, Default::default()).await.expect("put");
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        report
    }

    pub async fn get(&self, source: &str, target: &Path) -> super::TreeReport {
        let report = self.client.get_tree(source, target, Default::default()).await.expect("get");
        assert!(report.failed.is_empty(), "{:?}", report.failed);
        report
    }
}

/// What a user sees of one entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    kind: &'static str,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    /// Of regular files; the path of the first of several names instead of a second copy.
    content: Option<Result<(u64, u32), PathBuf>>,
    target: Option<PathBuf>,
    pub xattrs: Xattrs,
}

/// A tree as a user sees it, by path relative to `root`.
pub(super) fn seen(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let mut tree = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    look(root, Path::new(""), &mut first_names, &mut tree);
    tree
}

fn look(root: &Path, path: &Path, first_names: &mut BTreeMap<u64, PathBuf>, tree: &mut BTreeMap<PathBuf, Seen>) {
    let full = if path == Path::new("") { root.to_owned() } else { root.join(path) };
    let found = std::fs::symlink_metadata(&full).expect("is there");
    let kind = found.file_type();
    let content = kind.is_file().then(|| match first_names.get(&found.ino()) {
        Some(first) => Err(first.clone()),
        None => {
            first_names.insert(found.ino(), path.to_owned());
            let bytes = std::fs::read(&full).expect("reads");
            Ok((bytes.len() as u64, crc32c::crc32c(&bytes)))
        }
    });
    let one = Seen {
        kind: match () {
            () if kind.is_file() => "file",
            () if kind.is_dir() => "folder",
            () if kind.is_symlink() => "link",
            () if kind.is_fifo() => "pipe",
            () if kind.is_socket() => "socket",
            () => "device",
        },
        mode: if kind.is_symlink() { 0 } else { found.mode() & 0o7777 },
        owner: (found.uid(), found.gid()),
        mtime: (found.mtime(), found.mtime_nsec()),
        content,
        target: kind.is_symlink().then(|| std::fs::read_link(&full).expect("a link")),
        xattrs: xattrs(&full),
    };
    tree.insert(path.to_owned(), one);
    if kind.is_dir() {
        let mut names: Vec<_> =
            std::fs::read_dir(&full).expect("lists").map(|entry| entry.expect("an entry").file_name()).collect();
        names.sort();
        names.iter().for_each(|name| look(root, &path.join(name), first_names, tree));
    }
}

fn xattrs(path: &Path) -> Xattrs {
    let mut xattrs = xattr::read(path).expect("reads attributes");
    xattrs.sort();
    xattrs
}

/// Asserts that two trees look the same, and tells the first difference.
#[track_caller]
pub(super) fn assert_same(left: &Path, right: &Path) {
    let (left, right) = (seen(left), seen(right));
    for (path, one) in &left {
        assert_eq!(Some(one), right.get(path), "{}", path.display());
    }
    assert_eq!(left.len(), right.len(), "only on the right: {:?}", right.keys().find(|path| !left.contains_key(*path)));
}

/// Bytes that depend on the seed and do not repeat every block.
pub(super) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes: Vec<u8> = (0..len.div_ceil(8)).flat_map(next).collect();
    bytes.truncate(len);
    bytes
}

pub(super) fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).expect("writes");
}
