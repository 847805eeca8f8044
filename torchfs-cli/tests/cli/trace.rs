//! `torchfs trace summary` and `replay`, and the simulator on a recording: no mount, whole command lines. Recording is tested with
//! a mount.

use crate::fixture::{Finished, run, torchfs};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use torchfs_core::InodeId;
use torchfs_core::meta::Name;
use torchfs_core::trace::{Encoder, Item, Op, Record};

const FILES: u64 = 12;
const FILE_BYTES: u64 = 5000;

/// A recording of two epochs over twelve files in `/data`, the second one backward: each is opened, read in two parts and closed.
fn recording(folder: &Path) -> PathBuf {
    let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH);
    let mut name = |ino, parent, name: String| {
        let (ino, parent, name) = (InodeId(ino), InodeId(parent), Name::new(name).expect("a name"));
        encoder.add(&Item::Name { ino, parent, name });
    };
    name(2, 1, "data".to_owned());
    (0..FILES).for_each(|file| name(10 + file, 2, format!("{file:02}.png")));
    let order = (0..FILES).chain((0..FILES).rev());
    for (handle, file) in (1..).zip(order) {
        let at = |ms: u64| Duration::from_millis(handle * 10 + ms);
        let of = |op, ms| {
            let took = Duration::from_micros(100);
            Record { began: at(ms), took, thread: 77, ino: InodeId(10 + file), handle, ..Record::of(op) }
        };
        encoder.add(&Item::Op(Record { result: FILE_BYTES, ..of(Op::Open, 0) }));
        for (ms, offset, result) in [(1, 0, 4096), (2, 4096, FILE_BYTES - 4096)] {
            encoder.add(&Item::Op(Record { offset, len: 4096, result, ..of(Op::Read, ms) }));
        }
        encoder.add(&Item::Op(of(Op::Release, 3)));
    }
    let path = folder.join("train.trace");
    std::fs::write(&path, encoder.take()).expect("writes");
    path
}

fn trace(words: &[&str]) -> Finished {
    run(&mut torchfs(["trace"].iter().chain(words)), b"")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn json(finished: &Finished) -> Value {
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    serde_json::from_slice(&finished.stdout).expect("JSON")
}

#[test]
fn a_summary_counts_operations_epochs_and_files_and_draws_them() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, plot) = (recording(folder.path()), folder.path().join("train.svg"));
    let summed = json(&trace(&["summary", text(&path), "--json", "--files", "3", "--plot", text(&plot)]));
    assert_eq!((&summed["operations"], &summed["lost"], &summed["is_torn"]), (&96.into(), &0.into(), &false.into()));
    assert_eq!(summed["ops"][0]["op"], "read");
    assert_eq!((&summed["ops"][0]["requests"], &summed["ops"][0]["bytes"]), (&48.into(), &(24 * FILE_BYTES).into()));
    assert_eq!((&summed["reads"]["reads"], &summed["reads"]["sequential"]), (&48.into(), &48.into()));
    let epochs = summed["epochs"].as_array().expect("epochs");
    let opens: Vec<_> = epochs.iter().map(|epoch| epoch["opens"].as_u64()).collect();
    assert_eq!(opens, [Some(FILES), Some(FILES)]);
    assert_eq!((summed["files"].as_array().map(Vec::len), &summed["files_opened"]), (Some(3), &FILES.into()));
    assert_eq!((&summed["files"][0]["path"], &summed["files"][0]["opens"]), (&"/data/00.png".into(), &2.into()));
    let drawn = std::fs::read_to_string(&plot).expect("drawn");
    assert_eq!(drawn.matches("h0").count(), 24, "a dot for each open");
    assert!(drawn.contains(">epoch 2<"), "{drawn}");

    let table = trace(&["summary", text(&path)]);
    let table = String::from_utf8(table.stdout).expect("text");
    assert!(table.contains("96 operations") && table.contains("/data/09.png"), "{table}");
    assert!(table.contains("100.0 % of the reads"), "{table}");
}

