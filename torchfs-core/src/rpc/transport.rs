//! A tarpc transport over a byte stream: frames of the [`codec`](super::codec) in both directions.
//!
//! Payloads are written with vectored writes from where they lie and read straight into one buffer per frame. Small
//! messages that are queued together leave with one system call. Deadlines cross the wire as milliseconds that remain and
//! are clamped, so that no number from a peer can overflow a clock.

use super::codec::{self, HEADER_BYTES, Header};
use super::{
    admission::{Admission, Admitted},
    buffer,
    seats::Seat,
    vigil::Look,
};
use crate::error::{Error, Kind, Result};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{Sink, Stream};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tarpc::{ClientMessage, Response, ServerError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

/// How much is asked of the socket at a time for headers and messages. What it holds of a payload must be copied once.
const INBOX_BYTES: usize = 16 * 1024;

/// Payloads up to this size are copied behind their message: cheaper than one more slice in a vectored write.
const INLINE_BYTES_MAX: usize = 4 * 1024;

/// Above this many queued bytes the sender is asked to wait.
const QUEUED_BYTES_MAX: usize = 256 * 1024;

/// Most slices given to one vectored write.
const SLICES_MAX: usize = 64;

/// No request is given longer than this by the server.
const DEADLINE_MAX: Duration = Duration::from_secs(300);

/// A message as it lies in a frame, from client to server.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call<T> {
    /// Do this.
    Request { id: u64, deadline_ms: u32, message: T },
    /// The answer to this request is no longer wanted.
    Cancel { id: u64 },
}

/// A message as it lies in a frame, from server to client.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply<T> {
    id: u64,
    result: Result<T, Error>,
}

/// What tarpc gives to be sent.
pub(super) trait Outgoing {
    /// Its form on the wire.
    type Wire: Serialize;

    fn into_wire(self) -> Result<Self::Wire>;

    /// What is sent instead of a message that could not be encoded; `None` to report the error to the sender.
    fn replace(wire: &Self::Wire, error: &Error) -> Option<Self::Wire>;
}

/// What tarpc is given on arrival.
pub(super) trait Incoming: Sized {
    /// Its form on the wire.
    type Wire: DeserializeOwned;

    fn from_wire(wire: Self::Wire, admission: &mut Admission) -> Self;
}

impl<T: Serialize> Outgoing for ClientMessage<T> {
    type Wire = Call<T>;

    fn into_wire(self) -> Result<Call<T>> {
        match self {
            ClientMessage::Request(request) => {
                let left = request.context.deadline.saturating_duration_since(Instant::now()).min(DEADLINE_MAX);
                Ok(Call::Request { id: request.id, deadline_ms: left.as_millis() as u32, message: request.message })
            }
            ClientMessage::Cancel { request_id, .. } => Ok(Call::Cancel { id: request_id }),
            _ => Err(Error::new(Kind::Unsupported, "a kind of message that has no form on the wire")),
        }
    }

    fn replace(_: &Call<T>, _: &Error) -> Option<Call<T>> {
        None
    }
}

impl<T: DeserializeOwned> Incoming for ClientMessage<Admitted<T>> {
    type Wire = Call<T>;

    fn from_wire(wire: Call<T>, admission: &mut Admission) -> Self {
        match wire {
            Call::Request { id, deadline_ms, message } => {
                let mut context = tarpc::context::current();
                context.deadline = Instant::now() + Duration::from_millis(deadline_ms.into()).min(DEADLINE_MAX);
                ClientMessage::Request(tarpc::Request { context, id, message: admission.admit(message) })
            }
            Call::Cancel { id } => ClientMessage::Cancel { trace_context: Default::default(), request_id: id },
        }
    }
}

impl<T: Serialize> Outgoing for Response<T> {
    type Wire = Reply<T>;

    fn into_wire(self) -> Result<Reply<T>> {
        Ok(Reply {
            id: self.request_id,
            result: self.message.map_err(|error| Error::new(Kind::Unavailable, error.detail)),
        })
    }

    fn replace(wire: &Reply<T>, error: &Error) -> Option<Reply<T>> {
        Some(Reply { id: wire.id, result: Err(error.clone()) })
    }
}

impl<T: DeserializeOwned> Incoming for Response<T> {
    type Wire = Reply<T>;

    fn from_wire(wire: Reply<T>, _: &mut Admission) -> Self {
        let failed = |error: Error| {
            let kind = if error.kind() == Kind::TooLarge { ErrorKind::FileTooLarge } else { ErrorKind::Other };
            ServerError::new(kind, error.to_string())
        };
        Response { request_id: wire.id, message: wire.result.map_err(failed) }
    }
}

