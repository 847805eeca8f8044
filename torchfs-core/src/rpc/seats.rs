//! [`Seats`]: the connections of one server and the bytes that arrive on them, both bounded in total.
//!
//! - When all seats are taken, whoever has been idle for longest makes room for a newcomer.
//! - A large frame is charged with its bytes as they arrive. At the limit no large frame is read on, but for one at a time, which
//!   may always: so none waits for ever. Whoever has let the others wait, by sending nothing on for [`SILENCE`], goes.
//!
//! In the normal case this costs a frame a few operations on atomic numbers, and no lock.

use crate::settings::FRAME_BYTES_MAX;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

/// Most connections of one server.
const CONNECTIONS_MAX: usize = 4096;

/// Bytes of large frames that have arrived in part, all connections together. The frame that may always go on comes on top.
const ARRIVING_BYTES_MAX: usize = 256 * 1024 * 1024;

const _: () = assert!(ARRIVING_BYTES_MAX >= FRAME_BYTES_MAX);

/// Who holds bytes and sends no further ones for so long goes, if others wait. A lost packet is repeated much sooner.
const SILENCE: Duration = Duration::from_secs(2);

/// Fewer bytes than this are no progress, lest one byte a second counts.
const PROGRESS_BYTES_MIN: usize = 16 * 1024;

/// How often it is looked who lets others wait.
const TEND_INTERVAL: Duration = Duration::from_millis(250);

/// The connections of one server.
#[derive(Debug)]
pub(super) struct Seats {
    limits: Limits,
    begin: Instant,
    arriving_bytes: AtomicUsize,
    short: Notify,
    table: Mutex<Table>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) arriving_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections: CONNECTIONS_MAX, arriving_bytes: ARRIVING_BYTES_MAX }
    }
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    guests: BTreeMap<u64, Arc<Guest>>,
    /// The one who may go on beyond the limit.
    first: Option<u64>,
    waiting: VecDeque<(u64, Waker)>,
}

/// What is known of a connection to all.
#[derive(Debug)]
struct Guest {
    leave: CancellationToken,
    requests: AtomicUsize,
    /// Bytes of the large frame that is arriving.
    arrived_bytes: AtomicUsize,
    waits: AtomicBool,
    /// When it last made progress, in ms since the seats' beginning.
    moved_ms: AtomicU64,
}

/// One connection's seat; free again when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    number: u64,
    guest: Arc<Guest>,
    seats: Arc<Seats>,
    uncounted_bytes: usize,
    is_first: bool,
}

impl Seats {
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let (arriving_bytes, short, table) = Default::default();
        Arc::new(Seats { limits, begin: Instant::now(), arriving_bytes, short, table })
    }

    /// A seat for a newcomer, who leaves at the latest with `stop`. None if all are taken by somebody who is busy.
    pub(super) fn take(self: &Arc<Self>, stop: &CancellationToken) -> Option<Seat> {
        let mut table = self.table();
        if table.guests.len() >= self.limits.connections {
            let idle = table.guests.iter().filter(|(_, guest)| guest.is_idle());
            let (&number, _) = idle.min_by_key(|(_, guest)| guest.moved_ms.load(Ordering::Relaxed))?;
            table.send_away(number);
        }
        let guest = Arc::new(Guest {
            leave: stop.child_token(),
            requests: AtomicUsize::default(),
            arrived_bytes: AtomicUsize::default(),
            waits: AtomicBool::default(),
            moved_ms: AtomicU64::new(self.now_ms()),
        });
        let number = table.next;
        table.next += 1;
        table.guests.insert(number, guest.clone());
        Some(Seat { number, guest, seats: Arc::clone(self), uncounted_bytes: 0, is_first: false })
    }

    /// Sends those away who let others wait, until dropped.
    pub(super) async fn tend(&self) {
        loop {
            self.short.notified().await;
            while self.look() {
                sleep(TEND_INTERVAL).await;
            }
        }
    }

    /// Whether somebody waits.
    fn look(&self) -> bool {
        let mut table = self.table();
        if table.waiting.is_empty() {
            return false;
        }
        let silent_ms = self.now_ms().saturating_sub(SILENCE.as_millis() as u64);
        let mut silent: Vec<(u64, u64, usize)> = Vec::new();
        for (number, guest) in &table.guests {
            let (moved, bytes) = (guest.moved_ms.load(Ordering::Relaxed), guest.arrived_bytes.load(Ordering::Relaxed));
            if bytes > 0 && moved < silent_ms && !guest.waits.load(Ordering::Relaxed) {
                silent.push((moved, *number, bytes));
            }
        }
        silent.sort_unstable();
        let enough = self.limits.arriving_bytes / 4 * 3;
        let mut arriving = self.arriving_bytes.load(Ordering::SeqCst);
        for (_, number, bytes) in silent {
            if arriving < enough {
                break;
            }
            arriving = arriving.saturating_sub(bytes);
            table.send_away(number);
        }
        true
    }

    fn is_short(&self) -> bool {
        self.arriving_bytes.load(Ordering::SeqCst) >= self.limits.arriving_bytes
    }

    fn now_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn send_away(&mut self, number: u64) {
        if let Some(guest) = self.guests.remove(&number) {
            guest.leave.cancel();
        }
    }

    /// Lets those go on who may: everybody, or one who goes first.
    fn wake(&mut self, is_short: bool) {
        let count = match () {
            () if !is_short => self.waiting.len(),
            () if self.first.is_none() => 1,
            () => 0,
        };
        self.waiting.drain(..count.min(self.waiting.len())).for_each(|(_, waker)| waker.wake());
    }
}

