//! `torchfs sim`: no cluster, whole command line.

use crate::fixture::{Finished, run, torchfs};
use serde_json::Value;

fn sim(words: &[&str], stdin: &[u8]) -> Finished {
    let mut command = torchfs(["sim"].iter().chain(words));
    command.env_remove("TORCHFS_META");
    run(&mut command, stdin)
}

fn ok(words: &[&str], stdin: &[u8]) -> String {
    let finished = sim(words, stdin);
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""), "{words:?}");
    String::from_utf8(finished.stdout).expect("text")
}

/// The paper has 92.2, 99, 98.7 and 98.5 % for files read in the order of their listing, with first in, first out.
#[test]
fn the_figures_of_the_paper_come_out_of_one_command() {
    let folder = tempfile::tempdir().expect("folder");
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/figures/run.sh");
    let mut command = std::process::Command::new(script);
    let finished = run(command.arg(folder.path()).env("TORCHFS", env!("CARGO_BIN_EXE_torchfs")), b"");
    assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).expect("made");
    let hits = |figure: &str, prefetch: &str| -> Vec<f64> {
        let json: Value = serde_json::from_str(&read(&format!("{figure}.json"))).expect("JSON");
        let runs = json["runs"].as_array().expect("runs").clone();
        let of = runs.into_iter().filter(|run| run["policy"] == "fifo" && run["prefetch"] == prefetch);
        of.map(|run| run["hit_rate"].as_f64().expect("a rate")).collect()
    };
    let at_least = |rates: &[f64], least: &[f64]| {
        assert!(rates.len() == 4 && rates.iter().zip(least).all(|(rate, least)| rate >= least), "{rates:?} {least:?}");
    };
    for prefetch in ["sequential", "auto"] {
        at_least(&hits("figure4-sequential", prefetch), &[0.922, 0.99, 0.987, 0.985]);
        let without = hits("figure3-shuffled", "none").into_iter().map(|rate| rate - 0.01);
        at_least(&hits("figure4-shuffled", prefetch), &without.collect::<Vec<_>>());
    }
    at_least(&hits("figure4-shuffled", "schedule"), &[0.99; 4]);
    assert!(read("figure3-sequential.svg").contains("read in the order of their listing"));
    assert!(read("figure4-shuffled.txt").contains("shuffled anew each epoch"));
}

#[test]
fn rates_come_with_their_order_as_table_json_and_picture() {
    let folder = tempfile::tempdir().expect("folder");
    let plot = folder.path().join("hits.svg");
    let words = ["--epochs", "3", "--cache", "5%,25%", "--policy", "lru,schedule", "--prefetch", "none,schedule"];
    let table = ok(&words, b"");
    assert!(table.starts_with("2,000 files, 125 MiB, 3 times, shuffled anew each epoch (seed 1)\n"), "{table}");
    assert_eq!(table.lines().count(), 3 + 8, "{table}");

    let path = plot.to_str().expect("text");
    let json = ok(&[&words[..], &["--json", "--plot", path]].concat(), b"");
    let json: Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["order"], "shuffled anew each epoch (seed 1)");
    for run in json["runs"].as_array().expect("runs") {
        let (hits, prefetch) = (run["hit_rate"].as_f64().expect("a rate"), run["prefetch"].as_str());
        assert_eq!(hits > 0.99, prefetch == Some("schedule"), "{run}");
        assert_eq!(run["per_epoch"].as_array().map(Vec::len), Some(3));
        assert!(run["storage_bytes_per_epoch"].as_u64() >= run["optimum_bytes_per_epoch"].as_u64(), "{run}");
    }
    let drawn = std::fs::read_to_string(&plot).expect("drawn");
    assert_eq!(drawn.matches("<polyline").count(), 4);
}

#[test]
fn a_trace_is_replayed_epoch_by_epoch() {
    let trace = b"/a\t100\n/b\t100\n\n/b\n/a\n";
    let table = ok(&["-", "--cache", "50%", "--policy", "lru", "--prefetch", "none"], trace);
    let epochs: Vec<Vec<&str>> = table.lines().skip(5).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(&epochs[0][..3], ["1", "2", "0.00"], "{table}");
    assert_eq!(&epochs[1][..3], ["2", "2", "50.00"], "/b is still there: {table}");
}

#[test]
fn what_makes_no_sense_is_told() {
    for (words, stdin, code, said) in [
        (&["-"][..], &b""[..], 2, "opens no file"),
        (&["-"], b"/a\tx\n", 2, "line 1: 'x' is no number of bytes"),
        (&["/no/such/trace"], b"", 3, "/no/such/trace"),
        (&["--files", "10", "--epochs", "1", "--plot", "/no/such/folder/p.svg"], b"", 3, "/no/such/folder/p.svg"),
    ] {
        let finished = sim(words, stdin);
        assert_eq!(finished.code, Some(code), "{words:?}: {}", finished.stderr);
        assert!(finished.stderr.contains(said), "{words:?}: {}", finished.stderr);
    }
}
