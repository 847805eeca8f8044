//! [`Told`]: what the answer to an operation of this client tells of what it changed.

use super::answers::{Key, Piece};
use crate::ids::InodeId;
use crate::meta::{Attr, Change, FileKind, MetaOp, MetaReply, Name};

/// What is so when the operation is done, unless something else came between.
#[derive(Debug, Default)]
pub struct Told {
    pub pieces: Vec<(Key, Piece)>,
    /// Names that are there now, maybe beside others.
    pub names: Vec<(InodeId, Name)>,
    /// Folders without a name in them.
    pub made: Vec<InodeId>,
    /// Folders that are no more.
    pub removed: Vec<InodeId>,
}

impl Told {
    /// What this answer to this operation tells.
    pub fn by(op: &MetaOp, reply: &MetaReply) -> Self {
        let mut told = Told::default();
        match (op, reply) {
            (MetaOp::Batch(ops), MetaReply::Batch(replies)) => {
                let done = ops.iter().zip(replies).filter_map(|(op, reply)| Some((op, reply.as_ref().ok()?)));
                done.for_each(|(op, reply)| told.add(op, reply));
            }
            (op, reply) => told.add(op, reply),
        }
        told
    }

    fn add(&mut self, op: &MetaOp, reply: &MetaReply) {
        // What an earlier one of the same batch told of it is not so any more.
        if !self.pieces.is_empty() {
            let touched: Vec<Change> = op.touches().into_iter().chain(reply.touches()).collect();
            self.pieces.retain(|(key, _)| !touched.contains(&key.subject()));
        }
        match (op, reply) {
            (
                MetaOp::Create { parent, name, .. } | MetaOp::Link { parent, name, .. },
                MetaReply::Named { attr, folder },
            ) => {
                self.entry(*parent, name, attr);
                self.attr(folder);
                if attr.kind == FileKind::Directory && attr.size == 0 {
                    self.made.push(attr.ino);
                }
            }
            (MetaOp::Unlink { .. } | MetaOp::Rmdir { .. }, MetaReply::Named { attr, folder }) => {
                self.attr(folder);
                if attr.kind == FileKind::Directory {
                    self.removed.push(attr.ino);
                } else {
                    self.attr(attr);
                }
            }
            (MetaOp::Rename { parent, name, new_parent, new_name, .. }, MetaReply::Renamed { moved, other }) => {
                self.entry(*new_parent, new_name, moved);
                self.names.push((*parent, name.clone()));
                self.removed.extend(other);
            }
            (_, MetaReply::Attr(attr)) => self.attr(attr),
            _ => {}
        }
    }

    fn entry(&mut self, folder: InodeId, name: &Name, attr: &Attr) {
        self.pieces.push((Key::Entry(folder, name.clone()), Piece::Ino(attr.ino)));
        self.names.push((folder, name.clone()));
        self.attr(attr);
    }

    fn attr(&mut self, attr: &Attr) {
        // What has no name is collected one day, which nobody is told.
        if attr.nlink > 0 {
            self.pieces.push((Key::Attr(attr.ino), Piece::Attr(attr.clone())));
        }
    }
}
