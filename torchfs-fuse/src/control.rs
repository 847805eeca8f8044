//! [`Control`]: what programs ask of a mount through `.torchfs/control`. docs/control.md says how.
//!
//! Each open of the file is one conversation: the request is written, then the answers are read, a line each. What is under way
//! for it ends when it is closed. What is asked shares the [`Room`] that orders have.

use crate::volume::WriteAt;
use crate::written::{Room, Written};
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use torchfs_core::cache::Warmth;
use torchfs_core::{Client, EpochOrder, Error, Kind, Pin, Result, WarmOrder};

/// How long a read waits for news. One that waited gets the latest answer again.
const PATIENCE: Duration = Duration::from_millis(250);

/// How often it is said how far something is.
const SAID_EVERY: Duration = Duration::from_millis(100);

/// What a program asks: the first line of what it writes to `.torchfs/control`, as JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Bring the file, or all files below the folder, into the cache. An order may follow, as it is written to
    /// `.torchfs/schedule`: then only what it names, in that order.
    Warm {
        /// From the root of the mount.
        path: String,
    },
    /// Say how much of the same is in the cache.
    Check {
        /// From the root of the mount.
        path: String,
    },
    /// Have the file, or all files below the folder, stay in the cache, and bring them there.
    Pin {
        /// From the root of the mount.
        path: String,
    },
    /// Let go of a path that was pinned.
    Unpin {
        /// From the root of the mount.
        path: String,
    },
    /// Say what is pinned.
    Pins,
}

/// What a mount answers. The last answer is the first that [is](Answer::is_last).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Answer {
    /// It looks which files there are.
    Listing,
    /// It fetches.
    Fetching(Warmth),
    /// That is done: all is there that can be.
    Done(Warmth),
    /// That is pinned now.
    Pinned {
        /// In the order in which they were.
        pins: Vec<Pin>,
    },
    /// It could not be done.
    Failed {
        /// What kind of error.
        kind: Kind,
        /// What happened.
        message: String,
    },
}

impl Answer {
    /// Whether no other follows.
    #[must_use]
    pub fn is_last(&self) -> bool {
        !matches!(self, Answer::Listing | Answer::Fetching(_))
    }
}

/// The conversations of one mount.
#[derive(Debug)]
pub struct Control {
    mountpoint: PathBuf,
    room: Room,
    /// How many there are.
    count: AtomicUsize,
    talks: Mutex<HashMap<u64, Arc<Talk>>>,
    stopped: CancellationToken,
}

/// A request and its answers.
#[derive(Debug)]
pub struct Talk {
    state: tokio::sync::Mutex<State>,
}

#[derive(Debug)]
enum State {
    /// What is written so far.
    Asking(Written),
    Answering(Answering),
}

#[derive(Debug)]
struct Answering {
    answers: watch::Receiver<Answer>,
    /// Bytes that no read has taken yet.
    ready: BytesMut,
    is_over: bool,
    _task: AbortOnDropHandle<()>,
}

impl Control {
    pub fn new(mountpoint: PathBuf, room: Room) -> Self {
        let (count, talks, stopped) = (AtomicUsize::new(0), Mutex::default(), CancellationToken::new());
        Control { mountpoint, room, count, talks, stopped }
    }

    fn talks(&self) -> MutexGuard<'_, HashMap<u64, Arc<Talk>>> {
        self.talks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a conversation, through this handle.
    pub fn open(&self, handle: u64) -> u64 {
        let state = tokio::sync::Mutex::new(State::Asking(Written::new(&self.room)));
        self.talks().insert(handle, Arc::new(Talk { state }));
        self.count.fetch_add(1, Ordering::Release);
        handle
    }

    /// The conversation of a handle, if it is one.
    pub fn talk(&self, handle: u64) -> Option<Arc<Talk>> {
        if self.count.load(Ordering::Acquire) == 0 { None } else { self.talks().get(&handle).cloned() }
    }

