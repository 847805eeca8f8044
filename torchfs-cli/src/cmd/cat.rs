//! `torchfs cat`, and writing a file to stdout for `get`.

use super::{check_stdin, connect};
use crate::args::{Cat, Global, Remote};
use crate::exit::{Exit, Failure, Outcome, Tally};
use crate::output;
use futures::{StreamExt, stream};
use std::ffi::OsStr;
use std::io::{self, Write};
use torchfs_core::Client;
use torchfs_core::meta::FileKind;

/// Bytes asked for at a time: one full shard.
const CHUNK_BYTES: u64 = torchfs_core::settings::SHARD_BYTES_MAX as u64;

/// Chunks under way at a time: a default stripe, so that all its nodes work.
const CHUNKS: usize = 4;

pub async fn run(global: &Global, args: Cat) -> Outcome {
    let client = if args.paths.iter().all(|path| path == "-") { None } else { Some(connect(global).await?) };
    let mut tally = Tally::new("cat");
    for path in &args.paths {
        let written = match &client {
            Some(client) if path != "-" => one(client, path).await,
            _ => stdin().await,
        };
        tally.note(written)?;
    }
    tally.finish()
}

async fn one(client: &Client, path: &OsStr) -> Outcome {
    let path = Remote::parse(path).map_err(Failure::usage)?;
    to_stdout(client, &path).await.map_err(|failure| failure.context(&path))
}

/// Copies stdin to stdout.
async fn stdin() -> Outcome {
    check_stdin()?;
    let copy = || -> io::Result<()> {
        let mut out = output::stdout();
        io::copy(&mut io::stdin().lock(), &mut out)?;
        out.flush()
    };
    let copied = tokio::task::spawn_blocking(copy).await;
    Ok(copied.unwrap_or_else(|error| Err(io::Error::other(error)))?)
}

/// Writes a file's content to stdout as it arrives. On an error, what was written is right as far as it goes.
pub async fn to_stdout(client: &Client, path: &Remote) -> Outcome {
    let file = client.open(path.bytes()).await?;
    if file.attr().kind == FileKind::Directory {
        return Err(Failure::new(Exit::WrongType, "is a folder"));
    }
    let size = file.attr().size;
    let offsets = (0..size.div_ceil(CHUNK_BYTES)).map(|chunk| chunk * CHUNK_BYTES);
    let reads = offsets.map(|offset| file.read_at(offset, CHUNK_BYTES.min(size - offset) as usize));
    let mut chunks = stream::iter(reads).buffered(CHUNKS);
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk?;
        // Off the runtime, since whoever reads the pipe may be slow.
        let write = move || io::stdout().lock().write_all(&chunk);
        tokio::task::spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    }
    Ok(io::stdout().lock().flush()?)
}
