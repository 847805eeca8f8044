//! Frames: how one message with its payloads lies on the wire. Pure; [`transport`](super::transport) does the I/O.
//!
//! A frame is a 12-byte header (magic, message bytes, payload bytes; little endian), the message in postcard, and the
//! payloads one after the other. Nothing is allocated for a length that was not checked first.

use super::payload;
use crate::error::{Error, Kind, Result};
use crate::settings::FRAME_BYTES_MAX;
use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes of a frame's header.
pub(super) const HEADER_BYTES: usize = 12;

/// The first bytes of every frame, so that a lost position in the stream is noticed at once.
const FRAME_MAGIC: [u8; 4] = *b"TFm\x01";

/// What a frame's header says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) message_bytes: usize,
    pub(super) payload_bytes: usize,
}

impl Header {
    /// Reads a header.
    pub(super) fn parse(bytes: [u8; HEADER_BYTES]) -> Result<Self> {
        let [m0, m1, m2, m3, a0, a1, a2, a3, b0, b1, b2, b3] = bytes;
        if [m0, m1, m2, m3] != FRAME_MAGIC {
            let message = format!("a frame starts with {:02x?} instead of {FRAME_MAGIC:02x?}", [m0, m1, m2, m3]);
            return Err(Error::new(Kind::Protocol, message));
        }
        let message_bytes = u32::from_le_bytes([a0, a1, a2, a3]) as usize;
        let payload_bytes = u32::from_le_bytes([b0, b1, b2, b3]) as usize;
        if message_bytes.saturating_add(payload_bytes) > FRAME_BYTES_MAX {
            let message = format!(
                "a frame of {message_bytes} + {payload_bytes} bytes was announced; at most {FRAME_BYTES_MAX} are allowed"
            );
            return Err(Error::new(Kind::Protocol, message));
        }
        Ok(Header { message_bytes, payload_bytes })
    }

    fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..4].copy_from_slice(&FRAME_MAGIC);
        bytes[4..8].copy_from_slice(&(self.message_bytes as u32).to_le_bytes());
        bytes[8..].copy_from_slice(&(self.payload_bytes as u32).to_le_bytes());
        bytes
    }
}

/// Appends header and message to `tail`, and returns the payloads that must follow.
///
/// # Errors
/// [`Kind::TooLarge`] if the frame would be longer than a peer takes; `tail` is then as it was.
pub(super) fn encode(message: &impl Serialize, tail: &mut BytesMut) -> Result<Vec<Bytes>> {
    let start = tail.len();
    tail.put_bytes(0, HEADER_BYTES);
    let (result, payloads) = payload::collecting(|| postcard::to_io(message, tail.writer()).map(drop));
    let payload_bytes: usize = payloads.iter().map(Bytes::len).sum();
    let header = Header { message_bytes: tail.len() - start - HEADER_BYTES, payload_bytes };
    let checked = result.map_err(|error| Error::caused(Kind::InvalidInput, "a message cannot be encoded", error));
    let checked = checked.and_then(|()| check_length(header));
    if let Err(error) = checked {
        tail.truncate(start);
        return Err(error);
    }
    tail[start..start + HEADER_BYTES].copy_from_slice(&header.to_bytes());
    Ok(payloads)
}

fn check_length(header: Header) -> Result<()> {
    let bytes = header.message_bytes.saturating_add(header.payload_bytes);
    if bytes > FRAME_BYTES_MAX {
        let message = format!("a message of {bytes} bytes is too large for one frame of {FRAME_BYTES_MAX}");
        return Err(Error::new(Kind::TooLarge, message));
    }
    Ok(())
}

