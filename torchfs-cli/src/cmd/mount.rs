//! `torchfs mount`: in the foreground until it is unmounted or stopped, or in the background.

mod background;

use super::recover::check_nothing_is_left;
use super::{GIVE_BACK_DEADLINE, cannot_connect, metas};
use crate::args::{Global, Mount};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{printable, shell_quoted};
use crate::signal::StopSignals;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;
use torchfs_core::{Client, IoContext, Kind};
use torchfs_fuse::{MountOptions, Mounted, clear_mountpoint, mount};

/// How long the first request to a new mount may take.
const USABLE_DEADLINE: Duration = Duration::from_secs(10);

pub async fn run(global: &Global, args: Mount, stop: &mut StopSignals) -> Outcome {
    if args.fake {
        return Ok(());
    }
    if args.background {
        return stop.or_interrupted(background::start(global, &args)).await;
    }
    if args.serve_background {
        return background::serve(global, &args, stop).await;
    }
    let Some(started) = stop.before(Box::pin(start(global, &args))).await else { return Ok(()) };
    let served = started?;
    if !global.quiet {
        let shown = args.mountpoint.display();
        note!("mounted on {shown}; Ctrl-C or `umount {shown}` stops it");
    }
    served.until_stopped(stop).await
}

/// After that it is said why unmounting takes long.
const UNMOUNT_QUIET: Duration = Duration::from_secs(2);

/// A mount with what serves it.
pub struct Served {
    pub mounted: Mounted,
    pub client: Client,
    pub cache_dir: PathBuf,
}

impl Served {
    /// Returns when it is unmounted from outside, or unmounts it when a signal comes; a second one ends that too. Then gives
    /// back what was stored and has no name, and says if something could not be stored.
    pub async fn until_stopped(&self, stop: &mut StopSignals) -> Outcome {
        let ended = tokio::select! {
            ended = self.mounted.wait() => ended.map_err(Failure::from),
            () = stop.next() => stop.or_interrupted(self.unmount()).await,
        };
        self.client.give_back(GIVE_BACK_DEADLINE).await;
        ended.and_then(|()| check_nothing_is_left(&self.cache_dir, std::process::id()))
    }

    async fn unmount(&self) -> Outcome {
        let mut unmounting = pin!(self.mounted.unmount());
        if let Ok(unmounted) = tokio::time::timeout(UNMOUNT_QUIET, &mut unmounting).await {
            return Ok(unmounted?);
        }
        note!("programs still use the mount: it ends with the last of them, or at once with another Ctrl-C");
        Ok(unmounting.await?)
    }
}

/// Connects, mounts, and sees that the mount answers.
async fn start(global: &Global, args: &Mount) -> Outcome<Served> {
    let mountpoint = mountpoint(global, args).await?;
    let metas = metas(global)?;
    let cache_dir = cache_dir(args, &mountpoint)?;
    let cache_bytes = args.cache_size().of(disk_bytes(&cache_dir)?);
    let client = Client::builder().metas(metas.clone()).cache_dir(&cache_dir).cache_bytes(cache_bytes);
    let client = client.eviction(args.eviction()).prefetch(args.prefetch());
    let client = client.connect().await.map_err(|error| match error.kind() {
        // Of the cache folder, not of a connection.
        Kind::Conflict => error.into(),
        _ => cannot_connect(error, &metas),
    })?;
    let (read_only, passthrough, awake) = (args.is_read_only(), args.passes_through(), args.keeps_awake());
    let options = MountOptions { read_only, passthrough, awake, ..MountOptions::default() };
    let allow_other = args.allow_other().unwrap_or(options.allow_other);
    let mounted = mount(client.clone(), &mountpoint, MountOptions { allow_other, ..options })?;
    check_usable(&mountpoint).await?;
    let cache_dir = client.cache_dir().map_or(cache_dir, Path::to_owned);
    Ok(Served { mounted, client, cache_dir })
}

