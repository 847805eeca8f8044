//! Clients killed with SIGKILL in the middle of writing: the old version, or nothing, is there; never half a file.

use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};
use torchfs_tests::{Cluster, Mount, Noise, mounted_or_skip, run, wait_until, write_file};

const BIG: usize = 150 << 20;

/// Starts a `put` and kills it when it has sent something.
fn kill_in_the_middle_of_put(cluster: &Cluster, source: &std::path::Path, target: &str) {
    let shards = || (0..6).map(|store| cluster.shard_files(store).len()).sum::<usize>();
    let before = shards();
    let mut put = cluster.command(["put", source.to_str().expect("UTF-8"), target]);
    let mut put = put.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_until("the put has sent shards", || shards() > before || put.try_wait().expect("asks").is_some());
    put.kill().expect("kills");
    let status = put.wait().expect("waits");
    assert!(!status.success(), "the put was done before it could be killed; make the file larger");
}

#[test]
fn a_killed_put_leaves_nothing_or_the_old_version() {
    let cluster = Cluster::start();
    let big = cluster.dir().join("big");
    write_file(&big, &Noise::new(1).bytes(BIG));
    kill_in_the_middle_of_put(&cluster, &big, "/new");
    cluster.torchfs(["stat", "/new"]).failed_with(torchfs_tests::exit::NOT_FOUND);

    let small = cluster.dir().join("small");
    write_file(&small, b"the old version");
    cluster.torchfs(["put", small.to_str().expect("UTF-8"), "/kept"]).ok();
    kill_in_the_middle_of_put(&cluster, &big, "/kept");
    assert_eq!(cluster.torchfs(["cat", "/kept"]).stdout, b"the old version");
    // And the name can be written again.
    cluster.torchfs(["put", big.to_str().expect("UTF-8"), "/kept"]).ok();
    assert_eq!(cluster.torchfs(["cat", "/kept"]).stdout.len(), BIG);
}

/// Ctrl-C and SIGTERM leave nothing behind; only SIGKILL does, until the cluster gives it up after a day.
#[test]
fn an_interrupted_put_gives_back_what_it_has_stored() {
    let cluster = Cluster::start();
    let shards = || (0..6).map(|store| cluster.shard_files(store).len()).sum::<usize>();
    for signal in [Signal::INT, Signal::TERM] {
        let mut put = cluster.command(["put", "-", "/piped"]);
        let mut put = put.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
        let mut input = put.stdin.take().expect("piped");
        input.write_all(&Noise::new(1).bytes(50 << 20)).expect("writes");
        // Three full stripes; what comes after them is awaited.
        wait_until("the put has sent shards", || shards() >= 12);
        kill_process(Pid::from_child(&put), signal).expect("signals");
        let begin = Instant::now();
        assert_eq!(put.wait().expect("waits").code(), Some(130));
        assert!(begin.elapsed() < Duration::from_secs(15), "it took {:?} to end", begin.elapsed());
        drop(input);
        wait_until("what was stored is deleted", || shards() == 0);
        cluster.torchfs(["stat", "/piped"]).failed_with(torchfs_tests::exit::NOT_FOUND);
    }
}

/// Whether a process has a file open in a folder, with or without a name.
fn writes_into(process: &std::process::Child, folder: &std::path::Path) -> bool {
    let open = fs::read_dir(format!("/proc/{}/fd", process.id())).into_iter().flatten().flatten();
    open.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|path| path.starts_with(folder))
}

#[test]
fn a_killed_get_leaves_nothing_behind() {
    let cluster = Cluster::start();
    let (big, out) = (cluster.dir().join("big"), cluster.dir().join("out"));
    write_file(&big, &Noise::new(1).bytes(BIG));
    fs::create_dir(&out).expect("mkdir");
    cluster.torchfs(["put", big.to_str().expect("UTF-8"), "/big"]).ok();
    let target = out.join("big");
    let mut get = cluster.command(["get", "/big", target.to_str().expect("UTF-8")]);
    let mut get = get.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    while !writes_into(&get, &out) {
        assert!(get.try_wait().expect("asks").is_none(), "the get was done before it could be killed");
    }
    get.kill().expect("kills");
    assert!(!get.wait().expect("waits").success(), "the get was done before it could be killed");
    let left: Vec<_> = fs::read_dir(&out).expect("lists").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
    cluster.torchfs(["get", "/big", target.to_str().expect("UTF-8")]).ok();
    assert!(fs::read(&target).expect("reads") == fs::read(&big).expect("reads"));
}

/// Like [`write_file`], which ignores what close(2) returns.
fn write_and_sync(path: &std::path::Path, content: &[u8]) {
    let mut file = fs::File::create(path).expect("creates");
    file.write_all(content).expect("writes");
    file.sync_all().expect("syncs");
}

/// The prototype's fsync reached the client's own disk only.
#[test]
fn regression_05_what_fsync_acknowledged_needs_neither_the_client_nor_its_cache() {
    let Some((cluster, mut mount)) = mounted_or_skip() else { return };
    let content = Noise::new(5).bytes(3_000_000);
    let mut file = fs::File::create(mount.join("f")).expect("creates");
    file.write_all(&content).expect("writes");
    file.sync_all().expect("syncs");
    mount.kill();
    fs::remove_dir_all(cluster.dir().join("mnt-cache")).expect("removes the cache");
    assert!(cluster.torchfs(["cat", "/f"]).stdout == content);
}

#[test]
fn a_killed_mount_leaves_the_old_version() {
    let Some((cluster, mut mount)) = mounted_or_skip() else { return };
    write_and_sync(&mount.join("kept"), b"the old version");
    let mut over = fs::OpenOptions::new().write(true).truncate(true).open(mount.join("kept")).expect("opens");
    let mut new = fs::File::create(mount.join("new")).expect("creates");
    let noise = Noise::new(2).bytes(40 << 20);
    over.write_all(&noise).expect("writes");
    new.write_all(&noise).expect("writes");
    mount.kill();
    drop((over, new));
    assert_eq!(cluster.torchfs(["cat", "/kept"]).stdout, b"the old version");
    // The new name was made by open(2); its content was never closed.
    assert_eq!(cluster.torchfs(["cat", "/new"]).stdout, b"");

    // The same cache folder serves the next mount, without anything of the dead one's as content.
    let again = Mount::start(&cluster, "mnt");
    assert_eq!(fs::read(again.join("kept")).expect("reads"), b"the old version");
    assert_eq!(fs::read(again.join("new")).expect("reads"), b"");
    again.unmount();
}

#[test]
fn put_from_standard_input_is_whole_or_absent() {
    let cluster = Cluster::start();
    let content = Noise::new(3).bytes(18 << 20);
    torchfs_tests::run_with_input(&mut cluster.command(["put", "-", "/piped"]), &content).ok();
    assert!(cluster.torchfs(["cat", "/piped"]).stdout == content);
    assert!(run(&mut cluster.command(["get", "/piped", "-"])).stdout == content);
}
