//! The metadata side of `put`: gathers operations into batches, holding back those that refer to an inode whose number is
//! not known yet. Pure bookkeeping; the driver sends the batches.

use super::walk::{Slot, TARGET_PARENT};
use crate::error::{Error, Kind, Result};
use crate::ids::InodeId;
use crate::meta::{
    AttrChange, ContentChange, IfExists, MetaOp, MetaReply, Name, NewInode, NewKind, SetTime, XattrMode, XattrName,
};
use crate::settings::BATCH_OPS_MAX;
use std::collections::VecDeque;
use std::path::PathBuf;

/// A batch is sent at about this size: large enough to share one disk sync, small enough not to stall other clients.
const BATCH_BYTES: usize = 1 << 20;

/// Most batches under way.
const BATCHES_MAX: usize = 4;

/// One operation to come.
#[derive(Clone, Debug)]
pub(super) struct Op {
    /// What it is about here, for reports.
    pub path: PathBuf,
    /// What to do.
    pub what: OpKind,
    /// Where its answer's inode number is wanted.
    pub slot: Option<Slot>,
}

/// What an operation does; slots stand for inode numbers.
#[derive(Clone, Debug)]
pub(super) enum OpKind {
    /// Makes something.
    Create {
        /// In this folder.
        parent: Slot,
        /// Under this name.
        name: Name,
        /// What.
        inode: NewInode,
        /// A file's content.
        content: Option<ContentChange>,
    },
    /// Gives a file another name.
    Link {
        /// The file.
        of: Slot,
        /// In this folder.
        parent: Slot,
        /// The name.
        name: Name,
    },
    /// Sets an extended attribute.
    Xattr {
        /// Of this.
        of: Slot,
        /// Its name.
        name: XattrName,
        /// Its value.
        value: Vec<u8>,
    },
    /// Sets attributes of a folder that is complete.
    SetAttr {
        /// The folder.
        of: Slot,
        /// What to set.
        change: AttrChange,
    },
}

/// What became of an operation.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is done.
    Done(Op),
    /// It was not done, and only this path suffers.
    Failed(Op, Error),
    /// The name is taken by something that a plain create does not replace: replace it by renaming.
    Taken(Op),
}

#[derive(Debug)]
enum State {
    Unknown(Vec<Op>),
    Known(InodeId),
    Failed(Kind),
}

/// The operations to come and the slots that they wait for.
#[derive(Debug)]
pub(super) struct OpQueue {
    slots: Vec<State>,
    ready: VecDeque<Op>,
    ready_bytes: usize,
    waiting: usize,
}

impl OpQueue {
    /// With the number of the folder that everything goes into.
    pub fn new(target_parent: InodeId) -> Self {
        let mut queue = OpQueue { slots: Vec::new(), ready: VecDeque::new(), ready_bytes: 0, waiting: 0 };
        *queue.slot(TARGET_PARENT) = State::Known(target_parent);
        queue
    }

    /// How many operations were submitted and not taken.
    pub fn len(&self) -> usize {
        self.ready.len() + self.waiting
    }

