//! `torchfs sim`: what caches of several sizes and policies would do with an order of opens, without a cluster.

mod trace;

use super::blocking;
use crate::args::{CacheSize, Global, Order, Sim};
use crate::exit::Outcome;
use crate::output::json::{Simulated, SimulatedRun};
use crate::output::plot::{Axis, Chart, Marks, Series};
use crate::output::{self, count_text, json, size_text, table};
use crate::progress::Bar;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use torchfs_core::IoContext;
use torchfs_core::cache::policy::Eviction;
use torchfs_core::client::Progress;
use torchfs_core::prefetch::Prefetch;
use torchfs_core::sim::{Announce, EpochOrder, Settings, Workload, simulate_watched};
use torchfs_core::trace::{MAGIC, Opens};

pub async fn run(global: &Global, args: Sim) -> Outcome {
    let progress = Arc::<Progress>::default();
    let bar = Bar::of("epochs", "sim", progress.clone(), global);
    let args = Arc::new(args);
    let simulated = blocking({
        let args = args.clone();
        move || simulated(&args, &workload(&args)?, &progress)
    });
    let simulated = simulated.await;
    drop(bar);
    blocking(move || show(&args, &simulated?)).await
}

fn show(args: &Sim, simulated: &Simulated) -> Outcome {
    if let Some(path) = &args.plot {
        std::fs::write(path, draw(simulated)).io(|| path.display().to_string())?;
    }
    let mut out = output::stdout();
    match (args.json, simulated.runs.as_slice()) {
        (true, _) => json::write(&mut out, simulated)?,
        (false, [run]) => write_epochs(&mut out, simulated, run)?,
        (false, _) => write_runs(&mut out, simulated)?,
    }
    Ok(out.flush()?)
}

fn workload(args: &Sim) -> Outcome<Workload> {
    let workload = match &args.trace {
        Some(path) => {
            let bytes = read(path)?;
            opened(&bytes, args.size.0).map_err(|failure| failure.context(path.display()))?
        }
        None => {
            let sizes = vec![args.size.0; args.files as usize];
            match args.order {
                Order::Sequential => Workload::sequential(&sizes, args.epochs as usize)?,
                Order::Shuffled => Workload::shuffled(&sizes, args.epochs as usize, args.seed)?,
            }
        }
    };
    Ok(if args.workers > 1 { with_workers(&workload, args)? } else { workload })
}

/// What a recording or a text says was opened.
fn opened(bytes: &[u8], size: u64) -> Outcome<Workload> {
    if bytes.starts_with(&MAGIC) { Ok(Opens::read(bytes)?.workload()?) } else { trace::parse(bytes, size) }
}

/// Workers whose number and batch are told with the order.
fn with_workers(workload: &Workload, args: &Sim) -> Outcome<Workload> {
    let opened = workload.clone().interleaved(args.workers as usize, args.batch as usize);
    let told = opened.epochs().iter().map(|epoch| EpochOrder { announced: epoch.opened.clone(), ..epoch.clone() });
    Ok(Workload::new(workload.dataset().clone(), told.collect())?)
}

fn read(path: &Path) -> Outcome<Vec<u8>> {
    if path == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().lock().read_to_end(&mut text).io(|| "stdin")?;
        return Ok(text);
    }
    Ok(std::fs::read(path).io(|| path.display().to_string())?)
}

/// What the order is, for the head of each output.
fn order_text(args: &Sim) -> String {
    let order = match (&args.trace, args.order) {
        (Some(path), _) => format!("in the order of {}", path.display()),
        (None, Order::Sequential) => "read in the order of their listing".to_owned(),
        (None, Order::Shuffled) => format!("shuffled anew each epoch (seed {})", args.seed),
    };
    match args.workers {
        1 => order,
        workers => format!("{order}, by {workers} workers in batches of {}", args.batch),
    }
}

fn simulated(args: &Sim, workload: &Workload, progress: &Progress) -> Outcome<Simulated> {
    let bytes = workload.dataset().bytes();
    let runs = args.policy.len() * args.prefetch.len() * args.cache.len();
    progress.files_total.store((runs * workload.epochs().len()) as u64, Relaxed);
    let mut runs = Vec::new();
    for (&policy, &prefetch) in args.policy.iter().flat_map(|policy| args.prefetch.iter().map(move |p| (policy, p))) {
        for &cache in &args.cache {
            let announce = announced(args, policy, prefetch);
            let settings = Settings {
                cache_bytes: cache.of(bytes),
                eviction: policy,
                prefetch,
                announce,
                fetch_ticks: args.fetch_opens,
                fetches_max: args.fetches as usize,
            };
            let report = simulate_watched(workload, &settings, |_| {
                progress.files.fetch_add(1, Relaxed);
            })?;
            runs.push(SimulatedRun::new(cache_text(cache), &settings, &report));
        }
    }
    let files = workload.dataset().files().len() as u64;
    Ok(Simulated { order: order_text(args), files, bytes, epochs: workload.epochs().len() as u64, runs })
}

