//! Trees and large files through the command line.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::process::Command;
use torchfs_tests::{
    Cluster, Mount, Noise, assert_same_tree, binary, fuse_or_skip, run, write_file, write_small_files,
};

/// The prototype lost files above about 396 MB: exit code 0, nothing stored.
#[test]
fn regression_01_a_file_of_450_mb_arrives_whole() {
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    let file = fs::File::create(&source).expect("creates");
    let mut noise = Noise::new(1);
    for part in 0..450 {
        file.write_all_at(&noise.bytes(1_000_000), part * 1_000_000).expect("writes");
    }
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/big"]).ok();
    let copy = cluster.dir().join("copy");
    cluster.torchfs(["get", "/big", copy.to_str().expect("UTF-8")]).ok();
    run(Command::new("cmp").arg(&source).arg(&copy)).ok();
    let status = cluster.status();
    let number = |field: &str| status[field].as_f64().expect("a number");
    let ratio = number("stored_bytes") / number("bytes");
    assert!((1.5..1.53).contains(&ratio), "4+2 stores one and a half times: {ratio}");
    if fuse_or_skip() {
        larger_than_the_cache(&cluster, &source);
    }
}

fn larger_than_the_cache(cluster: &Cluster, source: &std::path::Path) {
    let mount = Mount::start_with(cluster, "mnt", &["--cache-size", "100M"]);
    run(Command::new("cmp").arg(source).arg(mount.join("big"))).ok();
    let stats = mount.stats()["cache"].clone();
    let read = fs::metadata(source).expect("is there").len();
    assert!(stats["storage_bytes"].as_u64() >= Some(read) && stats["misses"].as_u64() > Some(0), "{stats}");
    run(Command::new("cp").arg(source).arg(mount.join("big2"))).ok();
    let used = run(Command::new("du").args(["-sm"]).arg(cluster.dir().join("mnt-cache"))).ok();
    let megabytes: u64 = used.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number");
    assert!(megabytes <= 150, "the cache holds {megabytes} MiB of the 100 it may");
    mount.unmount();
    let copy = cluster.dir().join("copy2");
    cluster.torchfs(["get", "/big2", copy.to_str().expect("UTF-8")]).ok();
    run(Command::new("cmp").arg(source).arg(&copy)).ok();
}

#[test]
fn small_files_are_packed_and_come_back() {
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    write_small_files(&source, 4, 500, 20_000);
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    let status = cluster.status();
    assert_eq!(status["files"], 2000);
    assert!(status["stripes"].as_u64() < Some(40), "2000 files of 10 KB are a few stripes: {}", status["stripes"]);
    let copy = cluster.dir().join("copy");
    cluster.torchfs(["get", "-r", "/data", copy.to_str().expect("UTF-8")]).ok();
    assert_same_tree(&source, &copy);
    // Again over what is there.
    fs::write(source.join("class-0/00000.bin"), b"changed").expect("writes");
    cluster.torchfs(["put", "-r", &format!("{}/class-0", source.display()), "/data"]).ok();
    assert_eq!(cluster.torchfs(["cat", "/data/class-0/00000.bin"]).stdout, b"changed");
    let listed = cluster.torchfs(["ls", "-R", "/data"]).ok();
    assert_eq!(listed.lines().filter(|line| line.ends_with(".bin")).count(), 2000);
}

#[test]
fn removed_files_are_not_counted_any_more() {
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    write_file(&source, &Noise::new(1).bytes(30 << 20));
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/f"]).ok();
    assert!(cluster.status()["stored_bytes"].as_u64() >= Some(45 << 20));
    cluster.torchfs(["rm", "/f"]).ok();
    let status = cluster.status();
    assert_eq!(status["files"], 0);
    assert_eq!(status["bytes"], 0);
}

#[test]
fn a_folder_can_have_a_profile_of_its_own() {
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    let content = Noise::new(1).bytes(8 << 20);
    write_file(&source, &content);
    for (folder, profile) in [("/mirror", "1+2"), ("/thin", "5+1"), ("/fft", "novelpoly:3+2")] {
        cluster.torchfs(["mkdir", folder]).ok();
        cluster.torchfs(["policy", "set", folder, "--ec", profile]).ok();
        assert!(cluster.torchfs(["policy", "get", folder]).ok().contains(profile));
        cluster.torchfs(["put", source.to_str().expect("UTF-8"), &format!("{folder}/f")]).ok();
        assert!(cluster.torchfs(["cat", &format!("{folder}/f")]).stdout == content);
    }
}

/// `put <(command) /file` and `put /dev/stdin /file`; below a folder that is copied whole, a pipe stays one.
#[test]
fn what_a_pipe_gives_is_stored_as_a_file() {
    let cluster = Cluster::start();
    let bash = |script: &str| {
        let mut command = Command::new("bash");
        command.args(["-euc", script]).env("TORCHFS", binary()).env("TORCHFS_META", cluster.meta_addrs());
        run(command.current_dir(cluster.dir())).ok();
    };
    bash("\"$TORCHFS\" put <(seq 100000) /substituted; seq 100000 | \"$TORCHFS\" put /dev/stdin /stdin");
    bash("mkdir tree; mkfifo tree/pipe; (seq 100000 > tree/pipe &); \"$TORCHFS\" put tree/pipe /named");
    bash("\"$TORCHFS\" put /dev/null /empty; \"$TORCHFS\" put -r tree /tree");
    let numbers: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    for path in ["/substituted", "/stdin", "/named"] {
        assert!(cluster.torchfs(["cat", path]).stdout == numbers.as_bytes(), "{path}");
    }
    assert_eq!(cluster.torchfs(["cat", "/empty"]).stdout, b"");
    assert!(cluster.torchfs(["ls", "-l", "/tree"]).ok().starts_with('p'), "a pipe in a tree stays a pipe");
}

#[test]
fn owners_and_empty_things_are_kept() {
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    fs::create_dir_all(source.join("empty-folder")).expect("mkdir");
    write_file(&source.join("empty-file"), b"");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(source.join("empty-file"), Some(1234), Some(4321)).expect("chown");
    }
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    let copy = cluster.dir().join("copy");
    cluster.torchfs(["get", "-r", "/data", copy.to_str().expect("UTF-8")]).ok();
    assert_same_tree(&source, &copy);
    let owner = |path: std::path::PathBuf| fs::metadata(path).map(|found| (found.uid(), found.gid())).expect("stat");
    assert_eq!(owner(source.join("empty-file")), owner(copy.join("empty-file")));
}
