//! Metadata over the wire: [`MetaClient`] finds the leader and bridges its change, `MetaHandler` answers at the server.
//!
//! Every request may be sent several times and to several nodes: mutations carry the id that makes them exactly-once,
//! the rest changes nothing that matters.

use super::connection::Connection;
use super::server::Handler;
use super::{LeaderHint, MetaFault, MetaRpcRequest, MetaRpcResponse, Service, mismatch, socket};
use crate::error::{Error, Kind, Result};
use crate::ids::ClusterId;
use crate::meta::{
    Allocate, Allocation, Changes, Command, Heartbeat, HeartbeatReply, MetaAnswer, MetaQuery, MetaReply, MetaStore,
    Watch,
};
use crate::settings::{META_ATTEMPT_DEADLINE, META_DEADLINE};
use async_trait::async_trait;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::ops::RangeInclusive;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// How long a first connect goes on when no node answers: long enough for a cluster that is being started.
const FIRST_CONNECT: Duration = Duration::from_secs(1);

/// Time between two attempts, drawn from this range so that clients do not come in step.
const PAUSE_MS: RangeInclusive<u64> = 20..=100;

/// A node that has not answered for this long may hang; the others are asked whether there is a new leader.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long one of the others may take to answer.
const PROBE_DEADLINE: Duration = Duration::from_millis(500);

/// After so many redirects in a row the nodes disagree about the leader; then an election is given time.
const REDIRECTS_MAX: u32 = 2;

/// An allocation is refused for good after this long: unlike other requests it is refused also when no storage node is up.
const ALLOCATE_PATIENCE: Duration = Duration::from_secs(5);

/// Most addresses kept, those learned from hints included.
const NODES_MAX: usize = 64;

/// What a metadata node does for clients and storage nodes: the methods of [`MetaStore`], but it may also answer that
/// another node leads.
#[async_trait]
pub trait MetaService: Debug + Send + Sync + 'static {
    /// See [`MetaStore::apply`].
    async fn apply(&self, command: Command) -> Result<MetaReply, MetaFault>;
    /// See [`MetaStore::query`].
    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer, MetaFault>;
    /// See [`MetaStore::allocate`].
    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>, MetaFault>;
    /// See [`MetaStore::heartbeat`].
    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply, MetaFault>;
    /// See [`MetaStore::watch`].
    async fn watch(&self, watch: Watch) -> Result<Changes, MetaFault>;
}

/// The metadata cluster as its clients reach it.
#[derive(Debug)]
pub struct MetaClient {
    cluster: ClusterId,
    watch: watch::Receiver<Option<ClusterId>>,
    nodes: Mutex<Nodes>,
}

type Node = Connection<MetaRpcRequest, MetaRpcResponse>;

#[derive(Debug)]
struct Nodes {
    all: Vec<Arc<Node>>,
    /// The leader as far as is known, or the node to try next.
    next: usize,
}

/// A request that can be made again and again, and how its answer is taken from the response.
struct Ask<'a, T> {
    make: &'a (dyn Fn() -> MetaRpcRequest + Send + Sync),
    take: fn(MetaRpcResponse) -> Option<Result<T, MetaFault>>,
    /// For how long `Unavailable` from the leader is not taken for an answer.
    patience: Duration,
}

/// What each node said last to one request.
#[derive(Debug, Default)]
struct Failures(Mutex<BTreeMap<String, Error>>);

impl Failures {
    fn note(&self, node: &Node, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node.addr().to_owned(), error);
    }

    /// What is told when time is up.
    fn no_answer(&self, kind: Kind) -> Error {
        let failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let said = |(addr, error): (&String, &Error)| {
            let text = error.to_string();
            if text.contains(addr) { text } else { format!("{addr}: {text}") }
        };
        let each: Vec<String> = failures.iter().map(said).collect();
        let message = format!(
            "metadata did not answer within {} s: {}; more than half of the metadata nodes must run and reach each other",
            META_DEADLINE.as_secs(),
            each.join(", ")
        );
        Error::new(kind, message)
    }
}

/// What came of one attempt.
enum Outcome<T> {
    Answer(Result<T>),
    /// That node leads.
    Leader(LeaderHint),
    /// The node leads or may lead but cannot answer now.
    Busy(Error),
    /// Another node may do better.
    Failed(Error),
}

impl MetaClient {
    /// Finds the cluster behind these addresses (`host:port`, at least one). Without `cluster` it is whichever the first
    /// node to answer belongs to.
    ///
    /// # Errors
    /// Within about five seconds: `InvalidInput` for what is no address; otherwise what happened at each address, as
    /// `Unavailable` unless all say the same.
    pub async fn connect(addrs: Vec<String>, cluster: Option<ClusterId>) -> Result<MetaClient> {
        if addrs.is_empty() {
            return Err(Error::new(Kind::InvalidInput, "no address of a metadata node is given"));
        }
        addrs.iter().try_for_each(|addr| socket::check_addr(addr))?;
        let (known, watch) = watch::channel(cluster);
        let node = |addr| Arc::new(Connection::new(addr, Service::Meta, watch.clone()));
        let all: Vec<Arc<Node>> = addrs.into_iter().map(node).collect();
        let (next, cluster) = find_cluster(&all).await?;
        known.send_replace(Some(cluster));
        Ok(MetaClient { cluster, watch, nodes: Mutex::new(Nodes { all, next }) })
    }

