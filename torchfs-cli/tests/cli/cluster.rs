//! What is said about the cluster: JSON, policies, wrong usage, clusters that are not there, `up`.

use crate::fixture::{Finished, Fixture, ended, run, torchfs};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Stdio};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn json_is_complete_and_true() {
    let fixture = Fixture::start();
    fixture.ok(["mkdir", "/d"]);
    assert_eq!(run(&mut fixture.command(["put", "-", "/d/f"]), &vec![1; 200_000]).code, Some(0));
    fixture.ok(["ln", "-s", "f", "/d/l"]);
    fixture.ok(["ln", "/d/f", "/d/second"]);

    let list = json(&fixture.ok(["ls", "--json", "/d"]));
    let names: Vec<&str> = list.as_array().expect("array").iter().filter_map(|entry| entry["name"].as_str()).collect();
    assert_eq!(names, ["f", "l", "second"]);
    assert_eq!((&list[0]["size"], &list[0]["type"]), (&Value::from(200_000), &Value::from("file")));
    assert_eq!(list[1]["target"], "f");

    let stat = json(&fixture.ok(["stat", "--json", "/d/f", "/d"]));
    assert_eq!(stat[0]["stripes"][0]["profile"], "2+1");
    assert_eq!(stat[0]["stripes"][0]["nodes"].as_array().expect("nodes").len(), 3);
    assert_eq!(stat[0]["extents"][0]["len"], 200_000);
    assert_eq!(stat[1]["policy"], "2+1");

    let usage = json(&fixture.ok(["du", "--json", "/"]));
    let expected = serde_json::json!([{ "path": "/", "bytes": 200_000, "allocated": 200_000, "files": 1, "directories": 2, "others": 1 }]);
    assert_eq!(usage, expected);

    let space = json(&fixture.ok(["df", "--json"]));
    assert!(space["capacity_bytes"].as_u64() > Some(0) && space["profile"] == "2+1", "{space}");

    let status = json(&fixture.ok(["status", "--json"]));
    assert_eq!(status["leader"]["addr"], fixture.cluster.meta_addrs()[0]);
    assert_eq!((status["stores"].as_array().map(Vec::len), &status["stores"][0]["state"]), (Some(3), &"up".into()));
    assert_eq!((&status["files"], &status["bytes"]), (&Value::from(1), &Value::from(200_000)));
    assert_eq!(status["degraded_stripes"], 0);
    for store in status["stores"].as_array().expect("stores") {
        assert_eq!(store["domain"], format!("host=store-{}", store["id"]), "numbered as its folder is");
    }
}

#[test]
fn text_for_people_names_the_same_things() {
    let fixture = Fixture::start();
    assert_eq!(run(&mut fixture.command(["put", "-", "/f"]), &vec![1; 2048]).code, Some(0));
    let stat = fixture.ok(["stat", "/f"]);
    assert!(stat.contains("2048 bytes (2.00 KiB)") && stat.contains("1 of 2+1"), "{stat}");
    let usage = fixture.ok(["du"]);
    assert!(usage.lines().nth(1).is_some_and(|line| line.starts_with("2.00 KiB") && line.ends_with('/')), "{usage}");
    assert!(fixture.ok(["df"]).contains("2+1"));
    let status = fixture.ok(["status"]);
    assert!(status.contains("leader") && status.contains("host=store-3") && status.contains("all whole"), "{status}");
}

#[test]
fn a_policy_is_inherited_until_it_is_set() {
    let fixture = Fixture::start();
    fixture.ok(["mkdir", "-p", "/a/b"]);
    assert_eq!(fixture.ok(["policy", "get", "/a/b"]), "2+1 (inherited)\n");
    fixture.ok(["policy", "set", "/a", "--ec", "1+2"]);
    assert_eq!(fixture.ok(["policy", "get", "/a"]), "1+2 (set here)\n");
    assert_eq!(fixture.ok(["policy", "get", "/a/b"]), "1+2 (inherited)\n");
    assert_eq!(run(&mut fixture.command(["put", "-", "/a/b/f"]), b"x").code, Some(0));
    assert_eq!(json(&fixture.ok(["stat", "--json", "/a/b/f"]))[0]["stripes"][0]["profile"], "1+2");
    let warned = fixture.run(["policy", "set", "/a", "--ec", "4+2"]);
    assert_eq!(warned.code, Some(0));
    assert!(warned.stderr.contains("wants 6 storage nodes and 3 are there"), "{}", warned.stderr);
}

#[track_caller]
fn failed(finished: Finished, code: i32) -> String {
    assert_eq!(finished.code, Some(code), "{finished:?}");
    finished.stderr
}

