//! Storage nodes on small disks of their own: a clear "no space" error, and nothing lost.

use std::path::{Path, PathBuf};
use std::process::Command;
use torchfs_tests::{Cluster, ClusterOptions, Noise, exit, run, write_file};

/// An ext4 file system of `megabytes` in a file, mounted by the loop driver; a tmpfs where there is no loop device.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(folder: &Path, megabytes: u64) -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting a small disk needs root");
            return None;
        }
        let image = folder.with_extension("img");
        std::fs::create_dir_all(folder).expect("a mountpoint");
        std::fs::File::create(&image).and_then(|file| file.set_len(megabytes << 20)).expect("an image");
        let ok = |command: &mut Command| run(command).code == Some(0);
        let mounted = ok(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))
            && ok(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(folder));
        if mounted
            || ok(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(folder))
        {
            return Some(SmallDisk(folder.to_owned()));
        }
        println!("skipped: no small disk can be mounted");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

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
