//! What the command line takes and what it refuses.

use super::values::{address, peers};
use super::*;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once(&"torchfs").chain(words))
}

fn verb(words: &[&str]) -> Verb {
    parse(words).expect("parses").verb
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_teaches_with_an_example() {
    for command in Cli::command().get_subcommands() {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&format!("torchfs {}", command.get_name())), "{} shows no example", command.get_name());
    }
}

/// A command and all below it.
fn with_subcommands(command: &Command) -> Vec<&Command> {
    let below = command.get_subcommands().flat_map(with_subcommands);
    std::iter::once(command).chain(below).collect()
}

#[test]
fn what_follows_the_flags_is_wrapped_once() {
    const COLUMNS: usize = 80;
    // A paragraph is one line, which is wrapped when it is shown; other lines fit as they are.
    let is_prose = |line: &str| !line.is_empty() && !line.starts_with(' ') && !line.ends_with(':');
    let root = Cli::command();
    for command in with_subcommands(&root) {
        let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let lines: Vec<&str> = help.lines().collect();
        for pair in lines.windows(2) {
            assert!(!(is_prose(pair[0]) && is_prose(pair[1])), "{}: {}", command.get_name(), pair[0]);
        }
        for line in lines.iter().filter(|line| !is_prose(line)) {
            assert!(line.chars().count() <= COLUMNS, "{}: {line}", command.get_name());
        }
    }
}

#[test]
fn what_asks_no_cluster_shows_no_flag_for_one() {
    let mut root = Cli::command();
    root.build();
    let shows = |words: &[&str]| {
        let command = words.iter().try_fold(&root, |command, word| command.find_subcommand(word)).expect("a command");
        command.get_arguments().any(|arg| arg.get_id() == "meta" && !arg.is_hide_set())
    };
    for words in [&["sim"][..], &["trace", "summary"], &["trace", "replay"], &["stats"], &["warm"], &["pin"]] {
        assert!(!shows(words), "{words:?}");
    }
    assert!(shows(&["ls"]) && shows(&["mount"]) && shows(&["recover", "put"]));
    // It is taken all the same.
    assert_eq!(parse(&["warm", "m", "--meta", "a:1,b:2"]).expect("parses").global.meta, ["a:1", "b:2"]);
    assert_eq!(parse(&["--meta", "a:1", "trace", "summary", "f"]).expect("parses").global.meta, ["a:1"]);
}

#[test]
fn the_verbs_take_their_flags() {
    let lines: &[&[&str]] = &[
        &["up", "--data", "d", "--metas", "3", "--stores", "6", "--port", "7100", "--ec", "4+2", "--mount", "m"],
        &["meta", "--id", "1", "--listen", "a:1", "--peers", "1=a:1,2=b:1", "--data", "d", "--ec", "4+2"],
        &[
            "store",
            "--listen",
            "a:1",
            "--meta",
            "a:1,b:1",
            "--data",
            "d",
            "--capacity",
            "10G",
            "--domain",
            "host=h,rack=r",
        ],
        &["mount", "m", "--cache-dir", "c", "--cache-size", "1G", "--background"],
        &["mount", "m", "--cache-size", "25%", "--eviction", "lfu", "--prefetch", "none"],
        &["umount", "--lazy", "m", "n"],
        &["trace", "record", "m", "f", "--for", "30s"],
        &["trace", "summary", "f", "--files", "3", "--json", "--plot", "p.svg"],
        &["trace", "replay", "f", "d", "--speed", "max", "--make-files", "--reads", "whole", "--json"],
        &["recover"],
        &["recover", "list", "--json", "--cache-dir", "c"],
        &["recover", "--cache-dir", "c", "put", "id", "/a"],
        &["recover", "drop", "id", "other"],
        &["stats"],
        &["stats", "m", "--watch"],
        &["stats", "--watch=5", "--json"],
        &["put", "-r", "a", "b", "/c"],
        &["get", "-r", "/a", "/b", "c"],
        &["ls", "-l", "-R", "--json", "/"],
        &["ls"],
        &["cat", "/a", "-"],
        &["stat", "--json", "/a"],
        &["mkdir", "-p", "/a"],
        &["mv", "/a", "/b"],
        &["rm", "-r", "/a"],
        &["du", "--json", "/a"],
        &["df", "--json"],
        &["ln", "-s", "a", "/b"],
        &["status", "--json"],
        &["policy", "get", "/a"],
        &["policy", "set", "/a", "--ec", "6+3"],
        &["sim"],
        &[
            "sim",
            "--files",
            "10",
            "--size",
            "1M",
            "--epochs",
            "2",
            "--order",
            "sequential",
            "--json",
            "--plot",
            "p.svg",
        ],
        &["sim", "--cache", "5%,1G", "--policy", "fifo,filo,lru,lfu,schedule", "--prefetch", "none,sequential,history"],
        &[
            "sim",
            "trace",
            "--announce",
            "ahead",
            "--workers",
            "4",
            "--batch",
            "8",
            "--fetch-opens",
            "4",
            "--fetches",
            "8",
        ],
        &["demo"],
        &["demo", "d"],
        &["completions", "zsh"],
    ];
    for words in lines {
        assert_eq!(verb(words).name(), words[0]);
    }
}

