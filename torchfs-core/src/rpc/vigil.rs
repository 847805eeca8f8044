//! [`Vigil`]: when the server gives a connection up. A peer that stops in the middle of a frame holds a buffer, one that
//! takes no answers holds them, and one that has nothing to say holds its place among the connections.
//!
//! It looks at a connection every few seconds; nothing is armed or counted per frame. Looks are counted, not time, so that
//! a server which was itself suspended does not blame its peers.

use std::time::Duration;

/// Time between two looks.
pub(super) const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// A frame that is still arriving, or answers of which nothing has left, after so many looks (30 s): three times what a
/// client waits for a shard.
const STUCK_LOOKS_MAX: u32 = 6;

/// Nothing at all in either direction for so many looks (5 min). The client dials again when it has something to ask.
const IDLE_LOOKS_MAX: u32 = 60;

/// What one look at a connection shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Frames that have arrived whole.
    pub(super) frames: u64,
    /// Bytes that have left.
    pub(super) sent_bytes: u64,
    /// A frame has begun, and the peer owes its rest.
    pub(super) is_receiving: bool,
    /// Bytes wait for the peer to take them.
    pub(super) is_sending: bool,
    /// Requests that are not answered yet.
    pub(super) requests: usize,
}

impl Look {
    fn is_stuck_since(self, before: Look) -> bool {
        let receiving = self.is_receiving && before.is_receiving && self.frames == before.frames;
        let sending = self.is_sending && before.is_sending && self.sent_bytes == before.sent_bytes;
        receiving || sending
    }

    fn is_idle_since(self, before: Look) -> bool {
        self.requests == 0 && self == before
    }
}

/// What was seen of one connection so far.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    before: Look,
    stuck_looks: u32,
    idle_looks: u32,
}

impl Vigil {
    /// Takes one more look. True when the connection is to be closed.
    pub(super) fn is_over(&mut self, look: Look) -> bool {
        self.stuck_looks = if look.is_stuck_since(self.before) { self.stuck_looks + 1 } else { 0 };
        self.idle_looks = if look.is_idle_since(self.before) { self.idle_looks + 1 } else { 0 };
        self.before = look;
        self.stuck_looks >= STUCK_LOOKS_MAX || self.idle_looks >= IDLE_LOOKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks it takes until it is over.
    fn looks(mut look: impl FnMut(u64) -> Look) -> Option<u64> {
        let mut vigil = Vigil::default();
        (1..1000).find(|&number| vigil.is_over(look(number)))
    }

    #[test]
    fn a_frame_that_does_not_end_is_given_up() {
        let stuck = Look { frames: 3, is_receiving: true, requests: 1, ..Look::default() };
        assert_eq!(looks(|_| stuck), Some(u64::from(STUCK_LOOKS_MAX) + 1));
        // One frame after the other, though each look finds one arriving.
        assert_eq!(looks(|number| Look { frames: number, ..stuck }), None);
    }

    #[test]
    fn answers_that_nobody_takes_are_given_up() {
        let full = Look { is_sending: true, sent_bytes: 7, requests: 9, ..Look::default() };
        assert_eq!(looks(|_| full), Some(u64::from(STUCK_LOOKS_MAX) + 1));
        assert_eq!(looks(|number| Look { sent_bytes: number, ..full }), None);
    }

    #[test]
    fn only_a_connection_without_requests_is_idle() {
        let idle = Look { frames: 5, sent_bytes: 100, ..Look::default() };
        assert_eq!(looks(|_| idle), Some(u64::from(IDLE_LOOKS_MAX) + 1));
        assert_eq!(looks(|_| Look { requests: 1, ..idle }), None, "a request may take as long as it takes");
        assert_eq!(looks(|number| Look { frames: 5 + number / 30, ..idle }), None, "one request every 150 s");
    }
}
