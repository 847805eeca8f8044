//! Progress bars on stderr: bytes, files, what is left, and the rate. None when stderr is not a terminal or with `--quiet`.
//!
//! A frame is one line that fits the terminal, and shows all counters as they were at one moment.

use crate::args::Global;
use crate::output::{count_text, size_text};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use rustix::termios::tcgetwinsize;
use std::fmt::Write;
use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::task::JoinHandle;
use torchfs_core::client::Progress;

const REDRAW: Duration = Duration::from_millis(100);

/// Of a terminal that does not tell.
const COLUMNS: usize = 80;

/// How wide the bar itself is: as wide as there is room, and at least as much as shows something.
const BAR_COLUMNS_MIN: usize = 10;
const BAR_COLUMNS_MAX: usize = 24;

/// What takes longer than this is not known well enough to be told.
const LEFT_MAX: Duration = Duration::from_secs(100 * 3600);

/// Shows counters until it is dropped, then removes the line.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    redraw: Option<JoinHandle<()>>,
}

impl Bar {
    /// Shows `progress` under a word. Must be called inside a runtime.
    pub fn start(word: &str, progress: Arc<Progress>, global: &Global) -> Self {
        Bar::of("files", word, progress, global)
    }

    /// Shows the files of `progress` under a word, when they are something else. Must be called inside a runtime.
    pub fn of(things: &'static str, word: &str, progress: Arc<Progress>, global: &Global) -> Self {
        if global.quiet || !stderr().is_terminal() {
            return Bar { bar: ProgressBar::hidden(), redraw: None };
        }
        let bar = ProgressBar::no_length().with_style(style(things, word.to_owned(), progress.clone()));
        let redraw = tokio::spawn(redraw(bar.clone(), progress));
        Bar { bar, redraw: Some(redraw) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(redraw) = &self.redraw {
            redraw.abort();
        }
        self.bar.finish_and_clear();
    }
}

async fn redraw(bar: ProgressBar, progress: Arc<Progress>) {
    loop {
        let (done, total) = main_counter(&progress);
        // One frame for both.
        bar.update(|state| {
            state.set_len(total);
            state.set_pos(done);
        });
        tokio::time::sleep(REDRAW).await;
    }
}

/// Bytes, where there are any.
fn main_counter(progress: &Progress) -> (u64, u64) {
    match progress.bytes_total.load(Relaxed) {
        0 => (progress.files.load(Relaxed), progress.files_total.load(Relaxed)),
        total => (progress.bytes.load(Relaxed), total),
    }
}

fn style(things: &'static str, word: String, progress: Arc<Progress>) -> ProgressStyle {
    let style = ProgressStyle::with_template("{frame}").unwrap_or_else(|_| ProgressStyle::default_bar());
    style.with_key("frame", move |state: &ProgressState, w: &mut dyn Write| {
        let (done, total) = (state.pos(), state.len().unwrap_or(0));
        let frame = Frame {
            things,
            word: &word,
            bytes: (progress.bytes_total.load(Relaxed) > 0).then_some((done, total)),
            files: (progress.files.load(Relaxed), progress.files_total.load(Relaxed)),
            per_second: state.per_sec() as u64,
            left: state.eta(),
            elapsed: state.elapsed(),
        };
        let _ = w.write_str(&frame.line(columns()));
    })
}

/// How much of a line is used: with the last column the cursor would be in the next line already.
fn columns() -> usize {
    let told = tcgetwinsize(stderr()).map_or(0, |size| usize::from(size.ws_col));
    if told == 0 { COLUMNS - 1 } else { told - 1 }
}

/// What is shown at one moment.
#[derive(Clone, Debug)]
struct Frame<'a> {
    things: &'static str,
    word: &'a str,
    /// Done and in all, if bytes are counted.
    bytes: Option<(u64, u64)>,
    files: (u64, u64),
    /// Bytes, or files where no bytes are counted.
    per_second: u64,
    left: Duration,
    elapsed: Duration,
}

