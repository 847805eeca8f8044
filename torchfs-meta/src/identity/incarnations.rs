//! [`Incarnations`]: how a metadata node is told from its own past.
//!
//! - An **incarnation** is one life of a data folder. A folder that was emptied, copied or restored has another one.
//! - A **start** is one process that works in it. The folder keeps its last ones, the peers remember the latest they heard of.
//!
//! A peer goes along from the start that it knows to one that has that one behind it, or that does not vote yet, and never
//! back: so of two processes that claim to be one node it listens to one, and the other's folder is out of date from then on.

use super::file::{Acquaintance, Identity};
use super::list;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use torchfs_core::{Error, Kind, MetaId, Result};

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Introduction {
    /// Its number.
    pub from: MetaId,
    /// The life of its folder.
    pub incarnation: u128,
    /// This process.
    pub start: u128,
    /// Earlier ones in the same folder.
    pub before: Vec<u128>,
    /// Whether it may vote.
    pub admitted: bool,
    /// Whether this process has not been heard by the one who is told.
    pub is_first: bool,
}

/// How what a peer says of itself compares to what was heard of it before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Met {
    /// Nothing was heard of the peer before.
    First,
    /// Its incarnation is the one that was here before.
    Same,
    /// Another incarnation was here before: the peer has lost what it knew.
    Another,
    /// A start is known that the peer's folder does not know of: it is a copy, or was restored from a backup.
    Outdated,
}

/// What a node knows about its own past and its peers', kept in its folder.
#[derive(Debug)]
pub struct Incarnations {
    folder: PathBuf,
    /// Held while the file is written, so that nobody who reads waits for the disk; whether that is over.
    writing: Mutex<bool>,
    identity: Mutex<Identity>,
    volatile: Mutex<Volatile>,
}

#[derive(Debug, Default)]
struct Volatile {
    /// The peers that know this start.
    told: BTreeSet<MetaId>,
    /// The peers that said that they may not vote yet, and when.
    joining: BTreeMap<MetaId, Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Incarnations {
    pub(super) fn new(folder: PathBuf, identity: Identity) -> Self {
        Incarnations { folder, writing: Mutex::default(), identity: Mutex::new(identity), volatile: Mutex::default() }
    }

    /// What it changes is on disk when this returns.
    fn change<T>(&self, change: impl FnOnce(&mut Identity) -> Result<T>) -> Result<T> {
        let is_over = lock(&self.writing);
        if *is_over {
            return Err(Error::new(Kind::Cancelled, "this metadata node is out of date and ends"));
        }
        let mut identity = lock(&self.identity).clone();
        let before = identity.clone();
        let result = change(&mut identity)?;
        if identity != before {
            identity.write(&self.folder)?;
            *lock(&self.identity) = identity;
        }
        Ok(result)
    }

    /// What this node says of itself to a peer.
    #[must_use]
    pub fn introduction(&self, to: MetaId) -> Introduction {
        let is_first = !lock(&self.volatile).told.contains(&to);
        let identity = lock(&self.identity);
        let (start, before) = match identity.starts.split_last() {
            Some((start, before)) => (*start, before.to_vec()),
            None => (0, Vec::new()),
        };
        let (from, incarnation, admitted) = (identity.id, identity.incarnation, identity.admitted);
        Introduction { from, incarnation, start, before, admitted, is_first }
    }

    /// This process.
    #[must_use]
    pub fn start(&self) -> u128 {
        lock(&self.identity).starts.last().copied().unwrap_or_default()
    }

    /// The only start of a peer that is listened to.
    #[must_use]
    pub fn start_of(&self, peer: MetaId) -> Option<u128> {
        lock(&self.identity).met.get(&peer)?.start
    }

    /// Whether this node may vote.
    #[must_use]
    pub fn is_admitted(&self) -> bool {
        lock(&self.identity).admitted
    }

    /// How long ago a peer said that it may not vote yet, if that was its last word.
    #[must_use]
    pub fn joining(&self, peer: MetaId) -> Option<Duration> {
        lock(&self.volatile).joining.get(&peer).map(Instant::elapsed)
    }

    /// From now on this node may vote.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn admit(&self) -> Result<()> {
        self.change(|identity| {
            identity.admitted = true;
            Ok(())
        })
    }

