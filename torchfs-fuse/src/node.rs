//! [`Node`]: what the kernel calls an inode of ours.
//!
//! The kernel has one size, one page cache and one local file (passthrough) for what it calls an inode. So who must have anything else than
//! those who have it open gets another node of the same inode: docs/decisions/0018-nodes.md.

use fuser::INodeNo;
use torchfs_core::InodeId;

/// Inodes are numbered from 1 on and never reach this.
const TURN_SHIFT: u32 = 48;

/// The last one. Above are the [numbers of special files](crate::special).
const TURNS: u16 = 0x7fff;

/// An inode, and which turn of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node(u64);

impl Node {
    /// The first of an inode.
    pub fn first(ino: InodeId) -> Node {
        Node(ino.0)
    }

    /// What the kernel means.
    pub fn of(number: INodeNo) -> Node {
        Node(number.0)
    }

    /// What the kernel is told.
    pub fn number(self) -> INodeNo {
        INodeNo(self.0)
    }

    /// Which inode it is of.
    pub fn ino(self) -> InodeId {
        if self.is_special() { InodeId(self.0) } else { InodeId(self.0 & ((1 << TURN_SHIFT) - 1)) }
    }

    fn is_special(self) -> bool {
        self.turn() > TURNS
    }

    fn turn(self) -> u16 {
        (self.0 >> TURN_SHIFT) as u16
    }

    /// All that an inode may have, from the first on.
    pub fn all(ino: InodeId) -> impl Iterator<Item = Node> {
        (0..=u64::from(TURNS)).map(move |turn| Node(ino.0 | turn << TURN_SHIFT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::special::Special;
    use std::collections::HashSet;

    #[test]
    fn all_nodes_of_an_inode_are_of_it() {
        let ino = InodeId(0x7fff_1234_5678);
        assert!(Node::all(ino).all(|node| node.ino() == ino && Node::of(node.number()) == node));
        assert_eq!(Node::all(ino).next(), Some(Node::first(ino)));
        assert_eq!(Node::all(ino).collect::<HashSet<_>>().len(), usize::from(TURNS) + 1);
    }

    #[test]
    fn special_files_keep_their_numbers() {
        for (special, _) in Special::FILES {
            let ino = special.ino();
            assert_eq!((Node::first(ino).ino(), Node::all(ino).next()), (ino, Some(Node::first(ino))));
        }
    }
}
