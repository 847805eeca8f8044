//! The verbs, one file each, and what they share: the runtime, logging, finding the cluster, cp-like targets.

mod cat;
mod completions;
mod control;
mod demo;
mod df;
mod du;
mod get;
mod ln;
mod ls;
mod meta;
mod mkdir;
mod mount;
mod mv;
mod pin;
mod policy;
mod put;
mod recover;
mod rm;
mod sim;
mod stat;
mod stats;
mod status;
mod store;
mod trace;
mod tree;
mod umount;
mod up;
mod warm;

use crate::args::{Cli, Global, Remote, Verb};
use crate::exit::{Exit, Failure, Outcome};
use crate::signal::StopSignals;
use rustix::fs::{FileType, OFlags, major, minor};
use std::io::IsTerminal;
use std::time::Duration;
use torchfs_core::meta::{Attr, FileKind};
use torchfs_core::{Client, Error, IoContext, Kind};
use tracing_subscriber::EnvFilter;

/// How long what was stored for nothing may hold up the end, so that Ctrl-C stays quick.
const GIVE_BACK_DEADLINE: Duration = Duration::from_secs(2);

/// How long work that was given up may hold the process at its end.
const END_DEADLINE: Duration = Duration::from_secs(2);

/// Major and minor number of /dev/null, on every Linux.
const NULL_DEVICE: (u32, u32) = (1, 3);

/// Runs a command line.
///
/// # Errors
/// How the verb failed.
pub fn run(cli: Cli) -> Outcome {
    start_logging(&cli)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().io(|| "start the runtime")?;
    let outcome = runtime.block_on(Box::pin(dispatch(cli)));
    runtime.shutdown_timeout(END_DEADLINE);
    outcome
}

async fn dispatch(cli: Cli) -> Outcome {
    let global = &cli.global;
    let mut stop = StopSignals::listen()?;
    match cli.verb {
        // These stop in an orderly way by themselves.
        Verb::Up(args) => up::run(global, args, &mut stop).await,
        Verb::Meta(args) => meta::run(args, &mut stop).await,
        Verb::Store(args) => store::run(global, args, &mut stop).await,
        Verb::Mount(args) => mount::run(global, args, &mut stop).await,
        Verb::Demo(args) => demo::run(global, args, &mut stop).await,
        Verb::Put(args) => put::run(global, args, &mut stop).await,
        Verb::Trace(args) => trace::run(global, args, &mut stop).await,
        Verb::Completions(args) => completions::run(args),
        Verb::Umount(args) => stop.or_interrupted(umount::run(args)).await,
        Verb::Sim(args) => stop.or_interrupted(sim::run(global, *args)).await,
        verb => stop.or_interrupted(file_verb(global, verb)).await,
    }
}

async fn file_verb(global: &Global, verb: Verb) -> Outcome {
    match verb {
        Verb::Get(args) => get::run(global, args).await,
        Verb::Recover(args) => recover::run(global, args).await,
        Verb::Stats(args) => stats::run(args).await,
        Verb::Warm(args) => warm::run(global, args).await,
        Verb::Pin(args) => pin::run(global, args).await,
        Verb::Unpin(args) => pin::unpin(args).await,
        Verb::Ls(args) => ls::run(global, args).await,
        Verb::Cat(args) => cat::run(global, args).await,
        Verb::Stat(args) => stat::run(global, args).await,
        Verb::Mkdir(args) => mkdir::run(global, args).await,
        Verb::Mv(args) => mv::run(global, args).await,
        Verb::Rm(args) => rm::run(global, args).await,
        Verb::Du(args) => du::run(global, args).await,
        Verb::Df(args) => df::run(global, args).await,
        Verb::Ln(args) => ln::run(global, args).await,
        Verb::Status(args) => status::run(global, args).await,
        Verb::Policy(args) => policy::run(global, args).await,
        Verb::Up(_) | Verb::Meta(_) | Verb::Store(_) | Verb::Demo(_) | Verb::Completions(_) => Ok(()),
        Verb::Put(_) | Verb::Mount(_) | Verb::Umount(_) | Verb::Sim(_) | Verb::Trace(_) => Ok(()),
    }
}

/// Logs to stderr by `--log`, else RUST_LOG, else a level that suits the verb.
fn start_logging(cli: &Cli) -> Outcome {
    let level = default_log(cli);
    let filter = match &cli.global.log {
        Some(filter) => EnvFilter::try_new(filter)
            .map_err(|error| Failure::usage(format!("'{filter}' is not a log level or filter: {error}")))?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level)),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_ansi(std::io::stderr().is_terminal()).init();
    Ok(())
}

/// openraft, tarpc and fuser report what needs nobody's attention, like each refused connection of a node that is down,
/// several times a second. What matters of it is said by our own crates and by `status`.
fn default_log(cli: &Cli) -> String {
    let level = match &cli.verb {
        _ if cli.global.quiet => "error",
        // Nodes fail on purpose.
        Verb::Demo(_) => "error",
        verb if verb.is_server() => "warn,torchfs=info,openraft=error,tarpc=error",
        _ => "warn,openraft=error,tarpc=error",
    };
    format!("{level},{}", torchfs_fuse::LOG_FILTER)
}

