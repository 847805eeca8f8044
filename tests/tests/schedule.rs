//! Announcing orders to a mount, as a person does with a shell: `.torchfs/schedule`.

use serde_json::Value;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use torchfs_tests::{Cluster, Mount, Noise, mounted_or_skip, run, wait_until, write_file};

const FILES: usize = 200;
const FILE_BYTES: usize = 16 * 1024;

fn name(number: usize) -> String {
    format!("class{}/{number:04}.bin", number % 4)
}

/// Files below /data, by their paths.
fn make(cluster: &Cluster) -> Vec<Vec<u8>> {
    let (source, mut noise) = (cluster.dir().join("source"), Noise::new(3));
    let contents: Vec<Vec<u8>> = (0..FILES).map(|_| noise.bytes(FILE_BYTES)).collect();
    contents.iter().enumerate().for_each(|(number, content)| write_file(&source.join(name(number)), content));
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    contents
}

fn schedule(mount: &Mount) -> PathBuf {
    mount.join(".torchfs/schedule")
}

fn shown(mount: &Mount) -> Value {
    serde_json::from_str(&fs::read_to_string(schedule(mount)).expect("reads")).expect("JSON")
}

fn epoch_stats(mount: &Mount, epoch: u64) -> Option<Value> {
    let stats = fs::read_to_string(mount.join(".torchfs/stats")).expect("reads");
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    stats["epochs"].as_array().expect("a list").iter().find(|of| of["epoch"] == epoch).cloned()
}

#[test]
fn an_order_from_the_shell_is_fetched_before_it_is_opened() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let contents = make(&cluster);
    let script = "cd \"$1\" && find data -type f | sort -R --random-source=/bin/sh > .torchfs/schedule";
    run(Command::new("sh").args(["-ec", script, "sh", mount.path().to_str().expect("UTF-8")])).ok();
    let text = shown(&mount);
    assert_eq!((&text["epochs"][0]["epoch"], &text["epochs"][0]["entries"]), (&0.into(), &FILES.into()), "{text}");
    assert_eq!((&text["epochs"][0]["unknown"], &text["error"]), (&0.into(), &Value::Null), "{text}");

    // The same order again, as numbers, for the next epoch: all of it is in the cache by then.
    let mut order: Vec<usize> = (0..FILES).collect();
    order.reverse();
    let lines: String = order.iter().map(|number| format!("{number}\n")).collect();
    fs::write(schedule(&mount), format!("{{\"epoch\": 1, \"folder\": \"data\"}}\n{lines}")).expect("announced");
    assert_eq!(shown(&mount)["epochs"].as_array().expect("a list").len(), 2, "both are announced");
    wait_until("everything is in the cache", || {
        let stats = fs::read_to_string(mount.join(".torchfs/stats")).expect("reads");
        let stats: Value = serde_json::from_str(&stats).expect("JSON");
        stats["cache"]["used_bytes"] == (FILES * FILE_BYTES) as u64
    });
    for (number, content) in contents.iter().enumerate() {
        assert!(&fs::read(mount.join("data").join(name(number))).expect("reads") == content, "{}", name(number));
    }
    let stats = epoch_stats(&mount, 0).expect("the epoch is counted");
    assert_eq!((&stats["opens"], &stats["misses"]), (&FILES.into(), &0.into()), "{stats}");
    assert_eq!(stats["storage_bytes"], FILES * FILE_BYTES, "each once: {stats}");
    let hits = stats["hits"].as_u64().expect("a number") as usize;
    assert!(hits >= FILES * 9 / 10, "some may be late, as room is taken before bytes come: {stats}");
    let point = mount.path().to_str().expect("UTF-8");
    let table = cluster.torchfs(["stats", point, "--epochs"]).ok();
    assert!(table.contains("from storage") && table.contains("epoch 0 waited"), "{table}");
    let json: Value =
        serde_json::from_str(&cluster.torchfs(["stats", point, "--epochs", "--json"]).ok()).expect("JSON");
    assert_eq!(json[0]["opens"], FILES, "{json}");
}

