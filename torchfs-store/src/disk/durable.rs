//! The fsyncs: one fsync of a folder serves all puts that wait for it, and after a failed one nothing is acknowledged.
//!
//! When fsync fails the kernel may already have dropped the dirty pages, so a later fsync that succeeds proves nothing
//! (fsync(2), NOTES on error reporting). The store then takes no writes until an operator has looked and restarted it.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use torchfs_core::IoContext;
use torchfs_core::{Error, Kind, Result, folder};
use tracing::error;

/// Makes files and folders durable. Blocking; for threads that may block.
#[derive(Debug)]
pub struct Durable {
    rounds: Mutex<Rounds>,
    finished: Condvar,
    poison: OnceLock<String>,
    #[cfg(test)]
    pub(super) fail: std::sync::atomic::AtomicBool,
}

/// A round is one pass of fsyncs over the folders collected since the round before it began.
#[derive(Debug)]
struct Rounds {
    collecting: u64,
    finished: u64,
    running: bool,
    folders: BTreeSet<PathBuf>,
}

impl Default for Durable {
    fn default() -> Self {
        let rounds = Rounds { collecting: 1, finished: 0, running: false, folders: BTreeSet::new() };
        Durable {
            rounds: Mutex::new(rounds),
            finished: Condvar::new(),
            poison: OnceLock::new(),
            #[cfg(test)]
            fail: false.into(),
        }
    }
}

impl Durable {
    /// Why no writes are taken, if so.
    #[must_use]
    pub fn poisoned(&self) -> Option<&str> {
        self.poison.get().map(String::as_str)
    }

    /// Whether writes are taken.
    ///
    /// # Errors
    /// `Io` with the reason.
    pub fn check(&self) -> Result<()> {
        match self.poisoned() {
            None => Ok(()),
            Some(reason) => Err(Error::new(
                Kind::Io,
                format!("node takes no writes since an fsync failed ({reason}); check the disk, then restart the node"),
            )),
        }
    }

    /// fdatasync of a file nobody knows yet. A disk that turns out to be full is `NoSpace` and poisons nothing: the file
    /// is thrown away.
    ///
    /// # Errors
    /// `NoSpace`, or `Io` which poisons.
    pub fn sync_file(&self, file: &File, what: &std::path::Path) -> Result<()> {
        let result = self.injected().and_then(|()| file.sync_data()).io(|| format!("fdatasync {}", what.display()));
        match result {
            Err(error) if error.kind() != Kind::NoSpace => Err(self.poison_with(error)),
            other => other,
        }
    }

    /// Work that ends with an fsync of bytes that somebody relies on: any failure poisons.
    ///
    /// # Errors
    /// `Io`.
    pub fn write(&self, what: &std::path::Path, work: impl FnOnce() -> std::io::Result<()>) -> Result<()> {
        let result = self.injected().and_then(|()| work());
        result.io(|| format!("write and fdatasync {}", what.display())).map_err(|error| self.poison_with(error))
    }

    /// Makes the names in a folder durable, together with everyone else who waits for it.
    ///
    /// # Errors
    /// `Io` if this fsync or an earlier one failed.
    pub fn sync_names(&self, folder: PathBuf) -> Result<()> {
        let mut rounds = self.rounds();
        let mine = rounds.collecting;
        rounds.folders.insert(folder);
        while rounds.finished < mine {
            if rounds.running {
                rounds = self.finished.wait(rounds).unwrap_or_else(PoisonError::into_inner);
            } else {
                rounds = self.run_round(rounds);
            }
        }
        drop(rounds);
        self.check()
    }

    fn run_round<'a>(&'a self, mut rounds: MutexGuard<'a, Rounds>) -> MutexGuard<'a, Rounds> {
        rounds.running = true;
        let folders = std::mem::take(&mut rounds.folders);
        let this = rounds.collecting;
        rounds.collecting += 1;
        drop(rounds);
        for folder in folders {
            let result = self.injected().io(|| format!("fsync {}", folder.display()));
            match result.and_then(|()| folder::sync(&folder)) {
                // A group folder is removed only when it is empty: there is no name left to make durable.
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => drop(self.poison_with(error)),
                Ok(()) => {}
            }
        }
        let mut rounds = self.rounds();
        rounds.running = false;
        rounds.finished = this;
        self.finished.notify_all();
        rounds
    }

    fn poison_with(&self, cause: Error) -> Error {
        if self.poison.set(cause.to_string()).is_ok() {
            error!(%cause, "fsync failed: this node takes no more writes until it is restarted");
        }
        self.check().err().unwrap_or(cause)
    }

    fn rounds(&self) -> MutexGuard<'_, Rounds> {
        self.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(not(test))]
    fn injected(&self) -> std::io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    fn injected(&self) -> std::io::Result<()> {
        match self.fail.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(std::io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}
