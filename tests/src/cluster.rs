//! A cluster of `torchfs meta` and `torchfs store` processes.

use serde_json::Value;
use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tempfile::TempDir;

/// The exit codes that `torchfs --help` lists and the tests rely on.
pub mod exit {
    /// For a reason that has no code of its own.
    pub const FAILED: i32 = 1;
    /// The command line makes no sense.
    pub const USAGE: i32 = 2;
    /// No such file.
    pub const NOT_FOUND: i32 = 3;
    /// The name is taken.
    pub const EXISTS: i32 = 4;
    /// Too few nodes answer.
    pub const UNAVAILABLE: i32 = 6;
    /// Content is lost.
    pub const DATA_LOST: i32 = 7;
    /// Disks are full.
    pub const NO_SPACE: i32 = 8;
    /// Another cluster, another protocol, another format.
    pub const WRONG_CLUSTER: i32 = 9;
    /// A folder is needed, or something else than a folder.
    pub const WRONG_KIND: i32 = 10;
}

/// How long anything may take before a test gives up: generous, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The `torchfs` binary of the same build as the tests. `cargo test --workspace` has built it; if it is missing or older than
/// the sources, as when only these tests are run, it is built now.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let tests = std::env::current_exe().expect("a test knows its own path");
        let folder = tests.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>").to_owned();
        let (binary, workspace) = (folder.join("torchfs"), Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
        let built = std::fs::metadata(&binary).and_then(|found| found.modified()).ok();
        if built.is_none_or(|built| built < newest_source(&workspace)) {
            let release = folder.ends_with("release").then_some("--release");
            let mut cargo = Command::new(env!("CARGO"));
            cargo.args(["build", "--quiet", "-p", "torchfs-cli"]).args(release).current_dir(workspace);
            assert!(cargo.status().expect("cargo runs").success(), "the torchfs binary does not build");
        }
        binary
    })
}

/// When the youngest source file of the crates that make the binary was changed.
fn newest_source(workspace: &Path) -> SystemTime {
    let mut newest = SystemTime::UNIX_EPOCH;
    let members = std::fs::read_dir(workspace).expect("the workspace").flatten().map(|entry| entry.path());
    let mut folders: Vec<PathBuf> =
        members.filter(|path| path.to_string_lossy().contains("torchfs-")).map(|path| path.join("src")).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(found) if found.is_dir() => folders.push(entry.path()),
                Ok(found) => newest = newest.max(found.modified().unwrap_or(SystemTime::UNIX_EPOCH)),
                // Gone meanwhile, so not part of any build.
                Err(_) => {}
            }
        }
    }
    newest
}

/// What a finished command left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error as text.
    pub stderr: String,
}

impl Finished {
    /// The output as text, if the command succeeded.
    ///
    /// # Panics
    /// With what it printed, if it failed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "failed with: {}", self.stderr);
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The error text, if the command failed with this code.
    ///
    /// # Panics
    /// With what it printed, if it did not.
    #[track_caller]
    pub fn failed_with(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "stdout: {} stderr: {}", String::from_utf8_lossy(&self.stdout), self.stderr);
        assert!(!self.stderr.trim().is_empty(), "a failure must say why");
        self.stderr
    }
}

/// Runs a command to its end, with a deadline.
///
/// # Panics
/// If it cannot be started or does not end.
pub fn run(command: &mut Command) -> Finished {
    run_with_input(command, b"")
}

/// [`run`] with bytes for the command's standard input.
///
/// # Panics
/// As [`run`].
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Finished {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    let pid = rustix::process::Pid::from_child(&child);
    let (done, watch) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        let timed_out = watch.recv_timeout(3 * PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if timed_out {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        timed_out
    });
    // A command that exits early breaks the pipe, which is its right.
    let _ = child.stdin.take().expect("piped").write_all(input);
    let output = child.wait_with_output().expect("the command can be waited for");
    drop(done);
    let timed_out = watchdog.join().expect("the watchdog does not panic");
    assert!(!timed_out, "{command:?} hung: {}", String::from_utf8_lossy(&output.stderr));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Finished { code: output.status.code(), stdout: output.stdout, stderr }
}

/// Asks `condition` until it says yes.
///
/// # Panics
/// With `what` if it never does.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited in vain until {what}");
        pause(Duration::from_millis(50));
    }
}

/// Waits without a runtime: these tests are ordinary threads.
fn pause(time: Duration) {
    std::thread::park_timeout(time);
}

/// What is special about a cluster.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Metadata nodes.
    pub metas: usize,
    /// Storage nodes.
    pub stores: usize,
    /// k+m.
    pub ec: &'static str,
    /// Arguments for every `torchfs store`.
    pub store_args: Vec<String>,
    /// Where storage nodes keep their data, if not in the cluster's own temporary folder.
    pub store_root: Option<PathBuf>,
    /// Where the first so many metadata nodes keep theirs, if not there.
    pub meta_root: Option<(usize, PathBuf)>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        ClusterOptions { metas: 3, stores: 6, ec: "4+2", store_args: Vec::new(), store_root: None, meta_root: None }
    }
}