/// Reads a message whose payloads are slices of `area`. Both must be used up exactly.
pub(super) fn decode<T: DeserializeOwned>(message: &[u8], area: Bytes) -> Result<T> {
    let (result, left) = payload::handing_out(area, || postcard::take_from_bytes::<T>(message));
    match result {
        Ok((value, [])) if left.is_empty() => Ok(value),
        Ok((_, rest)) => {
            let message = format!("a frame has {} bytes more than its message needs", rest.len() + left.len());
            Err(Error::new(Kind::Protocol, message))
        }
        Err(error) => Err(Error::caused(Kind::Protocol, "a frame holds no valid message", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::Payload;
    use proptest::prelude::*;

    type Message = (u64, Vec<Payload>, String);

    fn sample() -> Message {
        (7, vec![Payload::from(vec![1; 5000]), Payload::default(), Payload::from(vec![2; 9])], "text".to_owned())
    }

    fn frame(message: &Message) -> (Header, Vec<u8>, Bytes) {
        let mut tail = BytesMut::new();
        let payloads = encode(message, &mut tail).expect("encodes");
        let header = Header::parse(tail[..HEADER_BYTES].try_into().expect("a header")).expect("parses");
        (header, tail[HEADER_BYTES..].to_vec(), payloads.concat().into())
    }

    #[test]
    fn a_message_comes_back_with_payloads_in_one_allocation() {
        let (header, message, area) = frame(&sample());
        assert_eq!(header, Header { message_bytes: message.len(), payload_bytes: 5009 });
        assert!(message.len() < 30, "payloads are not in the message");
        let start = area.as_ptr() as usize;
        let back: Message = decode(&message, area).expect("decodes");
        assert_eq!(back, sample());
        assert_eq!(back.1[0].as_ptr() as usize, start);
        assert_eq!(back.1[2].as_ptr() as usize, start + 5000);
    }

    #[test]
    fn the_layout_on_the_wire_is_fixed() {
        let mut tail = BytesMut::new();
        encode(&(1u32, Payload::from(vec![0xaa; 3]), "ab"), &mut tail).expect("encodes");
        assert_eq!(&tail[..], b"TFm\x01\x06\0\0\0\x03\0\0\0\x01\0\x03\x02ab");
    }

    #[test]
    fn short_and_long_frames_are_refused() {
        let (_, message, area) = frame(&sample());
        let is_protocol = |result: Result<Message>| result.expect_err("malformed").kind() == Kind::Protocol;
        assert!(is_protocol(decode(&message[..message.len() - 1], area.clone())));
        assert!(is_protocol(decode(&message, area.slice(1..))));
        assert!(is_protocol(decode(&message, [&area[..], b"x"].concat().into())));
        assert!(is_protocol(decode(&[&message[..], b"x"].concat(), area)));
    }

    #[test]
    fn lengths_are_checked_in_both_directions() {
        let huge = Header { message_bytes: u32::MAX as usize, payload_bytes: u32::MAX as usize };
        assert_eq!(Header::parse(huge.to_bytes()).expect_err("huge").kind(), Kind::Protocol);
        assert_eq!(Header::parse(*b"GET / HTTP/1").expect_err("not a frame").kind(), Kind::Protocol);

        let part = Payload::from(vec![0; FRAME_BYTES_MAX / 2]);
        let mut tail = BytesMut::from(&b"before"[..]);
        assert_eq!(encode(&(&part, &part), &mut tail).expect_err("too large").kind(), Kind::TooLarge);
        assert_eq!(&tail[..], b"before");
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(message: Vec<u8>, area: Vec<u8>, header: [u8; HEADER_BYTES]) {
            if let Ok(header) = Header::parse(header) {
                prop_assert!(header.message_bytes + header.payload_bytes <= FRAME_BYTES_MAX);
            }
            if let Err(error) = decode::<Message>(&message, area.into()) {
                prop_assert_eq!(error.kind(), Kind::Protocol);
            }
        }

        #[test]
        fn damaged_frames_never_panic(at in 0usize..30, byte: u8) {
            let (_, mut message, area) = frame(&sample());
            let at = at % message.len();
            message[at] = byte;
            let decoded: Result<Message> = decode(&message, area);
            if let Err(error) = decoded {
                prop_assert_eq!(error.kind(), Kind::Protocol);
            }
        }
    }
}
