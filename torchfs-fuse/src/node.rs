//! [`Node`]: what the kernel calls an inode of ours.
//!
//! While the kernel reads an inode from a local file (passthrough), it maps that file for everybody who has the inode open, whatever version
//! they opened and whether they write (Linux, fs/fuse/file.c `fuse_file_mmap`). So who must have anything else gets another node of the
//! same inode, its next *turn*: the open is answered with ESTALE, the kernel looks the name up again, and is told that one.

use fuser::INodeNo;
use torchfs_core::InodeId;

/// Inodes are numbered from 1 on and never reach this.
const TURN_SHIFT: u32 = 48;

/// More turns begin again at 0. Above them are the [numbers of special files](crate::special).
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

    /// Another one of the same inode.
    pub fn next(self) -> Node {
        let turn = u64::from((self.turn() + 1) % TURNS);
        Node(self.ino().0 | turn << TURN_SHIFT)
    }

    /// The first and all that followed it up to this.
    pub fn and_before(self) -> impl Iterator<Item = Node> {
        let turns = if self.is_special() { 0 } else { self.turn() };
        (0..=u64::from(turns)).map(move |turn| Node(self.ino().0 | turn << TURN_SHIFT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::special::Special;

    #[test]
    fn all_nodes_of_an_inode_are_of_it() {
        let ino = InodeId(0x7fff_1234_5678);
        let mut node = Node::first(ino);
        for turn in 0..3 {
            assert_eq!((node.ino(), node.and_before().count()), (ino, turn + 1));
            assert!(node.and_before().last() == Some(node) && Node::of(node.number()) == node);
            node = node.next();
        }
        let last = (0..u32::from(TURNS) - 1).fold(Node::first(ino), |node, _| node.next());
        assert!(last.ino() == ino && last.next() == Node::first(ino));
    }

    #[test]
    fn special_files_keep_their_numbers() {
        for (special, _) in Special::FILES {
            let ino = special.ino();
            assert_eq!(Node::first(ino).ino(), ino);
            assert_eq!(Node::first(ino).and_before().collect::<Vec<_>>(), [Node::first(ino)]);
        }
    }
}