impl Frame<'_> {
    /// At most so many columns: what is worth least is left out first.
    fn line(&self, columns: usize) -> String {
        let (done, total) = self.bytes.unwrap_or(self.files);
        if total == 0 {
            let spinner = ["|", "/", "-", "\\"][(self.elapsed.as_millis() / REDRAW.as_millis()) as usize % 4];
            return cut(format!("{} {spinner} listing...", self.word), columns);
        }
        let is_moving = self.per_second > 0 && done > 0;
        let left = (is_moving && done < total && self.left < LEFT_MAX).then(|| duration_text(self.left));
        let parts = [
            self.bytes.map(|(done, total)| format!("{} of {}", size_text(done), size_text(total))),
            left.map(|left| format!("{left} left")),
            Some(format!("{} of {} {}", count_text(self.files.0), count_text(self.files.1), self.things)),
            self.bytes.filter(|_| is_moving).map(|_| format!("{}/s", size_text(self.per_second))),
        ];
        let mut text = String::new();
        let room = columns.saturating_sub(self.word.len() + 1 + BAR_COLUMNS_MIN);
        for part in parts.into_iter().flatten() {
            if text.len() + 2 + part.len() > room {
                break;
            }
            text.push_str("  ");
            text.push_str(&part);
        }
        let bar = (room - text.len().min(room) + BAR_COLUMNS_MIN).min(BAR_COLUMNS_MAX);
        cut(format!("{} {}{text}", self.word, bar_text(done, total, bar)), columns)
    }
}

/// `=====>    `
fn bar_text(done: u64, total: u64, columns: usize) -> String {
    let full = (u128::from(done.min(total)) * columns as u128 / u128::from(total.max(1))) as usize;
    let head = if full < columns { ">" } else { "" };
    let bar = format!("{}{head}", "=".repeat(full));
    format!("{bar:columns$}")
}

fn cut(line: String, columns: usize) -> String {
    if line.len() <= columns { line } else { line.chars().take(columns).collect() }
}

/// Rounded up: what is not over takes some time.
fn duration_text(duration: Duration) -> String {
    match duration.as_secs_f64().ceil() as u64 {
        seconds @ 0..=89 => format!("{seconds} s"),
        seconds @ 90..=5399 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame<'_> = Frame {
        things: "files",
        word: "warming",
        bytes: Some((4 << 30, 137 << 30)),
        files: (41_000, 1_281_167),
        per_second: 300 << 20,
        left: Duration::from_secs(454),
        elapsed: Duration::from_millis(250),
    };

    #[test]
    fn what_is_left_is_rounded_to_what_matters() {
        let text = |seconds| duration_text(Duration::from_secs(seconds));
        assert_eq!(duration_text(Duration::from_millis(30)), "1 s");
        assert_eq!(text(42), "42 s");
        assert_eq!(text(90), "2 min");
        assert_eq!(text(3600), "60 min");
        assert_eq!(text(7265), "2 h 01 min");
    }

    #[test]
    fn a_frame_fits_the_terminal_and_says_as_much_as_fits() {
        for columns in 1..200 {
            assert!(FRAME.line(columns).len() <= columns, "{}", FRAME.line(columns));
        }
        let text = "4.00 GiB of 137 GiB  8 min left  41,000 of 1,281,167 files";
        assert_eq!(FRAME.line(79), format!("warming >{:10}  {text}", ""));
        assert_eq!(FRAME.line(40), format!("warming >{:10}  4.00 GiB of 137 GiB", ""));
        let wide = FRAME.line(120);
        assert!(wide.ends_with("8 min left  41,000 of 1,281,167 files  300 MiB/s"), "{wide}");
    }

    #[test]
    fn nothing_is_estimated_that_is_not_known() {
        let unknown = Frame { bytes: None, files: (0, 0), per_second: 0, left: Duration::ZERO, ..FRAME };
        assert_eq!(unknown.line(79), "warming - listing...");
        let still = Frame { bytes: Some((0, 5 << 20)), files: (0, 3), per_second: 0, left: Duration::ZERO, ..FRAME };
        assert_eq!(still.line(60), format!("warming >{:20}  0 B of 5.00 MiB  0 of 3 files", ""));
        let ends = Frame { bytes: Some((5 << 20, 5 << 20)), files: (3, 3), ..FRAME };
        assert!(ends.line(79).contains(" ========================  5.00 MiB of") && !ends.line(79).contains("left"));
        let epochs = Frame { things: "epochs", word: "sim", bytes: None, files: (5, 20), per_second: 1, ..FRAME };
        assert!(epochs.line(79).ends_with("  8 min left  5 of 20 epochs"), "{}", epochs.line(79));
    }
}
