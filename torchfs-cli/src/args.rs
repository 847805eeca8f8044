//! The command line: every verb with its flags, as clap sees them. Values are parsed here, meaning is given in `cmd`.

mod files;
mod mount_options;
mod sim;
mod trace;
mod values;
mod warm;

pub use files::{Cat, Df, Du, Get, Ln, Ls, Mkdir, Mv, Put, Rm, Stat};
pub use mount_options::{MountWord, helper};
pub use sim::{Order, Sim};
pub use trace::{Reads, Trace, TraceAction, TraceRecord, TraceReplay, TraceSummary};
pub use values::{CacheSize, Remote, Size, address};
pub use warm::{Pin, Unpin, Warm};

use crate::exit::EXIT_CODES;
use clap::{Arg, Args, Command, Parser, Subcommand};
use clap_complete::Shell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use torchfs_core::MetaId;
use torchfs_core::cache::policy::Eviction;
use torchfs_core::layout::Profile;
use torchfs_core::placement::FailureDomain;
use torchfs_core::prefetch::Prefetch;

/// A distributed file system for machine-learning training data.
///
/// `torchfs demo` shows it working; `torchfs up --data DIR` starts a cluster on this machine.
#[derive(Debug, Parser)]
#[command(name = "torchfs", version, after_help = EXIT_CODES, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Flags that every verb takes.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Metadata nodes of the cluster, HOST:PORT; one that answers is enough [default: what TORCHFS_META says]
    // Not by clap's `env`: with that, the usage line of an error shows a flag that nobody gave.
    #[arg(long, value_name = "ADDR,...", value_delimiter = ',', global = true)]
    pub meta: Vec<String>,
    /// No progress bars, and nothing on stderr but errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to log to stderr: error, warn, info, debug, trace, or a filter as in RUST_LOG
    #[arg(long, value_name = "LEVEL", global = true)]
    pub log: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run a whole cluster in this process, until Ctrl-C
    #[command(arg(without_cluster()))]
    Up(Up),
    /// Run one metadata node
    #[command(arg(without_cluster()))]
    Meta(Meta),
    /// Run one storage node
    Store(Store),
    /// Mount the file system on a folder
    Mount(Mount),
    /// Unmount, and wait until everything is committed; cleans up after a killed mount
    #[command(arg(without_cluster()))]
    Umount(Umount),
    /// List, store or remove what was written to a mount and could not be stored when it was closed
    Recover(Recover),
    /// Show what a mount on this machine has done: opens, hits and misses of its cache, requests and how long they took
    #[command(arg(without_cluster()))]
    Stats(Stats),
    /// Bring files into the cache of a mount before they are read, or say how much of them is there
    #[command(arg(without_cluster()))]
    Warm(Warm),
    /// Keep files in the cache of a mount until they are unpinned, or list which are kept
    #[command(arg(without_cluster()))]
    Pin(Pin),
    /// Let go of files that are pinned
    #[command(arg(without_cluster()))]
    Unpin(Unpin),
    /// Copy files and folders into TorchFS
    Put(Put),
    /// Copy files and folders out of TorchFS
    Get(Get),
    /// List folders
    Ls(Ls),
    /// Write files to stdout
    Cat(Cat),
    /// Show what is known of a path: attributes, and where its content is stored
    Stat(Stat),
    /// Make folders
    Mkdir(Mkdir),
    /// Move or rename
    Mv(Mv),
    /// Remove files, and folders with -r
    Rm(Rm),
    /// Sum up the files below a path
    Du(Du),
    /// Show how full the file system is
    Df(Df),
    /// Make links
    Ln(Ln),
    /// Show the cluster: leader, nodes, files, degraded stripes
    Status(Status),
    /// Show or set how a folder's new files are coded
    Policy(Policy),
    /// Simulate caches: hit rates and bytes from storage for an order of opens, without a cluster
    #[command(arg(without_cluster()))]
    Sim(Box<Sim>),
    /// Record what programs do on a mount, sum it up, or do the same again
    #[command(arg(without_cluster()))]
    Trace(Trace),
    /// See it working: a cluster, a dataset, a mount, and nodes that fail while it is read
    #[command(arg(without_cluster()))]
    Demo(Demo),
    /// Print a completion script for a shell
    #[command(arg(without_cluster()))]
    Completions(Completions),
}

