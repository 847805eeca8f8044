//! The tasks that answer the kernel.

use crate::adapter::Adapter;
use crate::convert;
use crate::reply::{reply_entry, told};
use crate::tracer::Note;
use crate::volume::{OpenHow, Volume};
use fuser::{Errno, INodeNo, ReplyEntry};
use std::ffi::OsStr;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;
use torchfs_core::meta::NewInode;
use torchfs_core::trace::Record;
use torchfs_core::{Error, Kind, Result};

/// How long any operation that does not carry written data may take before it fails with EIO. The parts underneath have
/// shorter deadlines of their own; this is the backstop.
const DEADLINE: Duration = Duration::from_secs(60);

impl Adapter {
    /// Runs `work` as a task with a deadline and hands its result to `reply`.
    pub fn answer<T: Send + 'static, W>(
        &self,
        call: Record,
        work: impl FnOnce(Arc<Volume>) -> W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        W: Future<Output = Result<T>> + Send + 'static,
        Note: for<'a> From<&'a T>,
    {
        let bounded = |volume| {
            let work = work(volume);
            // The clock starts inside the task: this thread is the kernel's and has no runtime.
            async move {
                let result = tokio::time::timeout(DEADLINE, work).await;
                result.unwrap_or_else(|_| Err(Error::new(Kind::Timeout, "no answer in time")))
            }
        };
        self.answer_write(call, bounded, reply);
    }

    /// Like [`Adapter::answer`] for work on written data, which takes as long as the data is large.
    pub fn answer_write<T: Send + 'static, W>(
        &self,
        call: Record,
        work: impl FnOnce(Arc<Volume>) -> W,
        reply: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) where
        W: Future<Output = Result<T>> + Send + 'static,
        Note: for<'a> From<&'a T>,
    {
        let asked = self.volume.tracer.asked(call);
        let work = work(self.volume.clone());
        let mut task = Box::pin(async move {
            let result = work.await.map_err(|error| told(call.op.name(), &error));
            // Before the reply: whoever has it finds the operation in the trace.
            if let Some(asked) = asked {
                asked.answered(Note::of(&result));
            }
            reply(result);
        });
        // What is known already is answered here: waking another thread takes longer than the rest.
        let _context = self.runtime.enter();
        let mut first = || task.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        // One request that panics is answered EIO when it is dropped; this thread has others to answer.
        if panic::catch_unwind(AssertUnwindSafe(&mut first)).is_ok_and(|polled| polled.is_pending()) {
            // It is polled again at once, by somebody whom it can wake.
            self.tasks.spawn_on(task, &self.runtime);
        }
    }

    /// Does what needs no task.
    pub fn at_once<T>(&self, call: Record, work: impl FnOnce(&Volume) -> Result<T>) -> Result<T>
    where
        Note: for<'a> From<&'a T>,
    {
        let asked = self.volume.tracer.asked(call);
        let result = work(&self.volume);
        if let Some(asked) = asked {
            asked.answered(result.as_ref().map_or_else(Note::failed, Note::from));
        }
        result
    }

    /// Notes what is answered without any work.
    pub fn note(&self, call: Record) {
        if let Some(asked) = self.volume.tracer.asked(call) {
            asked.answered(Note::errno(call.errno));
        }
    }

    /// mknod, mkdir and symlink.
    pub fn make(&self, call: Record, name: &OsStr, inode: Result<NewInode>, reply: ReplyEntry) {
        let name = convert::name(name);
        self.answer(
            call,
            move |volume| async move { volume.make(call.ino, name?, inode?).await },
            reply_entry(reply, self.volume.told.ttl),
        );
    }

    /// open(2) of what is in `.torchfs`; `None` for all other inodes.
    pub fn open_special(&self, ino: INodeNo, how: OpenHow) -> Option<Result<u64, Errno>> {
        let opened = self.volume.open_special(convert::ino(ino), how, self.tasks.len() as u64)?;
        Some(opened.map_err(|error| told("open", &error)))
    }
}
