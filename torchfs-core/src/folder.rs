//! Folders that a program takes as its own: a cache, a node's data, a local cluster.

use crate::error::{Error, IoContext, Kind, Result};
use std::ffi::OsStr;
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

#[cfg(test)]
mod tests {
    use super::*;

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