#[test]
fn what_is_wrong_with_a_text_is_the_result_of_its_close_and_can_be_read() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    make(&cluster);
    let announce = |text: &str| {
        let mut file = File::create(schedule(&mount)).expect("opens");
        file.write_all(text.as_bytes()).expect("writes");
        file.sync_all()
    };
    announce("data/class0/0000.bin\nnothing/here\ndata/class1/0001.bin\ndata\ndata/class0/0000.bin\n").expect("taken");
    let before = shown(&mount);
    let of = |field: &str| before["epochs"][0][field].clone();
    assert_eq!((of("entries"), of("unknown"), of("repeated")), (3.into(), 2.into(), 1.into()), "{before}");
    assert_eq!((of("unknown_first"), of("repeated_first")), ("/nothing/here".into(), "/data/class0/0000.bin".into()));

    for (text, what) in [
        ("{\"epok\": 1}\ndata\n", "line 1 "),
        ("{\"folder\": \"data\"}\n1\nx\n", "line 3 "),
        ("no/such/file\n", "none of its 1 entries"),
        ("{\"epoch\": 1, \"folder\": \"none\"}\n0\n", "none"),
    ] {
        let error = announce(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{text}: {error}");
        let now = shown(&mount);
        assert!(now["error"].as_str().is_some_and(|error| error.contains(what)), "{now}");
        assert_eq!(now["epochs"], before["epochs"], "what was announced before stays");
    }
    // Every file can be read whatever is announced, and what is right ends the complaint.
    fs::read(mount.join("data").join(name(7))).expect("reads");
    announce("{\"epoch\": 9}\ndata/class3/0007.bin\n").expect("taken");
    assert_eq!(shown(&mount)["error"], Value::Null);
    // One order after the other, as `>>` writes them: what the kernel takes for the end is that of the text before.
    for number in 10..13 {
        let mut file = File::options().append(true).open(schedule(&mount)).expect("opens");
        write!(file, "{{\"epoch\": {number}}}\ndata/class3/0007.bin\n").expect("is a text of its own");
        file.sync_all().expect("taken");
    }
    assert_eq!(shown(&mount)["epochs"].as_array().map(Vec::len), Some(5));
    // What is refused withdraws nothing.
    let file = File::create(schedule(&mount)).expect("opens");
    file.write_at(b"data/class3/0007.bin\ndata/cl", 0).expect("writes");
    file.write_at(b"ass3/0011.bin\n", 70).expect_err("not where it ends");
    file.sync_all().expect_err("a part is missing");
    drop(file);
    let now = shown(&mount);
    assert!(now["error"].as_str().is_some_and(|error| error.contains("first byte")), "{now}");
    assert_eq!(now["epochs"].as_array().map(Vec::len), Some(5));
    announce("\n").expect("taken");
    assert_eq!(shown(&mount)["epochs"], Value::Array(Vec::new()), "a text of one newline forgets all, by its close");
    announce("data/class3/0007.bin\n").expect("taken");
    File::create(schedule(&mount)).expect("opens and closes");
    wait_until("a text of no bytes forgets all", || shown(&mount)["epochs"] == Value::Array(Vec::new()));
    let remove = fs::remove_file(schedule(&mount)).expect_err("it is the mount's own");
    assert_eq!(remove.kind(), ErrorKind::PermissionDenied);
}

/// As a reader does of more than fits into memory: no page of it stays there.
fn read_and_drop(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).expect("opens");
    let mut content = Vec::new();
    file.read_to_end(&mut content).expect("reads");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advises");
    content
}

#[test]
fn what_the_kernel_is_given_of_the_next_file_is_the_version_that_an_open_finds() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let contents = make(&cluster);
    let lines: String = (0..FILES).map(|number| format!("data/{}\n", name(number))).collect();
    let path = |number: usize| mount.join("data").join(name(number));
    let read = |number: usize| assert!(read_and_drop(&path(number)) == contents[number], "{}", name(number));
    // Once, so that all is in the cache and the kernel knows the files; and a while, so that it is noticed that pages do not stay.
    fs::write(schedule(&mount), format!("{{\"epoch\": 0}}\n{lines}")).expect("announced");
    (0..FILES).for_each(read);
    fs::write(schedule(&mount), format!("{{\"epoch\": 1}}\n{lines}")).expect("announced");
    (0..40).for_each(read);

    // One file that was not next is opened: it is read from the cache, and so is the one after it.
    let hits = || mount.stats()["cache"]["hits"].as_u64().expect("a number");
    let mut starts = (50..FILES - 1).step_by(10);
    let mut give_next = || {
        let given = starts.find(|&start| {
            let before = hits();
            read(start);
            (0..200).any(|_| hits() == before + 2)
        });
        given.expect("one of them is given the next") + 1
    };
    let next = give_next();
    read(next);
    // It is changed by another client, and by this one.
    let (next, other) = (give_next(), Noise::new(9).bytes(FILE_BYTES + 5000));
    fs::write(two.join("data").join(name(next)), &other).expect("writes");
    assert!(fs::read(path(next)).expect("reads") == other, "what another wrote");
    let (next, other) = (give_next(), Noise::new(10).bytes(100));
    fs::write(path(next), &other).expect("writes");
    assert!(fs::read(path(next)).expect("reads") == other, "what this one wrote");
    let next = give_next();
    let appending = fs::OpenOptions::new().append(true).open(path(next)).expect("opens");
    (&appending).write_all(b"more").expect("writes");
    let all = [&contents[next][..], b"more"].concat();
    assert!(fs::read(path(next)).expect("reads") == all, "what is not stored yet");
    drop(appending);
    assert!(fs::read(two.join("data").join(name(next))).expect("reads") == all);
    let next = give_next();
    fs::rename(path(next - 3), path(next)).expect("renames");
    assert!(fs::read(path(next)).expect("reads") == contents[next - 3], "what was renamed");
    two.unmount();
    mount.unmount();
}
