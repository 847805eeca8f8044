//! A client's connection to one service of one address: dialled when needed, shared by all requests, replaced when lost.

use super::admission::Admission;
use super::handshake::Peer;
use super::quiet::Quiet;
use super::transport::{Incoming, Outgoing, Transport};
use super::{Service, handshake, socket};
use crate::error::{Error, Kind, Result};
use crate::ids::{ClusterId, NodeId};
use crate::settings::{CONNECT_DEADLINE, CONNECTION_REQUESTS_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::{self, Debug};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tarpc::client::{Channel, Config, RpcError};
use tarpc::{ChannelError, ClientMessage, RequestName, Response};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, watch};
use tokio::time::{Instant, timeout_at};
use tokio_util::task::AbortOnDropHandle;

/// After the first failure a peer is left alone for this long, then for twice as long, ...
const PAUSE_MIN: Duration = Duration::from_millis(50);

/// ... but never longer than this: a restarted node is found again soon.
const PAUSE_MAX: Duration = Duration::from_millis(800);

/// A peer that says nothing at all for a request of at least this deadline is taken to hang and is dialled anew.
const SILENCE: Duration = Duration::from_secs(1);

/// By how much tarpc's own deadline comes after ours, which is the one that is reported.
const GRACE: Duration = Duration::from_secs(1);

/// One service at one address.
pub(super) struct Connection<Req, Resp> {
    addr: String,
    service: Service,
    cluster: watch::Receiver<Option<ClusterId>>,
    node: Option<NodeId>,
    state: Mutex<State<Req, Resp>>,
}

struct State<Req, Resp> {
    live: Arc<OnceCell<Live<Req, Resp>>>,
    failure: Option<Failure>,
}

struct Failure {
    error: Error,
    pause: Duration,
    until: Instant,
}

/// An established connection.
struct Live<Req, Resp> {
    channel: Channel<Req, Resp>,
    dispatch: Arc<AbortOnDropHandle<()>>,
    heard: Arc<AtomicU64>,
    cluster: Option<ClusterId>,
}

impl<Req, Resp> Clone for Live<Req, Resp> {
    fn clone(&self) -> Self {
        Live {
            channel: self.channel.clone(),
            dispatch: Arc::clone(&self.dispatch),
            heard: Arc::clone(&self.heard),
            cluster: self.cluster,
        }
    }
}

impl<Req, Resp> Debug for Connection<Req, Resp> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("addr", &self.addr).field("service", &self.service).finish_non_exhaustive()
    }
}

