//! Writing: into the staging area, and whole stripes from there into the cluster while the writer goes on.

use super::open_file::{Background, OpenFile};
use super::overlay::{Piece, Source};
use super::{File, UPLOAD_UNIT_BYTES, UPLOAD_UNITS_PER_STRIPE_MAX};
use crate::error::{Error, Kind, Result};
use crate::layout::{Profile, Stripe, StripeShape};
use crate::settings::SHARD_BYTES_MAX;
use crate::stripe::StripeIo;
use bytes::{Bytes, BytesMut};
use std::sync::{Arc, Weak};
use tokio::sync::Semaphore;

/// A write is staged in pieces of this size at most, so that space of a long one comes back bit by bit.
const PIECE_BYTES_MAX: usize = 4 * 1024 * 1024;

impl File {
    pub(super) async fn stage(&self, mut offset: u64, mut data: Bytes) -> Result<()> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE_BYTES_MAX));
            let len = piece.len();
            let (block, at) = self.open.state().reserve(&self.client.inner.staging, len)?;
            if block.is_memory() {
                block.write(at, &piece)?;
            } else {
                let block = block.clone();
                blocking(move || block.write(at, &piece)).await?;
            }
            self.open.state().written(offset, len, block, at);
            offset += len as u64;
            self.send_full_stripes(offset - 1).await;
        }
        Ok(())
    }

    /// Sends what is full around `at`. It waits while enough stripes are on their way, which holds back a writer that is
    /// faster than the cluster. A failure is the next commit's to report.
    async fn send_full_stripes(&self, at: u64) {
        // No stripe is smaller than one full shard, so that most writes need not know the profile.
        while self.open.state().full_stripe(at, SHARD_BYTES_MAX as u64).is_some() {
            let Ok(profile) = self.open.profile() else { return };
            if self.open.state().full_stripe(at, profile.stripe_bytes_max()).is_none() {
                return;
            }
            let permits = (
                self.open.uploads.clone().acquire_owned().await,
                self.client.upload_permit(profile.stripe_bytes_max()).await,
            );
            let (Ok(of_file), Some(of_client)) = permits else { return };
            let mut state = self.open.state();
            let Some(range) = state.full_stripe(at, profile.stripe_bytes_max()) else { return };
            let upload = state.next_upload();
            let pieces = state.overlay.start_sending(range, upload);
            let sending = Sending {
                open: Arc::downgrade(&self.open),
                stripes: self.client.stripes().clone(),
                profile,
                upload,
                pieces,
            };
            while state.tasks.try_join_next().is_some() {}
            state.tasks.spawn(async move {
                sending.run().await;
                drop((of_file, of_client));
            });
        }
    }
}

/// A full stripe on its way in the background.
struct Sending {
    open: Weak<OpenFile>,
    stripes: StripeIo,
    profile: Profile,
    upload: u64,
    pieces: Vec<Piece>,
}

impl Sending {
    async fn run(self) {
        let stored = store(&self.stripes, self.profile, &self.pieces).await;
        let Some(open) = self.open.upgrade() else { return };
        let mut state = open.state();
        match stored {
            Ok(stripe) => state.overlay.finish_sending(self.upload, &self.pieces, &Arc::new(stripe)),
            Err(_) => {
                // The bytes are still staged: the next commit sends them, and reports the failure if it lasts.
                state.overlay.stop_sending(|upload| upload == self.upload);
                state.background = Background::Waits;
            }
        }
    }
}

/// Stores pieces as one stripe, one after the other.
///
/// # Errors
/// If staged bytes cannot be read, or what [`StripeIo::write`] reports.
pub(super) async fn store(stripes: &StripeIo, profile: Profile, pieces: &[Piece]) -> Result<Stripe> {
    let data = gather(stripes, pieces).await?;
    stripes.write(StripeShape::for_content(profile, data.len() as u64), data).await
}

/// The bytes of pieces, one after the other.
///
/// # Errors
/// If staged bytes cannot be read, or bytes that were sent before cannot be fetched again.
pub(super) async fn gather(stripes: &StripeIo, pieces: &[Piece]) -> Result<Bytes> {
    let total: u64 = pieces.iter().map(Piece::len).sum();
    let mut out = BytesMut::with_capacity(total as usize);
    let mut staged: Vec<Piece> = Vec::new();
    for piece in pieces {
        match &piece.source {
            Source::Staged { .. } | Source::Sending { .. } => staged.push(piece.clone()),
            Source::Sent { stripe, at } => {
                out = append_staged(out, std::mem::take(&mut staged)).await?;
                out.extend_from_slice(&stripes.read(stripe, *at..*at + piece.len() as u32).await?);
            }
            Source::Hole { .. } => return Err(Error::new(Kind::InvalidInput, "a hole has no bytes to store")),
        }
    }
    Ok(append_staged(out, staged).await?.freeze())
}

async fn append_staged(mut out: BytesMut, pieces: Vec<Piece>) -> Result<BytesMut> {
    let all_memory = pieces.iter().all(|piece| match &piece.source {
        Source::Staged { block, .. } | Source::Sending { block, .. } => block.is_memory(),
        Source::Sent { .. } | Source::Hole { .. } => true,
    });
    let append = move || {
        for piece in &pieces {
            if let Source::Staged { block, at } | Source::Sending { block, at, .. } = &piece.source {
                let start = out.len();
                out.resize(start + piece.len() as usize, 0);
                block.read(*at as usize, &mut out[start..])?;
            }
        }
        Ok(out)
    };
    if all_memory { append() } else { blocking(append).await }
}

/// Runs work that may wait for a disk away from the runtime's threads.
///
/// # Errors
/// What the work reports; `Cancelled` if the runtime shuts down.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::caused(Kind::Cancelled, "work on a local file was given up", error)),
    }
}

impl super::Client {
    /// Leave to hold a stripe of so many bytes in memory on its way into the cluster.
    pub(super) async fn upload_permit(&self, bytes: u64) -> Option<tokio::sync::OwnedSemaphorePermit> {
        let permits: Arc<Semaphore> = self.inner.uploads.clone();
        let units = bytes.div_ceil(UPLOAD_UNIT_BYTES).clamp(1, UPLOAD_UNITS_PER_STRIPE_MAX);
        permits.acquire_many_owned(units as u32).await.ok()
    }
}
