//! Setting aside what a commit could not store, and storing it after all.
//!
//! The rule: only what is surely right is stored. Written over another version than the one it was meant for, a file would
//! be a mixture that nobody ever wrote.

use super::aside::{self, Place, Record, SetAside};
use super::overlay::{Piece, Source};
use super::ranges::RangeSet;
use super::write::blocking;
use super::{Client, File};
use crate::error::{Error, Kind, Result};
use crate::layout::Stripe;
use crate::meta::Attr;
use std::ops::Range;
use std::sync::Arc;

/// Bytes of a stripe that are written again at a time.
const COPY_BYTES: u64 = 4 * 1024 * 1024;

/// What of an open file was set aside last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Aside {
    id: String,
    /// How often the file had been changed by then.
    changes: u64,
}

impl File {
    /// Keeps what is not committed, because of `why` it could not be, where it outlives this process. Without a cache folder
    /// there is no such place.
    pub(super) async fn set_aside(&self, why: &Error) {
        let Some(asides) = self.client.inner.asides.clone() else { return };
        // Nobody can ask for a file that is gone.
        if why.kind() == Kind::NotFound {
            return;
        }
        let (record, pieces, changes, before) = {
            let state = self.open.state();
            if state.aside.as_ref().is_some_and(|aside| aside.changes == state.changes) {
                return;
            }
            let (at, pid) = aside::now();
            let record = Record {
                cluster: asides.cluster,
                ino: self.ino(),
                name: self.open.name.get().cloned(),
                version: state.latest.attr.version,
                visible: state.visible(&state.latest),
                size: state.size(&state.latest),
                at,
                pid,
                why: why.to_string(),
                parts: Vec::new(),
            };
            (record, state.overlay.pieces(), state.changes, state.aside.clone())
        };
        // Not given back when this client ends.
        self.client.meta().unnamed().forget(&stripes_of(&pieces));
        let (keeper, staging) = (asides.clone(), self.client.inner.staging.clone());
        let kept = blocking(move || {
            let kept = keeper.keep(&staging, record, &pieces)?;
            before.map_or(Ok(()), |before| keeper.remove(&before.id))?;
            Ok(kept)
        });
        match kept.await {
            Ok(id) => {
                tracing::warn!(
                    "what was written to file {} is not stored ({why}); `torchfs recover` has it as {id}",
                    self.ino()
                );
                self.open.state().aside = Some(Aside { id, changes });
            }
            Err(error) => {
                tracing::error!("what was written to file {} is not stored ({why}) nor kept: {error}", self.ino())
            }
        }
    }

    /// What was set aside is committed now.
    pub(super) async fn forget_aside(&self) {
        let Some(asides) = self.client.inner.asides.clone() else { return };
        let Some(aside) = self.open.state().aside.take() else { return };
        if let Err(error) = blocking(move || asides.remove(&aside.id)).await {
            tracing::warn!("what was set aside of file {} and is stored now stays: {error}", self.ino());
        }
    }
}

fn stripes_of(pieces: &[Piece]) -> Vec<Stripe> {
    let stripe = |piece: &Piece| match &piece.source {
        Source::Sent { stripe, .. } => Some(Stripe::clone(stripe)),
        _ => None,
    };
    pieces.iter().filter_map(stripe).collect()
}

impl Client {
    /// Stores what was set aside: in the file that it was written to, or, with a path, as a file of its own, which is made or
    /// replaced. It stays set aside; [`SetAside::remove`] removes it.
    ///
    /// # Errors
    /// `Conflict` if the file has another version by now, parts of which would be needed; `NotFound` if it is gone;
    /// `WrongCluster` if it is of another; `Corrupt` if the kept bytes are damaged, `DataLoss` if a part of it had been sent
    /// to storage nodes that have given it up since, which they do after a day.
    pub async fn recover(&self, aside: &SetAside, path: Option<&[u8]>) -> Result<Attr> {
        let record = &aside.record;
        let cluster = self.meta().map().await?.cluster;
        if cluster != record.cluster {
            return Err(Error::new(Kind::WrongCluster, format!("{} is of another cluster", aside.id())));
        }
        let untouched = untouched(record);
        let file = match path {
            None => {
                let file = self.version_of(record).await?;
                file.truncate(record.visible.min(file.attr().size)).await?;
                file
            }
            Some(path) => {
                let source = if untouched.is_empty() { None } else { Some(self.version_of(record).await?) };
                let file = self.create(path).await?;
                if source.as_ref().is_some_and(|source| source.ino() == file.ino()) {
                    file.truncate(record.visible).await?;
                } else {
                    file.truncate(0).await?;
                    for range in untouched {
                        let Some(source) = &source else { break };
                        source.copy_range(range.start, &file, range.start, range.end - range.start)?;
                    }
                }
                file
            }
        };
        for part in &record.parts {
            self.recover_part(aside, &file, part.start..part.end, &part.place).await?;
        }
        file.truncate(record.size).await?;
        file.commit().await
    }

    /// The file that something was written to, at the version that it was written over.
    async fn version_of(&self, record: &Record) -> Result<File> {
        let file = self.open_inode(record.ino).await?;
        let now = file.attr().version;
        if now == record.version {
            return Ok(file);
        }
        let message = format!(
            "file {} has version {now} by now, and this was written over version {}: parts of it are missing",
            record.ino, record.version
        );
        Err(Error::new(Kind::Conflict, message))
    }

    async fn recover_part(&self, aside: &SetAside, file: &File, range: Range<u64>, place: &Place) -> Result<()> {
        match place {
            Place::Hole => {
                // A hole is one only inside the file.
                if file.attr().size < range.end {
                    file.truncate(range.end).await?;
                }
                file.punch(range)
            }
            Place::Here { crc32c } => {
                let (aside, crc32c, at) = (aside.clone(), *crc32c, range.start);
                let bytes = blocking(move || aside.part_here(range, crc32c)).await?;
                file.write_at(at, bytes).await
            }
            Place::Stripe { stripe, at } => {
                let stripe = Arc::new(stripe.clone());
                for step in in_steps(range.clone(), COPY_BYTES) {
                    let from = *at + (step.start - range.start) as u32;
                    let bytes = self.stripes().read(&stripe, from..from + (step.end - step.start) as u32).await?;
                    file.write_at(step.start, bytes).await?;
                }
                Ok(())
            }
        }
    }
}

/// What is to be seen of the version underneath.
fn untouched(record: &Record) -> Vec<Range<u64>> {
    let mut ranges = RangeSet::default();
    ranges.insert(0..record.visible);
    record.parts.iter().for_each(|part| ranges.remove(part.start..part.end));
    ranges.iter().collect()
}

fn in_steps(range: Range<u64>, step: u64) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    std::iter::successors(Some(range.start), move |at| Some(at + step))
        .take_while(move |at| *at < end)
        .map(move |at| at..end.min(at + step))
}