    /// Whether there is nothing left to take or to wait for.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn slot(&mut self, slot: Slot) -> &mut State {
        while self.slots.len() <= slot {
            self.slots.push(State::Unknown(Vec::new()));
        }
        &mut self.slots[slot]
    }

    fn number(&self, slot: Slot) -> InodeId {
        match self.slots.get(slot) {
            Some(State::Known(ino)) => *ino,
            state => unreachable!("an operation is ready before slot {slot} is known: {state:?}"),
        }
    }

    /// Takes an operation in. Those that can no longer be done are returned.
    pub fn submit(&mut self, op: Op) -> Vec<(Op, Error)> {
        self.settle(VecDeque::from([op]))
    }

    /// A slot's number is known: what waited for it becomes ready. Returns what still cannot be done.
    pub fn know(&mut self, slot: Slot, ino: InodeId) -> Vec<(Op, Error)> {
        let waiting = self.set(slot, State::Known(ino));
        self.settle(waiting)
    }

    /// A slot will never be known. Returns what waited for it.
    pub fn forget(&mut self, slot: Slot, kind: Kind) -> Vec<(Op, Error)> {
        let waiting = self.set(slot, State::Failed(kind));
        self.settle(waiting)
    }

    fn set(&mut self, slot: Slot, state: State) -> VecDeque<Op> {
        match std::mem::replace(self.slot(slot), state) {
            State::Unknown(waiting) => {
                self.waiting -= waiting.len();
                waiting.into()
            }
            State::Known(_) | State::Failed(_) => VecDeque::new(),
        }
    }

    /// Puts operations where they belong. Not recursive: a tree may be thousands of folders deep.
    fn settle(&mut self, mut ops: VecDeque<Op>) -> Vec<(Op, Error)> {
        let mut failed = Vec::new();
        while let Some(op) = ops.pop_front() {
            let unmet = op.what.needs().find(|&need| !matches!(self.slot(need), State::Known(_)));
            match unmet.map(|need| self.slot(need)) {
                None => {
                    self.ready_bytes += op.what.bytes();
                    self.ready.push_back(op);
                }
                Some(State::Failed(kind)) => {
                    let kind = *kind;
                    ops.extend(op.slot.map(|slot| self.set(slot, State::Failed(kind))).into_iter().flatten());
                    failed.push((op, Error::new(kind, "what it belongs to was not copied")));
                }
                Some(State::Unknown(waiting)) => {
                    waiting.push(op);
                    self.waiting += 1;
                }
                Some(State::Known(_)) => unreachable!("a known slot is met"),
            }
        }
        failed
    }

    /// The next batch to send while `under_way` others are. A lone one is sent at once, so that nothing waits for company
    /// when the line is free; otherwise it should be worth a disk sync.
    pub fn take(&mut self, under_way: usize) -> Option<Vec<Op>> {
        let worth_it = self.ready.len() >= BATCH_OPS_MAX / 2 || self.ready_bytes >= BATCH_BYTES / 2;
        if self.ready.is_empty() || under_way >= BATCHES_MAX || (under_way > 0 && !worth_it) {
            return None;
        }
        let mut batch = Vec::new();
        let mut bytes = 0;
        while let Some(op) = self.ready.front() {
            bytes += op.what.bytes();
            if !batch.is_empty() && (bytes > BATCH_BYTES || batch.len() == BATCH_OPS_MAX) {
                break;
            }
            self.ready_bytes -= op.what.bytes();
            batch.extend(self.ready.pop_front());
        }
        Some(batch)
    }

    /// A ready operation as metadata takes it.
    pub fn to_meta(&self, op: &Op) -> MetaOp {
        match op.what.clone() {
            OpKind::Create { parent, name, inode, content } => {
                let if_exists = match inode.kind {
                    NewKind::File => IfExists::Replace,
                    NewKind::Directory => IfExists::Keep,
                    _ => IfExists::Fail,
                };
                MetaOp::Create { parent: self.number(parent), name, inode, if_exists, content }
            }
            OpKind::Link { of, parent, name } => {
                MetaOp::Link { ino: self.number(of), parent: self.number(parent), name }
            }
            OpKind::Xattr { of, name, value } => {
                MetaOp::SetXattr { ino: self.number(of), name, value, mode: XattrMode::Either }
            }
            OpKind::SetAttr { of, change } => MetaOp::SetAttr { ino: self.number(of), change },
        }
    }

    /// Takes an operation's answer in. What fails with it is returned beside its own outcome.
    ///
    /// # Errors
    /// If the answer says that the cluster fails, not this operation.
    pub fn answered(&mut self, op: Op, reply: Result<MetaReply>) -> Result<Vec<Outcome>> {
        let failed = match reply {
            Ok(reply) => match (op.slot, reply.attr()) {
                (Some(slot), Some(attr)) => self.know(slot, attr.ino),
                // Something waits for the number that is not in this answer.
                (Some(_), None) => {
                    let message = format!("metadata gave an answer of the wrong kind: {reply:?}");
                    return Err(Error::new(Kind::Protocol, message).context(op.path.display()));
                }
                (None, _) => Vec::new(),
            },
            Err(error) if is_of_the_cluster(error.kind()) => return Err(error.context(op.path.display())),
            Err(error) if error.kind() == Kind::Exists && op.what.can_replace() => return Ok(vec![Outcome::Taken(op)]),
            Err(error) => return Ok(self.failed(op, error)),
        };
        let failed = failed.into_iter().map(|(op, error)| Outcome::Failed(op, error));
        Ok(std::iter::once(Outcome::Done(op)).chain(failed).collect())
    }

    fn failed(&mut self, op: Op, error: Error) -> Vec<Outcome> {
        let with_it = op.slot.map_or_else(Vec::new, |slot| self.forget(slot, error.kind()));
        let with_it = with_it.into_iter().map(|(op, error)| Outcome::Failed(op, error));
        std::iter::once(Outcome::Failed(op, error)).chain(with_it).collect()
    }
}

