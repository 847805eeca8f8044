//! `torchfs trace summary`: tables, JSON, and a picture of the opens over time.

use super::{blocking, parse};
use crate::args::TraceSummary;
use crate::exit::Outcome;
use crate::output::plot::{Axis, Chart, Marks, Series};
use crate::output::{self, count_text, json, micros_text, printable, size_text, table, time_text};
use std::cmp::Reverse;
use std::io::{self, Write};
use torchfs_core::IoContext;
use torchfs_core::meta::Timestamp;
use torchfs_core::trace::{OpenedFile, Summary};

pub async fn run(args: TraceSummary) -> Outcome {
    blocking(move || run_blocking(&args)).await
}

fn run_blocking(args: &TraceSummary) -> Outcome {
    let summary = parse(&args.trace, Summary::read)?;
    if let Some(path) = &args.plot {
        std::fs::write(path, draw(&summary)).io(|| path.display().to_string())?;
    }
    let mut out = output::stdout();
    match args.json {
        true => json::write(&mut out, &shape(&summary, args.files))?,
        false => write_text(&mut out, &summary, args.files)?,
    }
    Ok(out.flush()?)
}

/// The files most often opened; of those opened as often, the largest.
fn most_opened(summary: &Summary, count: usize) -> Vec<&OpenedFile> {
    let mut files: Vec<&OpenedFile> = summary.opens.files.iter().collect();
    files.sort_by_key(|file| (Reverse((file.opens, file.bytes)), &file.path));
    files.truncate(count);
    files
}

fn shape(summary: &Summary, files: usize) -> json::TraceSummary {
    json::TraceSummary {
        began: time_text(Timestamp::from(summary.began)),
        seconds: summary.length.as_secs_f64(),
        operations: summary.records,
        lost: summary.lost,
        is_torn: summary.is_torn,
        ops: summary.ops.clone(),
        reads: summary.opens.pattern,
        epochs: summary.epochs.clone(),
        files_opened: summary.opens.files.len() as u64,
        files: most_opened(summary, files).into_iter().map(json::TracedFile::from).collect(),
    }
}

fn write_text(out: &mut impl Write, summary: &Summary, files: usize) -> io::Result<()> {
    let (count, seconds) = (count_text(summary.records), seconds_text(summary.length.as_secs_f64()));
    writeln!(out, "{count} operations in {seconds} from {}", time_text(Timestamp::from(summary.began)))?;
    if summary.lost > 0 {
        writeln!(out, "{} more found no room in the recording", count_text(summary.lost))?;
    }
    if summary.is_torn {
        writeln!(out, "the end of the file is missing: this is what is before it")?;
    }
    write_ops(out, summary)?;
    let pattern = summary.opens.pattern;
    if pattern.reads > 0 {
        let part = pattern.sequential as f64 * 100.0 / pattern.reads as f64;
        writeln!(out, "\n{part:.1} % of the reads went on where another one of the file ended, or began at its start")?;
    }
    write_epochs(out, summary)?;
    write_files(out, summary, files)
}

fn write_ops(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    if summary.ops.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let mut ops = table(&["operation", "count", "failed", "half within", "99 % within", "bytes"], "<>>>>>");
    for op in &summary.ops {
        let latency = op.latency;
        ops.add_row([
            op.op.name().to_owned(),
            count_text(latency.requests),
            count_text(latency.failures),
            micros_text(latency.p50_us),
            micros_text(latency.p99_us),
            if op.bytes == 0 { "-".to_owned() } else { size_text(op.bytes) },
        ]);
    }
    output::write_table(out, &ops)
}

fn write_epochs(out: &mut impl Write, summary: &Summary) -> io::Result<()> {
    if summary.epochs.is_empty() {
        return writeln!(out, "\nno file was opened for reading");
    }
    writeln!(out)?;
    let mut epochs = table(&["epoch", "after", "took", "opens", "files", "their size", "read"], ">>>>>>>");
    for (number, epoch) in summary.epochs.iter().enumerate() {
        epochs.add_row([
            (number + 1).to_string(),
            seconds_text(epoch.began_seconds),
            seconds_text(epoch.seconds),
            count_text(epoch.opens),
            count_text(epoch.files),
            size_text(epoch.bytes),
            size_text(epoch.read_bytes),
        ]);
    }
    output::write_table(out, &epochs)
}

fn write_files(out: &mut impl Write, summary: &Summary, count: usize) -> io::Result<()> {
    let files = most_opened(summary, count);
    if files.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let all = count_text(summary.opens.files.len() as u64);
    let head = format!("{} of {all} files", count_text(files.len() as u64));
    let mut table = table(&["opens", "size", "read", &head], ">>><");
    for file in files {
        let path = file.path.as_deref().map_or_else(|| format!("inode {}, name not seen", file.ino), printable);
        table.add_row([count_text(file.opens), size_text(file.bytes), size_text(file.read_bytes), path]);
    }
    output::write_table(out, &table)
}

fn seconds_text(seconds: f64) -> String {
    match seconds {
        0.0..100.0 => format!("{seconds:.1} s"),
        _ => format!("{} s", count_text(seconds.round() as u64)),
    }
}

/// A dot for each open for reading, an epoch in each colour.
fn draw(summary: &Summary) -> String {
    let (seconds, files) = (summary.length.as_secs_f64().max(1e-9), summary.opens.files.len());
    let epochs = summary.opens.epochs();
    let series = epochs.iter().enumerate().map(|(number, range)| {
        let opens = summary.opens.opens[range.clone()].iter();
        let point = |open: &torchfs_core::trace::Open| {
            (open.began.as_secs_f64() / seconds, (f64::from(open.file) + 0.5) / files as f64)
        };
        Series { name: format!("epoch {}", number + 1), marks: Marks::Dots, points: opens.map(point).collect() }
    });
    let opens = count_text(summary.opens.opens.len() as u64);
    let count = |part: f64| count_text((part * files as f64).round() as u64);
    Chart {
        title: format!("{opens} opens of {} files", count_text(files as u64)),
        x: Axis::with_ticks("time", |part| seconds_text(part * seconds)),
        y: Axis::with_ticks("files", count),
        series: series.collect(),
    }
    .svg()
}
