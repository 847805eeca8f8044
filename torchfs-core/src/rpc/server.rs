//! The server's end: [`Server`] answers any of the three services on one listening socket.
//!
//! What it promises to its host: connections, what arrives on all of them, and requests per connection are bounded; a
//! stranger costs one short-lived task, and a peer that falls silent no memory for long; a change that was begun is not given
//! up because the client went away; when it returns, nothing of it runs on.

use super::admission::{Admission, Admitted};
use super::handshake::Peer;
use super::quiet::Quiet;
use super::seats::{Limits, Note, Seat, Seats};
use super::transport::Transport;
use super::vigil::{LOOK_INTERVAL, Look, Vigil};
use super::{MetaService, RaftService, Service, handshake, meta, raft, socket, store};
use crate::ids::{ClusterId, NodeId};
use crate::shard::ShardStore;
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tarpc::server::{BaseChannel, Channel, Config, InFlightRequest};
use tarpc::{ClientMessage, RequestName, Response, ServerError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Answers that may wait for the socket. Further ones keep their requests' room, which keeps further requests out.
const ANSWERS_WAITING_MAX: usize = 16;

/// How long to wait when the process has no file descriptor for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How one service answers its requests.
#[async_trait]
pub(super) trait Handler: Clone + Send + Sync + 'static {
    type Request: DeserializeOwned + RequestName + Send + Sync + 'static;
    type Response: Serialize + Send + 'static;

    /// Whether the request changes something, and therefore runs to its end even if nobody waits for the answer.
    fn is_change(request: &Self::Request) -> bool;

    async fn handle(self, request: Self::Request) -> Self::Response;
}

/// Offers services to clients that belong to the same cluster.
#[derive(Clone, Debug)]
pub struct Server {
    cluster: watch::Receiver<Option<ClusterId>>,
    node: Option<NodeId>,
    store: Option<Arc<dyn ShardStore>>,
    meta: Option<Arc<dyn MetaService>>,
    raft: Option<Arc<dyn RaftService>>,
    limits: Limits,
}

/// What the tasks of one running server share.
#[derive(Clone)]
struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// A server that offers nothing yet. While `cluster` is `None`, clients of any cluster are let in.
    #[must_use]
    pub fn new(cluster: watch::Receiver<Option<ClusterId>>) -> Self {
        Server { cluster, node: None, store: None, meta: None, raft: None, limits: Limits::default() }
    }

    /// With other limits, which tests reach sooner.
    #[cfg(test)]
    pub(super) fn limits(self, limits: Limits) -> Self {
        Server { limits, ..self }
    }

    /// Says to clients which storage node it is, so that one that looks for another goes away.
    #[must_use]
    pub fn node(mut self, node: NodeId) -> Self {
        self.node = Some(node);
        self
    }

    /// Offers a storage node's shards.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn ShardStore>) -> Self {
        self.store = Some(store);
        self
    }

    /// Offers metadata to clients and storage nodes.
    #[must_use]
    pub fn meta(mut self, meta: Arc<dyn MetaService>) -> Self {
        self.meta = Some(meta);
        self
    }

    /// Offers Raft to the other metadata nodes.
    #[must_use]
    pub fn raft(mut self, raft: Arc<dyn RaftService>) -> Self {
        self.raft = Some(raft);
        self
    }

    /// Serves until `stop` fires; then no task of it is left and the port is free. A request that is under way then is
    /// given up like at a crash.
    pub async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let tasks = Tasks { tracker: TaskTracker::new(), stop: stop.child_token() };
        // Also stops everything if this future is dropped.
        let _stop_on_drop = tasks.stop.clone().drop_guard();
        let seats = Seats::new(self.limits);
        let served = async { tokio::join!(self.accept(&listener, &seats, &tasks), seats.tend()) };
        stop.run_until_cancelled(served).await;
        drop(listener);
        tasks.tracker.close();
        tasks.tracker.wait().await;
    }

    async fn accept(&self, listener: &TcpListener, seats: &Arc<Seats>, tasks: &Tasks) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let Some(seat) = seats.take(&tasks.stop) else { continue };
            let (server, own, leave) = (self.clone(), tasks.clone(), seat.leave());
            tasks.tracker.spawn(async move {
                leave.run_until_cancelled(Quiet::new(server.serve(stream, seat, &own))).await;
            });
        }
    }

    async fn serve(self, mut stream: TcpStream, seat: Seat, tasks: &Tasks) {
        if socket::configure(&stream).is_err() {
            return;
        }
        let own = Peer { cluster: *self.cluster.borrow(), node: self.node };
        match handshake::welcome(&mut stream, &self.offered(), own).await {
            Some(Service::Store) => serve_with(self.store.map(store::StoreHandler), stream, seat, tasks).await,
            Some(Service::Meta) => serve_with(self.meta.map(meta::MetaHandler), stream, seat, tasks).await,
            Some(Service::Raft) => serve_with(self.raft.map(raft::RaftHandler), stream, seat, tasks).await,
            None => {}
        }
    }

    fn offered(&self) -> Vec<Service> {
        let services = [
            (self.store.is_some(), Service::Store),
            (self.meta.is_some(), Service::Meta),
            (self.raft.is_some(), Service::Raft),
        ];
        services.into_iter().filter_map(|(is_offered, service)| is_offered.then_some(service)).collect()
    }
}

