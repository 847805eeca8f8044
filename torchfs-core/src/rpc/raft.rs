//! Raft between metadata nodes: opaque bytes there and back. What they mean is known only to the Raft crate's caller.

use super::connection::Connection;
use super::server::Handler;
use super::{Payload, RaftRpcRequest, RaftRpcResponse, Service};
use crate::error::Result;
use crate::ids::ClusterId;
use async_trait::async_trait;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// What a metadata node does with another one's messages.
#[async_trait]
pub trait RaftService: Debug + Send + Sync + 'static {
    /// Answers one message. It is not given up halfway because the sender stopped waiting.
    async fn call(&self, request: Payload) -> Result<Payload>;
}

/// Another metadata node, dialled when needed and again after it was lost.
#[derive(Debug)]
pub struct RaftClient {
    connection: Connection<RaftRpcRequest, RaftRpcResponse>,
}

impl RaftClient {
    /// For `host:port`. Once the watched cluster is known, a node of another one is refused.
    #[must_use]
    pub fn new(addr: impl Into<String>, cluster: watch::Receiver<Option<ClusterId>>) -> Self {
        RaftClient { connection: Connection::new(addr.into(), Service::Raft, cluster) }
    }

    /// Sends one message and waits for the answer. The message may arrive twice if a connection is lost meanwhile, as
    /// Raft's messages may.
    ///
    /// # Errors
    /// `Timeout` at the deadline; `Unavailable`, at once, if the node cannot be reached or failed a moment ago; what the
    /// node answered.
    pub async fn call(&self, request: Payload, deadline: Duration) -> Result<Payload> {
        match self.connection.call(|| RaftRpcRequest::Exchange { request: request.clone() }, deadline).await? {
            RaftRpcResponse::Exchange(answer) => answer,
        }
    }
}

/// Answers with a Raft node in this process.
#[derive(Clone, Debug)]
pub(super) struct RaftHandler(pub(super) Arc<dyn RaftService>);

#[async_trait]
impl Handler for RaftHandler {
    type Request = RaftRpcRequest;
    type Response = RaftRpcResponse;

    fn is_change(_: &RaftRpcRequest) -> bool {
        true
    }

    async fn handle(self, request: RaftRpcRequest) -> RaftRpcResponse {
        match request {
            RaftRpcRequest::Exchange { request } => RaftRpcResponse::Exchange(self.0.call(request).await),
        }
    }
}
