//! Recording what programs do on a mount, and doing it again elsewhere.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use torchfs_tests::{Cluster, Mount, Noise, mounted_or_skip, wait_until};

const FILES: usize = 20;

/// Begins to record into a file. When this returns, what is done is recorded.
fn record(cluster: &Cluster, mount: &Mount, file: &Path) -> Child {
    let mut command = cluster.command(["-q", "trace", "record"]);
    command.arg(mount.path()).arg(file).stdin(Stdio::null()).stdout(Stdio::null());
    let recorder = command.spawn().expect("starts");
    wait_until("the recording begins", || fs::metadata(file).is_ok_and(|found| found.len() >= 24));
    recorder
}

/// Ctrl-C.
fn stop(mut recorder: Child) {
    let pid = rustix::process::Pid::from_child(&recorder);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("can be signalled");
    wait_until("the recorder ends", || recorder.try_wait().expect("can be asked").is_some());
    assert!(recorder.wait().expect("has ended").success());
}

fn json(cluster: &Cluster, words: &[&str]) -> Value {
    serde_json::from_str(&cluster.torchfs(words).ok()).expect("JSON")
}

fn count(summary: &Value, op: &str, field: &str) -> u64 {
    let ops = summary["ops"].as_array().expect("operations");
    ops.iter().find(|summed| summed["op"] == op).and_then(|summed| summed[field].as_u64()).unwrap_or(0)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

#[test]
fn what_is_read_on_a_mount_is_recorded_and_replayed_elsewhere() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let source = cluster.dir().join("source");
    fs::create_dir_all(source.join("b")).expect("makes");
    for number in 0..FILES {
        let folder = if number % 2 == 0 { source.clone() } else { source.join("b") };
        fs::write(folder.join(format!("{number:02}")), Noise::new(number as u64).bytes(30_000)).expect("writes");
    }
    cluster.torchfs(["put", "-r", text(&source), "/data"]).ok();
    // Names that were looked up before the recording begins are in it, too.
    assert_eq!(fs::read_dir(mount.join("data")).expect("lists").count(), FILES / 2 + 1);

    let trace = cluster.dir().join("train.trace");
    let recorder = record(&cluster, &mount, &trace);
    let path = |number: usize| match number % 2 {
        0 => mount.join(format!("data/{number:02}")),
        _ => mount.join(format!("data/b/{number:02}")),
    };
    let order = (0..FILES).chain((0..FILES).map(|at| at * 7 % FILES));
    for number in order {
        assert!(fs::read(path(number)).expect("reads") == Noise::new(number as u64).bytes(30_000));
    }
    fs::write(mount.join("new"), "written").expect("writes");
    fs::rename(mount.join("new"), mount.join("renamed")).expect("renames");
    assert!(fs::metadata(mount.join("missing")).is_err());
    stop(recorder);

    let summary = json(&cluster, &["trace", "summary", text(&trace), "--json", "--files", "100"]);
    assert_eq!((&summary["lost"], &summary["is_torn"]), (&0.into(), &false.into()), "{summary}");
    assert_eq!(count(&summary, "open", "requests"), 2 * FILES as u64, "{summary}");
    assert_eq!(count(&summary, "rename", "requests"), 1);
    assert_eq!((count(&summary, "create", "requests"), count(&summary, "write", "bytes")), (1, 7));
    assert!(count(&summary, "lookup", "failures") >= 2, "new and missing were not there: {summary}");
    // In the second epoch the kernel has the pages.
    assert_eq!(count(&summary, "read", "bytes"), 30_000 * FILES as u64, "{summary}");
    let epochs = summary["epochs"].as_array().expect("epochs");
    let seen: Vec<_> = epochs.iter().map(|epoch| (epoch["opens"].as_u64(), epoch["read_bytes"].as_u64())).collect();
    assert_eq!(seen, [(Some(20), Some(600_000)), (Some(20), Some(0))]);
    let mut files: Vec<&str> =
        summary["files"].as_array().expect("files").iter().flat_map(|f| f["path"].as_str()).collect();
    files.sort_unstable();
    assert_eq!((files.len(), files[0], files[FILES / 2]), (FILES, "/data/00", "/data/b/01"));

    let other = cluster.dir().join("other");
    fs::create_dir(&other).expect("makes");
    let replay = |words: &[&str]| {
        let all = [&["-q", "trace", "replay", text(&trace), text(&other), "--speed", "max", "--json"], words].concat();
        json(&cluster, &all)
    };
    let made = replay(&["--make-files"]);
    assert_eq!((&made["made_files"], &made["nameless_opens"]), (&FILES.into(), &0.into()), "{made}");
    assert_eq!((&made["opens"]["requests"], &made["read_bytes"]), (&(2 * FILES).into(), &600_000.into()), "{made}");
    assert_eq!(fs::metadata(other.join("data/b/07")).expect("was made").len(), 30_000);
    assert_eq!(replay(&["--reads", "whole"])["read_bytes"], 1_200_000);
    mount.unmount();
}

