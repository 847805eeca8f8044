//! [`Workload`]: which files are opened in which epoch, and in which order that was announced.

use crate::cache::CacheKey;
use crate::error::{Error, Kind, Result};
use crate::ids::{InodeId, Version};
use crate::prefetch::{DataFile, Dataset, interleave};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::sync::Arc;

/// Epochs over a dataset, whose listing is in the order of its files.
#[derive(Clone, Debug)]
pub struct Workload {
    dataset: Arc<Dataset>,
    epochs: Vec<EpochOrder>,
}

/// One epoch, by indices into the dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochOrder {
    /// What is announced, if anything is.
    pub announced: Vec<u32>,
    /// What is opened.
    pub opened: Vec<u32>,
}

impl Workload {
    /// Epochs that open what their orders say.
    ///
    /// # Errors
    /// As [`Workload::new`].
    pub fn of_orders(dataset: Arc<Dataset>, orders: Vec<Vec<u32>>) -> Result<Workload> {
        let epochs = orders.into_iter().map(|order| EpochOrder { announced: order.clone(), opened: order });
        Workload::new(dataset, epochs.collect())
    }

    /// Epochs whose files are opened in another order than is announced, as workers do.
    ///
    /// # Errors
    /// `InvalidInput` if there is none, one is empty, or one names a file that the dataset does not have.
    pub fn new(dataset: Arc<Dataset>, epochs: Vec<EpochOrder>) -> Result<Workload> {
        let files = dataset.files().len();
        if epochs.is_empty() || epochs.iter().any(|epoch| epoch.opened.is_empty()) {
            return Err(Error::new(Kind::InvalidInput, "an epoch opens no file: give each at least one"));
        }
        let named = epochs.iter().flat_map(|epoch| epoch.opened.iter().chain(&epoch.announced));
        if let Some(file) = named.into_iter().find(|&&file| file as usize >= files) {
            let message = format!("an epoch names file {file} of a dataset of {files} files");
            return Err(Error::new(Kind::InvalidInput, message));
        }
        Ok(Workload { dataset, epochs })
    }

    /// Files of these sizes, each read once per epoch, in the order of the listing.
    ///
    /// # Errors
    /// As [`Workload::new`] and [`Dataset::new`].
    pub fn sequential(sizes: &[u64], epochs: usize) -> Result<Workload> {
        let order: Vec<u32> = (0..sizes.len() as u32).collect();
        Workload::of_orders(dataset(sizes)?, vec![order; epochs])
    }

    /// Files of these sizes, each read once per epoch, in an order drawn anew for each epoch: a true random permutation.
    ///
    /// # Errors
    /// As [`Workload::new`] and [`Dataset::new`].
    pub fn shuffled(sizes: &[u64], epochs: usize, seed: u64) -> Result<Workload> {
        let mut random = StdRng::seed_from_u64(seed);
        let mut order: Vec<u32> = (0..sizes.len() as u32).collect();
        let orders = (0..epochs).map(|_| {
            order.shuffle(&mut random);
            order.clone()
        });
        let orders = orders.collect();
        Workload::of_orders(dataset(sizes)?, orders)
    }

    /// The same orders as the workers of a data loader open them: each takes whole batches in turn, and they go on together.
    #[must_use]
    pub fn interleaved(mut self, workers: usize, batch: usize) -> Workload {
        for epoch in &mut self.epochs {
            epoch.opened = interleave(&epoch.announced, workers, batch);
        }
        self
    }

    /// The files.
    #[must_use]
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The epochs.
    #[must_use]
    pub fn epochs(&self) -> &[EpochOrder] {
        &self.epochs
    }
}

fn dataset(sizes: &[u64]) -> Result<Arc<Dataset>> {
    let file = |(at, &bytes): (usize, &u64)| {
        let key = CacheKey { ino: InodeId(at as u64 + 1), version: Version(1) };
        DataFile { key, bytes }
    };
    Dataset::new(sizes.iter().enumerate().map(file).collect())
}