#[test]
fn a_replay_reads_what_was_read_and_names_what_is_missing() {
    let folder = tempfile::tempdir().expect("folder");
    let (path, target) = (recording(folder.path()), folder.path().join("other"));
    std::fs::create_dir(&target).expect("makes");
    let replay = |words: &[&str]| {
        trace(&[&["replay", text(&path), text(&target), "--speed", "max", "--json", "-q"], words].concat())
    };

    let missing = replay(&[]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.stderr.contains("/data/00.png: No such file"), "{}", missing.stderr);
    assert!(missing.stderr.contains("12 files could not be replayed"), "{}", missing.stderr);
    assert!(missing.stderr.contains("--make-files"), "{}", missing.stderr);

    let made = json(&replay(&["--make-files"]));
    assert_eq!((&made["made_files"], &made["failed_files"], &made["threads"]), (&FILES.into(), &0.into(), &1.into()));
    assert_eq!((&made["opens"]["requests"], &made["reads"]["requests"]), (&24.into(), &48.into()));
    assert_eq!(made["read_bytes"], 24 * FILE_BYTES);
    assert_eq!(std::fs::metadata(target.join("data/07.png")).expect("is there").len(), FILE_BYTES);

    std::fs::write(target.join("data/07.png"), "short").expect("writes");
    let whole = json(&replay(&["--reads", "whole"]));
    assert_eq!((&whole["made_files"], &whole["read_bytes"]), (&0.into(), &(22 * FILE_BYTES + 2 * 5).into()));
}

#[test]
fn a_replay_makes_the_pauses_that_were_made() {
    let folder = tempfile::tempdir().expect("folder");
    let path = recording(folder.path());
    let seconds = |speed: &str| {
        let words = ["replay", text(&path), text(folder.path()), "--make-files", "--json", "-q", "--speed", speed];
        json(&trace(&words))["seconds"].as_f64().expect("a number")
    };
    // Of the 230 ms that were recorded hardly ten were operations.
    let (as_recorded, half) = (seconds("1x"), seconds("2x"));
    assert!(as_recorded > 0.2 && half > 0.1, "{as_recorded} {half}");
}

#[test]
fn the_simulator_takes_a_recording() {
    let folder = tempfile::tempdir().expect("folder");
    let path = recording(folder.path());
    let words = ["sim", text(&path), "--json", "--cache", "50%", "--policy", "lru", "--prefetch", "none"];
    let simulated = json(&run(&mut torchfs(words), b""));
    assert_eq!((&simulated["files"], &simulated["epochs"]), (&FILES.into(), &2.into()));
    // Backward, the six that were read last are still there.
    assert_eq!(simulated["runs"][0]["hit_rate"], 0.5);
}

#[test]
fn what_cannot_be_read_is_told_with_the_next_step() {
    let folder = tempfile::tempdir().expect("folder");
    let path = recording(folder.path());
    let whole = std::fs::read(&path).expect("reads");
    let changed = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("writes");
        path
    };
    let torn = changed("torn", &whole[..whole.len() - 1]);
    let summed = json(&trace(&["summary", text(&torn), "--json"]));
    assert_eq!((&summed["is_torn"], &summed["operations"]), (&true.into(), &95.into()));

    let mut damaged = whole.clone();
    damaged[100] ^= 1;
    let (damaged, empty) = (changed("damaged", &damaged), changed("text", b"/a\n/b\n"));
    for (words, code, said) in [
        (["summary", text(&damaged)].as_slice(), 7, "damaged at byte 24"),
        (&["summary", text(&empty)], 2, "this is no trace"),
        (&["summary", "/no/such/trace"], 3, "/no/such/trace"),
        (&["replay", text(&path), "/no/such/folder"], 3, "/no/such/folder"),
        (&["replay", text(&path), text(&path)], 10, "is not a folder"),
        (&["record", text(folder.path()), text(&path)], 4, "train.trace"),
        (&["record", text(folder.path()), "/tmp/no/such/f"], 3, "/tmp/no/such/f"),
    ] {
        let finished = trace(words);
        assert_eq!(finished.code, Some(code), "{words:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{words:?}: {}", finished.stderr);
    }
    let unmounted = folder.path().join("new.trace");
    let finished = trace(&["record", text(folder.path()), text(&unmounted)]);
    assert!(finished.code == Some(3) && finished.stderr.contains("not the mountpoint"), "{}", finished.stderr);
    assert!(!unmounted.exists(), "nothing is left of it");
}
