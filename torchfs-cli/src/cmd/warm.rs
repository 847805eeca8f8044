//! `torchfs warm`: has a mount bring files into its cache, shows how far it is, and says what is there in the end.

use super::control::{Place, ask};
use crate::args::{Global, Warm};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, count_text, json, size_text};
use crate::progress::Bar;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use torchfs_core::cache::Warmth;
use torchfs_core::client::Progress;
use torchfs_fuse::{ControlAnswer as Answer, ControlRequest as Request};

pub async fn run(global: &Global, args: Warm) -> Outcome {
    let place = Place::find(&args.path).await?;
    let shown = args.path.display().to_string();
    let path = place.path.clone();
    let request = if args.check { Request::Check { path } } else { Request::Warm { path } };
    let began = Instant::now();
    let warmth = bring(global, place, request, args.schedule).await.map_err(|failure| failure.context(&shown))?;
    let mut out = output::stdout();
    if args.json {
        json::write(&mut out, &warmth)?;
    } else {
        let seconds = (!args.check).then(|| began.elapsed().as_secs_f64());
        write_text(&mut out, &shown, &warmth, seconds)?;
    }
    out.flush()?;
    if warmth.unknown > 0 && !global.quiet {
        let first = warmth.first_unknown.as_deref().unwrap_or_default();
        eprintln!("{} entries of the order lead to no file; the first is {first}", count_text(warmth.unknown));
    }
    if args.check { checked(&warmth) } else { finished(&shown, &warmth) }
}

/// Has a mount do what ends with files being in the cache, and shows how far it is.
///
/// # Errors
/// What the mount answers.
pub async fn bring(global: &Global, place: Place, request: Request, order: Option<PathBuf>) -> Outcome<Warmth> {
    let (progress, mut start) = (Arc::<Progress>::default(), None);
    let bar = Bar::start("warming", progress.clone(), global);
    let said = move |answer: &Answer| {
        if let Answer::Fetching(warmth) = answer {
            show_progress(&progress, start.get_or_insert_with(|| warmth.clone()), warmth);
        }
    };
    let answer = ask(place.mountpoint, request, order, said).await;
    drop(bar);
    match answer? {
        Answer::Done(warmth) => Ok(warmth),
        _ => Err(Failure::new(Exit::WrongPeer, "the mount is of another version of torchfs")),
    }
}

/// What was there when it began is not counted: it would spoil the rate.
fn show_progress(progress: &Progress, start: &Warmth, now: &Warmth) {
    progress.files_total.store((now.files - start.cached_files).saturating_sub(now.left_out_files), Relaxed);
    progress.bytes_total.store((now.bytes - start.cached_bytes).saturating_sub(now.left_out_bytes), Relaxed);
    progress.files.store(now.cached_files.saturating_sub(start.cached_files), Relaxed);
    progress.bytes.store(now.cached_bytes.saturating_sub(start.cached_bytes), Relaxed);
}

/// Says how much is there.
pub fn write_text(out: &mut impl Write, path: &str, warmth: &Warmth, seconds: Option<f64>) -> io::Result<()> {
    let took = seconds.map(|seconds| format!(", after {seconds:.1} s")).unwrap_or_default();
    writeln!(
        out,
        "{path}: {} of {} files ({} of {}) are in the cache{took}",
        count_text(warmth.cached_files),
        count_text(warmth.files),
        size_text(warmth.cached_bytes),
        size_text(warmth.bytes),
    )
}

fn checked(warmth: &Warmth) -> Outcome {
    if warmth.is_complete() { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

/// What is wrong if not everything is there that was to be.
pub fn finished(path: &str, warmth: &Warmth) -> Outcome {
    if warmth.failed_files > 0 {
        let why = warmth.first_failure.as_deref().unwrap_or("they changed, or were removed from the cache meanwhile");
        let message = format!("{} files could not be fetched: {why}", count_text(warmth.failed_files));
        let hint = "`torchfs status` shows which nodes are down; run it again, what is there stays";
        return Err(Failure::new(Exit::Unavailable, message).hint(hint).context(path));
    }
    if warmth.left_out_files > 0 {
        return Err(no_room(warmth).context(path));
    }
    if warmth.is_complete() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "not all files were fetched")
        .hint("run it again, what is there stays")
        .context(path))
}

/// What of it fits, and what can be done about the rest.
fn no_room(warmth: &Warmth) -> Failure {
    let message = format!(
        "{} are asked for and the cache has room for {}: {} files ({}) were left out",
        size_text(warmth.bytes),
        size_text(warmth.room_bytes),
        count_text(warmth.left_out_files),
        size_text(warmth.left_out_bytes),
    );
    let hint = match warmth.room_bytes < warmth.limit_bytes {
        true => format!(
            "the cache may hold {}; the rest is pinned, or its disk has no more room",
            size_text(warmth.limit_bytes)
        ),
        false if warmth.bytes > warmth.limit_bytes => {
            format!(
                "`torchfs mount --cache-size SIZE` (or -o cache_size=SIZE) raises the limit, which is {}",
                size_text(warmth.limit_bytes)
            )
        }
        false => "the rest of the cache is in use, or needed by an announced order".to_owned(),
    };
    Failure::new(Exit::NoSpace, message).hint(hint)
}
