//! [`Client`]: files by path or inode. What applications embed, and what the mount and the CLI are thin layers over.
//!
//! Close-to-open consistency: a [`File`] shows the version that was current when it was opened, plus this client's own
//! writes; [`File::commit`] makes writes durable in the cluster and visible to everyone who opens the file afterwards.

mod file;
mod tree;

pub use file::File;
pub use tree::{Progress, TreeOptions, TreeReport};

use crate::error::Result;
use crate::ids::InodeId;
use crate::layout::Profile;
use crate::meta::{Attr, AttrChange, DirEntry, MetaSession, MetaStore, Status};
use crate::shard::ShardStores;
use crate::stripe::StripeIo;
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::Arc;

/// A connection to a cluster. Cheap to clone; clones share connections and cache.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    meta: MetaSession,
    stripes: StripeIo,
    settings: ClientBuilder,
}

/// How to connect. Only the metadata addresses are needed.
#[derive(Clone, Debug, Default)]
pub struct ClientBuilder {
    metas: Vec<String>,
    cache_dir: Option<PathBuf>,
    cache_bytes: Option<u64>,
    owner: Option<(u32, u32)>,
}

impl ClientBuilder {
    /// Metadata nodes, `host:port`; one that answers is enough.
    #[must_use]
    pub fn metas<S: Into<String>>(mut self, addrs: impl IntoIterator<Item = S>) -> Self {
        self.metas.extend(addrs.into_iter().map(Into::into));
        self
    }

    /// Keep whole files that were read in this folder. Without it nothing is cached, and writes are staged in the
    /// system's temporary folder.
    #[must_use]
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// How much the cache folder may hold; 10 GiB if not said.
    #[must_use]
    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = Some(bytes);
        self
    }

    /// Who owns what this client creates by path; the process's effective ids if not said.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        self.owner = Some((uid, gid));
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// `InvalidInput` for no or unreadable addresses, `Protocol` if what answers is not TorchFS, `Unavailable` if no node
    /// answers or no leader is found within the deadline.
    pub async fn connect(self) -> Result<Client> {
        todo!()
    }

    /// Works over stores in this process instead of a network: tests, simulations, other back ends.
    ///
    /// # Errors
    /// If the cache folder cannot be used.
    pub async fn over(self, meta: Arc<dyn MetaStore>, stores: Arc<dyn ShardStores>) -> Result<Client> {
        let _ = (meta, stores);
        todo!()
    }
}

/// Paths are byte strings from the root, with or without a leading `/`; links on the way are followed.
impl Client {
    /// How to connect.
    #[must_use]
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Connects with defaults.
    ///
    /// # Errors
    /// See [`ClientBuilder::connect`].
    pub async fn connect<S: Into<String>>(metas: impl IntoIterator<Item = S>) -> Result<Client> {
        Client::builder().metas(metas).connect().await
    }

    /// The metadata session, for everything that has no method here.
    #[must_use]
    pub fn meta(&self) -> &MetaSession {
        &self.inner.meta
    }

    /// Stripe I/O over the cluster's nodes.
    #[must_use]
    pub fn stripes(&self) -> &StripeIo {
        &self.inner.stripes
    }

    /// What is at a path, links followed.
    pub async fn stat(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = path.as_ref();
        todo!()
    }

    /// What is at a path; a link at the end is itself the answer.
    pub async fn lstat(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = path.as_ref();
        todo!()
    }

    /// All entries of a folder by name.
    pub async fn list(&self, path: impl AsRef<[u8]>) -> Result<Vec<DirEntry>> {
        let _ = path.as_ref();
        todo!()
    }

    /// Makes a folder, mode 0o755.
    pub async fn mkdir(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = path.as_ref();
        todo!()
    }

    /// Makes a folder and the folders above it; existing ones are fine.
    pub async fn mkdir_all(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = path.as_ref();
        todo!()
    }

    /// Renames, replacing a target as rename(2) does.
    pub async fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        let _ = (from.as_ref(), to.as_ref());
        todo!()
    }

    /// Removes a file, link or other entry that is not a folder.
    pub async fn unlink(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let _ = path.as_ref();
        todo!()
    }

    /// Removes an empty folder.
    pub async fn rmdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let _ = path.as_ref();
        todo!()
    }

    /// Removes a path and all below it, in batches. Returns how many inodes lost a name.
    pub async fn remove_all(&self, path: impl AsRef<[u8]>) -> Result<u64> {
        let _ = path.as_ref();
        todo!()
    }

    /// Makes a symbolic link.
    pub async fn symlink(&self, target: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = (target.as_ref(), path.as_ref());
        todo!()
    }

    /// Gives a file another name.
    pub async fn link(&self, existing: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Result<Attr> {
        let _ = (existing.as_ref(), path.as_ref());
        todo!()
    }

    /// The target of a symbolic link.
    pub async fn read_link(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let _ = path.as_ref();
        todo!()
    }

    /// Changes attributes.
    pub async fn set_attr(&self, path: impl AsRef<[u8]>, change: AttrChange) -> Result<Attr> {
        let _ = (path.as_ref(), change);
        todo!()
    }

    /// Opens a file for reading.
    pub async fn open(&self, path: impl AsRef<[u8]>) -> Result<File> {
        let _ = path.as_ref();
        todo!()
    }

    /// Opens a file for reading and writing, making it if it is not there (mode 0o644).
    pub async fn create(&self, path: impl AsRef<[u8]>) -> Result<File> {
        let _ = path.as_ref();
        todo!()
    }

    /// Opens the content of an inode, for reading and writing.
    pub async fn open_inode(&self, ino: InodeId) -> Result<File> {
        let _ = ino;
        todo!()
    }

    /// A whole file's bytes.
    pub async fn read_file(&self, path: impl AsRef<[u8]>) -> Result<Bytes> {
        let _ = path.as_ref();
        todo!()
    }

    /// Makes or atomically replaces a whole file.
    pub async fn write_file(&self, path: impl AsRef<[u8]>, data: impl Into<Bytes>) -> Result<Attr> {
        let _ = (path.as_ref(), data.into());
        todo!()
    }

    /// The profile that new files in a folder take.
    pub async fn profile(&self, path: impl AsRef<[u8]>) -> Result<Profile> {
        let _ = path.as_ref();
        todo!()
    }

    /// Sets a folder's profile.
    pub async fn set_profile(&self, path: impl AsRef<[u8]>, profile: Profile) -> Result<()> {
        let _ = (path.as_ref(), profile);
        todo!()
    }

    /// The cluster at a glance.
    pub async fn status(&self) -> Result<Status> {
        self.inner.meta.status().await
    }
}
