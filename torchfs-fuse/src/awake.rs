//! [`Awake`]: keeps the processors of a virtual machine from being halted while one reader opens one small file after the other.
//!
//! Such a file takes some ten microseconds of work, and its reader and the mount wait for each other twice. When either waits, its processor is
//! idle; in a virtual machine it is halted then, and waking it takes the hypervisor longer than the work. Linux polls for a while
//! before that (`guest_halt_poll_ns`, 200 us unless the machine says otherwise), which some providers switch off. Where it is left on, or the
//! processors are real, there is little to win, and all of them would burn power: nothing is done there.
//!
//! Source: Linux, Documentation/virt/guest-halt-polling.rst and Documentation/power/pm_qos_interface.rst.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// What decides how an idle processor waits, and what it is called if that is to halt.
const GOVERNOR: (&str, &str) = ("/sys/devices/system/cpu/cpuidle/current_governor", "haltpoll");

/// For how long it polls before, in nanoseconds.
const POLLS: &str = "/sys/module/haltpoll/parameters/guest_halt_poll_ns";

/// Whoever holds it open says how many microseconds a processor may take to wake.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// Opens that follow each other faster than this on average are by a reader that waits for little else.
const OFTEN: Duration = Duration::from_micros(500);

/// So many opens are counted together, before processors are kept awake...
const COUNTED: u64 = 32;

/// ...and after that, whether they go on is seen so often.
const SEEN: Duration = Duration::from_millis(20);

/// After so long, if it could not be done.
const TRIED_AGAIN: Duration = Duration::from_secs(60);

/// Whether the processors are kept awake, by how often files are opened.
#[derive(Debug)]
pub struct Awake {
    /// The device that keeps them so, if there is anything to win.
    device: Option<PathBuf>,
    opens: AtomicU64,
    /// When the latest of them that were counted together began, in microseconds from `began`.
    since: AtomicU64,
    began: Instant,
    wanted: Notify,
    /// In microseconds.
    spent: AtomicU64,
}

impl Awake {
    /// By what this machine does with idle processors.
    pub fn on_this_machine() -> Self {
        let is_halted = fs::read_to_string(GOVERNOR.0).is_ok_and(|governor| governor.trim() == GOVERNOR.1)
            && fs::read_to_string(POLLS).is_ok_and(|polls| polls.trim() == "0");
        Awake::new(is_halted.then(|| LATENCY.into()))
    }

    /// Never, without a device.
    pub fn new(device: Option<PathBuf>) -> Self {
        Awake {
            device,
            opens: AtomicU64::new(0),
            since: AtomicU64::new(0),
            began: Instant::now(),
            wanted: Notify::new(),
            spent: AtomicU64::new(0),
        }
    }

    /// The one reader of an order opened a file.
    pub fn opened(&self) {
        if self.device.is_none() || !(self.opens.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(COUNTED) {
            return;
        }
        let now = self.began.elapsed();
        let since = Duration::from_micros(self.since.swap(now.as_micros() as u64, Ordering::Relaxed));
        if now.saturating_sub(since) < OFTEN * COUNTED as u32 {
            self.wanted.notify_one();
        }
    }

    /// For how long they were kept awake.
    pub fn spent(&self) -> Duration {
        Duration::from_micros(self.spent.load(Ordering::Relaxed))
    }

    /// Keeps them awake when it is worth it, until it is dropped; they may sleep as soon as the process is gone.
    pub async fn run(&self) {
        let Some(device) = &self.device else { return std::future::pending().await };
        loop {
            self.wanted.notified().await;
            let held = match hold(device) {
                Ok(held) => held,
                Err(error) => {
                    tracing::debug!(
                        "idle processors are halted while small files are read: {}: {error}",
                        device.display()
                    );
                    tokio::time::sleep(TRIED_AGAIN).await;
                    continue;
                }
            };
            while self.are_often().await {}
            drop(held);
        }
    }

    /// Sees for a while, which counts as spent, whether files are opened often.
    async fn are_often(&self) -> bool {
        let (before, began) = (self.opens.load(Ordering::Relaxed), Instant::now());
        tokio::time::sleep(SEEN).await;
        let opens = self.opens.load(Ordering::Relaxed) - before;
        let passed = began.elapsed();
        self.spent.fetch_add(passed.as_micros() as u64, Ordering::Relaxed);
        passed <= OFTEN.saturating_mul(u32::try_from(opens).unwrap_or(u32::MAX))
    }
}

/// No processor may take any time to wake, until this is closed.
fn hold(device: &Path) -> io::Result<File> {
    let mut held = OpenOptions::new().write(true).open(device)?;
    held.write_all(&0_i32.to_ne_bytes())?;
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// Whether this process has a file open.
    fn is_open(path: &Path) -> bool {
        let opened = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        opened.into_iter().any(|opened| opened == path)
    }

    async fn becomes(what: impl Fn() -> bool) {
        let waited = async {
            while !what() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), waited).await.unwrap();
    }

    #[tokio::test]
    async fn they_are_kept_awake_as_long_as_files_are_opened_often() {
        let dir = tempfile::tempdir().unwrap();
        let device = fs::canonicalize(dir.path()).unwrap().join("latency");
        fs::write(&device, "").unwrap();
        let awake = Arc::new(Awake::new(Some(device.clone())));
        let task = tokio::spawn({
            let awake = awake.clone();
            async move { awake.run().await }
        });
        for _ in 0..2 {
            becomes(|| {
                (0..COUNTED).for_each(|_| awake.opened());
                is_open(&device)
            })
            .await;
            assert_eq!(fs::read(&device).unwrap(), [0; 4]);
            becomes(|| !is_open(&device)).await;
        }
        becomes(|| awake.spent() >= 2 * SEEN).await;
        task.abort();
    }

    #[tokio::test]
    async fn they_sleep_while_the_reader_computes_and_where_there_is_nothing_to_win() {
        let dir = tempfile::tempdir().unwrap();
        let device = fs::canonicalize(dir.path()).unwrap().join("latency");
        fs::write(&device, "").unwrap();
        let awake = Awake::new(Some(device.clone()));
        let computes = async {
            for _ in 0..3 * COUNTED {
                awake.opened();
                tokio::time::sleep(2 * OFTEN).await;
                assert!(!is_open(&device));
            }
        };
        tokio::select! {
            () = awake.run() => (),
            () = computes => (),
        }
        assert_eq!(awake.spent(), Duration::ZERO);
        let nothing = Awake::new(None);
        (0..10 * COUNTED).for_each(|_| nothing.opened());
        assert_eq!(nothing.opens.load(Ordering::Relaxed), 0);
    }
}
