//! Storage nodes killed, hung and damaged: reads are right or fail clearly, writes are safe or fail clearly.

use std::fs;
use std::os::unix::fs::FileExt;
use torchfs_tests::{
    Cluster, Noise, assert_same_tree, exit, mounted_or_skip, wait_until, write_file, write_small_files,
};

/// Small files, a file of one stripe, a file of several: everything that is laid out differently.
fn dataset(cluster: &Cluster) -> std::path::PathBuf {
    let source = cluster.dir().join("source");
    write_small_files(&source, 3, 40, 60_000);
    write_file(&source.join("medium.bin"), &Noise::new(1).bytes(3 << 20));
    write_file(&source.join("large.bin"), &Noise::new(2).bytes(37_000_001));
    source
}

fn put(cluster: &Cluster, source: &std::path::Path, target: &str) {
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), target]).ok();
}

fn get(cluster: &Cluster, source: &str, name: &str) -> std::path::PathBuf {
    let target = cluster.dir().join(name);
    cluster.torchfs(["get", "-r", source, target.to_str().expect("UTF-8")]).ok();
    target
}

#[test]
fn two_of_six_killed_reads_are_exact_and_writes_are_recorded_as_degraded() {
    let mut cluster = Cluster::start();
    let source = dataset(&cluster);
    put(&cluster, &source, "/before");
    assert_eq!(cluster.status()["degraded_stripes"], 0);

    cluster.kill_store(1);
    cluster.kill_store(4);
    // At once, before anyone has noticed.
    assert_same_tree(&source, &get(&cluster, "/before", "early"));
    put(&cluster, &source, "/during");
    cluster.wait_for_stores("down", 2);
    assert_same_tree(&source, &get(&cluster, "/before", "late"));
    assert_same_tree(&source, &get(&cluster, "/during", "during"));
    put(&cluster, &source, "/known");
    assert_same_tree(&source, &get(&cluster, "/known", "known"));

    cluster.start_all();
    cluster.wait_for_stores("up", 6);
    let status = cluster.status();
    assert!(status["degraded_stripes"].as_u64() > Some(0), "written with four nodes: {status}");
    assert_same_tree(&source, &get(&cluster, "/during", "after"));
}

#[test]
fn three_of_six_killed_is_a_clear_error_and_never_wrong_bytes() {
    let mut cluster = Cluster::start();
    let source = dataset(&cluster);
    put(&cluster, &source, "/data");
    let large = fs::read(source.join("large.bin")).expect("readable");
    for store in 0..3 {
        cluster.kill_store(store);
    }
    let finished = cluster.torchfs(["cat", "/data/large.bin"]);
    assert!(
        finished.stdout.len() < large.len() && large.starts_with(&finished.stdout),
        "bytes that are not the file's"
    );
    let text = finished.failed_with(exit::UNAVAILABLE);
    assert!(text.contains("large.bin"), "names the file: {text}");

    let target = cluster.dir().join("partial");
    let finished = cluster.torchfs(["get", "/data/large.bin", target.to_str().expect("UTF-8")]);
    finished.failed_with(exit::UNAVAILABLE);
    assert!(!target.exists(), "half a file must not be left under the final name");

    cluster.start_store(1);
    cluster.wait_for_stores("up", 4);
    assert_eq!(cluster.torchfs(["cat", "/data/large.bin"]).stdout, large);
}

/// The prototype reported success for writes with too few nodes, and the content was wrong afterwards.
#[test]
fn regression_02_a_write_with_too_few_nodes_fails_and_keeps_the_old_version() {
    let mut cluster = Cluster::start();
    let old = cluster.dir().join("old");
    let new = cluster.dir().join("new");
    write_file(&old, &Noise::new(3).bytes(20 << 20));
    write_file(&new, &Noise::new(4).bytes(20 << 20));
    cluster.torchfs(["put", old.to_str().expect("UTF-8"), "/file"]).ok();
    for store in 0..4 {
        cluster.kill_store(store);
    }
    cluster.torchfs(["put", new.to_str().expect("UTF-8"), "/file"]).failed_with(exit::UNAVAILABLE);
    cluster.start_all();
    cluster.wait_for_stores("up", 6);
    assert!(cluster.torchfs(["cat", "/file"]).stdout == fs::read(&old).expect("readable"), "the old version is gone");
}

#[test]
fn a_hung_node_holds_up_neither_reads_nor_writes() {
    let cluster = Cluster::start();
    let source = dataset(&cluster);
    put(&cluster, &source, "/data");
    cluster.freeze_store(2);
    assert_same_tree(&source, &get(&cluster, "/data", "copy"));
    put(&cluster, &source, "/more");
    assert_same_tree(&source, &get(&cluster, "/more", "more"));
}

