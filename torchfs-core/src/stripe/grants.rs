//! [`Grants`]: places for small stripes that are asked for ahead, so that a writer of many small files asks once per batch.
//!
//! A place that is granted is only advice that gets old: its stripe's number is nobody else's for good, and a node of it that
//! has failed or filled up meanwhile is replaced by a spare as in any write. So a place is used within the time in which the
//! leader's own knowledge of the nodes is about as old, and what is left over is forgotten, which costs nothing.

use crate::error::{Error, Kind, Result};
use crate::layout::{Profile, StripeShape};
use crate::meta::{Allocate, Allocation, MetaSession};
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// How long a place may be used: two heartbeats of a storage node.
const GRANT_EXPIRY: Duration = Duration::from_secs(1);

/// Most places asked for at once.
const BATCH_MAX: u32 = 64;

/// Places are asked for ahead for shards up to this size only: the leader books their room.
const SHARD_BYTES_AHEAD_MAX: u32 = 64 * 1024;

/// Sizes are rounded up to a power of two, at least this, so that files of all sizes share a few pools.
const SHARD_BYTES_STEP: u32 = 16 * 1024;

/// Pools kept; for what has none, places are asked for one by one.
const POOLS_MAX: usize = 48;

/// The places at hand.
#[derive(Debug, Default)]
pub(super) struct Grants {
    pools: Mutex<HashMap<(Profile, u32), Arc<Pool>>>,
}

/// Those for one profile and size.
#[derive(Debug)]
struct Pool {
    /// One asks; who waited for it uses its answer.
    asking: Semaphore,
    held: Mutex<Held>,
}

#[derive(Debug)]
struct Held {
    places: VecDeque<Allocation>,
    granted: Instant,
    /// How many were asked for last.
    batch: u32,
}

impl Held {
    fn take(&mut self, now: Instant) -> Option<Allocation> {
        if now.duration_since(self.granted) < GRANT_EXPIRY { self.places.pop_front() } else { None }
    }

    /// How many to ask for: twice as many if the last ones were used up in time, else as many as were used.
    fn wanted(&self, now: Instant) -> u32 {
        let used = self.batch.saturating_sub(self.places.len() as u32);
        let wanted = if now.duration_since(self.granted) < GRANT_EXPIRY { 2 * self.batch } else { used / 2 };
        wanted.clamp(1, BATCH_MAX)
    }

    fn fill(&mut self, places: Vec<Allocation>, now: Instant) {
        self.batch = places.len() as u32;
        self.granted = now;
        self.places = places.into();
    }
}

impl Grants {
    /// A place for one stripe.
    ///
    /// # Errors
    /// What [`MetaSession::allocate`] answers.
    pub async fn place(&self, meta: &MetaSession, shape: StripeShape) -> Result<Allocation> {
        let size = shape.shard_bytes.next_power_of_two().max(SHARD_BYTES_STEP);
        let pool = if size <= SHARD_BYTES_AHEAD_MAX { self.pool(shape.profile, size) } else { None };
        match pool {
            Some(pool) => pool.place(meta, shape.profile, size).await,
            None => ask_one(meta, shape.profile, shape.shard_bytes).await,
        }
    }

    /// Forgets all places: a node has failed, and places without it are to be had.
    pub fn forget(&self) {
        self.pools().clear();
    }

    fn pool(&self, profile: Profile, size: u32) -> Option<Arc<Pool>> {
        let mut pools = self.pools();
        if pools.len() >= POOLS_MAX && !pools.contains_key(&(profile, size)) {
            return None;
        }
        Some(pools.entry((profile, size)).or_insert_with(|| Arc::new(Pool::new())).clone())
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<(Profile, u32), Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    fn new() -> Self {
        let held = Held { places: VecDeque::new(), granted: Instant::now(), batch: 0 };
        Pool { asking: Semaphore::new(1), held: Mutex::new(held) }
    }

    async fn place(&self, meta: &MetaSession, profile: Profile, size: u32) -> Result<Allocation> {
        if let Some(place) = self.held().take(Instant::now()) {
            return Ok(place);
        }
        let _turn = self.asking.acquire().await;
        let wanted = {
            let (mut held, now) = (self.held(), Instant::now());
            if let Some(place) = held.take(now) {
                return Ok(place);
            }
            held.wanted(now)
        };
        let asked = Instant::now();
        match meta.allocate(Allocate { profile, stripes: wanted, shard_bytes: size, avoid: Vec::new() }).await {
            Ok(places) => {
                let mut held = self.held();
                held.fill(places, asked);
                held.places.pop_front().ok_or_else(none_allocated)
            }
            // There may be room for one where there is none for many.
            Err(error) if error.kind() == Kind::NoSpace && wanted > 1 => {
                self.held().fill(Vec::new(), asked);
                ask_one(meta, profile, size).await
            }
            Err(error) => Err(error),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask_one(meta: &MetaSession, profile: Profile, shard_bytes: u32) -> Result<Allocation> {
    let request = Allocate { profile, stripes: 1, shard_bytes, avoid: Vec::new() };
    meta.allocate(request).await?.pop().ok_or_else(none_allocated)
}

fn none_allocated() -> Error {
    Error::new(Kind::Protocol, "metadata allocated no stripe")
}