/// A running cluster. Its processes are killed when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    options: ClusterOptions,
    address: String,
    dir: TempDir,
    metas: Vec<Option<Child>>,
    stores: Vec<Option<Child>>,
}

static NEXT_ADDRESS: AtomicU8 = AtomicU8::new(1);

impl Cluster {
    /// Three metadata nodes, six storage nodes, 4+2.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start() -> Self {
        Cluster::start_with(ClusterOptions::default())
    }

    /// A cluster as asked for, up and able to take writes.
    ///
    /// # Panics
    /// If it does not come up.
    #[must_use]
    pub fn start_with(options: ClusterOptions) -> Self {
        let process = std::process::id();
        let number = NEXT_ADDRESS.fetch_add(1, Ordering::Relaxed);
        let address = format!("127.{}.{}.{number}", 1 + process % 250, process / 250 % 250);
        let dir = tempfile::Builder::new().prefix("torchfs-test-").tempdir().expect("a temporary folder");
        let none = |count| (0..count).map(|_| None).collect();
        let (metas, stores) = (none(options.metas), none(options.stores));
        let mut cluster = Cluster { options, address, dir, metas, stores };
        (0..cluster.metas.len()).for_each(|number| cluster.start_meta(number));
        (0..cluster.stores.len()).for_each(|number| cluster.start_store(number));
        cluster.wait_until_up();
        cluster
    }

    /// Waits until every process that runs is known to be up.
    ///
    /// # Panics
    /// If that never happens.
    pub fn wait_until_up(&self) {
        let running = self.stores.iter().flatten().count();
        wait_until("all storage nodes are up", || {
            self.try_status().is_some_and(|status| count_stores(&status, "up") >= running)
        });
    }

    /// The folder that everything of this cluster is in, and where a test may put things of its own.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// `--meta` for clients.
    pub fn meta_addrs(&self) -> String {
        (0..self.metas.len()).map(|number| self.meta_addr(number)).collect::<Vec<_>>().join(",")
    }

    /// A metadata node's address.
    pub fn meta_addr(&self, number: usize) -> String {
        format!("{}:{}", self.address, 7100 + number)
    }

    /// A storage node's address.
    pub fn store_addr(&self, number: usize) -> String {
        format!("{}:{}", self.address, 7200 + number)
    }

    /// A storage node's data folder.
    pub fn store_dir(&self, number: usize) -> PathBuf {
        let root = self.options.store_root.clone().unwrap_or_else(|| self.dir().to_owned());
        root.join(format!("store-{number}"))
    }

    /// A metadata node's data folder.
    pub fn meta_dir(&self, number: usize) -> PathBuf {
        let root = self.options.meta_root.as_ref().filter(|(nodes, _)| number < *nodes).map(|(_, root)| root.as_path());
        root.unwrap_or(self.dir()).join(format!("meta-{}", number + 1))
    }

    /// What a node wrote to its log so far.
    pub fn log(&self, node: &str) -> String {
        std::fs::read_to_string(self.dir().join(format!("{node}.log"))).unwrap_or_default()
    }

    fn spawn(&self, log: &str, args: &[String]) -> Child {
        let path = self.dir().join(format!("{log}.log"));
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path).expect("a log file");
        let mut command = Command::new(binary());
        command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        command.spawn().expect("the node starts")
    }

    /// The arguments that start metadata node `number` (from 0; its id is one more).
    pub fn meta_args(&self, number: usize) -> Vec<String> {
        let peers: Vec<String> =
            (0..self.metas.len()).map(|peer| format!("{}={}", peer + 1, self.meta_addr(peer))).collect();
        let (id, listen, peers) = ((number + 1).to_string(), self.meta_addr(number), peers.join(","));
        let data = self.meta_dir(number).display().to_string();
        let args =
            ["meta", "--id", &id, "--listen", &listen, "--peers", &peers, "--data", &data, "--ec", self.options.ec];
        args.map(str::to_owned).to_vec()
    }

    /// The arguments that start storage node `number` (from 0).
    pub fn store_args(&self, number: usize) -> Vec<String> {
        let (listen, metas) = (self.store_addr(number), self.meta_addrs());
        let data = self.store_dir(number).display().to_string();
        let args = ["store", "--listen", &listen, "--meta", &metas, "--data", &data];
        args.map(str::to_owned).into_iter().chain(self.options.store_args.clone()).collect()
    }

    /// Starts a metadata node.
    pub fn start_meta(&mut self, number: usize) {
        self.metas[number] = Some(self.spawn(&format!("meta-{}", number + 1), &self.meta_args(number)));
    }

    /// Starts a storage node.
    pub fn start_store(&mut self, number: usize) {
        self.start_store_with(number, &self.store_args(number));
    }

    /// Starts a storage node with other arguments than its own.
    pub fn start_store_with(&mut self, number: usize, args: &[String]) {
        self.stores[number] = Some(self.spawn(&format!("store-{number}"), args));
    }

    /// Kills a metadata node with SIGKILL.
    pub fn kill_meta(&mut self, number: usize) {
        kill(self.metas[number].take());
    }

    /// Waits until a metadata node has ended by itself, and returns its exit code.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_for_end_of_meta(&mut self, number: usize) -> Option<i32> {
        wait_for_end(self.metas[number].take())
    }

    /// Kills a metadata node with SIGKILL, unless it has ended by itself.
    pub fn end_meta(&mut self, number: usize) {
        let mut node = self.metas[number].take().expect("it was started");
        let _ = node.kill();
        node.wait().expect("a child can be waited for");
    }

    /// Kills a storage node with SIGKILL.
    pub fn kill_store(&mut self, number: usize) {
        kill(self.stores[number].take());
    }

    /// Stops a storage node from running without ending it (SIGSTOP), as a hung machine would.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze_store(&self, number: usize) {
        signal(self.stores[number].as_ref(), rustix::process::Signal::STOP);
    }

    /// Ends what [`Cluster::freeze_store`] began.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw_store(&self, number: usize) {
        signal(self.stores[number].as_ref(), rustix::process::Signal::CONT);
    }

    /// [`Cluster::freeze_store`] for a metadata node.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze_meta(&self, number: usize) {
        signal(self.metas[number].as_ref(), rustix::process::Signal::STOP);
    }

    /// Ends what [`Cluster::freeze_meta`] began.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw_meta(&self, number: usize) {
        signal(self.metas[number].as_ref(), rustix::process::Signal::CONT);
    }

    /// Waits until a storage node has ended by itself, and returns its exit code.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait_for_end_of_store(&mut self, number: usize) -> Option<i32> {
        wait_for_end(self.stores[number].take())
    }

    /// Kills every process.
    pub fn kill_all(&mut self) {
        self.metas.iter_mut().chain(&mut self.stores).for_each(|child| kill(child.take()));
    }

    /// Starts every process that does not run.
    pub fn start_all(&mut self) {
        (0..self.metas.len())
            .filter(|&n| self.metas[n].is_none())
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|n| self.start_meta(n));
        (0..self.stores.len())
            .filter(|&n| self.stores[n].is_none())
            .collect::<Vec<_>>()
            .into_iter()
            .for_each(|n| self.start_store(n));
    }

    /// A `torchfs` command that knows where the cluster is.
    pub fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(binary());
        command.env("TORCHFS_META", self.meta_addrs()).args(args);
        command
    }

    /// Runs a `torchfs` command against the cluster.
    pub fn torchfs<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        run(&mut self.command(args))
    }

    /// `torchfs status --json`.
    ///
    /// # Panics
    /// If it cannot be had.
    #[track_caller]
    pub fn status(&self) -> Value {
        let text = self.torchfs(["status", "--json"]).ok();
        serde_json::from_str(&text).expect("status --json is JSON")
    }

    fn try_status(&self) -> Option<Value> {
        let finished = self.torchfs(["status", "--json"]);
        (finished.code == Some(0)).then(|| serde_json::from_slice(&finished.stdout).ok()).flatten()
    }

    /// Which metadata node leads (from 0).
    ///
    /// # Panics
    /// If none does.
    #[track_caller]
    pub fn leader(&self) -> usize {
        self.status()["leader"]["id"].as_u64().expect("a leader") as usize - 1
    }

    /// Waits until this many storage nodes are in a state (`up`, `down`).
    ///
    /// # Panics
    /// If that never happens.
    pub fn wait_for_stores(&self, state: &str, count: usize) {
        wait_until(&format!("{count} storage nodes are {state}"), || {
            self.try_status().is_some_and(|status| count_stores(&status, state) == count)
        });
    }

    /// The shard files of a storage node.
    pub fn shard_files(&self, store: usize) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.store_dir(store).join("data")];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() { folders.push(path) } else { found.push(path) }
            }
        }
        found
    }
}