impl Guest {
    fn is_idle(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0 && self.arrived_bytes.load(Ordering::Relaxed) == 0
    }
}

impl Seat {
    /// Fires when the connection has to end.
    pub(super) fn leave(&self) -> CancellationToken {
        self.guest.leave.clone()
    }

    /// Says who is busy: so many requests are under way.
    pub(super) fn note(&self) -> Note {
        Note { guest: self.guest.clone(), seats: self.seats.clone() }
    }

    /// Waits until bytes of a large frame may be read.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.seats.is_short() && !self.is_first {
            let seats = Arc::clone(&self.seats);
            let mut table = seats.table();
            table.waiting.retain(|(number, _)| *number != self.number);
            if table.first.is_none() {
                table.first = Some(self.number);
                self.is_first = true;
            } else if seats.is_short() {
                self.guest.waits.store(true, Ordering::Relaxed);
                table.waiting.push_back((self.number, cx.waker().clone()));
                seats.short.notify_one();
                return Poll::Pending;
            }
        }
        if self.guest.waits.swap(false, Ordering::Relaxed) || self.guest.arrived_bytes.load(Ordering::Relaxed) == 0 {
            self.moved();
        }
        Poll::Ready(())
    }

    /// So many bytes of a large frame were read.
    pub(super) fn arrived(&mut self, bytes: usize) {
        self.guest.arrived_bytes.fetch_add(bytes, Ordering::Relaxed);
        self.seats.arriving_bytes.fetch_add(bytes, Ordering::SeqCst);
        self.uncounted_bytes += bytes;
        if self.uncounted_bytes >= PROGRESS_BYTES_MIN {
            self.uncounted_bytes = 0;
            self.moved();
        }
    }

    /// The frame is whole, or given up.
    pub(super) fn release(&mut self) {
        let bytes = self.guest.arrived_bytes.swap(0, Ordering::Relaxed);
        let before = self.seats.arriving_bytes.fetch_sub(bytes, Ordering::SeqCst);
        if before >= self.seats.limits.arriving_bytes || self.is_first {
            let mut table = self.seats.table();
            if std::mem::take(&mut self.is_first) {
                table.first = None;
            }
            let is_short = self.seats.is_short();
            table.wake(is_short);
        }
    }

    fn moved(&self) {
        self.guest.moved_ms.store(self.seats.now_ms(), Ordering::Relaxed);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.release();
        let mut table = self.seats.table();
        table.guests.remove(&self.number);
        table.waiting.retain(|(number, _)| *number != self.number);
        // It may have been woken and not gone on.
        let is_short = self.seats.is_short();
        table.wake(is_short);
    }
}

