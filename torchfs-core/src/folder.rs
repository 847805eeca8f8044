//! Folders that a program takes as its own: a cache, a node's data, a local cluster; and how files in them are replaced.

use crate::error::{Error, IoContext, Kind, Result};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Makes a folder, and those above it, where there is none. True if it was not there.
///
/// # Errors
/// `NotDirectory` if there is a file; what the operating system says.
pub fn make(folder: &Path) -> Result<bool> {
    if folder.is_dir() {
        return Ok(false);
    }
    let is_file = |path: &&Path| std::fs::metadata(path).is_ok_and(|found| !found.is_dir());
    if let Some(file) = folder.ancestors().find(is_file) {
        let message = format!("{} is a file: give a folder that is new or empty", file.display());
        return Err(Error::new(Kind::NotDirectory, message));
    }
    std::fs::create_dir_all(folder).io(|| format!("make the folder {}", folder.display()))?;
    Ok(true)
}

/// The name of something in a folder that is not ours, for a program that is about to fill the folder and must refuse one that
/// holds anything else. `is_ours` knows the names; the `lost+found` of a fresh file system never counts.
///
/// # Errors
/// If the folder cannot be listed.
pub fn foreign_entry(folder: &Path, is_ours: impl Fn(&OsStr) -> bool) -> Result<Option<String>> {
    let what = || format!("list {}", folder.display());
    for entry in std::fs::read_dir(folder).io(what)? {
        let name = entry.io(what)?.file_name();
        if name != "lost+found" && !is_ours(&name) {
            return Ok(Some(name.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// Has the names in a folder survive a power cut: fsync(2).
///
/// # Errors
/// What the operating system says.
pub fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).io(|| format!("fsync {}", folder.display()))
}

/// Gives a file that is synced its final name, which survives a power cut.
///
/// # Errors
/// What the operating system says.
pub fn publish(aside: &Path, path: &Path) -> Result<()> {
    std::fs::rename(aside, path).io(|| format!("rename {} to {}", aside.display(), path.display()))?;
    sync(path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

/// Replaces a file: whatever happens, it is afterwards as it was or whole, and once this has returned, whole also after a
/// power cut. It is written as `aside` at first, which may be left over.
///
/// # Errors
/// What the operating system says.
pub fn replace_file(path: &Path, aside: &Path, bytes: &[u8]) -> Result<()> {
    let write = || {
        let mut file = File::create(aside)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().io(|| format!("write {}", aside.display()))?;
    publish(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole() {
        let folder = tempfile::tempdir().expect("folder");
        let (path, aside) = (folder.path().join("file"), folder.path().join("file.new"));
        std::fs::write(&aside, "left over of an earlier try").expect("writes");
        for text in ["one", "two"] {
            replace_file(&path, &aside, text.as_bytes()).expect("replaces");
            assert_eq!(std::fs::read_to_string(&path).expect("reads"), text);
        }
        assert!(!aside.exists());
        let error = replace_file(&path, &folder.path().join("none/file.new"), b"three").expect_err("no such folder");
        assert!(error.to_string().contains("none/file.new"), "{error}");
        assert_eq!(std::fs::read_to_string(&path).expect("reads"), "two");
    }

    #[test]
    fn a_file_in_the_way_is_named() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "x").expect("writes");
        for wanted in [file.clone(), file.join("below/it")] {
            let error = make(&wanted).expect_err("a file");
            assert_eq!(error.kind(), Kind::NotDirectory);
            assert!(error.to_string().starts_with(&format!("{} is a file", file.display())), "{error}");
        }
        assert!(make(&folder.path().join("a/b")).expect("makes"));
        assert!(!make(&folder.path().join("a/b")).expect("is there"));
    }
}
