//! [`Flights`]: each chunk is fetched once, however many readers want it at the same time.

use crate::error::{Error, Kind, Result};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use std::collections::HashMap;
use std::future::Future;
use std::ops::Range;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Bytes that were fetched, and where in the file they start.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub start: u64,
    pub data: Bytes,
}

impl Run {
    /// Whether the byte at `at` is in it.
    pub fn contains(&self, at: u64) -> bool {
        (self.start..self.start + self.data.len() as u64).contains(&at)
    }

    /// The part of it inside a range, which starts in it.
    pub fn slice(&self, range: &Range<u64>) -> Bytes {
        let start = (range.start - self.start) as usize;
        let end = ((range.end - self.start) as usize).min(self.data.len());
        self.data.slice(start..end)
    }
}

/// Where the bytes of a fetch go, or why there are none.
pub(super) type Landed = oneshot::Sender<Result<Run>>;

/// A fetch under way that any number of readers wait for. It ends early only when nobody can want it any more.
pub(super) type Flight = Shared<BoxFuture<'static, Result<Run>>>;

/// The fetches under way of one file, by chunk.
#[derive(Debug, Default)]
pub(super) struct Flights {
    chunks: HashMap<u32, (u64, Flight)>,
    last: u64,
    tasks: JoinSet<()>,
}

impl Flights {
    pub fn get(&self, chunk: u32) -> Option<Flight> {
        self.chunks.get(&chunk).map(|(_, flight)| flight.clone())
    }

    /// Whether the bytes of a chunk have come.
    pub fn has_landed(&self, chunk: u32) -> bool {
        self.get(chunk).and_then(Flight::now_or_never).is_some_and(|run| run.is_ok())
    }

    pub fn contains(&self, chunk: u32) -> bool {
        self.chunks.contains_key(&chunk)
    }

    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Starts the fetch of some chunks. `fetch` is given a number, under which it is ended, and where its bytes go: readers have
    /// them from then on, whatever is still done with them.
    pub fn start<F>(&mut self, chunks: Range<u32>, fetch: impl FnOnce(u64, Landed) -> F) -> Flight
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.last += 1;
        let number = self.last;
        let (landed, landing) = oneshot::channel();
        while self.tasks.try_join_next().is_some() {}
        self.tasks.spawn(fetch(number, landed));
        let flight = async move {
            let given_up = |error| Err(Error::caused(Kind::Cancelled, "a fetch was given up", error));
            landing.await.unwrap_or_else(given_up)
        };
        let flight = flight.boxed().shared();
        for chunk in chunks {
            self.chunks.insert(chunk, (number, flight.clone()));
        }
        flight
    }

    /// Forgets a fetch.
    pub fn end(&mut self, number: u64) {
        self.chunks.retain(|_, (current, _)| *current != number);
    }
}
