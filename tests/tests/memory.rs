//! How much memory a mount keeps, however large the files are that go through it.

use std::fs;
use std::io::{Read, Write};
use torchfs_tests::{Cluster, Mount, Noise, fuse_or_skip};

/// More than a mount may keep.
const FILE_BYTES: usize = 256 << 20;

const PIECE_BYTES: usize = 4 << 20;

/// Stripes on their way, the runs that are read ahead, and room to spare: it took 60 to 100 MiB, and 170 to 300 as long as the
/// allocator kept what was freed.
const RESIDENT_BYTES_MAX: u64 = 144 << 20;

#[test]
fn a_mount_gives_memory_back_that_large_files_took() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let pieces: Vec<Vec<u8>> = {
        let mut noise = Noise::new(3);
        (0..3).map(|_| noise.bytes(PIECE_BYTES)).collect()
    };
    let written = Mount::start(&cluster, "written");
    let mut file = fs::File::create(written.join("large")).expect("creates");
    for number in 0..FILE_BYTES / PIECE_BYTES {
        file.write_all(&pieces[number % pieces.len()]).expect("writes");
    }
    drop(file);
    assert_small("writing", &written);

    let read = Mount::start(&cluster, "read");
    let mut file = fs::File::open(read.join("large")).expect("opens");
    let mut piece = vec![0; PIECE_BYTES];
    for number in 0..FILE_BYTES / PIECE_BYTES {
        file.read_exact(&mut piece).expect("reads");
        assert!(piece == pieces[number % pieces.len()], "piece {number} is another one");
    }
    drop(file);
    assert_small("reading", &read);
}

#[track_caller]
fn assert_small(what: &str, mount: &Mount) {
    let most = mount.resident_bytes_peak();
    assert!(most <= RESIDENT_BYTES_MAX, "{what} {FILE_BYTES} bytes took {most} bytes of memory");
}
