//! `torchfs trace record`: copies what `.torchfs/trace` of a mount gives into a file, until it is told to stop.

use super::blocking;
use crate::args::{Global, TraceRecord};
use crate::cmd::control::failed;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{printable, size_text};
use crate::signal::StopSignals;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use torchfs_core::{IoContext, Kind};

/// What is read at once.
const BUFFER_BYTES: usize = 256 * 1024;

pub async fn run(global: &Global, args: TraceRecord, stop: &mut StopSignals) -> Outcome {
    let began = Instant::now();
    let (mountpoint, path) = (args.mountpoint.clone(), args.file.clone());
    let (source, target) = blocking(move || open(&mountpoint, &path)).await?;
    let shown = printable(args.file.as_os_str().as_bytes());
    if !global.quiet {
        note!("recording into {shown}; Ctrl-C stops it");
    }
    let is_stopping = Arc::new(AtomicBool::new(false));
    let mut copying = tokio::spawn(blocking({
        let is_stopping = is_stopping.clone();
        move || copy(source, target, &is_stopping)
    }));
    let until = async {
        match args.length {
            Some(length) => tokio::time::sleep(length.0).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // The mount ended, or something went wrong.
        copied = &mut copying => return finish(global, &shown, copied, began),
        _ = stop.before(until) => is_stopping.store(true, Ordering::Release),
    }
    let Some(copied) = stop.before(copying).await else { return Err(Failure::silent(Exit::Interrupted)) };
    finish(global, &shown, copied, began)
}

fn finish(
    global: &Global,
    shown: &str,
    copied: Result<Outcome<u64>, tokio::task::JoinError>,
    began: Instant,
) -> Outcome {
    let bytes = copied.unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error.to_string())));
    let bytes = bytes.map_err(|failure| failure.context(shown))?;
    if !global.quiet {
        let seconds = began.elapsed().as_secs();
        note!("recorded {seconds} s, {}; `torchfs trace summary {shown}` sums it up", size_text(bytes));
    }
    Ok(())
}

/// The mount's trace, and the new file for it.
fn open(mountpoint: &Path, path: &Path) -> Outcome<(File, File)> {
    let target = File::options().write(true).create_new(true).open(path).io(|| "make the file");
    let target = target.map_err(|error| match error.kind() {
        Kind::Exists => Failure::new(Exit::Exists, "is there already")
            .hint("give another name, or remove it first: a recording replaces nothing")
            .context(path.display()),
        _ => Failure::from(error).context(path.display()),
    })?;
    open_mount(mountpoint, &target).map(|source| (source, target)).inspect_err(|_| {
        // It was made just now, and is empty.
        let _ = fs::remove_file(path);
    })
}

fn open_mount(mountpoint: &Path, target: &File) -> Outcome<File> {
    let shown = mountpoint.display();
    let source = File::open(mountpoint.join(".torchfs/trace")).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            Failure::new(Exit::Exists, "is being recorded already").hint("stop that recording first")
        }
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            let hint = "give the folder that `torchfs mount` was given; a mount of an older torchfs has no traces";
            Failure::new(Exit::NotFound, "is not the mountpoint of a TorchFS").hint(hint)
        }
        _ => failed(mountpoint, "open its trace", error),
    });
    let source = source.map_err(|failure| failure.context(&shown))?;
    let device = |file: &File| Ok::<u64, Failure>(file.metadata().io(|| shown.to_string())?.dev());
    if device(&source)? == device(target)? {
        let message = "the file is on the mount that is recorded, and would record itself";
        return Err(Failure::usage(message).hint("give one outside the mount"));
    }
    Ok(source)
}

/// Copies until the end, or to what has happened when it is told to stop; how many bytes.
fn copy(mut source: File, mut target: File, is_stopping: &AtomicBool) -> Outcome<u64> {
    let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0);
    loop {
        let is_last = is_stopping.load(Ordering::Acquire);
        let read = source.read(&mut buffer).io(|| "read the mount's trace")?;
        target.write_all(&buffer[..read]).io(|| "write")?;
        bytes += read as u64;
        // A buffer that is full may not be all there is.
        if read == 0 || (is_last && read < BUFFER_BYTES) {
            target.sync_all().io(|| "write")?;
            return Ok(bytes);
        }
    }
}
