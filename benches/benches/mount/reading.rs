//! Reading files: cold, from the cache of the mount, from the page cache; and a long write.

use super::{Bench, row, seconds};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use torchfs_tests::{Mount, Noise, run as run_command};

const LARGE_FILES: usize = 12;
const LARGE_BYTES: usize = 80_000_000;
const LARGE_ROUNDS: usize = 3;
const SMALL_FILES: usize = 4_000;
const SMALL_BYTES: usize = 64 * 1024;
const LONG_BYTES: usize = 4 << 30;
const SHARD_BYTES: usize = 4 << 20;

/// Files that are larger than this are not written in one piece.
const WRITE_BYTES: usize = 1 << 20;

/// Rows about reading, about metadata of what was made elsewhere, and a long write.
pub fn run(bench: &Bench) {
    let local = bench.disk.path().join("reading");
    make(&local.join("large"), LARGE_FILES, LARGE_BYTES);
    make(&local.join("small"), SMALL_FILES, SMALL_BYTES);
    // The kernel reads a file by itself only when it was not changed lately.
    run_command(Command::new("find").arg(&local).args(["-exec", "touch", "-d", "2020-01-01", "{}", "+"])).ok();
    bench.cluster.torchfs(["put", "-r", local.to_str().expect("a plain name"), "/reading"]).ok();
    large(bench, &local.join("large"));
    small(bench, &local.join("small"));
    unpacked(bench);
    long_write(bench);
}

fn make(folder: &Path, files: usize, bytes: usize) {
    fs::create_dir_all(folder).expect("mkdir");
    for number in 0..files {
        fs::write(folder.join(name(number)), Noise::new(number as u64).bytes(bytes)).expect("writes");
    }
}

fn name(number: usize) -> String {
    format!("{number:06}.bin")
}

/// Reads so many files in order, as a loader does; bytes per second.
fn read_rate(folder: &Path, files: usize) -> f64 {
    let mut buffer = vec![0; WRITE_BYTES];
    let mut bytes = 0;
    let taken = seconds(|| {
        for number in 0..files {
            let mut file = File::open(folder.join(name(number))).expect("opens");
            loop {
                let count = file.read(&mut buffer).expect("reads");
                if count == 0 {
                    break;
                }
                bytes += count;
            }
        }
    });
    bytes as f64 / taken
}

/// Reads the same files on the mount and on the local disk in turn; the medians.
fn in_turn(times: usize, mount: &Path, local: &Path, files: usize) -> (f64, f64) {
    let (ours, theirs) = (0..times)
        .map(|_| {
            let theirs = read_rate(local, files);
            (read_rate(mount, files), theirs)
        })
        .unzip();
    (median(ours), median(theirs))
}

const MB: f64 = 1e6;

fn large(bench: &Bench, local: &Path) {
    let memory = tempfile::Builder::new().prefix("torchfs-bench-").tempdir_in("/dev/shm").expect("a tmpfs");
    let get = |target: &Path| {
        let out = target.join("got");
        let get = || drop(bench.cluster.torchfs(["get", "-r", "/reading/large", out.to_str().expect("plain")]).ok());
        let taken = seconds(get);
        fs::remove_dir_all(&out).expect("removes");
        (LARGE_FILES * LARGE_BYTES) as f64 / taken
    };
    // The storage nodes' page cache is warm for all of them.
    get(memory.path());
    let (mut cold, mut to_memory, mut to_disk) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..LARGE_ROUNDS {
        to_memory.push(get(memory.path()));
        to_disk.push(get(bench.disk.path()));
        let mount = Mount::start(&bench.cluster, &format!("large-{round}"));
        cold.push(read_rate(&mount.join("reading/large"), LARGE_FILES));
        mount.unmount();
    }
    let cold = median(cold) / MB;
    row("80 MB files, cold", "MB/s", cold, median(to_memory) / MB, "torchfs get to tmpfs");
    row("80 MB files, cold", "MB/s", cold, median(to_disk) / MB, "torchfs get to the disk that the cache is on");

    let mount = Mount::start(&bench.cluster, &format!("large-{}", LARGE_ROUNDS - 1));
    let folder = mount.join("reading/large");
    let (ours, theirs) = in_turn(5, &folder, local, LARGE_FILES);
    row("80 MB files, cached, page cache warm", "MB/s", ours / MB, theirs / MB, "local disk, page cache warm");
    mount.unmount();
}

