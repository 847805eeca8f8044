//! Reading whole cached files without the mount's process: the kernel reads the cache's file itself.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use torchfs_tests::{Cluster, Mount, Noise, mounted_or_skip, wait_until};

const BYTES: usize = 12_000_000;

/// The kernel's pages of the file are forgotten, so that reading must ask somebody.
fn forget_pages(file: &fs::File) {
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed).expect("advises");
}

/// Whether a new handle of the file can be read while the mount's process does nothing.
fn reads_alone(mount: &Mount, path: &Path, content: &[u8]) -> bool {
    let file = fs::File::open(path).expect("opens");
    mount.freeze();
    forget_pages(&file);
    let (done, read) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; BYTES];
        let result = file.read_exact_at(&mut bytes, 0);
        let _ = done.send(());
        result.map(|()| bytes)
    });
    let alone = read.recv_timeout(Duration::from_secs(3)).is_ok();
    mount.thaw();
    assert!(reader.join().expect("no panic").expect("reads") == content);
    alone
}

fn may_pass_through() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: only root may have the kernel read cached files");
    }
    root
}

/// A file on a mount that was not changed lately and is whole in the cache: the kernel reads it by itself.
struct Read {
    cluster: Cluster,
    mount: Mount,
    path: PathBuf,
    content: Vec<u8>,
}

fn read_by_the_kernel(seed: u64) -> Option<Read> {
    if !may_pass_through() {
        return None;
    }
    let (cluster, mount) = mounted_or_skip()?;
    let content = Noise::new(seed).bytes(BYTES);
    let source = cluster.dir().join("source");
    fs::write(&source, &content).expect("writes");
    let old = SystemTime::now() - Duration::from_secs(3600);
    fs::File::options().write(true).open(&source).and_then(|file| file.set_modified(old)).expect("sets the time");
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/file"]).ok();
    let path = mount.join("file");
    assert!(fs::read(&path).expect("reads") == content);
    wait_until("the kernel reads the cached file", || reads_alone(&mount, &path, &content));
    Some(Read { cluster, mount, path, content })
}

#[test]
fn a_whole_cached_file_is_read_without_the_process() {
    let Some(Read { cluster: _cluster, mount, path, content }) = read_by_the_kernel(1) else { return };

    // Several handles at once, and mapped memory through one of them.
    let handles: Vec<fs::File> = (0..3).map(|_| fs::File::open(&path).expect("opens")).collect();
    let mut bytes = vec![0; BYTES];
    handles[2].read_exact_at(&mut bytes, 0).expect("reads");
    assert!(bytes == content);
    let ends = python(
        &path,
        "rb",
        "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ); sys.stdout.buffer.write(m[:1000] + m[-1000:])",
    );
    assert!(ends == [&content[..1000], &content[BYTES - 1000..]].concat());
    drop(handles);
    mount.unmount();
}

#[test]
fn writers_and_readers_that_pass_through_share_a_file() {
    let Some(Read { cluster: _cluster, mount, path, content }) = read_by_the_kernel(2) else { return };

    // Opened before the writer: the version of then, also after the writer is done.
    let before = fs::File::open(&path).expect("opens");
    let mut writer = fs::OpenOptions::new().read(true).write(true).open(&path).expect("opens");
    writer.write_all(b"changed").expect("writes");
    writer.seek(SeekFrom::End(0)).expect("seeks");
    writer.write_all(b"and longer").expect("writes");
    let mut start = [0; 7];
    writer.read_exact_at(&mut start, 0).expect("reads");
    assert_eq!(&start, b"changed", "a writer reads what it wrote");
    writer.sync_all().expect("syncs");
    let mut whole = vec![0; BYTES];
    before.read_exact_at(&mut whole, 0).expect("reads");
    assert!(whole == content);

    // Opened after the commit: the new version, while others still have the old one open.
    let now = fs::read(&path).expect("reads");
    assert!(now.len() == BYTES + 10 && now.starts_with(b"changed") && now.ends_with(b"and longer"));
    assert!(now[7..BYTES] == content[7..]);
    drop((before, writer));
    assert!(fs::read(&path).expect("reads") == now);
    // What was just written is not at rest, so a reader sees what a later writer of this mount appends.
    let reader = fs::File::open(&path).expect("opens");
    fs::OpenOptions::new().append(true).open(&path).expect("opens").write_all(b", appended").expect("writes");
    let mut tail = [0; 20];
    reader.read_exact_at(&mut tail, BYTES as u64).expect("reads");
    assert_eq!(&tail, b"and longer, appended");
    drop(reader);
    mount.unmount();
}

