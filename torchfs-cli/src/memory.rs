//! How freed memory goes back to the machine. The buffers of this program are stripes and shards of many MiB, allocated and
//! freed on many threads; glibc, left alone, learns from them to keep all that it was ever given: a mount that used 65 MiB held
//! 300 MiB, which is more than a container may allow it.

/// What is as large as this comes from the machine for itself, and goes back when it is freed: whole stripes. Shards stay below,
/// as pages that the kernel must clear each time cost more than they free.
#[cfg(target_env = "gnu")]
const OWN_BYTES_MIN: libc::c_int = 8 << 20;

/// How much a heap may keep at its end.
#[cfg(target_env = "gnu")]
const KEPT_BYTES_MAX: libc::c_int = 4 << 20;

/// Makes glibc give memory back. Elsewhere the allocator is the system's own and does so by itself.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "mallopt only sets numbers that malloc reads, and nothing else runs yet")]
    // SAFETY: mallopt(3) takes two integers and no memory; it is called first in `main`, before there is a second thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_BYTES_MIN);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES_MAX);
    }
}