/// Messages of type `In` from, and `Out` to, the peer at the other end of `S`.
#[derive(Debug)]
pub(super) struct Transport<S, In, Out> {
    stream: S,
    inbox: BytesMut,
    arriving: Option<Arriving>,
    admission: Admission,
    seat: Option<Seat>,
    heard: Arc<AtomicU64>,
    outbox: Outbox,
    messages: PhantomData<fn(Out) -> In>,
}

impl Header {
    /// Whether it holds more than a connection may have read at any time.
    fn is_large(self) -> bool {
        self.message_bytes + self.payload_bytes > INBOX_BYTES
    }
}

/// A frame whose header was read.
#[derive(Debug)]
struct Arriving {
    header: Header,
    /// How much of the payloads lies in the inbox behind the message; already copied into `payload`.
    early_bytes: usize,
    payload: Option<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Outbox {
    segments: VecDeque<Bytes>,
    tail: BytesMut,
    bytes: usize,
    sent_bytes: u64,
}

impl<S, In, Out> Transport<S, In, Out> {
    /// Over a stream whose handshake is done.
    pub(super) fn new(stream: S, admission: Admission) -> Self {
        Transport {
            stream,
            inbox: BytesMut::with_capacity(INBOX_BYTES),
            arriving: None,
            admission,
            seat: None,
            heard: Arc::default(),
            outbox: Outbox::default(),
            messages: PhantomData,
        }
    }

    /// What arrives in large frames is charged to this seat.
    pub(super) fn seated(self, seat: Seat) -> Self {
        Transport { seat: Some(seat), ..self }
    }

    /// How many frames have arrived, now and later.
    pub(super) fn heard(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.heard)
    }

    /// How far it has come. What it knows nothing of, the requests, is left at 0.
    pub(super) fn look(&self) -> Look {
        let peer_owes = if self.arriving.is_some() { !self.admission.is_waiting() } else { !self.inbox.is_empty() };
        Look {
            frames: self.heard.load(Ordering::Relaxed),
            sent_bytes: self.outbox.sent_bytes,
            is_receiving: peer_owes,
            is_sending: self.outbox.bytes > 0,
            requests: 0,
        }
    }
}

impl<S: AsyncRead + Unpin, In: Incoming, Out> Transport<S, In, Out> {
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<In>>> {
        let arriving = match &mut self.arriving {
            Some(arriving) => arriving,
            None => {
                if ready!(poll_inbox(&mut self.stream, &mut self.inbox, HEADER_BYTES, None, cx))? == Filled::Ended {
                    return Poll::Ready(Ok(None));
                }
                let mut header = [0; HEADER_BYTES];
                self.inbox.copy_to_slice(&mut header);
                self.arriving.insert(Arriving { header: Header::parse(header)?, early_bytes: 0, payload: None })
            }
        };
        let header = arriving.header;
        ready!(self.admission.poll_room(header.payload_bytes, cx))?;
        let mut seat = self.seat.as_mut().filter(|_| header.is_large());
        let filled = poll_inbox(&mut self.stream, &mut self.inbox, header.message_bytes, seat.as_deref_mut(), cx);
        if ready!(filled)? == Filled::Ended {
            return Poll::Ready(Err(cut_off()));
        }
        if header.payload_bytes > 0 {
            let payload = match &mut arriving.payload {
                Some(payload) => payload,
                None => {
                    let payload = start_payload(&self.inbox, header);
                    arriving.early_bytes = payload.len();
                    arriving.payload.insert(payload)
                }
            };
            ready!(poll_payload(&mut self.stream, payload, header.payload_bytes, seat.as_deref_mut(), cx))?;
        }
        if let Some(seat) = seat {
            seat.release();
        }
        let area = arriving.payload.take().map(buffer::share).unwrap_or_default();
        let used = header.message_bytes + arriving.early_bytes;
        self.arriving = None;
        let wire = codec::decode(&self.inbox[..header.message_bytes], area)?;
        self.inbox.advance(used);
        if header.message_bytes > INBOX_BYTES {
            // Or its room would be kept for as long as the connection lasts.
            self.inbox = BytesMut::from(&self.inbox[..]);
        }
        self.heard.fetch_add(1, Ordering::Relaxed);
        Poll::Ready(Ok(Some(In::from_wire(wire, &mut self.admission))))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Filled {
    Enough,
    Ended,
}

/// Reads what is there, as soon as the seat has room for it.
fn poll_more<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut impl BufMut,
    seat: Option<&mut Seat>,
    cx: &mut Context<'_>,
) -> Poll<Result<usize>> {
    let Some(seat) = seat else { return poll_read_buf(Pin::new(stream), cx, buffer).map_err(lost) };
    ready!(seat.poll_room(cx));
    let bytes = ready!(poll_read_buf(Pin::new(stream), cx, buffer)).map_err(lost)?;
    seat.arrived(bytes);
    Poll::Ready(Ok(bytes))
}

/// Reads until the inbox holds `bytes`. The stream may end only while the inbox is empty.
fn poll_inbox<S: AsyncRead + Unpin>(
    stream: &mut S,
    inbox: &mut BytesMut,
    bytes: usize,
    mut seat: Option<&mut Seat>,
    cx: &mut Context<'_>,
) -> Poll<Result<Filled>> {
    while inbox.len() < bytes {
        inbox.reserve((bytes - inbox.len()).max(INBOX_BYTES));
        match ready!(poll_more(stream, inbox, seat.as_deref_mut(), cx))? {
            0 if inbox.is_empty() => return Poll::Ready(Ok(Filled::Ended)),
            0 => return Poll::Ready(Err(cut_off())),
            _ => {}
        }
    }
    Poll::Ready(Ok(Filled::Enough))
}

/// A buffer for the frame's payloads, with what of them was read together with the message.
fn start_payload(inbox: &BytesMut, header: Header) -> Vec<u8> {
    let mut payload = buffer::take(header.payload_bytes);
    let behind_message = &inbox[header.message_bytes..];
    payload.extend_from_slice(&behind_message[..behind_message.len().min(header.payload_bytes)]);
    payload
}

fn poll_payload<S: AsyncRead + Unpin>(
    stream: &mut S,
    payload: &mut Vec<u8>,
    bytes: usize,
    mut seat: Option<&mut Seat>,
    cx: &mut Context<'_>,
) -> Poll<Result<()>> {
    while payload.len() < bytes {
        let left = bytes - payload.len();
        if ready!(poll_more(stream, &mut (&mut *payload).limit(left), seat.as_deref_mut(), cx))? == 0 {
            return Poll::Ready(Err(cut_off()));
        }
    }
    Poll::Ready(Ok(()))
}

fn cut_off() -> Error {
    Error::new(Kind::Unavailable, "the peer closed the connection in the middle of a message")
}

fn lost(error: std::io::Error) -> Error {
    Error::caused(Kind::Unavailable, "the connection was lost", error)
}

impl Outbox {
    fn push(&mut self, message: &impl Serialize) -> Result<()> {
        let before = self.tail.len();
        let payloads = codec::encode(message, &mut self.tail)?;
        self.bytes += self.tail.len() - before;
        for payload in payloads {
            self.bytes += payload.len();
            if payload.len() <= INLINE_BYTES_MAX {
                self.tail.extend_from_slice(&payload);
            } else {
                let before_payload = self.tail.split().freeze();
                if !before_payload.is_empty() {
                    self.segments.push_back(before_payload);
                }
                self.segments.push_back(payload);
            }
        }
        Ok(())
    }

