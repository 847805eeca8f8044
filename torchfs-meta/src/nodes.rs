//! What a leader knows of the storage nodes beyond the state: who reported when and with what load, what was handed out
//! since, and whom to place a new stripe on. All of it is volatile; a new leader begins with nothing.

use crate::stripes::Stripes;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use torchfs_core::layout::Profile;
use torchfs_core::meta::{Allocate, Allocation, NodeLoad, NodeRecord, NodeState};
use torchfs_core::placement::{Candidate, PlacementPolicy, Placing};
use torchfs_core::settings::SHARD_BYTES_MAX;
use torchfs_core::shard::{no_space, node_is_full};
use torchfs_core::{Error, Kind, NodeId, Result, StripeId};

/// Most stripes in one request.
const ALLOCATE_MAX: u32 = 4096;

/// The knowledge of one leadership.
#[derive(Debug)]
pub struct Book {
    term: u64,
    since: Instant,
    heard: BTreeMap<NodeId, Heard>,
    /// When each node last registered or reported, at the address that the map has.
    seen: BTreeMap<NodeId, Instant>,
    /// Stripe ids to hand out.
    pub stripes: Stripes,
}

#[derive(Debug)]
struct Heard {
    load: NodeLoad,
    /// Bytes handed out since the last report, and between the last two: writers may still be at those.
    given: u64,
    given_before: u64,
}

/// Whether a node is where the map says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It showed itself there this long ago.
    Seen(Duration),
    /// This leader is too new to have noticed its absence, and will know this much later.
    NotKnown(Duration),
    /// It has been silent for so long that it counts as gone.
    Gone,
}

impl Book {
    /// An empty book for a leadership that begins at `since`.
    #[must_use]
    pub fn new(term: u64, since: Instant) -> Self {
        Book { term, since, heard: BTreeMap::new(), seen: BTreeMap::new(), stripes: Stripes::default() }
    }

    /// The book of this term: a new one if it is of another.
    pub fn of_term(&mut self, term: u64) -> &mut Self {
        if self.term != term {
            *self = Book::new(term, Instant::now());
        }
        self
    }

    /// A node reported.
    pub fn report(&mut self, node: NodeId, load: NodeLoad, now: Instant) {
        let given_before = self.heard.get(&node).map_or(0, |heard| heard.given);
        self.heard.insert(node, Heard { load, given: 0, given_before });
        self.registered(node, now);
    }

    /// A node registered.
    pub fn registered(&mut self, node: NodeId, now: Instant) {
        self.seen.insert(node, now);
    }

    /// Whether the node still runs at the address in its record; `after` so much silence it does not.
    #[must_use]
    pub fn presence(&self, node: &NodeRecord, after: Duration, now: Instant) -> Presence {
        let silent_for = |since: Instant| now.saturating_duration_since(since);
        match self.seen.get(&node.id).map(|&at| silent_for(at)) {
            Some(silence) if silence < after => Presence::Seen(silence),
            Some(_) => Presence::Gone,
            // An earlier leader noticed.
            None if node.state == NodeState::Down => Presence::Gone,
            None => match after.saturating_sub(silent_for(self.since)) {
                Duration::ZERO => Presence::Gone,
                left => Presence::NotKnown(left),
            },
        }
    }

    /// What the node reported last.
    #[must_use]
    pub fn load(&self, node: NodeId) -> Option<NodeLoad> {
        self.heard.get(&node).map(|heard| heard.load)
    }

    /// What each node reported last.
    #[must_use]
    pub fn loads(&self) -> BTreeMap<NodeId, NodeLoad> {
        self.heard.iter().map(|(&node, heard)| (node, heard.load)).collect()
    }

    /// Nodes that are taken to be up and have been silent for too long, counted at the earliest from the beginning of this
    /// leadership.
    #[must_use]
    pub fn silent(&self, nodes: &[NodeRecord], after: Duration, now: Instant) -> Vec<NodeId> {
        let last = |node: &NodeRecord| self.seen.get(&node.id).copied().unwrap_or(self.since);
        let up = nodes.iter().filter(|node| node.state == NodeState::Up);
        up.filter(|node| now.duration_since(last(node)) >= after).map(|node| node.id).collect()
    }