/// Errors that say nothing about the one name: going on would repeat them for every file.
pub(super) fn is_of_the_cluster(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Unavailable
            | Kind::Timeout
            | Kind::NoSpace
            | Kind::ReadOnly
            | Kind::Stale
            | Kind::WrongCluster
            | Kind::Protocol
            | Kind::Cancelled
            | Kind::Unsupported
    )
}

impl OpKind {
    fn needs(&self) -> impl Iterator<Item = Slot> + use<> {
        let (first, second) = match self {
            OpKind::Create { parent, .. } => (*parent, None),
            OpKind::Link { of, parent, .. } => (*parent, Some(*of)),
            OpKind::Xattr { of, .. } | OpKind::SetAttr { of, .. } => (*of, None),
        };
        std::iter::once(first).chain(second)
    }

    fn can_replace(&self) -> bool {
        match self {
            OpKind::Create { inode, .. } => inode.kind != NewKind::Directory,
            OpKind::Link { .. } => true,
            OpKind::Xattr { .. } | OpKind::SetAttr { .. } => false,
        }
    }

    /// About what it takes on the wire.
    fn bytes(&self) -> usize {
        match self {
            OpKind::Create { name, inode, content, .. } => {
                let target = if let NewKind::Symlink(target) = &inode.kind { target.len() } else { 0 };
                let stripes = content.iter().flat_map(|change| &change.stripes);
                let extents = content.iter().map(|change| change.extents.len()).sum::<usize>();
                let stripes: usize = stripes.map(|stripe| 32 + 4 * stripe.nodes.len()).sum();
                64 + name.as_bytes().len() + target + 24 * extents + stripes
            }
            OpKind::Link { name, .. } => 32 + name.as_bytes().len(),
            OpKind::Xattr { name, value, .. } => 32 + name.as_bytes().len() + value.len(),
            OpKind::SetAttr { .. } => 48,
        }
    }
}

/// The change that gives a folder its time once everything is in it.
pub(super) fn only_mtime(inode: &NewInode) -> AttrChange {
    AttrChange { mtime: inode.mtime.map(SetTime::At), ..AttrChange::default() }
}

#[cfg(test)]
mod tests {
    use super::super::rig_test;
    use super::*;
    use crate::meta::FileKind;

    fn folder(parent: Slot, slot: Slot) -> Op {
        make(parent, Some(slot), NewKind::Directory)
    }

    fn make(parent: Slot, slot: Option<Slot>, kind: NewKind) -> Op {
        let inode = NewInode { kind, mode: 0o755, uid: 0, gid: 0, mtime: None };
        let name = Name::new(format!("in {parent}")).unwrap();
        Op {
            path: format!("{parent}/{slot:?}").into(),
            what: OpKind::Create { parent, name, inode, content: None },
            slot,
        }
    }

    fn attr(ino: u64) -> Result<MetaReply> {
        Ok(MetaReply::Attr(rig_test::attr(ino, FileKind::Directory)))
    }

