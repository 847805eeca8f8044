//! `torchfs warm`: has a mount bring files into its cache, shows how far it is, and says what is there in the end.

use super::check_stdin;
use super::control::{Place, ask};
use crate::args::{Global, Warm};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, count_text, counted, json, shell_quoted, size_text};
use crate::progress::Bar;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;
use torchfs_core::cache::Warmth;
use torchfs_core::client::Progress;
use torchfs_fuse::{ControlAnswer as Answer, ControlRequest as Request};

pub async fn run(global: &Global, args: Warm) -> Outcome {
    let shown = args.path.display().to_string();
    let asked = match &args.schedule {
        Some(order) => format!("{shown} --schedule {}", order.display()),
        None => shown.clone(),
    };
    if args.schedule.as_deref() == Some(Path::new("-")) {
        check_stdin().map_err(|failure| failure.context(&asked))?;
    }
    let place = Place::find(&args.path).await?;
    let (path, mountpoint) = (place.path.clone(), place.mountpoint.clone());
    let request = if args.check { Request::Check { path } } else { Request::Warm { path } };
    let began = Instant::now();
    let warmth = bring(global, place, request, args.schedule).await.map_err(|failure| failure.context(&asked))?;
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
        let entries = counted(warmth.unknown, "entry of the order leads", "entries of the order lead");
        note!("{entries} to no file; the first is {first}");
    }
    if args.check { checked(&warmth) } else { finished(&shown, &mountpoint, &warmth) }
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
    progress.files.store(now.cached_files.saturating_sub(start.cached_files), Relaxed);
    progress.bytes.store(now.cached_bytes.saturating_sub(start.cached_bytes), Relaxed);
    progress.files_total.store((now.files - start.cached_files).saturating_sub(now.left_out_files), Relaxed);
    progress.bytes_total.store((now.bytes - start.cached_bytes).saturating_sub(now.left_out_bytes), Relaxed);
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
    let is_whole = warmth.is_complete() && warmth.unknown == 0;
    if is_whole { Ok(()) } else { Err(Failure::silent(Exit::Failed)) }
}

/// What is wrong if not everything is there that was to be.
pub fn finished(path: &str, mountpoint: &Path, warmth: &Warmth) -> Outcome {
    if warmth.failed_files > 0 {
        let why = warmth.first_failure.as_deref().unwrap_or("they changed, or were removed from the cache meanwhile");
        let message = format!("{} could not be fetched: {why}", counted(warmth.failed_files, "file", "files"));
        let hint = "`torchfs status` shows which nodes are down; run it again, what is there stays";
        return Err(Failure::new(Exit::Unavailable, message).hint(hint).context(path));
    }
    if warmth.left_out_files > 0 {
        return Err(no_room(mountpoint, warmth).context(path));
    }
    if warmth.is_complete() {
        return Ok(());
    }
    Err(Failure::new(Exit::Failed, "some of the files that were there have left for others meanwhile")
        .hint("run it again, what is there stays")
        .context(path))
}

/// What has no room, who has it, and what can be done about it.
fn no_room(mountpoint: &Path, warmth: &Warmth) -> Failure {
    let message = format!(
        "{} of {} were left out: the cache has no room for {}",
        size_text(warmth.left_out_bytes),
        size_text(warmth.bytes),
        counted(warmth.left_out_files, "file", "files"),
    );
    let limit = size_text(warmth.limit_bytes);
    // All that is left out is longer than what is free of the room, unless somebody else has it.
    let others_bytes = warmth.room_bytes.saturating_sub(warmth.cached_bytes);
    let has_others = others_bytes >= warmth.left_out_bytes / warmth.left_out_files.max(1);
    let hint = if has_others {
        format!(
            "of {} that these files could have, {} are needed by an announced order or in use: \
             `: > {}/.torchfs/schedule` forgets the order",
            size_text(warmth.room_bytes),
            size_text(others_bytes),
            shell_quoted(mountpoint.as_os_str().as_bytes()),
        )
    } else if warmth.room_bytes < warmth.limit_bytes {
        format!(
            "it may hold {limit}, of which {} are pinned (`torchfs pin --list`), or its disk has no more room",
            size_text(warmth.limit_bytes - warmth.room_bytes)
        )
    } else {
        format!("it may hold {limit}: `torchfs mount --cache-size SIZE` (or -o cache_size=SIZE) raises that")
    };
    Failure::new(Exit::NoSpace, message).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const WARMTH: Warmth = Warmth {
        files: 300,
        bytes: 300 * 3277,
        cached_files: 1,
        cached_bytes: 3277,
        left_out_files: 299,
        left_out_bytes: 299 * 3277,
        failed_files: 0,
        first_failure: None,
        room_bytes: 8 * MIB,
        limit_bytes: 8 * MIB,
        unknown: 0,
        first_unknown: None,
    };

    fn said(warmth: &Warmth) -> String {
        let failure = finished("/mnt/data", Path::new("/mnt"), warmth).expect_err("not all is there");
        assert_eq!(failure.exit, Exit::NoSpace);
        failure.lines("warm").join("\n")
    }

    #[test]
    fn it_is_said_who_has_the_room() {
        let text = said(&WARMTH);
        assert!(text.contains("957 KiB of 960 KiB were left out: the cache has no room for 299 files"), "{text}");
        assert!(text.contains("of 8.00 MiB that these files could have, 8.00 MiB are needed by an"), "{text}");
        assert!(text.contains("`: > /mnt/.torchfs/schedule` forgets the order"), "{text}");

        let (cached_bytes, left_out_bytes) = (8 * MIB - 3000, 2 * MIB + 3000);
        let full = Warmth { bytes: 10 * MIB, cached_files: 0, cached_bytes, left_out_bytes, ..WARMTH };
        let text = said(&full);
        assert!(text.contains("2.00 MiB of 10.0 MiB were left out") && text.contains("--cache-size SIZE"), "{text}");
        assert!(!text.contains("announced"), "{text}");
        let text = said(&Warmth { limit_bytes: 11 * MIB, ..full });
        assert!(text.contains("may hold 11.0 MiB, of which 3.00 MiB are pinned"), "{text}");
    }
}
