//! Writing large shards past the page cache (O_DIRECT, see open(2)).
//!
//! A shard is written once and read later, if at all before it falls out of memory. Through the page cache the kernel
//! copies it into memory that it must find first; that took two thirds of a node's time under `put`. What arrives from the
//! network lies at any address, and the device wants aligned ones, so bytes pass through a small buffer that stays in the
//! processor's cache.

use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Shards from this size on are written past the page cache. Smaller ones cost little and are more likely read soon.
pub const DIRECT_BYTES_MIN: usize = 256 * 1024;

/// Written at a time: large enough for the full rate of a disk, small enough for the processor's cache.
const BUFFER_BYTES: usize = 1024 * 1024;

/// Alignment of the buffers; files that need more are not written this way.
const ALIGN_MAX: usize = 4096;

/// Buffers kept for the next write.
const IDLE_MAX: usize = 8;

/// The buffers of one store.
#[derive(Debug, Default)]
pub struct Buffers(Mutex<Vec<Buffer>>);

impl Buffers {
    /// Writes as much of `parts`, one after the other from the beginning of `file`, as can be written past the page cache;
    /// returns how much. 0 where the file system has no such way, or the file is not worth it.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn write(&self, file: &File, parts: [&[u8]; 2]) -> std::io::Result<usize> {
        let total = parts[0].len() + parts[1].len();
        let Some(align) = (total >= DIRECT_BYTES_MIN).then(|| alignment(file)).flatten() else {
            return Ok(0);
        };
        let end = total - total % align;
        let flags = rustix::fs::fcntl_getfl(file)?;
        match rustix::fs::fcntl_setfl(file, flags | OFlags::DIRECT) {
            Err(Errno::INVAL) => return Ok(0),
            set => set?,
        }
        let mut buffer = self.idle().pop().unwrap_or_default();
        let mut written = 0;
        while written < end {
            let chunk = buffer.chunk(BUFFER_BYTES.min(end - written));
            fill(chunk, parts, written);
            file.write_all_at(chunk, written as u64)?;
            written += chunk.len();
        }
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(buffer);
        }
        drop(idle);
        rustix::fs::fcntl_setfl(file, flags)?;
        Ok(written)
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Buffer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What addresses, offsets and lengths of direct writes must be multiples of; `None` if the kernel does not say, or says that
/// there is no such way.
fn alignment(file: &File) -> Option<usize> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let align = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align) as usize;
    let known = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN);
    (known && stat.stx_dio_offset_align > 0 && align <= ALIGN_MAX && ALIGN_MAX.is_multiple_of(align)).then_some(align)
}

/// Copies the bytes at `at` of the parts together.
fn fill(chunk: &mut [u8], parts: [&[u8]; 2], at: usize) {
    let [first, second] = parts;
    let head = &first[at.min(first.len())..];
    let head = &head[..head.len().min(chunk.len())];
    let from = (at + head.len()) - first.len();
    let rest = chunk.len() - head.len();
    chunk[..head.len()].copy_from_slice(head);
    chunk[head.len()..].copy_from_slice(&second[from..from + rest]);
}

/// Memory with a part that begins at an aligned address.
#[derive(Debug)]
struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Buffer(vec![0; BUFFER_BYTES + ALIGN_MAX])
    }
}

impl Buffer {
    fn chunk(&mut self, len: usize) -> &mut [u8] {
        let start = self.0.as_ptr().align_offset(ALIGN_MAX);
        &mut self.0[start..start + len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_the_parts_in_order() {
        let dir = tempfile::tempdir().expect("folder");
        let buffers = Buffers::default();
        let noise: Vec<u8> = (0..3_000_000u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        for (first, second) in [(512, 4096), (512, 262_144), (512, 1 << 20), (512, 2_100_001), (512, (1 << 20) - 512)] {
            let path = dir.path().join(format!("{second}"));
            let file = File::options().read(true).write(true).create_new(true).open(path).expect("created");
            let parts = [&noise[..first], &noise[first..first + second]];
            let total = first + second;
            let written = buffers.write(&file, parts).expect("written");
            assert!(written <= total && file.metadata().expect("metadata").len() == written as u64);
            if total < DIRECT_BYTES_MIN || alignment(&file).is_none() {
                assert_eq!(written, 0);
            } else {
                assert!(total - written < ALIGN_MAX, "{written} of {total}");
            }
            file.write_all_at(&noise[written..total], written as u64).expect("the rest is written as ever");
            let mut back = vec![0; total];
            file.read_exact_at(&mut back, 0).expect("read");
            assert!(back == noise[..total]);
        }
        assert!(buffers.idle().len() <= 1);
    }
}
