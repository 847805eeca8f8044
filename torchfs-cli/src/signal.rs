//! SIGINT and SIGTERM: one future that resolves when either comes.

use crate::exit::{Exit, Failure, Outcome};
use tokio::signal::unix::{SignalKind, signal};
use torchfs_core::IoContext;

/// Resolves at the first SIGINT or SIGTERM. From then on these signals do nothing by themselves.
///
/// # Errors
/// If the handlers cannot be installed.
pub async fn asked_to_stop() -> Outcome {
    let mut interrupt = signal(SignalKind::interrupt()).io(|| "install a handler for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).io(|| "install a handler for SIGTERM")?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

/// Runs `work` until it is done or a signal comes; then `work` is dropped, which frees what it holds.
pub async fn or_interrupted(work: impl Future<Output = Outcome>) -> Outcome {
    tokio::select! {
        outcome = work => outcome,
        stop = asked_to_stop() => stop.and(Err(Failure::silent(Exit::Interrupted))),
    }
}