    /// This node's folder is out of date: at its next start it is another incarnation, and does not vote before it has
    /// caught up. Nothing is remembered from here on.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn renew(&self) -> Result<()> {
        let mut is_over = lock(&self.writing);
        *is_over = true;
        let mut identity = lock(&self.identity).clone();
        identity.renew();
        identity.write(&self.folder)
    }

    /// A peer knows this start. When all do, the earlier ones need not be remembered.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn told(&self, peer: MetaId) -> Result<()> {
        let told = {
            let mut volatile = lock(&self.volatile);
            volatile.told.insert(peer);
            volatile.told.len()
        };
        self.change(|identity| {
            if told + 1 >= identity.members.len() {
                let old = identity.starts.len().saturating_sub(2);
                identity.starts.drain(..old);
            }
            Ok(())
        })
    }

    /// Compares what a peer says of itself with what is remembered, and remembers it.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for a node that is none of the peers; what the operating system says.
    pub fn meet(&self, peer: &Introduction) -> Result<Met> {
        let met = self.change(|identity| {
            let met = compare(identity, peer)?;
            if met != Met::Outdated {
                let incarnation = identity.met.get(&peer.from).map_or(peer.incarnation, |known| known.incarnation);
                identity.met.insert(peer.from, Acquaintance { incarnation, start: Some(peer.start) });
            }
            Ok(met)
        })?;
        if met != Met::Outdated {
            let joining = &mut lock(&self.volatile).joining;
            if peer.admitted {
                joining.remove(&peer.from);
            } else {
                joining.insert(peer.from, Instant::now());
            }
        }
        Ok(met)
    }

    /// What [`Incarnations::meet`] would say, and whether a process of this node is known that is not the one which speaks.
    ///
    /// # Errors
    /// As [`Incarnations::meet`].
    pub fn look_at(&self, peer: &Introduction) -> Result<(Met, bool)> {
        let identity = lock(&self.identity);
        let known = identity.met.get(&peer.from).and_then(|known| known.start);
        Ok((compare(&identity, peer)?, known.is_some_and(|known| known != peer.start)))
    }
}

fn compare(identity: &Identity, peer: &Introduction) -> Result<Met> {
    if peer.from == identity.id || !identity.members.contains(&peer.from) {
        let message = format!(
            "metadata node {} knows the nodes {}, and node {} is none of its peers: \
             give every node the same --peers, each with its own --id",
            identity.id,
            list(&identity.members),
            peer.from
        );
        return Err(Error::new(Kind::InvalidInput, message));
    }
    let Some(known) = identity.met.get(&peer.from) else { return Ok(Met::First) };
    let follows = known.start.is_none_or(|start| start == peer.start || peer.before.contains(&start));
    Ok(match () {
        () if follows && known.incarnation == peer.incarnation => Met::Same,
        // Whoever does not vote yet may have forgotten anything, and may come instead of whoever was here before.
        () if follows || (!peer.admitted && peer.is_first) => Met::Another,
        () => Met::Outdated,
    })
}

#[cfg(test)]
mod tests {
    use super::super::claim;
    use super::*;
    use std::path::Path;

    fn open(folder: &Path, id: u64) -> Incarnations {
        claim(folder, MetaId(id), &[1, 2, 3].map(MetaId).into()).expect("opens").1
    }

    fn peer(incarnation: u128, starts: &[u128]) -> Introduction {
        let (start, before) = starts.split_last().expect("a start");
        let (from, before) = (MetaId(1), before.to_vec());
        Introduction { from, incarnation, start: *start, before, admitted: true, is_first: true }
    }

    fn joining(incarnation: u128, starts: &[u128]) -> Introduction {
        Introduction { admitted: false, ..peer(incarnation, starts) }
    }

