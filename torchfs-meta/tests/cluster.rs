//! Three metadata nodes in one process: elections, restarts, redirects, replicas.

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Cluster, PATIENCE, folder, mkdir, name, names};
use torchfs_core::meta::{
    Change, Command, IfExists, InternalOp, MetaOp, MetaQuery, MetaReply, MetaSession, MetaStore, RenameMode, Timestamp,
};
use torchfs_core::rpc::MetaFault;
use torchfs_core::{ClientId, InodeId, Kind, RequestId};
use torchfs_meta::MetaSettings;
use torchfs_meta::kv::{END, Entry};
use torchfs_meta::raft::Compaction;

const ROOT: InodeId = InodeId::ROOT;

/// What all replicas hold. The leader changes something now and then by itself: then they are looked at again.
async fn equal_replicas(cluster: &Cluster) -> Vec<Entry> {
    let all =
        |node: &torchfs_meta::MetaNode| node.state().view().expect("view").scan(&[], &END, usize::MAX).expect("scans");
    let begin = Instant::now();
    loop {
        cluster.settle().await;
        let mut dumps: Vec<Vec<Entry>> = cluster.nodes.values().map(all).collect();
        if dumps.iter().all(|other| other == &dumps[0]) {
            return dumps.swap_remove(0);
        }
        assert!(begin.elapsed() < PATIENCE, "replicas differ");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn command(op: MetaOp) -> Command {
    Command { request: RequestId { client: ClientId::random(), sequence: 1 }, answered_below: 1, op }
}

fn mkdir_op(text: &str) -> MetaOp {
    MetaOp::Create { parent: ROOT, name: name(text), inode: folder(), if_exists: IfExists::Fail, content: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_cluster_elects_a_leader_and_applies() {
    let cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "a").await;
    assert_eq!(names(&session).await, BTreeSet::from(["a".to_string()]));
    let status = session.status().await.expect("status");
    assert_eq!(status.leader, cluster.leader().await);
    assert_eq!(status.metas.len(), 3);
    let states: Vec<_> = status.metas.iter().map(|meta| meta.state.as_str()).collect();
    assert_eq!(states.iter().filter(|&&state| state == "leader").count(), 1, "{states:?}");
}

/// After a clean restart of all nodes the namespace of the prototype was empty.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_all_nodes_were_restarted() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let all: Vec<_> = cluster.peers.keys().copied().collect();
    for round in 0..2 {
        let session = cluster.session().await;
        let before = names(&session).await;
        for number in 0..10 {
            mkdir(&session, &format!("{round}-{number}")).await;
        }
        assert_eq!(names(&session).await.len(), before.len() + 10);
        let cluster_id = session.status().await.expect("status").cluster;
        drop(session);
        if round == 0 {
            cluster.stop_all().await;
        } else {
            all.iter().for_each(|&id| cluster.kill(id));
        }
        for &id in &all {
            cluster.restart(id).await;
        }
        let session = cluster.session().await;
        assert_eq!(names(&session).await.len(), before.len() + 10);
        assert_eq!(session.status().await.expect("status").cluster, cluster_id);
        let taken = session.create(ROOT, name("0-0"), folder(), IfExists::Fail).await.expect_err("is there");
        assert_eq!(taken.kind(), Kind::Exists);
    }
}

/// A non-leader of the prototype answered remove and rename with success and did nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_name_the_leader_and_do_nothing() {
    let cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "a").await;
    let leader = cluster.leader().await;
    for (_, follower) in cluster.nodes.iter().filter(|(id, _)| **id != leader) {
        let service = follower.service();
        let rmdir = MetaOp::Rmdir { parent: ROOT, name: name("a") };
        let refused = [
            service.apply(command(rmdir)).await.expect_err("not the leader"),
            service.query(MetaQuery::Attr(ROOT)).await.expect_err("not the leader"),
        ];
        for fault in refused {
            let MetaFault::NotLeader(Some(hint)) = fault else { panic!("{fault:?}") };
            assert_eq!((hint.id, &hint.addr), (leader, &cluster.peers[&leader]));
        }
    }
    assert_eq!(names(&session).await.len(), 1);
}

