//! `torchfs sim`: its flags.

use super::{CacheSize, Size, values};
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use torchfs_core::cache::policy::Eviction;
use torchfs_core::prefetch::Prefetch;
use torchfs_core::sim::Announce;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs sim                               what announcing an order gives
  torchfs sim --order sequential --policy fifo,lru --prefetch none,history
  torchfs sim --files 1281167 --size 110KB --cache 100G,200G --epochs 3
  torchfs sim --cache 25% --workers 4 --fetch-opens 8        epoch by epoch
  torchfs sim --policy fifo,lru,schedule --prefetch none --plot hits.svg
  torchfs sim train.trace --cache 10%,50%   in the order in which programs read

A hit is a file that was in the cache, whole, when it was opened; late is one that was on its way. Rates are of the epochs \
after the first, which finds the cache empty. \"least\" is what Belady's rule fetches, which knows all opens: nothing fetches \
less of files of one size. Orders are announced for --prefetch schedule, and for --policy schedule without prefetch; all else \
gets no hint. A cache size is bytes, or a part of all files.

TRACE is what `torchfs trace record` made, or a text with a path per line, and after a tab its bytes, if they are not --size; an \
empty line ends an epoch. Files are listed in the order of their paths.")]
pub struct Sim {
    /// Files in the order of their opens; - is stdin [default: files that are made up]
    #[arg(value_name = "TRACE", conflicts_with_all = ["files", "epochs", "order", "seed"])]
    pub trace: Option<PathBuf>,
    /// Files of the dataset
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=16 << 20))]
    pub files: u32,
    /// How long each is
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    pub size: Size,
    /// How often all are read
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub epochs: u32,
    /// In which order
    #[arg(long, value_enum, default_value_t = Order::Shuffled)]
    pub order: Order,
    /// Another one gives other orders
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Workers of a data loader that open the files of an order together, each a batch in turn
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub workers: u32,
    /// Files in a batch
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub batch: u32,
    /// How much the cache holds
    #[arg(long, value_name = "SIZE,...", value_delimiter = ',', default_value = "5%,25%,50%,75%", value_parser = CacheSize::of_files)]
    pub cache: Vec<CacheSize>,
    /// What leaves a full cache first: fifo, filo, lru, lfu, schedule
    #[arg(long, value_name = "POLICY,...", value_delimiter = ',', default_value = "schedule")]
    pub policy: Vec<Eviction>,
    /// What is fetched ahead: none, sequential (as files are listed), history (as in the last epoch), auto (both), schedule (as
    /// announced)
    #[arg(long, value_name = "POLICY,...", value_delimiter = ',', default_value = "schedule")]
    pub prefetch: Vec<Prefetch>,
    /// When an order is announced
    #[arg(long, value_enum, default_value_t = When::Start)]
    pub announce: When,
    /// How long a fetch takes, counted in files that the reader opens and works on meanwhile
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    pub fetch_opens: u64,
    /// Files that are fetched ahead at the same time
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub fetches: u32,
    /// As a JSON object, with all epochs
    #[arg(long)]
    pub json: bool,
    /// Draw the hit rates as an SVG file too
    #[arg(long, value_name = "FILE.svg", value_parser = values::svg_file())]
    pub plot: Option<PathBuf>,
}

/// In which order files are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Order {
    /// As they are listed, the same in each epoch
    Sequential,
    /// A random permutation, drawn anew for each epoch
    Shuffled,
}

/// When orders are announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum When {
    /// When its epoch begins
    Start,
    /// When the epoch before begins
    Ahead,
}

impl From<When> for Announce {
    fn from(when: When) -> Announce {
        match when {
            When::Start => Announce::AtStart,
            When::Ahead => Announce::OneAhead,
        }
    }
}
