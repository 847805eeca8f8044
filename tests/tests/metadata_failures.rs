//! Metadata nodes killed: nothing acknowledged is lost, nothing is applied twice, and work goes on.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use torchfs_tests::{Cluster, ClusterOptions, Noise, assert_same_tree, wait_until, write_small_files};

fn names(cluster: &Cluster, folder: &str) -> BTreeSet<String> {
    cluster.torchfs(["ls", folder]).ok().lines().map(str::to_owned).collect()
}

/// Clients make numbered folders while leaders are killed. Every folder whose making was acknowledged is there; a name that
/// was there already would have been reported as "exists", since nobody else makes it.
#[test]
fn killed_leaders_lose_nothing_and_double_nothing() {
    let options = ClusterOptions { stores: 1, ..ClusterOptions::default() };
    let mut cluster = Cluster::start_with(options);
    cluster.torchfs(["mkdir", "/made"]).ok();
    let stop = AtomicBool::new(false);
    let made = AtomicUsize::new(0);
    let commands: Vec<_> = (0..3).map(|client| (client, cluster.meta_addrs())).collect();
    let acknowledged: Vec<Vec<String>> = std::thread::scope(|scope| {
        let clients: Vec<_> = commands
            .iter()
            .map(|(client, metas)| {
                let (stop, made) = (&stop, &made);
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let name = format!("c{client}-{:04}", mine.len());
                        let mut mkdir = std::process::Command::new(torchfs_tests::binary());
                        mkdir.env("TORCHFS_META", metas).args(["mkdir", &format!("/made/{name}")]);
                        let finished = torchfs_tests::run(&mut mkdir);
                        assert_eq!(finished.code, Some(0), "mkdir {name}: {}", finished.stderr);
                        mine.push(name);
                        made.fetch_add(1, Ordering::Relaxed);
                    }
                    mine
                })
            })
            .collect();
        for _ in 0..3 {
            let before = made.load(Ordering::Relaxed);
            wait_until("some folders are made", || made.load(Ordering::Relaxed) >= before + 20);
            let leader = cluster.leader();
            cluster.kill_meta(leader);
            let killed = Instant::now();
            let before = made.load(Ordering::Relaxed);
            // Each client may have had one operation answered just before.
            wait_until("folders are made again", || made.load(Ordering::Relaxed) > before + 3);
            println!("metadata worked again {} ms after its leader was killed", killed.elapsed().as_millis());
            cluster.start_meta(leader);
        }
        stop.store(true, Ordering::Relaxed);
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).collect()
    });
    let expected: BTreeSet<String> = acknowledged.into_iter().flatten().collect();
    assert!(expected.len() > 60);
    assert_eq!(names(&cluster, "/made"), expected);
}

/// The prototype's namespace was empty after a restart, and every size was 0 after a leader change.
#[test]
fn regressions_10_and_11_everything_is_there_after_all_nodes_were_killed() {
    let mut cluster = Cluster::start();
    let source = cluster.dir().join("source");
    write_small_files(&source, 4, 50, 40_000);
    std::fs::write(source.join("large"), Noise::new(8).bytes(21 << 20)).expect("writable");
    std::os::unix::fs::symlink("class-0/00001.bin", source.join("link")).expect("links");
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    let before = cluster.status();
    for round in 0..2 {
        cluster.kill_all();
        cluster.start_all();
        cluster.wait_until_up();
        let copy = cluster.dir().join(format!("copy-{round}"));
        cluster.torchfs(["get", "-r", "/data", copy.to_str().expect("UTF-8")]).ok();
        assert_same_tree(&source, &copy);
    }
    let after = cluster.status();
    for field in ["files", "bytes", "stored_bytes", "stripes", "degraded_stripes", "bad_shards"] {
        assert_eq!(before[field], after[field], "{field}");
    }
    // The same after a change of leader.
    let leader = cluster.leader();
    cluster.kill_meta(leader);
    let copy = cluster.dir().join("copy-other-leader");
    cluster.torchfs(["get", "-r", "/data", copy.to_str().expect("UTF-8")]).ok();
    assert_same_tree(&source, &copy);
}

/// Without a majority nothing is answered, and the client says so in bounded time instead of hanging.
#[test]
fn without_a_majority_the_client_gives_up_with_a_clear_error() {
    let mut cluster = Cluster::start_with(ClusterOptions { stores: 1, ..ClusterOptions::default() });
    cluster.kill_meta(0);
    cluster.kill_meta(1);
    let start = Instant::now();
    let text = cluster.torchfs(["mkdir", "/x"]).failed_with(torchfs_tests::exit::UNAVAILABLE);
    assert!(start.elapsed() < Duration::from_secs(60), "gave up only after {:?}", start.elapsed());
    for node in 0..3 {
        assert!(text.contains(&cluster.meta_addr(node)), "says what each node said: {text}");
    }
    assert!(text.contains("more than half"), "says what is needed: {text}");
    cluster.start_all();
    wait_until("metadata works again", || cluster.torchfs(["mkdir", "-p", "/x"]).code == Some(0));
}