/// The size of the disk that holds a folder.
fn disk_bytes(folder: &Path) -> Outcome<u64> {
    let found = rustix::fs::statvfs(folder).io(|| format!("look at the disk of {}", folder.display()))?;
    Ok(found.f_blocks.saturating_mul(found.f_frsize))
}

/// The folder to mount on, free of what a killed mount left there.
async fn mountpoint(global: &Global, args: &Mount) -> Outcome<PathBuf> {
    let shown = printable(args.mountpoint.as_os_str().as_bytes());
    let path = args.mountpoint.clone();
    let cleaned = tokio::task::spawn_blocking(move || clear_mountpoint(&path)).await.unwrap_or(Ok(false));
    let cleaned = cleaned.map_err(|error| no_mountpoint(args, error))?;
    if cleaned && !global.quiet {
        note!("{shown} was still mounted by a process that was killed; cleaned up");
    }
    args.mountpoint.canonicalize().io(|| shown).map_err(|error| no_mountpoint(args, error))
}

fn no_mountpoint(args: &Mount, error: torchfs_core::Error) -> Failure {
    let path = args.mountpoint.as_os_str().as_bytes();
    match error.kind() {
        Kind::NotFound => Failure::new(Exit::NotFound, format!("no folder {}", printable(path)))
            .hint(format!("make it first: mkdir -p {}", shell_quoted(path))),
        _ => error.into(),
    }
}

async fn check_usable(mountpoint: &Path) -> Outcome {
    let path = mountpoint.to_owned();
    let answered = tokio::task::spawn_blocking(move || std::fs::symlink_metadata(path));
    match tokio::time::timeout(USABLE_DEADLINE, answered).await {
        Ok(Ok(Ok(_))) => Ok(()),
        Ok(Ok(Err(error))) => Err(torchfs_core::Error::io("the new mount answers with an error", error).into()),
        Ok(Err(_)) | Err(_) => {
            let message = format!("the new mount does not answer within {} s", USABLE_DEADLINE.as_secs());
            Err(Failure::new(Exit::Unavailable, message))
        }
    }
}

/// The cache folder: as given, or one of its own for each mountpoint. It is found from any folder, as a mount in the background
/// works in another one.
fn cache_dir(args: &Mount, mountpoint: &Path) -> Outcome<PathBuf> {
    let dir = match args.cache_dir() {
        Some(dir) => std::path::absolute(dir).io(|| dir.display().to_string())?,
        None => default_cache_dir(mountpoint)?,
    };
    std::fs::create_dir_all(&dir).io(|| format!("make the cache folder {}", dir.display()))?;
    Ok(dir)
}

fn default_cache_dir(mountpoint: &Path) -> Outcome<PathBuf> {
    Ok(default_cache_root()?.join(folder_name(mountpoint)))
}

/// Where the cache folders of this user's mounts are.
pub fn default_cache_root() -> Outcome<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/cache/torchfs".into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    let cache = cache.ok_or_else(|| Failure::usage("no home folder for the cache: give --cache-dir"))?;
    Ok(cache.join("torchfs"))
}

/// One name for a mountpoint, different for each: what is no letter, digit or `.` is written as `-` and two hex digits.
fn folder_name(mountpoint: &Path) -> String {
    let bytes = mountpoint.as_os_str().as_bytes();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'.';
    let escape = |&byte: &u8| if plain(byte) { char::from(byte).to_string() } else { format!("-{byte:02x}") };
    let name: String = bytes.iter().map(escape).collect();
    // Names end at 255 bytes; what two long ones share at their end hardly meets on one machine.
    name[name.len().saturating_sub(200)..].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mountpoint_has_its_own_cache() {
        assert_eq!(folder_name(Path::new("/mnt/data")), "-2fmnt-2fdata");
        assert_ne!(folder_name(Path::new("/mnt/a-2fb")), folder_name(Path::new("/mnt/a/b")));
        assert_eq!(folder_name(Path::new(&"/x".repeat(300))).len(), 200);
    }
}
