//! Nodes on small disks that fill up: a clear error, and nothing lost.

use std::fs;
use std::io::Write;
use torchfs_tests::{Cluster, ClusterOptions, Mount, Noise, SmallDisk, exit, fuse_or_skip, wait_until, write_file};

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
    // What was stored for the file that could not be is given back at once, and can be used.
    wait_until("the shards of the failed put are deleted", || {
        (0..3).all(|store| cluster.shard_files(store).is_empty())
    });
}

/// A mount with a cache on a disk of its own.
fn mount_with_small_cache(megabytes: u64) -> Option<(Cluster, SmallDisk, Mount)> {
    if !fuse_or_skip() {
        return None;
    }
    let cluster = Cluster::start();
    let disk = SmallDisk::mount(&cluster.dir().join("mnt-cache"), megabytes)?;
    let mount = Mount::start(&cluster, "mnt");
    Some((cluster, disk, mount))
}

#[test]
fn a_cache_that_fills_its_disk_makes_room_for_what_is_written() {
    let Some((cluster, disk, mount)) = mount_with_small_cache(128) else { return };
    let content = Noise::new(1).bytes(24 << 20);
    let source = cluster.dir().join("source");
    write_file(&source, &content);
    for number in 0..8 {
        cluster.torchfs(["put", source.to_str().expect("UTF-8"), &format!("/file-{number}")]).ok();
        assert!(fs::read(mount.join(format!("file-{number}"))).expect("reads") == content);
    }
    // A reader has its bytes before they are on the disk.
    wait_until("the cache uses the disk", || {
        let (free, total) = disk.free_and_total();
        free < total / 2
    });
    let (free, total) = disk.free_and_total();
    assert!(free > total / 40, "and leaves some of it: {free} of {total} bytes are free");
    // Something else takes what is left.
    disk.fill();
    let large = Noise::new(2).bytes(80 << 20);
    let mut file = fs::File::create(mount.join("large")).expect("creates");
    file.write_all(&large).expect("the cache makes room");
    file.sync_all().expect("syncs");
    drop(file);
    assert!(cluster.torchfs(["cat", "/large"]).stdout == large);
    mount.unmount();
}

/// As on a local file system: what was written before the disk was full is there.
#[test]
fn a_write_that_finds_no_room_leaves_what_was_written_before_it() {
    let Some((cluster, disk, mount)) = mount_with_small_cache(48) else { return };
    disk.fill();
    let content = Noise::new(3).bytes(8 << 20);
    let mut file = fs::File::create(mount.join("part")).expect("creates");
    let mut written = 0;
    let error = loop {
        match file.write(&content[written..content.len().min(written + 100_000)]) {
            Ok(0) => panic!("8 MiB were written to a full disk"),
            Ok(len) => written += len,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{error}");
    assert!(written > 0, "a little of a file is kept in memory");
    file.sync_all().expect("what was written can be stored");
    drop(file);
    assert!(cluster.torchfs(["cat", "/part"]).stdout == content[..written], "{written} bytes were acknowledged");

    disk.free();
    fs::write(mount.join("part"), &content).expect("writes");
    assert!(cluster.torchfs(["cat", "/part"]).stdout == content);
    mount.unmount();
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

    // Those that could not write have ended, or do now; one that lost its majority has nothing to write, and runs on.
    (0..3).for_each(|node| cluster.end_meta(node));
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
