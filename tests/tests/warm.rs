//! `torchfs warm` and `torchfs pin` on mounts of a cluster of processes: what is brought is there, nothing is brought twice, and what is
//! pinned stays.

use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use torchfs_tests::{
    Cluster, Finished, Mount, Noise, exit, fuse_or_skip, mounted_or_skip, run, run_with_input, wait_until, write_file,
};

const FILES: usize = 200;
const FILE_BYTES: usize = 16 * 1024;
const STORES: usize = 6;

fn name(number: usize) -> String {
    format!("class{}/{number:04}.bin", number % 4)
}

/// Files below /data, by their paths.
fn make(cluster: &Cluster, files: usize, file_bytes: usize) -> Vec<Vec<u8>> {
    let (source, mut noise) = (cluster.dir().join("source"), Noise::new(3));
    let contents: Vec<Vec<u8>> = (0..files).map(|_| noise.bytes(file_bytes)).collect();
    contents.iter().enumerate().for_each(|(number, content)| write_file(&source.join(name(number)), content));
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    contents
}

fn warm(cluster: &Cluster, path: impl AsRef<Path>, flags: &[&str]) -> Finished {
    run(cluster.command(["warm"]).arg(path.as_ref()).args(flags))
}

fn json(finished: &Finished) -> Value {
    serde_json::from_slice(&finished.stdout).expect("JSON")
}

fn cache_stats(mount: &Mount) -> Value {
    mount.stats()["cache"].clone()
}

fn storage_bytes(mount: &Mount) -> u64 {
    cache_stats(mount)["storage_bytes"].as_u64().expect("a number")
}

/// Kills all storage nodes.
fn without_storage(cluster: &mut Cluster) {
    (0..STORES).for_each(|store| cluster.kill_store(store));
}

#[test]
fn what_was_warmed_is_read_with_all_storage_nodes_gone() {
    let Some((mut cluster, mount)) = mounted_or_skip() else { return };
    let contents = make(&cluster, FILES, FILE_BYTES);
    let data = mount.join("data");
    let before = warm(&cluster, &data, &["--check", "--json"]);
    assert_eq!((before.code, &json(&before)["cached_files"]), (Some(exit::FAILED), &0.into()), "nothing is there");
    assert_eq!(storage_bytes(&mount), 0, "and nothing is fetched by asking");
    let done = warm(&cluster, &data, &[]);
    assert!(done.stderr.is_empty(), "no progress without a terminal: {}", done.stderr);
    assert!(done.ok().contains("200 of 200 files"));
    let after = warm(&cluster, &data, &["--check", "--json"]);
    let after: Value = serde_json::from_str(&after.ok()).expect("JSON");
    assert_eq!((&after["files"], &after["cached_files"]), (&FILES.into(), &FILES.into()), "{after}");
    assert_eq!(after["cached_bytes"], FILES * FILE_BYTES, "{after}");

    let stats = mount.stats();
    let requests = stats["requests"]["storage_reads"]["requests"].as_u64().expect("a number") as usize;
    assert!(requests <= FILES / 10, "many files in one request: {requests}");
    without_storage(&mut cluster);
    for (number, content) in contents.iter().enumerate() {
        assert!(&fs::read(data.join(name(number))).expect("reads") == content, "{}", name(number));
    }
    warm(&cluster, &data, &["-q"]).ok();
    assert_eq!(storage_bytes(&mount), (FILES * FILE_BYTES) as u64, "each once");
}

#[test]
fn what_was_interrupted_goes_on_and_fetches_only_the_rest() {
    const LARGE_BYTES: usize = 2 << 20;
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let contents = make(&cluster, 60, LARGE_BYTES);
    let all = (contents.len() * LARGE_BYTES) as u64;
    let mut child = cluster.command(["warm"]).arg(mount.join("data")).stdout(Stdio::null()).spawn().expect("starts");
    wait_until("something has come", || storage_bytes(&mount) > 0);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs, or has ended");
    wait_until("it ends", || child.try_wait().expect("it can be asked").is_some());
    let code = child.wait().expect("it has ended").code();
    // What was on its way still comes, and no more.
    let mut before = u64::MAX;
    wait_until("nothing comes any more", || std::mem::replace(&mut before, storage_bytes(&mount)) == before);
    assert!(code == Some(130) && before < all || code == Some(0), "{code:?} after {before} of {all} bytes");
    warm(&cluster, mount.join("data"), &[]).ok();
    assert_eq!(storage_bytes(&mount), all, "each once");
    assert!(fs::read(mount.join("data").join(name(7))).expect("reads") == contents[7]);
}

