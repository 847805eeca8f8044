//! Bytes that can be told apart, and trees to compare.

use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::path::Path;
use std::process::Command;

/// Bytes without a pattern, the same for the same seed.
#[derive(Debug)]
pub struct Noise(StdRng);

impl Noise {
    /// Starts a sequence.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Noise(StdRng::seed_from_u64(seed))
    }

    /// The next bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

/// Writes a file and the folders above it.
///
/// # Panics
/// If it cannot.
pub fn write_file(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("folders can be made");
    std::fs::write(path, bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// A dataset: `classes` folders with `files` files each, of different lengths up to `bytes_max`.
///
/// # Panics
/// If it cannot be written.
pub fn write_small_files(root: &Path, classes: usize, files: usize, bytes_max: usize) {
    let mut noise = Noise::new(7);
    for class in 0..classes {
        for file in 0..files {
            let len = bytes_max * (file + 1) / files;
            write_file(&root.join(format!("class-{class}/{file:05}.bin")), &noise.bytes(len));
        }
    }
}

/// Compares two trees: content by `diff -r`; kinds, modes, sizes, times and link targets by listing.
///
/// # Panics
/// With the first differences.
#[track_caller]
pub fn assert_same_tree(left: &Path, right: &Path) {
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).arg(left).arg(right).output().expect("diff runs");
    let text = String::from_utf8_lossy(&[diff.stderr, diff.stdout].concat()).into_owned();
    assert!(diff.status.success(), "trees differ: {}", text.lines().take(5).collect::<Vec<_>>().join("\n"));
    let (left, right) = (listing(left), listing(right));
    let first = left.iter().zip(&right).find(|(a, b)| a != b);
    assert_eq!(first, None, "attributes differ");
    assert_eq!(left.len(), right.len());
}

/// One line per entry, as `find` tells it; directories without size.
fn listing(root: &Path) -> Vec<String> {
    let format = r"%P\t%y\t%m\t%n\t%s\t%T@\t%l\0";
    let found = Command::new("find").arg(".").args(["-printf", format]).current_dir(root).output().expect("find runs");
    assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
    let text = String::from_utf8_lossy(&found.stdout).into_owned();
    let mut lines: Vec<String> = text.split('\0').filter(|line| !line.is_empty()).map(without_folder_size).collect();
    lines.sort();
    lines
}

fn without_folder_size(line: &str) -> String {
    let mut fields: Vec<&str> = line.split('\t').collect();
    if fields.get(1) == Some(&"d") {
        fields[3] = "-";
        fields[4] = "-";
    }
    fields.join("\t")
}
