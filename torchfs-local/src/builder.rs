//! What a [`LocalCluster`] consists of.

use crate::LocalCluster;
use crate::plan::{Plan, Wishes};
use std::num::NonZeroU32;
use std::path::PathBuf;
use tempfile::TempDir;
use torchfs_core::layout::Profile;
use torchfs_core::{IoContext, Result, folder};
use torchfs_store::Capacity;

/// How to make a [`LocalCluster`]. What is not said is taken from the data folder if it holds a cluster already.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    wishes: Wishes,
    data: Option<PathBuf>,
    capacity: Option<u64>,
}

impl Builder {
    /// How many metadata nodes; 3 if not said.
    #[must_use]
    pub fn metas(mut self, count: usize) -> Self {
        self.wishes.metas = Some(count);
        self
    }

    /// How many storage nodes; 6 if not said. A data folder with fewer gets more.
    #[must_use]
    pub fn stores(mut self, count: usize) -> Self {
        self.wishes.stores = Some(count);
        self
    }

    /// How new files are coded; 4+2 if not said.
    #[must_use]
    pub fn profile(mut self, profile: Profile) -> Self {
        self.wishes.profile = Some(profile);
        self
    }

    /// Where everything is kept, and found again by the next cluster with this folder. Without it, in a temporary
    /// folder that goes with the cluster.
    #[must_use]
    pub fn data_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.data = Some(path.into());
        self
    }

    /// The first port on 127.0.0.1; the other nodes take those that follow. `None`: any free ports. A data folder keeps
    /// its ports.
    #[must_use]
    pub fn port(mut self, port: Option<u16>) -> Self {
        self.wishes.port = port;
        self
    }

    /// Most bytes that each storage node uses; an even part of what the disk has free if not said.
    #[must_use]
    pub fn store_capacity(mut self, bytes: u64) -> Self {
        self.capacity = Some(bytes);
        self
    }

    /// Starts all nodes. When this returns there is a leader and every storage node is registered.
    ///
    /// # Errors
    /// Naming the node that does not start; `Exists` if a port is in use; `InvalidInput` if the data folder holds a
    /// cluster that is not the one asked for.
    pub async fn start(self) -> Result<LocalCluster> {
        let (data, temporary) = match &self.data {
            Some(data) => (data.clone(), None),
            None => temporary()?,
        };
        let is_new = folder::make(&data)?;
        let plan = Plan::make(&data, &self.wishes).await.inspect_err(|_| {
            if is_new {
                // As it was before; what has something in it stays.
                let _ = std::fs::remove_dir(&data);
            }
        })?;
        let stores = u32::try_from(plan.plan.stores.len()).unwrap_or(u32::MAX);
        // The nodes share one disk, so each may have its part of it.
        let shared = Capacity::Disk { nodes: NonZeroU32::new(stores).unwrap_or(NonZeroU32::MIN) };
        let capacity = self.capacity.map_or(shared, Capacity::Bytes);
        LocalCluster::start(plan, data, capacity, temporary).await
    }
}

fn temporary() -> Result<(PathBuf, Option<TempDir>)> {
    let temporary = tempfile::Builder::new().prefix("torchfs-").tempdir().io(|| "make a temporary folder")?;
    Ok((temporary.path().to_owned(), Some(temporary)))
}