    fn slices<'a>(&'a self, slices: &mut [IoSlice<'a>; SLICES_MAX]) -> usize {
        let queued = self.segments.iter().map(|segment| &segment[..]);
        let tail = Some(&self.tail[..]).filter(|tail| !tail.is_empty());
        let mut count = 0;
        for (slot, segment) in slices.iter_mut().zip(queued.chain(tail)) {
            *slot = IoSlice::new(segment);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        self.sent_bytes += written as u64;
        while let Some(front) = self.segments.front_mut() {
            if written < front.len() {
                front.advance(written);
                return;
            }
            written -= front.len();
            self.segments.pop_front();
        }
        self.tail.advance(written);
    }
}

impl<S: AsyncWrite + Unpin, In, Out> Transport<S, In, Out> {
    /// Writes until at most `rest` bytes are queued.
    fn poll_drain(&mut self, rest: usize, cx: &mut Context<'_>) -> Poll<Result<()>> {
        while self.outbox.bytes > rest {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.outbox.slices(&mut slices);
            let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..count])).map_err(lost)?;
            if written == 0 {
                return Poll::Ready(Err(Error::new(Kind::Unavailable, "the connection takes no more bytes")));
            }
            self.outbox.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin, In: Incoming, Out> Stream for Transport<S, In, Out> {
    type Item = Result<In>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_message(cx).map(Result::transpose)
    }
}

impl<S: AsyncWrite + Unpin, In, Out: Outgoing> Sink<Out> for Transport<S, In, Out> {
    type Error = Error;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.get_mut().poll_drain(QUEUED_BYTES_MAX, cx)
    }

    fn start_send(self: Pin<&mut Self>, item: Out) -> Result<()> {
        let outbox = &mut self.get_mut().outbox;
        let wire = item.into_wire()?;
        match outbox.push(&wire) {
            Ok(()) => Ok(()),
            Err(error) => outbox.push(&Out::replace(&wire, &error).ok_or(error)?),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let transport = self.get_mut();
        ready!(transport.poll_drain(0, cx))?;
        Pin::new(&mut transport.stream).poll_flush(cx).map_err(lost)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        ready!(self.as_mut().get_mut().poll_drain(0, cx))?;
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx).map_err(lost)
    }
}
