//! Metadata nodes whose data folder was wiped: they do not vote before they have caught up.

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use support::{Cluster, PATIENCE, mkdir, names};
use tokio::net::TcpListener;
use tokio::time::timeout;
use torchfs_core::MetaId;
use torchfs_core::meta::MetaSession;
use torchfs_meta::MetaSettings;
use torchfs_meta::raft::Compaction;

async fn count(session: &MetaSession) -> usize {
    names(session).await.len()
}

/// Stops a node and takes everything it had stored.
async fn wipe(cluster: &mut Cluster, id: MetaId) {
    // Gently, so that nothing is still being written into the folder.
    cluster.stop(id).await;
    std::fs::remove_dir_all(cluster.data(id)).expect("wipes");
}

fn is_admitted(cluster: &Cluster, id: MetaId) -> bool {
    std::fs::read_to_string(cluster.data(id).join("node")).expect("reads").contains("admitted yes")
}

async fn wait_until_admitted(cluster: &Cluster, id: MetaId) {
    let begin = Instant::now();
    while !is_admitted(cluster, id) {
        assert!(begin.elapsed() < PATIENCE, "node {id} never votes");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The leader and the two others.
async fn roles(cluster: &Cluster) -> (MetaId, MetaId, MetaId) {
    let leader = cluster.leader().await;
    let others: Vec<MetaId> = cluster.peers.keys().copied().filter(|id| *id != leader).collect();
    (leader, others[0], others[1])
}

/// Two nodes have a name, one of them is wiped, the other is killed: the third, which never had it, does not lead with the
/// wiped one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_does_not_elect_a_leader_that_lacks_an_acknowledged_name() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    let (leader, wiped, behind) = roles(&cluster).await;
    cluster.settle().await;
    cluster.stop(behind).await;
    mkdir(&session, "acknowledged").await;
    wipe(&mut cluster, wiped).await;
    cluster.stop(leader).await;
    cluster.restart(wiped).await;
    cluster.restart(behind).await;
    // Longer than several elections take.
    tokio::time::sleep(Duration::from_secs(5)).await;
    for node in cluster.nodes.values() {
        // It may still remember the one that is stopped.
        assert!(node.leader().is_none_or(|id| id == leader), "nobody else can know what was acknowledged");
    }
    assert!(!is_admitted(&cluster, wiped));
    cluster.restart(leader).await;
    let session = cluster.session().await;
    assert_eq!(count(&session).await, 2);
    wait_until_admitted(&cluster, wiped).await;
    assert_eq!(cluster.leader().await, leader, "the only one that has everything");
}

/// A leader goes on with a follower that has lost everything, by its log or by a snapshot, and then that follower counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_catches_up_and_then_counts_again() {
    let compaction = Compaction { entries: 100, keep: 10 };
    let mut cluster = Cluster::start(3, MetaSettings { compaction, ..MetaSettings::default() }).await;
    let session = cluster.session().await;
    for round in 0..3u64 {
        for number in 0..80 {
            mkdir(&session, &format!("{round}-{number}")).await;
        }
        // The second round wipes the leader, the others a follower.
        let (leader, follower, _) = roles(&cluster).await;
        let wiped = if round == 1 { leader } else { follower };
        wipe(&mut cluster, wiped).await;
        cluster.restart(wiped).await;
        wait_until_admitted(&cluster, wiped).await;
        cluster.settle().await;
        // With another one away, nothing works without it.
        let away = *cluster.peers.keys().rfind(|id| **id != wiped).expect("another");
        cluster.kill(away);
        timeout(PATIENCE, mkdir(&session, &format!("after-{round}"))).await.expect("two of three work");
        assert_eq!(count(&session).await, 81 * (round as usize + 1));
        cluster.restart(away).await;
    }
}

/// What the leader says of each node.
async fn states(session: &MetaSession) -> BTreeMap<MetaId, String> {
    let status = session.status().await.expect("status");
    status.metas.into_iter().map(|meta| (meta.id, meta.state)).collect()
}

async fn wait_for_state(session: &MetaSession, id: MetaId, state: &str) {
    let begin = Instant::now();
    while states(session).await[&id] != state {
        assert!(begin.elapsed() < PATIENCE, "node {id} is never {state}: {:?}", states(session).await);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// It needs an answer of every peer, and one of them is away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_is_shown_as_joining_until_it_votes() {
    let mut cluster = Cluster::start(5, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    let (leader, wiped, away) = roles(&cluster).await;
    for id in [wiped, away] {
        wait_for_state(&session, id, "follower").await;
    }
    cluster.stop(away).await;
    wipe(&mut cluster, wiped).await;
    wait_for_state(&session, wiped, "down").await;
    cluster.restart(wiped).await;
    wait_for_state(&session, wiped, "joining").await;
    // Longer than it would take to catch up.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let now = states(&session).await;
    assert_eq!((now[&leader].as_str(), now[&wiped].as_str(), now[&away].as_str()), ("leader", "joining", "down"));
    cluster.restart(away).await;
    wait_for_state(&session, wiped, "follower").await;
    assert!(is_admitted(&cluster, wiped));
}

/// A machine is replaced by another one with another address: the others are restarted with it, one after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_replaced_by_one_at_another_address() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "before").await;
    let (leader, replaced, other) = roles(&cluster).await;
    wipe(&mut cluster, replaced).await;
    let free = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("bound").to_string();
    cluster.peers.insert(replaced, free.clone());
    cluster.restart(replaced).await;
    for id in [other, leader] {
        cluster.stop(id).await;
        cluster.restart(id).await;
    }
    wait_until_admitted(&cluster, replaced).await;
    let session = cluster.session().await;
    wait_for_state(&session, replaced, "follower").await;
    let status = session.status().await.expect("status");
    assert!(status.metas.iter().any(|meta| meta.id == replaced && meta.addr == free));
    cluster.kill(leader);
    timeout(PATIENCE, mkdir(&session, "after")).await.expect("two of three work");
    assert_eq!(count(&session).await, 2);
}

/// A node that was wiped before the cluster was formed has lost nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_wiped_before_the_cluster_is_formed_form_it() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    cluster.leader().await;
    cluster.stop_all().await;
    let ids: Vec<MetaId> = cluster.peers.keys().copied().collect();
    ids.iter().for_each(|id| std::fs::remove_dir_all(cluster.data(*id)).expect("wipes"));
    cluster.restart(ids[0]).await;
    cluster.restart(ids[1]).await;
    // They have met, and wait for the third.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.nodes.values().all(|node| node.leader().is_none()));
    wipe(&mut cluster, ids[0]).await;
    wipe(&mut cluster, ids[1]).await;
    for id in ids {
        cluster.restart(id).await;
    }
    mkdir(&cluster.session().await, "a").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_node_needs_nobody() {
    let mut cluster = Cluster::start(1, MetaSettings::default()).await;
    mkdir(&cluster.session().await, "a").await;
    cluster.stop(MetaId(1)).await;
    cluster.restart(MetaId(1)).await;
    assert_eq!(count(&cluster.session().await).await, 1);
}