fn count_stores(status: &Value, state: &str) -> usize {
    let stores = status["stores"].as_array().map(Vec::as_slice).unwrap_or_default();
    stores.iter().filter(|store| store["state"] == state).count()
}

fn signal(child: Option<&Child>, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child.expect("the node runs"));
    rustix::process::kill_process(pid, signal).expect("it takes signals");
}

fn wait_for_end(child: Option<Child>) -> Option<i32> {
    let mut node = child.expect("the node runs");
    wait_until("the node ends", || node.try_wait().expect("it can be asked").is_some());
    node.wait().expect("it has ended").code()
}

fn kill(child: Option<Child>) {
    if let Some(mut child) = child {
        // It may have ended by itself; then there is nothing to kill.
        let _ = child.kill();
        let status = child.wait().expect("a child can be waited for");
        assert!(status.signal().is_some(), "a node had ended by itself: {status}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.metas.iter_mut().chain(&mut self.stores).flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for node in std::fs::read_dir(self.dir()).into_iter().flatten().flatten() {
                if node.path().extension() == Some(OsStr::new("log")) {
                    let text = std::fs::read_to_string(node.path()).unwrap_or_default();
                    let tail: Vec<&str> = text.lines().rev().take(8).collect();
                    eprintln!("{}:", node.path().display());
                    tail.iter().rev().for_each(|line| eprintln!("  {line}"));
                }
            }
        }
    }
}
