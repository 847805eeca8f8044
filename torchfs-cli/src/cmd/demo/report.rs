//! What the demo found, as a table and a verdict.

use super::dataset::Dataset;
use super::epoch::EpochResult;
use crate::exit::{Exit, Failure, Outcome, Tally};
use crate::output::{self, count_text, size_text};
use std::io::Write;
use torchfs_core::meta::Status;

/// Most files that are named when they are wrong.
const NAMED_MAX: usize = 10;

/// The epochs so far.
#[derive(Debug, Default)]
pub struct Report {
    epochs: Vec<EpochResult>,
}

impl Report {
    pub fn add(&mut self, epoch: EpochResult) {
        self.epochs.push(epoch);
    }

    /// Writes the table, and what the files take in the cluster.
    pub fn print(&self, status: &Status, dataset: &Dataset) -> Outcome {
        let mut table = output::table(&["epoch", "files/s", "MB/s", "seconds", "verified", "stopped"], ">>>>><");
        for epoch in &self.epochs {
            table.add_row([
                epoch.number.to_string(),
                count_text((epoch.verified as f64 / epoch.seconds) as u64),
                format!("{:.1}", epoch.bytes as f64 / epoch.seconds / 1e6),
                format!("{:.2}", epoch.seconds),
                format!("{} of {}", count_text(epoch.verified), count_text(dataset.files.len() as u64)),
                epoch.stopped.clone(),
            ]);
        }
        let mut out = output::stdout();
        writeln!(out)?;
        output::write_table(&mut out, &table)?;
        writeln!(out)?;
        let factor = status.stored_bytes as f64 / status.bytes.max(1) as f64;
        let (stored, bytes) = (size_text(status.stored_bytes), size_text(status.bytes));
        writeln!(out, "stored    {stored} for {bytes} of files: {factor:.2} x")?;
        if self.failures() == 0 {
            writeln!(
                out,
                "verified  every byte of every file in every epoch, also without the nodes that were stopped"
            )?;
        }
        Ok(out.flush()?)
    }

    fn failures(&self) -> usize {
        self.epochs.iter().map(|epoch| epoch.failed.len()).sum()
    }

    /// Fails if a single file was wrong or could not be read.
    pub fn verdict(self) -> Outcome {
        let failures = self.failures();
        if failures == 0 {
            return Ok(());
        }
        let failed = self.epochs.into_iter().flat_map(|epoch| {
            let number = epoch.number;
            epoch.failed.into_iter().map(move |(path, error)| (number, path, error))
        });
        let mut tally = Tally::new("demo");
        for (number, path, error) in failed.take(NAMED_MAX) {
            tally.note(Err(Failure::from(error).context(format!("epoch {number}: {path}")).without_hint()))?;
        }
        let exit = tally.finish().err().map_or(Exit::Failed, |failure| failure.exit);
        Err(Failure::new(exit, format!("{failures} reads were not right")))
    }
}

/// `2,000 files, 31.2 MiB in 1.21 s: 1,652 files/s, 27.0 MB/s`.
pub fn rates(files: u64, bytes: u64, seconds: f64) -> String {
    format!(
        "{} files, {} in {seconds:.2} s: {} files/s, {:.1} MB/s",
        count_text(files),
        size_text(bytes),
        count_text((files as f64 / seconds) as u64),
        bytes as f64 / seconds / 1e6
    )
}
