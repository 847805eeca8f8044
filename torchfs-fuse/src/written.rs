//! [`Written`]: what a program writes to a file in `.torchfs`, to be understood when it is complete.

use crate::volume::WriteAt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
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
    /// Why a part is missing, if one could not be written.
    spoilt: OnceLock<Error>,
}

impl Written {
    /// Nothing yet.
    pub fn new(room: &Room) -> Self {
        Written { bytes: Vec::new(), held: Held { bytes: 0, room: room.clone() }, spoilt: OnceLock::new() }
    }

    /// What was written.
    ///
    /// # Errors
    /// If a part could not be.
    pub fn bytes(&self) -> Result<&[u8]> {
        self.spoilt.get().map_or(Ok(&self.bytes), |spoilt| Err(spoilt.clone()))
    }

    /// Whether nobody wrote, or tried.
    pub fn is_untouched(&self) -> bool {
        self.bytes.is_empty() && self.spoilt.get().is_none()
    }

    /// A part could not be written: the text counts for nothing.
    pub fn spoil(&self, error: &Error) {
        let message = format!("a part of it could not be written, so none of it counts: {error}");
        self.spoilt.get_or_init(|| Error::new(error.kind(), message));
    }

    /// Adds to its end. After this failed once, the text counts for nothing.
    ///
    /// # Errors
    /// `InvalidInput` elsewhere; `TooLarge` if all that is written to the mount at the moment comes to more than 1 GiB.
    pub fn write(&mut self, at: WriteAt, data: &[u8]) -> Result<()> {
        self.add(at, data).inspect_err(|error| self.spoil(error))
    }

    fn add(&mut self, at: WriteAt, data: &[u8]) -> Result<()> {
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
    ///
    /// # Errors
    /// As [`Written::bytes`].
    pub fn into_parts(self) -> Result<(Vec<u8>, Held)> {
        self.spoilt.into_inner().map_or(Ok((self.bytes, self.held)), Err)
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
        one.write(WriteAt::End(99), b"").expect("wherever the kernel thinks that its end is");
        assert_eq!(one.bytes().expect("is whole"), b"abc");
        let mut cut = Written::new(&room);
        assert_eq!(cut.write(WriteAt::Offset(1), b"x").expect_err("not at its end").kind(), Kind::InvalidInput);
        cut.write(WriteAt::Offset(0), b"").expect("at its end");
        assert_eq!(cut.bytes().expect_err("a part is missing").kind(), Kind::InvalidInput);
        assert!(!cut.is_untouched() && two.is_untouched());
        assert_eq!(cut.into_parts().expect_err("a part is missing").kind(), Kind::InvalidInput);
        let mut rest = Held { bytes: 0, room: room.clone() };
        rest.add(BYTES_MAX - 4).expect("one byte is left");
        assert_eq!(two.write(WriteAt::Offset(0), b"de").expect_err("there is no room").kind(), Kind::TooLarge);
        let (text, held) = one.into_parts().expect("is whole");
        drop(text);
        assert_eq!(two.write(WriteAt::Offset(0), b"de").expect_err("it is still held").kind(), Kind::TooLarge);
        drop(held);
        two.write(WriteAt::Offset(0), b"de").expect("there is room again");
        assert_eq!(room.taken.load(Ordering::Relaxed), BYTES_MAX - 4 + 2);
    }
}
