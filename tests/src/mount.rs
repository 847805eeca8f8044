//! A `torchfs mount` process.

use crate::cluster::{Cluster, run, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

/// Whether this machine can mount. If not, says so on one line; where `TORCHFS_REQUIRE_FUSE` is set, as in CI, that is a
/// failure instead.
///
/// # Panics
/// Without /dev/fuse where it is required.
#[must_use]
pub fn fuse_or_skip() -> bool {
    if Path::new("/dev/fuse").exists() {
        return true;
    }
    assert!(std::env::var_os("TORCHFS_REQUIRE_FUSE").is_none(), "/dev/fuse is required here and missing");
    println!("skipped: no /dev/fuse");
    false
}

/// A cluster mounted on `mnt`, where this machine can mount; see [`fuse_or_skip`].
#[must_use]
pub fn mounted_or_skip() -> Option<(Cluster, Mount)> {
    fuse_or_skip().then(|| {
        let cluster = Cluster::start();
        let mount = Mount::start(&cluster, "mnt");
        (cluster, mount)
    })
}

/// A mounted file system in a process of its own. Unmounted and killed when dropped.
#[derive(Debug)]
pub struct Mount {
    process: Option<Child>,
    point: PathBuf,
}

impl Mount {
    /// Mounts the cluster on a new folder `name` inside the cluster's own, with a cache of its own.
    ///
    /// # Panics
    /// If it is not usable in time.
    #[must_use]
    pub fn start(cluster: &Cluster, name: &str) -> Self {
        Mount::start_with(cluster, name, &[])
    }

    /// [`Mount::start`] with further arguments.
    ///
    /// # Panics
    /// If it is not usable in time.
    #[must_use]
    pub fn start_with(cluster: &Cluster, name: &str, args: &[&str]) -> Self {
        let point = cluster.dir().join(name);
        std::fs::create_dir_all(&point).expect("a mountpoint");
        Mount::start_on(cluster, point, name, args)
    }

    /// Mounts the cluster on `point`, with a cache of its own.
    ///
    /// # Panics
    /// If it is not usable in time.
    #[must_use]
    pub fn start_on_path(cluster: &Cluster, point: &Path, name: &str) -> Self {
        Mount::start_on(cluster, point.to_owned(), name, &[])
    }

    fn start_on(cluster: &Cluster, point: PathBuf, name: &str, args: &[&str]) -> Self {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(cluster.dir().join(format!("{name}.log")));
        let cache = cluster.dir().join(format!("{name}-cache"));
        let mut command = cluster.command(["mount"]);
        command.arg(&point).arg("--cache-dir").arg(cache).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.expect("a log file"));
        let before = mounts_on(&point);
        let process = Some(command.spawn().expect("torchfs mount starts"));
        wait_until("the mount is there", || mounts_on(&point) > before);
        Mount { process, point }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// What `.torchfs/stats` says.
    ///
    /// # Panics
    /// If that cannot be read.
    #[must_use]
    pub fn stats(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.join(".torchfs/stats")).expect("reads the stats");
        serde_json::from_str(&text).expect("JSON")
    }

    /// A path inside.
    #[must_use]
    pub fn join(&self, path: impl AsRef<Path>) -> PathBuf {
        self.point.join(path)
    }

    /// Kills the process with SIGKILL and leaves the mountpoint as it is then.
    ///
    /// # Panics
    /// If that fails.
    pub fn crash(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().expect("it can be killed");
        process.wait().expect("it can be waited for");
    }

    /// [`Mount::crash`], and cleans the mountpoint.
    ///
    /// # Panics
    /// If that fails.
    pub fn kill(&mut self) {
        self.crash();
        let unmounted = Command::new("umount").arg("-l").arg(&self.point).status().expect("umount runs");
        assert!(unmounted.success());
    }

    /// Stops the process from running without ending it (SIGSTOP); [`Mount::thaw`] lets it go on.
    ///
    /// # Panics
    /// If it does not run.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Whether [`Mount::freeze`] has come into effect, in all threads.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        let process = self.process.as_ref().expect("it runs");
        let threads = std::fs::read_dir(format!("/proc/{}/task", process.id())).expect("it runs");
        let status = |path: PathBuf| std::fs::read_to_string(path.join("status")).unwrap_or_default();
        // One that has ended meanwhile is in no state.
        threads.flatten().map(|thread| status(thread.path())).all(|text| text.is_empty() || text.contains("State:\tT"))
    }

    /// Ends what [`Mount::freeze`] began.
    ///
    /// # Panics
    /// If it does not run.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    /// Ctrl-C.
    ///
    /// # Panics
    /// If it does not run.
    pub fn interrupt(&self) {
        self.signal(rustix::process::Signal::INT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(self.process.as_ref().expect("it runs"));
        rustix::process::kill_process(pid, signal).expect("it can be signalled");
    }

    /// How many threads its process has now.
    ///
    /// # Panics
    /// If it does not run.
    #[must_use]
    pub fn threads(&self) -> usize {
        let id = self.process.as_ref().expect("it runs").id();
        std::fs::read_dir(format!("/proc/{id}/task")).expect("every process has it").count()
    }

    /// Whether its process has ended.
    ///
    /// # Panics
    /// If it was taken away by another of these.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().expect("it was started").try_wait().expect("it can be asked").is_some()
    }

    /// The most memory that its process ever had.
    ///
    /// # Panics
    /// If the process has ended.
    #[must_use]
    pub fn resident_bytes_peak(&self) -> u64 {
        let id = self.process.as_ref().expect("it runs").id();
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).expect("it runs");
        let kilobytes = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.strip_suffix("kB"));
        kilobytes.and_then(|number| number.trim().parse::<u64>().ok()).expect("the kernel says") * 1024
    }

    /// Unmounts as a user does, and waits for the process to end well.
    ///
    /// # Panics
    /// If either fails.
    pub fn unmount(mut self) {
        run(Command::new("umount").arg(&self.point)).ok();
        assert!(self.wait_for_end().success(), "the mount's process failed");
    }

    /// How its process ended, when it has.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn wait_for_end(&mut self) -> ExitStatus {
        wait_until("the mount's process ends", || self.has_ended());
        self.process.take().expect("it was started").wait().expect("it has ended")
    }
}

fn mounts_on(point: &Path) -> usize {
    mounts_below(point).iter().filter(|mounted| *mounted == point).count()
}

/// Where something is mounted in a folder or on it.
#[must_use]
pub fn mounts_below(folder: &Path) -> Vec<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    points.filter(|point| point.starts_with(folder)).collect()
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = Command::new("umount").arg("-l").arg(&self.point).stderr(Stdio::null()).status();
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
