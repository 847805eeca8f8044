//! `torchfs demo`: a cluster, a dataset, a mount, three epochs of reading with nodes that fail in the second, and every
//! byte compared with the source. Leaves nothing behind, however it ends.

mod dataset;
mod epoch;
mod images;
mod png;
mod report;
mod stop;
mod view;

use crate::args::{Demo, Global, Remote};
use crate::exit::{Exit, Failure, Outcome};
use crate::progress::Bar;
use crate::signal::StopSignals;
use dataset::Dataset;
use epoch::{Epoch, Failures};
use report::Report;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stop::Stop;
use tempfile::TempDir;
use tokio::time::timeout;
use torchfs_core::IoContext;
use torchfs_core::client::TreeOptions;
use torchfs_local::LocalCluster;
use view::View;

const METAS: usize = 3;
const STORES: usize = 6;
const EPOCHS: usize = 3;

/// The epoch in which nodes fail.
const FAILING_EPOCH: usize = 2;

/// As many as 4+2 can miss.
const STORES_STOPPED: [usize; 2] = [2, 5];

/// Where the dataset goes in TorchFS.
const FOLDER: &str = "/dataset";

/// How long stopping and removing everything may take after a signal.
const CLEAN_UP_DEADLINE: Duration = Duration::from_secs(60);

/// How long nodes that were started again may take to be seen.
const RETURN_DEADLINE: Duration = Duration::from_secs(60);

/// Room for the logs and databases of the nodes, beside what the dataset takes.
const EXTRA_BYTES: u64 = 1 << 30;

pub async fn run(global: &Global, args: Demo, signals: &mut StopSignals) -> Outcome {
    let (stopper, stop) = Stop::new();
    let mut demo = Box::pin(demo(global, &args, &stop));
    if let Some(outcome) = signals.before(&mut demo).await {
        return outcome;
    }
    note!("stopping, and removing what was made; once more to leave it as it is");
    stopper.stop();
    let ended = signals.before(timeout(CLEAN_UP_DEADLINE, demo)).await;
    let failure = match ended {
        Some(Err(_late)) => Some(Failure::new(Exit::Interrupted, "could not clean up in time")),
        Some(Ok(outcome)) => outcome.err(),
        None => None,
    };
    let failure = failure.unwrap_or_else(|| Failure::silent(Exit::Interrupted));
    Err(Failure { exit: Exit::Interrupted, ..failure })
}

async fn demo(global: &Global, args: &Demo, stop: &Stop) -> Outcome {
    let folder = tempfile::Builder::new().prefix("torchfs-demo-").tempdir().io(|| "make a temporary folder")?;
    let outcome = Box::pin(in_folder(global, args, folder.path(), stop)).await;
    let removed = remove(folder).await;
    // What is left behind matters more than why the work ended.
    removed.and(outcome)
}

async fn remove(folder: TempDir) -> Outcome {
    let shown = folder.path().display().to_string();
    let removed = tokio::task::spawn_blocking(move || folder.close()).await;
    let removed = removed.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    Ok(removed.io(|| format!("remove {shown}"))?)
}

async fn in_folder(global: &Global, args: &Demo, folder: &Path, stop: &Stop) -> Outcome {
    let dataset = Dataset::find_or_make(args.dir.as_deref(), folder, stop).await?;
    println!("dataset   {}", dataset.description());
    check_space(folder, dataset.bytes)?;
    let started = Instant::now();
    // Not given up halfway: nodes that are dropped while they start may still make files in a folder that is being removed.
    let cluster = LocalCluster::builder().metas(METAS).stores(STORES).data_dir(folder.join("cluster"));
    let cluster = Box::pin(cluster.start()).await?;
    println!(
        "cluster   {METAS} metadata and {STORES} storage nodes on 127.0.0.1, started in {:.1} s",
        started.elapsed().as_secs_f64()
    );
    let outcome = Box::pin(on_cluster(global, &cluster, &dataset, folder, stop)).await;
    cluster.shutdown().await?;
    outcome
}

async fn on_cluster(global: &Global, cluster: &LocalCluster, dataset: &Dataset, folder: &Path, stop: &Stop) -> Outcome {
    stop.or(ingest(global, cluster, dataset)).await?;
    let mut report = Report::default();
    for number in 1..=EPOCHS {
        let view = Arc::new(View::open(cluster, folder, number).await?);
        if number == 1 {
            println!("reading   {}", view.description());
        }
        let failures = if number == FAILING_EPOCH { Failures::TwoStoresAndTheLeader } else { Failures::None };
        let epoch = Epoch::new(number, dataset, view.clone(), stop);
        let result = Box::pin(epoch.run(global, cluster, failures)).await;
        let closed = view.close().await;
        report.add(result?);
        closed?;
        if number == FAILING_EPOCH {
            bring_back(cluster).await?;
        }
    }
    let status = cluster.client().await?.status().await?;
    report.print(&status, dataset)?;
    report.verdict()
}

async fn ingest(global: &Global, cluster: &LocalCluster, dataset: &Dataset) -> Outcome {
    let client = cluster.client().await?;
    let target = Remote::from_bytes(FOLDER.as_bytes().to_vec());
    let options = TreeOptions::default();
    let bar = Bar::start("ingest", options.progress.clone(), global);
    let started = Instant::now();
    let copied = client.put_tree(&dataset.root, target.bytes(), options).await?;
    drop(bar);
    let seconds = started.elapsed().as_secs_f64();
    println!("ingest    {}", report::rates(copied.files, copied.bytes, seconds));
    super::put::report_tree("demo", copied, Path::to_path_buf)
}

/// Starts what was stopped, and waits until the cluster sees it.
async fn bring_back(cluster: &LocalCluster) -> Outcome {
    for number in cluster.stopped_metas() {
        cluster.start_meta(number).await?;
    }
    for number in cluster.stopped_stores() {
        cluster.start_store(number).await?;
    }
    Ok(cluster.wait_for_stores(STORES, RETURN_DEADLINE).await?)
}

/// The shards (half as much again as the content) and one epoch's cache must fit.
fn check_space(folder: &Path, bytes: u64) -> Outcome {
    let disk = rustix::fs::statvfs(folder).io(|| format!("ask for the space of {}", folder.display()))?;
    let free = disk.f_bavail * disk.f_frsize;
    let wanted = bytes / 2 * 5 + EXTRA_BYTES;
    if free >= wanted {
        return Ok(());
    }
    let size = crate::output::size_text;
    let message = format!("{} has {} free, and about {} are needed", folder.display(), size(free), size(wanted));
    let failure = Failure::new(Exit::NoSpace, message);
    Err(failure.hint("set TMPDIR to a folder on a larger disk"))
}