#[test]
fn the_cluster_is_named_before_or_after_the_verb() {
    for words in [["--meta", "a:1,b:2", "ls"], ["ls", "--meta", "a:1,b:2"]] {
        assert_eq!(parse(&words).expect("parses").global.meta, ["a:1", "b:2"]);
    }
}

#[test]
fn wrong_lines_are_refused() {
    let lines: &[&[&str]] = &[
        &[],
        &["fly"],
        &["up"],
        &["up", "--data", "d", "--metas", "0"],
        &["up", "--data", "d", "--ec", "4"],
        &["meta", "--id", "1", "--listen", "a:1", "--data", "d"],
        &["meta", "--id", "1", "--listen", "a:1", "--peers", "a:1", "--data", "d"],
        &["store", "--listen", "a:1", "--data", "d", "--capacity", "lots"],
        &["store", "--listen", "a:1", "--data", "d", "--domain", "shelf=1"],
        &["put", "a"],
        &["ls", "relative"],
        &["mv", "/a"],
        &["policy", "set", "/a"],
        &["completions", "cobol"],
        &["ls", "--no-such-flag"],
        &["sim", "--policy", "mru"],
        &["sim", "--cache", "0%"],
        &["sim", "trace", "--files", "10"],
        &["sim", "--files", "0"],
    ];
    for words in lines {
        let error = parse(words).expect_err(&words.join(" "));
        assert!(error.use_stderr() && error.exit_code() == 2, "{words:?}: {error}");
        assert_ne!(error.kind(), ErrorKind::DisplayHelp);
    }
}

#[test]
fn a_relative_path_is_told_how_to_write_it() {
    let message = parse(&["ls", "data"]).expect_err("refused").to_string();
    assert!(message.contains("begins with '/': write /data"), "{message}");
}

#[test]
fn sizes_are_binary_unless_they_say_b() {
    let table = [
        ("0", 0),
        ("123", 123),
        ("10G", 10 << 30),
        ("10g", 10 << 30),
        ("500GiB", 500 << 30),
        ("10GB", 10_000_000_000),
        ("1.5M", 3 << 19),
        ("4 KiB", 4096),
        ("7b", 7),
    ];
    for (text, bytes) in table {
        assert_eq!(text.parse::<Size>(), Ok(Size(bytes)), "{text}");
    }
    for bad in ["", "G", "10X", "-1", "1.2.3", "99999999999P", "ten"] {
        assert!(bad.parse::<Size>().is_err(), "{bad}");
    }
}

#[test]
fn a_part_is_one_of_a_disk_or_of_all_files() {
    let message = parse(&["sim", "--cache", "200%"]).expect_err("refused").to_string();
    assert!(message.contains("'200%' is no part of all files: write 1% to 100%"), "{message}");
    let message = parse(&["mount", "m", "--cache-size", "200%"]).expect_err("refused").to_string();
    assert!(message.contains("'200%' is no part of a disk"), "{message}");
}

#[test]
fn peers_are_numbered_once_each() {
    let two = peers("2=b:7100, 1=a:7100").expect("parses");
    assert_eq!(two.into_iter().collect::<Vec<_>>(), [(MetaId(1), "a:7100".into()), (MetaId(2), "b:7100".into())]);
    for bad in ["", "1", "a:1", "0=a:1", "1=a", "1=a:x", "1=:5", "1=a:1,1=b:1", "x=a:1"] {
        assert!(peers(bad).is_err(), "{bad}");
    }
    assert!(address("[::1]:7100").is_ok());
}

#[test]
fn remote_paths_keep_their_bytes() {
    let odd = Remote::parse(OsStr::from_bytes(b"/a\xff\n b//")).expect("parses");
    assert_eq!(odd.bytes(), b"/a\xff\n b");
    assert!(odd.names_folder());
    assert_eq!(odd.file_name(), Some(OsStr::from_bytes(b"a\xff\n b")));
    assert_eq!(odd.parent().bytes(), b"/");
    assert_eq!(odd.join(b"x").bytes(), b"/a\xff\n b/x");

    let root = Remote::parse(OsStr::new("///")).expect("parses");
    assert_eq!((root.bytes(), root.file_name()), (&b"/"[..], None));
    assert_eq!(root.join(b"x").bytes(), b"/x");
    assert!(Remote::parse(OsStr::new("")).is_err());
}

#[test]
fn what_is_drawn_is_svg() {
    assert!(parse(&["sim", "--plot", "hits.SVG"]).is_ok());
    let refused = parse(&["trace", "summary", "a.trace", "--plot", "opens.png"]).expect_err("it would be no PNG");
    assert!(refused.to_string().contains("ends in .svg"), "{refused}");
}
