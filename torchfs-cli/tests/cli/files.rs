//! Files and folders through the command line, against a real cluster.

use crate::fixture::{Fixture, Watchdog, contents, run, torchfs};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

const ODD_NAMES: [&[u8]; 6] = [b"plain", b"a b", b"new\nline", b"\xff\xfe", b"-dash", b"quote'\"$"];

#[test]
fn a_tree_with_odd_names_comes_back_as_it_was() {
    let fixture = Fixture::start();
    let source = fixture.path("source");
    fs::create_dir_all(source.join("sub/empty")).expect("mkdir");
    for (number, name) in ODD_NAMES.iter().enumerate() {
        fs::write(source.join(OsStr::from_bytes(name)), vec![number as u8; number * 10_000]).expect("writes");
    }
    fs::write(source.join("sub").join("x".repeat(255)), "long name").expect("writes");
    fs::write(source.join("large"), (0..3_000_000u32).map(|at| at as u8).collect::<Vec<_>>()).expect("writes");

    fixture.ok([OsStr::new("put"), OsStr::new("-r"), source.as_os_str(), OsStr::new("/tree")]);
    let listed = fixture.run(["ls", "/tree"]).stdout;
    for name in ODD_NAMES {
        assert!(listed.windows(name.len()).any(|window| window == name), "{name:?} is not listed as it is");
    }
    let copy = fixture.path("copy");
    fixture.ok([OsStr::new("get"), OsStr::new("-r"), OsStr::new("/tree"), copy.as_os_str()]);
    assert_eq!(contents(&copy), contents(&source));
    assert!(copy.join("sub/empty").is_dir());

    for name in ODD_NAMES {
        let path = [b"/tree/", name].concat();
        let read = fixture.run([OsStr::new("cat"), OsStr::from_bytes(&path)]);
        let expected = fs::read(source.join(OsStr::from_bytes(name))).expect("reads");
        assert_eq!((read.code, read.stdout), (Some(0), expected), "{name:?}");
    }
}

#[test]
fn stdin_and_stdout_are_a_dash() {
    let fixture = Fixture::start();
    let bytes: Vec<u8> = (0..20_000_000u32).map(|at| (at / 7) as u8).collect();
    let put = run(&mut fixture.command(["put", "-", "/stream"]), &bytes);
    assert_eq!((put.code, put.stderr.as_str()), (Some(0), ""));
    assert!(fixture.run(["get", "/stream", "-"]).stdout == bytes);
    let short = run(&mut fixture.command(["put", "-", "/stream"]), b"short");
    assert_eq!(short.code, Some(0));
    let both = run(&mut fixture.command(["cat", "/stream", "-", "/stream"]), b"|between|");
    assert_eq!(String::from_utf8_lossy(&both.stdout), "short|between|short");
    let error = fixture.fails(10, ["put", "-", "/"]);
    assert!(error.contains("/: is a folder"), "{error}");
}

#[test]
fn a_closed_stdin_is_no_empty_file() {
    let fixture = Fixture::start();
    for words in [["put", "-", "/x"].as_slice(), &["cat", "-"]] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "exec \"$@\" <&-", "sh", env!("CARGO_BIN_EXE_torchfs")]).args(words);
        shell.env("TORCHFS_META", fixture.cluster.meta_addrs().join(","));
        let failed = run(&mut shell, b"");
        assert_eq!(failed.code, Some(2), "{failed:?}");
        assert!(failed.stderr.contains("stdin is closed"), "{failed:?}");
    }
    fixture.fails(3, ["stat", "/x"]);
    let empty = fixture.command(["put", "-", "/x"]).stdin(Stdio::null()).status();
    // Open for reading only, as a shell has it, or for both: only the first can be told from a closed one.
    assert_eq!(empty.expect("runs").code(), Some(0));
    fixture.ok(["put", "/dev/null", "/y"]);
    assert_eq!(fixture.ok(["cat", "/x", "/y"]), "");
}

/// Files of /proc say that they are empty, files of /sys that they are 4096 bytes long.
#[test]
fn files_that_do_not_tell_their_size_are_read_to_their_end() {
    let fixture = Fixture::start();
    fixture.ok(["put", "/proc/self/status", "/status"]);
    let status = fixture.ok(["cat", "/status"]);
    assert!(status.starts_with("Name:\ttorchfs\n") && status.ends_with('\n'), "{status}");
    fixture.ok(["put", "-r", "/proc/sys/kernel/random", "/random"]);
    assert_eq!(fixture.ok(["cat", "/random/poolsize"]), "256\n");
    let mtu = fs::read_to_string("/sys/class/net/lo/mtu").expect("reads");
    fixture.ok(["put", "/sys/class/net/lo/mtu", "/mtu"]);
    assert_eq!(fixture.ok(["cat", "/mtu"]), mtu);
    assert!(fixture.ok(["ls", "-l", "/mtu"]).contains(&format!(" {} ", mtu.len())));
}