fn small(bench: &Bench, local: &Path) {
    let per_file = SMALL_BYTES as f64;
    let mount = Mount::start(&bench.cluster, "small");
    let folder = mount.join("reading/small");
    let cold = read_rate(&folder, SMALL_FILES);
    drop_pages();
    let local_cold = read_rate(local, SMALL_FILES);
    row(
        "64 KiB files, put -r, cold, one reader",
        "files/s",
        cold / per_file,
        local_cold / per_file,
        "local disk, page cache cold",
    );
    let (ours, theirs) = in_turn(3, &folder, local, SMALL_FILES);
    row(
        "64 KiB files, cached, again in order",
        "files/s",
        ours / per_file,
        theirs / per_file,
        "local disk, page cache warm",
    );
    mount.unmount();
    // The files are in the mount's cache folder, and nothing is in the page cache.
    let mount = Mount::start(&bench.cluster, "small");
    drop_pages();
    let ours = read_rate(&mount.join("reading/small"), SMALL_FILES);
    drop_pages();
    let theirs = read_rate(local, SMALL_FILES);
    row(
        "64 KiB files, cached, page cache cold",
        "files/s",
        ours / per_file,
        theirs / per_file,
        "local disk, page cache cold",
    );
    mount.unmount();
    let mount = Mount::start(&bench.cluster, "stat");
    let stat = |folder: &Path| {
        let paths: Vec<PathBuf> = (0..SMALL_FILES).map(|number| folder.join(name(number))).collect();
        let taken = seconds(|| paths.iter().for_each(|path| _ = fs::metadata(path).expect("is there")));
        SMALL_FILES as f64 / taken
    };
    drop_pages();
    row("stat, never asked before", "/s", stat(&mount.join("reading/small")), stat(local), "local disk");
    mount.unmount();
}

/// Files that were written one by one through a mount, which lie in stripes of their own.
fn unpacked(bench: &Bench) {
    let mount = Mount::start(&bench.cluster, "writer");
    let folder = mount.join("unpacked");
    make(&folder, SMALL_FILES / 2, SMALL_BYTES);
    mount.unmount();
    let local = bench.disk.path().join("reading/small");
    let mount = Mount::start(&bench.cluster, "unpacked");
    let ours = read_rate(&mount.join("unpacked"), SMALL_FILES / 2);
    drop_pages();
    let theirs = read_rate(&local, SMALL_FILES / 2);
    let per_file = SMALL_BYTES as f64;
    row(
        "64 KiB files, written alone, cold, one reader",
        "files/s",
        ours / per_file,
        theirs / per_file,
        "local disk, page cache cold",
    );
    mount.unmount();
}

fn long_write(bench: &Bench) {
    let block = Noise::new(1).bytes(SHARD_BYTES);
    let baseline = bench.disk.path().join("shards");
    fs::create_dir(&baseline).expect("mkdir");
    let count = LONG_BYTES * 3 / 2 / SHARD_BYTES;
    let taken = seconds(|| {
        for number in 0..count {
            let mut file = File::create(baseline.join(number.to_string())).expect("creates");
            file.write_all(&block).expect("writes");
            file.sync_all().expect("syncs");
        }
    });
    fs::remove_dir_all(&baseline).expect("removes");
    let mount = Mount::start(&bench.cluster, "long");
    let ours = seconds(|| {
        let mut file = File::create(mount.join("long.bin")).expect("creates");
        for _ in 0..LONG_BYTES / SHARD_BYTES {
            block.chunks(WRITE_BYTES).for_each(|piece| file.write_all(piece).expect("writes"));
        }
        file.sync_all().expect("syncs");
    });
    let rate = |seconds: f64| LONG_BYTES as f64 / seconds / MB;
    row("4 GiB written and synced", "MB/s", rate(ours), rate(taken), "1.5x in files of 4 MiB, each synced");
    mount.unmount();
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Nothing is in the page cache any more; needs root.
fn drop_pages() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drops caches, as root");
}
