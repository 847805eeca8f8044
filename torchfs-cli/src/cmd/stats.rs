//! `torchfs stats`: what a mount on this machine has done, once or again and again.

mod epochs;

use super::control::{Place, failed};
use crate::args::Stats;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, count_text, counted, json, micros_text, size_text, table};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use torchfs_core::cache::CacheStats;
use torchfs_core::observe::LatencyStats;
use torchfs_core::{Error, Kind};
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
    let text = text.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            Failure::new(Exit::NotFound, format!("{mount} is not the mountpoint of a TorchFS"))
        }
        _ => failed(mountpoint, "read its stats", error).context(&mount),
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
    // One is that of whoever asks for this.
    let others = stats.operations_in_flight.saturating_sub(1);
    writeln!(
        out,
        "{}; {} under way",
        counted(stats.opens, "file was opened", "files were opened"),
        counted(others, "operation", "operations"),
    )?;
    if stats.passthrough_opens > 0 {
        writeln!(out, "{} of these the kernel reads from the cache by itself", count_text(stats.passthrough_opens))?;
    }
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
        "cache: {} of {} in {}; {} evicted (eviction {})",
        size_text(cache.used_bytes),
        size_text(cache.limit_bytes),
        counted(cache.files, "file", "files"),
        count_text(cache.evictions),
        stats.eviction,
    )?;
    writeln!(
        out,
        "{} fetched ahead, {} of them left unread (prefetch {})",
        counted(cache.ahead_files, "file", "files"),
        count_text(cache.ahead_wasted),
        stats.prefetch,
    )?;
    if cache.pinned_files > 0 {
        let files = counted(cache.pinned_files, "file", "files");
        writeln!(out, "pinned: {} in {files}", size_text(cache.pinned_bytes))?;
    }
    writeln!(
        out,
        "reads that came to the mount: {}, {} ({}); {} from the cache, {} from storage",
        counted(cache.hits, "hit", "hits"),
        counted(cache.misses, "miss", "misses"),
        rate_text(cache.hits, cache.misses),
        size_text(cache.cache_bytes),
        size_text(cache.storage_bytes),
    )?;
    writeln!(out, "  (the kernel answers others from its own memory, of which the mount learns nothing)")?;
    if cache.sibling_bytes > 0 {
        writeln!(out, "{} were copied from other mounts that share the cache folder", size_text(cache.sibling_bytes))?;
    }
    Ok(())
}

/// What part of the reads did not wait for storage; whole only if all did not.
fn rate_text(hits: u64, misses: u64) -> String {
    match hits + misses {
        0 => "no reads".to_owned(),
        all => format!("{:.1} % hits", (hits as f64 * 1000.0 / all as f64).floor() / 10.0),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn stats() -> MountStats {
        let cache = CacheStats { hits: 3009, misses: 1, files: 1, ..CacheStats::default() };
        MountStats {
            uptime_seconds: 60,
            opens: 45_000,
            passthrough_opens: 0,
            passthrough_refused: None,
            awake_ms: 0,
            operations_in_flight: 1,
            eviction: "schedule".to_owned(),
            prefetch: "auto".to_owned(),
            cache: Some(cache),
            epochs: Vec::new(),
            metadata_remembered: 0,
            requests: Default::default(),
        }
    }

    fn shown(stats: &MountStats) -> String {
        let mut out = Vec::new();
        write_text(&mut out, stats).expect("writes to memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn one_of_a_thing_is_no_plural_and_asking_is_no_operation() {
        let text = shown(&stats());
        assert!(text.contains("\n45,000 files were opened; 0 operations under way\n"), "{text}");
        assert!(text.contains("reads that came to the mount: 3,009 hits, 1 miss (99.9 % hits)"), "{text}");
        assert!(text.contains(" in 1 file; "), "{text}");
        assert!(!text.contains("by itself"), "nothing is said of what does not happen: {text}");
        let text = shown(&MountStats { passthrough_opens: 7, operations_in_flight: 3, ..stats() });
        assert!(text.contains("2 operations under way\n7 of these the kernel reads"), "{text}");
    }
}
