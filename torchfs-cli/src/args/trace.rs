//! `torchfs trace`: its flags.

use super::values;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs trace record /mnt/torchfs train.trace        until Ctrl-C
  torchfs trace summary train.trace --plot train.svg   what was opened
  torchfs trace replay train.trace /mnt/other          the same again, elsewhere
  torchfs sim train.trace --cache 10%,50%              what a cache makes of it")]
pub struct Trace {
    #[command(subcommand)]
    pub action: TraceAction,
}

#[derive(Debug, Subcommand)]
pub enum TraceAction {
    /// Record every operation of a mount on this machine
    Record(TraceRecord),
    /// Sum up a recording: operations, epochs, files
    Summary(TraceSummary),
    /// Open and read the same files again, in the same order, on a mount or in any folder
    Replay(TraceReplay),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs trace record /mnt/torchfs train.trace            until Ctrl-C
  torchfs trace record /mnt/torchfs train.trace --for 10m

Each operation is recorded with its file, handle, offset, length, thread, time, duration and result, in some 20 bytes. Names are \
recorded when they are looked up, so begin before the program that reads. What the kernel answers by itself is not seen: reads of \
files that its page cache still has, or that were open before. Opens and closes always are. The mount does nothing for this while \
nobody records, and loses records rather than wait for the recorder; how many is in the file.")]
pub struct TraceRecord {
    /// Where it is mounted
    pub mountpoint: PathBuf,
    /// A new file, outside the mount
    pub file: PathBuf,
    /// Stop after so long, like 30s, 10m, 2h [default: at Ctrl-C]
    #[arg(long = "for", value_name = "TIME")]
    pub length: Option<Span>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs trace summary train.trace
  torchfs trace summary train.trace --files 100 --plot train.svg
  torchfs trace summary train.trace --json | jq '.epochs[].opens'

An epoch begins when files that were opened for reading are opened again: at the first of several such opens close together, so \
that a label file that every worker opens begins none. Several programs that read the same files at once look like more epochs. \
\"read\" counts what went through the mount's process; the kernel reads by itself what it has in its page cache. \
The picture has a dot for each open for reading: to the right the time, upward the files in the order of their first open.")]
pub struct TraceSummary {
    /// A recording
    pub trace: PathBuf,
    /// How many files to show, the most opened first
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub files: usize,
    /// As a JSON object
    #[arg(long)]
    pub json: bool,
    /// Draw the opens over time as an SVG file too
    #[arg(long, value_name = "FILE.svg", value_parser = values::svg_file())]
    pub plot: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  torchfs trace replay train.trace /mnt/torchfs       with the program's pauses
  torchfs trace replay train.trace /mnt/torchfs --speed max --reads whole
  torchfs trace replay train.trace /nvme --make-files on a local disk

Opens for reading, their reads and closes are repeated; what changes files is not. What one thread did is done by one thread, in \
the same order and with the same pauses between the end of a step and the next; threads that were never there at the same time share \
one. Files that cannot be opened are counted, and the exit code is 1 then.")]
pub struct TraceReplay {
    /// A recording
    pub trace: PathBuf,
    /// A mountpoint or any folder; recorded paths are looked up below it
    pub dir: PathBuf,
    /// How much shorter the pauses are, like 2x or 0.5x; max: none
    #[arg(long, value_name = "N", default_value = "1x")]
    pub speed: Speed,
    /// What is read of each file
    #[arg(long, value_enum, default_value_t = Reads::Recorded)]
    pub reads: Reads,
    /// Make files that are missing, with noise in them, as long as they were
    #[arg(long)]
    pub make_files: bool,
    /// As a JSON object
    #[arg(long)]
    pub json: bool,
}

/// What a replay reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Reads {
    /// What the recording has, which is not what the kernel answered by itself
    Recorded,
    /// Each opened file from its start to its end
    Whole,
}

/// How long something lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is no time: write a number with s, m or h, like 30s");
        let (number, unit) = text.split_at(text.len() - text.chars().next_back().map_or(0, char::len_utf8));
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => return Err(wrong()),
        };
        let number: u32 = number.trim_end().parse().map_err(|_| wrong())?;
        if number == 0 { Err(wrong()) } else { Ok(Span(Duration::from_secs(seconds) * number)) }
    }
}

/// How much faster than recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// Pauses are divided by this.
    Times(f64),
    /// No pauses.
    Max,
}

impl Speed {
    /// A pause at this speed.
    pub fn pause(self, recorded: Duration) -> Duration {
        match self {
            Speed::Times(times) => Duration::try_from_secs_f64(recorded.as_secs_f64() / times).unwrap_or(Duration::MAX),
            Speed::Max => Duration::ZERO,
        }
    }
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Speed::Max);
        }
        match text.strip_suffix('x').unwrap_or(text).parse() {
            Ok(times) if (0.001..=1e6).contains(&times) => Ok(Speed::Times(times)),
            _ => Err(format!("'{text}' is no speed: write a number and x, like 2x, or max")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_speeds_are_written_as_people_say_them() {
        assert_eq!("90s".parse(), Ok(Span(Duration::from_secs(90))));
        assert_eq!("2h".parse(), Ok(Span(Duration::from_secs(7200))));
        for bad in ["", "s", "0s", "10", "1.5m", "10ß"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        assert_eq!(
            ("2x".parse(), "0.5".parse(), "max".parse()),
            (Ok(Speed::Times(2.0)), Ok(Speed::Times(0.5)), Ok(Speed::Max))
        );
        for bad in ["", "x", "0x", "-1x", "NaNx", "fast"] {
            assert!(bad.parse::<Speed>().is_err(), "{bad}");
        }
        assert_eq!(Speed::Times(4.0).pause(Duration::from_secs(2)), Duration::from_millis(500));
        assert_eq!(Speed::Max.pause(Duration::from_secs(2)), Duration::ZERO);
    }
}