#[test]
fn a_cache_that_is_too_small_takes_what_comes_first_in_the_order_and_says_so() {
    if !fuse_or_skip() {
        return;
    }
    let mut cluster = Cluster::start();
    let mount = Mount::start_with(&cluster, "mnt", &["--cache-size", "1MiB"]);
    let contents = make(&cluster, FILES, FILE_BYTES);
    let order = cluster.dir().join("order.txt");
    let lines: String = (0..FILES).rev().map(|number| format!("data/{}\n", name(number))).collect();
    fs::write(&order, format!("{lines}data/none\n")).expect("written");
    let flags = ["--schedule", order.to_str().expect("UTF-8")];
    let text = warm(&cluster, mount.path(), &flags).failed_with(exit::NO_SPACE);
    for said in ["3.12 MiB", "1.00 MiB", "136 files", "--cache-size", "/data/none"] {
        assert!(text.contains(said), "'{said}' is not in: {text}");
    }
    let check = warm(&cluster, mount.path(), &["--check", "--json", flags[0], flags[1]]);
    assert_eq!((check.code, &json(&check)["cached_files"]), (Some(exit::FAILED), &64.into()), "{}", json(&check));
    // The same order through a pipe.
    let mut piped = cluster.command(["warm", "--check", "--json", "--schedule", "-"]);
    let piped = run_with_input(piped.arg(mount.path()), &fs::read(&order).expect("reads"));
    assert_eq!(json(&piped), json(&check));
    let part = cluster.dir().join("part.txt");
    let header = "{\"folder\": \"data/class3\"}\n";
    fs::write(&part, format!("{header}{}", (40..50).map(|place| format!("{place}\n")).collect::<String>()))
        .expect("written");
    let flags = ["--schedule", part.to_str().expect("UTF-8"), "--check", "--json"];
    assert_eq!(json(&warm(&cluster, mount.join("data"), &flags))["cached_files"], 10, "the last of a folder");
    without_storage(&mut cluster);
    for (number, content) in contents.iter().enumerate().skip(FILES - 64) {
        assert!(&fs::read(mount.join("data").join(name(number))).expect("reads") == content, "{}", name(number));
    }
}

#[test]
fn a_file_that_another_client_replaced_is_brought_anew() {
    let Some((mut cluster, mount)) = mounted_or_skip() else { return };
    make(&cluster, FILES, FILE_BYTES);
    warm(&cluster, mount.join("data"), &[]).ok();
    let new = cluster.dir().join("new");
    fs::write(&new, b"another").expect("written");
    cluster.torchfs(["put", new.to_str().expect("UTF-8"), &format!("/data/{}", name(5))]).ok();
    let check = warm(&cluster, mount.join("data"), &["--check", "--json"]);
    assert_eq!((check.code, &json(&check)["cached_files"]), (Some(exit::FAILED), &(FILES - 1).into()));
    warm(&cluster, mount.join("data"), &[]).ok();
    without_storage(&mut cluster);
    wait_until("the mount knows of the change", || {
        fs::read(mount.join("data").join(name(5))).expect("reads") == b"another"
    });
}