    /// Ends the conversation of a handle, if it is one, and what is under way for it.
    pub fn close(&self, handle: u64) -> bool {
        let is_one = self.talks().remove(&handle).is_some();
        self.count.fetch_sub(usize::from(is_one), Ordering::Release);
        is_one
    }

    /// The mount ends, and so does all that is under way. Cancel it to say so.
    pub fn stopped(&self) -> CancellationToken {
        self.stopped.clone()
    }

    /// The next bytes of a conversation's answers, at the beginning of which the request is taken to be complete; none at the end.
    pub async fn read(&self, talk: &Talk, client: &Client, len: usize) -> Bytes {
        let mut state = talk.state.lock().await;
        if let State::Asking(text) = &mut *state {
            let text = std::mem::replace(text, Written::new(&self.room));
            *state = State::Answering(self.begin(client, text));
        }
        let State::Answering(answering) = &mut *state else { return Bytes::new() };
        answering.read(len).await
    }

    fn begin(&self, client: &Client, text: Written) -> Answering {
        let (say, answers) = watch::channel(Answer::Listing);
        let (client, mountpoint, stopped) = (client.clone(), self.mountpoint.clone(), self.stopped.clone());
        let task = tokio::spawn(async move {
            let done = tokio::select! {
                done = work(&client, text, mountpoint, &say) => done,
                () = stopped.cancelled() => Err(Error::new(Kind::Cancelled, "the mount ends")),
            };
            let failed = |error: Error| Answer::Failed { kind: error.kind(), message: error.to_string() };
            say.send_replace(done.unwrap_or_else(failed));
        });
        Answering { answers, ready: BytesMut::new(), is_over: false, _task: AbortOnDropHandle::new(task) }
    }
}

impl Talk {
    /// Adds to the end of the request.
    ///
    /// # Errors
    /// `InvalidInput` when answers are read already; as [`Written::write`].
    pub async fn write(&self, at: WriteAt, data: &[u8]) -> Result<()> {
        let State::Asking(text) = &mut *self.state.lock().await else {
            return Err(Error::new(
                Kind::InvalidInput,
                "it is being answered: open .torchfs/control anew for each request",
            ));
        };
        text.write(at, data)
    }
}

impl Answering {
    async fn read(&mut self, len: usize) -> Bytes {
        if self.ready.is_empty() && !self.is_over {
            // Whether there is news or time is up, what holds now is said. It fails when the last answer is there.
            let _ = tokio::time::timeout(PATIENCE, self.answers.changed()).await;
            let answer = self.answers.borrow_and_update().clone();
            self.is_over = answer.is_last();
            self.ready.extend_from_slice(&line(&answer));
        }
        let len = len.min(self.ready.len());
        self.ready.split_to(len).freeze()
    }
}

fn line(answer: &Answer) -> Vec<u8> {
    // There is nothing in an answer that JSON could not say.
    let mut line = serde_json::to_vec(answer).unwrap_or_default();
    line.push(b'\n');
    line
}

/// Does what a request asks, and says how far it is.
async fn work(client: &Client, text: Written, mountpoint: PathBuf, say: &watch::Sender<Answer>) -> Result<Answer> {
    let (text, _held) = text.into_parts()?;
    let parsed = tokio::task::spawn_blocking(move || parse(&text, &mountpoint)).await;
    let (request, order) = parsed.map_err(|error| Error::caused(Kind::Cancelled, "read the request", error))??;
    let of = |path: String| match order.clone() {
        Some(order) => WarmOrder::below(path).in_order_of(order),
        None => WarmOrder::below(path),
    };
    match request {
        Request::Check { path } => Ok(Answer::Done(client.warmth(of(path)).await?)),
        Request::Warm { path } => warm(client, of(path), say).await,
        Request::Pin { path } => {
            client.pin(&path).await?;
            // The mount goes on with it when nobody waits any more.
            warm(client, WarmOrder::below(path), say).await
        }
        Request::Unpin { path } => {
            client.unpin(path).await?;
            Ok(Answer::Pinned { pins: client.pins().await? })
        }
        Request::Pins => Ok(Answer::Pinned { pins: client.pins().await? }),
    }
}

