//! Answers to the kernel, from results of ours.

use crate::convert;
use crate::errno::errno;
use crate::io_mode::IoMode;
use crate::volume::{Answer, NodeAttr, Opened};
use fuser::{
    BackingId, Errno, FileHandle, FopenFlags, Generation, ReplyAttr, ReplyCreate, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyXattr,
};
use std::time::Duration;
use torchfs_core::meta::{FsStat, XattrName};
use torchfs_core::{Error, Result};

pub const GENERATION: Generation = Generation(0);

/// The errno for the application; what it cannot say goes to the log.
pub fn told(what: &'static str, error: &Error) -> Errno {
    let errno = errno(error);
    if errno.code() == Errno::EIO.code() {
        tracing::warn!("{what}: {error}");
    }
    errno
}

pub fn reply_entry(reply: ReplyEntry, ttl: Duration) -> impl FnOnce(Result<NodeAttr, Errno>) + Send + 'static {
    move |result| match result {
        Ok(shown) => reply.entry(&ttl, &convert::attr(&shown), GENERATION),
        Err(errno) => reply.error(errno),
    }
}

pub fn reply_attr(reply: ReplyAttr, ttl: Duration) -> impl FnOnce(Result<Answer, Errno>) + Send + 'static {
    move |result| match result {
        Ok(Answer::Fresh(shown)) => reply.attr(&ttl, &convert::attr(&shown)),
        Ok(Answer::Known(shown)) => reply.attr(&Duration::ZERO, &convert::attr(&shown)),
        Err(errno) => reply.error(errno),
    }
}

pub fn reply_empty(reply: ReplyEmpty) -> impl FnOnce(Result<(), Errno>) + Send + 'static {
    move |result| match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

pub fn reply_xattr(reply: ReplyXattr, size: u32) -> impl FnOnce(Result<Vec<u8>, Errno>) + Send + 'static {
    move |result| match result {
        Ok(value) if size == 0 => reply.size(value.len() as u32),
        Ok(value) if value.len() <= size as usize => reply.data(&value),
        Ok(_) => reply.error(Errno::ERANGE),
        Err(errno) => reply.error(errno),
    }
}

/// The flags of an opened file, and the local file that the kernel is to name with it.
fn open_flags(opened: &Opened) -> (FopenFlags, Option<&BackingId>) {
    // A close that commits nothing need not be told.
    let close = if opened.may_change { FopenFlags::empty() } else { FopenFlags::FOPEN_NOFLUSH };
    match &opened.io {
        IoMode::Cached if opened.keep_pages => (close | FopenFlags::FOPEN_KEEP_CACHE, None),
        IoMode::Cached => (close, None),
        IoMode::Passthrough(backing) => (close, Some(backing)),
        IoMode::Direct => (close | FopenFlags::FOPEN_DIRECT_IO, None),
    }
}

pub fn reply_opened(reply: ReplyOpen, opened: &Opened) {
    let handle = FileHandle(opened.handle);
    match open_flags(opened) {
        (flags, Some(backing)) => reply.opened_passthrough(handle, flags, backing),
        (flags, None) => reply.opened(handle, flags),
    }
}

pub fn reply_created(reply: ReplyCreate, ttl: Duration, shown: &NodeAttr, opened: &Opened) {
    let (handle, attr) = (FileHandle(opened.handle), convert::attr(shown));
    match open_flags(opened) {
        (flags, Some(backing)) => reply.created_passthrough(&ttl, &attr, GENERATION, handle, flags, backing),
        (flags, None) => reply.created(&ttl, &attr, GENERATION, handle, flags),
    }
}

/// Blocks of 4 KiB of content that fit: raw space divided by what the root folder's profile spends per byte.
pub fn content_blocks(raw_bytes: u64, stat: &FsStat) -> u64 {
    let (k, n) = stat.profile.map_or((1, 1), |profile| (u64::from(profile.data), profile.shards() as u64));
    raw_bytes / 4096 * k / n
}

/// Names as listxattr(2) wants them: each followed by NUL.
pub fn xattr_list(names: &[XattrName]) -> Vec<u8> {
    names.iter().flat_map(|name| name.as_bytes().iter().copied().chain([0])).collect()
}
