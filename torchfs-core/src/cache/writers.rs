//! [`Writers`]: the threads that write to the disk of a cache.
//!
//! The files of a batch come all at once. A thread that writes goes on with what has come meanwhile, because waking one for each
//! file takes as long as writing a small one.

use super::CHUNK_BYTES;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Threads at a time: disks are kept busy.
const THREADS_MAX: usize = 8;

/// With more than this to write for each thread, another one helps.
const THREAD_BYTES: u64 = CHUNK_BYTES;

type Job = Box<dyn FnOnce() + Send>;

/// Writes what it is given, on threads of the runtime's that may block. What is waiting is bounded by who gives it.
#[derive(Debug, Default)]
pub(super) struct Writers {
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(u64, Job)>,
    bytes: u64,
    threads: usize,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("jobs", &self.jobs.len()).field("threads", &self.threads).finish_non_exhaustive()
    }
}

/// A thread that writes, or is about to.
struct Thread {
    writers: Arc<Writers>,
    is_done: bool,
}

impl Writers {
    /// Has a job done that writes so many bytes. It is dropped undone if the runtime ends before.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn run(self: &Arc<Self>, bytes: u64, job: impl FnOnce() + Send + 'static) {
        let thread = {
            let mut queue = self.queue();
            queue.jobs.push_back((bytes, Box::new(job)));
            queue.bytes += bytes;
            let is_much = queue.bytes > queue.threads as u64 * THREAD_BYTES;
            (is_much && queue.threads < THREADS_MAX).then(|| {
                queue.threads += 1;
                Thread { writers: self.clone(), is_done: false }
            })
        };
        if let Some(thread) = thread {
            tokio::task::spawn_blocking(move || thread.work());
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Thread {
    fn work(mut self) {
        while let Some(job) = self.next() {
            // The others are not to blame for one that panics, which was reported.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    }

    /// With none it is over, in the same moment: who comes then starts another thread.
    fn next(&mut self) -> Option<Job> {
        let mut queue = self.writers.queue();
        let next = queue.jobs.pop_front();
        match &next {
            Some((bytes, _)) => queue.bytes -= bytes,
            None => {
                queue.threads -= 1;
                self.is_done = true;
            }
        }
        next.map(|(_, job)| job)
    }
}

impl Drop for Thread {
    /// The runtime ended before it began.
    fn drop(&mut self) {
        if self.is_done {
            return;
        }
        let undone = {
            let mut queue = self.writers.queue();
            queue.threads -= 1;
            if queue.threads > 0 {
                return;
            }
            queue.bytes = 0;
            std::mem::take(&mut queue.jobs)
        };
        drop(undone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn all_are_done_whatever_becomes_of_others() {
        let (writers, done) = (Arc::<Writers>::default(), Arc::<AtomicUsize>::default());
        for round in 0..200 {
            let (said, heard) = mpsc::channel::<()>();
            for number in 0..20 {
                let (done, said) = (done.clone(), said.clone());
                writers.run(64 * 1024, move || {
                    let _said = said;
                    assert!(number != 7 || round != 3, "one panics");
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
            drop(said);
            assert_eq!(heard.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected), "round {round}");
        }
        assert_eq!(done.load(Ordering::Relaxed), 200 * 20 - 1);
    }

    #[tokio::test]
    async fn more_threads_help_with_more_bytes() {
        for (bytes, threads) in [(THREAD_BYTES / 32, 1), (THREAD_BYTES * 2, THREADS_MAX)] {
            let writers = Arc::<Writers>::default();
            let (begun, begins) = mpsc::channel();
            let (end, ended) = mpsc::channel::<()>();
            let ended = Arc::new(Mutex::new(ended));
            for _ in 0..20 {
                let (begun, ended) = (begun.clone(), ended.clone());
                writers.run(bytes, move || {
                    begun.send(()).expect("counted");
                    let _ = ended.lock().expect("no panic").recv();
                });
            }
            (0..threads).for_each(|_| begins.recv_timeout(PATIENCE).expect("begins"));
            assert!(begins.recv_timeout(Duration::from_millis(100)).is_err(), "no more than {threads} threads");
            drop(end);
        }
    }

    #[test]
    fn what_a_runtime_leaves_undone_is_dropped() {
        let writers = Arc::<Writers>::default();
        let runtime =
            || tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().expect("a runtime");
        let (first, held) = (runtime(), Arc::new(()));
        let (end, ended) = mpsc::channel::<()>();
        first.spawn_blocking(move || ended.recv());
        let holds = held.clone();
        first.block_on(async { writers.run(1, move || drop(holds)) });
        first.shutdown_background();
        drop(end);
        let start = std::time::Instant::now();
        while Arc::strong_count(&held) > 1 {
            assert!(start.elapsed() < PATIENCE, "its job is still there");
            std::thread::yield_now();
        }
        let (said, heard) = mpsc::channel();
        runtime().block_on(async { writers.run(1, move || said.send(()).expect("heard")) });
        heard.recv_timeout(PATIENCE).expect("the next runtime does what is new");
    }
}
