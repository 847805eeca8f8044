//! [`Gather`]: group commit. What is asked while a group is under way waits, and goes together as the next.
//!
//! The rule: whoever asks alone is served at once and by itself; waiting for company happens only behind others. So one
//! writer's latency is untouched, and many writers share round trips and disk writes, the more of them the more there are.
//!
//! A task of its own does the work, not the one who asks: that one may not be polled for a while, or be dropped, and others wait.

use crate::error::{Error, Kind, Result};
use futures::future::BoxFuture;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Most items of a group.
pub(crate) const GROUP_MAX: usize = 64;

/// Serves a group: one answer per item, in their order.
type Serve<I, O> = dyn Fn(Vec<I>) -> BoxFuture<'static, Vec<Result<O>>> + Send + Sync;

/// Serves what is asked of it in groups.
pub(crate) struct Gather<I, O> {
    shared: Arc<Shared<I, O>>,
    deadline: Duration,
    /// Ends with this.
    workers: Mutex<JoinSet<()>>,
}

struct Shared<I, O> {
    queue: Mutex<Queue<I, O>>,
    serve: Box<Serve<I, O>>,
}

struct Queue<I, O> {
    is_busy: bool,
    waiting: VecDeque<Asked<I, O>>,
}

/// An item and where its answer goes.
type Asked<I, O> = (I, oneshot::Sender<Result<O>>);

/// Notes the end of the worker, also when it is aborted or panics.
struct Working<'a, I, O>(&'a Shared<I, O>);

impl<I, O> Drop for Working<'_, I, O> {
    fn drop(&mut self) {
        self.0.queue().is_busy = false;
    }
}

impl<I, O> fmt::Debug for Gather<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gather").finish_non_exhaustive()
    }
}