    /// The cluster it is connected to.
    #[must_use]
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    async fn ask<T: Send>(&self, ask: Ask<'_, T>) -> Result<T> {
        let start = Instant::now();
        // Each node has its turn, also when those before it keep naming a leader that does not answer.
        let mut turn = self.target();
        let mut target = Arc::clone(&turn);
        let mut redirects = 0;
        let failures = Failures::default();
        loop {
            let failure = match self.attempt_watched(&target, &ask, &failures).await {
                Outcome::Answer(answer) => {
                    self.prefer(&target);
                    return answer;
                }
                Outcome::Leader(hint) => {
                    let said = format!("{} says that {} leads", target.addr(), hint.addr);
                    failures.note(&target, Error::new(Kind::Unavailable, said));
                    target = self.node_at(hint.addr);
                    redirects += 1;
                    if redirects <= REDIRECTS_MAX && !target.is_paused() {
                        continue;
                    }
                    Error::new(Kind::Unavailable, format!("{}, said to lead, does not answer as leader", target.addr()))
                }
                Outcome::Busy(error) if start.elapsed() >= ask.patience => return Err(error),
                Outcome::Busy(error) => {
                    failures.note(&target, error.clone());
                    error
                }
                Outcome::Failed(error) => {
                    failures.note(&target, error.clone());
                    turn = self.after(&turn);
                    target = Arc::clone(&turn);
                    error
                }
            };
            let pause = Duration::from_millis(rand::random_range(PAUSE_MS));
            if start.elapsed() + pause >= META_DEADLINE {
                return Err(failures.no_answer(failure.kind()));
            }
            sleep(pause).await;
            if redirects > REDIRECTS_MAX {
                redirects = 0;
                turn = self.after(&turn);
                target = Arc::clone(&turn);
            }
        }
    }

    /// One attempt at a node; when it is silent, the others are asked too.
    async fn attempt_watched<T>(&self, target: &Node, ask: &Ask<'_, T>, failures: &Failures) -> Outcome<T> {
        let mut attempt = pin!(attempt(target, ask, META_ATTEMPT_DEADLINE));
        tokio::select! {
            biased;
            outcome = &mut attempt => return outcome,
            () = sleep(PATIENCE) => {}
        }
        tokio::select! {
            outcome = &mut attempt => outcome,
            outcome = self.ask_others(target, ask, failures) => outcome,
        }
    }

    /// Ends only when another node answers or names another leader.
    async fn ask_others<T>(&self, silent: &Node, ask: &Ask<'_, T>, failures: &Failures) -> Outcome<T> {
        loop {
            let others = self.nodes().all.clone();
            for other in others.iter().filter(|other| other.addr() != silent.addr()) {
                match attempt(other, ask, PROBE_DEADLINE).await {
                    Outcome::Answer(answer) => {
                        self.prefer(other);
                        return Outcome::Answer(answer);
                    }
                    Outcome::Leader(hint) if hint.addr != silent.addr() => return Outcome::Leader(hint),
                    Outcome::Busy(error) | Outcome::Failed(error) => failures.note(other, error),
                    Outcome::Leader(_) => {}
                }
            }
            sleep(Duration::from_millis(*PAUSE_MS.end())).await;
        }
    }

    fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn target(&self) -> Arc<Node> {
        let nodes = self.nodes();
        Arc::clone(&nodes.all[nodes.next])
    }

    fn prefer(&self, node: &Node) {
        let mut nodes = self.nodes();
        if let Some(at) = nodes.all.iter().position(|other| other.addr() == node.addr()) {
            nodes.next = at;
        }
    }

    fn after(&self, node: &Node) -> Arc<Node> {
        let mut nodes = self.nodes();
        let at = nodes.all.iter().position(|other| other.addr() == node.addr()).unwrap_or(0);
        nodes.next = (at + 1) % nodes.all.len();
        Arc::clone(&nodes.all[nodes.next])
    }

    fn node_at(&self, addr: String) -> Arc<Node> {
        let mut nodes = self.nodes();
        if let Some(known) = nodes.all.iter().find(|node| node.addr() == addr) {
            return Arc::clone(known);
        }
        let node = Arc::new(Connection::new(addr, Service::Meta, self.watch.clone()));
        if nodes.all.len() < NODES_MAX {
            nodes.all.push(Arc::clone(&node));
        }
        node
    }
}

