//! Mounts answer from memory as long as they hold a lease: no request for what they know, and never anything old, whatever
//! happens to metadata nodes and other mounts.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use torchfs_tests::{Mount, fuse_or_skip, mounted_or_skip, wait_until, write_small_files};

/// Longer than the kernel answers by itself.
const KERNEL_FORGETS: Duration = Duration::from_millis(1100);

fn stats(mount: &Mount) -> serde_json::Value {
    let text = fs::read_to_string(mount.join(".torchfs/stats")).expect("every mount has it");
    serde_json::from_str(&text).expect("JSON")
}

/// What `ls -lR` and a training epoch do: list all folders, look at all files, read them. Counts the files.
fn walk(folder: &Path) -> usize {
    let mut files = 0;
    for entry in fs::read_dir(folder).expect("lists") {
        let path = entry.expect("an entry").path();
        if fs::symlink_metadata(&path).expect("is there").is_dir() {
            files += walk(&path);
        } else {
            assert!(!fs::read(&path).expect("reads").is_empty());
            files += 1;
        }
    }
    files
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a thread of the test's own, no runtime's")]
fn a_second_walk_over_everything_asks_metadata_nothing() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let source = cluster.dir().join("source");
    write_small_files(&source, 6, 50, 5000);
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    assert_eq!(walk(&mount.join("data")), 300);
    let counts = || {
        let stats = stats(&mount);
        let count = |value: &serde_json::Value| value.as_u64().expect("a number");
        (count(&stats["requests"]["metadata_reads"]["requests"]), count(&stats["metadata_remembered"]))
    };
    // On a machine that is busy with other things a lease may lapse for a moment: then another walk shows it.
    wait_until("a walk asks nothing", || {
        std::thread::sleep(KERNEL_FORGETS);
        let before = counts();
        assert_eq!(walk(&mount.join("data")), 300);
        let after = counts();
        println!("{} requests, {} answers from memory", after.0 - before.0, after.1 - before.1);
        after.0 == before.0 && after.1 - before.1 >= 300
    });
    mount.unmount();
}

/// One mount writes numbers, the other reads them: what was closed before the open is there, or something later.
#[test]
#[expect(clippy::disallowed_methods, reason = "threads of the test's own, no runtime's")]
fn an_open_sees_what_was_closed_elsewhere_while_leaders_are_killed_and_hang() {
    let Some((mut cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let names = ["a", "b", "c"];
    for name in names {
        fs::write(one.join(name), format!("{:020}", 0)).expect("writes");
    }
    let closed = names.map(|_| AtomicU64::new(0));
    let (stop, read) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (name, closed) in names.iter().zip(&closed) {
            let (source, target, stop, read) = (one.join(name), two.join(name), &stop, &read);
            scope.spawn(move || {
                let mut number = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    fs::write(&source, format!("{number:020}")).expect("writes");
                    closed.store(number, Ordering::SeqCst);
                    // Files that nobody changes for a while are answered from memory.
                    std::thread::sleep(Duration::from_millis(number % 7 * 5));
                }
            });
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let floor = closed.load(Ordering::SeqCst);
                    let text = fs::read_to_string(&target).expect("reads");
                    let number: u64 = text.parse().expect("a whole version");
                    assert!(number >= floor, "{number} was read after {floor} was closed");
                    read.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(floor % 5));
                }
            });
        }
        let moves_on = || {
            let before = (closed.each_ref().map(|closed| closed.load(Ordering::SeqCst)), read.load(Ordering::Relaxed));
            wait_until("files are written and read", || {
                let written =
                    closed.iter().zip(before.0).all(|(closed, before)| closed.load(Ordering::SeqCst) > before + 5);
                written && read.load(Ordering::Relaxed) > before.1 + 50
            });
        };
        for round in 0..4 {
            moves_on();
            let leader = cluster.leader();
            if round % 2 == 0 {
                cluster.kill_meta(leader);
                moves_on();
                cluster.start_meta(leader);
            } else {
                // It wakes up while another leads, and does not know yet.
                cluster.freeze_meta(leader);
                moves_on();
                cluster.thaw_meta(leader);
            }
        }
        moves_on();
        stop.store(true, Ordering::Relaxed);
    });
    let remembered = stats(&two)["metadata_remembered"].as_u64().expect("a number");
    println!("{} reads, {remembered} answers from memory", read.load(Ordering::Relaxed));
    assert!(remembered > 50, "{remembered}");
    one.unmount();
    two.unmount();
}

#[test]
fn a_mount_that_hangs_holds_others_up_once() {
    if !fuse_or_skip() {
        return;
    }
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    fs::create_dir(one.join("before")).expect("mkdir");
    assert!(two.join("before").is_dir());
    two.freeze();
    let start = Instant::now();
    for number in 0..100 {
        fs::create_dir(one.join(format!("while-{number}"))).expect("mkdir");
    }
    // Were each of them held up for a second, it would be 100.
    assert!(start.elapsed() < Duration::from_secs(50), "{:?}", start.elapsed());
    println!("100 folders in {:?}", start.elapsed());
    two.thaw();
    assert_eq!(fs::read_dir(two.path()).expect("lists").count(), 101);
    one.unmount();
    two.unmount();
}
