//! Bytes that travel beside a message's header instead of inside it.
//!
//! While a frame is encoded or decoded on this thread, [`Outgoing`] or [`Incoming`] is in scope and a [`Payload`] is only
//! an index and a length to serde; anywhere else it serializes as ordinary bytes.

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::RefCell;
use std::ops::Deref;

/// Raw bytes in a message. The codec sends them after the header without copying them through the serializer, and hands
/// them out as slices of the received frame.
///
/// A slice keeps the whole frame it came in alive; copy what is to be kept for long out of a large frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload(pub Bytes);

impl Deref for Payload {
    type Target = Bytes;

    fn deref(&self) -> &Bytes {
        &self.0
    }
}

impl From<Bytes> for Payload {
    fn from(bytes: Bytes) -> Self {
        Payload(bytes)
    }
}

impl From<Vec<u8>> for Payload {
    fn from(bytes: Vec<u8>) -> Self {
        Payload(bytes.into())
    }
}

impl Serialize for Payload {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match set_aside(&self.0) {
            Some(Ok(place)) => place.serialize(serializer),
            Some(Err(TooLong)) => Err(serde::ser::Error::custom("payload longer than a frame can hold")),
            None => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let in_frame = SCOPE.with_borrow(|scope| matches!(scope, Scope::Incoming(_)));
        if !in_frame {
            return Bytes::deserialize(deserializer).map(Payload);
        }
        let place = Place::deserialize(deserializer)?;
        take(place).map(Payload).ok_or_else(|| serde::de::Error::custom("payload outside of its frame"))
    }
}

/// Where a payload is: its number in the frame and its length; what a message holds in its stead.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Place {
    index: u32,
    length: u32,
}

struct TooLong;

enum Scope {
    None,
    Outgoing(Vec<Bytes>),
    Incoming(Arrived),
}

struct Arrived {
    rest: Bytes,
    next: u32,
}

thread_local! {
    static SCOPE: RefCell<Scope> = const { RefCell::new(Scope::None) };
}

fn set_aside(bytes: &Bytes) -> Option<Result<Place, TooLong>> {
    SCOPE.with_borrow_mut(|scope| {
        let Scope::Outgoing(payloads) = scope else { return None };
        let (Ok(index), Ok(length)) = (u32::try_from(payloads.len()), u32::try_from(bytes.len())) else {
            return Some(Err(TooLong));
        };
        payloads.push(bytes.clone());
        Some(Ok(Place { index, length }))
    })
}

fn take(place: Place) -> Option<Bytes> {
    SCOPE.with_borrow_mut(|scope| {
        let Scope::Incoming(arrived) = scope else { return None };
        if place.index != arrived.next || place.length as usize > arrived.rest.len() {
            return None;
        }
        arrived.next += 1;
        Some(arrived.rest.split_to(place.length as usize))
    })
}

/// Leaves the scope however the work inside it ends.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        SCOPE.replace(Scope::None);
    }
}

/// Runs `encode`, and returns with its result the payloads that it came across, in order.
pub(super) fn collecting<T>(encode: impl FnOnce() -> T) -> (T, Vec<Bytes>) {
    SCOPE.replace(Scope::Outgoing(Vec::new()));
    let _leave = Leave;
    let result = encode();
    let Scope::Outgoing(payloads) = SCOPE.replace(Scope::None) else { return (result, Vec::new()) };
    (result, payloads)
}

/// Runs `decode`, whose payloads are consecutive slices of `area`, and returns with its result what is left of the area.
pub(super) fn handing_out<T>(area: Bytes, decode: impl FnOnce() -> T) -> (T, Bytes) {
    SCOPE.replace(Scope::Incoming(Arrived { rest: area, next: 0 }));
    let _leave = Leave;
    let result = decode();
    let Scope::Incoming(arrived) = SCOPE.replace(Scope::None) else { return (result, Bytes::new()) };
    (result, arrived.rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_a_frame_a_payload_is_ordinary_bytes() {
        let payload = Payload::from(vec![1, 2, 3]);
        let bytes = postcard::to_allocvec(&payload).expect("serializes");
        assert_eq!(bytes, [3, 1, 2, 3]);
        assert_eq!(postcard::from_bytes::<Payload>(&bytes).expect("deserializes"), payload);
    }

    #[test]
    fn inside_a_frame_it_is_set_aside_and_handed_out_uncopied() {
        let pair = (Payload::from(vec![1, 2, 3]), Payload::from(vec![4, 5]));
        let (message, payloads) = collecting(|| postcard::to_allocvec(&pair).expect("serializes"));
        assert_eq!(message, [0, 3, 1, 2]);
        assert_eq!(payloads[0].as_ptr(), pair.0.as_ptr());
        let area = Bytes::from(payloads.concat());
        let start = area.as_ptr();
        let (back, rest) = handing_out(area, || postcard::from_bytes::<(Payload, Payload)>(&message));
        let back = back.expect("deserializes");
        assert_eq!(back, pair);
        assert_eq!(back.0.as_ptr(), start);
        assert!(rest.is_empty());
    }

    #[test]
    fn a_place_outside_the_area_is_refused() {
        let area = Bytes::from_static(&[9; 4]);
        for places in [[0u8, 5], [1, 1]] {
            let (result, _) = handing_out(area.clone(), || postcard::from_bytes::<Payload>(&places));
            assert!(result.is_err(), "{places:?}");
        }
    }
}