impl<I: Send + 'static, O: Send + 'static> Gather<I, O> {
    /// Groups are served by `serve`, one after the other. Nobody waits for an answer for longer than `deadline`.
    pub fn new<F>(deadline: Duration, serve: impl Fn(Vec<I>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<Result<O>>> + Send + 'static,
    {
        let queue = Mutex::new(Queue { is_busy: false, waiting: VecDeque::new() });
        let serve: Box<Serve<I, O>> = Box::new(move |group| Box::pin(serve(group)));
        Gather { shared: Arc::new(Shared { queue, serve }), deadline, workers: Mutex::default() }
    }

    /// Has an item served, alone or in a group. If this future is dropped, the item may be served all the same, unless its
    /// turn has not come by then.
    ///
    /// # Errors
    /// The answer to the item; `Timeout` if there is none in time, and then the outcome is not known; `Cancelled` if the
    /// runtime shuts down.
    pub async fn ask(&self, item: I) -> Result<O> {
        let (sender, answer) = oneshot::channel();
        self.enqueue((item, sender));
        match timeout(self.deadline, answer).await {
            Ok(answer) => {
                answer.unwrap_or_else(|_| Err(Error::new(Kind::Cancelled, "the work was given up before it was done")))
            }
            Err(_) => {
                let message = format!("no answer within {} s; repeat it later", self.deadline.as_secs());
                Err(Error::new(Kind::Timeout, message))
            }
        }
    }

    fn enqueue(&self, asked: Asked<I, O>) {
        let mut queue = self.shared.queue();
        queue.waiting.push_back(asked);
        if std::mem::replace(&mut queue.is_busy, true) {
            return;
        }
        drop(queue);
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        while workers.try_join_next().is_some() {}
        workers.spawn(work(self.shared.clone()));
    }
}

impl<I, O> Shared<I, O> {
    fn queue(&self) -> MutexGuard<'_, Queue<I, O>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Serves one group after the other until nobody waits.
async fn work<I: Send + 'static, O: Send + 'static>(shared: Arc<Shared<I, O>>) {
    let working = Working(&shared);
    loop {
        let (items, senders): (Vec<I>, Vec<_>) = {
            let mut queue = shared.queue();
            // What nobody waits for any more must not happen late.
            queue.waiting.retain(|(_, sender)| !sender.is_closed());
            if queue.waiting.is_empty() {
                // Before the lock is free: who asks next must find that nobody works.
                queue.is_busy = false;
                std::mem::forget(working);
                return;
            }
            let count = queue.waiting.len().min(GROUP_MAX);
            queue.waiting.drain(..count).unzip()
        };
        for (sender, answer) in senders.into_iter().zip((shared.serve)(items).await) {
            // Whoever asked may have given up.
            sender.send(answer).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Semaphore;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The groups that were served.
    type Groups = Arc<Mutex<Vec<Vec<u64>>>>;

    /// Answers twice the item after a permit, and notes the groups.
    fn doubling() -> (Arc<Gather<u64, u64>>, Arc<Semaphore>, Groups) {
        let (gate, groups) = (Arc::new(Semaphore::new(0)), Groups::default());
        let (to_pass, seen) = (gate.clone(), groups.clone());
        let gather = Gather::new(2 * PATIENCE, move |group: Vec<u64>| {
            let gate = to_pass.clone();
            seen.lock().expect("no panic").push(group.clone());
            async move {
                gate.acquire().await.expect("open").forget();
                let answer = |item| if item == 13 { Err(Error::new(Kind::NotFound, "13")) } else { Ok(2 * item) };
                group.into_iter().map(answer).collect()
            }
        });
        (Arc::new(gather), gate, groups)
    }

    #[tokio::test]
    async fn who_comes_while_a_group_is_under_way_goes_together_and_each_has_its_own_answer() {
        let (gather, gate, groups) = doubling();
        let mut asked = Vec::new();
        for item in [1, 11, 12, 13] {
            let gather = gather.clone();
            asked.push(tokio::spawn(async move { gather.ask(item).await }));
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        let mut answers = Vec::new();
        for task in asked {
            let answer = timeout(PATIENCE, task).await.expect("in time").expect("no panic");
            answers.push(answer.map_err(|error| error.kind()));
        }
        assert_eq!(answers, [Ok(2), Ok(22), Ok(24), Err(Kind::NotFound)]);
        assert_eq!(*groups.lock().expect("no panic"), [vec![1], vec![11, 12, 13]]);
    }

    #[tokio::test]
    async fn who_gives_up_takes_nobody_along_and_alone_is_served_at_once() {
        let (gather, gate, groups) = doubling();
        assert!(timeout(Duration::from_millis(20), gather.ask(1)).await.is_err(), "the gate is shut");
        gate.add_permits(2);
        assert_eq!(timeout(PATIENCE, gather.ask(2)).await.expect("in time").expect("is served"), 4);
        assert_eq!(*groups.lock().expect("no panic"), [vec![1], vec![2]]);
    }

    #[tokio::test]
    async fn a_group_that_panics_is_an_error_and_the_next_is_served() {
        let gather = Gather::new(2 * PATIENCE, |group: Vec<u64>| async move {
            assert!(!group.contains(&0), "zero");
            group.into_iter().map(Ok).collect::<Vec<Result<u64>>>()
        });
        let failed = timeout(PATIENCE, gather.ask(0)).await.expect("in time").expect_err("it panicked");
        assert_eq!(failed.kind(), Kind::Cancelled);
        assert_eq!(timeout(PATIENCE, gather.ask(5)).await.expect("in time").expect("is served"), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever_and_what_was_given_up_in_the_queue_is_not_served() {
        let (gather, gate, groups) = doubling();
        let later = async {
            tokio::task::yield_now().await;
            gather.ask(2).await
        };
        let (first, second) = tokio::join!(gather.ask(1), later);
        for answer in [first, second] {
            assert_eq!(answer.expect_err("the gate is shut").kind(), Kind::Timeout);
        }
        gate.add_permits(2);
        assert_eq!(gather.ask(3).await.expect("is served"), 6);
        assert_eq!(*groups.lock().expect("no panic"), [vec![1], vec![3]]);
    }

    #[tokio::test]
    async fn no_group_is_larger_than_the_most() {
        let (gather, gate, groups) = doubling();
        let all = (100..100 + 3 * GROUP_MAX as u64).map(|item| gather.ask(item));
        gate.add_permits(10);
        let answers = timeout(PATIENCE, futures::future::join_all(all)).await.expect("in time");
        assert!(answers.iter().all(Result::is_ok));
        let groups = groups.lock().expect("no panic");
        assert!(groups.iter().all(|group| group.len() <= GROUP_MAX) && groups.len() <= 5, "{groups:?}");
    }
}
