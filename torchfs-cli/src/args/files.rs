//! The verbs that work on files and folders of a cluster.

use super::Remote;
use clap::Args;
use std::ffi::OsString;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs put model.ckpt /checkpoints/          into an existing folder
  torchfs put -r ./imagenet /datasets/imagenet  a folder; small files are packed
  tar c . | torchfs put - /backup.tar           from stdin
  torchfs put <(zcat labels.gz) /labels         what a pipe or device gives

With -r, pipes and devices are kept as what they are.")]
pub struct Put {
    /// Folders too, with everything in them
    #[arg(short, long)]
    pub recursive: bool,
    /// Local files and folders, and last the path in TorchFS; if that is a folder, they go into it
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "DST"])]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs get /checkpoints/model.ckpt .
  torchfs get -r /datasets/imagenet ./imagenet
  torchfs get /backup.tar - | tar x                to stdout")]
pub struct Get {
    /// Folders too, with everything in them
    #[arg(short, long)]
    pub recursive: bool,
    /// Paths in TorchFS, and last the local file or folder; if that is a folder, they go into it
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "DST"])]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs ls /datasets
  torchfs ls -lR /datasets/imagenet
  torchfs ls --json / | jq -r '.[].name'

On a terminal odd names are quoted for a shell; in a pipe they are written as they are. Times are UTC.")]
pub struct Ls {
    /// Mode, links, owner, group, size, time, name
    #[arg(short)]
    pub long: bool,
    /// Folders below folders too
    #[arg(short = 'R', long)]
    pub recursive: bool,
    /// As a JSON array
    #[arg(long)]
    pub json: bool,
    #[arg(default_value = "/", value_name = "PATH")]
    pub paths: Vec<Remote>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs cat /datasets/labels.csv
  echo header | torchfs cat - /datasets/labels.csv")]
pub struct Cat {
    /// Paths in TorchFS; - is stdin
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs stat /datasets/labels.csv
  torchfs stat --json /datasets/labels.csv     with extents, stripes and nodes")]
pub struct Stat {
    /// As a JSON array
    #[arg(long)]
    pub json: bool,
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<Remote>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  torchfs mkdir -p /datasets/imagenet/train")]
pub struct Mkdir {
    /// Folders above it too; no error if it is there
    #[arg(short, long)]
    pub parents: bool,
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<Remote>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs mv /model.tmp /model.ckpt     replaces model.ckpt atomically
  torchfs mv /a /b /archive             into an existing folder")]
pub struct Mv {
    /// What to move, and last where to
    #[arg(required = true, num_args = 2.., value_names = ["SRC", "DST"])]
    pub paths: Vec<Remote>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs rm /old.ckpt
  torchfs rm -r /datasets/old")]
pub struct Rm {
    /// Folders too, with everything in them
    #[arg(short, long)]
    pub recursive: bool,
    #[arg(required = true, value_name = "PATH")]
    pub paths: Vec<Remote>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs du /datasets
  torchfs du --json /datasets/imagenet /datasets/coco

A file with several names counts once. Sizes are of the content, without redundancy.")]
pub struct Du {
    /// As a JSON array
    #[arg(long)]
    pub json: bool,
    #[arg(default_value = "/", value_name = "PATH")]
    pub paths: Vec<Remote>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  torchfs df

\"for content\" is the free space divided by the redundancy of the root folder's profile.")]
pub struct Df {
    /// As a JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs ln -s imagenet-v2 /datasets/latest
  torchfs ln /model.ckpt /best.ckpt")]
pub struct Ln {
    /// A symbolic link; TARGET is kept as it is written
    #[arg(short, long)]
    pub symbolic: bool,
    /// What the link leads to
    pub target: OsString,
    /// The new name; if it is a folder, the link goes into it
    pub path: Remote,
}
