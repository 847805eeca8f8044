//! Metadata nodes whose data folder was copied, restored from a backup or set back: nothing acknowledged is lost.

mod support;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};
use support::{Cluster, PATIENCE, mkdir, names};
use tokio::net::TcpListener;
use tokio::time::timeout;
use torchfs_core::{Error, Kind, MetaId};
use torchfs_meta::{MetaConfig, MetaNode, MetaSettings};

fn expected(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(ToString::to_string).collect()
}

/// Everything in a folder, into another that is made if it is not there. What is there already keeps its inode.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("makes");
    for entry in std::fs::read_dir(from).expect("lists") {
        let entry = entry.expect("lists");
        let target = to.join(entry.file_name());
        if entry.file_type().expect("type").is_dir() {
            copy(&entry.path(), &target);
        } else {
            // A log may be deleted meanwhile by the node that works there.
            std::fs::copy(entry.path(), target).ok();
        }
    }
}

/// Everything in a folder but the file that tells a copy from the original, as a disk that is set back keeps it.
fn set_back(folder: &Path, backup: &Path) {
    for entry in std::fs::read_dir(folder).expect("lists") {
        let path = entry.expect("lists").path();
        if path.is_dir() {
            std::fs::remove_dir_all(path).expect("removes");
        } else if !path.ends_with("lock") {
            std::fs::remove_file(path).expect("removes");
        }
    }
    copy(backup, folder);
}

fn restore(folder: &Path, backup: &Path) {
    std::fs::remove_dir_all(folder).expect("removes");
    copy(backup, folder);
}

fn node_file(data: &Path) -> String {
    std::fs::read_to_string(data.join("node")).expect("reads")
}

fn is_admitted(data: &Path) -> bool {
    node_file(data).contains("admitted yes")
}

async fn wait_until_admitted(data: &Path) {
    let begin = Instant::now();
    while !is_admitted(data) {
        assert!(begin.elapsed() < PATIENCE, "{} never votes", data.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Until `peer` has heard of this process of the node.
async fn wait_until_known(cluster: &Cluster, node: MetaId, peer: MetaId) {
    let own = node_file(&cluster.data(node));
    let start = own.lines().filter_map(|line| line.strip_prefix("start ")).next_back().expect("a start").to_owned();
    let begin = Instant::now();
    while !node_file(&cluster.data(peer)).contains(&start) {
        assert!(begin.elapsed() < PATIENCE, "node {peer} never hears of node {node}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A copy of a node's folder, started at a port of its own.
async fn start_copy(cluster: &Cluster, id: MetaId) -> (MetaNode, MetaConfig) {
    let data = cluster.folder.path().join("copy");
    copy(&cluster.data(id), &data);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let config = MetaConfig { data, ..cluster.config(id) };
    (MetaNode::start_with(config.clone(), cluster.settings, listener).await.expect("starts"), config)
}

async fn end(node: &MetaNode) -> Error {
    timeout(PATIENCE, node.wait()).await.expect("ends").expect_err("by an error")
}

/// The leader and the two others.
async fn roles(cluster: &Cluster) -> (MetaId, MetaId, MetaId) {
    let leader = cluster.leader().await;
    let others: Vec<MetaId> = cluster.peers.keys().copied().filter(|id| *id != leader).collect();
    (leader, others[0], others[1])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_any_node_does_not_run_beside_its_original() {
    let cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    let (leader, follower, _) = roles(&cluster).await;
    for id in [leader, follower] {
        cluster.settle().await;
        let (second, config) = start_copy(&cluster, id).await;
        let error = end(&second).await;
        assert_eq!(error.kind(), Kind::Exists);
        assert!(error.to_string().contains(&cluster.peers[&id]), "names the original's address: {error}");
        assert!(!is_admitted(&config.data));
        second.shutdown().await;
        std::fs::remove_dir_all(&config.data).expect("removes");
        // The original goes on.
        mkdir(&session, &format!("beside-{id}")).await;
        cluster.settle().await;
        assert!(is_admitted(&cluster.data(id)));
    }
    assert_eq!(cluster.leader().await, leader, "nobody was disturbed");
    assert_eq!(names(&session).await.len(), 3);
}

/// The same with an empty folder: a second node of the same number.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_node_with_an_empty_folder_does_not_run_beside_the_first() {
    let cluster = Cluster::start(3, MetaSettings::default()).await;
    mkdir(&cluster.session().await, "before").await;
    let id = cluster.leader().await;
    let config = MetaConfig { data: cluster.folder.path().join("second"), ..cluster.config(id) };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let second = MetaNode::start_with(config, cluster.settings, listener).await.expect("starts");
    assert_eq!(end(&second).await.kind(), Kind::Exists);
    assert_eq!(cluster.leader().await, id);
}

/// Two nodes have a name; one of them is set back to before, the other is away: the third, which never had it, does not lead
/// with the one that has forgotten it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_in_place_of_what_was_newer_does_not_vote() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    let (leader, old, behind) = roles(&cluster).await;
    cluster.settle().await;
    let backup = cluster.folder.path().join("backup");
    // Taken while it runs, and it is not started again before it is lost: no start tells the two apart.
    copy(&cluster.data(old), &backup);
    cluster.stop(behind).await;
    mkdir(&session, "acknowledged").await;
    cluster.stop(old).await;
    cluster.stop(leader).await;
    restore(&cluster.data(old), &backup);
    cluster.restart(old).await;
    cluster.restart(behind).await;
    // Longer than several elections take.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for node in cluster.nodes.values() {
        assert!(node.leader().is_none_or(|id| id == leader), "nobody else can know what was acknowledged");
    }
    assert!(!is_admitted(&cluster.data(old)));
    cluster.restart(leader).await;
    let session = cluster.session().await;
    assert_eq!(names(&session).await, expected(&["before", "acknowledged"]));
    wait_until_admitted(&cluster.data(old)).await;
    cluster.kill(leader);
    mkdir(&session, "after").await;
    assert_eq!(names(&session).await, expected(&["before", "acknowledged", "after"]));
}

/// A disk that was set back to an older image looks like the same folder, but its peers have heard of a later start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_was_set_back_does_not_vote() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    let (leader, old, behind) = roles(&cluster).await;
    cluster.stop(old).await;
    let image = cluster.folder.path().join("image");
    copy(&cluster.data(old), &image);
    cluster.restart(old).await;
    mkdir(&session, "later").await;
    cluster.settle().await;
    wait_until_known(&cluster, old, behind).await;
    cluster.stop(behind).await;
    mkdir(&session, "acknowledged").await;
    cluster.stop(old).await;
    set_back(&cluster.data(old), &image);
    cluster.stop(leader).await;
    cluster.restart(behind).await;
    cluster.restart(old).await;
    let error = end(&cluster.nodes[&old]).await;
    assert_eq!(error.kind(), Kind::Exists);
    assert!(error.to_string().contains("out of date"), "{error}");
    assert!(cluster.nodes[&behind].leader().is_none_or(|id| id == leader));
    // As the error says, it may be started again.
    cluster.stop(old).await;
    cluster.restart(old).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!is_admitted(&cluster.data(old)) && cluster.nodes[&behind].leader().is_none_or(|id| id == leader));
    cluster.restart(leader).await;
    wait_until_admitted(&cluster.data(old)).await;
    assert_eq!(names(&cluster.session().await).await, expected(&["before", "later", "acknowledged"]));
}

/// Each of two peers reaches another one of the two processes that claim to be one node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_on_the_other_side_of_a_partition_does_not_vote() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    let (leader, original, far) = roles(&cluster).await;
    cluster.settle().await;
    let data = cluster.folder.path().join("copy");
    copy(&cluster.data(original), &data);
    mkdir(&session, "acknowledged").await;
    cluster.stop(far).await;
    // The copy and `far` reach each other; of the others, both take a port where nobody listens for their address.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let nobody = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("bound").to_string();
    let mut peers = cluster.peers.clone();
    peers.insert(original, listener.local_addr().expect("bound").to_string());
    peers.insert(leader, nobody);
    let whole = std::mem::replace(&mut cluster.peers, peers);
    let config = MetaConfig { data: data.clone(), ..cluster.config(original) };
    let second = MetaNode::start_with(config, cluster.settings, listener).await.expect("starts");
    cluster.restart(far).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!is_admitted(&data));
    assert!(second.leader().is_none_or(|id| id == leader), "no second leader");
    mkdir(&session, "still").await;
    second.shutdown().await;
    cluster.stop(far).await;
    // Whole again. The one that has listened to the copy does not listen to the original before it has caught up.
    cluster.peers = whole;
    cluster.restart(far).await;
    assert_eq!(end(&cluster.nodes[&original]).await.kind(), Kind::Exists);
    cluster.stop(original).await;
    cluster.restart(original).await;
    wait_until_admitted(&cluster.data(original)).await;
    cluster.stop(leader).await;
    mkdir(&session, "after").await;
    assert_eq!(names(&session).await, expected(&["before", "acknowledged", "still", "after"]));
}

