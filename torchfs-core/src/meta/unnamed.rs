//! [`Unnamed`]: the stripes that a client has written and no file names yet, so that it can give them back when it ends.
//!
//! The rule: a stripe is given back only if it is certain that no file names it and none will. One that a request named
//! which was answered with success, or not answered at all, is none of ours any more.

use super::{MetaOp, MetaReply};
use crate::error::{Error, Kind, Result};
use crate::ids::StripeId;
use crate::layout::Stripe;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most stripes remembered; of more, the oldest are left to the metadata cluster, which gives them up after a day.
const STRIPES_MAX: usize = 16 * 1024;

/// What a client has written and not named.
#[derive(Debug, Default)]
pub(crate) struct Unnamed {
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    stripes: BTreeMap<StripeId, Written>,
    given_back: BTreeSet<StripeId>,
}

#[derive(Debug)]
struct Written {
    stripe: Stripe,
    /// Requests under way that name it.
    requests: u32,
}

/// A request that names stripes, until it is answered.
pub(super) struct Naming {
    unnamed: Arc<Unnamed>,
    /// Per operation of the request.
    ops: Vec<Vec<StripeId>>,
}

impl Unnamed {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stripe was written.
    pub fn add(&self, stripe: &Stripe) {
        let mut known = self.known();
        known.stripes.insert(stripe.id, Written { stripe: stripe.clone(), requests: 0 });
        if known.stripes.len() > STRIPES_MAX {
            known.stripes.pop_first();
        }
    }

    /// Somebody else sees to these stripes.
    pub fn forget(&self, stripes: &[Stripe]) {
        let mut known = self.known();
        stripes.iter().for_each(|stripe| drop(known.stripes.remove(&stripe.id)));
    }

    /// The stripes that no file names and that no request names from now on: it would be refused.
    pub fn give_back(&self) -> Vec<Stripe> {
        let mut known = self.known();
        let (free, busy) = std::mem::take(&mut known.stripes).into_iter().partition(|(_, found)| found.requests == 0);
        known.stripes = busy;
        let free: BTreeMap<StripeId, Written> = free;
        known.given_back.extend(free.keys());
        while known.given_back.len() > STRIPES_MAX {
            known.given_back.pop_first();
        }
        free.into_values().map(|written| written.stripe).collect()
    }

    /// A request with this operation begins.
    ///
    /// # Errors
    /// `Stale` if it names a stripe that was given back: its content has to be written again.
    pub(super) fn naming(self: &Arc<Self>, op: &MetaOp) -> Result<Naming> {
        let ops: Vec<Vec<StripeId>> = match op {
            MetaOp::Batch(ops) => ops.iter().map(stripes_of).collect(),
            op => vec![stripes_of(op)],
        };
        let mut known = self.known();
        if let Some(id) = ops.iter().flatten().find(|id| known.given_back.contains(id)) {
            return Err(Error::new(Kind::Stale, format!("stripe {id} was given back; write its content again")));
        }
        for id in ops.iter().flatten() {
            if let Some(written) = known.stripes.get_mut(id) {
                written.requests += 1;
            }
        }
        drop(known);
        Ok(Naming { unnamed: self.clone(), ops })
    }
}

impl Naming {
    /// The request was answered.
    pub fn answered(mut self, answer: &Result<MetaReply>) {
        let mut known = self.unnamed.known();
        for (at, ids) in std::mem::take(&mut self.ops).into_iter().enumerate() {
            let refused = match answer {
                Ok(MetaReply::Batch(replies)) => replies.get(at).and_then(|reply| reply.as_ref().err()),
                answer => answer.as_ref().err(),
            };
            let is_refused = refused.is_some_and(|error| is_decided(error.kind()));
            ids.iter().for_each(|id| known.end(*id, is_refused));
        }
    }
}

/// Without an answer nobody knows.
impl Drop for Naming {
    fn drop(&mut self) {
        let ids: Vec<StripeId> = self.ops.drain(..).flatten().collect();
        if !ids.is_empty() {
            let mut known = self.unnamed.known();
            ids.iter().for_each(|id| known.end(*id, false));
        }
    }
}

impl Known {
    fn end(&mut self, id: StripeId, is_refused: bool) {
        match self.stripes.get_mut(&id) {
            Some(written) if is_refused => written.requests = written.requests.saturating_sub(1),
            _ => drop(self.stripes.remove(&id)),
        }
    }
}

/// Whether an error is the metadata's own decision about the operation, so that it certainly was not done.
pub(super) fn is_decided(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::NotFound | Kind::Exists | Kind::NotDirectory | Kind::IsDirectory | Kind::Stale | Kind::InvalidInput
    )
}

fn stripes_of(op: &MetaOp) -> Vec<StripeId> {
    match op {
        MetaOp::Create { content: Some(change), .. } | MetaOp::Commit { change, .. } => {
            change.stripes.iter().map(|stripe| stripe.id).collect()
        }
        MetaOp::Batch(ops) => ops.iter().flat_map(stripes_of).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InodeId;
    use crate::layout::{Profile, StripeShape};
    use crate::meta::ContentChange;

    fn stripe(id: u64) -> Stripe {
        Stripe { id: StripeId(id), shape: StripeShape::for_content(Profile::DEFAULT, 10), nodes: vec![None; 6] }
    }

    fn commit(ids: &[u64]) -> MetaOp {
        let stripes = ids.iter().map(|&id| stripe(id)).collect();
        MetaOp::Commit { ino: InodeId(2), change: ContentChange { stripes, ..ContentChange::nothing() } }
    }

    fn with(ids: std::ops::Range<u64>) -> Arc<Unnamed> {
        let unnamed = Arc::new(Unnamed::default());
        ids.for_each(|id| unnamed.add(&stripe(id)));
        unnamed
    }

    fn given_back(unnamed: &Unnamed) -> Vec<u64> {
        unnamed.give_back().iter().map(|stripe| stripe.id.0).collect()
    }

    fn refused(kind: Kind) -> Result<MetaReply> {
        Err(Error::new(kind, "no"))
    }

    #[test]
    fn only_what_was_certainly_not_named_is_given_back() {
        let unnamed = with(1..7);
        let answers =
            [Ok(MetaReply::Done), refused(Kind::NotFound), refused(Kind::Timeout), refused(Kind::Unavailable)];
        for (id, answer) in (1..).zip(&answers) {
            unnamed.naming(&commit(&[id])).expect("begins").answered(answer);
        }
        drop(unnamed.naming(&commit(&[5])).expect("begins"));
        assert_eq!(given_back(&unnamed), [2, 6]);
        assert!(given_back(&unnamed).is_empty());
        assert_eq!(unnamed.naming(&commit(&[9, 6])).err().map(|error| error.kind()), Some(Kind::Stale));
    }

    #[test]
    fn a_stripe_of_many_files_is_named_if_one_of_them_is() {
        let unnamed = with(1..4);
        let batch = MetaOp::Batch(vec![commit(&[1, 2]), commit(&[2, 3]), commit(&[3])]);
        let replies = vec![refused(Kind::Exists), Ok(MetaReply::Done), refused(Kind::Exists)];
        unnamed.naming(&batch).expect("begins").answered(&Ok(MetaReply::Batch(replies)));
        assert_eq!(given_back(&unnamed), [1]);
    }

    #[test]
    fn what_a_request_under_way_names_stays() {
        let unnamed = with(1..3);
        let naming = unnamed.naming(&commit(&[1])).expect("begins");
        assert_eq!(given_back(&unnamed), [2]);
        naming.answered(&refused(Kind::NotFound));
        assert_eq!(given_back(&unnamed), [1]);
    }
}
