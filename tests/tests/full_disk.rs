//! Nodes on small disks that fill up: a clear error, and nothing lost.

use torchfs_tests::{Cluster, ClusterOptions, Noise, SmallDisk, exit, wait_until, write_file};

/// The same words whether a node refused a shard or the leader found no room for one.
fn says_what_is_full(text: &str) {
    assert!(text.contains("no space: storage node "), "{text}");
    assert!(text.contains(": full, ") && text.contains(" MiB used"), "{text}");
    assert!(text.contains("delete files or add a storage node"), "{text}");
}

#[test]
fn a_full_storage_disk_is_no_space_and_nothing_is_lost() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let Some(_disk) = SmallDisk::mount(&root.path().join("disk"), 96) else { return };
    let options = ClusterOptions {
        metas: 1,
        stores: 3,
        ec: "2+1",
        store_root: Some(root.path().join("disk")),
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start_with(options);
    let source = cluster.dir().join("source");
    let content = Noise::new(1).bytes(9 << 20);
    write_file(&source, &content);
    let source = source.to_str().expect("UTF-8");
    let mut stored = 0;
    let text = loop {
        let finished = cluster.torchfs(["put", source, &format!("/file-{stored}")]);
        if finished.code != Some(0) {
            break finished.failed_with(exit::NO_SPACE);
        }
        stored += 1;
        assert!(stored < 20, "13 MiB each do not fit 96 MiB twenty times");
    };
    assert!(stored >= 3, "most of the disk could be used, not just {stored} files");
    says_what_is_full(&text);
    for number in 0..stored {
        assert!(cluster.torchfs(["cat", &format!("/file-{number}")]).stdout == content, "file {number} was lost");
    }
    cluster.torchfs(["stat", &format!("/file-{stored}")]).failed_with(exit::NOT_FOUND);
    // The namespace still works.
    cluster.torchfs(["rm", "/file-0"]).ok();
    cluster.torchfs(["mkdir", "/still-works"]).ok();
}

#[test]
fn a_capacity_is_a_limit() {
    let options = ClusterOptions {
        metas: 1,
        stores: 3,
        ec: "2+1",
        store_args: vec!["--capacity".to_owned(), "20M".to_owned()],
        ..ClusterOptions::default()
    };
    let cluster = Cluster::start_with(options);
    let source = cluster.dir().join("source");
    write_file(&source, &Noise::new(1).bytes(80 << 20));
    let text = cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/big"]).failed_with(exit::NO_SPACE);
    says_what_is_full(&text);
    cluster.torchfs(["stat", "/big"]).failed_with(exit::NOT_FOUND);
    let status = cluster.status();
    for store in status["stores"].as_array().expect("stores") {
        assert_eq!(store["capacity_bytes"], 20 << 20);
        assert!(store["used_bytes"].as_u64() <= Some(20 << 20), "{store}");
    }
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.torchfs(["ls", "/"]).ok().lines().map(str::to_owned).collect()
}

/// Makes folders until one cannot be made; answers with the number of those that were acknowledged, and the failure.
fn make_folders(cluster: &Cluster, from: usize, count: usize) -> (usize, Option<String>) {
    for number in from..from + count {
        // Long names, so that little is left of a gap in the disk.
        let made = cluster.torchfs(["mkdir", &format!("/{number:03}-{}", "n".repeat(200))]);
        if made.code != Some(0) {
            return (number, Some(made.failed_with(exit::UNAVAILABLE)));
        }
    }
    (from + count, None)
}

#[test]
fn a_full_disk_of_one_metadata_node_stops_that_node_alone() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let Some(disk) = SmallDisk::mount(&root.path().join("disk"), 128) else { return };
    let meta_root = Some((1, root.path().join("disk")));
    let mut cluster = Cluster::start_with(ClusterOptions { stores: 1, meta_root, ..ClusterOptions::default() });
    let (made, _) = make_folders(&cluster, 0, 5);
    disk.fill();
    let (made, failure) = make_folders(&cluster, made, 40);
    assert_eq!(failure, None, "two of three nodes have room");
    cluster.wait_for_end_of_meta(0);
    let log = cluster.log("meta-1");
    assert!(log.contains("No space left on device"), "the node says why it ended: {log}");
    assert_eq!(names(&cluster).len(), made);

    disk.free();
    cluster.start_meta(0);
    // It has caught up when it can stand in for another.
    let other = if cluster.leader() == 1 { 2 } else { 1 };
    cluster.kill_meta(other);
    wait_until("two of three nodes work together", || {
        cluster.torchfs(["mkdir", "/last"]).code != Some(exit::UNAVAILABLE)
    });
    assert_eq!(names(&cluster).len(), made + 1);
}

#[test]
fn full_disks_of_all_metadata_nodes_lose_nothing_that_was_acknowledged() {
    let root = tempfile::tempdir().expect("a temporary folder");
    let Some(disk) = SmallDisk::mount(&root.path().join("disk"), 384) else { return };
    let meta_root = Some((3, root.path().join("disk")));
    let mut cluster = Cluster::start_with(ClusterOptions { stores: 1, meta_root, ..ClusterOptions::default() });
    let (made, _) = make_folders(&cluster, 0, 5);
    disk.fill();
    let (made, failure) = make_folders(&cluster, made, 300);
    let failure = failure.expect("nobody has room");
    assert!(failure.contains("metadata did not answer"), "{failure}");
    let log = [cluster.log("meta-1"), cluster.log("meta-2"), cluster.log("meta-3")].concat();
    assert!(log.contains("No space left on device"), "the nodes say why: {log}");

    (0..3).for_each(|node| cluster.wait_for_end_of_meta(node));
    disk.free();
    cluster.start_all();
    cluster.wait_until_up();
    let found = names(&cluster);
    for (number, name) in found.iter().enumerate() {
        assert!(name.starts_with(&format!("{number:03}-")), "folder {number} was acknowledged, {name} is next");
    }
    assert!((made..=made + 1).contains(&found.len()), "all, and at most the one that failed: {}", found.len());
    cluster.torchfs(["mkdir", "/works-again"]).ok();
}
