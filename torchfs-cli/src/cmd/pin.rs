//! `torchfs pin` and `torchfs unpin`: files that stay in the cache of a mount.

use super::control::{Place, ask};
use super::stats::only_mount;
use super::warm::{bring, finished, write_text};
use crate::args::{Global, Pin, Unpin};
use crate::exit::{Exit, Failure, Outcome, Tally};
use crate::output::{self, count_text, json, printable, size_text, table};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;
use torchfs_core::cache::Warmth;
use torchfs_fuse::{ControlAnswer as Answer, ControlRequest as Request};

pub async fn run(global: &Global, args: Pin) -> Outcome {
    if args.list {
        return list(args).await;
    }
    let (mut tally, mut out, mut pinned) = (Tally::new("pin"), output::stdout(), Vec::new());
    for path in &args.paths {
        let (began, shown) = (Instant::now(), path.display().to_string());
        let outcome = match pin(global, path).await {
            Ok((mountpoint, warmth)) => {
                if !args.json {
                    write_text(&mut out, &shown, &warmth, Some(began.elapsed().as_secs_f64()))?;
                }
                let outcome = finished(&shown, &mountpoint, &warmth);
                pinned.push(warmth);
                outcome
            }
            Err(failure) => Err(failure.context(shown)),
        };
        tally.note(outcome)?;
    }
    if args.json {
        json::write(&mut out, &pinned)?;
    }
    out.flush()?;
    tally.finish()
}

/// Pins a path; the mount that it is in, and how much is there.
async fn pin(global: &Global, path: &Path) -> Outcome<(PathBuf, Warmth)> {
    let place = Place::find(path).await?;
    let request = Request::Pin { path: place.path.clone() };
    match bring(global, place.clone(), request, None).await {
        Err(refused) if refused.exit == Exit::NoSpace => Err(too_much(place, refused).await),
        done => Ok((place.mountpoint, done?)),
    }
}

/// How much was to be pinned and how much room there is, as people read it.
async fn too_much(place: Place, refused: Failure) -> Failure {
    let asked = ask(place.mountpoint, Request::Check { path: place.path }, None, |_| {}).await;
    match asked {
        Ok(Answer::Done(warmth)) if warmth.bytes > warmth.room_bytes => {
            let (bytes, room) = (size_text(warmth.bytes), size_text(warmth.room_bytes));
            let hint = "`torchfs pin --list` shows what is pinned; `torchfs mount --cache-size SIZE` sets the limit";
            Failure::new(
                Exit::NoSpace,
                format!("{bytes} are there, and the cache has room for {room} that is not pinned"),
            )
            .hint(hint)
        }
        _ => refused.without_hint(),
    }
}

async fn list(args: Pin) -> Outcome {
    let mountpoint = match args.paths.as_slice() {
        [] => only_mount()?,
        [path] => Place::find(path).await?.mountpoint,
        _ => return Err(Failure::usage("the pins of one mount are listed at a time")),
    };
    let Answer::Pinned { pins } = ask(mountpoint.clone(), Request::Pins, None, |_| {}).await? else {
        return Err(Failure::new(Exit::WrongPeer, "the mount is of another version of torchfs"));
    };
    let mut out = output::stdout();
    if args.json {
        json::write(&mut out, &pins)?;
    } else {
        let mut rows = table(&["pinned", "files", "size", "in the cache"], "<>>>");
        for pin in &pins {
            let path = below(&mountpoint, &pin.path);
            let warmth = &pin.warmth;
            rows.add_row([
                printable(path.as_os_str().as_encoded_bytes()),
                count_text(warmth.files),
                size_text(warmth.bytes),
                size_text(warmth.cached_bytes),
            ]);
        }
        output::write_table(&mut out, &rows)?;
    }
    Ok(out.flush()?)
}

/// A path in a mount as programs name it.
fn below(mountpoint: &Path, path: &str) -> PathBuf {
    mountpoint.join(path.trim_start_matches('/'))
}

pub async fn unpin(args: Unpin) -> Outcome {
    let mut tally = Tally::new("unpin");
    for path in &args.paths {
        tally.note(unpin_one(path).await.map_err(|failure| failure.context(path.display())))?;
    }
    tally.finish()
}

async fn unpin_one(path: &Path) -> Outcome {
    let place = Place::find_gone(path).await?;
    let asked = ask(place.mountpoint, Request::Unpin { path: place.path }, None, |_| {}).await;
    asked.map(drop).map_err(|failure| match failure.exit {
        Exit::NotFound => failure.hint("`torchfs pin --list` shows what is pinned"),
        _ => failure,
    })
}
