//! `torchfs stats`: what a mount on this machine has done, once or again and again.

mod epochs;

use super::control::Place;
use crate::args::Stats;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, count_text, json, micros_text, size_text, table};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use torchfs_core::cache::CacheStats;
use torchfs_core::observe::LatencyStats;
use torchfs_core::{Error, IoContext, Kind};
use torchfs_fuse::{MountStats, mountpoints};

/// Every so many lines the head of the table is written again.
const LINES_PER_HEAD: u64 = 20;

/// A mount answers from memory; one that takes longer hangs.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

pub async fn run(args: Stats) -> Outcome {
    let (mountpoint, stats) = find(args.path).await?;
    match args.watch {
        Some(seconds) => watch(&mountpoint, stats, Duration::from_secs(seconds), args.json).await,
        None if args.epochs => show_epochs(&mut output::stdout(), &stats, args.json),
        None => show(&mut output::stdout(), &stats, args.json),
    }
}

/// The mount that a path is in, or the only one there is, and what it has done.
async fn find(path: Option<PathBuf>) -> Outcome<(PathBuf, MountStats)> {
    let Some(path) = path else {
        let mountpoint = only_mount()?;
        let stats = read(&mountpoint).await?;
        return Ok((mountpoint, stats));
    };
    match read(&path).await {
        Err(failure) if failure.exit == Exit::NotFound => {
            let mountpoint = Place::find(&path).await?.mountpoint;
            let stats = read(&mountpoint).await?;
            Ok((mountpoint, stats))
        }
        read => Ok((path, read?)),
    }
}

/// The only mount there is.
///
/// # Errors
/// `NotFound` if there is none, `Usage` if there are several.
pub fn only_mount() -> Outcome<PathBuf> {
    let mut mounts = mountpoints()?;
    match (mounts.pop(), mounts.as_slice()) {
        (Some(only), []) => Ok(only),
        (None, _) => Err(Failure::new(Exit::NotFound, "no TorchFS is mounted on this machine")
            .hint("`torchfs mount MOUNTPOINT` mounts one")),
        (Some(last), others) => {
            let all: Vec<String> = others.iter().chain([&last]).map(|mount| mount.display().to_string()).collect();
            let message = format!("several TorchFS are mounted: {}", all.join(", "));
            Err(Failure::new(Exit::Usage, message).hint("name one"))
        }
    }
}

async fn read(mountpoint: &Path) -> Outcome<MountStats> {
    let (file, mount) = (mountpoint.join(".torchfs/stats"), mountpoint.display().to_string());
    let reading = tokio::task::spawn_blocking(move || std::fs::read_to_string(file));
    let Ok(text) = tokio::time::timeout(ANSWER_DEADLINE, reading).await else {
        return Err(Failure::new(Exit::Unavailable, format!("the mount on {mount} does not answer")));
    };
    let text = text.unwrap_or_else(|_| Err(io::Error::other("reading was given up")));
    let text = text.io(|| mount.clone()).map_err(|error| match error.kind() {
        Kind::NotFound | Kind::NotDirectory => {
            Failure::new(Exit::NotFound, format!("{mount} is not the mountpoint of a TorchFS"))
        }
        _ => Failure::from(error),
    })?;
    let parsed = serde_json::from_str(&text);
    Ok(parsed.map_err(|error| Error::caused(Kind::Protocol, format!("{mount}: another version of torchfs"), error))?)
}

fn show(out: &mut impl Write, stats: &MountStats, as_json: bool) -> Outcome {
    if as_json {
        json::write(out, stats)?;
    } else {
        write_text(out, stats)?;
    }
    Ok(out.flush()?)
}

fn show_epochs(out: &mut impl Write, stats: &MountStats, as_json: bool) -> Outcome {
    if as_json {
        json::write(out, &stats.epochs)?;
    } else {
        epochs::write(out, &stats.epochs)?;
    }
    Ok(out.flush()?)
}

