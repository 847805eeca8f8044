//! The wish to stop, as async work and reader threads see it.

use crate::exit::{Exit, Failure, Outcome};
use tokio::sync::watch;

/// Tells everyone to stop.
#[derive(Debug)]
pub struct Stopper(watch::Sender<bool>);

impl Stopper {
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// Knows whether to stop.
#[derive(Clone, Debug)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    pub fn new() -> (Stopper, Stop) {
        let (stopper, stop) = watch::channel(false);
        (Stopper(stopper), Stop(stop))
    }

    /// For threads, between one piece of work and the next.
    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Runs `work` unless it is time to stop; then `work` is dropped.
    pub async fn or<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let mut stop = self.0.clone();
        tokio::select! {
            outcome = work => outcome,
            Ok(_) = stop.wait_for(|stop| *stop) => Err(Failure::silent(Exit::Interrupted)),
        }
    }
}
