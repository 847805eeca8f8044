//! The FUSE side: each callback turns its arguments into ours, starts a task, and the task replies. No callback waits.

use crate::convert::{self, call, caller, how};
use crate::errno::errno;
use crate::handles::Intent;
use crate::node::Node;
use crate::reply::{
    GENERATION, content_blocks, reply_attr, reply_created, reply_empty, reply_entry, reply_opened, reply_xattr, told,
    xattr_list,
};
use crate::unmount::own_attribute;
use crate::volume::{Change, NodeAttr, Seek, Volume, WriteAt, attr_change, new_inode, readable_xattr};
use bytes::Bytes;
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use rustix::fs::{OFlags, XattrFlags};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;
use torchfs_core::meta::{IfExists, NewKind, RenameMode, XattrMode};
use torchfs_core::trace::{Op, Record};

/// The largest write the kernel sends at once.
const WRITE_BYTES_MAX: u32 = 1024 * 1024;

/// The kernel's readahead for one file.
const READAHEAD_BYTES: u32 = 1024 * 1024;

/// The callbacks of one mount.
#[derive(Debug)]
pub struct Adapter {
    pub volume: Arc<Volume>,
    pub runtime: Handle,
    pub tasks: TaskTracker,
}

impl Adapter {
    pub fn new(volume: Arc<Volume>, runtime: Handle, tasks: TaskTracker) -> Self {
        Adapter { volume, runtime, tasks }
    }
}

