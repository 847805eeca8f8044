//! [`Quiet`]: polls a future again, instead of rescheduling its task, when it woke itself while being polled.
//!
//! A connection's task wakes itself with every request: through the channel its answers come by, through the queue of its
//! deadlines. tokio answers such a wake with a yield that wakes another worker thread, which steals the task with its cold
//! cache. Two such wakes per request cost as much as copying its MiB.
//!
//! A poll that worked for long is the exception: it yields. While a worker is busy, nobody may be looking for what has become
//! ready: an idle worker that sleeps without the runtime's I/O driver is woken only by such a yield. Without it both ends
//! of a busy connection in one process end up taking turns on one worker, at half the rate.

use futures::task::AtomicWaker;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

/// After so many polls in a row other tasks get their turn.
const POLLS_MAX: u32 = 8;

/// A poll that takes longer yields: about what it takes to receive a few large payloads.
const LONG: Duration = Duration::from_micros(300);

const IDLE: u8 = 0;
const POLLING: u8 = 1;
const WOKEN: u8 = 2;

/// A future whose wakes of itself stay inside.
#[derive(Debug)]
pub(super) struct Quiet<F> {
    future: Pin<Box<F>>,
    gate: Arc<Gate>,
    waker: Waker,
}

#[derive(Debug, Default)]
struct Gate {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Wake for Gate {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let while_polling = self.state.compare_exchange(POLLING, WOKEN, Ordering::AcqRel, Ordering::Acquire);
        if while_polling == Err(IDLE) {
            self.task.wake();
        }
    }
}

impl<F> Quiet<F> {
    pub(super) fn new(future: F) -> Self {
        let gate = Arc::new(Gate::default());
        Quiet { future: Box::pin(future), waker: Waker::from(Arc::clone(&gate)), gate }
    }
}

impl<F: Future> Future for Quiet<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        this.gate.task.register(cx.waker());
        let start = Instant::now();
        for _ in 0..POLLS_MAX {
            this.gate.state.store(POLLING, Ordering::Release);
            let polled = this.future.as_mut().poll(&mut Context::from_waker(&this.waker));
            let was_woken = this.gate.state.swap(IDLE, Ordering::AcqRel) == WOKEN;
            if polled.is_ready() {
                return polled;
            }
            if start.elapsed() >= LONG {
                break;
            }
            if !was_woken {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use tokio::sync::mpsc;

    /// Counts the wakes that reach the task.
    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_wake_of_itself_stays_inside_and_one_from_elsewhere_does_not() {
        let (sender, mut receiver) = mpsc::channel(4);
        let own = sender.clone();
        let future = Quiet::new(async move {
            let mut sum = 0;
            let mut own = Some(own);
            loop {
                let received = std::future::poll_fn(|cx| {
                    let received = receiver.poll_recv(cx);
                    if let (Poll::Pending, Some(own)) = (&received, own.take()) {
                        own.try_send(1).expect("room");
                    }
                    received
                });
                match received.await {
                    Some(number) => sum += number,
                    None => return sum,
                }
            }
        });
        let mut future = std::pin::pin!(future);
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let cx = &mut Context::from_waker(&waker);
        assert!(future.as_mut().poll(cx).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 0, "its own message was taken without a wake");
        sender.try_send(10).expect("room");
        drop(sender);
        assert!(count.0.load(Ordering::Relaxed) > 0);
        assert_eq!(future.as_mut().poll(cx), Poll::Ready(11));
    }

    #[test]
    fn long_work_gives_way_once() {
        let mut is_first = true;
        let mut worker = Quiet::new(std::future::poll_fn(|_| {
            let start = Instant::now();
            while is_first && start.elapsed() < LONG * 2 {}
            is_first = false;
            Poll::<()>::Pending
        }));
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        for _ in 0..2 {
            assert!(Pin::new(&mut worker).poll(&mut Context::from_waker(&waker)).is_pending());
            assert_eq!(count.0.load(Ordering::Relaxed), 1);
        }
    }

    #[test]
    fn a_future_that_never_rests_gives_way() {
        let mut restless = Quiet::new(std::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        assert!(Pin::new(&mut restless).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }
}
