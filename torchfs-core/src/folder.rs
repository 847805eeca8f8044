//! Folders that a program takes as its own: a cache, a node's data, a local cluster.

use crate::error::{IoContext, Result};
use std::ffi::OsStr;
use std::path::Path;

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
