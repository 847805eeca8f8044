//! SIGINT and SIGTERM ask a command to stop. None is lost: one that comes while nobody waits is found by the next wait.

use crate::exit::{Exit, Failure, Outcome};
use tokio::signal::unix::{Signal, SignalKind, signal};
use torchfs_core::IoContext;

/// What asks this process to stop. From its making on these signals do nothing by themselves.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// Listens from now on.
    ///
    /// # Errors
    /// If the handlers cannot be installed.
    pub fn listen() -> Outcome<StopSignals> {
        let interrupt = signal(SignalKind::interrupt()).io(|| "install a handler for SIGINT")?;
        let terminate = signal(SignalKind::terminate()).io(|| "install a handler for SIGTERM")?;
        Ok(StopSignals { interrupt, terminate })
    }

    /// Resolves at the next signal, at once if it has come already.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// What `work` gives; `None` if a signal comes first, and then `work` is dropped, which frees what it holds.
    pub async fn before<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = work => Some(done),
            () = self.next() => None,
        }
    }

    /// What `work` gives, or that it was interrupted.
    ///
    /// # Errors
    /// Those of `work`, and [`Exit::Interrupted`].
    pub async fn or_interrupted(&mut self, work: impl Future<Output = Outcome>) -> Outcome {
        self.before(work).await.unwrap_or_else(|| Err(Failure::silent(Exit::Interrupted)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};
    use std::time::Duration;
    use tokio::time::{sleep, timeout};

    #[tokio::test]
    async fn a_signal_between_two_waits_is_found_by_the_second() {
        let mut stop = StopSignals::listen().expect("listens");
        assert_eq!(stop.before(async { 7 }).await, Some(7));
        kill_process(getpid(), Signal::TERM).expect("is running");
        sleep(Duration::from_millis(50)).await;
        timeout(Duration::from_secs(20), stop.next()).await.expect("the signal is not lost");
    }
}