fn write_text(out: &mut impl Write, stats: &MountStats) -> io::Result<()> {
    writeln!(out, "mounted for {} s", count_text(stats.uptime_seconds))?;
    writeln!(
        out,
        "{} opens, {} of them read by the kernel itself; {} operations under way",
        count_text(stats.opens),
        count_text(stats.passthrough_opens),
        stats.operations_in_flight,
    )?;
    if let Some(reason) = &stats.passthrough_refused {
        writeln!(out, "the kernel does not read cached files by itself: {reason}")?;
    }
    match &stats.cache {
        Some(cache) => write_cache(out, stats, cache)?,
        None => writeln!(out, "no cache: every read asks the cluster")?,
    }
    writeln!(out)?;
    let mut requests = table(&["requests", "count", "failed", "half within", "99 % within"], "<>>>>");
    let asked = &stats.requests;
    for (name, of) in [
        ("metadata reads", asked.metadata_reads),
        ("metadata writes", asked.metadata_writes),
        ("storage reads", asked.storage_reads),
        ("storage writes", asked.storage_writes),
    ] {
        let LatencyStats { requests: count, failures, p50_us, p99_us } = of;
        requests.add_row([
            name.to_owned(),
            count_text(count),
            count_text(failures),
            micros_text(p50_us),
            micros_text(p99_us),
        ]);
    }
    output::write_table(out, &requests)
}

fn write_cache(out: &mut impl Write, stats: &MountStats, cache: &CacheStats) -> io::Result<()> {
    writeln!(
        out,
        "cache: {} of {} in {} files; {} evicted (eviction {})",
        size_text(cache.used_bytes),
        size_text(cache.limit_bytes),
        count_text(cache.files),
        count_text(cache.evictions),
        stats.eviction,
    )?;
    writeln!(
        out,
        "{} files fetched ahead, {} of them left unread (prefetch {})",
        count_text(cache.ahead_files),
        count_text(cache.ahead_wasted),
        stats.prefetch,
    )?;
    if cache.pinned_files > 0 {
        writeln!(out, "pinned: {} in {} files", size_text(cache.pinned_bytes), count_text(cache.pinned_files))?;
    }
    writeln!(
        out,
        "reads: {} hits, {} misses ({}); {} from the cache, {} from storage",
        count_text(cache.hits),
        count_text(cache.misses),
        rate_text(cache.hits, cache.misses),
        size_text(cache.cache_bytes),
        size_text(cache.storage_bytes),
    )?;
    if cache.sibling_bytes > 0 {
        writeln!(out, "{} were copied from other mounts that share the cache folder", size_text(cache.sibling_bytes))?;
    }
    Ok(())
}

/// What part of the reads did not wait for storage.
fn rate_text(hits: u64, misses: u64) -> String {
    match hits + misses {
        0 => "no reads".to_owned(),
        all => format!("{:.1} % hits", hits as f64 * 100.0 / all as f64),
    }
}

/// A line, or a JSON object on a line, per interval, until Ctrl-C.
async fn watch(mountpoint: &Path, mut before: MountStats, interval: Duration, as_json: bool) -> Outcome {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    for line in 0.. {
        ticks.tick().await;
        let now = read(mountpoint).await?;
        let mut out = output::stdout();
        if as_json {
            json::write_line(&mut out, &now)?;
        } else {
            write_change(&mut out, line, &before, &now, interval.as_secs_f64())?;
        }
        out.flush()?;
        before = now;
    }
    Ok(())
}

fn write_change(
    out: &mut impl Write,
    line: u64,
    before: &MountStats,
    now: &MountStats,
    seconds: f64,
) -> io::Result<()> {
    if line.is_multiple_of(LINES_PER_HEAD) {
        writeln!(
            out,
            "{:>9} {:>14} {:>13} {:>13} {:>11} {:>11} {:>9}",
            "opens/s", "reads", "from cache/s", "storage/s", "meta req/s", "store req/s", "in flight"
        )?;
    }
    let per_second = |count: u64| (count as f64 / seconds).round() as u64;
    let grown = |of: fn(&MountStats) -> u64| of(now).saturating_sub(of(before));
    let (hits, misses) = (grown(|stats| cache_of(stats).hits), grown(|stats| cache_of(stats).misses));
    let of_cache = grown(|stats| cache_of(stats).cache_bytes);
    let of_storage = grown(|stats| cache_of(stats).storage_bytes);
    writeln!(
        out,
        "{:>9} {:>14} {:>13} {:>13} {:>11} {:>11} {:>9}",
        count_text(per_second(grown(|stats| stats.opens))),
        rate_text(hits, misses),
        size_text(per_second(of_cache)),
        size_text(per_second(of_storage)),
        count_text(per_second(grown(|stats| {
            stats.requests.metadata_reads.requests + stats.requests.metadata_writes.requests
        }))),
        count_text(per_second(grown(|stats| {
            stats.requests.storage_reads.requests + stats.requests.storage_writes.requests
        }))),
        now.requests.in_flight,
    )
}

fn cache_of(stats: &MountStats) -> CacheStats {
    stats.cache.unwrap_or_default()
}