/// `--meta` of verbs that ask no cluster: taken, as everywhere, and not shown.
fn without_cluster() -> Arg {
    let global = Global::augment_args(Command::default());
    let meta = global.get_arguments().find(|arg| arg.get_id() == "meta");
    meta.cloned().unwrap_or_default().hide(true)
}

impl Verb {
    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        match self {
            Verb::Up(_) => "up",
            Verb::Meta(_) => "meta",
            Verb::Store(_) => "store",
            Verb::Mount(_) => "mount",
            Verb::Umount(_) => "umount",
            Verb::Recover(_) => "recover",
            Verb::Stats(_) => "stats",
            Verb::Warm(_) => "warm",
            Verb::Pin(_) => "pin",
            Verb::Unpin(_) => "unpin",
            Verb::Put(_) => "put",
            Verb::Get(_) => "get",
            Verb::Ls(_) => "ls",
            Verb::Cat(_) => "cat",
            Verb::Stat(_) => "stat",
            Verb::Mkdir(_) => "mkdir",
            Verb::Mv(_) => "mv",
            Verb::Rm(_) => "rm",
            Verb::Du(_) => "du",
            Verb::Df(_) => "df",
            Verb::Ln(_) => "ln",
            Verb::Status(_) => "status",
            Verb::Policy(_) => "policy",
            Verb::Sim(_) => "sim",
            Verb::Trace(_) => "trace",
            Verb::Demo(_) => "demo",
            Verb::Completions(_) => "completions",
        }
    }

    /// Whether it serves until it is told to stop, and so says more of what it does.
    pub fn is_server(&self) -> bool {
        matches!(self, Verb::Up(_) | Verb::Meta(_) | Verb::Store(_))
    }
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs up --data /var/lib/torchfs
  torchfs up --data ./cluster --stores 8 --ec 6+2 --mount /mnt/torchfs

The same command starts the same cluster again: what it holds is kept in DIR.")]
pub struct Up {
    /// Folder for everything the cluster keeps
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Metadata nodes [default: 3, or as many as DIR has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=9))]
    pub metas: Option<u16>,
    /// Storage nodes [default: 6, or as many as DIR has]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=200))]
    pub stores: Option<u16>,
    /// First port; the nodes take it and those that follow [default: 7100, or as DIR has it]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Data and parity shards of new files [default: 4+2, or as DIR has it]
    #[arg(long, value_name = "K+M")]
    pub ec: Option<Profile>,
    /// Mount the file system here as well
    #[arg(long, value_name = "DIR")]
    pub mount: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example, on host a (the same on b and c with their --id):
  torchfs meta --id 1 --listen 0.0.0.0:7100 --data /var/lib/torchfs-meta \\
      --peers 1=a:7100,2=b:7100,3=c:7100

A new cluster forms when all its metadata nodes have been up together once; then a majority is enough. A node whose DIR is \
lost starts with the same --id and an empty DIR, or a backup of it, and catches up before it votes; so does one whose DIR was \
copied elsewhere. Two copies of one DIR do not run at the same time.")]
pub struct Meta {
    /// This node's number, one of --peers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Where to listen, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub listen: String,
    /// All metadata nodes with the addresses at which they reach each other
    #[arg(long, value_name = "1=ADDR,2=ADDR,...", value_parser = values::peers)]
    pub peers: Peers,
    /// Folder for what it keeps
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Data and parity shards of new files; counts when the cluster is first made
    #[arg(long, value_name = "K+M", default_value_t = Profile::DEFAULT)]
    pub ec: Profile,
}