/// Runs a line of Python on an open file `f`, a path in `sys.argv[1]`.
fn python(path: &Path, mode: &str, line: &str) -> Vec<u8> {
    let script = format!("import mmap, os, sys\nwith open(sys.argv[1], '{mode}') as f:\n {line}");
    let ran = std::process::Command::new("python3").args(["-c", &script]).arg(path).output().expect("runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ran.stdout
}

#[test]
fn what_is_mapped_is_what_was_opened_whoever_reads_without_the_process() {
    let Some(Read { cluster, mount, path, content }) = read_by_the_kernel(3) else { return };
    let first = fs::File::open(&path).expect("opens");

    // Written through a mapping: it is stored, and shown by every way to read it from now on.
    python(&path, "r+b", "m = mmap.mmap(f.fileno(), 0); m[:7] = b'changed'; m.flush(); os.fsync(f.fileno())");
    let changed = [b"changed", &content[7..]].concat();
    assert!(cluster.torchfs(["cat", "/file"]).stdout == changed, "it was lost");
    let mapped = "sys.stdout.buffer.write(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[:])";
    assert!(fs::read(&path).expect("reads") == changed && python(&path, "rb", mapped) == changed);

    // Replaced in place by another client.
    let other = Noise::new(4).bytes(BYTES);
    let source = cluster.dir().join("other");
    fs::write(&source, &other).expect("writes");
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/file"]).ok();
    assert!(fs::read(&path).expect("reads") == other && python(&path, "rb", mapped) == other);

    // Who opened it before has what it opened.
    let mut bytes = vec![0; BYTES];
    first.read_exact_at(&mut bytes, 0).expect("reads");
    assert!(bytes == content);
    drop(first);
    mount.unmount();
}

#[test]
fn a_writer_can_open_what_many_read_without_the_process() {
    let Some(Read { cluster: _cluster, mount, path, content }) = read_by_the_kernel(5) else { return };
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for reader in 0..3 {
            let (path, content, is_done) = (&path, &content, &is_done);
            scope.spawn(move || {
                let mut bytes = vec![0; 4096];
                let at = 1_000_000 * (reader + 1);
                while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::File::open(path).and_then(|file| file.read_exact_at(&mut bytes, at as u64)).expect("reads");
                    assert!(bytes == content[at..at + 4096]);
                }
            });
        }
        let results: Vec<_> = (0..50).map(|_| fs::OpenOptions::new().write(true).open(&path).map(drop)).collect();
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(results.iter().all(Result::is_ok), "{results:?}");
    });
    mount.unmount();
}

/// Opens a small file and reads it while the mount's process does nothing; whether that gave its bytes.
fn has_bytes_with_its_open(mount: &Mount, path: &Path, content: &[u8]) -> bool {
    let file = fs::File::open(path).expect("opens");
    mount.freeze();
    wait_until("it is stopped", || mount.is_frozen());
    let (done, read) = std::sync::mpsc::channel();
    let len = content.len();
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; len];
        let result = file.read_exact_at(&mut bytes, 0);
        let _ = done.send(());
        result.map(|()| bytes)
    });
    let alone = read.recv_timeout(Duration::from_secs(1)).is_ok();
    mount.thaw();
    assert!(reader.join().expect("no panic").expect("reads") == content);
    alone
}

#[test]
fn an_announced_small_file_has_its_bytes_with_its_open() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let content = Noise::new(6).bytes(100_000);
    let source = cluster.dir().join("source");
    for name in ["announced", "other"] {
        fs::write(&source, &content).expect("writes");
        cluster.torchfs(["put", source.to_str().expect("UTF-8"), &format!("/{name}")]).ok();
    }
    let in_cache = |name: &str| {
        let path = mount.join(name);
        let check = ["warm", "--check", path.to_str().expect("UTF-8")];
        wait_until("it is in the cache", || cluster.torchfs(check).code == Some(0));
    };
    fs::write(mount.join(".torchfs/schedule"), "announced\n").expect("announced");
    in_cache("announced");
    assert!(has_bytes_with_its_open(&mount, &mount.join("announced"), &content));
    // Nobody said that this will be read, so the kernel asks for it.
    cluster.torchfs(["warm", mount.join("other").to_str().expect("UTF-8")]).ok();
    in_cache("other");
    assert!(!has_bytes_with_its_open(&mount, &mount.join("other"), &content));
    mount.unmount();
}