async fn serve_with<H: Handler>(handler: Option<H>, stream: TcpStream, seat: Seat, tasks: &Tasks) {
    let Some(handler) = handler else { return };
    let note: Note = seat.note();
    let transport: Transport<_, ClientMessage<Admitted<H::Request>>, Response<H::Response>> =
        Transport::new(stream, Admission::limited()).seated(seat);
    let config = Config { pending_response_buffer: ANSWERS_WAITING_MAX };
    let mut requests = pin!(BaseChannel::new(config, transport).requests());
    // Not a task per request: an answer that is at hand is sent without waking another thread. A handler that panics ends
    // the connection, so that its client need not wait for an answer that will not come.
    let mut running = FuturesUnordered::new();
    let mut vigil = Vigil::default();
    let mut looks = interval(LOOK_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            Some(()) = running.next() => note.requests(running.len()),
            request = requests.next() => {
                // The peer left, or broke the rules, which it is told by the end of the connection.
                let Some(Ok(request)) = request else { return };
                running.push(answer(handler.clone(), request, tasks.clone()));
                note.requests(running.len());
            }
            _ = looks.tick() => {
                let look = Look { requests: running.len(), ..requests.channel().transport().look() };
                if vigil.is_over(look) {
                    return;
                }
            }
        }
    }
}

type Arrived<H> = InFlightRequest<Admitted<<H as Handler>::Request>, <H as Handler>::Response>;

async fn answer<H: Handler>(handler: H, request: Arrived<H>, tasks: Tasks) {
    // Kept until the answer is on its way, so that answers that nobody reads hold up further requests.
    let _room = request.get().message.permit.clone();
    let serve = tarpc::server::serve(move |_, admitted| handle(handler, admitted, tasks));
    request.execute(serve).await;
}

async fn handle<H: Handler>(
    handler: H,
    admitted: Admitted<H::Request>,
    tasks: Tasks,
) -> Result<H::Response, ServerError> {
    let Admitted { message, permit } = admitted;
    if !H::is_change(&message) {
        return Ok(handler.handle(message).await);
    }
    let stop = tasks.stop;
    let change = tasks.tracker.spawn(async move {
        let _room = permit;
        stop.run_until_cancelled(handler.handle(message)).await
    });
    match change.await {
        Ok(Some(response)) => Ok(response),
        // The outcome is not known. The connection ends now, which tells the client just that.
        Ok(None) => std::future::pending().await,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
