//! Unmounting by path: what umount(8) does, for mounts of this and of other processes, those included whose process is
//! gone.
//!
//! Which process serves a mount is asked of the mount itself, by attributes of its root folder that are in no list.

use crate::volume::Volume;
use fuser::INodeNo;
use rustix::fs::getxattr;
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use tokio::time::Instant;
use torchfs_core::{Error, IoContext, Kind, Result};

/// The extended attribute of a mount's root folder that holds the id of the process that serves it.
const PID_ATTRIBUTE: &str = "system.torchfs.pid";

/// The one that holds its cache folder; empty if it has none.
const CACHE_ATTRIBUTE: &str = "system.torchfs.cache";

/// Asking for this one ends the recording of the mount's trace, whose reader would keep it in use; it tells whether there was one.
const RECORDED_ATTRIBUTE: &str = "system.torchfs.recorded";

/// The type of our mounts where fusermount3 made them, ...
const TYPE: &str = "fuse.torchfs";

/// ... and the type and source of those that root made.
const TYPE_AND_SOURCE: (&str, &str) = ("fuse", "torchfs");

/// A mount whose process says nothing for this long hangs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(5);

/// How long a recorder may take to close the trace that has ended.
const RECORDER_DEADLINE: Duration = Duration::from_secs(2);

/// How long the process of a mount may take to end after it: it finishes what is under way.
const END_DEADLINE: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// As long as a path may be.
const ATTRIBUTE_BYTES_MAX: usize = 4096;

/// Symbolic links followed to a mountpoint, as Linux does.
const LINKS_MAX: usize = 40;

/// What becomes of a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// It stays.
    Refuse,
    /// It is gone for new users at once, and ends when its last user lets go.
    Detach,
}

/// What served a mount that is gone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unmounted {
    /// The process, which has ended; `None` if that is not known.
    pub pid: Option<u32>,
    /// Its cache folder, where what could not be committed is kept.
    pub cache_dir: Option<PathBuf>,
}

/// Unmounts the TorchFS on a folder, and waits until everything that was written is committed, or has failed to be, and the
/// `torchfs` process that served it has ended. One that a killed process left is cleaned away. Whoever records the trace of the
/// mount does not keep it in use: the recording ends.
///
/// # Errors
/// `NotFound` if nothing is mounted there, `InvalidInput` if it is something else, `Conflict` if it is in use,
/// `Unavailable` if its process hangs, `Timeout` if it does not end, `NotPermitted` if it is another user's.
pub async fn unmount(mountpoint: PathBuf, in_use: InUse) -> Result<Unmounted> {
    // The kernel writes back, and asks the mount's process, before a call returns.
    let started = tokio::task::spawn_blocking(move || start_unmount(&mountpoint, in_use)).await;
    let server = started.unwrap_or_else(|_| Err(Error::new(Kind::Io, "the unmount failed")))?;
    let Some(process) = server.process else { return Ok(Unmounted::default()) };
    let pid = Some(process.pid);
    wait_for_end(process).await?;
    Ok(Unmounted { pid, cache_dir: server.cache_dir })
}