/// Nodes that hang are still "up" for seconds. What is acknowledged meanwhile must survive the loss of a node all the same.
#[test]
fn with_three_of_six_hung_writes_fail_clearly_and_with_two_they_are_degraded() {
    let cluster = Cluster::start();
    let (old, new) = (cluster.dir().join("old"), cluster.dir().join("new"));
    write_file(&old, &Noise::new(3).bytes(20 << 20));
    write_file(&new, &Noise::new(4).bytes(20 << 20));
    cluster.torchfs(["put", old.to_str().expect("UTF-8"), "/file"]).ok();
    for store in [0, 2, 3] {
        cluster.freeze_store(store);
    }
    // At once, before anyone has noticed; then when the nodes are known to be down.
    for _ in 0..2 {
        let text = cluster.torchfs(["put", new.to_str().expect("UTF-8"), "/file"]).failed_with(exit::UNAVAILABLE);
        let named = (1..=6).filter(|node| text.contains(&format!("node {node}: "))).count();
        assert_eq!(named, 3, "the three that do not answer are named: {text}");
        cluster.wait_for_stores("down", 3);
    }
    cluster.thaw_store(2);
    cluster.wait_for_stores("up", 4);
    assert!(cluster.torchfs(["cat", "/file"]).stdout == fs::read(&old).expect("readable"), "the old version is gone");
    cluster.torchfs(["put", new.to_str().expect("UTF-8"), "/new"]).ok();
    cluster.thaw_store(0);
    cluster.thaw_store(3);
    cluster.wait_for_stores("up", 6);
    assert!(cluster.status()["degraded_stripes"].as_u64() > Some(0), "written with four nodes");
    // Whichever node is lost, what was acknowledged is there.
    for store in 0..6 {
        cluster.freeze_store(store);
        let read = cluster.torchfs(["cat", "/new"]);
        assert!(read.stdout == fs::read(&new).expect("readable"), "node {} is lost: {}", store + 1, read.stderr);
        cluster.thaw_store(store);
    }
}

#[test]
fn regression_08_damage_on_disk_is_read_around_and_reported() {
    let cluster = Cluster::start();
    let source = dataset(&cluster);
    put(&cluster, &source, "/data");
    let largest = |store: usize| {
        let files = cluster.shard_files(store);
        let size = |path: &std::path::PathBuf| fs::metadata(path).expect("a shard file").len();
        files.iter().max_by_key(|path| size(path)).expect("the node holds shards").clone()
    };
    // One file is cut, one has a bit flipped, on two nodes: at most m shards of any stripe are hit.
    let cut = fs::OpenOptions::new().write(true).open(largest(0)).expect("opens");
    cut.set_len(cut.metadata().expect("has a size").len() / 2).expect("cuts");
    for path in cluster.shard_files(3) {
        let shard = fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens");
        let middle = shard.metadata().expect("has a size").len() / 2;
        let mut byte = [0];
        shard.read_exact_at(&mut byte, middle).expect("reads");
        shard.write_all_at(&[byte[0] ^ 0x10], middle).expect("writes");
    }
    assert_same_tree(&source, &get(&cluster, "/data", "copy"));
    wait_until("the damage is in status", || {
        let status = cluster.status();
        status["bad_shards"].as_u64() > Some(0) && status["degraded_stripes"].as_u64() > Some(0)
    });
}

#[test]
fn a_deleted_shard_file_is_read_around_and_reported() {
    let cluster = Cluster::start();
    let source = dataset(&cluster);
    put(&cluster, &source, "/data");
    let files = cluster.shard_files(5);
    assert!(!files.is_empty(), "the node holds shards");
    files.iter().for_each(|path| fs::remove_file(path).expect("deletes"));
    assert_same_tree(&source, &get(&cluster, "/data", "copy"));
    wait_until("the loss is in status", || cluster.status()["bad_shards"].as_u64() > Some(0));
}

/// The prototype returned uninitialised memory.
#[test]
fn regression_03_the_mount_answers_eio_with_too_few_nodes_and_recovers() {
    let Some((mut cluster, mount)) = mounted_or_skip() else { return };
    let content = Noise::new(5).bytes(20 << 20);
    let source = cluster.dir().join("source.bin");
    write_file(&source, &content);
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/file"]).ok();
    for store in 3..6 {
        cluster.kill_store(store);
    }
    let error = fs::read(mount.join("file")).expect_err("three of six nodes are gone");
    assert_eq!(error.raw_os_error(), Some(5), "EIO, not {error}");
    cluster.start_all();
    cluster.wait_for_stores("up", 6);
    wait_until("the file reads again", || fs::read(mount.join("file")).is_ok_and(|bytes| bytes == content));
    mount.unmount();
}
