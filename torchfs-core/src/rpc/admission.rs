//! How much work one connection may have under way at the server: requests and the bytes they brought.
//!
//! A request is read from the socket only when there is room for it, so a peer that asks too much waits in its own send
//! buffer and costs the server nothing.

use crate::error::{Error, Kind, Result};
use crate::settings::CONNECTION_REQUESTS_MAX;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tarpc::RequestName;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::PollSemaphore;

/// A request takes one unit, and one more for each of these bytes of payload.
const UNIT_BYTES: usize = 1024 * 1024;

/// Lets messages of one connection in; unlimited on the client's side.
#[derive(Debug, Default)]
pub(super) struct Admission {
    room: Option<PollSemaphore>,
    held: Option<Permit>,
}

/// Room that a request takes until its last holder is done.
pub(super) type Permit = Arc<OwnedSemaphorePermit>;

/// A request with the room it takes.
#[derive(Debug)]
pub(super) struct Admitted<T> {
    pub(super) message: T,
    pub(super) permit: Option<Permit>,
}

impl<T: RequestName> RequestName for Admitted<T> {
    fn name(&self) -> &str {
        self.message.name()
    }
}

impl Admission {
    /// At most [`CONNECTION_REQUESTS_MAX`] requests, fewer when they bring many bytes.
    pub(super) fn limited() -> Self {
        let room = PollSemaphore::new(Arc::new(Semaphore::new(CONNECTION_REQUESTS_MAX)));
        Admission { room: Some(room), held: None }
    }

    /// Waits for room for a message with this many bytes of payload. Room that the last message did not use is used
    /// first, so that this may be called again while the same message is still arriving.
    pub(super) fn poll_room(&mut self, payload_bytes: usize, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(room) = &mut self.room else { return Poll::Ready(Ok(())) };
        let units = (1 + payload_bytes / UNIT_BYTES).min(CONNECTION_REQUESTS_MAX);
        if self.held.as_ref().is_some_and(|permit| permit.num_permits() >= units) {
            return Poll::Ready(Ok(()));
        }
        self.held = None;
        let permit = ready!(room.poll_acquire_many(cx, units as u32));
        let permit = permit.ok_or_else(|| Error::new(Kind::Cancelled, "the connection is being closed"))?;
        self.held = Some(Arc::new(permit));
        Poll::Ready(Ok(()))
    }

    /// Whether a message whose header has arrived waits for room.
    pub(super) fn is_waiting(&self) -> bool {
        self.room.is_some() && self.held.is_none()
    }

    /// Gives the room just waited for to a request.
    pub(super) fn admit<T>(&mut self, message: T) -> Admitted<T> {
        Admitted { message, permit: self.held.take() }
    }
}
