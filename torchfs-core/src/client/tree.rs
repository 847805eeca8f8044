//! Whole trees in and out: `put -r` and `get -r`.

use super::Client;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// Counters that a caller may watch while a tree is copied.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files found so far.
    pub files_total: AtomicU64,
    /// Files done.
    pub files: AtomicU64,
    /// Bytes found so far.
    pub bytes_total: AtomicU64,
    /// Bytes done.
    pub bytes: AtomicU64,
}

/// How to copy a tree.
#[derive(Clone, Debug, Default)]
pub struct TreeOptions {
    /// Counters to keep up to date.
    pub progress: Arc<Progress>,
}

/// What was copied.
#[derive(Debug, Default)]
pub struct TreeReport {
    /// Regular files.
    pub files: u64,
    /// Folders.
    pub directories: u64,
    /// Links and special files.
    pub others: u64,
    /// Bytes of content.
    pub bytes: u64,
    /// What could not be copied, by path; everything else was.
    pub failed: Vec<(PathBuf, Error)>,
}

impl Client {
    /// Copies a local file or folder to `target`, which then is that file or folder. Small files are packed, many to a
    /// stripe; files become visible whole and in batches. Modes, owners, times, links and holes are kept.
    ///
    /// # Errors
    /// If the source or target cannot be used at all, or the cluster fails; single files that cannot be read are in
    /// [`TreeReport::failed`].
    pub async fn put_tree(&self, source: &Path, target: impl AsRef<[u8]>, options: TreeOptions) -> Result<TreeReport> {
        let _ = (source, target.as_ref(), options);
        todo!()
    }

    /// Copies a file or folder out to the local path `target`, which then is that file or folder. Files are written under
    /// a temporary name and renamed when they are whole.
    ///
    /// # Errors
    /// As [`Client::put_tree`].
    pub async fn get_tree(&self, source: impl AsRef<[u8]>, target: &Path, options: TreeOptions) -> Result<TreeReport> {
        let _ = (source.as_ref(), target, options);
        todo!()
    }
}
