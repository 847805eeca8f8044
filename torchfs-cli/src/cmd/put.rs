//! `torchfs put`: files, folders and stdin into TorchFS.

use super::{Target, connect, needs_recursive, sources_and_target};
use crate::args::{Global, Put, Remote};
use crate::exit::{Exit, Failure, Outcome, Tally};
use crate::output::printable;
use crate::progress::Bar;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{self, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use torchfs_core::client::{Progress, TreeOptions, TreeReport};
use torchfs_core::{Client, IoContext};

/// Of a file that comes from stdin.
const STDIN_MODE: u32 = 0o644;

pub async fn run(global: &Global, args: Put) -> Outcome {
    let (sources, target) = sources_and_target(&args.paths)?;
    let target = Remote::parse(&target).map_err(Failure::usage)?;
    let client = connect(global).await?;
    let target = Target::find(&client, target, sources.len()).await?;
    let options = TreeOptions::default();
    let bar = Bar::start("put", options.progress.clone(), global);
    let mut tally = Tally::new("put");
    for source in sources {
        let copied = match source == "-" {
            true => from_stdin(&client, &target, &options).await,
            false => one(&client, source, &target, args.recursive, &options).await,
        };
        tally.note(copied)?;
    }
    drop(bar);
    tally.finish()
}

async fn from_stdin(client: &Client, target: &Target, options: &TreeOptions) -> Outcome {
    match target {
        Target::As(path) => {
            let stdin = Counted { reader: tokio::io::stdin(), progress: options.progress.clone() };
            let stored = client.put_reader(stdin, path.bytes(), STDIN_MODE).await;
            stored.map(|_| ()).map_err(|error| Failure::from(error).context(path))
        }
        Target::Into(folder) => {
            let message = "is a folder, and stdin has no name in it".to_owned();
            Err(Failure::new(Exit::WrongType, message).context(folder))
        }
    }
}

async fn one(client: &Client, source: &OsStr, target: &Target, recursive: bool, options: &TreeOptions) -> Outcome {
    let shown = printable(source.as_bytes());
    let in_source = |failure: Failure| failure.context(&shown);
    let source = local_source(source, recursive).map_err(in_source)?;
    let name = name_of(&source.named);
    let target = target.path(name.as_deref())?;
    let copied = client.put_tree(&source.content, target.bytes(), options.clone()).await;
    let report = copied.map_err(|error| Failure::from(error).context(format!("{shown} to {target}")))?;
    report_tree("put", report)
}

/// A file or folder on this machine.
struct Source {
    /// As it was named, which gives the name of the copy.
    named: PathBuf,
    /// What is copied.
    content: PathBuf,
}

/// As cp does: a link is copied as a link by -r, and followed otherwise.
fn local_source(source: &OsStr, recursive: bool) -> Outcome<Source> {
    let named = PathBuf::from(source);
    let attributes = std::fs::symlink_metadata(&named).io(|| "on this machine")?;
    if recursive {
        return Ok(Source { content: named.clone(), named });
    }
    let content = if attributes.is_symlink() { named.canonicalize().io(|| "on this machine")? } else { named.clone() };
    if content.is_dir() {
        return Err(needs_recursive(&printable(source.as_bytes())));
    }
    Ok(Source { named, content })
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

/// Says what could not be copied; the first of it gives the exit code.
pub fn report_tree(verb: &'static str, report: TreeReport) -> Outcome {
    let mut tally = Tally::new(verb);
    for (path, error) in report.failed {
        tally.note(Err(Failure::from(error).context(printable(path.as_os_str().as_bytes()))))?;
    }
    tally.finish()
}