#[test]
fn a_pipe_or_device_as_target_is_written_to() {
    let fixture = Fixture::start();
    let bytes: Vec<u8> = (0..3_000_000u32).map(|at| (at / 7) as u8).collect();
    assert_eq!(run(&mut fixture.command(["put", "-", "/f"]), &bytes).code, Some(0));
    let copy = fixture.path("copy");
    let line = r#"set -e; "$0" get /f >(cat >"$1"); wait $!; "$0" get /f /dev/null; test -c /dev/null"#;
    let mut shell = Command::new("bash");
    shell.args(["-c", line, env!("CARGO_BIN_EXE_torchfs")]).arg(&copy);
    shell.env("TORCHFS_META", fixture.cluster.meta_addrs().join(","));
    let done = run(&mut shell, b"");
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    assert!(fs::read(&copy).expect("written") == bytes);
    fixture.ok(["mkdir", "/folder"]);
    fixture.fails(10, ["get", "-r", "/folder", "/dev/null"]);
}

#[test]
fn an_error_of_usage_names_only_what_is_missing() {
    let failed = run(torchfs(["put"]).env("TORCHFS_META", "127.0.0.1:1"), b"");
    assert_eq!(failed.code, Some(2));
    assert!(failed.stderr.contains("Usage: torchfs put") && !failed.stderr.contains("--meta"), "{failed:?}");
}

#[test]
fn targets_are_as_cp_has_them() {
    let fixture = Fixture::start();
    let (a, b) = (fixture.path("a"), fixture.path("b"));
    fs::write(&a, "one").expect("writes");
    fs::write(&b, "two").expect("writes");
    let (a, b) = (a.to_str().expect("utf-8"), b.to_str().expect("utf-8"));

    fixture.ok(["put", a, "/new"]);
    fixture.ok(["mkdir", "/folder"]);
    fixture.ok(["put", a, b, "/folder"]);
    assert_eq!(fixture.ok(["ls", "/folder"]), "a\nb\n");
    fixture.ok(["put", b, "/new"]);
    assert_eq!(fixture.ok(["cat", "/new"]), "two");
    assert!(fixture.fails(3, ["put", a, b, "/missing"]).contains("torchfs mkdir -p /missing"));
    assert!(fixture.fails(3, ["put", a, "/missing/"]).contains("no folder /missing"));
    assert!(fixture.fails(10, ["put", a, b, "/new"]).contains("/new is not a folder"));
    let folder = fixture.folder.path().to_str().expect("utf-8");
    assert!(fixture.fails(10, ["put", folder, "/x"]).contains("add -r"));
    assert!(fixture.fails(3, ["put", "/no/such/file", "/x"]).contains("/no/such/file"));

    let out = fixture.path("out");
    fs::create_dir(&out).expect("mkdir");
    let out_text = out.to_str().expect("utf-8");
    fixture.ok(["get", "/folder/a", "/new", out_text]);
    assert_eq!(fs::read_to_string(out.join("new")).expect("reads"), "two");
    assert!(fixture.fails(10, ["get", "/folder", out_text]).contains("add -r"));
    assert!(fixture.fails(3, ["get", "/nothing", out_text]).contains("/nothing"));
    assert!(fixture.fails(3, ["get", "/new", "/folder/a", "/no/such/folder"]).contains("no folder"));
    assert!(!out.join("nothing").exists());
}

