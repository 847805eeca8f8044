//! The tasks that answer the kernel.

use crate::adapter::Adapter;
use crate::convert;
use crate::reply::{reply_entry, told};
use crate::volume::{OpenHow, Volume};
use fuser::{Errno, INodeNo, ReplyEntry};
use std::ffi::OsStr;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use torchfs_core::meta::NewInode;
use torchfs_core::{Error, InodeId, Kind, Result};

/// How long any operation that does not carry written data may take before it fails with EIO. The parts underneath have
/// shorter deadlines of their own; this is the backstop.
const DEADLINE: Duration = Duration::from_secs(60);

impl Adapter {
    /// Runs `work` as a task with a deadline and hands its result to `reply`.
    pub fn answer<T: Send + 'static, W>(
        &self,
        what: &'static str,
        work: impl FnOnce(Arc<Volume>) -> W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let bounded = |volume| {
            let work = work(volume);
            // The clock starts inside the task: this thread is the kernel's and has no runtime.
            async move {
                let result = tokio::time::timeout(DEADLINE, work).await;
                result.unwrap_or_else(|_| Err(Error::new(Kind::Timeout, "no answer in time")))
            }
        };
        self.answer_write(what, bounded, reply);
    }

    /// Like [`Adapter::answer`] for work on written data, which takes as long as the data is large.
    pub fn answer_write<T: Send + 'static, W>(
        &self,
        what: &'static str,
        work: impl FnOnce(Arc<Volume>) -> W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        W: Future<Output = Result<T>> + Send + 'static,
    {
        let work = work(self.volume.clone());
        let task = async move { reply(work.await.map_err(|error| told(what, &error))) };
        self.tasks.spawn_on(task, &self.runtime);
    }

    /// mknod, mkdir and symlink.
    pub fn make(&self, what: &'static str, parent: INodeNo, name: &OsStr, inode: Result<NewInode>, reply: ReplyEntry) {
        let name = convert::name(name);
        let parent: InodeId = convert::ino(parent);
        self.answer(
            what,
            |volume| async move { volume.make(parent, name?, inode?).await },
            reply_entry(reply, self.volume.told.ttl),
        );
    }

    /// open(2) of what is in `.torchfs`; `None` for all other inodes.
    pub fn open_special(&self, ino: INodeNo, how: OpenHow) -> Option<Result<u64, Errno>> {
        let opened = self.volume.open_special(convert::ino(ino), how, self.tasks.len() as u64)?;
        Some(opened.map_err(|error| told("open", &error)))
    }
}
