//! The arguments of `torchfs warm`, `pin` and `unpin`.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs warm /mnt/torchfs/imagenet              all below a folder
  torchfs warm /mnt/torchfs --schedule order.txt  in the order of an epoch
  torchfs warm --check /mnt/torchfs/imagenet && ./train.py /mnt/torchfs/imagenet

What is there already is not fetched again, so an interrupted run goes on where it was. If not everything fits into the \
cache, what comes first in the order is fetched, and the exit code is 8; `torchfs mount --cache-size` sets the limit. \
Nothing that an announced order needs leaves for it. What was warmed stays until other files need its place: \
`torchfs mount --eviction` says whose goes first, and `torchfs pin` keeps files there.")]
pub struct Warm {
    /// A file or folder in a mount on this machine
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Fetch only what this file names, in its order: paths from the root of the mount, one on each line, or what else can
    /// be written to .torchfs/schedule (docs/schedule.md); - is stdin
    #[arg(long, value_name = "FILE")]
    pub schedule: Option<PathBuf>,
    /// Fetch nothing, say how much is in the cache; exit code 0 only if everything is, else 1
    #[arg(long)]
    pub check: bool,
    /// The result as a JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs pin /mnt/torchfs/imagenet/val     all files below it, new ones too
  torchfs pin --list
  torchfs unpin /mnt/torchfs/imagenet/val

What is pinned is brought into the cache, and no other file takes its place, also after a remount with the same cache folder. \
Ctrl-C ends only the waiting: the mount goes on. A pin is of a path: files that come to the folder, or are replaced, by \
whomever, follow within seconds, and what was read is never old. More than the cache may hold is refused; when a \
pinned folder grows beyond that, what comes last in the order of the pins is not kept. Whoever may use the mount may pin.")]
pub struct Pin {
    /// Files and folders in a mount on this machine
    #[arg(value_name = "PATH", required_unless_present = "list")]
    pub paths: Vec<PathBuf>,
    /// Show what is pinned, and how much of it is in the cache; PATH says of which mount [default: the only one there is]
    #[arg(long)]
    pub list: bool,
    /// The result as a JSON array
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  torchfs unpin /mnt/torchfs/imagenet/val

A path is given as it was pinned, also if nothing is there any more. Its files stay in the cache until others need \
their place.")]
pub struct Unpin {
    /// Paths that are pinned
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<PathBuf>,
}