#[test]
fn names_are_made_moved_linked_and_removed() {
    let fixture = Fixture::start();
    fixture.ok(["mkdir", "-p", "/a/b/c"]);
    fixture.ok(["mkdir", "-p", "/a/b/c"]);
    fixture.fails(4, ["mkdir", "/a"]);
    fixture.fails(3, ["mkdir", "/x/y"]);
    assert_eq!(run(&mut fixture.command(["put", "-", "/a/f"]), b"content").code, Some(0));

    fixture.ok(["mv", "/a/f", "/a/g"]);
    fixture.ok(["mv", "/a/g", "/a/b"]);
    assert_eq!(fixture.ok(["cat", "/a/b/g"]), "content");
    fixture.fails(3, ["mv", "/a/f", "/a/h"]);
    assert_eq!(run(&mut fixture.command(["put", "-", "/a/h"]), b"other").code, Some(0));
    fixture.ok(["mv", "/a/h", "/a/b/g"]);
    assert_eq!(fixture.ok(["cat", "/a/b/g"]), "other");

    fixture.ok(["ln", "-s", "b/g", "/a/soft"]);
    fixture.ok(["ln", "/a/b/g", "/a/hard"]);
    assert_eq!(fixture.ok(["cat", "/a/soft", "/a/hard"]), "otherother");
    let long = fixture.ok(["ls", "-l", "/a"]);
    let line = |name: &str| long.lines().find(|line| line.contains(name)).expect("listed").to_owned();
    assert!(line(" soft").ends_with(" soft -> b/g") && line(" soft").starts_with("lrwx"), "{long}");
    assert!(line(" hard").starts_with("-rw-r--r-- 2 "), "{long}");
    fixture.ok(["ln", "-s", "elsewhere/other", "/a/b"]);
    assert_eq!(fixture.ok(["ls", "/a/b"]), "c\ng\nother\n");
    assert!(fixture.fails(4, ["ln", "/a/hard", "/a/soft"]).contains("/a/soft"));

    assert!(fixture.fails(10, ["rm", "/a"]).contains("add -r"));
    let error = fixture.fails(3, ["rm", "/nothing", "/a/soft"]);
    assert!(error.contains("/nothing"), "{error}");
    fixture.fails(3, ["stat", "/a/soft"]);
    fixture.ok(["rm", "-r", "/a"]);
    assert_eq!(fixture.ok(["ls", "/"]), "");
}

#[test]
fn a_file_where_a_folder_is_expected_is_said() {
    let fixture = Fixture::start();
    assert_eq!(run(&mut fixture.command(["put", "-", "/file"]), b"x").code, Some(0));
    let lines: [&[&str]; 5] = [
        &["ls", "/file/below"],
        &["mkdir", "/file/below"],
        &["mkdir", "-p", "/file/below"],
        &["policy", "set", "/file", "--ec", "1+1"],
        &["cat", "/"],
    ];
    for words in lines {
        let error = fixture.fails(10, words);
        assert!(error.starts_with(&format!("torchfs: {}", words[0])), "{error}");
    }
}

#[test]
fn recursive_listings_show_every_folder() {
    let fixture = Fixture::start();
    fixture.ok(["mkdir", "-p", "/a/b", "/c"]);
    assert_eq!(run(&mut fixture.command(["put", "-", "/a/f"]), b"x").code, Some(0));
    assert_eq!(fixture.ok(["ls", "-R", "/"]), "/:\na\nc\n\n/a:\nb\nf\n\n/a/b:\n\n/c:\n");
    assert_eq!(fixture.ok(["ls", "/a/f", "/c"]), "/a/f\n\n/c:\n");
    let partly = fixture.run(["ls", "/nothing", "/c"]);
    assert_eq!((partly.code, partly.stdout.as_slice()), (Some(3), &b"/c:\n"[..]));
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let fixture = Fixture::start();
    assert_eq!(run(&mut fixture.command(["put", "-", "/file"]), &vec![7; 3_000_000]).code, Some(0));
    for words in [&["cat", "/file"][..], &["ls", "-lR", "/"], &["status"], &["completions", "bash"]] {
        let mut command = fixture.command(words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        drop(child.stdout.take());
        let _watchdog = Watchdog::over(&child);
        let output = child.wait_with_output().expect("ends");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{words:?}");
    }
}

#[test]
fn a_missing_node_costs_nothing_and_two_are_unavailable() {
    let fixture = Fixture::start();
    let bytes = vec![9u8; 500_000];
    assert_eq!(run(&mut fixture.command(["put", "-", "/file"]), &bytes).code, Some(0));
    fixture.cluster.stop_store(1).expect("stops");
    assert!(fixture.run(["cat", "/file"]).stdout == bytes);
    fixture.cluster.stop_store(2).expect("stops");
    let error = fixture.fails(6, ["cat", "/file"]);
    assert!(error.contains("hint: `torchfs status`"), "{error}");
    for store in [1, 2] {
        fixture.runtime.block_on(fixture.cluster.start_store(store)).expect("starts again");
    }
    assert!(fixture.run(["cat", "/file"]).stdout == bytes);
}
