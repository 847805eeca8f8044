//! What is written to stdout and how: names, modes, sizes, times, tables, JSON. Pure text; no verb's logic.

pub mod json;
pub mod plot;

use comfy_table::{CellAlignment, Table, presets};
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use torchfs_core::meta::{FileKind, Timestamp};

/// Buffered stdout.
pub fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(64 * 1024, io::stdout().lock())
}

/// How names are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// As they are, for pipes.
    Raw,
    /// Quoted for a shell where needed, for terminals.
    Quoted,
}

impl Names {
    /// By what stdout is.
    pub fn for_stdout() -> Self {
        if io::stdout().is_terminal() { Names::Quoted } else { Names::Raw }
    }

    /// The bytes to write for a name.
    pub fn bytes(self, name: &[u8]) -> Vec<u8> {
        match self {
            Names::Raw => name.to_vec(),
            Names::Quoted => shell_quoted(name).into_bytes(),
        }
    }
}

/// A name as a shell reads it back: bare if it is plain, else in quotes, control characters and bytes that are not UTF-8
/// as `$'\n'` or `$'\377'`.
pub fn shell_quoted(name: &[u8]) -> String {
    let plain = |c: char| c.is_alphanumeric() || "+,-./:=@_%".contains(c);
    if let Ok(text) = std::str::from_utf8(name)
        && !text.is_empty()
        && text.chars().all(plain)
    {
        return text.to_owned();
    }
    let mut quoted = String::from("'");
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\'' => quoted.push_str("'\\''"),
                '\n' => escaped(&mut quoted, "\\n"),
                '\t' => escaped(&mut quoted, "\\t"),
                c if c.is_control() => octal(&mut quoted, c.encode_utf8(&mut [0; 4]).as_bytes()),
                c => quoted.push(c),
            }
        }
        octal(&mut quoted, chunk.invalid());
    }
    quoted.push('\'');
    quoted
}

fn octal(quoted: &mut String, bytes: &[u8]) {
    bytes.iter().for_each(|byte| escaped(quoted, &format!("\\{byte:03o}")));
}

/// Leaves the quotes for a `$'...'`, or goes on with the one that was just closed.
fn escaped(quoted: &mut String, escape: &str) {
    if quoted.ends_with("''") && !quoted.ends_with("\\''") {
        quoted.truncate(quoted.len() - 2);
    } else {
        quoted.push_str("'$'");
    }
    quoted.push_str(escape);
    quoted.push_str("''");
}

/// Bytes as text for messages: what is not UTF-8 is replaced, control characters escaped.
pub fn printable(bytes: &[u8]) -> String {
    let escape = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    String::from_utf8_lossy(bytes).chars().map(escape).collect()
}

/// `drwxr-xr-x`, as ls(1) writes it.
pub fn mode_text(kind: FileKind, mode: u32) -> String {
    let letter = match kind {
        FileKind::File => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let mut text = String::from(letter);
    for (shift, special, on, off) in [(6, 0o4000, 's', 'S'), (3, 0o2000, 's', 'S'), (0, 0o1000, 't', 'T')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => on,
            (false, true) => off,
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// What an inode is, in a word or two.
pub fn kind_text(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "folder",
        FileKind::Symlink => "link",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "character device",
        FileKind::BlockDevice => "block device",
    }
}

/// `532 B`, `12.3 MiB`: three digits and a binary unit.
pub fn size_text(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 999.5 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$} {unit}")
}

/// `250 us`, `1.2 ms`, `3.4 s`; `-` for what never happened.
pub fn micros_text(micros: u64) -> String {
    match micros {
        0 => "-".to_owned(),
        1..1000 => format!("{micros} us"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.1} s", micros as f64 / 1e6),
    }
}

/// `1,234,567`.
pub fn count_text(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 miss`, `1,234 misses`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    format!("{} {}", count_text(count), if count == 1 { one } else { many })
}

/// `2026-11-22T01:02:03Z`, with nanoseconds if there are any. UTC, so that it does not depend on who looks.
pub fn time_text(time: Timestamp) -> String {
    let (year, month, day) = civil_date(time.seconds.div_euclid(86_400));
    let second = time.seconds.rem_euclid(86_400);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = if time.nanos == 0 { String::new() } else { format!(".{:09}", time.nanos) };
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{nanos}Z")
}

/// `2026-11-22 01:02`, for listings.
pub fn short_time_text(time: Timestamp) -> String {
    let text = time_text(Timestamp { nanos: 0, ..time });
    let minutes = text.len() - ":00Z".len();
    text[..minutes].replace('T', " ")
}

/// The proleptic Gregorian date of a day counted from 1970-01-01, by 400-year cycles that start on a 1 March.
fn civil_date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let cycle = days.div_euclid(146_097);
    let day = days.rem_euclid(146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (cycle * 400 + year + i64::from(month <= 2), month, day_of_month)
}

/// A table without borders whose columns are aligned as given: `<` left, `>` right.
pub fn table(header: &[&str], alignments: &str) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header);
    for (column, alignment) in alignments.chars().enumerate() {
        if let Some(column) = table.column_mut(column) {
            column.set_padding((0, 2));
            column.set_cell_alignment(if alignment == '>' { CellAlignment::Right } else { CellAlignment::Left });
        }
    }
    table
}

/// Writes a table, trailing blanks removed.
///
/// # Errors
/// Of the writer.
pub fn write_table(out: &mut impl Write, table: &Table) -> io::Result<()> {
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
}

#[cfg(test)]
#[path = "output_test.rs"]
mod tests;