async fn warm(client: &Client, order: WarmOrder, say: &watch::Sender<Answer>) -> Result<Answer> {
    let warming = client.warm(order).await?;
    say.send_replace(Answer::Fetching(warming.warmth()));
    while tokio::time::timeout(SAID_EVERY, warming.ended()).await.is_err() {
        say.send_replace(Answer::Fetching(warming.warmth()));
    }
    Ok(Answer::Done(warming.warmth()))
}

fn parse(text: &[u8], mountpoint: &Path) -> Result<(Request, Option<EpochOrder>)> {
    let end = text.iter().position(|&byte| byte == b'\n').unwrap_or(text.len());
    let (first, rest) = text.split_at(end);
    let request = serde_json::from_slice(first).map_err(|error| {
        let message = format!("the first line is no request: {error}; docs/control.md tells what can be asked");
        Error::new(Kind::InvalidInput, message)
    })?;
    let rest = rest.strip_prefix(b"\n").unwrap_or(rest);
    if rest.is_empty() {
        return Ok((request, None));
    }
    if !matches!(request, Request::Warm { .. } | Request::Check { .. }) {
        return Err(Error::new(Kind::InvalidInput, "only warm and check take an order after the first line"));
    }
    let order = EpochOrder::parse(rest, Some(mountpoint), 0).map_err(|error| error.context("the order"))?;
    let empty = || Error::new(Kind::InvalidInput, "the order names no file");
    Ok((request, Some(order.ok_or_else(empty)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<(Request, Option<EpochOrder>)> {
        parse(text.as_bytes(), Path::new("/mnt"))
    }

    #[test]
    fn a_request_is_a_line_and_an_order_may_follow() {
        let warm = Request::Warm { path: "data".to_owned() };
        let (request, order) = parsed("{\"do\": \"warm\", \"path\": \"data\"}").expect("is understood");
        assert!(request == warm && order.is_none());
        let text = format!("{}\n/mnt/data/b\ndata/a\n", serde_json::to_string(&warm).expect("JSON"));
        let (request, order) = parsed(&text).expect("is understood");
        let expected = EpochOrder::paths(0, vec!["/data/b".to_owned(), "data/a".to_owned()]);
        assert_eq!((request, format!("{order:?}")), (warm, format!("{:?}", Some(expected))));
        for (text, what) in [
            ("", "docs/control.md"),
            ("data\n", "no request"),
            ("{\"do\": \"melt\", \"path\": \"data\"}", "melt"),
            ("{\"do\": \"warm\", \"path\": \"data\"}\n{\"epok\": 1}\n", "line 1 "),
            ("{\"do\": \"warm\", \"path\": \"data\"}\n\n\n", "names no file"),
            ("{\"do\": \"pin\", \"path\": \"data\"}\ndata/a\n", "take an order"),
        ] {
            let error = parsed(text).expect_err(text);
            assert!(error.kind() == Kind::InvalidInput && error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn an_answer_is_a_line_of_json() {
        let done = Answer::Done(Warmth { files: 3, ..Warmth::default() });
        let text = String::from_utf8(line(&done)).expect("UTF-8");
        assert!(text.starts_with("{\"state\":\"done\",\"files\":3,") && text.ends_with("}\n"), "{text}");
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("JSON"), done);
        let failed = Answer::Failed { kind: Kind::NotFound, message: "/a: no such file".to_owned() };
        let text = String::from_utf8(line(&failed)).expect("UTF-8");
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("JSON"), failed);
        assert!(failed.is_last() && !Answer::Listing.is_last());
    }
}