async fn attempt<T>(node: &Node, ask: &Ask<'_, T>, deadline: Duration) -> Outcome<T> {
    let response = match node.call(|| (ask.make)(), deadline).await {
        Ok(response) => response,
        Err(error) if matches!(error.kind(), Kind::TooLarge | Kind::InvalidInput) => {
            return Outcome::Answer(Err(error));
        }
        Err(error) => return Outcome::Failed(error),
    };
    match (ask.take)(response) {
        Some(Ok(answer)) => Outcome::Answer(Ok(answer)),
        Some(Err(MetaFault::NotLeader(Some(hint)))) => Outcome::Leader(hint),
        Some(Err(MetaFault::NotLeader(None))) => {
            Outcome::Failed(Error::new(Kind::Unavailable, format!("{} knows of no leader", node.addr())))
        }
        Some(Err(MetaFault::Failed(error))) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout) => {
            Outcome::Busy(error)
        }
        Some(Err(MetaFault::Failed(error))) => Outcome::Answer(Err(error)),
        None => Outcome::Failed(mismatch(node.addr())),
    }
}

/// The first node that knows its cluster, and that cluster.
async fn find_cluster(nodes: &[Arc<Node>]) -> Result<(usize, ClusterId)> {
    let start = Instant::now();
    loop {
        let dial = |(at, node): (usize, &Arc<Node>)| {
            let node = Arc::clone(node);
            async move { (at, node.connect().await) }
        };
        let mut dialled: FuturesUnordered<_> = nodes.iter().enumerate().map(dial).collect();
        let mut failures = Vec::new();
        let mut is_founding = false;
        while let Some((at, result)) = dialled.next().await {
            match result {
                Ok(Some(cluster)) => return Ok((at, cluster)),
                Ok(None) => is_founding = true,
                Err(error) => failures.push((at, error)),
            }
        }
        let is_final = failures.len() == nodes.len()
            && failures.iter().all(|(_, error)| !matches!(error.kind(), Kind::Unavailable | Kind::Timeout));
        let wait = if is_founding { META_DEADLINE } else { FIRST_CONNECT };
        if is_final || start.elapsed() >= wait {
            failures.sort_by_key(|(at, _)| *at);
            return Err(unreachable(failures.into_iter().map(|(_, error)| error).collect()));
        }
        sleep(Duration::from_millis(*PAUSE_MS.end())).await;
    }
}

fn unreachable(failures: Vec<Error>) -> Error {
    let Some(first) = failures.first().map(Error::kind) else {
        let message = "the cluster has not been founded yet: a majority of its metadata nodes must be running";
        return Error::new(Kind::Unavailable, message);
    };
    let kind = if failures.iter().all(|error| error.kind() == first) { first } else { Kind::Unavailable };
    let each: Vec<String> = failures.iter().map(Error::to_string).collect();
    Error::new(kind, format!("cannot reach the cluster: {}", each.join(", ")))
}

macro_rules! taking {
    ($variant:ident) => {
        |response| match response {
            MetaRpcResponse::$variant(result) => Some(result),
            _ => None,
        }
    };
}

#[async_trait]
impl MetaStore for MetaClient {
    async fn apply(&self, command: Command) -> Result<MetaReply> {
        let make = || MetaRpcRequest::Apply { command: command.clone() };
        self.ask(Ask { make: &make, take: taking!(Apply), patience: META_DEADLINE }).await
    }

    async fn query(&self, query: MetaQuery) -> Result<MetaAnswer> {
        let make = || MetaRpcRequest::Query { query: query.clone() };
        self.ask(Ask { make: &make, take: taking!(Query), patience: META_DEADLINE }).await
    }

    async fn allocate(&self, request: Allocate) -> Result<Vec<Allocation>> {
        let make = || MetaRpcRequest::Allocate { request: request.clone() };
        self.ask(Ask { make: &make, take: taking!(Allocate), patience: ALLOCATE_PATIENCE }).await
    }

    async fn heartbeat(&self, beat: Heartbeat) -> Result<HeartbeatReply> {
        let make = || MetaRpcRequest::Heartbeat { beat: beat.clone() };
        self.ask(Ask { make: &make, take: taking!(Heartbeat), patience: META_DEADLINE }).await
    }

    async fn watch(&self, watch: Watch) -> Result<Changes> {
        let make = || MetaRpcRequest::Watch { watch };
        self.ask(Ask { make: &make, take: taking!(Watch), patience: META_DEADLINE }).await
    }
}

/// Answers with a metadata node in this process.
#[derive(Clone, Debug)]
pub(super) struct MetaHandler(pub(super) Arc<dyn MetaService>);

#[async_trait]
impl Handler for MetaHandler {
    type Request = MetaRpcRequest;
    type Response = MetaRpcResponse;

    fn is_change(request: &MetaRpcRequest) -> bool {
        !matches!(request, MetaRpcRequest::Query { .. } | MetaRpcRequest::Watch { .. })
    }

    async fn handle(self, request: MetaRpcRequest) -> MetaRpcResponse {
        let meta = self.0;
        match request {
            MetaRpcRequest::Apply { command } => MetaRpcResponse::Apply(meta.apply(command).await),
            MetaRpcRequest::Query { query } => MetaRpcResponse::Query(meta.query(query).await),
            MetaRpcRequest::Allocate { request } => MetaRpcResponse::Allocate(meta.allocate(request).await),
            MetaRpcRequest::Heartbeat { beat } => MetaRpcResponse::Heartbeat(meta.heartbeat(beat).await),
            MetaRpcRequest::Watch { watch } => MetaRpcResponse::Watch(meta.watch(watch).await),
        }
    }
}