impl<Req, Resp> Connection<Req, Resp>
where
    Req: RequestName + Serialize + Send + 'static,
    Resp: DeserializeOwned + Send + 'static,
    ClientMessage<Req>: Outgoing,
    Response<Resp>: Incoming,
{
    /// Nothing is dialled yet. A peer that belongs to another than the watched cluster is refused.
    pub(super) fn new(addr: String, service: Service, cluster: watch::Receiver<Option<ClusterId>>) -> Self {
        let state = Mutex::new(State { live: Arc::default(), failure: None });
        Connection { addr, service, cluster, node: None, state }
    }

    /// Refuses the peer if it is another storage node than this.
    pub(super) fn of_node(self, node: NodeId) -> Self {
        Connection { node: Some(node), ..self }
    }

    /// `host:port`.
    pub(super) fn addr(&self) -> &str {
        &self.addr
    }

    /// Whether the peer failed last time and is being left alone.
    pub(super) fn is_paused(&self) -> bool {
        self.state().failure.as_ref().is_some_and(|failure| Instant::now() < failure.until)
    }

    /// Dials if there is no connection. Returns the cluster of the peer, if it knows.
    ///
    /// # Errors
    /// What [`handshake::greet`] says; `Unavailable` if the peer cannot be reached or failed a moment ago.
    pub(super) async fn connect(&self) -> Result<Option<ClusterId>> {
        let (live, _) = self.ready().await?;
        if live.cluster.is_none() {
            // It may know by the next time, and says so only in a handshake.
            self.forget(&live);
        }
        Ok(live.cluster)
    }

    /// Sends a request and waits for the answer. The request must be safe to repeat: if an older connection turns out to
    /// be lost, it is sent once more over a new one.
    ///
    /// # Errors
    /// `Timeout` at the deadline, `Unavailable` if the connection cannot be made or is lost, `Protocol` if the peer breaks
    /// the rules, `TooLarge` if request or answer do not fit a frame.
    pub(super) async fn call(&self, make: impl Fn() -> Req, deadline: Duration) -> Result<Resp> {
        let end = Instant::now() + deadline;
        let mut may_repeat = true;
        loop {
            let (live, is_new) = timeout_at(end, self.ready()).await.map_err(|_| self.late(deadline))??;
            let heard = live.heard.load(Ordering::Relaxed);
            let mut context = tarpc::context::current();
            context.deadline = (end + GRACE).into_std();
            let Ok(answer) = timeout_at(end, live.channel.call(context, make())).await else {
                if deadline >= SILENCE && live.heard.load(Ordering::Relaxed) == heard {
                    self.forget(&live);
                }
                return Err(self.late(deadline));
            };
            match answer {
                Ok(answer) => return Ok(answer),
                Err(RpcError::Shutdown | RpcError::Channel(_)) if may_repeat && !is_new => {
                    self.forget(&live);
                    may_repeat = false;
                }
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    async fn ready(&self) -> Result<(Live<Req, Resp>, bool)> {
        let cell = {
            let mut state = self.state();
            if state.live.get().is_some_and(|live| live.dispatch.is_finished()) {
                state.live = Arc::default();
            }
            Arc::clone(&state.live)
        };
        let is_new = !cell.initialized();
        let live = cell.get_or_try_init(|| self.dial()).await?;
        Ok((live.clone(), is_new))
    }

    async fn dial(&self) -> Result<Live<Req, Resp>> {
        if let Some(failure) = &self.state().failure
            && Instant::now() < failure.until
        {
            return Err(failure.error.clone());
        }
        let dialled = socket::connect(&self.addr, CONNECT_DEADLINE).await;
        let greeted = match dialled {
            Ok(stream) => self.greet(stream).await,
            Err(error) => Err(error),
        };
        let mut state = self.state();
        match greeted {
            Ok(live) => {
                state.failure = None;
                Ok(live)
            }
            Err(error) => {
                let pause = state.failure.as_ref().map_or(PAUSE_MIN, |last| (last.pause * 2).min(PAUSE_MAX));
                state.failure = Some(Failure { error: error.clone(), pause, until: Instant::now() + pause });
                Err(error)
            }
        }
    }

    async fn greet(&self, mut stream: TcpStream) -> Result<Live<Req, Resp>> {
        let wanted = Peer { cluster: *self.cluster.borrow(), node: self.node };
        let cluster = handshake::greet(&mut stream, &self.addr, self.service, wanted).await?;
        let transport: Transport<_, Response<Resp>, ClientMessage<Req>> = Transport::new(stream, Admission::default());
        let heard = transport.heard();
        let mut config = Config::default();
        config.max_in_flight_requests = CONNECTION_REQUESTS_MAX;
        config.pending_request_buffer = CONNECTION_REQUESTS_MAX;
        let client = tarpc::client::new(config, transport);
        // How the connection ends is told to the requests that wait for it.
        let dispatch = tokio::spawn(Quiet::new(async move { drop(client.dispatch.await) }));
        let dispatch = Arc::new(AbortOnDropHandle::new(dispatch));
        Ok(Live { channel: client.client, dispatch, heard, cluster })
    }

    fn forget(&self, lost: &Live<Req, Resp>) {
        let mut state = self.state();
        if state.live.get().is_some_and(|live| Arc::ptr_eq(&live.dispatch, &lost.dispatch)) {
            state.live = Arc::default();
        }
    }

    fn late(&self, deadline: Duration) -> Error {
        Error::new(Kind::Timeout, format!("{} did not answer within {:.1} s", self.addr, deadline.as_secs_f64()))
    }

    fn broken(&self, error: RpcError) -> Error {
        let error = match error {
            RpcError::Shutdown => Error::new(Kind::Unavailable, "the connection was closed"),
            RpcError::DeadlineExceeded => Error::new(Kind::Timeout, "no answer within the deadline"),
            RpcError::Server(error) if error.kind == ErrorKind::FileTooLarge => {
                Error::new(Kind::TooLarge, error.detail)
            }
            RpcError::Server(error) => Error::new(Kind::Unavailable, error.detail),
            RpcError::Send(source) => match source.downcast::<Error>() {
                Ok(error) => *error,
                Err(source) => Error::new(Kind::Unavailable, source.to_string()),
            },
            RpcError::Channel(
                ChannelError::Read(source)
                | ChannelError::Ready(source)
                | ChannelError::Write(source)
                | ChannelError::Flush(source)
                | ChannelError::Close(source),
            ) => match source.downcast_ref::<Error>() {
                Some(error) => error.clone(),
                None => Error::new(Kind::Unavailable, source.to_string()),
            },
        };
        error.context(&self.addr)
    }

    fn state(&self) -> MutexGuard<'_, State<Req, Resp>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
