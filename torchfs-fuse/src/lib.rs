//! TorchFS as a mounted file system: a thin adapter from FUSE to [`torchfs_core::Client`].
//!
//! What it is not: a second client. Caching, staging, consistency and failure handling are the core's; this crate knows
//! handles, errno and the kernel's manners. fuser is known only here.
//!
//! ```no_run
//! # async fn run() -> torchfs_core::Result<()> {
//! use torchfs_core::Client;
//! use torchfs_fuse::MountOptions;
//!
//! let client = Client::connect(["127.0.0.1:7100"]).await?;
//! let mounted = torchfs_fuse::mount(client, "/mnt/data".as_ref(), MountOptions::default())?;
//! mounted.wait().await
//! # }
//! ```

mod adapter;
mod answer;
mod awake;
mod caller;
mod control;
mod convert;
mod errno;
mod handles;
mod io_mode;
mod node;
mod orders;
mod pages;
mod reply;
mod special;
mod stats;
mod told;
mod tracer;
mod unmount;
mod volume;
mod watcher;
mod written;

pub use control::{Answer as ControlAnswer, Request as ControlRequest};
pub use errno::errno;
pub use stats::MountStats;
pub use unmount::{InUse, Unmounted, clear_mountpoint, mountpoints, unmount};

use adapter::Adapter;
use fuser::{Config, MountOption, Session, SessionACL};
use rustix::io::Errno;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use torchfs_core::{Client, Error, IoContext, Kind, Result};
use tracer::Tracer;
use volume::Volume;

/// How long operations that are under way may still take after the file system is unmounted.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// Directives of a log filter for what fuser says that needs nobody's attention.
///
/// Its module `reply` reports as an error that the kernel no longer waits for an answer: at an unmount, which gives up
/// releases of files that were just closed, and when a program is killed while it waits. Nobody misses these answers.
pub const LOG_FILTER: &str = "fuser=error,fuser::reply=off";

/// How to mount.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// Takes no writes.
    pub read_only: bool,
    /// Other users than the one who mounts may use it, by the permission bits. Default: when root mounts.
    pub allow_other: bool,
    /// Threads that take requests from the kernel; the work itself runs on the tokio runtime.
    pub threads: usize,
    /// For how long the kernel may answer names and attributes from what it was told, unless it is told before that another
    /// client changed them. One second is what docs/semantics.md promises.
    pub kernel_ttl: Duration,
    /// The kernel may read large cached files by itself, without a word to this process.
    pub passthrough: bool,
    /// Processors of a virtual machine are kept from being halted while one reader opens one small file of an announced order after the
    /// other, where that saves much of its time: on Linux as a guest that does not poll before (`guest_halt_poll_ns=0`), as root.
    pub awake: bool,
}

impl Default for MountOptions {
    fn default() -> Self {
        MountOptions {
            read_only: false,
            allow_other: rustix::process::geteuid().is_root(),
            threads: 2,
            kernel_ttl: Duration::from_secs(1),
            passthrough: true,
            awake: true,
        }
    }
}

/// A mounted file system. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    mountpoint: PathBuf,
    ended: watch::Receiver<Option<Result<()>>>,
    tasks: TaskTracker,
    tracer: Arc<Tracer>,
    control_stopped: CancellationToken,
}

/// Mounts the file system of `client` on the folder `mountpoint`. When this returns, the mount is usable. What a killed
/// process left mounted there is cleaned away first.
///
/// # Errors
/// `NotFound` or `NotDirectory` for the mountpoint, `Exists` if a TorchFS is mounted there, `Unavailable` if that one hangs,
/// `NotPermitted` without /dev/fuse or the right to mount, `Io` otherwise.
///
/// # Panics
/// Outside a tokio runtime.
pub fn mount(client: Client, mountpoint: &Path, options: MountOptions) -> Result<Mounted> {
    check_mountpoint(mountpoint)?;
    let tasks = TaskTracker::new();
    let volume = Arc::new(Volume::new(client, &whole_path(mountpoint), &options));
    let adapter = Adapter::new(volume.clone(), Handle::current(), tasks.clone());
    let session =
        Session::new(adapter, mountpoint, &config(&options)).map_err(|error| mount_error(mountpoint, error))?;
    let (tracer, control_stopped) = (volume.tracer.clone(), volume.control.stopped());
    let (ended_in, ended) = watch::channel(None);
    let name = format!("cannot start the mount of {}", mountpoint.display());
    let mut session = ManuallyDrop::new(session.spawn().io(|| name.clone())?);
    // Dropping what fuser calls the mount would unmount whatever is at the path by then, also when this mount is gone and
    // another has taken its place. So it is never dropped; the connection to the kernel, which is gone too, stays with it.
    let notifier = session.notifier();
    let _ = volume.notifier.set(notifier.clone());
    let watcher = watcher::run(volume.clone(), notifier);
    let serving = std::mem::replace(&mut session.guard, std::thread::spawn(|| Ok(())));
    // The thread ends when the kernel says that the file system is unmounted; `Mounted` sees to it that this happens.
    std::thread::Builder::new()
        .name("torchfs-mount".to_owned())
        .spawn(move || {
            let result = serving.join().unwrap_or_else(|_| Err(std::io::Error::other("the mount's thread panicked")));
            ended_in.send_replace(Some(end_of_connection(result)));
        })
        .io(|| name)?;
    let mut until = ended.clone();
    tasks.spawn(async move {
        tokio::select! {
            _ = until.wait_for(Option::is_some) => (),
            () = watcher => (),
            () = volume.awake.run() => (),
        }
        volume.meta().leave().await;
    });
    Ok(Mounted { mountpoint: mountpoint.to_owned(), ended, tasks, tracer, control_stopped })
}