/// Unmounts, and returns the process that should end now.
fn start_unmount(mountpoint: &Path, in_use: InUse) -> Result<Server> {
    let point = real_path(mountpoint)?;
    let at = mountpoint.display();
    match mounted_on(&point)? {
        None => return Err(Error::new(Kind::NotFound, format!("nothing is mounted on {at}"))),
        Some(other) if !other.is_ours() => {
            let kind = other.kind;
            let message = format!("the mount on {at} is of type {kind} and not of TorchFS; umount(8) unmounts it");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Some(_) => {}
    }
    match (state(&point), in_use) {
        (State::Dead, _) | (State::Hung, InUse::Detach) => detach(&point).map(|()| Server::default()),
        (State::Hung, InUse::Refuse) => {
            let message = format!("the process of the mount on {at} does not answer: --lazy detaches it all the same");
            Err(Error::new(Kind::Unavailable, message))
        }
        (State::Served(server), InUse::Refuse) => take_recorded(&point).map(|()| server),
        (State::Served(server), InUse::Detach) => match take_recorded(&point) {
            Ok(()) => Ok(server),
            Err(_) => detach(&point).map(|()| Server::default()),
        },
    }
}

/// Unmounts what is there, in use or not.
pub fn release(point: &Path) -> Result<()> {
    take(point).or_else(|_| detach(point))
}

/// Whether there is a mount to be released.
pub fn is_mounted(point: &Path) -> bool {
    mounted_on(point).is_ok_and(|mount| mount.is_some())
}

/// Makes a folder free to be mounted on: cleans away the mounts on it whose processes were killed. True if there was one.
/// Blocks the thread, for seconds where a mount hangs.
///
/// # Errors
/// `Exists` if a TorchFS is mounted there, `Unavailable` if it hangs, `NotPermitted` if it is dead and another user's.
pub fn clear_mountpoint(mountpoint: &Path) -> Result<bool> {
    let point = real_path(mountpoint)?;
    let at = mountpoint.display();
    let mut found = false;
    // stat(2) would not tell: the kernel answers it from memory for a second.
    while mounted_on(&point)?.is_some_and(|mount| mount.is_ours()) {
        match state(&point) {
            State::Dead => detach(&point)?,
            State::Served(_) => {
                let message = format!("TorchFS is mounted on {at} already: `torchfs umount {at}` unmounts it");
                return Err(Error::new(Kind::Exists, message));
            }
            State::Hung => {
                let message = format!(
                    "a TorchFS is mounted on {at} and its process does not answer: `torchfs umount --lazy {at}` detaches it"
                );
                return Err(Error::new(Kind::Unavailable, message));
            }
        }
        found = true;
    }
    Ok(found)
}

/// The answer to the kernel's question for an attribute, if it is one of those that a mount has for its own tools.
pub fn own_attribute(ino: INodeNo, name: &OsStr, volume: &Volume) -> Option<Vec<u8>> {
    if ino != INodeNo::ROOT {
        return None;
    }
    match name.to_str()? {
        PID_ATTRIBUTE => Some(std::process::id().to_string().into_bytes()),
        CACHE_ATTRIBUTE => Some(volume.cache_dir().map_or_else(Vec::new, |dir| dir.as_os_str().as_bytes().to_vec())),
        RECORDED_ATTRIBUTE => Some(if volume.tracer.stop() { b"yes".to_vec() } else { b"no".to_vec() }),
        _ => None,
    }
}

/// The path as the kernel lists it. The mountpoint itself is not touched: that of a dead mount cannot be.
fn real_path(mountpoint: &Path) -> Result<PathBuf> {
    let what = || mountpoint.display().to_string();
    let mut path = std::path::absolute(mountpoint).io(what)?;
    for _ in 0..LINKS_MAX {
        match (std::fs::read_link(&path), path.parent()) {
            (Ok(target), Some(parent)) => path = parent.join(target),
            _ => break,
        }
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(parent.canonicalize().io(what)?.join(name)),
        _ => path.canonicalize().io(what),
    }
}

/// A line of proc_pid_mountinfo(5).
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    kind: String,
    source: String,
}

impl Mount {
    fn parse(line: &[u8]) -> Option<Mount> {
        let mut words = line.split(|&byte| byte == b' ');
        let point = PathBuf::from(OsString::from_vec(unescaped(words.nth(4)?)));
        let mut words = words.skip_while(|word| *word != b"-").skip(1);
        let mut text = || Some(String::from_utf8_lossy(words.next()?).into_owned());
        Some(Mount { point, kind: text()?, source: text()? })
    }

    fn is_ours(&self) -> bool {
        self.kind == TYPE || (self.kind.as_str(), self.source.as_str()) == TYPE_AND_SOURCE
    }
}

/// Where TorchFS is mounted on this machine, in the order of mounting.
///
/// # Errors
/// If the operating system does not tell.
pub fn mountpoints() -> Result<Vec<PathBuf>> {
    Ok(mounts()?.into_iter().filter(Mount::is_ours).map(|mount| mount.point).collect())
}

fn mounts() -> Result<Vec<Mount>> {
    let mounts = std::fs::read("/proc/self/mountinfo").io(|| "read /proc/self/mountinfo")?;
    Ok(mounts.split(|&byte| byte == b'\n').filter_map(Mount::parse).collect())
}

/// The topmost mount on a folder.
fn mounted_on(point: &Path) -> Result<Option<Mount>> {
    Ok(mounts()?.into_iter().rfind(|mount| mount.point == point))
}

/// The kernel writes blanks, line breaks and backslashes as three octal digits.
fn unescaped(word: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((&byte, behind)) = rest.split_first() {
        let octal = behind.get(..3).filter(|_| byte == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) => {
                bytes.push(escaped);
                rest = &behind[3..];
            }
            None => {
                bytes.push(byte);
                rest = behind;
            }
        }
    }
    bytes
}

/// Who is behind a mount.
#[derive(Debug)]
enum State {
    Served(Server),
    Hung,
    Dead,
}

#[derive(Debug, Default)]
struct Server {
    /// `None` if it is not known which, or if it is not one that ends with its mount.
    process: Option<Process>,
    cache_dir: Option<PathBuf>,
}

fn state(point: &Path) -> State {
    let (answer, answered) = mpsc::channel();
    let path = point.to_owned();
    // A thread, because nothing takes back the question to a mount that hangs.
    std::thread::spawn(move || {
        let found = attribute(&path, PID_ATTRIBUTE).map(|pid| {
            let pid = String::from_utf8_lossy(&pid).parse().ok();
            let cache = attribute(&path, CACHE_ATTRIBUTE).ok().filter(|cache| !cache.is_empty());
            let cache_dir = cache.map(|cache| PathBuf::from(OsString::from_vec(cache)));
            Server { process: pid.and_then(Process::find), cache_dir }
        });
        drop(answer.send(found));
    });
    match answered.recv_timeout(ANSWER_DEADLINE) {
        Ok(Ok(server)) => State::Served(server),
        Ok(Err(error)) if is_dead(error) => State::Dead,
        Ok(Err(_)) => State::Served(Server::default()),
        Err(_) => State::Hung,
    }
}

