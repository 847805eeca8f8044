//! Making files, and listing them.
//!
//! The baseline makes what it writes durable with fsync(2) of the file before close(2), because a close through the mount is
//! durable too; the names of the mount are durable when the call returns, those of the baseline some seconds later.

use super::{Bench, row};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use torchfs_tests::Mount;

/// Files in the folder that is listed.
const LISTED: u64 = 10_000;

/// Names that no file has had yet.
static NEXT: AtomicU64 = AtomicU64::new(0);

fn new_name(folder: &Path) -> PathBuf {
    folder.join(format!("file-{:08}", NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Whether a file is synchronised before it is closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Close {
    Synced,
    Plain,
}

/// A folder, and what it takes there for a closed file to be durable.
#[derive(Clone, Copy)]
struct Place<'a> {
    folder: &'a Path,
    close: Close,
}

impl Place<'_> {
    fn write(self, content: &[u8]) {
        let mut file = File::create_new(new_name(self.folder)).expect("creates");
        file.write_all(content).expect("writes");
        if self.close == Close::Synced {
            file.sync_all().expect("syncs");
        }
    }

    fn make_empty(self) -> PathBuf {
        let name = new_name(self.folder);
        drop(File::create_new(&name).expect("creates"));
        name
    }
}

/// Measures each row for `length`.
pub fn run(bench: &Bench, length: Duration) {
    let mount = Mount::start(&bench.cluster, "making");
    let local = bench.disk.path().join("making");
    fs::create_dir(&local).expect("mkdir");
    measure(
        length,
        Place { folder: &local, close: Close::Synced },
        Place { folder: mount.path(), close: Close::Plain },
    );
    mount.unmount();
}

fn measure(length: Duration, local: Place<'_>, mount: Place<'_>) {
    let row = |what: &str, work: &dyn Fn(Place<'_>) -> f64| {
        let (here, there) = (work(local), work(mount));
        row(what, "/s", there, here, "local disk");
    };
    for (bytes, size) in [(64 * 1024, "64 KiB"), (12 * 1024, "12 KiB")] {
        for writers in [1, 8] {
            let content = vec![7; bytes];
            row(&format!("create, write {size}, close; {writers} at once"), &|place| {
                rate(length, writers, place, |place| place.write(&content))
            });
        }
    }
    for at_once in [1, 8] {
        row(&format!("create empty files, close; {at_once} at once"), &|place| {
            rate(length, at_once, place, |place| drop(place.make_empty()))
        });
    }
    row("create empty files and unlink them", &|place| {
        rate(length, 1, place, |place| fs::remove_file(place.make_empty()).expect("unlinks"))
    });
    let many = |place: Place<'_>| {
        let folder = place.folder.join("many");
        if fs::create_dir(&folder).is_ok() {
            let place = Place { folder: &folder, ..place };
            (0..LISTED).for_each(|_| drop(place.make_empty()));
        }
        folder
    };
    row("entries of a folder of 10,000 listed with stat", &|place| {
        let folder = many(place);
        let begin = Instant::now();
        for entry in fs::read_dir(&folder).expect("lists") {
            entry.expect("an entry").metadata().expect("stats");
        }
        LISTED as f64 / begin.elapsed().as_secs_f64()
    });
}

/// How often per second `work` is done when so many threads do it at once, each in a folder of its own: the kernel lets
/// one process at a time make names in a folder.
fn rate(length: Duration, threads: usize, place: Place<'_>, work: impl Fn(Place<'_>) + Sync) -> f64 {
    let folders: Vec<PathBuf> = (0..threads).map(|_| new_name(place.folder)).collect();
    folders.iter().for_each(|folder| fs::create_dir(folder).expect("mkdir"));
    let (begin, done) = (Instant::now(), AtomicU64::new(0));
    let write = |folder: &Path| {
        while begin.elapsed() < length {
            work(Place { folder, ..place });
            done.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        for folder in &folders {
            scope.spawn(|| write(folder));
        }
    });
    done.into_inner() as f64 / begin.elapsed().as_secs_f64()
}