/// Where a connection says how busy it is.
#[derive(Debug)]
pub(super) struct Note {
    guest: Arc<Guest>,
    seats: Arc<Seats>,
}

impl Note {
    /// So many requests are under way now.
    pub(super) fn requests(&self, count: usize) {
        self.guest.requests.store(count, Ordering::Relaxed);
        self.guest.moved_ms.store(self.seats.now_ms(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::task::noop_waker;

    fn seats(connections: usize, arriving_bytes: usize) -> (Arc<Seats>, CancellationToken) {
        (Seats::new(Limits { connections, arriving_bytes }), CancellationToken::new())
    }

    fn may_read(seat: &mut Seat) -> bool {
        seat.poll_room(&mut Context::from_waker(&noop_waker())).is_ready()
    }

    async fn pass(seats: &Seats, time: Duration) {
        tokio::time::advance(time).await;
        seats.look();
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_is_idle_for_longest_makes_room() {
        let (seats, stop) = seats(3, 100);
        let take = async || {
            tokio::time::advance(Duration::from_millis(10)).await;
            seats.take(&stop)
        };
        let (busy, idle, recent) = (take().await.expect("1"), take().await.expect("2"), take().await.expect("3"));
        busy.note().requests(1);
        let _fourth = take().await.expect("4");
        assert!(idle.leave().is_cancelled() && !busy.leave().is_cancelled() && !recent.leave().is_cancelled());
        recent.note().requests(1);
        let fifth = take().await.expect("5");
        fifth.note().requests(1);
        assert!(take().await.is_none(), "all are busy");
        busy.note().requests(0);
        assert!(take().await.is_some());
        assert!(busy.leave().is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn at_the_limit_one_frame_goes_on_and_the_others_wait_for_it() {
        let (seats, stop) = seats(9, 100);
        let mut all: Vec<Seat> = (0..3).map(|_| seats.take(&stop).expect("room")).collect();
        for seat in &mut all {
            assert!(may_read(seat));
            seat.arrived(40);
        }
        assert_eq!(seats.arriving_bytes.load(Ordering::SeqCst), 120);
        assert!(may_read(&mut all[1]) && !may_read(&mut all[0]) && !may_read(&mut all[2]));
        all[1].arrived(500);
        assert!(may_read(&mut all[1]), "it came first");
        all[1].release();
        assert!(may_read(&mut all[0]) && may_read(&mut all[2]), "there is room again");
        drop(all);
        assert_eq!(seats.arriving_bytes.load(Ordering::SeqCst), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_lets_others_wait_goes_and_nobody_else() {
        let (seats, stop) = seats(9, 100_000);
        let mut silent = seats.take(&stop).expect("room");
        let mut slow = seats.take(&stop).expect("room");
        let mut waiting = seats.take(&stop).expect("room");
        let idle = seats.take(&stop).expect("room");
        assert!(may_read(&mut silent) && may_read(&mut slow));
        silent.arrived(60_000);
        slow.arrived(40_000);
        pass(&seats, 2 * SILENCE).await;
        assert!(!silent.leave().is_cancelled(), "nobody waits");
        assert!(may_read(&mut slow), "the first");
        slow.arrived(PROGRESS_BYTES_MIN);
        assert!(!may_read(&mut waiting));
        pass(&seats, SILENCE / 2).await;
        assert!(silent.leave().is_cancelled());
        assert!(!slow.leave().is_cancelled() && !waiting.leave().is_cancelled() && !idle.leave().is_cancelled());
        drop(silent);
        assert!(may_read(&mut waiting));
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_one_that_is_silent_goes_too() {
        let (seats, stop) = seats(9, 100_000);
        let mut first = seats.take(&stop).expect("room");
        let mut other = seats.take(&stop).expect("room");
        assert!(may_read(&mut first));
        first.arrived(100_000);
        assert!(may_read(&mut first) && !may_read(&mut other));
        for _ in 0..10 {
            // A byte now and then is no progress.
            first.arrived(1);
            pass(&seats, SILENCE / 4).await;
        }
        assert!(first.leave().is_cancelled());
        drop(first);
        assert!(may_read(&mut other));
    }
}