#[test]
fn a_mount_is_recorded_by_one_at_a_time_and_not_into_itself() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let refused = |file: &Path, code: i32, said: &str| {
        let finished = cluster.torchfs(["trace", "record", text(mount.path()), text(file)]);
        assert!(finished.code == Some(code) && finished.stderr.contains(said), "{finished:?}");
        assert!(!file.exists(), "nothing is left of it");
    };
    refused(&mount.join("inside.trace"), 2, "outside the mount");
    let (first, second) = (cluster.dir().join("first"), cluster.dir().join("second"));
    let recorder = record(&cluster, &mount, &first);
    refused(&second, 4, "is being recorded already");
    stop(recorder);
    let recorder = record(&cluster, &mount, &second);

    // Ctrl-C of the mount ends the recording, which does not keep it in use.
    mount.interrupt();
    let mut recorder = recorder;
    wait_until("the recorder ends", || recorder.try_wait().expect("can be asked").is_some());
    assert!(recorder.wait().expect("has ended").success());
    assert_eq!(json(&cluster, &["trace", "summary", text(&second), "--json"])["is_torn"], false);
    let mut mount = mount;
    wait_until("the mount ends", || mount.has_ended());
}

#[test]
fn unmounting_ends_a_recording() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    for (name, args) in [("plain", vec!["umount"]), ("lazy", vec!["umount", "--lazy"])] {
        let mut mount = Mount::start(&cluster, name);
        let trace = cluster.dir().join(name).with_extension("trace");
        let mut recorder = record(&cluster, &mount, &trace);
        cluster.torchfs([&args[..], &[text(mount.path())]].concat()).ok();
        wait_until("the recorder ends", || recorder.try_wait().expect("can be asked").is_some());
        assert!(recorder.wait().expect("has ended").success());
        wait_until("the mount ends", || mount.has_ended());
    }
    mount.unmount();
}

#[test]
fn reads_of_cached_files_are_seen_while_they_are_recorded() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let source = cluster.dir().join("source");
    fs::write(&source, Noise::new(3).bytes(3_000_000)).expect("writes");
    let old = std::time::SystemTime::now() - std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(&source).and_then(|file| file.set_modified(old)).expect("sets the time");
    cluster.torchfs(["put", text(&source), "/large"]).ok();
    fs::read(mount.join("large")).expect("reads");
    wait_until("it is whole in the cache", || mount.stats()["cache"]["used_bytes"] == 3_000_000);
    let trace = cluster.dir().join("large.trace");
    let recorder = record(&cluster, &mount, &trace);
    let before = mount.stats()["passthrough_opens"].clone();
    let file = fs::File::open(mount.join("large")).expect("opens");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advises");
    assert_eq!(fs::read(mount.join("large")).expect("reads").len(), 3_000_000);
    drop(file);
    stop(recorder);
    assert_eq!(mount.stats()["passthrough_opens"], before);
    let summary = json(&cluster, &["trace", "summary", text(&trace), "--json"]);
    assert_eq!(count(&summary, "read", "bytes"), 3_000_000, "{summary}");
    mount.unmount();
}
