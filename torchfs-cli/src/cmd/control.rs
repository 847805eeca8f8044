//! Asking a mount on this machine through its `.torchfs/control` (docs/control.md), for the verbs that do.

use super::blocking;
use crate::exit::{Exit, Failure, Outcome};
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use torchfs_core::{Error, IoContext, Kind};
use torchfs_fuse::{ControlAnswer as Answer, ControlRequest as Request, mountpoints};

/// A mount answers names within its own deadlines; one that takes longer hangs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(70);

/// How much of an order is written at once.
const WRITE_BYTES: usize = 256 * 1024;

/// A path in a mount on this machine.
#[derive(Clone, Debug)]
pub struct Place {
    pub mountpoint: PathBuf,
    /// From the root of the mount.
    pub path: String,
}

impl Place {
    /// Where a path is, links followed.
    ///
    /// # Errors
    /// `NotFound` if there is nothing, or it is in no mount; `Unavailable` if the mount hangs.
    pub async fn find(path: &Path) -> Outcome<Place> {
        Place::of(path, |path| path.canonicalize()).await
    }

    /// Where a path is, or was: links are followed as far as there is something.
    ///
    /// # Errors
    /// As [`Place::find`].
    pub async fn find_gone(path: &Path) -> Outcome<Place> {
        Place::of(path, real_path).await
    }

    async fn of(path: &Path, real: fn(&Path) -> std::io::Result<PathBuf>) -> Outcome<Place> {
        let shown = path.display().to_string();
        let given = path.to_owned();
        let finding = tokio::time::timeout(ANSWER_DEADLINE, blocking(move || find(&given, real(&given)))).await;
        let hangs = |_| Err(Failure::new(Exit::Unavailable, "the mount does not answer"));
        finding.unwrap_or_else(hangs).map_err(|failure| failure.context(shown))
    }
}

fn real_path(path: &Path) -> std::io::Result<PathBuf> {
    match (path.canonicalize(), path.parent(), path.file_name()) {
        (Err(error), Some(parent), Some(name)) if error.kind() == ErrorKind::NotFound => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(real_path(parent)?.join(name))
        }
        (real, _, _) => real,
    }
}

/// What a mount answers to a path in it that it does not open, and what to do about that.
pub fn failed(path: &Path, what: &str, error: std::io::Error) -> Failure {
    match error.raw_os_error() {
        Some(libc::ENOTCONN) => killed(path),
        Some(libc::EIO) => Failure::from(Error::io(what, error))
            .hint("its cluster may not answer, as `torchfs status` tells; the log of the mount has the reason"),
        _ => Failure::from(Error::io(what, error)),
    }
}

fn killed(path: &Path) -> Failure {
    let mounts = mountpoints().unwrap_or_default();
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mountpoint = around(&absolute, &mounts).map_or("MOUNTPOINT".to_owned(), |mount| mount.display().to_string());
    let hint =
        format!("`torchfs mount {mountpoint}` mounts it again; `torchfs umount {mountpoint}` cleans away what is left");
    Failure::new(Exit::Unavailable, "the process of the mount was killed").hint(hint)
}

/// The mountpoint that a path is below.
fn around<'a>(path: &Path, mountpoints: &'a [PathBuf]) -> Option<&'a PathBuf> {
    mountpoints.iter().filter(|mount| path.starts_with(mount)).max_by_key(|mount| mount.as_os_str().len())
}

fn find(given: &Path, real: std::io::Result<PathBuf>) -> Outcome<Place> {
    let real = real.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Failure::new(Exit::NotFound, "no such file or folder"),
        _ => failed(given, "look for it", error),
    })?;
    let mounts = mountpoints()?;
    let Some(mountpoint) = around(&real, &mounts) else {
        let hint = match mounts.first() {
            Some(first) => format!("give a path below {}, where one is mounted", first.display()),
            None => "none is mounted on this machine; `torchfs mount MOUNTPOINT` mounts one".to_owned(),
        };
        return Err(Failure::new(Exit::NotFound, "is in no mounted TorchFS").hint(hint));
    };
    let below = real.strip_prefix(mountpoint).unwrap_or(&real);
    let path = below.to_str().ok_or_else(|| {
        let hint = "give the folder above it; names in it may be any bytes";
        Failure::usage("a path that is not UTF-8 cannot be asked for").hint(hint)
    })?;
    Ok(Place { mountpoint: mountpoint.clone(), path: format!("/{path}") })
}

