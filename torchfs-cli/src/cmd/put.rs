//! `torchfs put`: files, folders, and what is read from pipes and devices into TorchFS.

use super::{GIVE_BACK_DEADLINE, Links, Target, check_stdin, connect, needs_recursive, sources_and_target};
use crate::args::{Global, Put, Remote};
use crate::exit::{Exit, Failure, Outcome, Tally};
use crate::output::printable;
use crate::progress::Bar;
use crate::signal::StopSignals;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{self, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::OnceCell;
use torchfs_core::client::{Progress, TreeOptions, TreeReport};
use torchfs_core::{Client, IoContext};

/// Of a file that comes from stdin or another stream.
const STREAM_MODE: u32 = 0o644;

/// Copies until done or interrupted; then gives back what was stored and has no name.
pub async fn run(global: &Global, args: Put, stop: &mut StopSignals) -> Outcome {
    let connected = OnceCell::new();
    let outcome = stop.or_interrupted(put(global, args, &connected)).await;
    if let Some(client) = connected.get() {
        client.give_back(GIVE_BACK_DEADLINE).await;
    }
    outcome
}

async fn put(global: &Global, args: Put, connected: &OnceCell<Client>) -> Outcome {
    let (sources, target) = sources_and_target(&args.paths)?;
    let target = Remote::parse(&target).map_err(Failure::usage)?;
    let client = connected.get_or_try_init(|| connect(global)).await?.clone();
    let target = Target::find(&client, target, sources.len()).await?;
    let copy = Copy { client, target, links: Links::for_recursive(args.recursive), options: TreeOptions::default() };
    let bar = Bar::start("put", copy.options.progress.clone(), global);
    let mut tally = Tally::new("put");
    for source in sources {
        tally.note(if source == "-" { copy.stdin().await } else { copy.local(source).await })?;
    }
    drop(bar);
    tally.finish()
}

/// What is the same for all sources.
struct Copy {
    client: Client,
    target: Target,
    links: Links,
    options: TreeOptions,
}

impl Copy {
    async fn stdin(&self) -> Outcome {
        let path = match &self.target {
            Target::As(path) => path,
            Target::Into(folder) => {
                return Err(Failure::new(Exit::WrongType, "is a folder, and stdin has no name in it").context(folder));
            }
        };
        check_stdin()?;
        self.stream(tokio::io::stdin(), path).await
    }

    /// Stores what comes until the stream ends.
    async fn stream(&self, reader: impl AsyncRead + Unpin + Send, path: &Remote) -> Outcome {
        let counted = Counted { reader, progress: self.options.progress.clone() };
        let stored = self.client.put_reader(counted, path.bytes(), STREAM_MODE).await;
        stored.map(|_| ()).map_err(|error| Failure::from(error).context(path))
    }

    async fn local(&self, source: &OsStr) -> Outcome {
        let shown = printable(source.as_bytes());
        let source = local_source(source, self.links).map_err(|failure| failure.context(&shown))?;
        let target = self.target.path(name_of(&source.named).as_deref())?;
        if source.form == Form::Stream {
            let opened = tokio::fs::File::open(&source.named).await.io(|| "on this machine");
            return self.stream(opened.map_err(|error| Failure::from(error).context(&shown))?, &target).await;
        }
        let copied = self.client.put_tree(&source.content, target.bytes(), self.options.clone()).await;
        let report = copied.map_err(|error| Failure::from(error).context(format!("{shown} to {target}")))?;
        report_tree("put", report, Path::to_path_buf)
    }
}

/// A file or folder on this machine.
struct Source {
    /// As it was named, which gives the name of the copy.
    named: PathBuf,
    /// What is copied.
    content: PathBuf,
    form: Form,
}

/// How a source is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// As what it is.
    Tree,
    /// As a file with what is read from it: a pipe or a device that was named without `-r`.
    Stream,
}

fn local_source(source: &OsStr, links: Links) -> Outcome<Source> {
    let named = PathBuf::from(source);
    let is_link = std::fs::symlink_metadata(&named).io(|| "on this machine")?.is_symlink();
    if links == Links::Kept {
        return Ok(Source { content: named.clone(), named, form: Form::Tree });
    }
    // Not the path that a link shows: that of a pipe in /dev/fd is no path.
    let found = std::fs::metadata(&named).io(|| "on this machine")?;
    if found.is_dir() {
        return Err(needs_recursive());
    }
    if !found.is_file() {
        return Ok(Source { content: named.clone(), named, form: Form::Stream });
    }
    let content = if is_link { named.canonicalize().io(|| "on this machine")? } else { named.clone() };
    Ok(Source { named, content, form: Form::Tree })
}

/// The name of the copy; that of the folder itself for `.` and `..`.
fn name_of(path: &Path) -> Option<OsString> {
    let named = path.file_name().filter(|_| !path.ends_with("..")).map(OsStr::to_owned);
    named.or_else(|| path.canonicalize().ok().and_then(|path| path.file_name().map(OsStr::to_owned)))
}

/// Counts what is read through it.
struct Counted<R> {
    reader: R,
    progress: Arc<Progress>,
}

impl<R: AsyncRead + Unpin> AsyncRead for Counted<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.reader).poll_read(cx, buffer);
        let read = (buffer.filled().len() - before) as u64;
        self.progress.bytes_total.fetch_add(read, Relaxed);
        self.progress.bytes.fetch_add(read, Relaxed);
        polled
    }
}

/// Says what could not be copied, by what it was to be copied from; the first of it gives the exit code.
pub fn report_tree(verb: &'static str, report: TreeReport, source: impl Fn(&Path) -> PathBuf) -> Outcome {
    let mut tally = Tally::new(verb);
    for (path, error) in report.failed {
        tally.note(Err(Failure::from(error).context(printable(source(&path).as_os_str().as_bytes()))))?;
    }
    tally.finish()
}
