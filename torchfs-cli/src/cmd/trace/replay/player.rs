//! [`Player`]: the threads of a replay.

use crate::args::{Reads, TraceReplay};
use crate::exit::Outcome;
use crate::output::json;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use torchfs_core::IoContext;
use torchfs_core::client::Progress;
use torchfs_core::observe::Latency;
use torchfs_core::trace::{Action, Plan, Step};

/// What is read or made at once.
const PIECE_BYTES: usize = 1024 * 1024;

/// A replay under way.
pub struct Player {
    pub plan: Plan,
    pub args: TraceReplay,
    progress: Arc<Progress>,
    opens: Latency,
    reads: Latency,
    read_bytes: AtomicU64,
    nameless_opens: AtomicU64,
    /// Files that failed, by their number, and how.
    failed: Mutex<BTreeMap<u32, String>>,
    is_stopped: Mutex<bool>,
    stopped: Condvar,
}

/// The files that one thread has open.
struct Lane {
    files: HashMap<u32, (u32, File)>,
    buffer: Vec<u8>,
}

impl Player {
    pub fn new(plan: Plan, args: TraceReplay, progress: Arc<Progress>) -> Player {
        progress.files_total.store(plan.opens, Ordering::Relaxed);
        progress.bytes_total.store(bytes_to_read(&plan, args.reads), Ordering::Relaxed);
        Player {
            plan,
            args,
            progress,
            opens: Latency::default(),
            reads: Latency::default(),
            read_bytes: AtomicU64::new(0),
            nameless_opens: AtomicU64::new(0),
            failed: Mutex::default(),
            is_stopped: Mutex::new(false),
            stopped: Condvar::new(),
        }
    }

    /// Does everything. Blocks as long as that takes, or until it is stopped.
    ///
    /// # Errors
    /// If files cannot be made.
    pub fn play(&self) -> Outcome<json::Replayed> {
        let made_files = if self.args.make_files { self.make_files()? } else { 0 };
        let began = Instant::now();
        std::thread::scope(|scope| {
            for steps in &self.plan.lanes {
                scope.spawn(|| self.play_lane(steps));
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        let (opens, read_bytes) = (self.opens.stats(), self.read_bytes.load(Ordering::Relaxed));
        Ok(json::Replayed {
            seconds,
            threads: self.plan.lanes.len() as u64,
            opens,
            reads: self.reads.stats(),
            read_bytes,
            files_per_second: (opens.requests - opens.failures) as f64 / seconds,
            bytes_per_second: read_bytes as f64 / seconds,
            made_files,
            failed_files: self.failures().len() as u64,
            nameless_opens: self.nameless_opens.load(Ordering::Relaxed),
        })
    }

    /// Lets all threads end after their present step.
    pub fn stop(&self) {
        *self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.stopped.notify_all();
    }

    /// The files that failed, and how.
    pub fn failed(&self) -> Vec<(PathBuf, String)> {
        let path = |file: u32| self.path(file).unwrap_or_default();
        self.failures().iter().map(|(&file, reason)| (path(file), reason.clone())).collect()
    }

    fn failures(&self) -> MutexGuard<'_, BTreeMap<u32, String>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn play_lane(&self, steps: &[Step]) {
        let mut lane = Lane { files: HashMap::new(), buffer: vec![0; PIECE_BYTES] };
        for step in steps {
            if self.pause(self.args.speed.pause(step.gap)) {
                return;
            }
            match step.action {
                Action::Open { handle, file } => self.open(&mut lane, handle, file),
                Action::Read { handle, offset, len } if self.args.reads == Reads::Recorded => {
                    self.read(&mut lane, handle, offset, len);
                }
                Action::Read { .. } => {}
                Action::Close { handle } => drop(lane.files.remove(&handle)),
            }
        }
    }

    /// Waits; whether it is to stop.
    fn pause(&self, time: Duration) -> bool {
        let is_stopped = self.is_stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.stopped.wait_timeout_while(is_stopped, time, |is_stopped| !*is_stopped);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn open(&self, lane: &mut Lane, handle: u32, file: u32) {
        let Some(path) = self.path(file) else {
            self.nameless_opens.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let began = Instant::now();
        let opened = File::open(&path);
        self.opens.add(began.elapsed(), opened.is_err());
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        match opened {
            Ok(opened) => {
                lane.files.insert(handle, (file, opened));
                if self.args.reads == Reads::Whole {
                    self.read(lane, handle, 0, u64::MAX);
                }
            }
            Err(error) => self.fail(file, &error),
        }
    }

    /// Reads a range, or as much of it as there is.
    fn read(&self, lane: &mut Lane, handle: u32, mut offset: u64, mut len: u64) {
        let Some((file, opened)) = lane.files.get(&handle) else { return };
        while len > 0 {
            let piece = usize::try_from(len).unwrap_or(usize::MAX).min(PIECE_BYTES);
            let began = Instant::now();
            let read = opened.read_at(&mut lane.buffer[..piece], offset);
            self.reads.add(began.elapsed(), read.is_err());
            match read {
                Ok(0) => return,
                Ok(read) => {
                    self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
                    self.progress.bytes.fetch_add(read as u64, Ordering::Relaxed);
                    offset += read as u64;
                    len = if read < piece { 0 } else { len - read as u64 };
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return self.fail(*file, &error),
            }
        }
    }

    fn fail(&self, file: u32, error: &io::Error) {
        self.failures().entry(file).or_insert_with(|| error.to_string());
    }

    /// Where a file is now, if its name is known.
    fn path(&self, file: u32) -> Option<PathBuf> {
        let path = self.plan.files[file as usize].path.as_deref()?;
        Some(self.args.dir.join(OsStr::from_bytes(path.strip_prefix(b"/")?)))
    }

    /// Makes what is missing; how many files.
    fn make_files(&self) -> Outcome<u64> {
        let mut noise = vec![0; PIECE_BYTES];
        StdRng::seed_from_u64(1).fill_bytes(&mut noise);
        let mut made = 0;
        for (number, file) in (0..).zip(&self.plan.files) {
            let Some(path) = self.path(number) else { continue };
            let written = write_new(&path, &noise, file.bytes).io(|| format!("make {}", path.display()))?;
            made += u64::from(written);
        }
        Ok(made)
    }
}

/// Makes a file and the folders above it; whether it was not there.
fn write_new(path: &PathBuf, noise: &[u8], bytes: u64) -> io::Result<bool> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = match File::options().write(true).create_new(true).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut left = bytes;
    while left > 0 {
        let piece = left.min(noise.len() as u64);
        file.write_all(&noise[..piece as usize])?;
        left -= piece;
    }
    Ok(true)
}

fn bytes_to_read(plan: &Plan, reads: Reads) -> u64 {
    let file_bytes = |step: &Step| match step.action {
        Action::Open { file, .. } => plan.files[file as usize].bytes,
        Action::Read { .. } | Action::Close { .. } => 0,
    };
    match reads {
        Reads::Recorded => plan.read_bytes,
        Reads::Whole => plan.lanes.iter().flatten().map(file_bytes).sum(),
    }
}