/// Asks a mount, with the order in a file if there is one (`-` is stdin), and gives its last answer. Others are handed to `said` as they come.
/// Dropping it ends what is under way.
///
/// # Errors
/// That the mount cannot be asked, or what it answers.
pub async fn ask(
    mountpoint: PathBuf,
    request: Request,
    order: Option<PathBuf>,
    said: impl FnMut(&Answer) + Send + 'static,
) -> Outcome<Answer> {
    let stopping = Stopping::default();
    let is_stopping = stopping.0.clone();
    blocking(move || {
        let file = begin(&mountpoint, &request, order.as_deref())?;
        listen(BufReader::new(file), &is_stopping, said)
    })
    .await
}

/// Tells the thread that listens to stop, when nobody waits for it any more.
#[derive(Default)]
struct Stopping(Arc<AtomicBool>);

impl Drop for Stopping {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn begin(mountpoint: &Path, request: &Request, order: Option<&Path>) -> Outcome<File> {
    let order: Option<(String, Box<dyn Read>)> = match order {
        Some(path) if path == Path::new("-") => Some(("stdin".to_owned(), Box::new(std::io::stdin()))),
        Some(path) => {
            let shown = path.display().to_string();
            let opened = File::open(path).io(|| format!("open {shown}"))?;
            Some((shown, Box::new(opened)))
        }
        None => None,
    };
    let mut file = open(mountpoint)?;
    let mut line = serde_json::to_vec(request).map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
    line.push(b'\n');
    file.write_all(&line).io(|| "ask the mount")?;
    let Some((shown, mut order)) = order else { return Ok(file) };
    let (mut buffer, mut is_empty) = (vec![0; WRITE_BYTES], true);
    loop {
        let read = order.read(&mut buffer).io(|| format!("read {shown}"))?;
        if read == 0 && is_empty {
            return Err(Failure::usage(format!("{shown} is empty: it names no file")));
        }
        if read == 0 {
            return Ok(file);
        }
        is_empty = false;
        file.write_all(&buffer[..read]).io(|| format!("send {shown} to the mount"))?;
    }
}

fn open(mountpoint: &Path) -> Outcome<File> {
    let shown = String::from_utf8_lossy(mountpoint.as_os_str().as_bytes()).into_owned();
    let opened = File::options().read(true).write(true).open(mountpoint.join(".torchfs/control"));
    opened.map_err(|error| match error.kind() {
        ErrorKind::ReadOnlyFilesystem => {
            Failure::new(Exit::Permission, format!("{shown} is mounted read-only: it takes no requests"))
                .hint("mount it without ro; file permissions or another mount keep it from being written to")
        }
        ErrorKind::NotFound => Failure::new(Exit::WrongPeer, format!("{shown} takes no requests"))
            .hint("it is a part of a mount, or the mount of an older torchfs"),
        _ => failed(mountpoint, &format!("ask the mount on {shown}"), error),
    })
}

fn listen(mut file: impl BufRead, is_stopping: &AtomicBool, mut said: impl FnMut(&Answer)) -> Outcome<Answer> {
    let mut line = String::new();
    loop {
        line.clear();
        file.read_line(&mut line).io(|| "read the mount's answer")?;
        if is_stopping.load(Ordering::Acquire) {
            return Err(Failure::silent(Exit::Interrupted));
        }
        let answer = serde_json::from_str(&line).map_err(|error| {
            Failure::from(Error::caused(Kind::Protocol, "the mount is of another version of torchfs", error))
        })?;
        match answer {
            Answer::Failed { kind, message } => return Err(Failure::from(Error::new(kind, message))),
            last if last.is_last() => return Ok(last),
            other => said(&other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_killed_mount_it_is_said_what_mounts_it_again() {
        let text_of = |errno| {
            let failure = failed(Path::new("/no/mount"), "ask", std::io::Error::from_raw_os_error(errno));
            failure.context("/no/mount").lines("stats").join("\n")
        };
        let text = text_of(libc::ENOTCONN);
        assert!(text.starts_with("torchfs: stats /no/mount: the process of the mount was killed\n"), "{text}");
        assert!(text.contains("`torchfs mount ") && text.contains("`torchfs umount "), "{text}");
        let text = text_of(libc::EIO);
        assert!(text.contains("ask: Input/output error") && text.contains("`torchfs status`"), "{text}");
        assert!(!text_of(libc::EACCES).contains('`'), "nothing is known of it");
        let mounts = ["/mnt".into(), "/mnt/inner".into()];
        assert_eq!(around(Path::new("/mnt/inner/a"), &mounts), Some(&mounts[1]));
        assert_eq!(around(Path::new("/mnt/innermost"), &mounts), Some(&mounts[0]));
    }
}
