//! Mounts that foresee what is read next, without being told: readers in the order of a listing, and readers in none.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rustix::fs::Advice;
use serde_json::Value;
use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;
use torchfs_tests::{Cluster, Mount, Noise, mounted_or_skip, write_file};

const FOLDERS: usize = 3;
const FILES: usize = 900;
const FILE_BYTES: usize = 8 * 1024;

/// What training does with a file meanwhile.
const WORK: Duration = Duration::from_millis(2);

/// The contents of the files, in the order of their paths.
fn make(cluster: &Cluster) -> Vec<Vec<u8>> {
    let (source, mut noise) = (cluster.dir().join("source"), Noise::new(4));
    let contents: Vec<Vec<u8>> = (0..FILES).map(|_| noise.bytes(FILE_BYTES)).collect();
    contents.iter().enumerate().for_each(|(file, content)| write_file(&source.join(path(file)), content));
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    contents
}

fn path(file: usize) -> String {
    format!("class{}/{file:05}.bin", file * FOLDERS / FILES)
}

/// A mount whose cache holds a quarter of the files.
fn mounted(cluster: &Cluster, name: &str, options: &str) -> Mount {
    let size = (FILES * FILE_BYTES / 4).to_string();
    Mount::start_with(cluster, name, &["--cache-size", &size, "-o", options])
}

/// Lists as torchvision's `ImageFolder` does: the folders in order, and what is in each.
fn list(mount: &Mount) -> Vec<PathBuf> {
    let sorted = |folder: PathBuf| {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(folder).expect("lists").map(|entry| entry.expect("an entry").path()).collect();
        paths.sort();
        paths
    };
    sorted(mount.join("data")).into_iter().flat_map(sorted).collect()
}

fn shuffled(epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..FILES).collect();
    order.shuffle(&mut StdRng::seed_from_u64(epoch));
    order
}

/// Reads the files of an epoch, each past the kernel's own cache; answers what the mount's cache had of them.
#[expect(clippy::disallowed_methods, reason = "the thread of a test, no runtime's")]
fn read(mount: &Mount, paths: &[PathBuf], contents: &[Vec<u8>], order: &[usize], work: Duration) -> Found {
    let before = found(mount);
    for &file in order {
        let mut bytes = Vec::new();
        let mut open = File::open(&paths[file]).expect("opens");
        open.read_to_end(&mut bytes).expect("reads");
        assert!(bytes == contents[file], "bytes of {}", paths[file].display());
        rustix::fs::fadvise(&open, 0, None, Advice::DontNeed).expect("advises");
        std::thread::sleep(work);
    }
    let after = found(mount);
    let epoch = Found {
        hits: after.hits - before.hits,
        misses: after.misses - before.misses,
        bytes: after.bytes - before.bytes,
    };
    println!("{epoch:?} of {}", order.len());
    epoch
}

#[derive(Debug)]
struct Found {
    hits: u64,
    misses: u64,
    bytes: u64,
}

/// Of all that nobody announced.
fn found(mount: &Mount) -> Found {
    let stats = mount.stats();
    let epochs = stats["epochs"].as_array().expect("a list");
    assert!(epochs.iter().all(|epoch| epoch["epoch"] == Value::Null), "nobody announced any: {stats}");
    let of = |field: &str| epochs.first().map_or(0, |epoch| epoch[field].as_u64().expect("a number"));
    Found { hits: of("hits"), misses: of("misses"), bytes: of("storage_bytes") }
}

/// Of three epochs in the order of the listing; on a busy machine some files may be late, not in every epoch.
fn assert_foreseen(mount: &Mount, contents: &[Vec<u8>]) -> Vec<Found> {
    let (paths, in_order) = (list(mount), (0..FILES).collect::<Vec<_>>());
    assert_eq!(paths.len(), FILES);
    let epochs: Vec<Found> = (0..3).map(|_| read(mount, &paths, contents, &in_order, WORK)).collect();
    assert!(epochs.iter().all(|epoch| epoch.misses * 100 <= FILES as u64), "{epochs:?}");
    assert!(epochs.iter().any(|epoch| epoch.hits * 100 >= 98 * FILES as u64), "{epochs:?}");
    epochs
}

#[test]
fn a_reader_in_the_order_of_the_listing_finds_its_files_there() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    mount.unmount();
    let contents = make(&cluster);
    let sequential = mounted(&cluster, "sequential", "eviction=fifo,prefetch=sequential");
    let epochs = assert_foreseen(&sequential, &contents);
    let all = (FILES * FILE_BYTES) as u64;
    assert!(epochs.iter().all(|epoch| epoch.bytes <= all + all / 100), "each file once: {epochs:?}");
    let text = cluster.torchfs(["stats", sequential.path().to_str().expect("UTF-8")]).ok();
    assert!(text.contains("(eviction fifo)") && text.contains("left unread (prefetch sequential)"), "{text}");
    sequential.unmount();

    let auto = mounted(&cluster, "auto", "rw");
    let epochs = assert_foreseen(&auto, &contents);
    assert_eq!(auto.stats()["prefetch"], "auto");
    let last = epochs.last().expect("three");
    assert!(last.bytes <= all * 78 / 100, "the order repeats, and a quarter stays: {epochs:?}");
}

#[test]
fn a_reader_in_no_order_costs_no_more_than_without_prefetch() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    mount.unmount();
    let contents = make(&cluster);
    let read_all = |prefetch: &str| {
        let mount = mounted(&cluster, prefetch, &format!("prefetch={prefetch}"));
        let paths = list(&mount);
        let epochs = (0..2).map(|epoch| read(&mount, &paths, &contents, &shuffled(epoch), Duration::ZERO));
        let found = epochs.fold(Found { hits: 0, misses: 0, bytes: 0 }, |all, epoch| Found {
            hits: all.hits + epoch.hits,
            misses: all.misses + epoch.misses,
            bytes: all.bytes + epoch.bytes,
        });
        (found, mount.stats()["cache"]["ahead_files"].clone())
    };
    let (none, nothing) = read_all("none");
    let (auto, ahead) = read_all("auto");
    assert_eq!(nothing, 0);
    assert!(auto.bytes * 100 <= none.bytes * 101, "{auto:?}, {ahead} files fetched ahead; without {none:?}");
    assert!(auto.misses <= none.misses + 2 * FILES as u64 / 100, "{auto:?} {none:?}");
    assert!(none.hits > 0 && auto.hits + auto.misses <= 2 * FILES as u64, "{auto:?} {none:?}");
}
