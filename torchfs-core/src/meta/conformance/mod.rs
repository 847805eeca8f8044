//! What every [`MetaStore`] must do, as a suite to run against any of them.
//!
//! Every check runs on a cluster of its own: newly founded, its root folder empty with profile 4+2, without storage
//! nodes (the checks register some that exist in name only). A check that fails panics. They need a store whose clock does
//! not run backwards, and no more than that of it.

mod content;
mod errors;
mod names;
mod once;
mod stripes;
mod watch;

use super::{
    Allocate, Attr, Command, ContentChange, IfExists, MetaOp, MetaReply, MetaSession, MetaStore, Name, NewInode,
    NewKind,
};
use crate::error::{Kind, Result};
use crate::ids::{InodeId, NodeId, NodeUuid};
use crate::layout::{Extent, Profile, Stripe, StripeShape};
use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;

/// Runs all checks, each on a cluster that `fresh` makes.
///
/// # Panics
/// If the store breaks a rule.
pub async fn run<F, Fut>(fresh: F)
where
    F: Fn() -> Fut,
    Fut: Future<Output = Arc<dyn MetaStore>>,
{
    let case = || async { Case::new(fresh().await) };
    Box::pin(names::entries(case().await)).await;
    Box::pin(names::answers_of_changes(case().await)).await;
    Box::pin(names::folders(case().await)).await;
    Box::pin(names::hard_links_and_orphans(case().await)).await;
    Box::pin(names::rename(case().await)).await;
    Box::pin(names::paths(case().await)).await;
    Box::pin(names::attributes(case().await)).await;
    Box::pin(errors::precedence(case().await)).await;
    Box::pin(errors::from_the_wire(case().await)).await;
    Box::pin(once::retries(case().await)).await;
    Box::pin(once::batches(case().await)).await;
    Box::pin(content::changes(case().await)).await;
    Box::pin(content::replace(case().await)).await;
    Box::pin(content::refusals(case().await)).await;
    Box::pin(stripes::accounting(case().await)).await;
    Box::pin(stripes::nodes(case().await)).await;
    Box::pin(watch::changes(case().await)).await;
    Box::pin(watch::leases(case().await)).await;
}

/// A cluster under check.
struct Case {
    meta: MetaSession,
}

const ROOT: InodeId = InodeId::ROOT;

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn inode(kind: NewKind) -> NewInode {
    let mode = if kind == NewKind::Directory { 0o755 } else { 0o644 };
    NewInode { kind, mode, uid: 1000, gid: 100, mtime: None }
}

/// Asserts that a result is this kind of failure.
fn refused<T: Debug>(result: Result<T>, kind: Kind) {
    let found = result.as_ref().err().map(crate::Error::kind);
    assert_eq!(found, Some(kind), "{result:?}");
}

impl Case {
    fn new(store: Arc<dyn MetaStore>) -> Self {
        Case { meta: MetaSession::new(store) }
    }

    fn store(&self) -> &Arc<dyn MetaStore> {
        self.meta.store()
    }

    async fn make(&self, parent: InodeId, text: &str, kind: NewKind) -> Attr {
        self.meta.create(parent, name(text), inode(kind), IfExists::Fail).await.expect("creates")
    }

    async fn file(&self, parent: InodeId, text: &str) -> InodeId {
        self.make(parent, text, NewKind::File).await.ino
    }

    async fn folder(&self, parent: InodeId, text: &str) -> InodeId {
        self.make(parent, text, NewKind::Directory).await.ino
    }

    async fn attr(&self, ino: InodeId) -> Attr {
        self.meta.attr(ino).await.expect("is there")
    }

    /// The names in a folder.
    async fn listed(&self, ino: InodeId) -> Vec<String> {
        let listing = self.meta.list(ino, None, 4096).await.expect("lists");
        assert!(!listing.more);
        listing.entries.iter().map(|entry| entry.name.to_string()).collect()
    }

    /// Six storage nodes.
    async fn register(&self) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        for number in 1..=6u32 {
            let reply = self.meta.apply(register(number.into(), &format!("127.0.0.1:{number}"))).await;
            let MetaReply::Registered { node, .. } = reply.expect("registers") else { panic!("not registered") };
            nodes.push(node);
        }
        nodes
    }

    /// A new stripe record as a writer makes it, spread over six nodes.
    async fn stripe(&self, bytes: u64) -> Stripe {
        let nodes = self.register().await;
        let request = Allocate { profile: Profile::DEFAULT, stripes: 1, shard_bytes: 1 << 16, avoid: Vec::new() };
        let allocation = self.meta.allocate(request).await.expect("allocates").remove(0);
        let shape = StripeShape::for_content(Profile::DEFAULT, bytes);
        let place = |index: usize| (shape.shard_len(index) > 0).then(|| nodes[index]);
        Stripe { id: allocation.stripe, shape, nodes: (0..6).map(place).collect() }
    }
}

fn register(uuid: u128, addr: &str) -> MetaOp {
    let (domain, capacity_bytes) = (crate::placement::FailureDomain::default(), 1 << 40);
    MetaOp::Register { uuid: NodeUuid(uuid), addr: addr.to_owned(), domain, capacity_bytes }
}

/// A change that lays the first `len` bytes of a stripe at `offset`.
fn lay(stripe: &Stripe, offset: u64, len: u32) -> ContentChange {
    ContentChange {
        extents: vec![Extent { offset, len, stripe: stripe.id, stripe_offset: 0 }],
        stripes: vec![stripe.clone()],
        ..ContentChange::nothing()
    }
}

fn command(client: u64, sequence: u64, answered_below: u64, op: MetaOp) -> Command {
    let request = crate::RequestId { client: crate::ClientId(client), sequence };
    Command { request, answered_below, op }
}
