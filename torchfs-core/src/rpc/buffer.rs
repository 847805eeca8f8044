//! Receive buffers that are used again.
//!
//! A fresh MiB from the allocator costs 256 page faults, about as much as receiving it. Buffers return here when the last
//! slice of them is dropped; what is kept is bounded.

use bytes::Bytes;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Smaller buffers are left to the allocator, which serves them without page faults.
const POOLED_BYTES_MIN: usize = 64 * 1024;

/// Larger buffers are too rare to be worth keeping.
const POOLED_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Most bytes of unused buffers that the process keeps.
const KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;

static UNUSED: Mutex<Unused> = Mutex::new(Unused { buffers: Vec::new(), bytes: 0 });

struct Unused {
    buffers: Vec<Vec<u8>>,
    bytes: usize,
}

impl Unused {
    /// The buffer given back last that is large enough and less than twice too large: it is the likeliest to be in cache.
    fn take(&mut self, capacity: usize) -> Option<Vec<u8>> {
        let at = self.buffers.iter().rposition(|buffer| (capacity..capacity * 2).contains(&buffer.capacity()))?;
        let buffer = self.buffers.remove(at);
        self.bytes -= buffer.capacity();
        Some(buffer)
    }

    fn give_back(&mut self, mut buffer: Vec<u8>) {
        if self.bytes + buffer.capacity() <= KEPT_BYTES_MAX {
            buffer.clear();
            self.bytes += buffer.capacity();
            self.buffers.push(buffer);
        }
    }
}

fn unused() -> MutexGuard<'static, Unused> {
    UNUSED.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_pooled(capacity: usize) -> bool {
    (POOLED_BYTES_MIN..=POOLED_BYTES_MAX).contains(&capacity)
}

/// An empty buffer for at least `bytes`, not zeroed.
pub(super) fn take(bytes: usize) -> Vec<u8> {
    if !is_pooled(bytes) {
        return Vec::with_capacity(bytes);
    }
    let capacity = bytes.next_power_of_two();
    unused().take(capacity).unwrap_or_else(|| Vec::with_capacity(capacity))
}

/// The buffer's content, shared; the buffer comes back here when the last slice is dropped.
pub(super) fn share(buffer: Vec<u8>) -> Bytes {
    if is_pooled(buffer.capacity()) { Bytes::from_owner(Pooled(buffer)) } else { Bytes::from(buffer) }
}

struct Pooled(Vec<u8>);

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        unused().give_back(std::mem::take(&mut self.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_only_after_its_last_slice() {
        let mut unused = Unused { buffers: Vec::new(), bytes: 0 };
        unused.give_back(Vec::with_capacity(1 << 20));
        assert!(unused.take(1 << 21).is_none(), "too small");
        assert!(unused.take(1 << 18).is_none(), "far too large");
        assert_eq!(unused.take(1 << 20).expect("fits").capacity(), 1 << 20);
        assert_eq!(unused.bytes, 0);

        let mut buffer = take(POOLED_BYTES_MAX);
        buffer.extend_from_slice(b"content");
        let shared = share(buffer);
        let slice = shared.slice(2..);
        drop(shared);
        assert_eq!(&slice[..], b"ntent");
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut unused = Unused { buffers: Vec::new(), bytes: 0 };
        for _ in 0..100 {
            unused.give_back(Vec::with_capacity(1 << 20));
        }
        assert_eq!(unused.bytes, KEPT_BYTES_MAX);
    }
}