impl Mounted {
    /// Where it is mounted.
    #[must_use]
    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Returns when the file system is unmounted, by whomever, and what was under way is done.
    ///
    /// # Errors
    /// `Io` if the connection to the kernel failed.
    pub async fn wait(&self) -> Result<()> {
        let mut ended = self.ended.clone();
        let result = match ended.wait_for(Option::is_some).await {
            Ok(result) => result.clone().unwrap_or(Ok(())),
            Err(_) => Err(Error::new(Kind::Io, "the mount's thread failed")),
        };
        self.tasks.close();
        if tokio::time::timeout(DRAIN_DEADLINE, self.tasks.wait()).await.is_err() {
            return Err(Error::new(Kind::Timeout, "operations were still under way after the unmount"));
        }
        result
    }

    /// Unmounts and waits. A mount that is in use is detached at once, and ends when its last user lets go.
    ///
    /// # Errors
    /// As [`Mounted::wait`], or if it cannot be unmounted.
    pub async fn unmount(&self) -> Result<()> {
        if self.ended.borrow().is_none() {
            // Whoever records would keep the mount in use for good, and whoever waits for an answer for long.
            self.tracer.stop();
            self.control_stopped.cancel();
            let mountpoint = self.mountpoint.clone();
            // The kernel writes back and asks this very file system before the call returns.
            let unmounted = tokio::task::spawn_blocking(move || unmount::release(&mountpoint)).await;
            unmounted.unwrap_or_else(|_| Err(Error::new(Kind::Io, "the unmount failed")))?;
        }
        self.wait().await
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // One that was detached is there for its users only.
        if self.ended.borrow().is_none()
            && unmount::is_mounted(&self.mountpoint)
            && let Err(error) = unmount::release(&self.mountpoint)
        {
            tracing::warn!("{error}");
        }
    }
}

/// A connection that is shut down gives ENODEV, which fuser takes for the end, and ECONNABORTED to a thread that is handed
/// one of the requests that were still queued: closed files, mostly, which need no answer (`fuse_abort_conn` and
/// `fuse_dev_do_read` in fs/fuse/dev.c of Linux).
fn end_of_connection(result: std::io::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::CONNABORTED.raw_os_error()) => Ok(()),
        other => other.io(|| "the connection to the kernel failed"),
    }
}

/// As programs name it.
fn whole_path(mountpoint: &Path) -> PathBuf {
    mountpoint.canonicalize().unwrap_or_else(|_| mountpoint.to_owned())
}

fn config(options: &MountOptions) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("torchfs".to_owned()),
        MountOption::Subtype("torchfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
        if options.read_only { MountOption::RO } else { MountOption::RW },
    ];
    config.acl = if options.allow_other { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(options.threads.max(1));
    config
}

fn check_mountpoint(mountpoint: &Path) -> Result<()> {
    clear_mountpoint(mountpoint)?;
    let found = match std::fs::metadata(mountpoint) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!("mountpoint {} does not exist: make the folder first", mountpoint.display());
            return Err(Error::new(Kind::NotFound, message));
        }
        found => found.io(|| format!("mountpoint {}", mountpoint.display()))?,
    };
    if found.is_dir() {
        return Ok(());
    }
    Err(Error::new(Kind::NotDirectory, format!("mountpoint {} is not a folder", mountpoint.display())))
}

fn mount_error(mountpoint: &Path, error: std::io::Error) -> Error {
    let at = mountpoint.display();
    if !Path::new("/dev/fuse").exists() {
        return Error::caused(Kind::NotPermitted, format!("mount {at}: this machine has no /dev/fuse"), error);
    }
    if error.kind() == std::io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() {
        let message = format!(
            "mount {at}: who is not root needs fusermount3 (package fuse3), and a /dev/fuse that all may open (mode 0666)"
        );
        return Error::caused(Kind::NotPermitted, message, error);
    }
    Error::io(format!("mount {at}"), error)
}