/// The prototype logged errors inside apply and returned success.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_outcome_reaches_the_caller() {
    let cluster = Cluster::start(3, MetaSettings::default()).await;
    let session = cluster.session().await;
    mkdir(&session, "a").await;
    let exists = session.create(ROOT, name("a"), folder(), IfExists::Fail).await.expect_err("taken");
    assert_eq!(exists.kind(), Kind::Exists);
    let missing = session.rename((ROOT, name("b")), (ROOT, name("c")), RenameMode::Replace).await.expect_err("missing");
    assert_eq!(missing.kind(), Kind::NotFound);
    let replies = session.batch(vec![mkdir_op("a"), mkdir_op("b")]).await.expect("a batch");
    assert_eq!(replies[0].as_ref().expect_err("taken").kind(), Kind::Exists);
    assert!(matches!(replies[1], Ok(MetaReply::Named { .. })));
    let too_many = session.batch(vec![mkdir_op("x"); 1025]).await.expect_err("too many");
    assert_eq!(too_many.kind(), Kind::InvalidInput);
    let collect = InternalOp::Collect { before: Timestamp::default(), clients_before: Timestamp::default() };
    let internal = session.apply(MetaOp::Internal(collect)).await.expect_err("not for clients");
    assert_eq!(internal.kind(), Kind::NotPermitted);
}

/// One operation collects 256 inodes at most; with one a minute, the space of a large folder would come back after hours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_that_is_old_enough_is_collected_at_once() {
    let (garbage_grace, collect_interval) = (Duration::from_secs(1), Duration::from_secs(6));
    let settings = MetaSettings { garbage_grace, collect_interval, ..MetaSettings::default() };
    let cluster = Cluster::start(1, settings).await;
    let session = cluster.session().await;
    let mut made = Vec::new();
    for batch in 0..5 {
        let ops = (0..500).map(|number| mkdir_op(&format!("{batch}-{number}"))).collect();
        made.extend(session.batch(ops).await.expect("creates"));
    }
    let names = |batch| (0..500).map(move |number| name(&format!("{batch}-{number}")));
    for batch in 0..5 {
        let ops = names(batch).map(|name| MetaOp::Rmdir { parent: ROOT, name }).collect();
        assert!(session.batch(ops).await.expect("removes").iter().all(Result::is_ok));
    }
    let begin = Instant::now();
    for reply in made {
        let MetaReply::Named { attr, .. } = reply.expect("made") else { panic!("no attributes") };
        while session.attr(attr.ino).await.is_ok() {
            assert!(begin.elapsed() < Duration::from_secs(36), "inode {} is still there", attr.ino);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_that_comes_again_is_answered_as_before_also_by_another_leader() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let client = cluster.client().await;
    let command = command(mkdir_op("once"));
    let first = client.apply(command.clone()).await.expect("creates");
    assert_eq!(client.apply(command.clone()).await.expect("again"), first);
    let leader = cluster.leader().await;
    cluster.kill(leader);
    assert_eq!(client.apply(command).await.expect("from another leader"), first);
}

/// Followers are sent a snapshot when the entries they lack are purged; all replicas hold the same bytes in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_equal_byte_by_byte_also_one_restored_by_snapshot() {
    let compaction = Compaction { entries: 100, keep: 10 };
    let mut cluster = Cluster::start(3, MetaSettings { compaction, ..MetaSettings::default() }).await;
    let session = cluster.session().await;
    mkdir(&session, "first").await;
    let leader = cluster.leader().await;
    let lagging = *cluster.peers.keys().find(|&&id| id != leader).expect("a follower");
    cluster.stop(lagging).await;
    random_work(&session, 400).await;
    let begin = Instant::now();
    while cluster.nodes[&cluster.leader().await].consensus().purged().is_none_or(|index| index < 200) {
        assert!(begin.elapsed() < PATIENCE, "the log is never purged");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.restart(lagging).await;
    random_work(&session, 50).await;
    assert!(equal_replicas(&cluster).await.len() > 100);
    let snapshots = cluster.data(lagging).join("snapshots");
    assert_eq!(std::fs::read_dir(snapshots).expect("lists").count(), 1, "it has the snapshot and no leftover");
    // And it holds after a restart of the restored node.
    cluster.stop(lagging).await;
    cluster.restart(lagging).await;
    mkdir(&session, "last").await;
    equal_replicas(&cluster).await;
}

/// Creates, renames and removals of numbered names; some of them fail, which is part of it.
async fn random_work(session: &MetaSession, count: u64) {
    let mut random = count;
    let mut next = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    for _ in 0..count {
        let (one, other) = (name(&format!("n{}", next(200))), name(&format!("n{}", next(200))));
        let outcome = match next(6) {
            0 => session.rmdir(ROOT, one).await.err(),
            1 => session.rename((ROOT, one), (ROOT, other), RenameMode::Replace).await.err(),
            _ => session.create(ROOT, one, folder(), IfExists::Fail).await.err(),
        };
        if let Some(error) = outcome {
            assert!(matches!(error.kind(), Kind::Exists | Kind::NotFound), "{error}");
        }
    }
}

/// Eight clients make numbered folders while the leader is stopped again and again: none is lost, none made twice.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_when_leaders_stop() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let enough = Arc::new(AtomicBool::new(false));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..8 {
        let (session, enough) = (cluster.session().await, enough.clone());
        clients.spawn(async move {
            let mut number = 0;
            while !enough.load(Ordering::Relaxed) {
                mkdir(&session, &format!("{client}-{number}")).await;
                number += 1;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            number
        });
    }
    let watch = cluster.session().await;
    for round in 0..4 {
        let leader = cluster.leader().await;
        if round % 2 == 0 {
            cluster.kill(leader)
        } else {
            cluster.stop(leader).await
        }
        let begin = Instant::now();
        mkdir(&watch, &format!("after-{round}")).await;
        assert!(begin.elapsed() < Duration::from_secs(20), "the others take over");
        eprintln!("metadata works again {:?} after its leader stopped", begin.elapsed());
        cluster.restart(leader).await;
    }
    enough.store(true, Ordering::Relaxed);
    let made: u64 = clients.join_all().await.into_iter().sum();
    let found = names(&watch).await;
    assert_eq!(found.len() as u64, made + 4, "every acknowledged folder once");
    equal_replicas(&cluster).await;
}

