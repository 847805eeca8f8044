//! Pins: paths whose files stay in the cache until they are unpinned. [`Client::pin`].
//!
//! A pin is of a path: the file there, or all regular files below the folder, new ones too. It is looked again what these are every few
//! seconds; what is missing then is fetched. That a file is pinned never makes an old version of it readable.

use super::Client;
use super::catalog::Catalogs;
use super::path::shown;
use super::schedule::plain;
use super::warm::{Listed, list};
use super::write::blocking;
use crate::cache::{self, Cache, Warmth};
use crate::error::{Error, Kind, Result};
use crate::meta::MetaSession;
use crate::prefetch::Dataset;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// Paths that may be pinned in one cache.
const PINS_MAX: usize = 1024;

/// How often it is looked what is pinned, ...
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// ... and with so many files that it takes long, this part of the time.
const LOOK_PART: u32 = 20;

/// How often what is missing is fetched again although nothing changed: it may have failed.
const FETCH_AGAIN_EVERY: Duration = Duration::from_secs(60);

/// A path whose files stay in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// From the root of the file system.
    pub path: String,
    /// How much of it is there. Nothing is at the path if there are no files.
    #[serde(flatten)]
    pub warmth: Warmth,
}

impl Client {
    /// Has the file at a path, or all regular files below the folder, stay in the cache until they are unpinned: what is missing is
    /// fetched in the background, new files too, and nothing of it leaves. The cache folder remembers it.
    ///
    /// # Errors
    /// `Unsupported` without a cache, `NotFound` if there is nothing, `InvalidInput` if it is no file or folder, `NoSpace` if there is
    /// no room for it beside what is pinned already, `TooLarge` for more than 1,024 pins, or what metadata answers.
    pub async fn pin(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.keeper()?.pin(plain(path.as_ref()).into_owned()).await
    }

    /// Lets go of a path that was pinned. Its files leave the cache when their place is needed.
    ///
    /// # Errors
    /// `NotFound` if it is not pinned.
    pub async fn unpin(&self, path: impl AsRef<[u8]>) -> Result<()> {
        self.keeper()?.unpin(&plain(path.as_ref())).await
    }

    /// What is pinned, and how much of it is there.
    ///
    /// # Errors
    /// `Unsupported` without a cache.
    pub async fn pins(&self) -> Result<Vec<Pin>> {
        self.keeper()?.pins().await
    }

    fn keeper(&self) -> Result<&Keeper> {
        let without = || Error::new(Kind::Unsupported, "there is no cache for files to stay in: give one a folder");
        self.inner.keeper.as_ref().ok_or_else(without)
    }
}

/// Sees that what is pinned is there, as long as it lives.
#[derive(Debug)]
pub(super) struct Keeper {
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Shared {
    cache: Cache,
    meta: MetaSession,
    catalogs: Arc<Catalogs>,
    /// One at a time changes what is pinned, or looks what that is.
    turn: tokio::sync::Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    pins: Vec<Pinned>,
    /// What is fetched, and since when.
    warming: Option<(cache::Warming, Instant)>,
}

#[derive(Clone, Debug)]
struct Pinned {
    path: Vec<u8>,
    /// What is there, as far as it could be listed.
    listed: Option<Listed>,
}

impl Keeper {
    /// Begins with what the cache folder remembers.
    pub fn start(cache: Cache, pins: Vec<Vec<u8>>, meta: MetaSession, catalogs: Arc<Catalogs>) -> Self {
        let pins = pins.into_iter().map(|path| Pinned { path, listed: None }).collect();
        let turn = tokio::sync::Mutex::new(State { pins, warming: None });
        let shared = Arc::new(Shared { cache, meta, catalogs, turn, changed: Notify::new() });
        let task = AbortOnDropHandle::new(tokio::spawn(run(shared.clone())));
        Keeper { shared, _task: task }
    }

    async fn pin(&self, path: Vec<u8>) -> Result<()> {
        let shared = &self.shared;
        let listed = list(&shared.meta, &shared.catalogs, &path).await?;
        let mut state = shared.turn.lock().await;
        for pin in state.pins.iter_mut().filter(|pin| pin.listed.is_none()) {
            shared.look_at(pin).await;
        }
        let before = bytes_of(&state.pins);
        let mut pins = state.pins.clone();
        pins.retain(|pin| pin.path != path);
        if pins.len() >= PINS_MAX {
            let message = format!("{PINS_MAX} paths are pinned, which is as many as can be: pin a folder above them");
            return Err(Error::new(Kind::TooLarge, message));
        }
        pins.push(Pinned { path: path.clone(), listed: Some(listed) });
        let (cache, files, paths) = (shared.cache.clone(), union(&pins).await?, paths(&pins));
        let room = cache.room_bytes();
        if files.bytes() > room {
            let message = format!(
                "pinning {} would make it {} bytes that are pinned (now {before}), and the cache has room for {room}: \
                 `torchfs mount --cache-size` sets its limit",
                shown(&path),
                files.bytes(),
            );
            return Err(Error::new(Kind::NoSpace, message));
        }
        blocking(move || cache.set_pins(&paths)).await?;
        state.pins = pins;
        shared.keep(&mut state).await?;
        shared.changed.notify_one();
        Ok(())
    }

