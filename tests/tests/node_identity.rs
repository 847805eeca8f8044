//! Nodes that are not what they say: data folders that were copied or moved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use torchfs_tests::{Cluster, ClusterOptions, Noise, exit, run, wait_until, write_file};

fn small() -> Cluster {
    Cluster::start_with(ClusterOptions { metas: 1, stores: 3, ec: "2+1", ..ClusterOptions::default() })
}

/// `cp -a` of a node's data folder.
fn copied(cluster: &Cluster, folder: &Path) -> PathBuf {
    let copy = cluster.dir().join("copy");
    let mut cp = Command::new("cp");
    run(cp.arg("-a").arg(folder).arg(&copy)).ok();
    copy
}

/// The arguments of a node with another address and another data folder.
fn elsewhere(mut args: Vec<String>, addr: &str, data: &Path) -> Vec<String> {
    for (flag, value) in [("--listen", addr), ("--data", data.to_str().expect("UTF-8"))] {
        let at = args.iter().position(|arg| arg == flag).expect("has the flag");
        args[at + 1] = value.to_owned();
    }
    args
}

/// Where each storage node is, as the cluster sees it, and its state.
fn places(cluster: &Cluster) -> BTreeMap<String, String> {
    let status = cluster.status();
    let text = |value: &serde_json::Value| value.as_str().expect("text").to_owned();
    let stores = status["stores"].as_array().expect("a list");
    stores.iter().map(|store| (text(&store["addr"]), text(&store["state"]))).collect()
}

#[test]
fn a_copied_folder_does_not_run_beside_its_original() {
    let cluster = small();
    let before = places(&cluster);
    let copy = copied(&cluster, &cluster.store_dir(0));
    let addr = cluster.store_addr(7);
    let text = run(&mut cluster.command(elsewhere(cluster.store_args(0), &addr, &copy))).failed_with(exit::EXISTS);
    for part in [cluster.store_addr(0).as_str(), &addr, "stop it first", "empty"] {
        assert!(text.contains(part), "names {part}: {text}");
    }
    assert_eq!(places(&cluster), before, "the original has its place");
    assert!(before.contains_key(&cluster.store_addr(0)));
}

#[test]
fn a_killed_node_starts_at_another_address() {
    let mut cluster = small();
    let content = Noise::new(1).bytes(3 << 20);
    let source = cluster.dir().join("source");
    write_file(&source, &content);
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/file"]).ok();
    cluster.kill_store(0);
    let (addr, data) = (cluster.store_addr(7), cluster.store_dir(0));
    cluster.start_store_with(0, &elsewhere(cluster.store_args(0), &addr, &data));
    wait_until("the node is at its new address", || places(&cluster).get(&addr).is_some_and(|state| state == "up"));
    assert_eq!(places(&cluster).len(), 3, "it is the same node");
    cluster.kill_store(1);
    assert_eq!(cluster.torchfs(["cat", "/file"]).stdout, content, "and holds the same shards");
}

#[test]
fn a_node_whose_place_was_taken_while_it_hung_ends() {
    let mut cluster = small();
    let copy = copied(&cluster, &cluster.store_dir(0));
    cluster.freeze_store(0);
    cluster.wait_for_stores("down", 1);
    let addr = cluster.store_addr(7);
    let mut second = cluster.command(elsewhere(cluster.store_args(0), &addr, &copy));
    let mut second = second.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_until("the copy has the place", || places(&cluster).get(&addr).is_some_and(|state| state == "up"));
    cluster.thaw_store(0);
    assert_eq!(cluster.wait_for_end_of_store(0), Some(exit::EXISTS));
    let log = cluster.log("store-0");
    assert!(log.contains(&format!("runs at {addr} now")), "says who has its place: {log}");
    assert_eq!(places(&cluster).get(&addr).map(String::as_str), Some("up"), "the copy keeps it");
    let _ = second.kill();
    second.wait().expect("ends");
}

fn node_file(data: &Path) -> String {
    std::fs::read_to_string(data.join("node")).expect("reads")
}

fn names(cluster: &Cluster) -> Vec<String> {
    cluster.torchfs(["ls", "/"]).ok().lines().map(str::to_owned).collect()
}

#[test]
fn a_copied_metadata_folder_does_not_run_beside_its_original() {
    let cluster = Cluster::start_with(ClusterOptions { stores: 1, ..ClusterOptions::default() });
    cluster.torchfs(["mkdir", "/before"]).ok();
    let leader = cluster.leader();
    let copy = copied(&cluster, &cluster.meta_dir(leader));
    let args = elsewhere(cluster.meta_args(leader), &cluster.meta_addr(7), &copy);
    let text = run(&mut cluster.command(args)).failed_with(exit::EXISTS);
    for part in [cluster.meta_addr(leader).as_str(), "stop it first", "copy"] {
        assert!(text.contains(part), "names {part}: {text}");
    }
    cluster.torchfs(["mkdir", "/after"]).ok();
    assert_eq!(cluster.leader(), leader, "the original goes on");
    assert_eq!(names(&cluster), ["after", "before"]);
}

#[test]
fn a_metadata_node_whose_place_was_taken_while_it_hung_ends_and_catches_up() {
    let mut cluster = Cluster::start_with(ClusterOptions { stores: 1, ..ClusterOptions::default() });
    cluster.torchfs(["mkdir", "/before"]).ok();
    let leader = cluster.leader();
    let copy = copied(&cluster, &cluster.meta_dir(leader));
    cluster.torchfs(["mkdir", "/acknowledged"]).ok();
    cluster.freeze_meta(leader);
    wait_until("another one leads", || cluster.leader() != leader);
    let mut second = cluster.command(elsewhere(cluster.meta_args(leader), &cluster.meta_addr(7), &copy));
    let mut second = second.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    // It forgets their starts at first, and hears of them from those who listen to it.
    let has_met = |node: String| node.lines().filter(|line| line.starts_with("met ") && line.len() > 60).count() == 2;
    wait_until("the copy does not vote", || node_file(&copy).contains("admitted no"));
    wait_until("its peers listen to it", || has_met(node_file(&copy)));
    cluster.thaw_meta(leader);
    assert_eq!(cluster.wait_for_end_of_meta(leader), Some(exit::EXISTS));
    let log = cluster.log(&format!("meta-{}", leader + 1));
    assert!(log.contains("out of date"), "says why: {log}");
    let _ = second.kill();
    second.wait().expect("ends");
    cluster.torchfs(["mkdir", "/without"]).ok();
    cluster.start_meta(leader);
    wait_until("it votes again", || node_file(&cluster.meta_dir(leader)).contains("admitted yes"));
    let other = cluster.leader();
    cluster.kill_meta(other);
    wait_until("two of three work", || cluster.torchfs(["mkdir", "-p", "/after"]).code == Some(0));
    assert_eq!(names(&cluster), ["acknowledged", "after", "before", "without"]);
}