/// The names told from `seen` on, until `last` is among them, and how far that was.
async fn told_until(session: &MetaSession, mut seen: u64, last: &str) -> (Vec<String>, u64) {
    let mut told = Vec::new();
    while !told.iter().any(|name| name == last) {
        let changes = session.watch(Some(seen)).await.expect("answers");
        seen = changes.upto;
        let changed = changes.changed.expect("the other nodes remember what their leader told");
        let names = changed.into_iter().flat_map(|changed| changed.what).filter_map(|change| match change {
            Change::Name(_, name) => Some(name.to_string()),
            Change::Inode(_) => None,
        });
        told.extend(names);
    }
    (told, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_misses_nothing_when_the_leader_changes() {
    let mut cluster = Cluster::start(3, MetaSettings::default()).await;
    let (watcher, session) = (cluster.session().await, cluster.session().await);
    let start = watcher.watch(None).await.expect("answers").upto;
    let folders: Vec<String> = (0..20).map(|number| format!("folder-{number:02}")).collect();
    for folder in &folders[..10] {
        mkdir(&session, folder).await;
    }
    let (told, seen) = told_until(&watcher, start, &folders[9]).await;
    assert_eq!(told, folders[..10]);
    let leader = cluster.leader().await;
    cluster.kill(leader);
    for folder in &folders[10..] {
        mkdir(&session, folder).await;
    }
    let watching = tokio::time::timeout(PATIENCE, told_until(&watcher, seen, &folders[19]));
    assert_eq!(watching.await.expect("it goes on").0, folders[10..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_conform() {
    // The nodes that the suite registers exist in name only.
    let settings = MetaSettings { node_down_after: Duration::from_secs(3600), ..MetaSettings::default() };
    let running: std::sync::Mutex<Option<Cluster>> = std::sync::Mutex::default();
    let fresh = || async {
        let cluster = Cluster::start(3, settings).await;
        let client = cluster.client().await;
        *running.lock().expect("lock") = Some(cluster);
        client as Arc<dyn MetaStore>
    };
    torchfs_core::meta::conformance::run(fresh).await;
}
