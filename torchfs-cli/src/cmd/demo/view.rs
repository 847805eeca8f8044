//! The dataset as a reader sees it: through a mount with a cache of its own, or through the library where there is no FUSE.

use super::FOLDER;
use crate::exit::Outcome;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio::runtime::Handle;
use torchfs_core::{Client, IoContext, Result};
use torchfs_fuse::{MountOptions, Mounted, mount};
use torchfs_local::LocalCluster;

const FUSE_DEVICE: &str = "/dev/fuse";

/// How files are read in one epoch. New for every epoch, so that nothing is cached from the one before.
#[derive(Debug)]
pub enum View {
    Mount { mounted: Mounted, cache: PathBuf },
    Library { client: Client, runtime: Handle, because: String },
}

/// An open file, read from the start to the end.
#[derive(Debug)]
pub enum Reader {
    Mount(fs::File),
    Library { file: torchfs_core::File, offset: u64, runtime: Handle },
}

impl View {
    /// Mounts below `folder`, if this machine can.
    pub async fn open(cluster: &LocalCluster, folder: &Path, epoch: usize) -> Outcome<View> {
        let runtime = Handle::current();
        if !Path::new(FUSE_DEVICE).exists() {
            let because = format!("there is no {FUSE_DEVICE}");
            return Ok(View::Library { client: cluster.client().await?, runtime, because });
        }
        let (mountpoint, cache) = (folder.join("mount"), folder.join(format!("cache-{epoch}")));
        for dir in [&mountpoint, &cache] {
            fs::create_dir_all(dir).io(|| format!("make {}", dir.display()))?;
        }
        let client = Client::builder().metas(cluster.meta_addrs()).cache_dir(&cache).connect().await?;
        match mount(client, &mountpoint, MountOptions::default()) {
            Ok(mounted) => Ok(View::Mount { mounted, cache }),
            Err(error) => Ok(View::Library { client: cluster.client().await?, runtime, because: error.to_string() }),
        }
    }

    /// One line for a person.
    pub fn description(&self) -> String {
        match self {
            View::Mount { mounted, .. } => {
                format!(
                    "through a mount on {}, a new one with an empty cache for each epoch",
                    mounted.mountpoint().display()
                )
            }
            View::Library { because, .. } => {
                format!("through the library without a cache, not through a mount: {because}")
            }
        }
    }

    /// Opens a file of the dataset. Blocks.
    pub fn reader(&self, path: &Path) -> Result<Reader> {
        match self {
            View::Mount { mounted, .. } => {
                let path = mounted.mountpoint().join(FOLDER.trim_start_matches('/')).join(path);
                Ok(Reader::Mount(fs::File::open(&path).io(|| path.display().to_string())?))
            }
            View::Library { client, runtime, .. } => {
                let path = Path::new(FOLDER).join(path);
                let file = runtime.block_on(client.open(path.as_os_str().as_bytes()))?;
                Ok(Reader::Library { file, offset: 0, runtime: runtime.clone() })
            }
        }
    }

    /// Unmounts, and removes the cache.
    pub async fn close(&self) -> Outcome {
        if let View::Mount { mounted, cache } = self {
            mounted.unmount().await?;
            let cache = cache.clone();
            let removed = tokio::task::spawn_blocking(move || fs::remove_dir_all(cache)).await;
            removed.unwrap_or_else(|error| Err(std::io::Error::other(error))).io(|| "remove the cache")?;
        }
        Ok(())
    }
}

impl Reader {
    /// Fills `buffer` from where the last read ended; less than all only at the end of the file. Blocks.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        match self {
            Reader::Mount(file) => {
                let mut filled = 0;
                while filled < buffer.len() {
                    match file.read(&mut buffer[filled..]).io(|| "read from the mount")? {
                        0 => break,
                        bytes => filled += bytes,
                    }
                }
                Ok(filled)
            }
            Reader::Library { file, offset, runtime } => {
                let bytes = runtime.block_on(file.read_at(*offset, buffer.len()))?;
                buffer[..bytes.len()].copy_from_slice(&bytes);
                *offset += bytes.len() as u64;
                Ok(bytes.len())
            }
        }
    }
}
