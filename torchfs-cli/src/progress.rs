//! Progress bars on stderr: bytes, files, rate and what is left. None when stderr is not a terminal or with `--quiet`.

use crate::args::Global;
use crate::output::{count_text, size_text};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::{IsTerminal, stderr};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::task::JoinHandle;
use torchfs_core::client::Progress;

const REDRAW: Duration = Duration::from_millis(100);

/// Shows counters until it is dropped, then removes the line.
#[derive(Debug)]
pub struct Bar {
    bar: ProgressBar,
    redraw: Option<JoinHandle<()>>,
}

impl Bar {
    /// Shows `progress` under a word. Must be called inside a runtime.
    pub fn start(word: &str, progress: Arc<Progress>, global: &Global) -> Self {
        if global.quiet || !stderr().is_terminal() {
            return Bar { bar: ProgressBar::hidden(), redraw: None };
        }
        let bar = ProgressBar::no_length().with_style(style(progress.clone())).with_message(word.to_owned());
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
        bar.set_length(progress.bytes_total.load(Relaxed));
        bar.set_position(progress.bytes.load(Relaxed));
        tokio::time::sleep(REDRAW).await;
    }
}

fn style(progress: Arc<Progress>) -> ProgressStyle {
    let template = "{msg} {bar:24} {amount}  {files} files  {rate}  {left}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    style
        .progress_chars("=> ")
        .with_key("amount", |state: &ProgressState, w: &mut dyn Write| {
            let _ = write!(w, "{} of {}", size_text(state.pos()), size_text(state.len().unwrap_or(0)));
        })
        .with_key("files", move |_: &ProgressState, w: &mut dyn Write| {
            let (done, total) = (progress.files.load(Relaxed), progress.files_total.load(Relaxed));
            let _ = write!(w, "{} of {}", count_text(done), count_text(total));
        })
        .with_key("rate", |state: &ProgressState, w: &mut dyn Write| {
            let _ = write!(w, "{}/s", size_text(state.per_sec() as u64));
        })
        .with_key("left", |state: &ProgressState, w: &mut dyn Write| {
            let _ = write!(w, "{} left", duration_text(state.eta()));
        })
}

fn duration_text(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=89 => format!("{seconds} s"),
        seconds @ 90..=5399 => format!("{} min", (seconds + 30) / 60),
        seconds => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_rounded_to_what_matters() {
        let text = |seconds| duration_text(Duration::from_secs(seconds));
        assert_eq!(text(42), "42 s");
        assert_eq!(text(90), "2 min");
        assert_eq!(text(3600), "60 min");
        assert_eq!(text(7265), "2 h 01 min");
    }
}
