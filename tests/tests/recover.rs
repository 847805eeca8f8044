//! What was written to a mount and could not be stored when it was closed: kept, told, and stored later.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;
use torchfs_tests::{Cluster, Mount, Noise, exit, mounted_or_skip, run};

/// The ids of what is set aside, the oldest first.
fn listed(cluster: &Cluster, cache: &Path) -> Vec<String> {
    let list = run(cluster.command(["recover", "list", "--json", "--cache-dir"]).arg(cache)).ok();
    let list: Vec<Value> = serde_json::from_str(&list).expect("JSON");
    list.iter().map(|aside| aside["id"].as_str().expect("an id").to_owned()).collect()
}

fn recover(cluster: &Cluster, cache: &Path, words: &[&str]) -> torchfs_tests::Finished {
    run(cluster.command(["recover", "--cache-dir"]).arg(cache).args(words))
}

/// Copies a file onto the mount as a user does; close(2) fails.
fn fail_to_copy(source: &Path, target: &Path) {
    let copied = run(Command::new("cp").arg(source).arg(target));
    assert_ne!(copied.code, Some(0), "five of six nodes are gone");
    assert!(copied.stderr.contains("Input/output error"), "{}", copied.stderr);
}

#[test]
fn what_close_could_not_store_is_told_by_umount_and_stored_by_recover() {
    let Some((mut cluster, mut mount)) = mounted_or_skip() else { return };
    let cache = cluster.dir().join("mnt-cache");
    let (old, new) = (Noise::new(1).bytes(100_000), Noise::new(2).bytes(3_000_000));
    let source = cluster.dir().join("source");
    fs::write(&source, &new).expect("writes");
    fs::write(mount.join("replaced"), &old).expect("writes");
    fs::write(mount.join("appended"), &old).expect("writes");
    (0..5).for_each(|store| cluster.kill_store(store));
    fail_to_copy(&source, &mount.join("new"));
    fail_to_copy(&source, &mount.join("replaced"));
    let append = format!("cat {} >> {}", source.display(), mount.join("appended").display());
    assert_ne!(run(Command::new("bash").args(["-c", &append])).code, Some(0));
    assert_eq!(listed(&cluster, &cache).len(), 3, "it is kept when close(2) has answered");

    let text = run(cluster.command(["umount"]).arg(mount.path())).failed_with(exit::FAILED);
    assert!(text.contains("3 files could not be stored"), "{text}");
    assert!(text.contains(&format!("torchfs recover --cache-dir {}", cache.display())), "{text}");
    assert!(mount.has_ended());

    cluster.start_all();
    cluster.wait_for_stores("up", 6);
    assert!(cluster.torchfs(["cat", "/replaced"]).stdout == old, "the old version stays");
    let ids = listed(&cluster, &cache);
    let text = recover(&cluster, &cache, &[]).ok();
    assert!(ids.iter().all(|id| text.contains(id)) && text.contains("new (inode"), "{text}");
    recover(&cluster, &cache, &["put", &ids[0]]).ok();
    assert!(cluster.torchfs(["cat", "/new"]).stdout == new);
    recover(&cluster, &cache, &["put", &ids[1], "/elsewhere"]).ok();
    assert!(cluster.torchfs(["cat", "/elsewhere"]).stdout == new);
    assert!(cluster.torchfs(["cat", "/replaced"]).stdout == old);
    assert_eq!(listed(&cluster, &cache), ids[2..], "what is stored is not kept any more");
    let both = cluster.dir().join("both");
    fs::write(&both, [&old[..], b"by another"].concat()).expect("writes");
    cluster.torchfs(["put", both.to_str().expect("UTF-8"), "/appended"]).ok();
    let text = recover(&cluster, &cache, &["put", &ids[2]]).failed_with(exit::FAILED);
    assert!(text.contains("version"), "{text}");
    recover(&cluster, &cache, &["drop", &ids[2]]).ok();
    assert!(listed(&cluster, &cache).is_empty());
    let text = recover(&cluster, &cache, &["put", &ids[2]]).failed_with(exit::NOT_FOUND);
    assert!(text.contains("nothing of this id"), "{text}");
}

#[test]
fn it_outlives_a_killed_mount_and_a_mount_without_failures_ends_well() {
    let Some((mut cluster, mut mount)) = mounted_or_skip() else { return };
    let cache = cluster.dir().join("mnt-cache");
    let source = cluster.dir().join("source");
    fs::write(&source, Noise::new(3).bytes(2_000_000)).expect("writes");
    (0..5).for_each(|store| cluster.kill_store(store));
    fail_to_copy(&source, &mount.join("file"));
    mount.kill();
    cluster.start_all();
    cluster.wait_for_stores("up", 6);
    let mut mount = Mount::start(&cluster, "mnt");
    let ids = listed(&cluster, &cache);
    recover(&cluster, &cache, &["put", &ids[0]]).ok();
    assert!(cluster.torchfs(["cat", "/file"]).stdout == fs::read(&source).expect("reads"));
    fs::write(mount.join("other"), "x").expect("writes");
    run(cluster.command(["umount"]).arg(mount.path())).ok();
    assert!(mount.has_ended());
}