#[test]
fn what_cannot_be_warmed_is_named() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    make(&cluster, 8, 100);
    let text = warm(&cluster, mount.join("data/none"), &[]).failed_with(exit::NOT_FOUND);
    assert!(text.contains("data/none") && text.contains("no such file"), "{text}");
    let text = warm(&cluster, cluster.dir(), &[]).failed_with(exit::NOT_FOUND);
    assert!(text.contains("is in no mounted TorchFS") && text.contains("hint: "), "{text}");
    let order = cluster.dir().join("order.txt");
    for (lines, code, said) in [
        ("", exit::USAGE, "is empty"),
        ("{\"epok\": 1}\n", exit::USAGE, "line 1 "),
        ("data/none\n", exit::NOT_FOUND, "none of its 1 entries"),
    ] {
        fs::write(&order, lines).expect("written");
        let text =
            warm(&cluster, mount.join("data"), &["--schedule", order.to_str().expect("UTF-8")]).failed_with(code);
        assert!(text.contains(said) && text.contains("order.txt"), "{lines:?}: {text}");
    }
    let text = warm(&cluster, mount.join("data"), &["--schedule", "/no/such/order"]).failed_with(exit::NOT_FOUND);
    assert!(text.contains("/no/such/order"), "{text}");
    // An empty folder is warm, and so is a single file, through a link as well.
    fs::create_dir(mount.join("empty")).expect("made");
    warm(&cluster, mount.join("empty"), &["--check"]).ok();
    std::os::unix::fs::symlink("data/class1/0001.bin", mount.join("link")).expect("made");
    assert!(warm(&cluster, mount.join("link"), &[]).ok().contains("1 of 1 files"));
    // As a script does it, without this program.
    let script =
        "exec 3<>\"$1/.torchfs/control\"; echo '{\"do\": \"warm\", \"path\": \"data\"}' >&3; cat <&3 | tail -n 1";
    let said = run(Command::new("sh").args(["-ec", script, "sh", mount.path().to_str().expect("UTF-8")])).ok();
    assert!(said.contains("\"state\":\"done\"") && said.contains("\"cached_files\":8"), "{said}");
    let mut control = File::options().read(true).write(true).open(mount.join(".torchfs/control")).expect("opens");
    control.write_all(b"melt the data\n").expect("written");
    let mut answer = String::new();
    control.read_to_string(&mut answer).expect("reads");
    assert!(answer.contains("\"state\":\"failed\"") && answer.contains("docs/control.md"), "{answer}");
}

#[test]
fn a_mount_that_ends_does_not_wait_for_what_is_warmed() {
    let Some((cluster, mut mount)) = mounted_or_skip() else { return };
    make(&cluster, 60, 2 << 20);
    (0..STORES).for_each(|store| cluster.freeze_store(store));
    let mut control = File::options().read(true).write(true).open(mount.join(".torchfs/control")).expect("opens");
    control.write_all(b"{\"do\": \"warm\", \"path\": \"data\"}\n").expect("written");
    let mut answers = BufReader::new(control).lines().map(|line| line.expect("reads"));
    answers.find(|line| line.contains("\"fetching\"")).expect("it is under way");
    mount.interrupt();
    let last = answers.last().expect("who warms is told");
    assert!(last.contains("\"failed\"") && last.contains("the mount ends"), "{last}");
    wait_until("the mount's process ends", || mount.has_ended());
    (0..STORES).for_each(|store| cluster.thaw_store(store));
}

fn pin(cluster: &Cluster, path: impl AsRef<Path>) -> Finished {
    run(cluster.command(["pin"]).arg(path.as_ref()))
}

fn pins(cluster: &Cluster, mount: &Mount) -> Value {
    json(&run(cluster.command(["pin", "--list", "--json"]).arg(mount.path())))
}

/// Reads all files but those of class0, which push out what is not pinned.
fn read_others(mount: &Mount, contents: &[Vec<u8>]) {
    for (number, content) in contents.iter().enumerate().filter(|(number, _)| number % 4 != 0) {
        assert!(&fs::read(mount.join("data").join(name(number))).expect("reads") == content, "{}", name(number));
    }
}