fn attribute(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; ATTRIBUTE_BYTES_MAX];
    let bytes = getxattr(path, name, &mut value[..])?;
    value.truncate(bytes);
    Ok(value)
}

fn is_dead(error: Errno) -> bool {
    // The second is for who asked while the process was being killed.
    [Errno::NOTCONN, Errno::CONNABORTED].contains(&error)
}

/// A running `torchfs`, told apart from a later process with the same id.
#[derive(Debug, PartialEq, Eq)]
struct Process {
    pid: u32,
    started: String,
}

impl Process {
    fn find(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // PID (NAME) STATE ..., and the 22nd is when it started.
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(") ")?;
        let words: Vec<&str> = rest.split(' ').collect();
        let has_ended = matches!(words.first(), Some(&"Z" | &"X"));
        (name == "torchfs" && !has_ended).then_some(Process { pid, started: words.get(19)?.to_string() })
    }
}

async fn wait_for_end(process: Process) -> Result<()> {
    let end = Instant::now() + END_DEADLINE;
    while Process::find(process.pid).is_some_and(|found| found == process) {
        if Instant::now() > end {
            let pid = process.pid;
            let message = format!("unmounted, but its process {pid} is not done after {} s", END_DEADLINE.as_secs());
            return Err(Error::new(Kind::Timeout, message));
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    Ok(())
}

/// Unmounts what nobody uses, or only who records its trace.
#[expect(clippy::disallowed_methods, reason = "all of this blocks its thread, which is none of the runtime's")]
fn take_recorded(point: &Path) -> Result<()> {
    let mut taken = take(point);
    let is_busy = |taken: &Result<()>| taken.as_ref().is_err_and(|error| error.kind() == Kind::Conflict);
    if is_busy(&taken) && attribute(point, RECORDED_ATTRIBUTE).is_ok_and(|recorded| recorded == b"yes") {
        let end = Instant::now() + RECORDER_DEADLINE;
        while is_busy(&taken) && Instant::now() < end {
            std::thread::sleep(POLL_INTERVAL);
            taken = take(point);
        }
    }
    taken
}

/// Unmounts what nobody uses. Who is not root needs the help of fusermount3, as for mounting.
fn take(point: &Path) -> Result<()> {
    match rustix::mount::unmount(point, UnmountFlags::empty()) {
        Err(Errno::PERM) => fusermount(point, &["-u"]),
        Err(Errno::BUSY) => Err(busy(point)),
        done => done.io(|| format!("unmount {}", point.display())),
    }
}

fn detach(point: &Path) -> Result<()> {
    match rustix::mount::unmount(point, UnmountFlags::DETACH) {
        Err(Errno::PERM) => fusermount(point, &["-u", "-z"]),
        done => done.io(|| format!("detach {}", point.display())),
    }
}

fn fusermount(point: &Path, flags: &[&str]) -> Result<()> {
    let helper = Command::new("fusermount3").args(flags).arg("--").arg(point).output();
    let done = helper.io(|| format!("run fusermount3 to unmount {}", point.display()))?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr).trim().to_owned();
    if said.ends_with("busy") {
        return Err(busy(point));
    }
    Err(Error::new(Kind::NotPermitted, format!("cannot unmount {}: {said}", point.display())))
}

fn busy(point: &Path) -> Error {
    let at = point.display();
    let message = format!("{at} is in use: leave it and close its files (`fuser -vm {at}` shows who), or give --lazy");
    Error::new(Kind::Conflict, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_understood() {
        let line = br"36 35 98:0 / /mnt/a\040b\134c rw,noatime shared:1 - fuse.torchfs torchfs rw,user_id=0";
        let mount = Mount::parse(line).expect("a mount");
        assert_eq!((mount.point.as_path(), mount.is_ours()), (Path::new(r"/mnt/a b\c"), true));
        let line = b"36 35 0:45 / /mnt rw,noatime - fuse torchfs rw,user_id=0";
        assert!(Mount::parse(line).expect("made by root, no optional fields").is_ours());
        let line = b"36 35 98:0 / / rw,noatime - ext4 /dev/vda rw";
        assert!(!Mount::parse(line).expect("another's").is_ours());
        assert!(Mount::parse(b"").is_none());
    }

    #[test]
    fn what_is_no_mount_of_ours_stays() {
        let folder = tempfile::tempdir().expect("folder");
        assert_eq!(start_unmount(folder.path(), InUse::Refuse).expect_err("nothing").kind(), Kind::NotFound);
        let error = start_unmount(Path::new("/proc"), InUse::Detach).expect_err("not ours");
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains("type proc"), "{error}");
        assert!(!clear_mountpoint(folder.path()).expect("nothing to clean"));
        std::os::unix::fs::symlink("/proc", folder.path().join("link")).expect("link");
        assert_eq!(real_path(&folder.path().join("link")).expect("found"), Path::new("/proc"));
    }
}