/// A cluster moved to other disks: all folders are copies, of which two are older than the third.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_copies_goes_on_from_the_one_that_has_most() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    cluster.settle().await;
    let (leader, one, other) = roles(&cluster).await;
    let backup = |id: MetaId| cluster.folder.path().join(format!("backup-{id}"));
    copy(&cluster.data(one), &backup(one));
    copy(&cluster.data(other), &backup(other));
    mkdir(&session, "later").await;
    copy(&cluster.data(leader), &backup(leader));
    let backups = [leader, one, other].map(|id| (id, backup(id)));
    cluster.stop_all().await;
    for (id, backup) in backups {
        restore(&cluster.data(id), &backup);
        cluster.restart(id).await;
    }
    let session = cluster.session().await;
    mkdir(&session, "after").await;
    assert_eq!(names(&session).await, expected(&["before", "later", "after"]));
    for id in [leader, one, other] {
        wait_until_admitted(&cluster.data(id)).await;
    }
    // And they are ordinary nodes again.
    cluster.stop_all().await;
    for id in [one, other] {
        cluster.restart(id).await;
    }
    assert_eq!(names(&cluster.session().await).await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_majority_starts_without_the_others_and_those_come_back_later() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    mkdir(&cluster.session().await, "before").await;
    cluster.settle().await;
    let all: Vec<MetaId> = cluster.peers.keys().copied().collect();
    for away in &all {
        cluster.stop_all().await;
        // Several starts that the absent one does not hear of.
        for _ in 0..3 {
            for id in all.iter().filter(|id| *id != away) {
                cluster.restart(*id).await;
            }
            mkdir(&cluster.session().await, &format!("without-{away}-{}", rand::random::<u64>())).await;
            cluster.stop_all().await;
        }
        for id in &all {
            cluster.restart(*id).await;
        }
        cluster.leader().await;
        cluster.settle().await;
    }
    assert_eq!(names(&cluster.session().await).await.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_goes_on_from_a_copy() {
    let mut cluster = Cluster::start(1, MetaSettings::default()).await;
    mkdir(&cluster.session().await, "before").await;
    cluster.stop(MetaId(1)).await;
    let backup = cluster.folder.path().join("backup");
    copy(&cluster.data(MetaId(1)), &backup);
    restore(&cluster.data(MetaId(1)), &backup);
    cluster.restart(MetaId(1)).await;
    assert_eq!(names(&cluster.session().await).await, expected(&["before"]));
}