#[test]
fn what_is_pinned_stays_under_pressure_and_over_a_remount_until_it_is_unpinned() {
    if !fuse_or_skip() {
        return;
    }
    const ARGS: [&str; 2] = ["--cache-size", "1MiB"];
    let mut cluster = Cluster::start();
    let mut mount = Mount::start_with(&cluster, "mnt", &ARGS);
    let contents = make(&cluster, FILES, FILE_BYTES);
    let class_bytes = FILES / 4 * FILE_BYTES;
    let class = |mount: &Mount| mount.join("data/class0");
    let text = pin(&cluster, mount.join("data")).failed_with(exit::NO_SPACE);
    for said in ["3.12 MiB are there", "room for 1.00 MiB", "--cache-size"] {
        assert!(text.contains(said), "'{said}' is not in: {text}");
    }
    assert_eq!(pins(&cluster, &mount), Value::Array(Vec::new()));
    assert!(pin(&cluster, class(&mount)).ok().contains("50 of 50 files"));
    for _ in 0..2 {
        read_others(&mount, &contents);
        wait_until("it is known what is pinned", || cache_stats(&mount)["pinned_bytes"] == class_bytes);
        let stats = cache_stats(&mount);
        assert_eq!(stats["pinned_files"], 50, "{stats}");
        assert!(stats["used_bytes"].as_u64() <= Some(1 << 20), "{stats}");
        mount.unmount();
        mount = Mount::start_with(&cluster, "mnt", &ARGS);
    }
    // One that another client replaces, and a new one, are brought by themselves; nothing else has to be fetched.
    let new = cluster.dir().join("new");
    fs::write(&new, b"another").expect("written");
    let path = |file: usize| format!("/data/{}", name(file));
    cluster.torchfs(["put", new.to_str().expect("UTF-8"), &path(4)]).ok();
    cluster.torchfs(["put", new.to_str().expect("UTF-8"), "/data/class0/new"]).ok();
    wait_until("the mount knows of the change", || {
        fs::read(mount.join("data").join(name(4))).expect("reads") == b"another"
    });
    wait_until("both are there", || {
        let warmth = &pins(&cluster, &mount)[0];
        warmth["files"] == 51 && warmth["cached_files"] == 51
    });
    let listed = cluster.torchfs(["pin", "--list"]);
    let only = run(cluster.command(["pin", "--list"]).arg(mount.path())).ok();
    assert!(only.contains("/mnt/data/class0") && only.contains(" 51 "), "{only}");
    assert!(listed.code == Some(0) || listed.code == Some(exit::USAGE), "other tests mount as well");
    let stats = run(cluster.command(["stats"]).arg(mount.path())).ok();
    assert!(stats.contains("pinned: ") && stats.contains("in 51 files"), "{stats}");
    without_storage(&mut cluster);
    for (number, content) in contents.iter().enumerate().filter(|(number, _)| number % 4 == 0 && *number != 4) {
        assert!(&fs::read(mount.join("data").join(name(number))).expect("reads") == content, "{}", name(number));
    }
    assert_eq!(fs::read(mount.join("data/class0/new")).expect("reads"), b"another");
    (0..STORES).for_each(|store| cluster.start_store(store));
    cluster.wait_until_up();

    run(cluster.command(["unpin"]).arg(class(&mount))).ok();
    assert_eq!(cache_stats(&mount)["pinned_bytes"], 0);
    wait_until("others take their place", || {
        read_others(&mount, &contents);
        let check = warm(&cluster, class(&mount), &["--check", "--json"]);
        json(&check)["cached_files"] == 0
    });
    let text = run(cluster.command(["unpin"]).arg(class(&mount))).failed_with(exit::NOT_FOUND);
    assert!(text.contains("is not pinned") && text.contains("pin --list"), "{text}");
}

#[test]
fn what_cannot_be_pinned_is_named() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    make(&cluster, 8, 100);
    let text = pin(&cluster, mount.join("none")).failed_with(exit::NOT_FOUND);
    assert!(text.contains("/none: no such file"), "{text}");
    let text = pin(&cluster, cluster.dir()).failed_with(exit::NOT_FOUND);
    assert!(text.contains("is in no mounted TorchFS"), "{text}");
    cluster.torchfs(["pin"]).failed_with(exit::USAGE);
    // A path of which nothing is left is unpinned all the same.
    pin(&cluster, mount.join("data/class1/0001.bin")).ok();
    fs::remove_file(mount.join("data/class1/0001.bin")).expect("removed");
    wait_until("that is seen", || pins(&cluster, &mount)[0]["files"] == 0);
    run(cluster.command(["unpin"]).arg(mount.join("data/class1/0001.bin"))).ok();
    assert_eq!(pins(&cluster, &mount), Value::Array(Vec::new()));
}
