//! The disk engine as its users see it.

use super::*;
use torchfs_core::shard::conformance;
use torchfs_core::{ClusterId, NodeId};

const CLUSTER: ClusterId = ClusterId(0xc1);

fn open(path: &Path) -> DiskStore {
    let store = DiskStore::open(path, None).expect("opens");
    store.register(Registration { cluster: CLUSTER, node: NodeId(1) }).expect("registers");
    store
}

#[tokio::test]
async fn it_conforms() {
    let root = tempfile::tempdir().expect("temp folder");
    conformance::suite(Arc::new(open(root.path()))).await;
}
