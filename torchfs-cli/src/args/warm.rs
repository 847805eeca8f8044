//! The arguments of `torchfs warm`.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs warm /mnt/torchfs/imagenet               all files below a folder, in the order of their paths
  torchfs warm /mnt/torchfs --schedule order.txt   what an epoch will read first comes first
  torchfs warm --check /mnt/torchfs/imagenet && ./train.py /mnt/torchfs/imagenet

What is there already is not fetched again, so an interrupted run goes on where it was. If not everything fits into the
cache, what comes first in the order is fetched, and the exit code is 8; `torchfs mount --cache-size` sets the limit.
Nothing that an announced order needs leaves for it. What was warmed stays until other files need its place:
`torchfs mount --eviction` says whose goes first.")]
pub struct Warm {
    /// A file or folder in a mount on this machine
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Fetch only what this file names, in its order: paths from the root of the mount, one on each line, or what else can
    /// be written to .torchfs/schedule (docs/schedule.md)
    #[arg(long, value_name = "FILE")]
    pub schedule: Option<PathBuf>,
    /// Fetch nothing, say how much is in the cache; exit code 0 only if everything is, else 1
    #[arg(long)]
    pub check: bool,
    /// The result as a JSON object
    #[arg(long)]
    pub json: bool,
}