    /// Chooses nodes for new stripes with these ids, and books the space.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if no node is up, [`Kind::NoSpace`] if none that is up has room.
    pub fn place(
        &mut self,
        policy: &dyn PlacementPolicy,
        nodes: &[NodeRecord],
        request: &Allocate,
        ids: Vec<StripeId>,
    ) -> Result<Vec<Allocation>> {
        let mut candidates = self.candidates(nodes, request);
        if candidates.is_empty() {
            return Err(none_up(nodes, request));
        }
        let shards = request.profile.shards();
        let mut allocations = Vec::with_capacity(ids.len());
        for stripe in ids {
            let placing = Placing { shards, shard_bytes: request.shard_bytes.into(), key: stripe.0 };
            let chosen = policy.place(&candidates, &placing);
            if chosen.is_empty() {
                return Err(none_has_room(&candidates, request));
            }
            for node in chosen.iter().take(shards) {
                self.give(*node, request.shard_bytes.into());
                for candidate in candidates.iter_mut().filter(|candidate| candidate.node == *node) {
                    candidate.used_bytes += u64::from(request.shard_bytes);
                }
            }
            allocations.push(Allocation { stripe, nodes: chosen });
        }
        Ok(allocations)
    }

    /// The nodes that may be written to. Those that have not reported to this leader yet are among them only if the others
    /// are too few: what is known of them is old.
    fn candidates(&self, nodes: &[NodeRecord], request: &Allocate) -> Vec<Candidate> {
        let usable = |node: &&NodeRecord| node.state == NodeState::Up && !request.avoid.contains(&node.id);
        let candidates = nodes.iter().filter(usable).map(|node| self.candidate(node));
        let (heard, unheard): (Vec<_>, Vec<_>) = candidates.partition(|(_, heard)| *heard);
        let few = heard.len() < request.profile.shards();
        heard.into_iter().chain(unheard.into_iter().filter(|_| few)).map(|(candidate, _)| candidate).collect()
    }

    fn candidate(&self, node: &NodeRecord) -> (Candidate, bool) {
        let heard = self.heard.get(&node.id);
        let load = heard.map(|heard| heard.load).unwrap_or_default();
        let candidate = Candidate {
            node: node.id,
            domain: node.domain.clone(),
            capacity_bytes: heard.map_or(node.capacity_bytes, |heard| heard.load.capacity_bytes),
            used_bytes: load.used_bytes + heard.map_or(0, |heard| heard.given + heard.given_before),
            requests: load.requests,
        };
        (candidate, heard.is_some())
    }

    fn give(&mut self, node: NodeId, bytes: u64) {
        if let Some(heard) = self.heard.get_mut(&node) {
            heard.given += bytes;
        }
    }
}

/// Whether a request can be met at all.
///
/// # Errors
/// [`Kind::InvalidInput`].
pub fn check(request: &Allocate) -> Result<()> {
    let Profile { .. } = request.profile.checked()?;
    if request.shard_bytes as usize > SHARD_BYTES_MAX || request.stripes > ALLOCATE_MAX {
        let message = format!(
            "{} stripes with shards of {} bytes were asked for; at most {ALLOCATE_MAX} and {SHARD_BYTES_MAX} are possible",
            request.stripes, request.shard_bytes
        );
        return Err(Error::new(Kind::InvalidInput, message));
    }
    Ok(())
}

fn none_up(nodes: &[NodeRecord], request: &Allocate) -> Error {
    let up = nodes.iter().filter(|node| node.state == NodeState::Up).count();
    let message = format!(
        "no storage node can be written to: {} are registered, {up} are up, {} of them just failed the writer; \
         see 'torchfs status'",
        nodes.len(),
        request.avoid.len()
    );
    Error::new(Kind::Unavailable, message)
}

