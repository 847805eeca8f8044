//! Three metadata nodes in one process: elections, restarts, redirects, replicas.

mod support;

use support::{Cluster, folder, name};
use torchfs_core::meta::IfExists;
use torchfs_core::{InodeId, Kind};
use torchfs_meta::MetaSettings;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_elects_a_leader_and_applies() {
    let cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    let attr = session.create(InodeId::ROOT, name("a"), folder(), IfExists::Fail).await.expect("creates");
    assert_eq!(session.lookup(InodeId::ROOT, name("a")).await.expect("is there"), attr);
    let again = session.create(InodeId::ROOT, name("a"), folder(), IfExists::Fail).await.expect_err("exists");
    assert_eq!(again.kind(), Kind::Exists);
    let status = session.status().await.expect("status");
    assert_eq!(status.metas.len(), 3);
}
