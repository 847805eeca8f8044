//! Wrong flags, wrong addresses, wrong folders: clear errors that name the thing and the next step.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use torchfs_tests::{Cluster, ClusterOptions, binary, exit, run, wait_until, write_file};

fn small() -> Cluster {
    Cluster::start_with(ClusterOptions { metas: 1, stores: 3, ec: "2+1", ..ClusterOptions::default() })
}

fn torchfs(args: &[&str]) -> torchfs_tests::Finished {
    run(Command::new(binary()).env_remove("TORCHFS_META").args(args))
}

#[test]
fn wrong_flags_are_usage_errors() {
    let cases: [(&[&str], &str); 4] = [
        (&["put", "--nonsense"], "--nonsense"),
        (&["frobnicate"], "frobnicate"),
        (&["ls", "/"], "TORCHFS_META"),
        (&["policy", "set", "/x", "--ec", "4"], "4+2"),
    ];
    for (args, named) in cases {
        let text = torchfs(args).failed_with(exit::USAGE);
        assert!(text.contains(named), "{args:?}: {text}");
    }
}

#[test]
fn an_unreachable_cluster_is_named() {
    let text = torchfs(&["--meta", "127.0.0.1:1", "ls", "/"]).failed_with(exit::UNAVAILABLE);
    assert!(text.contains("127.0.0.1:1"), "{text}");
}

#[test]
fn a_port_that_is_not_torchfs_is_told_apart() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = listener.local_addr().expect("bound").to_string();
    let server = std::thread::spawn(move || {
        // An HTTP server's answer to anything.
        for stream in listener.incoming().take(1).flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 64]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let finished = torchfs(&["--meta", &addr, "ls", "/"]);
    assert!(matches!(finished.code, Some(exit::WRONG_CLUSTER | exit::UNAVAILABLE)), "{finished:?}");
    assert!(finished.stderr.contains(&addr) && finished.stderr.contains("TorchFS"), "{}", finished.stderr);
    server.join().expect("the server does not panic");
}

#[test]
fn a_storage_node_is_not_a_metadata_node() {
    let cluster = small();
    let text = torchfs(&["--meta", &cluster.store_addr(0), "ls", "/"]);
    assert_ne!(text.code, Some(0));
    assert!(text.stderr.contains("storage node"), "{}", text.stderr);
}

#[test]
fn files_and_folders_are_not_confused() {
    let cluster = small();
    let file = cluster.dir().join("file");
    write_file(&file, b"x");
    let file = file.to_str().expect("UTF-8");
    cluster.torchfs(["put", file, "/file"]).ok();
    cluster.torchfs(["mkdir", "/folder"]).ok();
    let text = cluster.torchfs(["mkdir", "/file/x"]).failed_with(exit::WRONG_KIND);
    assert!(text.contains("/file"), "{text}");
    cluster.torchfs(["cat", "/folder"]).failed_with(exit::WRONG_KIND);
    cluster.torchfs(["mkdir", "/folder"]).failed_with(exit::EXISTS);
    cluster.torchfs(["ls", "/absent"]).failed_with(exit::NOT_FOUND);
    cluster.torchfs(["get", "/absent", "-"]).failed_with(exit::NOT_FOUND);
    assert_ne!(cluster.torchfs(["put", cluster.dir().to_str().expect("UTF-8"), "/tree"]).code, Some(0), "needs -r");
    assert_ne!(cluster.torchfs(["put", "/no/such/file", "/x"]).code, Some(0));
    assert_ne!(cluster.torchfs(["rm", "/folder"]).code, Some(0), "needs -r");
}

#[test]
fn regression_21_a_folder_that_is_not_empty_stays() {
    let cluster = small();
    let file = cluster.dir().join("file");
    write_file(&file, b"x");
    cluster.torchfs(["mkdir", "-p", "/a/b"]).ok();
    cluster.torchfs(["put", file.to_str().expect("UTF-8"), "/a/b/file"]).ok();
    cluster.torchfs(["mv", "/a/b", "/c"]).ok();
    assert_eq!(cluster.torchfs(["cat", "/c/file"]).stdout, b"x", "a moved folder keeps what is in it");
    cluster.torchfs(["rm", "-r", "/c"]).ok();
    cluster.torchfs(["stat", "/c/file"]).failed_with(exit::NOT_FOUND);
}

/// Starts a node that must refuse, and returns why.
fn refuses(args: Vec<String>) -> String {
    let finished = run(Command::new(binary()).args(args));
    assert_ne!(finished.code, Some(0));
    finished.stderr
}

#[test]
fn a_data_folder_of_another_cluster_is_refused() {
    let (mut one, other) = (small(), small());
    one.kill_store(0);
    let mut args = other.store_args(0);
    let data = args.iter().position(|arg| arg == "--data").expect("has --data") + 1;
    args[data] = one.store_dir(0).display().to_string();
    let listen = args.iter().position(|arg| arg == "--listen").expect("has --listen") + 1;
    args[listen] = other.store_addr(40);
    let text = refuses(args);
    assert!(text.contains(&one.store_dir(0).display().to_string()) && text.contains("cluster"), "{text}");
}

#[test]
fn a_data_folder_in_use_is_refused() {
    let cluster = small();
    let mut args = cluster.store_args(0);
    let listen = args.iter().position(|arg| arg == "--listen").expect("has --listen") + 1;
    args[listen] = cluster.store_addr(40);
    let text = refuses(args);
    assert!(text.contains("in use by another process (pid "), "{text}");
    assert!(!text.contains("torchfs status"), "the cluster has nothing to do with it: {text}");
    let mut args = cluster.meta_args(0);
    let listen = args.iter().position(|arg| arg == "--listen").expect("has --listen") + 1;
    args[listen] = cluster.store_addr(41);
    let text = refuses(args);
    assert!(text.contains("in use by another process (pid ") && !text.contains("torchfs status"), "{text}");
}