    async fn unpin(&self, path: &[u8]) -> Result<()> {
        let mut state = self.shared.turn.lock().await;
        let mut pins = state.pins.clone();
        pins.retain(|pin| pin.path != path);
        if pins.len() == state.pins.len() {
            let around = state.pins.iter().find(|pin| is_below(path, &pin.path));
            let around = around.map(|pin| format!("; {}, which it is in, is", shown(&pin.path))).unwrap_or_default();
            return Err(Error::new(Kind::NotFound, format!("{} is not pinned{around}", shown(path))));
        }
        let (cache, paths) = (self.shared.cache.clone(), paths(&pins));
        blocking(move || cache.set_pins(&paths)).await?;
        state.pins = pins;
        self.shared.keep(&mut state).await
    }

    async fn pins(&self) -> Result<Vec<Pin>> {
        let pins = self.shared.turn.lock().await.pins.clone();
        let cache = self.shared.cache.clone();
        blocking(move || {
            let pin = |pin: &Pinned| {
                let warmth = pin.listed.as_ref().map(|listed| cache.warmth(&listed.files, None)).unwrap_or_default();
                Pin { path: shown(&pin.path), warmth }
            };
            Ok(pins.iter().map(pin).collect())
        })
        .await
    }
}

async fn run(shared: Arc<Shared>) {
    loop {
        let began = Instant::now();
        if let Err(error) = shared.look().await {
            tracing::debug!(%error, "what is pinned is looked at later");
        }
        let pause = LOOK_EVERY.max(began.elapsed() * LOOK_PART);
        if shared.turn.lock().await.pins.is_empty() {
            shared.changed.notified().await;
        } else {
            tokio::time::sleep(pause).await;
        }
    }
}

impl Shared {
    /// Finds what is pinned now, and has it fetched.
    async fn look(&self) -> Result<()> {
        let mut state = self.turn.lock().await;
        let State { pins, warming } = &mut *state;
        if warming.as_ref().is_some_and(|(warming, _)| warming.warmth().failed_files > 0) {
            // Perhaps they are others by now.
            pins.iter_mut().filter_map(|pin| pin.listed.as_mut()).for_each(Listed::forget_source);
        }
        let is_other = self.look_at_all(pins).await;
        let is_due = state.warming.as_ref().is_none_or(|(_, since)| since.elapsed() >= FETCH_AGAIN_EVERY);
        if !state.pins.is_empty() && (is_other || is_due) { self.keep(&mut state).await } else { Ok(()) }
    }

    async fn look_at_all(&self, pins: &mut [Pinned]) -> bool {
        let mut is_other = false;
        for pin in pins {
            is_other |= self.look_at(pin).await;
        }
        is_other
    }

    /// Lists what may have changed; answers whether something has. What cannot be listed stays as it was.
    async fn look_at(&self, pin: &mut Pinned) -> bool {
        if let Some(listed) = &pin.listed
            && listed.is_current(&self.meta).await
        {
            return false;
        }
        let listed = match list(&self.meta, &self.catalogs, &pin.path).await {
            Err(error) if matches!(error.kind(), Kind::NotFound | Kind::NotDirectory | Kind::InvalidInput) => {
                Listed::nothing()
            }
            listed => listed,
        };
        match listed {
            Ok(listed) => {
                let is_other = pin.listed.as_ref().is_none_or(|before| !before.is_same(&listed));
                pin.listed = Some(listed);
                is_other
            }
            Err(error) => {
                tracing::debug!(%error, path = shown(&pin.path), "it cannot be listed now");
                false
            }
        }
    }

    /// Has stay, and fetches, what is pinned, once all of it is known.
    async fn keep(&self, state: &mut State) -> Result<()> {
        if state.pins.iter().any(|pin| pin.listed.is_none()) {
            return Ok(());
        }
        let (cache, files) = (self.cache.clone(), union(&state.pins).await?);
        // What was under way for the list before goes on in the new one.
        state.warming = None;
        let warming = blocking(move || {
            cache.keep(&files);
            Ok(cache.warm(&files, None))
        });
        state.warming = Some((warming.await?, Instant::now()));
        Ok(())
    }
}

fn paths(pins: &[Pinned]) -> Vec<Vec<u8>> {
    pins.iter().map(|pin| pin.path.clone()).collect()
}

fn bytes_of(pins: &[Pinned]) -> u64 {
    pins.iter().filter_map(|pin| pin.listed.as_ref()).map(|listed| listed.files.bytes()).sum()
}

/// Whether a path is in the folder at another one.
fn is_below(path: &[u8], folder: &[u8]) -> bool {
    folder.is_empty() || path.strip_prefix(folder).is_some_and(|rest| rest.starts_with(b"/"))
}

/// All files that are pinned, each once, in the order in which they were.
async fn union(pins: &[Pinned]) -> Result<Arc<Dataset>> {
    let lists: Vec<Arc<Dataset>> =
        pins.iter().filter_map(|pin| pin.listed.as_ref()).map(|listed| listed.files.clone()).collect();
    if let [only] = &lists[..] {
        return Ok(only.clone());
    }
    blocking(move || {
        let mut all = Vec::new();
        for (at, files) in lists.iter().enumerate() {
            let is_new = |key| lists[..at].iter().all(|before| before.as_listed(key).is_none());
            all.extend(files.files().iter().filter(|file| is_new(file.key)));
        }
        Dataset::new(all)
    })
    .await
}

#[cfg(test)]
#[path = "pins_test.rs"]
mod tests;
