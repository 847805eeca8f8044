//! `torchfs trace replay`: opens and reads the same files again, and says how fast that was.

mod player;

use super::{blocking, parse};
use crate::args::{Global, Reads, TraceReplay};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, count_text, counted, json, micros_text, printable, size_text, table};
use crate::progress::Bar;
use crate::signal::StopSignals;
use player::Player;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use torchfs_core::IoContext;
use torchfs_core::client::Progress;
use torchfs_core::trace::{LeftOut, Plan};

/// So many files that failed are named.
const NAMED_MAX: usize = 5;

pub async fn run(global: &Global, args: TraceReplay, stop: &mut StopSignals) -> Outcome {
    let progress = Arc::new(Progress::default());
    let (bar, json) = (Bar::start("replay", progress.clone(), global), args.json);
    let trace = args.trace.clone();
    let reading = blocking(move || {
        let found = std::fs::metadata(&args.dir).io(|| args.dir.display().to_string())?;
        if !found.is_dir() {
            return Err(Failure::new(Exit::WrongType, "is not a folder").context(args.dir.display()));
        }
        let plan = parse(&args.trace, Plan::read)?;
        Ok(Arc::new(Player::new(plan, args, progress)))
    });
    let Some(player) = stop.before(reading).await else { return Err(Failure::silent(Exit::Interrupted)) };
    let player = player?;
    if player.plan.opens == 0 {
        let failure = Failure::usage("no file was opened for reading, so there is nothing to replay");
        return Err(failure.context(trace.display()));
    }
    let playing = blocking({
        let player = player.clone();
        move || player.play()
    });
    let Some(replayed) = stop.before(playing).await else {
        player.stop();
        return Err(Failure::silent(Exit::Interrupted));
    };
    drop(bar);
    let replayed = replayed?;
    let mut out = output::stdout();
    if json {
        json::write(&mut out, &replayed)?
    } else {
        write_text(&mut out, &replayed)?
    }
    out.flush()?;
    if !global.quiet {
        say_what_is_missing(&player, &replayed);
    }
    failed_files(&player)
}

fn write_text(out: &mut impl Write, replayed: &json::Replayed) -> io::Result<()> {
    let (opens, reads) = (replayed.opens, replayed.reads);
    writeln!(
        out,
        "{} and {} in {:.1} s by {}: {} opens/s, {}/s",
        counted(opens.requests - opens.failures, "open", "opens"),
        size_text(replayed.read_bytes),
        replayed.seconds,
        counted(replayed.threads, "thread", "threads"),
        count_text(replayed.files_per_second.round() as u64),
        size_text(replayed.bytes_per_second as u64),
    )?;
    writeln!(out)?;
    let mut latencies = table(&["", "count", "failed", "half within", "99 % within"], "<>>>>");
    for (name, of) in [("opens", opens), ("reads", reads)] {
        latencies.add_row([
            name.to_owned(),
            count_text(of.requests),
            count_text(of.failures),
            micros_text(of.p50_us),
            micros_text(of.p99_us),
        ]);
    }
    output::write_table(out, &latencies)
}

/// What the recording has and the replay did not do.
fn say_what_is_missing(player: &Player, replayed: &json::Replayed) {
    let Plan { left_out: LeftOut { reads, failed_opens, writers }, opens, opens_read, .. } = player.plan;
    if replayed.made_files > 0 {
        note!("{} made", counted(replayed.made_files, "file was", "files were"));
    }
    for (count, one, which) in [
        (replayed.nameless_opens, "open", "of names that were looked up before the recording began"),
        (reads, "read", "of files that were open when the recording began, or were written"),
        (failed_opens, "open", "that failed then"),
        (writers, "open", "for writing"),
    ] {
        match count {
            0 => {}
            1 => note!("1 {one} {which} is left out"),
            _ => note!("{} {one}s {which} are left out", count_text(count)),
        }
    }
    if player.args.reads == Reads::Recorded && opens_read * 2 < opens {
        note!(
            "most files were opened and no read of them is recorded, as the kernel reads by itself what it has cached:"
        );
        note!("  --reads whole reads each from its start to its end");
    }
}

/// Names some of the files that could not be opened or read.
fn failed_files(player: &Player) -> Outcome {
    let failed = player.failed();
    if failed.is_empty() {
        return Ok(());
    }
    for (path, reason) in failed.iter().take(NAMED_MAX) {
        note!("torchfs: trace {}: {reason}", printable(path.as_os_str().as_bytes()));
    }
    let message = format!("{} could not be replayed", counted(failed.len() as u64, "file", "files"));
    let failure = Failure::new(Exit::Failed, message);
    let hint = "their paths go from the root of the mount that was recorded: give a folder that has them so, or let --make-files \
                make some of the same size";
    Err(failure.hint(hint))
}