fn none_has_room(candidates: &[Candidate], request: &Allocate) -> Error {
    let full = |node: &Candidate| (node.node, node_is_full(node.used_bytes, node.capacity_bytes));
    no_space(candidates.iter().map(full)).context(format!("place a shard of {} bytes", request.shard_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use torchfs_core::NodeUuid;
    use torchfs_core::placement::LeastLoaded;

    fn nodes(states: &[NodeState]) -> Vec<NodeRecord> {
        let record = |(at, &state): (usize, &NodeState)| NodeRecord {
            id: NodeId(at as u32 + 1),
            uuid: NodeUuid(at as u128),
            addr: format!("h{at}:1"),
            domain: format!("host=h{at}").parse().expect("domain"),
            capacity_bytes: 1 << 20,
            state,
        };
        states.iter().enumerate().map(record).collect()
    }

    fn request(shard_bytes: u32) -> Allocate {
        Allocate { profile: Profile::new(2, 1).expect("profile"), stripes: 1, shard_bytes, avoid: Vec::new() }
    }

    fn place(book: &mut Book, nodes: &[NodeRecord], request: &Allocate) -> Result<Vec<NodeId>> {
        let mut placed = book.place(&LeastLoaded, nodes, request, vec![StripeId(7)])?;
        Ok(placed.remove(0).nodes)
    }

    #[test]
    fn only_nodes_that_are_up_and_did_not_fail_the_writer_are_chosen() {
        let nodes = nodes(&[NodeState::Up, NodeState::Down, NodeState::Draining, NodeState::Up, NodeState::Up]);
        let mut book = Book::new(1, Instant::now());
        let mut request = request(1000);
        request.avoid = vec![NodeId(4)];
        let mut chosen = place(&mut book, &nodes, &request).expect("places");
        chosen.sort_unstable();
        assert_eq!(chosen, [NodeId(1), NodeId(5)]);
        request.avoid = vec![NodeId(1), NodeId(4), NodeId(5)];
        assert_eq!(place(&mut book, &nodes, &request).expect_err("none").kind(), Kind::Unavailable);
    }

    #[test]
    fn space_that_was_handed_out_counts_until_it_is_reported() {
        let nodes = nodes(&[NodeState::Up; 3]);
        let mut book = Book::new(1, Instant::now());
        let load = NodeLoad { capacity_bytes: 1 << 20, ..NodeLoad::default() };
        let report = |book: &mut Book| (1..=3).for_each(|id| book.report(NodeId(id), load, Instant::now()));
        report(&mut book);
        let request = request(400 << 10);
        assert_eq!(place(&mut book, &nodes, &request).expect("first").len(), 3);
        assert_eq!(place(&mut book, &nodes, &request).expect("second").len(), 3);
        assert_eq!(place(&mut book, &nodes, &request).expect_err("full").kind(), Kind::NoSpace);
        report(&mut book);
        assert_eq!(place(&mut book, &nodes, &request).expect_err("still being written").kind(), Kind::NoSpace);
        report(&mut book);
        assert_eq!(place(&mut book, &nodes, &request).expect("never written").len(), 3);
    }

    #[test]
    fn a_node_is_present_until_it_was_silent_for_as_long_as_its_leader_leads() {
        let nodes = nodes(&[NodeState::Up, NodeState::Down, NodeState::Draining]);
        let (begin, after) = (Instant::now(), Duration::from_secs(3));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut book = Book::new(1, begin);
        assert_eq!(book.presence(&nodes[0], after, at(1)), Presence::NotKnown(Duration::from_secs(2)));
        assert_eq!(book.presence(&nodes[2], after, at(1)), Presence::NotKnown(Duration::from_secs(2)));
        assert_eq!(book.presence(&nodes[1], after, at(1)), Presence::Gone, "an earlier leader called it down");
        assert_eq!(book.presence(&nodes[0], after, at(3)), Presence::Gone);
        book.report(NodeId(1), NodeLoad::default(), at(3));
        book.registered(NodeId(2), at(4));
        assert_eq!(book.presence(&nodes[0], after, at(5)), Presence::Seen(Duration::from_secs(2)));
        assert_eq!(book.presence(&nodes[1], after, at(5)), Presence::Seen(Duration::from_secs(1)));
        assert_eq!(book.presence(&nodes[0], after, at(6)), Presence::Gone);
    }

    #[test]
    fn silence_counts_from_the_beginning_of_the_leadership() {
        let nodes = nodes(&[NodeState::Up, NodeState::Up, NodeState::Draining]);
        let (begin, after) = (Instant::now(), Duration::from_secs(3));
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut book = Book::new(1, begin);
        book.report(NodeId(1), NodeLoad::default(), at(2));
        assert!(book.silent(&nodes, after, at(2)).is_empty());
        assert_eq!(book.silent(&nodes, after, at(3)), [NodeId(2)]);
        assert_eq!(book.silent(&nodes, after, at(5)), [NodeId(1), NodeId(2)]);
        assert!(book.of_term(2).silent(&nodes, after, at(1)).is_empty());
    }
}
