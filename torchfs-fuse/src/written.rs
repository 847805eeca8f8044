//! [`Written`]: what a program writes to a file in `.torchfs`, to be understood when it is complete.

use crate::volume::WriteAt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use torchfs_core::{Error, Kind, Result};

/// All that is being written to one mount: an order of ten million paths of a hundred bytes.
const BYTES_MAX: usize = 1 << 30;

/// Room for the texts of one mount.
#[derive(Clone, Debug, Default)]
pub struct Room {
    taken: Arc<AtomicUsize>,
}

/// A part of the room, until it is dropped.
#[derive(Debug)]
pub struct Held {
    bytes: usize,
    room: Room,
}

impl Held {
    /// # Errors
    /// `TooLarge` if there is not so much.
    fn add(&mut self, bytes: usize) -> Result<()> {
        let with = |taken: usize| taken.checked_add(bytes).filter(|&taken| taken <= BYTES_MAX);
        self.room.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, with).map_err(|_| {
            let message = "more than 1 GiB is being written to .torchfs: name files by index, see docs/schedule.md";
            Error::new(Kind::TooLarge, message)
        })?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A text.
#[derive(Debug)]
pub struct Written {
    bytes: Vec<u8>,
    held: Held,
}

impl Written {
    /// Nothing yet.
    pub fn new(room: &Room) -> Self {
        Written { bytes: Vec::new(), held: Held { bytes: 0, room: room.clone() } }
    }

    /// What was written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Adds to its end.
    ///
    /// # Errors
    /// `InvalidInput` elsewhere; `TooLarge` if all that is written to the mount at the moment comes to more than 1 GiB.
    pub fn write(&mut self, at: WriteAt, data: &[u8]) -> Result<()> {
        let bytes = self.bytes.len() as u64;
        if at.in_text(bytes) != bytes {
            let message = "what is in .torchfs is written from its first byte to its last";
            return Err(Error::new(Kind::InvalidInput, message));
        }
        self.held.add(data.len())?;
        self.bytes.extend_from_slice(data);
        Ok(())
    }

    /// The text, and its room, which whatever is made of it goes on to take.
    pub fn into_parts(self) -> (Vec<u8>, Held) {
        (self.bytes, self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_written_in_one_go_and_share_their_room() {
        let room = Room::default();
        let (mut one, mut two) = (Written::new(&room), Written::new(&room));
        one.write(WriteAt::Offset(0), b"ab").expect("at its end");
        one.write(WriteAt::Offset(2), b"c").expect("at its end");
        assert_eq!(one.write(WriteAt::Offset(1), b"x").expect_err("not at its end").kind(), Kind::InvalidInput);
        one.write(WriteAt::End(99), b"").expect("wherever the kernel thinks that its end is");
        assert_eq!(one.bytes(), b"abc");
        let mut rest = Held { bytes: 0, room: room.clone() };
        rest.add(BYTES_MAX - 4).expect("one byte is left");
        assert_eq!(two.write(WriteAt::Offset(0), b"de").expect_err("there is no room").kind(), Kind::TooLarge);
        let (text, held) = one.into_parts();
        drop(text);
        assert_eq!(two.write(WriteAt::Offset(0), b"de").expect_err("it is still held").kind(), Kind::TooLarge);
        drop(held);
        two.write(WriteAt::Offset(0), b"de").expect("there is room again");
        assert_eq!(room.taken.load(Ordering::Relaxed), BYTES_MAX - 4 + 2);
    }
}
