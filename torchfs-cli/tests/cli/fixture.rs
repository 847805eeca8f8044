//! The real binary against a cluster in the test's process.

use rustix::process::{Pid, Signal, kill_process};
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::Duration;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use torchfs_core::layout::Profile;
use torchfs_local::LocalCluster;

/// Longer than any command needs, on a busy machine too.
const DEADLINE: Duration = Duration::from_secs(120);

/// A small cluster and a scratch folder.
pub struct Fixture {
    // Before the runtime, which its nodes need to stop.
    pub cluster: LocalCluster,
    pub runtime: Runtime,
    pub folder: TempDir,
}

/// What a command left, as text.
#[derive(Debug)]
pub struct Finished {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Fixture {
    /// One metadata node and three storage nodes, 2+1.
    pub fn start() -> Fixture {
        let runtime = Runtime::new().expect("runtime");
        let profile = Profile::new(2, 1).expect("profile");
        let cluster = LocalCluster::builder().metas(1).stores(3).profile(profile);
        let cluster = runtime.block_on(cluster.start()).expect("a cluster starts");
        Fixture { cluster, runtime, folder: tempfile::tempdir().expect("folder") }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = torchfs(words);
        command.env("TORCHFS_META", self.cluster.meta_addrs().join(","));
        command
    }

    pub fn run<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.command(words), b"")
    }

    /// Runs a command that must succeed and says nothing on stderr, and gives its stdout.
    #[track_caller]
    pub fn ok<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> String {
        let finished = self.run(words);
        assert_eq!((finished.code, finished.stderr.as_str()), (Some(0), ""));
        String::from_utf8_lossy(&finished.stdout).into_owned()
    }

    /// Runs a command that must fail with this code, and gives its stderr.
    #[track_caller]
    pub fn fails<S: AsRef<OsStr>>(&self, code: i32, words: impl IntoIterator<Item = S>) -> String {
        let finished = self.run(words);
        assert_eq!(finished.code, Some(code), "{finished:?}");
        assert!(finished.stderr.starts_with("torchfs: "), "{finished:?}");
        finished.stderr
    }
}

/// The binary without a cluster.
pub fn torchfs<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_torchfs"));
    command.args(words).env_remove("TORCHFS_META").env_remove("RUST_LOG");
    command
}

/// Runs to the end with bytes for stdin.
pub fn run(command: &mut Command, input: &[u8]) -> Finished {
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let _watchdog = Watchdog::over(&child);
    // A command that ends early breaks the pipe, which is its right.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let Output { status, stdout, stderr } = child.wait_with_output().expect("the binary ends");
    Finished { code: status.code(), stdout, stderr: String::from_utf8_lossy(&stderr).into_owned() }
}

/// Waits for the end and gives the exit code; `None` if it had to be killed.
pub fn ended(child: &mut Child) -> Option<i32> {
    let _watchdog = Watchdog::over(child);
    child.wait().expect("can be waited for").code()
}

/// Kills a command that has not ended long after it should have: while this is there.
pub struct Watchdog {
    _done: Sender<()>,
}

impl Watchdog {
    pub fn over(child: &Child) -> Watchdog {
        let pid = Pid::from_child(child);
        let (done, waiting) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            if waiting.recv_timeout(DEADLINE) == Err(RecvTimeoutError::Timeout) {
                eprintln!("killing process {}, which runs on", pid.as_raw_nonzero());
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Watchdog { _done: done }
    }
}

/// All regular files below a folder with their content, sorted.
pub fn contents(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("lists") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).expect("below the root").to_owned();
                found.push((name, std::fs::read(path).expect("reads")));
            }
        }
    }
    found.sort_unstable();
    found
}
