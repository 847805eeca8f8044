//! [`Orders`]: what is written to `.torchfs/schedule`, and what it came to. docs/schedule.md says how it is meant.

use crate::caller::{Caller, Writers};
use crate::volume::WriteAt;
use crate::written::{Room, Written};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use torchfs_core::{Announced, Client, EpochOrder, Error, Kind, Result};

/// Epochs of which it is remembered what was announced.
const EPOCHS_MAX: usize = 64;

/// The orders announced to one mount.
#[derive(Debug)]
pub struct Orders {
    mountpoint: PathBuf,
    room: Room,
    /// How many texts are being written.
    count: AtomicUsize,
    texts: Mutex<HashMap<u64, Arc<Text>>>,
    state: Mutex<State>,
    /// One text at a time is understood.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    announced: BTreeMap<u64, Announced>,
    error: Option<String>,
}

/// A text that is being written through one handle.
#[derive(Debug)]
pub struct Text {
    state: Mutex<TextState>,
}

#[derive(Debug)]
struct TextState {
    /// Shared while it is being understood.
    text: Arc<Written>,
    /// Who wrote since it was taken last.
    writers: Option<Writers>,
    /// Which epoch it is of if it does not say.
    epoch: Option<u64>,
}

/// What reading the file gives.
#[derive(Debug, Serialize)]
struct Shown {
    epochs: Vec<ShownEpoch>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownEpoch {
    epoch: u64,
    entries: u64,
    read: u64,
    bytes: u64,
    unknown: u64,
    unknown_first: Option<String>,
    repeated: u64,
    repeated_first: Option<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Orders {
    pub fn new(mountpoint: PathBuf, room: Room) -> Self {
        let (count, texts, state) = (AtomicUsize::new(0), Mutex::default(), Mutex::default());
        Orders { mountpoint, room, count, texts, state, turn: tokio::sync::Mutex::default() }
    }

    /// Begins a text, through this handle.
    pub fn open(&self, handle: u64) -> u64 {
        let state = TextState { text: Arc::new(Written::new(&self.room)), writers: None, epoch: None };
        lock(&self.texts).insert(handle, Arc::new(Text { state: Mutex::new(state) }));
        self.count.fetch_add(1, Ordering::Release);
        handle
    }

    /// The text that is written through a handle, if one is.
    pub fn text(&self, handle: u64) -> Option<Arc<Text>> {
        if self.count.load(Ordering::Acquire) == 0 { None } else { lock(&self.texts).get(&handle).cloned() }
    }

    /// Adds to the end of a text.
    ///
    /// # Errors
    /// `InvalidInput` elsewhere, and while it is being understood; as [`Written::write`].
    pub fn write(&self, text: &Text, at: WriteAt, data: &[u8], caller: Caller) -> Result<()> {
        let written = text.write(at, data, caller);
        if let Err(error) = &written {
            lock(&self.state).error = Some(error.to_string());
        }
        written
    }

    /// Takes in what was written, if anything was since the last time.
    ///
    /// # Errors
    /// `InvalidInput` if it is not understood, or what announcing answers.
    pub async fn take(&self, client: &Client, text: &Text) -> Result<()> {
        let _turn = self.turn.lock().await;
        let next = client.announced().last().map_or(0, |epoch| epoch.epoch + 1);
        let Some((text, epoch)) = text.take(next) else { return Ok(()) };
        let result = self.announce(client, text, epoch).await;
        let mut state = lock(&self.state);
        state.error = result.as_ref().err().map(ToString::to_string);
        match result? {
            Some(announced) => drop(state.announced.insert(announced.epoch, announced)),
            None => state.announced.clear(),
        }
        while state.announced.len() > EPOCHS_MAX {
            state.announced.pop_first();
        }
        Ok(())
    }

    async fn announce(&self, client: &Client, text: Arc<Written>, epoch: u64) -> Result<Option<Announced>> {
        let mountpoint = self.mountpoint.clone();
        let parse = move || EpochOrder::parse(text.bytes()?, Some(&mountpoint), epoch);
        let parsed = tokio::task::spawn_blocking(parse).await;
        let order = parsed.map_err(|error| Error::caused(Kind::Cancelled, "read the order", error))??;
        match order {
            Some(order) => client.announce(order).await.map(Some).map_err(|error| match error.kind() {
                // That it names nothing is no matter of the file that it was written to.
                Kind::NotFound => Error::new(Kind::InvalidInput, error.to_string()),
                _ => error,
            }),
            None => {
                client.forget_announced();
                Ok(None)
            }
        }
    }

    /// Ends the text of a handle. One to which nothing was written forgets all orders.
    pub fn close(&self, client: &Client, handle: u64) -> bool {
        let Some(text) = lock(&self.texts).remove(&handle) else { return false };
        self.count.fetch_sub(1, Ordering::Release);
        if lock(&text.state).text.is_untouched() {
            client.forget_announced();
            *lock(&self.state) = State::default();
        }
        true
    }

    /// What is announced, as JSON.
    pub fn show(&self, client: &Client) -> serde_json::Result<String> {
        let state = lock(&self.state);
        let shown = client.announced().into_iter().map(|followed| {
            let announced = state.announced.get(&followed.epoch).cloned().unwrap_or_default();
            ShownEpoch {
                epoch: followed.epoch,
                entries: followed.entries,
                read: followed.read,
                bytes: announced.bytes,
                unknown: announced.unknown + announced.not_files,
                unknown_first: announced.first_unknown.or(announced.first_not_file),
                repeated: announced.repeated,
                repeated_first: announced.first_repeated,
            }
        });
        let shown = Shown { epochs: shown.collect(), error: state.error.clone() };
        serde_json::to_string_pretty(&shown)
    }
}

impl Text {
    fn write(&self, at: WriteAt, data: &[u8], caller: Caller) -> Result<()> {
        let mut state = lock(&self.state);
        state.writers.get_or_insert_default().add(caller);
        let busy =
            || Error::new(Kind::InvalidInput, "the order is being taken in: write on when close or fsync has returned");
        match Arc::get_mut(&mut state.text) {
            Some(text) => text.write(at, data),
            None => Err(busy()).inspect_err(|error| state.text.spoil(error)),
        }
    }

    /// Whether this process wrote something that was not taken in yet. Others that close the file only inherited it.
    pub fn is_written_by(&self, caller: Caller) -> bool {
        lock(&self.state).writers.as_ref().is_some_and(|writers| writers.may_include(caller))
    }

    /// All that was written if there is news, and the epoch that it is of if it does not say.
    fn take(&self, next: u64) -> Option<(Arc<Written>, u64)> {
        let mut state = lock(&self.state);
        state.writers.take()?;
        let epoch = *state.epoch.get_or_insert(next);
        Some((state.text.clone(), epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_text_that_lacks_a_part_nothing_counts() {
        let orders = Orders::new("/mnt".into(), Room::default());
        let (whole, cut) = (orders.open(1), orders.open(2));
        let (whole, cut) = (orders.text(whole).expect("is open"), orders.text(cut).expect("is open"));
        let caller = Caller(1);
        for text in [&whole, &cut] {
            orders.write(text, WriteAt::Offset(0), b"a\nb", caller).expect("at its end");
        }
        let failed = orders.write(&cut, WriteAt::Offset(100), b"c\n", caller).expect_err("not at its end");
        orders.write(&cut, WriteAt::Offset(3), b"c\n", caller).expect("at its end");
        let (text, epoch) = whole.take(4).expect("is news");
        assert_eq!((text.bytes().expect("is whole"), epoch), (&b"a\nb"[..], 4));
        assert!(whole.take(4).is_none());
        assert!(orders.write(&whole, WriteAt::Offset(3), b"c", caller).is_err(), "it is being understood");
        drop(text);
        for text in [&cut, &whole] {
            let error = text.take(5).expect("is news").0.bytes().expect_err("lacks a part");
            assert_eq!(error.kind(), failed.kind(), "{error}");
            assert!(error.to_string().contains("none of it counts"), "{error}");
        }
    }
}