fn cache_text(cache: CacheSize) -> String {
    match cache {
        CacheSize::Bytes(bytes) => size_text(bytes),
        CacheSize::Percent(percent) => format!("{percent} %"),
    }
}

/// Whoever needs no hint gets none, so that it shows what it does by itself.
fn announced(args: &Sim, policy: Eviction, prefetch: Prefetch) -> Announce {
    match (policy, prefetch) {
        (_, Prefetch::Schedule) | (Eviction::Schedule, Prefetch::None) => args.announce.into(),
        (_, Prefetch::None | Prefetch::Sequential | Prefetch::History | Prefetch::Auto) => Announce::Never,
    }
}

fn write_head(out: &mut impl Write, simulated: &Simulated) -> io::Result<()> {
    let Simulated { files, bytes, epochs, order, .. } = simulated;
    let (files, bytes) = (count_text(*files), size_text(*bytes));
    let times = if *epochs == 1 { "once".to_owned() } else { format!("{epochs} times") };
    writeln!(out, "{files} files, {bytes}, {times}, {order}")?;
    writeln!(out)
}

fn write_runs(out: &mut impl Write, simulated: &Simulated) -> io::Result<()> {
    write_head(out, simulated)?;
    let head =
        ["cache", "policy", "prefetch", "announced", "hits", "late", "wasted", "storage/epoch", "least", "above it"];
    let mut table = table(&head, "><<<>>>>>>");
    for run in &simulated.runs {
        table.add_row([
            run.cache.clone(),
            run.policy.to_owned(),
            run.prefetch.to_owned(),
            run.announced.to_owned(),
            percent(run.hit_rate),
            percent(run.late_rate),
            count_text(run.wasted),
            size_text(run.storage_bytes_per_epoch),
            size_text(run.optimum_bytes_per_epoch),
            above(run.storage_bytes_per_epoch, run.optimum_bytes_per_epoch),
        ]);
    }
    output::write_table(out, &table)
}

/// Of a single run all epochs are shown.
fn write_epochs(out: &mut impl Write, simulated: &Simulated, run: &SimulatedRun) -> io::Result<()> {
    write_head(out, simulated)?;
    let SimulatedRun { cache, policy, prefetch, announced, .. } = run;
    writeln!(out, "cache {cache}, policy {policy}, prefetch {prefetch}, announced: {announced}")?;
    writeln!(out)?;
    let head = ["epoch", "opens", "hits", "late", "misses", "wasted", "from storage", "least", "above it", "stall"];
    let mut table = table(&head, ">>>>>>>>>>");
    for (number, epoch) in run.epochs.iter().enumerate() {
        table.add_row([
            (number + 1).to_string(),
            count_text(epoch.opens),
            percent(epoch.hit_rate()),
            count_text(epoch.late),
            count_text(epoch.misses),
            count_text(epoch.wasted),
            size_text(epoch.storage_bytes),
            size_text(epoch.optimum_bytes),
            above(epoch.storage_bytes, epoch.optimum_bytes),
            count_text(epoch.stall_ticks),
        ]);
    }
    output::write_table(out, &table)?;
    writeln!(out, "\nstall: how many more files the reader could have worked on while it waited")
}

/// `99.85 %`; whole only if it is.
fn percent(part: f64) -> String {
    let percent = part * 100.0;
    let rounded = if percent < 100.0 { (percent * 100.0).floor() / 100.0 } else { 100.0 };
    format!("{rounded:.2} %")
}

fn above(bytes: u64, least: u64) -> String {
    match (bytes, least) {
        (0, 0) => "0.00 %".to_owned(),
        (_, 0) => "all".to_owned(),
        _ => format!("{:.2} %", (bytes as f64 / least as f64 - 1.0) * 100.0),
    }
}

fn draw(simulated: &Simulated) -> String {
    let mut series: Vec<Series> = Vec::new();
    for run in &simulated.runs {
        let told = if run.announced == "no" { "" } else { ", announced" };
        let name = format!("{}, prefetch {}{told}", run.policy, run.prefetch);
        let point = (run.cache_bytes as f64 / simulated.bytes.max(1) as f64, run.hit_rate);
        match series.iter_mut().find(|series| series.name == name) {
            Some(series) => series.points.push(point),
            None => series.push(Series { name, marks: Marks::Line, points: vec![point] }),
        }
    }
    series.iter_mut().for_each(|series| series.points.sort_by(|one, other| one.0.total_cmp(&other.0)));
    let title = format!("{} files, {}", count_text(simulated.files), simulated.order);
    let percent = |part: f64| format!("{:.0} %", part * 100.0);
    let label = format!("cache, as part of all files ({})", size_text(simulated.bytes));
    let (x, y) = (Axis::with_ticks(label, percent), Axis::with_ticks("hits", percent));
    Chart { title, x, y, series }.svg()
}
