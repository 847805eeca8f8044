//! Programs on a mount, one system call after the other, against the same calls on the local disk in the same run.
//!
//! A cluster (3 metadata nodes, 6 storage nodes, 4+2) and the mount are real processes on one machine and one disk.
//!
//! `cargo bench -p torchfs-benches --bench mount`, after `cargo build --release`, with `TORCHFS_BENCH_DIR` (where the disk to
//! be measured is; the system's temporary folder), `MOUNT_SECONDS` (how long each row of making files runs; 5) and
//! `MOUNT_ONLY` (`making` or `reading`). Needs root, to empty the page cache, and about 25 GB.

mod making;
mod reading;

use std::path::PathBuf;
use std::time::{Duration, Instant};
use torchfs_tests::{Cluster, ClusterOptions};

/// A cluster on the disk that is measured.
struct Bench {
    disk: tempfile::TempDir,
    cluster: Cluster,
}

impl Bench {
    fn start() -> Bench {
        let root = std::env::var_os("TORCHFS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let disk = tempfile::Builder::new().prefix("torchfs-bench-").tempdir_in(root).expect("a folder on the disk");
        let store_root = Some(disk.path().join("stores"));
        let cluster = Cluster::start_with(ClusterOptions { store_root, ..ClusterOptions::default() });
        Bench { disk, cluster }
    }
}

/// One comparison, printed.
fn row(what: &str, unit: &str, mount: f64, baseline: f64, of: &str) {
    println!("{what:<52}{mount:>10.0} {unit:<7}{baseline:>10.0} {unit:<7}{:>7.2}  {of}", mount / baseline);
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

fn main() {
    let bench = Bench::start();
    let length = std::env::var("MOUNT_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(5.0);
    let only = std::env::var("MOUNT_ONLY").unwrap_or_default();
    println!("{:<52}{:>10} {:<7}{:>10} {:<7}{:>7}  baseline", "what", "mount", "", "baseline", "", "ratio");
    if only != "reading" {
        making::run(&bench, Duration::from_secs_f64(length));
    }
    if only != "making" {
        reading::run(&bench);
    }
}