impl Filesystem for Adapter {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        // Without FUSE_ATOMIC_O_TRUNC the kernel would ask for the cut as truncate(2) does, not through the handle, and the old
        // version would be gone before the new one is closed. With it, it looks too late whether the file is a running program.
        let wanted = [
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_READDIRPLUS_AUTO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PASSTHROUGH,
        ];
        for flag in wanted {
            if config.add_capabilities(flag).is_err() {
                tracing::debug!("the kernel does not offer {flag:?}");
            }
        }
        // Each setter answers with the nearest possible value when ours is out of range.
        if let Err(nearest) = config.set_max_write(WRITE_BYTES_MAX) {
            let _ = config.set_max_write(nearest);
        }
        if let Err(nearest) = config.set_max_readahead(READAHEAD_BYTES) {
            let _ = config.set_max_readahead(nearest);
        }
        let _ = config.set_max_background(64);
        // The cache may be on a plain file system only; in return this mount can be a layer of an overlay.
        let _ = config.set_max_stack_depth(1);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = convert::name(name);
        self.answer(
            call(Op::Lookup, request, parent),
            |volume| async move { volume.lookup(convert::ino(parent), name?).await },
            reply_entry(reply, self.volume.told.ttl),
        );
    }

    fn forget(&self, _request: &Request, ino: INodeNo, lookups: u64) {
        self.volume.handles.forget(Node::of(ino), lookups);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            call(Op::Getattr, request, ino),
            |volume| async move { volume.attr(Node::of(ino)).await },
            reply_attr(reply, self.volume.told.ttl),
        );
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _created: Option<SystemTime>,
        _changed: Option<SystemTime>,
        _backup: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let rest = attr_change(mode, uid, gid, atime.map(convert::time), mtime.map(convert::time));
        let change = Change { size, rest };
        let handle = handle.map(|handle| handle.0);
        self.answer_write(
            call(Op::Setattr, request, ino),
            |volume| async move { volume.set_attr(Node::of(ino), change, handle).await },
            reply_attr(reply, self.volume.told.ttl),
        );
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            call(Op::Readlink, request, ino),
            |volume| async move { volume.read_link(convert::ino(ino)).await },
            move |result| match result {
                Ok(target) => reply.data(&target),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let made = convert::node_kind(mode, rdev).map(|kind| new_inode(kind, mode, request.uid(), request.gid()));
        self.make(call(Op::Mknod, request, parent), name, made, reply);
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let inode = new_inode(NewKind::Directory, mode, request.uid(), request.gid());
        self.make(call(Op::Mkdir, request, parent), name, Ok(inode), reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let kind = NewKind::Symlink(target.as_os_str().as_bytes().to_vec());
        let inode = new_inode(kind, 0o777, request.uid(), request.gid());
        self.make(call(Op::Symlink, request, parent), name, Ok(inode), reply);
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::name(name);
        self.answer(
            call(Op::Unlink, request, parent),
            |volume| async move { volume.unlink(convert::ino(parent), name?).await },
            reply_empty(reply),
        );
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::name(name);
        self.answer(
            call(Op::Rmdir, request, parent),
            |volume| async move { volume.rmdir(convert::ino(parent), name?).await },
            reply_empty(reply),
        );
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        let (name, new_name) = (convert::name(name), convert::name(new_name));
        self.answer(
            call(Op::Rename, request, parent),
            |volume| async move {
                volume.rename((convert::ino(parent), name?), (convert::ino(new_parent), new_name?), mode).await
            },
            reply_empty(reply),
        );
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = convert::name(name);
        self.answer(
            call(Op::Link, request, parent),
            |volume| async move { volume.link(convert::ino(ino), convert::ino(parent), name?).await },
            reply_entry(reply, self.volume.told.ttl),
        );
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let how = how(request, flags);
        if let Some(opened) = self.open_special(ino, how) {
            return match opened {
                Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
                Err(errno) => reply.error(errno),
            };
        }
        let op = if how.intent == Intent::Write { Op::OpenWrite } else { Op::Open };
        let volume = self.volume.clone();
        self.answer(
            call(op, request, ino),
            |volume| async move {
                let opened = loop {
                    let opened = match volume.open(Node::of(ino), how).await {
                        Ok(opening) => volume.opened(opening, |file| reply.open_backing(file)).await,
                        Err(error) => Err(error),
                    };
                    if let Some(opened) = opened.transpose() {
                        break opened;
                    }
                };
                Ok((reply, opened))
            },
            move |result| match result {
                Ok((reply, Ok(opened))) => {
                    reply_opened(reply, &opened);
                    if let Some(next) = opened.next {
                        volume.give_pages_ahead(next);
                    }
                }
                Ok((reply, Err(error))) => reply.error(told("open", &error)),
                // The reply went down with the work that passed its deadline, which fuser answers with EIO.
                Err(_) => (),
            },
        );
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let name = convert::name(name);
        let inode = new_inode(NewKind::File, mode, request.uid(), request.gid());
        let how = how(request, OpenFlags(flags));
        let ttl = self.volume.told.ttl;
        let exclusive = flags & OFlags::EXCL.bits() as i32 != 0;
        let if_exists = if exclusive { IfExists::Fail } else { IfExists::Keep };
        self.answer(
            call(Op::Create, request, parent),
            |volume| async move { volume.create(convert::ino(parent), name?, inode, if_exists, how).await },
            move |result| match result {
                Ok((shown, opened)) => reply_created(reply, ttl, &shown, &opened),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.answer(
            Record { handle: handle.0, offset, len: size.into(), ..call(Op::Read, request, ino) },
            |volume| async move { volume.read(handle.0, offset, size as usize).await },
            move |result| match result {
                Ok(data) => reply.data(&data),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let len = data.len() as u32;
        let data = Bytes::copy_from_slice(data);
        let caller = caller(request);
        self.answer_write(
            Record { handle: handle.0, offset, len: len.into(), ..call(Op::Write, request, ino) },
            |volume| async move { volume.write(handle.0, WriteAt::of(offset, flags), data, caller).await.map(|()| len) },
            |result| match result {
                Ok(len) => reply.written(len),
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn flush(&self, request: &Request, ino: INodeNo, handle: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        let caller = caller(request);
        self.answer_write(
            Record { handle: handle.0, ..call(Op::Flush, request, ino) },
            |volume| async move { volume.flush(handle.0, caller).await },
            reply_empty(reply),
        );
    }

    fn fsync(&self, request: &Request, ino: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.answer_write(
            Record { handle: handle.0, ..call(Op::Fsync, request, ino) },
            |volume| async move { volume.sync(handle.0).await },
            reply_empty(reply),
        );
    }

    fn release(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.answer_write(
            Record { handle: handle.0, ..call(Op::Release, request, ino) },
            |volume| async move { volume.release(handle.0).await },
            reply_empty(reply),
        );
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(how) = convert::allocation(mode) else { return reply.error(Errno::EOPNOTSUPP) };
        let Some(end) = offset.checked_add(length) else { return reply.error(Errno::EFBIG) };
        self.answer_write(
            Record { handle: handle.0, offset, len: length, ..call(Op::Fallocate, request, ino) },
            move |volume| async move { volume.allocate(handle.0, offset..end, how).await },
            reply_empty(reply),
        );
    }

    fn copy_file_range(
        &self,
        request: &Request,
        _from: INodeNo,
        from: FileHandle,
        from_offset: u64,
        ino: INodeNo,
        to: FileHandle,
        to_offset: u64,
        bytes: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // More than the answer can tell is copied by the next call.
        let bytes = bytes.min(u32::MAX.into());
        let call = Record { handle: to.0, offset: to_offset, len: bytes, ..call(Op::CopyFileRange, request, ino) };
        let copy =
            |volume: &Volume| volume.copy_range((from.0, from_offset), (to.0, to_offset), bytes, caller(request));
        match self.at_once(call, copy) {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(told("copy_file_range", &error)),
        }
    }

    fn lseek(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let what = match whence {
            SEEK_DATA => Seek::Data,
            SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let call = Record { handle: handle.0, offset, ..call(Op::Lseek, request, ino) };
        match self.at_once(call, |volume| volume.seek(handle.0, offset, what)) {
            Ok(Some(found)) => reply.offset(found as i64),
            Ok(None) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(told("lseek", &error)),
        }
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let handle = self.volume.handles.insert_dir(convert::ino(ino));
        self.note(Record { handle, ..call(Op::Opendir, request, ino) });
        reply.opened(FileHandle(handle), FopenFlags::empty());
    }

    fn readdir(&self, request: &Request, ino: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.answer(
            Record { handle: handle.0, offset, ..call(Op::Readdir, request, ino) },
            |volume| async move {
                let result = volume.read_dir(handle.0, offset, |entry| {
                    let kind = convert::file_type(entry.kind);
                    reply.add(entry.node.number(), entry.next, kind, OsStr::from_bytes(entry.name))
                });
                let result = result.await;
                Ok((result, reply))
            },
            |result| match result {
                Ok((Ok(()), reply)) => reply.ok(),
                Ok((Err(error), reply)) => reply.error(told("readdir", &error)),
                // The reply went down with the work that passed its deadline, which fuser answers with EIO.
                Err(_) => (),
            },
        );
    }

    fn readdirplus(
        &self,
        request: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.answer(
            Record { handle: handle.0, offset, ..call(Op::Readdir, request, ino) },
            |volume| async move {
                let result = volume.read_dir(handle.0, offset, |entry| {
                    let name = OsStr::from_bytes(entry.name);
                    match entry.attr {
                        Some(attr) => {
                            let shown = NodeAttr { node: entry.node, attr };
                            let (attr, ttl) = (convert::attr(&shown), &volume.told.ttl);
                            let full = reply.add(attr.ino, entry.next, name, ttl, &attr, GENERATION);
                            if !full {
                                volume.tell_listed(entry.dir, entry.name, &shown);
                            }
                            full
                        }
                        // The kernel knows `.` and `..` itself and takes nothing but their type from here.
                        None => {
                            let attr = convert::bare_directory(entry.node);
                            reply.add(attr.ino, entry.next, name, &Duration::ZERO, &attr, GENERATION)
                        }
                    }
                });
                let result = result.await;
                Ok((result, reply))
            },
            |result| match result {
                Ok((Ok(()), reply)) => reply.ok(),
                Ok((Err(error), reply)) => reply.error(told("readdir", &error)),
                Err(_) => (),
            },
        );
    }

    fn releasedir(&self, request: &Request, ino: INodeNo, handle: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.note(Record { handle: handle.0, ..call(Op::Releasedir, request, ino) });
        self.volume.handles.remove_dir(handle.0);
        reply.ok();
    }

    /// Names are durable when the call that made them returns.
    fn fsyncdir(&self, request: &Request, ino: INodeNo, handle: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.note(Record { handle: handle.0, ..call(Op::Fsyncdir, request, ino) });
        reply.ok();
    }

    fn statfs(&self, request: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.answer(
            call(Op::Statfs, request, ino),
            |volume| async move { volume.fs_stat().await },
            move |result| match result {
                Ok(stat) => {
                    let blocks = content_blocks(stat.capacity_bytes, &stat);
                    let free = content_blocks(stat.capacity_bytes.saturating_sub(stat.used_bytes), &stat);
                    // Inodes have no limit of their own; the free ones shown are more than anything needs.
                    let inodes_free = u64::from(u32::MAX);
                    reply.statfs(blocks, free, free, stat.inodes + inodes_free, inodes_free, 4096, 255, 4096);
                }
                Err(errno) => reply.error(errno),
            },
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match XattrFlags::from_bits_retain(flags as u32) {
            XattrFlags::CREATE => XattrMode::Create,
            XattrFlags::REPLACE => XattrMode::Replace,
            _ => XattrMode::Either,
        };
        let (name, value) = (convert::xattr_name(name), value.to_vec());
        self.answer(
            call(Op::Setxattr, request, ino),
            |volume| async move { volume.set_xattr(convert::ino(ino), name?, value, mode).await },
            reply_empty(reply),
        );
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if let Some(value) = own_attribute(ino, name, &self.volume) {
            return reply_xattr(reply, size)(Ok(value));
        }
        // The kernel asks for security.capability before every write: no task for what is never there.
        match convert::xattr_name(name).and_then(readable_xattr) {
            Ok(name) => self.answer(
                call(Op::Getxattr, request, ino),
                |volume| async move { volume.xattr(convert::ino(ino), name).await },
                reply_xattr(reply, size),
            ),
            Err(error) => {
                let errno = errno(&error);
                self.note(Record { errno: errno.code() as u16, ..call(Op::Getxattr, request, ino) });
                reply.error(errno);
            }
        }
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.answer(
            call(Op::Listxattr, request, ino),
            |volume| async move { Ok(xattr_list(&volume.xattrs(convert::ino(ino)).await?)) },
            reply_xattr(reply, size),
        );
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = convert::xattr_name(name);
        self.answer(
            call(Op::Removexattr, request, ino),
            |volume| async move { volume.remove_xattr(convert::ino(ino), name?).await },
            reply_empty(reply),
        );
    }

    // What is not offered is refused here: fuser's own answers are the same, but each writes a line to the log.

    /// No file is a device that takes orders; chattr(1) and lsattr(1) hear it as on any file system without flags.
    fn ioctl(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_bytes: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// Files are always ready, as the kernel says by itself after this.
    fn poll(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _handle: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
