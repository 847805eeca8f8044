//! A disk of a few megabytes that a test can fill.

use crate::cluster::run;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 file system of `megabytes` in a file, mounted by the loop driver; a tmpfs where there is no loop device.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it on a new folder; without the right to do so, says that the test is skipped.
    ///
    /// # Panics
    /// If there is no room for the image.
    #[must_use]
    pub fn mount(folder: &Path, megabytes: u64) -> Option<SmallDisk> {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting a small disk needs root");
            return None;
        }
        let image = folder.with_extension("img");
        std::fs::create_dir_all(folder).expect("a mountpoint");
        std::fs::File::create(&image).and_then(|file| file.set_len(megabytes << 20)).expect("an image");
        let ok = |command: &mut Command| run(command).code == Some(0);
        let mounted = ok(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image))
            && ok(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(folder));
        if mounted
            || ok(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"]).arg(folder))
        {
            return Some(SmallDisk(folder.to_owned()));
        }
        println!("skipped: no small disk can be mounted");
        None
    }

    /// Takes all space that is left, as something else on the disk would.
    ///
    /// # Panics
    /// If that fails for another reason than a full disk.
    pub fn fill(&self) {
        let mut file = std::fs::File::create(self.filler()).expect("creates");
        for block in [vec![7; 1 << 16], vec![7; 512]] {
            let full = loop {
                if let Err(error) = file.write_all(&block) {
                    break error;
                }
            };
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull, "{full}");
        }
    }

    /// Gives it back.
    ///
    /// # Panics
    /// If it was not taken.
    pub fn free(&self) {
        std::fs::remove_file(self.filler()).expect("removes");
    }

    /// Bytes that are free, and all that there are.
    ///
    /// # Panics
    /// If the system does not say.
    #[must_use]
    pub fn free_and_total(&self) -> (u64, u64) {
        let found = rustix::fs::statvfs(&self.0).expect("the disk is mounted");
        (found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize)
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
