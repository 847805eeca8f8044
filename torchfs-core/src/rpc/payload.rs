//! Bytes that travel beside a message's header instead of inside it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::ops::Deref;

/// Raw bytes in a message. The codec sends them after the header without copying them through the serializer, and hands
/// them out as slices of the received frame.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
