//! `torchfs put` and `get` against what the same disk, the same network stack and `cp` do in the same run.
//!
//! A cluster of real processes (3 metadata nodes, 6 storage nodes, 4+2) on one machine: all nodes, the client and the
//! baseline share its cores and its disk. Each row is run several times, baseline and TorchFS in turn; medians are compared.
//!
//! `cargo bench -p torchfs-benches --bench bulk`, with `BULK_ROUNDS` (3), `BULK_DIR` (where the disk to be measured is; the
//! system's temporary folder) and `BULK_ONLY` (`large` or `small`).

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;
use torchfs_tests::{Cluster, ClusterOptions, Noise, run};

const LARGE_FILES: usize = 13;
const LARGE_BYTES: usize = 80_000_000;
const SMALL_FILES: usize = 10_000;
const SMALL_BYTES: usize = 64 * 1024;

/// What is being measured on: a disk, and memory for what should not touch it.
struct Bench {
    disk: tempfile::TempDir,
    memory: tempfile::TempDir,
    cluster: Cluster,
    rounds: usize,
}

/// One comparison: seconds of the baseline and of TorchFS, round by round.
struct Row {
    what: &'static str,
    baseline: &'static str,
    bytes: usize,
    files: usize,
    seconds: Vec<(f64, f64)>,
    goal: f64,
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

impl Bench {
    fn start() -> Bench {
        let root = std::env::var_os("BULK_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let disk = tempfile::Builder::new().prefix("torchfs-bench-").tempdir_in(root).expect("a folder on the disk");
        let memory = tempfile::Builder::new().prefix("torchfs-bench-").tempdir_in("/dev/shm").expect("a tmpfs");
        let store_root = Some(disk.path().join("stores"));
        let cluster = Cluster::start_with(ClusterOptions { store_root, ..ClusterOptions::default() });
        let rounds = std::env::var("BULK_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
        Bench { disk, memory, cluster, rounds }
    }

    /// Runs baseline and measured work in turn.
    fn row(&self, row: Row, mut baseline: impl FnMut(usize), mut measured: impl FnMut(usize)) -> Row {
        let round = |number| {
            settle();
            let base = seconds(|| baseline(number));
            settle();
            (base, seconds(|| measured(number)))
        };
        let seconds = (0..self.rounds).map(round).collect();
        let row = Row { seconds, ..row };
        row.print();
        row
    }

    fn large(&self) {
        let source = self.memory.path().join("large");
        fs::create_dir(&source).expect("mkdir");
        for number in 0..LARGE_FILES {
            fs::write(source.join(format!("{number:02}.bin")), Noise::new(number as u64).bytes(LARGE_BYTES))
                .expect("writes");
        }
        let bytes = LARGE_FILES * LARGE_BYTES;
        let row = |what, baseline, goal| Row { what, baseline, bytes, files: LARGE_FILES, seconds: Vec::new(), goal };
        self.row(
            row("put, 13 files of 80 MB", "write 1.5x in 4 MiB files, fsync each", 0.6),
            |_| synced_writes(&self.disk.path().join("baseline"), bytes * 3 / 2),
            |number| drop(self.cluster.torchfs(["put", "-r", text(&source), &format!("/large-{number}")]).ok()),
        );
        let target = self.memory.path().join("out");
        let get = |number: usize| {
            self.cluster.torchfs(["get", "-r", &format!("/large-{number}"), text(&target)]).ok();
            fs::remove_dir_all(&target).expect("removes");
        };
        let cold_target = self.memory.path().join("raw");
        self.row(
            row("get of them to tmpfs, cold", "cp of as many bytes from disk to tmpfs", 0.5),
            |_| {
                forget_pages();
                fs::create_dir(&cold_target).expect("mkdir");
                for number in 0..bytes.div_ceil(4 << 20) {
                    let name = number.to_string();
                    fs::copy(self.disk.path().join("baseline").join(&name), cold_target.join(&name)).expect("copies");
                }
                fs::remove_dir_all(&cold_target).expect("removes");
            },
            |number| {
                forget_pages();
                get(number);
            },
        );
        (0..self.rounds).for_each(get);
        self.row(
            row("get of them to tmpfs, warm", "raw TCP into tmpfs files", 0.5),
            |_| {
                raw_tcp(&self.memory.path().join("raw"), LARGE_FILES, LARGE_BYTES);
                fs::remove_dir_all(self.memory.path().join("raw")).expect("removes");
            },
            get,
        );
    }

    fn small(&self) {
        let source = self.disk.path().join("small");
        for number in 0..SMALL_FILES {
            let folder = source.join(format!("{:02}", number / 500));
            if number % 500 == 0 {
                fs::create_dir_all(&folder).expect("mkdir");
            }
            fs::write(folder.join(format!("{number:05}")), Noise::new(number as u64).bytes(SMALL_BYTES))
                .expect("writes");
        }
        let bytes = SMALL_FILES * SMALL_BYTES;
        let row = |what, goal| Row { what, baseline: "cp -r", bytes, files: SMALL_FILES, seconds: Vec::new(), goal };
        let copy = |number: usize| self.disk.path().join(format!("copy-{number}"));
        let cp = |number| drop(run(Command::new("cp").arg("-r").arg(&source).arg(copy(number))).ok());
        self.row(row("put -r, 10,000 files of 64 KiB", 0.15), cp, |number| {
            self.cluster.torchfs(["put", "-r", text(&source), &format!("/small-{number}")]).ok();
        });
        let out = |number: usize| self.disk.path().join(format!("out-{number}"));
        self.row(
            row("get -r of them", 0.3),
            |number| cp(number + 100),
            |number| {
                self.cluster.torchfs(["get", "-r", &format!("/small-{number}"), text(&out(number))]).ok();
            },
        );
    }
}

/// What was written before is on the disk before the clock starts.
fn settle() {
    rustix::fs::sync();
}

/// Nothing is in the page cache any more; needs root.
fn forget_pages() {
    rustix::fs::sync();
    fs::write("/proc/sys/vm/drop_caches", "1").expect("drops caches, as root");
}

fn synced_writes(folder: &Path, bytes: usize) {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).expect("mkdir");
    let block = Noise::new(1).bytes(4 << 20);
    for number in 0..bytes.div_ceil(block.len()) {
        let mut file = fs::File::create(folder.join(number.to_string())).expect("creates");
        file.write_all(&block).expect("writes");
        file.sync_all().expect("syncs");
    }
}

fn raw_tcp(folder: &Path, files: usize, bytes: usize) {
    fs::create_dir(folder).expect("mkdir");
    let listener = TcpListener::bind("127.0.0.1:0").expect("binds");
    let addr = listener.local_addr().expect("bound");
    let sender = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accepts");
        let block = vec![7; 1 << 20];
        let mut left = files * bytes;
        while left > 0 {
            let len = left.min(block.len());
            stream.write_all(&block[..len]).expect("sends");
            left -= len;
        }
    });
    let mut stream = TcpStream::connect(addr).expect("connects");
    let mut block = vec![0; 1 << 20];
    for number in 0..files {
        let mut file = fs::File::create(folder.join(number.to_string())).expect("creates");
        let mut left = bytes;
        while left > 0 {
            let want = left.min(block.len());
            let len = stream.read(&mut block[..want]).expect("receives");
            file.write_all(&block[..len]).expect("writes");
            left -= len;
        }
    }
    sender.join().expect("the sender does not panic");
}

impl Row {
    fn print(&self) {
        let base = median(self.seconds.iter().map(|pair| pair.0).collect());
        let ours = median(self.seconds.iter().map(|pair| pair.1).collect());
        let ratio = median(self.seconds.iter().map(|pair| pair.0 / pair.1).collect());
        let rate = |seconds: f64| self.bytes as f64 / seconds / 1e6;
        println!(
            "{:<34} {:>8.0} MB/s {:>8.0} files/s | {:<38} {:>8.0} MB/s | {:>5.2}x of it, goal {:.2}x",
            self.what,
            rate(ours),
            self.files as f64 / ours,
            self.baseline,
            rate(base),
            ratio,
            self.goal
        );
    }
}

fn main() {
    let bench = Bench::start();
    let only = std::env::var("BULK_ONLY").unwrap_or_default();
    if only != "small" {
        bench.large();
    }
    if only != "large" {
        bench.small();
    }
}
