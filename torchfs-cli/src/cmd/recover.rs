//! `torchfs recover`: what was written to a mount and could not be stored.

use super::connect;
use super::mount::default_cache_root;
use crate::args::{Global, Recover, RecoverAction, Remote};
use crate::exit::{Exit, Failure, Outcome, Tally};
use crate::output::{self, json, printable, short_time_text, size_text, table, time_text};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use torchfs_core::client::{SetAside, set_aside};
use torchfs_core::{Error, IoContext};

pub async fn run(global: &Global, args: Recover) -> Outcome {
    let found = find(args.cache_dir)?;
    match args.action.unwrap_or(RecoverAction::List { json: false }) {
        RecoverAction::List { json } => list(&found, json),
        RecoverAction::Put { id, path } => put(global, one(found, &id)?, path.as_ref()).await,
        RecoverAction::Drop { ids } => drop_all(&found, &ids),
    }
}

/// What is set aside in one cache folder, or in all that mounts of this user have by default.
fn find(cache_dir: Option<PathBuf>) -> Outcome<Vec<SetAside>> {
    if let Some(dir) = cache_dir {
        std::fs::read_dir(&dir).io(|| format!("cache folder {}", dir.display()))?;
        return Ok(set_aside(&dir)?);
    }
    let root = default_cache_root()?;
    let what = || format!("list {}", root.display());
    let folders = match std::fs::read_dir(&root) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        folders => folders.io(what)?,
    };
    let mut found = Vec::new();
    for folder in folders {
        found.extend(set_aside(&folder.io(what)?.path())?);
    }
    found.sort_by_key(SetAside::at);
    Ok(found)
}

fn one(found: Vec<SetAside>, id: &str) -> Outcome<SetAside> {
    let unknown = || {
        let failure = Failure::new(Exit::NotFound, "nothing of this id is set aside").context(id);
        failure.hint("`torchfs recover` lists what is; --cache-dir names another cache folder")
    };
    found.into_iter().find(|aside| aside.id() == id).ok_or_else(unknown)
}

fn list(found: &[SetAside], as_json: bool) -> Outcome {
    let mut out = output::stdout();
    if as_json {
        json::write(&mut out, &found.iter().map(Line::new).collect::<Vec<_>>())?;
    } else if found.is_empty() {
        writeln!(out, "nothing is set aside")?;
    } else {
        let mut rows = table(&["id", "when", "size", "written", "file", "why it was not stored"], "<<>><<");
        for aside in found {
            let (size, written) = (size_text(aside.size()), size_text(aside.written_bytes()));
            let why = printable(aside.why().as_bytes());
            rows.add_row([aside.id().to_owned(), short_time_text(aside.at()), size, written, file(aside), why]);
        }
        output::write_table(&mut out, &rows)?;
    }
    Ok(out.flush()?)
}

/// The file that it was written to, for people.
fn file(aside: &SetAside) -> String {
    match aside.name() {
        Some((_, name)) => format!("{} (inode {})", printable(name.as_bytes()), aside.ino()),
        None => format!("inode {}", aside.ino()),
    }
}

/// What a script sees of it.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    at: String,
    ino: u64,
    /// A name that the file had, and the inode of the folder in which it had it.
    name: Option<String>,
    folder: Option<u64>,
    /// The version that it was written over.
    version: u64,
    size: u64,
    written_bytes: u64,
    why: &'a str,
}

impl<'a> Line<'a> {
    fn new(aside: &'a SetAside) -> Self {
        let (folder, name) = aside.name().map(|(folder, name)| (folder.0, name.to_string())).unzip();
        Line {
            id: aside.id(),
            at: time_text(aside.at()),
            ino: aside.ino().0,
            name,
            folder,
            version: aside.version().0,
            size: aside.size(),
            written_bytes: aside.written_bytes(),
            why: aside.why(),
        }
    }
}

async fn put(global: &Global, aside: SetAside, path: Option<&Remote>) -> Outcome {
    let client = connect(global).await?;
    let shown = path.map_or_else(|| file(&aside), ToString::to_string);
    let stored = client.recover(&aside, path.map(Remote::bytes)).await;
    stored.map_err(|error| not_stored(error, path).context(shown))?;
    Ok(aside.remove()?)
}

fn not_stored(error: Error, path: Option<&Remote>) -> Failure {
    let gone = matches!(error.kind(), torchfs_core::Kind::NotFound) && path.is_none();
    let failure = Failure::from(error);
    if gone { failure.hint("store it as a file of its own: torchfs recover put ID /PATH") } else { failure }
}

fn drop_all(found: &[SetAside], ids: &[String]) -> Outcome {
    let mut tally = Tally::new("recover");
    for id in ids {
        tally.note(one(found.to_vec(), id).and_then(|aside| Ok(aside.remove()?)))?;
    }
    tally.finish()
}

/// The failure to tell when a mount ends and a process of it has set something aside.
///
/// # Errors
/// That failure.
pub fn check_nothing_is_left(cache_dir: &Path, pid: u32) -> Outcome {
    let left = set_aside(cache_dir)?.iter().filter(|aside| aside.pid() == pid).count();
    if left == 0 {
        return Ok(());
    }
    let files = if left == 1 { "1 file".to_owned() } else { format!("{left} files") };
    let message = format!("what was written to {files} could not be stored and is kept in {}", cache_dir.display());
    let hint = format!("`torchfs recover --cache-dir {}` lists it, and `put` stores it", cache_dir.display());
    Err(Failure::new(Exit::Failed, message).hint(hint))
}