    fn parent(op: MetaOp) -> InodeId {
        match op {
            MetaOp::Create { parent, .. } | MetaOp::Link { parent, .. } => parent,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_sent_before_the_folder_that_it_goes_into_has_a_number() {
        let mut queue = OpQueue::new(InodeId(10));
        assert!(queue.submit(make(1, None, NewKind::File)).is_empty());
        assert!(queue.submit(folder(TARGET_PARENT, 1)).is_empty());
        let mut batch = queue.take(0).unwrap();
        assert_eq!((batch.len(), parent(queue.to_meta(&batch[0]))), (1, InodeId(10)));
        assert!(queue.take(0).is_none() && !queue.is_empty());
        assert_eq!(queue.answered(batch.remove(0), attr(77)).unwrap().len(), 1);
        let batch = queue.take(0).unwrap();
        assert_eq!(parent(queue.to_meta(&batch[0])), InodeId(77));
        assert!(queue.is_empty());
    }

    #[test]
    fn an_answer_without_a_number_ends_the_copy_instead_of_waiting_for_ever() {
        let mut queue = OpQueue::new(InodeId(10));
        queue.submit(folder(TARGET_PARENT, 1));
        queue.submit(make(1, None, NewKind::File));
        let op = queue.take(0).unwrap().remove(0);
        assert_eq!(queue.answered(op, Ok(MetaReply::Done)).expect_err("nonsense").kind(), Kind::Protocol);
    }

    #[test]
    fn a_link_waits_for_its_file_and_its_folder() {
        let mut queue = OpQueue::new(InodeId(10));
        let name = Name::new("link").unwrap();
        queue.submit(Op { path: "link".into(), what: OpKind::Link { of: 2, parent: 1, name }, slot: None });
        queue.know(2, InodeId(22));
        assert!(queue.take(0).is_none());
        queue.know(1, InodeId(11));
        let batch = queue.take(0).unwrap();
        assert!(matches!(queue.to_meta(&batch[0]), MetaOp::Link { ino: InodeId(22), parent: InodeId(11), .. }));
    }

    #[test]
    fn what_is_in_a_failed_folder_fails_however_deep() {
        let mut queue = OpQueue::new(InodeId(10));
        (0..5000).for_each(|slot| assert!(queue.submit(folder(slot, slot + 1)).is_empty()));
        let first = queue.take(0).unwrap().remove(0);
        let outcomes = queue.answered(first, Err(Error::new(Kind::Exists, "a file is there"))).unwrap();
        assert_eq!(outcomes.len(), 5000);
        assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Failed(..))));
        assert!(queue.is_empty());
        assert_eq!(queue.submit(folder(4000, 6000)).len(), 1, "what comes later fails too");
    }

    #[test]
    fn batches_are_bounded_and_not_sent_half_full_behind_others() {
        let mut queue = OpQueue::new(InodeId(10));
        (0..3).for_each(|_| drop(queue.submit(make(TARGET_PARENT, None, NewKind::File))));
        assert!(queue.take(1).is_none());
        (0..3000).for_each(|_| drop(queue.submit(make(TARGET_PARENT, None, NewKind::File))));
        assert!(queue.take(BATCHES_MAX).is_none());
        let sizes: Vec<usize> = std::iter::from_fn(|| queue.take(1)).map(|batch| batch.len()).collect();
        assert_eq!(sizes, [BATCH_OPS_MAX, BATCH_OPS_MAX, 3003 - 2 * BATCH_OPS_MAX]);
        let long = NewKind::Symlink(vec![b'x'; 4000]);
        (0..1000).for_each(|_| drop(queue.submit(make(TARGET_PARENT, None, long.clone()))));
        let batch = queue.take(0).unwrap();
        assert!((200..=BATCH_BYTES / 4000).contains(&batch.len()), "{}", batch.len());
    }

    #[test]
    fn a_failing_cluster_is_not_blamed_on_a_file() {
        let mut queue = OpQueue::new(InodeId(10));
        let file = || make(TARGET_PARENT, None, NewKind::File);
        let error = queue.answered(file(), Err(Error::new(Kind::Unavailable, "no leader"))).expect_err("ends it all");
        assert_eq!(error.kind(), Kind::Unavailable);
        let outcomes = queue.answered(file(), Err(Error::new(Kind::Exists, "a link is there"))).unwrap();
        assert!(matches!(outcomes[..], [Outcome::Taken(_)]));
        let outcomes = queue.answered(file(), Err(Error::new(Kind::IsDirectory, "a folder is there"))).unwrap();
        assert!(matches!(outcomes[..], [Outcome::Failed(..)]));
    }
}