#[test]
fn no_cluster_a_wrong_one_and_none_there_are_told_apart() {
    let none = failed(run(&mut torchfs(["ls"]), b""), 2);
    assert!(
        none.contains("no cluster is given") && none.contains("TORCHFS_META") && none.contains("torchfs up"),
        "{none}"
    );
    let malformed = failed(run(&mut torchfs(["ls", "--meta", "nonsense"]), b""), 2);
    assert!(malformed.contains("write HOST:PORT"), "{malformed}");

    let unused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds").local_addr().expect("addr").to_string();
    let folder = tempfile::tempdir().expect("folder");
    let cache = folder.path().to_str().expect("utf-8");
    let mount = ["mount", "--background", "--cache-dir", cache, "/"];
    for words in [&["ls"][..], &["put", "-", "/x"], &["status"], &mount] {
        let away = failed(run(torchfs(words).args(["--meta", &unused]), b""), 6);
        assert!(away.contains(&unused) && away.contains("hint:"), "{away}");
    }

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("binds");
    let addr = listener.local_addr().expect("addr").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    let other = failed(run(&mut torchfs(["ls", "--meta", &addr]), b""), 9);
    assert!(other.contains(&addr), "{other}");
}

#[test]
fn wrong_lines_end_with_2_and_say_why() {
    let lines: [(&[&str], &str); 6] = [
        (&["ls", "--meta", "a:1", "relative"], "begins with '/'"),
        (&["put", "-", "relative", "--meta", "a:1"], "begins with '/'"),
        (
            &["meta", "--id", "4", "--listen", "a:1", "--peers", "1=a:1,2=b:1", "--data", "d"],
            "not one of --peers (1, 2)",
        ),
        (&["meta", "--id", "1", "--listen", "nowhere", "--peers", "1=a:1", "--data", "d"], "write HOST:PORT"),
        (&["store", "--listen", "127.0.0.1:0", "--data", "d"], "no cluster is given"),
        (&["ls", "--log", "a=b=c", "--meta", "a:1"], "not a log level"),
    ];
    for (words, reason) in lines {
        let error = failed(run(&mut torchfs(words), b""), 2);
        assert!(error.contains(reason), "{words:?}: {error}");
    }
}

/// A `torchfs up` that has said that it is ready.
struct Up {
    child: Child,
    said: String,
}

impl Up {
    fn start(data: &Path, words: &[&str]) -> Up {
        let mut command = torchfs(["up", "--metas", "1", "--stores", "3", "--ec", "2+1", "--data"]);
        let mut child =
            command.arg(data).args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
        let mut said = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        while !said.contains("Ctrl-C") {
            if stdout.read_line(&mut said).expect("reads") == 0 {
                let mut error = String::new();
                child.stderr.take().expect("piped").read_to_string(&mut error).expect("reads");
                panic!("up ended: {error}");
            }
        }
        Up { child, said }
    }

    /// The value of the `export` line.
    fn metas(&self) -> &str {
        let line = self.said.lines().find_map(|line| line.trim().strip_prefix("export TORCHFS_META="));
        line.expect("up says how to find it")
    }

    fn stop(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("is running");
        ended(&mut self.child)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        let _ = self.child.kill();
    }
}

/// A port with three unused ones after it, as far as can be known.
fn ports() -> String {
    let free = |port: u16| (port..port + 4).all(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok());
    let first = 10_000 + (std::process::id() % 20_000) as u16;
    (first..32_000).step_by(4).find(|&port| free(port)).expect("free ports").to_string()
}

#[test]
fn up_starts_again_with_everything_in_it() {
    let folder = tempfile::tempdir().expect("folder");
    let data = folder.path().join("data");
    let port = ports();
    let up = Up::start(&data, &["--port", &port]);
    assert_eq!(up.metas(), format!("127.0.0.1:{port}"));
    let on = |up: &Up, words: &[&str], input: &[u8]| run(torchfs(words).args(["--meta", up.metas()]), input);
    assert_eq!(on(&up, &["put", "-", "/kept"], b"kept").code, Some(0));

    let other = folder.path().join("other");
    let mut second = torchfs(["up", "--metas", "1", "--port", &port, "--data"]);
    let error = failed(run(second.arg(&other), b""), 4);
    assert!(error.contains(&format!("127.0.0.1:{port}")) && error.contains("--port"), "{error}");
    assert_eq!(up.stop(), Some(0));

    // Ports, nodes and content are found in the folder.
    let up = Up::start(&data, &[]);
    assert_eq!(up.metas(), format!("127.0.0.1:{port}"));
    assert_eq!(on(&up, &["cat", "/kept"], b"").stdout, b"kept");
    assert_eq!(up.stop(), Some(0));
}

#[test]
fn up_warns_of_too_few_nodes_for_the_policy() {
    let folder = tempfile::tempdir().expect("folder");
    let mut command = torchfs(["up", "--metas", "1", "--stores", "2", "--ec", "2+1", "--port", &ports(), "--data"]);
    let mut child = command.arg(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("starts");
    let stderr = BufReader::new(child.stderr.take().expect("piped"));
    let warned = stderr.lines().map_while(Result::ok).find(|line| line.contains("warning"));
    kill_process(Pid::from_child(&child), Signal::TERM).expect("is running");
    let code = ended(&mut child);
    assert_eq!(code, Some(0));
    assert!(warned.is_some_and(|line| line.contains("2+1 wants 3 storage nodes and 2 are there")));
}