/// The metadata addresses, which must have been given: by the flag, or by the environment.
fn metas(global: &Global) -> Outcome<Vec<String>> {
    let mut given = global.meta.join(",");
    if given.is_empty() {
        given = std::env::var("TORCHFS_META").unwrap_or_default();
    }
    let metas: Vec<String> = given.split(',').map(|addr| addr.trim().to_owned()).filter(|a| !a.is_empty()).collect();
    if metas.is_empty() {
        let hint = "set TORCHFS_META=HOST:PORT,... or pass --meta; `torchfs up --data DIR` starts a cluster here";
        return Err(Failure::usage("no cluster is given").hint(hint));
    }
    for addr in &metas {
        crate::args::address(addr).map_err(|message| Failure::usage(format!("--meta: {message}")))?;
    }
    Ok(metas)
}

/// Refuses a stdin that was closed before this program began: what stands in its place would give an empty file.
///
/// # Errors
/// `Usage` if so.
fn check_stdin() -> Outcome {
    let stdin = std::io::stdin();
    let found = rustix::fs::fstat(&stdin).io(|| "look at stdin")?;
    let flags = rustix::fs::fcntl_getfl(&stdin).io(|| "look at stdin")?;
    // The runtime of Rust puts /dev/null there, open for reading and writing, which `< /dev/null` is not.
    let is_device = FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice;
    let is_null = is_device && (major(found.st_rdev), minor(found.st_rdev)) == NULL_DEVICE;
    if is_null && flags.contains(OFlags::RDWR) {
        let hint = "for an empty file, give /dev/null instead of -";
        return Err(Failure::usage("stdin is closed").hint(hint));
    }
    Ok(())
}

/// Runs what blocks beside the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Outcome<T> + Send + 'static) -> Outcome<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Failure::from(std::io::Error::other(error))))
}

/// Connects to the cluster that was given.
async fn connect(global: &Global) -> Outcome<Client> {
    let metas = metas(global)?;
    Client::connect(metas.clone()).await.map_err(|error| cannot_connect(error, &metas))
}

fn cannot_connect(error: Error, metas: &[String]) -> Failure {
    let unreachable = matches!(error.kind(), Kind::Unavailable | Kind::Timeout);
    let failure = Failure::from(error).context(format!("connect to {}", metas.join(", ")));
    if unreachable {
        failure.hint("is the cluster running, and are these its metadata nodes? --meta or TORCHFS_META names them")
    } else {
        failure
    }
}

/// What is at a path, links followed; `None` if nothing is.
async fn stat_if_there(client: &Client, path: &Remote) -> Outcome<Option<Attr>> {
    match client.stat(path.bytes()).await {
        Ok(attr) => Ok(Some(attr)),
        Err(error) if error.kind() == Kind::NotFound => Ok(None),
        Err(error) => Err(Failure::from(error).context(path)),
    }
}

/// Where things that are copied, moved or linked to a path go, as cp(1) has it.
#[derive(Debug)]
enum Target {
    /// Into this folder, each under its own name.
    Into(Remote),
    /// To exactly this path.
    As(Remote),
}

impl Target {
    /// By what is at `path` and by how many things go there.
    async fn find(client: &Client, path: Remote, sources: usize) -> Outcome<Target> {
        let there = stat_if_there(client, &path).await?;
        match there.map(|attr| attr.kind) {
            Some(FileKind::Directory) => Ok(Target::Into(path)),
            None if sources == 1 && !path.names_folder() => Ok(Target::As(path)),
            Some(_) if sources == 1 && !path.names_folder() => Ok(Target::As(path)),
            None => {
                let hint = format!("make it first: torchfs mkdir -p {path}");
                Err(Failure::new(Exit::NotFound, format!("no folder {path}")).hint(hint))
            }
            Some(_) => Err(Failure::new(Exit::WrongType, format!("{path} is not a folder"))),
        }
    }

    /// The path for a thing of this name.
    fn path(&self, name: Option<&std::ffi::OsStr>) -> Outcome<Remote> {
        match (self, name) {
            (Target::As(path), _) => Ok(path.clone()),
            (Target::Into(folder), Some(name)) => Ok(folder.join(name.as_encoded_bytes())),
            (Target::Into(folder), None) => {
                Err(Failure::usage(format!("what goes into {folder} has no name: give the whole target path")))
            }
        }
    }
}

/// Splits the arguments of put, get and mv: all but the last, and the last.
fn sources_and_target<T: Clone>(paths: &[T]) -> Outcome<(&[T], T)> {
    match paths.split_last() {
        Some((target, sources)) if !sources.is_empty() => Ok((sources, target.clone())),
        _ => Err(Failure::usage("a source and a target are needed")),
    }
}

/// What put and get do with a symbolic link that is named as a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Links {
    /// What it leads to is copied, and must be a file.
    Followed,
    /// It is copied as a link, and folders with everything in them.
    Kept,
}

impl Links {
    /// As cp(1) does with and without `-r`.
    fn for_recursive(recursive: bool) -> Self {
        if recursive { Links::Kept } else { Links::Followed }
    }
}

/// A folder was given where `-r` is needed for one.
fn needs_recursive() -> Failure {
    Failure::new(Exit::WrongType, "is a folder").hint("add -r to copy it with everything in it")
}
