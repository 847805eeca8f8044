//! `torchfs trace`: recordings of what programs do on a mount.

mod record;
mod replay;
mod summary;

use super::blocking;
use crate::args::{Global, Trace, TraceAction};
use crate::exit::{Failure, Outcome};
use crate::signal::StopSignals;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use torchfs_core::{IoContext, Kind, Result};

pub async fn run(global: &Global, args: Trace, stop: &mut StopSignals) -> Outcome {
    match args.action {
        TraceAction::Record(args) => record::run(global, args, stop).await,
        TraceAction::Summary(args) => stop.or_interrupted(summary::run(args)).await,
        TraceAction::Replay(args) => replay::run(global, args, stop).await,
    }
}

/// Reads a recording, which takes the time that the file is long.
fn parse<T>(path: &Path, read: impl FnOnce(BufReader<File>) -> Result<T>) -> Outcome<T> {
    let parsed = File::open(path).io(|| "open it").and_then(|file| read(BufReader::with_capacity(1 << 20, file)));
    parsed.map_err(|error| {
        let (kind, failure) = (error.kind(), Failure::from(error).without_hint().context(path.display()));
        match kind {
            Kind::Corrupt => failure.hint("what is before the damage is still readable: cut the file there"),
            Kind::NotFound => failure.hint("`torchfs trace record MOUNTPOINT FILE` makes one"),
            _ => failure,
        }
    })
}