/// The metadata nodes by number. (An alias, because clap takes a bare map for a repeated flag.)
pub type Peers = BTreeMap<MetaId, String>;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs store --listen 0.0.0.0:7200 --advertise s1:7200 --data /srv/torchfs \\
      --meta a:7100,b:7100,c:7100 --domain host=s1,rack=r1
  torchfs store --listen 127.0.0.1:7201 --data ./store --capacity 10G \\
      --meta 127.0.0.1:7100

Start one on every machine with disks; each registers itself.")]
pub struct Store {
    /// Where to listen, HOST:PORT
    #[arg(long, value_name = "ADDR")]
    pub listen: String,
    /// Where others reach this node, if it is not the address it listens on
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Folder for the shards
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Most bytes to use, like 500GiB or 10G; give it where several nodes share a disk, or each counts all of it as its own
    /// [default: what the disk has free]
    #[arg(long, value_name = "SIZE")]
    pub capacity: Option<Size>,
    /// Where the machine stands; a stripe's shards are spread over as many places as possible
    #[arg(long, value_name = "host=H,rack=R", default_value = "", hide_default_value = true)]
    pub domain: FailureDomain,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs mount /mnt/torchfs                  until Ctrl-C or umount
  torchfs mount --background /mnt/torchfs     returns when the mount is usable
  torchfs mount --cache-dir /nvme/cache --cache-size 200G /mnt/torchfs
  torchfs mount -o ro,noallow_other /mnt/torchfs

Through mount(8) and fstab(5), if /sbin/mount.fuse.torchfs links to torchfs:
  mount -t fuse.torchfs -o ro,cache_size=200G a:7100,b:7100,c:7100 /mnt/torchfs")]
pub struct Mount {
    /// An existing folder
    pub mountpoint: PathBuf,
    /// Where whole files are kept that were read [default: below /var/cache/torchfs or ~/.cache/torchfs]. Mounts that share
    /// it copy from each other instead of fetching; each has a limit of its own
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// How much the cache may hold, like 200G or 25% of its disk; 5 % of that, at most 1 GiB, stay free in any case. Bytes of files
    /// count, which take whole blocks of the disk: mostly 4 KiB each
    #[arg(long, value_name = "SIZE", default_value = "10GiB")]
    pub cache_size: CacheSize,
    /// What leaves a full cache first: fifo what came first, filo what came last, lru what was not opened for the longest
    /// time, lfu what was opened the fewest times, schedule what an announced order needs last and, without one, as lru
    #[arg(long, value_name = "POLICY", default_value_t = Eviction::Schedule)]
    pub eviction: Eviction,
    /// What is fetched into the cache before it is opened: none nothing, schedule what is announced, and where nothing is:
    /// sequential files in the order of their folder's listing, history an order of opens that repeats, auto both
    #[arg(long, value_name = "POLICY", default_value_t = Prefetch::Auto)]
    pub prefetch: Prefetch,
    /// As in fstab: ro, rw, allow_other, noallow_other [default: allowed if root mounts], cache_dir=DIR, cache_size=SIZE,
    /// eviction=POLICY, prefetch=POLICY, nopassthrough (the kernel reads no cached file by itself), noawake (a virtual machine's
    /// idle processors may be halted while small files of an announced order are read)
    #[arg(short, value_name = "OPT,...", value_delimiter = ',')]
    pub options: Vec<MountWord>,
    /// Return when the mount is usable, and go on in the background
    #[arg(long)]
    pub background: bool,
    /// Check the options and mount nothing, as `mount -f` asks of its helpers.
    #[arg(long, hide = true)]
    pub fake: bool,
    /// The mount is served by this process, which tells its parent on stdout how it went.
    #[arg(long, hide = true, conflicts_with = "background")]
    pub serve_background: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs umount /mnt/torchfs            returns when all is committed
  torchfs umount --lazy /mnt/torchfs     in use, or its process hangs

A mount whose process was killed (\"Transport endpoint is not connected\") is cleaned away; `torchfs mount` on the \
same folder does that by itself.")]
pub struct Umount {
    /// Detach what is in use: it ends when the last program lets go of it
    #[arg(short, long)]
    pub lazy: bool,
    /// Where it is mounted
    #[arg(required = true, value_name = "MOUNTPOINT")]
    pub mountpoints: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs recover                            what there is, of all mounts
  torchfs recover put 3f9a0c12               into the file it was written to
  torchfs recover put 3f9a0c12 /rescued.ckpt as a file of its own
  torchfs recover drop 3f9a0c12
  torchfs recover --cache-dir /nvme/cache    of a mount with this --cache-dir

When close(2) or fsync(2) fails, as when too few nodes can be reached, the file stays as it was before, and what was written \
is kept on this machine: as much as the cache may hold, the oldest goes first. Full stripes of large files that had been \
sent by then are kept by the storage nodes, for a day. A file that was there before is listed by its inode: \
`find /mnt/torchfs -inum N` names it.")]
pub struct Recover {
    /// The cache folder of the mount [default: all below /var/cache/torchfs or ~/.cache/torchfs]
    #[arg(long, value_name = "DIR", global = true)]
    pub cache_dir: Option<PathBuf>,
    #[command(subcommand)]
    pub action: Option<RecoverAction>,
}

#[derive(Debug, Subcommand)]
pub enum RecoverAction {
    /// Show what there is
    List {
        /// As a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Store it in TorchFS, and then remove it here
    Put {
        #[arg(value_name = "ID")]
        id: String,
        /// Where to [default: the file that it was written to]
        path: Option<Remote>,
    },
    /// Remove it for good
    Drop {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs stats                         of the only mount on this machine
  torchfs stats /mnt/torchfs --watch    what happens, a line per second
  torchfs stats /mnt/torchfs --json | jq .cache
  torchfs stats --epochs                each epoch, and how long it waited

Programs can read the same JSON from MOUNTPOINT/.torchfs/stats. Counters begin when the mount does. A read is a hit when \
it did not wait for storage; reads that the kernel answers out of its page cache come to no mount, and are not counted. An epoch is what was announced under its number (docs/schedule.md); `-` is everything else. \
`late` files were on their way when they were opened, `wasted` ones were fetched ahead and left before they were.")]
pub struct Stats {
    /// Where it is mounted, or a path inside [default: the only mount there is]
    #[arg(value_name = "PATH")]
    pub path: Option<PathBuf>,
    /// What happens from now on, a line every SECONDS, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "1", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub watch: Option<u64>,
    /// What each of the latest epochs found in the cache and waited for
    #[arg(long, conflicts_with = "watch")]
    pub epochs: bool,
    /// As a JSON object; with --watch one on each line
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs status
  torchfs status --json | jq .degraded_stripes

A metadata node is leader, follower, joining (its folder was lost or copied: it does not vote before it has caught up) or down.")]
pub struct Status {
    /// As a JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs policy get /datasets
  torchfs policy set /datasets --ec 8+3

A policy counts for files that are written afterwards, in the folder and below it.")]
pub struct Policy {
    #[command(subcommand)]
    pub action: PolicyAction,
}

#[derive(Debug, Subcommand)]
pub enum PolicyAction {
    /// Show how new files in a folder are coded
    Get {
        #[arg(value_name = "PATH")]
        path: Remote,
    },
    /// Say how new files in a folder are coded
    Set {
        #[arg(value_name = "PATH")]
        path: Remote,
        /// Data and parity shards
        #[arg(long, value_name = "K+M")]
        ec: Profile,
    },
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs demo                     with 2,000 images that it makes
  torchfs demo ~/datasets/cifar    with your own files, which are only read

Everything is kept in a temporary folder (TMPDIR says where) and removed at the end.")]
pub struct Demo {
    /// A dataset; without it a labelled image tree is made
    pub dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  torchfs completions bash > /etc/bash_completion.d/torchfs")]
pub struct Completions {
    pub shell: Shell,
}

#[cfg(test)]
#[path = "args_test.rs"]
mod tests;