#[test]
fn messages_name_the_thing_and_the_next_step() {
    let cluster = small();
    let file = cluster.dir().join("file");
    write_file(&file, b"x");
    let file = file.to_str().expect("UTF-8");
    let text = torchfs(&["up", "--data", file]).failed_with(exit::WRONG_KIND);
    assert!(text.contains("is a file") && !text.contains("--port"), "{text}");
    let text = torchfs(&["--meta", &cluster.meta_addrs(), "store", "--data", file, "--listen", "127.0.0.1:0"]);
    assert!(text.stderr.contains("is a file"), "{}", text.stderr);
    let text = torchfs(&["--meta", "127.0.0.1:1", "status"]).failed_with(exit::UNAVAILABLE);
    assert!(text.contains("TORCHFS_META") && !text.contains("torchfs status"), "{text}");
    let listen = ["store", "--listen", "192.0.2.1:7200", "--data", "never-made"];
    let text = run(cluster.command(listen).current_dir(cluster.dir()));
    assert!(text.stderr.contains("192.0.2.1:7200") && text.stderr.contains("no such address"), "{}", text.stderr);

    cluster.torchfs(["mkdir", "/folder"]).ok();
    let text = cluster.torchfs(["ln", "/folder", "/other"]).failed_with(exit::WRONG_KIND);
    assert!(text.contains("ln -s /folder /other"), "{text}");
    for wrong in [&["cat", "/folder"][..], &["rm", "/absent"], &["mv", "/absent", "/x"], &["ln", "/absent", "/x"]] {
        let text = cluster.torchfs(wrong);
        assert_ne!(text.code, Some(0));
        assert!(text.stderr.contains(wrong[1]), "{}", text.stderr);
        assert!(!text.stderr.contains("inode") && !text.stderr.contains("folder 1"), "{}", text.stderr);
    }
}

/// `get` names what cannot be read, not only where it was to go.
#[test]
fn a_file_that_is_lost_is_named() {
    let mut cluster = small();
    let source = cluster.dir().join("source");
    write_file(&source.join("below/lost"), &[7; 3_000_000]);
    write_file(&source.join("kept"), b"x");
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    for store in 0..3 {
        cluster.shard_files(store).iter().for_each(|file| fs::write(file, b"damaged").expect("writes"));
    }
    let out = cluster.dir().join("out");
    let text = cluster.torchfs(["get", "-r", "/data", out.to_str().expect("UTF-8")]).failed_with(exit::DATA_LOST);
    assert!(text.contains("get /data/below/lost: "), "{text}");
    let text = cluster.torchfs(["get", "/data/below/lost", "renamed"]).failed_with(exit::DATA_LOST);
    assert!(text.contains("get /data/below/lost: "), "{text}");
    cluster.kill_all();
}

#[test]
fn up_leaves_nothing_behind_when_it_cannot_start_and_is_quiet_when_asked() {
    let folder = tempfile::tempdir().expect("folder");
    let taken = TcpListener::bind("127.0.0.1:0").expect("binds");
    let port = taken.local_addr().expect("bound").port().to_string();
    let data = folder.path().join("data");
    let up = |data: &Path| torchfs(&["up", "--data", data.to_str().expect("UTF-8"), "--port", &port]);
    let text = up(&data).failed_with(exit::EXISTS);
    assert!(text.contains(&port) && text.contains("--port"), "{text}");
    assert!(!data.exists(), "it made the folder and takes it away again");
    fs::create_dir(&data).expect("mkdir");
    up(&data).failed_with(exit::EXISTS);
    assert!(data.exists(), "a folder that was there stays");

    let mut command = Command::new(binary());
    command.args(["-q", "up", "--stores", "2", "--metas", "1", "--port", "23190", "--data"]).arg(&data);
    let mut process = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("starts");
    let meta = ["--meta", "127.0.0.1:23190", "mkdir", "/x"];
    wait_until("it serves", || torchfs(&meta).code == Some(0));
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("signalled");
    let mut said = String::new();
    process.stderr.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    process.stdout.take().expect("piped").read_to_string(&mut said).expect("UTF-8");
    assert!(process.wait().expect("ends").success());
    assert_eq!(said, "");
}

#[test]
fn a_data_folder_of_another_format_is_refused() {
    let mut cluster = small();
    cluster.kill_store(1);
    let identity = fs::read_dir(cluster.store_dir(1)).expect("readable").flatten().map(|entry| entry.path());
    let identity = identity.filter(|path| path.is_file() && fs::metadata(path).is_ok_and(|found| found.len() > 8));
    let mut found = 0;
    for path in identity {
        fs::write(&path, b"something else entirely, of no known version").expect("writable");
        found += 1;
    }
    assert!(found > 0, "the folder has an identity file");
    let text = refuses(cluster.store_args(1));
    assert!(text.contains(&cluster.store_dir(1).display().to_string()), "{text}");
}

#[test]
fn a_metadata_folder_of_another_node_is_refused() {
    let mut cluster = small();
    cluster.kill_meta(0);
    let mut args = cluster.meta_args(0);
    let id = args.iter().position(|arg| arg == "--id").expect("has --id") + 1;
    args[id] = "2".to_owned();
    let peers = args.iter().position(|arg| arg == "--peers").expect("has --peers") + 1;
    args[peers] = format!("2={}", cluster.meta_addr(0));
    let text = refuses(args);
    assert!(text.contains(&cluster.meta_dir(0).display().to_string()), "{text}");
}
