//! `torchfs get`: files and folders out of TorchFS.

use super::cat::to_stdout;
use super::put::report_tree;
use super::{Links, connect, needs_recursive, sources_and_target};
use crate::args::{Get, Global, Remote};
use crate::exit::{Exit, Failure, Outcome, Tally};
use crate::progress::Bar;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use torchfs_core::client::TreeOptions;
use torchfs_core::meta::FileKind;
use torchfs_core::{Client, IoContext};

/// Links followed before it is taken for a loop, as Linux does.
const LINKS_MAX: usize = 40;

pub async fn run(global: &Global, args: Get) -> Outcome {
    let (sources, target) = sources_and_target(&args.paths)?;
    let sources: Result<Vec<Remote>, String> = sources.iter().map(|source| Remote::parse(source)).collect();
    let sources = sources.map_err(Failure::usage)?;
    let client = connect(global).await?;
    let mut tally = Tally::new("get");
    if target == "-" {
        for source in &sources {
            tally.note(to_stdout(&client, source).await.map_err(|failure| failure.context(source)))?;
        }
        return tally.finish();
    }
    let target = LocalTarget::find(&target, sources.len())?;
    let (links, options) = (Links::for_recursive(args.recursive), TreeOptions::default());
    let bar = Bar::start("get", options.progress.clone(), global);
    for source in &sources {
        let copied = one(&client, source, &target, links, &options).await;
        tally.note(copied.map_err(|failure| failure.context(source)))?;
    }
    drop(bar);
    tally.finish()
}

async fn one(client: &Client, source: &Remote, target: &LocalTarget, links: Links, options: &TreeOptions) -> Outcome {
    if let LocalTarget::Stream(path) = target {
        return to_stream(client, source, path).await;
    }
    let target = target.path(source)?;
    let content = match links {
        Links::Kept => source.clone(),
        Links::Followed => followed_file(client, source).await?,
    };
    let report = client.get_tree(content.bytes(), &target, options.clone()).await?;
    report_tree("get", report, |path| remote_source(source, path.strip_prefix(&target).ok()))
}

/// Writes a file's content into a pipe or device that is there.
async fn to_stream(client: &Client, source: &Remote, target: &Path) -> Outcome {
    let shown = || format!("write to {}", target.display());
    let mut stream = tokio::fs::OpenOptions::new().write(true).open(target).await.io(shown)?;
    Ok(client.get_writer(source.bytes(), &mut stream).await.map(drop)?)
}

/// Where what is at a place below the copy comes from.
fn remote_source(source: &Remote, below: Option<&Path>) -> PathBuf {
    let source = Path::new(OsStr::from_bytes(source.bytes()));
    match below {
        Some(below) if below != Path::new("") => source.join(below),
        _ => source.to_owned(),
    }
}

/// Where a path leads, which must not be a folder.
async fn followed_file(client: &Client, path: &Remote) -> Outcome<Remote> {
    let mut path = path.clone();
    for _ in 0..LINKS_MAX {
        let attr = client.lstat(path.bytes()).await?;
        match attr.kind {
            FileKind::Directory => return Err(needs_recursive()),
            FileKind::Symlink => {}
            _ => return Ok(path),
        }
        let target = client.meta().read_link(attr.ino).await?;
        path = if target.starts_with(b"/") { Remote::from_bytes(target) } else { path.parent().join(&target) };
    }
    Err(Failure::new(Exit::Failed, "too many symbolic links"))
}

/// Where things go on this machine, as cp(1) has it.
#[derive(Debug)]
enum LocalTarget {
    Into(PathBuf),
    As(PathBuf),
    /// Something that takes bytes and must stay what it is: a pipe, a device.
    Stream(PathBuf),
}

impl LocalTarget {
    fn find(target: &OsStr, sources: usize) -> Outcome<LocalTarget> {
        let path = PathBuf::from(target);
        let names_folder = target.as_bytes().ends_with(b"/");
        if path.is_dir() {
            return Ok(LocalTarget::Into(path));
        }
        if sources == 1 && !names_folder {
            // Through links: that of a pipe in /dev/fd leads to no path.
            let is_stream = std::fs::metadata(&path).is_ok_and(|found| !found.is_file());
            return Ok(if is_stream { LocalTarget::Stream(path) } else { LocalTarget::As(path) });
        }
        let shown = path.display();
        if path.exists() {
            return Err(Failure::new(Exit::WrongType, format!("{shown} is not a folder")));
        }
        let failure = Failure::new(Exit::NotFound, format!("no folder {shown} on this machine"));
        Err(failure.hint(format!("make it first: mkdir -p {shown}")))
    }

    fn path(&self, source: &Remote) -> Outcome<PathBuf> {
        match (self, source.file_name()) {
            (LocalTarget::As(path) | LocalTarget::Stream(path), _) => Ok(path.clone()),
            (LocalTarget::Into(folder), Some(name)) => Ok(folder.join(name)),
            // `get -r / DIR` copies what is in the root into DIR.
            (LocalTarget::Into(folder), None) => Ok(folder.clone()),
        }
    }
}
