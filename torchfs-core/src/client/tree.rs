//! Whole trees in and out: `put -r` and `get -r`.

mod commit;
mod get;
mod local;
mod plan;
mod put;
#[cfg(test)]
mod rig_test;
mod source;
mod stream;
#[cfg(test)]
mod tree_test;
mod walk;
mod xattr;

use super::Client;
use super::pack::content_bytes_per_stripe;
use crate::error::{Error, Kind, Result};
use crate::layout::Profile;
use crate::meta::Attr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use tokio::io::{AsyncRead, AsyncWrite};

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
    /// What if the source itself is a symbolic link; those inside it are always copied as links.
    pub source_link: SourceLink,
}

/// What to do about a source that is itself a symbolic link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceLink {
    /// Copy the link, as `cp -r` does.
    #[default]
    Copy,
    /// Copy what it leads to, as `cp` does.
    Follow,
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
    /// stripe; files become visible whole and in batches. Modes, times, links, holes and attributes `user.*` are kept, owners
    /// only by root. What has the name of a copied file is replaced; folders are filled.
    ///
    /// # Errors
    /// If the source or target cannot be used at all, or the cluster fails; single files that cannot be read are in
    /// [`TreeReport::failed`].
    pub async fn put_tree(&self, source: &Path, target: impl AsRef<[u8]>, options: TreeOptions) -> Result<TreeReport> {
        put::put_tree(self, source, target.as_ref(), options).await
    }

    /// Copies a file or folder out to the local path `target`, which then is that file or folder. Files get their names
    /// when they are whole. Modes, times, links, holes and attributes `user.*` (where the local file system has them) are
    /// kept, owners only by root. What has the name of a copied file is replaced; folders that are there are filled and
    /// otherwise left as they are.
    ///
    /// # Errors
    /// As [`Client::put_tree`].
    pub async fn get_tree(&self, source: impl AsRef<[u8]>, target: &Path, options: TreeOptions) -> Result<TreeReport> {
        get::get_tree(self, source.as_ref(), target, options).await
    }

    /// Makes or replaces a file with what a stream gives, however long it is. It becomes visible when the stream has
    /// ended and everything is stored, never in part.
    ///
    /// # Errors
    /// If the stream or the cluster fails; what was at `target` is still there then.
    pub async fn put_reader(
        &self,
        reader: impl AsyncRead + Unpin + Send,
        target: impl AsRef<[u8]>,
        mode: u32,
    ) -> Result<Attr> {
        stream::put_reader(self, reader, target.as_ref(), mode).await
    }

    /// Writes a file's content to a stream and returns its size. Fetches ahead of what is written.
    ///
    /// # Errors
    /// If the stream or the cluster fails. What was written by then is right.
    pub async fn get_writer(&self, source: impl AsRef<[u8]>, writer: impl AsyncWrite + Unpin + Send) -> Result<u64> {
        stream::get_writer(self, source.as_ref(), writer).await
    }
}

/// Content that is held in memory at once, parity not counted.
const BYTES_IN_FLIGHT: u64 = 96 << 20;

/// How many full stripes of a profile may be under way in one direction.
fn stripes_in_flight(profile: Profile) -> usize {
    (BYTES_IN_FLIGHT / content_bytes_per_stripe(profile)).clamp(2, 8) as usize
}

/// Runs file I/O off the runtime's threads.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    joined(tokio::task::spawn_blocking(run).await)
}

/// What a task answered; its panic goes on here.
fn joined<T>(result: std::result::Result<T, tokio::task::JoinError>) -> Result<T> {
    result.map_err(|error| match error.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(error) => Error::caused(Kind::Cancelled, "copying was given up", error),
    })
}
