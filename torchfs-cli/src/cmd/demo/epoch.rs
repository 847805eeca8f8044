//! One epoch: every file read once, in a shuffled order, by several threads, and compared with the source byte by byte.

use super::STORES_STOPPED;
use super::dataset::{Dataset, FileEntry};
use super::stop::Stop;
use super::view::View;
use crate::args::Global;
use crate::exit::{Exit, Failure, Outcome};
use crate::progress::Bar;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use torchfs_core::client::Progress;
use torchfs_core::{Error, IoContext, Kind, Result};
use torchfs_local::LocalCluster;

/// Threads that read, as the workers of a data loader do.
const READERS: usize = 8;

/// Bytes read and compared at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// Nodes fail when one file in so many was read, so that most of the epoch is without them.
const FAILURE_AFTER: usize = 20;

/// Whether nodes fail while the files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failures {
    None,
    TwoStoresAndTheLeader,
}

/// What came of an epoch.
#[derive(Debug)]
pub struct EpochResult {
    pub number: usize,
    pub seconds: f64,
    /// Files that are as the source is.
    pub verified: u64,
    /// Their bytes.
    pub bytes: u64,
    /// What was stopped, and when.
    pub stopped: String,
    /// Files that could not be read, or differ.
    pub failed: Vec<(String, Error)>,
}

/// What the reader threads share.
#[derive(Debug)]
pub struct Epoch {
    number: usize,
    root: PathBuf,
    order: Vec<FileEntry>,
    view: Arc<View>,
    stop: Stop,
    next: AtomicUsize,
    progress: Arc<Progress>,
    failure_due: Notify,
    failed: Mutex<Vec<(String, Error)>>,
}

impl Epoch {
    /// All files of the dataset in an order of their own.
    pub fn new(number: usize, dataset: &Dataset, view: Arc<View>, stop: &Stop) -> Arc<Epoch> {
        let mut order = dataset.files.clone();
        order.shuffle(&mut StdRng::seed_from_u64(number as u64));
        let progress = Arc::new(Progress::default());
        progress.files_total.store(order.len() as u64, Relaxed);
        progress.bytes_total.store(dataset.bytes, Relaxed);
        Arc::new(Epoch {
            number,
            root: dataset.root.clone(),
            order,
            view,
            stop: stop.clone(),
            next: AtomicUsize::new(0),
            progress,
            failure_due: Notify::new(),
            failed: Mutex::default(),
        })
    }

    /// Reads it all.
    pub async fn run(
        self: Arc<Self>,
        global: &Global,
        cluster: &LocalCluster,
        failures: Failures,
    ) -> Outcome<EpochResult> {
        let leader = cluster.leader().await?;
        let bar = Bar::start(&format!("epoch {}", self.number), self.progress.clone(), global);
        let started = Instant::now();
        let mut readers = JoinSet::new();
        for _ in 0..READERS {
            let epoch = self.clone();
            readers.spawn_blocking(move || epoch.read_files());
        }
        let stopped = match failures {
            Failures::None => Ok("none".to_owned()),
            Failures::TwoStoresAndTheLeader => self.fail_nodes(cluster, leader).await,
        };
        while readers.join_next().await.is_some() {}
        let seconds = started.elapsed().as_secs_f64();
        drop(bar);
        if self.stop.is_set() {
            return Err(Failure::silent(Exit::Interrupted));
        }
        Ok(EpochResult {
            number: self.number,
            seconds,
            verified: self.progress.files.load(Relaxed),
            bytes: self.progress.bytes.load(Relaxed),
            stopped: stopped?,
            failed: std::mem::take(&mut self.failed.lock().unwrap_or_else(PoisonError::into_inner)),
        })
    }

    async fn fail_nodes(&self, cluster: &LocalCluster, leader: usize) -> Outcome<String> {
        self.failure_due.notified().await;
        for store in STORES_STOPPED {
            cluster.stop_store(store)?;
        }
        cluster.stop_meta(leader)?;
        let read = self.progress.files.load(Relaxed);
        let [first, second] = STORES_STOPPED;
        Ok(format!("store-{first}, store-{second} and the leader meta-{leader}, after {read} files"))
    }

    /// One reader thread: takes the next file until there is none.
    fn read_files(&self) {
        let mut buffers = (vec![0; CHUNK_BYTES], vec![0; CHUNK_BYTES]);
        loop {
            let at = self.next.fetch_add(1, Relaxed);
            // Also when it is time to stop, as somebody waits for this.
            if at >= self.order.len() / FAILURE_AFTER {
                self.failure_due.notify_one();
            }
            let Some(file) = self.order.get(at).filter(|_| !self.stop.is_set()) else {
                return self.failure_due.notify_one();
            };
            match self.compare(file, &mut buffers) {
                Ok(()) => {
                    self.progress.files.fetch_add(1, Relaxed);
                }
                Err(error) => {
                    let failure = (file.path.display().to_string(), error);
                    self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                }
            }
        }
    }

    fn compare(&self, file: &FileEntry, (expected, actual): &mut (Vec<u8>, Vec<u8>)) -> Result<()> {
        let mut source = fs::File::open(self.root.join(&file.path)).io(|| "open the source")?;
        let mut reader = self.view.reader(&file.path)?;
        let mut offset = 0;
        while !self.stop.is_set() {
            let wanted = read_full(&mut source, expected)?;
            // The last round reads nothing from the source, and must read nothing here.
            let read = reader.read(actual)?;
            if expected[..wanted] != actual[..read] {
                let message = format!("differs from the source in the MiB at {offset}");
                return Err(Error::new(Kind::Corrupt, message));
            }
            if wanted == 0 {
                break;
            }
            offset += wanted as u64;
            self.progress.bytes.fetch_add(wanted as u64, Relaxed);
        }
        Ok(())
    }
}

fn read_full(source: &mut fs::File, buffer: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]).io(|| "read the source")? {
            0 => break,
            bytes => filled += bytes,
        }
    }
    Ok(filled)
}