    #[test]
    fn a_peer_is_followed_from_start_to_start_and_never_back() {
        let folder = tempfile::tempdir().expect("folder");
        let node = open(folder.path(), 2);
        let meet = |node: &Incarnations, peer: &Introduction| node.meet(peer).expect("writes");
        assert_eq!(meet(&node, &joining(7, &[10])), Met::First);
        assert_eq!(meet(&node, &peer(7, &[10])), Met::Same);
        assert_eq!(meet(&node, &peer(7, &[10, 11, 12])), Met::Same, "one start was not heard of");
        drop(node);
        let node = open(folder.path(), 2);
        assert_eq!(node.start_of(MetaId(1)), Some(12), "it is remembered");
        for (starts, why) in [(&[10, 21][..], "a backup"), (&[10], "the original"), (&[10, 11], "an earlier process")] {
            assert_eq!(meet(&node, &peer(7, starts)), Met::Outdated, "{why}");
        }
        assert_eq!(node.start_of(MetaId(1)), Some(12));
        assert_eq!(meet(&node, &peer(7, &[11, 12, 31])), Met::Same);
        assert_eq!(meet(&node, &peer(7, &[11, 12, 32])), Met::Outdated, "the other one was faster");
    }

    #[test]
    fn one_that_does_not_vote_takes_over_once_and_has_forgotten_something() {
        let folder = tempfile::tempdir().expect("folder");
        let node = open(folder.path(), 2);
        let meet = |peer: &Introduction| node.meet(peer).expect("writes");
        assert_eq!(meet(&peer(7, &[10])), Met::First);
        assert_eq!(node.look_at(&joining(8, &[20])).expect("reads"), (Met::Another, true));
        assert_eq!(meet(&joining(8, &[20])), Met::Another);
        assert!(node.joining(MetaId(1)).is_some());
        assert_eq!(meet(&peer(7, &[10])), Met::Outdated, "the one that was here before");
        assert_eq!(meet(&joining(9, &[30])), Met::Another);
        let superseded = Introduction { is_first: false, ..joining(8, &[20]) };
        assert_eq!(meet(&superseded), Met::Outdated);
        assert_eq!(meet(&peer(9, &[30, 31])), Met::Another, "the first incarnation is what counts");
        assert!(node.joining(MetaId(1)).is_none());
        assert_eq!(meet(&joining(7, &[40])), Met::Another, "the first one, from before it voted");
    }

    #[test]
    fn earlier_starts_are_forgotten_when_every_peer_has_heard_of_the_present_one() {
        let folder = tempfile::tempdir().expect("folder");
        (0..3).for_each(|_| drop(open(folder.path(), 2)));
        let node = open(folder.path(), 2);
        assert_eq!(node.introduction(MetaId(1)).before.len(), 3);
        node.told(MetaId(1)).expect("writes");
        assert_eq!(node.introduction(MetaId(1)).before.len(), 3);
        node.told(MetaId(3)).expect("writes");
        assert_eq!(node.introduction(MetaId(1)).before.len(), 1);
    }

    #[test]
    fn a_renewed_folder_does_not_vote_and_knows_to_whom_it_has_spoken() {
        let folder = tempfile::tempdir().expect("folder");
        let node = open(folder.path(), 2);
        node.admit().expect("writes");
        node.told(MetaId(1)).expect("writes");
        assert!(!node.introduction(MetaId(1)).is_first && node.introduction(MetaId(3)).is_first);
        node.renew().expect("writes");
        assert!(node.meet(&peer(7, &[10])).is_err(), "it ends");
        let (before, after) = (node.introduction(MetaId(1)), open(folder.path(), 2).introduction(MetaId(1)));
        assert_ne!(before.incarnation, after.incarnation);
        assert!(before.admitted && !after.admitted && after.is_first);
    }

    #[test]
    fn strangers_are_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let node = open(folder.path(), 2);
        for from in [2, 4].map(MetaId) {
            let stranger = Introduction { from, ..peer(7, &[10]) };
            assert_eq!(node.meet(&stranger).expect_err("no peer").kind(), Kind::InvalidInput);
        }
    }
}
