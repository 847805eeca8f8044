//! Committing: the staged rest into stripes, then one metadata operation that makes all of it visible at once.

use super::File;
use super::content::{Base, Origin};
use super::open_file::{Background, OpenFile, SizeChange};
use super::overlay::{Piece, Source};
use super::small::{SmallWrites, Stored};
use super::spans::{self, Plan};
use super::write::{gather, store};
use crate::error::{Error, Kind, Result};
use crate::ids::StripeId;
use crate::layout::{Extent, ExtentMap, Profile, Stripe};
use crate::meta::{Attr, AttrChange, ContentChange, MetaOp, MetaReply, SetTime};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many stripes one commit sends at a time.
const COMMIT_UPLOADS: usize = 2;

/// What a commit has to store.
struct Frozen {
    number: u64,
    pieces: Vec<Piece>,
    change: SizeChange,
}

/// Undoes the beginning of a commit, unless it succeeded, also when its future is dropped.
struct Undo<'a> {
    open: Option<&'a OpenFile>,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Some(open) = self.open {
            open.state().thaw();
        }
    }
}

/// Stripes to name in a commit and the extents in them.
#[derive(Default)]
struct Named {
    extents: Vec<Extent>,
    stripes: BTreeMap<StripeId, Stripe>,
}

impl Named {
    /// Adds pieces that lie one after the other in a stripe, the first at `at`.
    fn add(&mut self, stripe: &Stripe, mut at: u32, pieces: &[Piece]) {
        for piece in pieces {
            let len = piece.len() as u32;
            self.extents.push(Extent { offset: piece.range.start, len, stripe: stripe.id, stripe_offset: at });
            at += len;
        }
        self.stripes.insert(stripe.id, stripe.clone());
    }
}

/// What to do with bytes that were sent in the background.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sent {
    /// Name the stripes they are in.
    Name,
    /// Write them into new stripes: the old ones were given up.
    Again,
}

impl File {
    pub(super) async fn commit_staged(&self) -> Result<Attr> {
        let turn = self.open.commit_turn.acquire().await;
        let _turn = turn.map_err(|error| Error::caused(Kind::Cancelled, "wait for another commit", error))?;
        if !self.is_dirty() {
            return Ok(self.attr());
        }
        let committed = self.commit_once().await;
        match &committed {
            Ok(_) => self.forget_aside().await,
            Err(error) => self.set_aside(error).await,
        }
        committed
    }

    async fn commit_once(&self) -> Result<Attr> {
        let mut undo = Undo { open: Some(&self.open) };
        let mut tasks = {
            let mut state = self.open.state();
            state.background = Background::Waits;
            std::mem::take(&mut state.tasks)
        };
        while tasks.join_next().await.is_some() {}
        let (number, pieces, change) = self.open.state().freeze();
        let frozen = Frozen { number, pieces, change };
        let (change, attr) = match self.store_and_name(&frozen, Sent::Name).await {
            Err(error) if error.kind() == Kind::Stale => self.store_and_name(&frozen, Sent::Again).await?,
            done => done?,
        };
        undo.open = None;
        let base = self.new_base(&change, attr).await;
        let attr = base.attr.clone();
        let named = |stripe: &Stripe| frozen.has_sent(stripe.id);
        self.open.state().committed(frozen.number, named, Arc::new(base));
        Ok(attr)
    }

    async fn store_and_name(&self, frozen: &Frozen, sent: Sent) -> Result<(ContentChange, Attr)> {
        let named = self.store_pieces(frozen, sent).await?;
        let change = ContentChange {
            keep_bytes: frozen.change.keep,
            extents: ExtentMap::new(named.extents).extents().to_vec(),
            holes: frozen.holes(),
            stripes: named.stripes.into_values().collect(),
            size_min: frozen.change.size_min,
            mtime: frozen.change.mtime.unwrap_or(SetTime::Now),
        };
        let attr = self.name(change.clone(), frozen.change.attrs.clone()).await?;
        Ok((change, attr))
    }

    /// The metadata operation: content alone, or with attributes that were set meanwhile.
    async fn name(&self, change: ContentChange, attrs: AttrChange) -> Result<Attr> {
        let ino = self.ino();
        if attrs == AttrChange::default() {
            return self.client.meta().commit(ino, change).await;
        }
        let ops = vec![MetaOp::Commit { ino, change }, MetaOp::SetAttr { ino, change: attrs }];
        let replies: Result<Vec<MetaReply>> = self.client.meta().batch(ops).await?.into_iter().collect();
        match replies?.pop() {
            Some(MetaReply::Attr(attr)) => Ok(attr),
            other => Err(Error::new(Kind::Protocol, format!("metadata answered a commit with {other:?}"))),
        }
    }

    async fn store_pieces(&self, frozen: &Frozen, sent: Sent) -> Result<Named> {
        let mut named = Named::default();
        let Plan { mut name, mut write } = self.plan(frozen).await;
        if sent == Sent::Again {
            write.append(&mut name);
            write.sort_by_key(|piece| piece.range.start);
        }
        for piece in &name {
            if let Source::Sent { stripe, at } = &piece.source {
                named.add(stripe, *at, std::slice::from_ref(piece));
            }
        }
        if write.is_empty() {
            return Ok(named);
        }
        let profile = self.open.profile()?;
        let bytes = write.iter().map(Piece::len).sum();
        if SmallWrites::takes(bytes) {
            let _permit = self.client.upload_permit(bytes).await;
            let data = gather(self.client.stripes(), &write).await?;
            let Stored { stripe, offset } = self.client.inner.small.write(profile, data).await?;
            named.add(&stripe, offset, &write);
            return Ok(named);
        }
        let uploads: Vec<BoxFuture<'_, _>> =
            chunks(profile, write).into_iter().map(|chunk| self.store_chunk(profile, chunk).boxed()).collect();
        let mut uploads = stream::iter(uploads).buffer_unordered(COMMIT_UPLOADS);
        let mut uploaded = Vec::new();
        while let Some(done) = uploads.next().await {
            match done {
                Ok((stripe, chunk)) => {
                    named.add(&stripe, 0, &chunk);
                    uploaded.push(stripe);
                }
                Err(error) => {
                    // The next commit writes all of it again.
                    self.client.stripes().discard(&uploaded);
                    return Err(error);
                }
            }
        }
        Ok(named)
    }

    /// What to store and what to name. A span that is written anew takes what is underneath from the newest version, so
    /// that it does not undo what another client committed there meanwhile.
    async fn plan(&self, frozen: &Frozen) -> Plan {
        let keep = frozen.change.keep;
        let latest = self.open.state().latest.clone();
        let mut spans = spans::crowded(&latest, keep, &frozen.pieces);
        if spans.is_empty() {
            return spans::plan(&latest, keep, &frozen.pieces, &spans);
        }
        match self.client.meta().open(self.ino()).await {
            Ok((attr, content)) => {
                let newest = Base::new(attr, content);
                spans::plan(&newest, keep, &frozen.pieces, &spans)
            }
            // Writing spans anew can wait for a later commit.
            Err(_) => {
                spans.clear();
                spans::plan(&latest, keep, &frozen.pieces, &spans)
            }
        }
    }

    async fn store_chunk(&self, profile: Profile, chunk: Vec<Piece>) -> Result<(Stripe, Vec<Piece>)> {
        let _permit = self.client.upload_permit(chunk.iter().map(Piece::len).sum()).await;
        Ok((store(self.client.stripes(), profile, &chunk).await?, chunk))
    }

    /// The version that a commit made. Metadata is asked only if somebody else committed in between.
    async fn new_base(&self, change: &ContentChange, attr: Attr) -> Base {
        let latest = self.open.state().latest.clone();
        let base = latest.changed(change, attr);
        if base.origin == Origin::Cluster {
            return base;
        }
        match self.client.meta().open(self.ino()).await {
            Ok((attr, content)) => Base::new(attr, content),
            // The commit itself has succeeded.
            Err(_) => base,
        }
    }
}

impl Frozen {
    fn holes(&self) -> Vec<(u64, u64)> {
        let holes = self.pieces.iter().filter(|piece| piece.is_hole());
        holes.map(|piece| (piece.range.start, piece.len())).collect()
    }

    fn has_sent(&self, id: StripeId) -> bool {
        self.pieces.iter().any(|piece| matches!(&piece.source, Source::Sent { stripe, .. } if stripe.id == id))
    }
}

/// Packs pieces in order into runs of at most one stripe: many little ranges share one.
fn chunks(profile: Profile, pieces: Vec<Piece>) -> Vec<Vec<Piece>> {
    let stripe_bytes = profile.stripe_bytes_max();
    let mut chunks: Vec<Vec<Piece>> = Vec::new();
    let mut room = 0;
    for piece in pieces {
        let mut rest = piece.range.clone();
        while !rest.is_empty() {
            if room == 0 {
                chunks.push(Vec::new());
                room = stripe_bytes;
            }
            let end = rest.end.min(rest.start.saturating_add(room));
            room -= end - rest.start;
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(piece.slice(&(rest.start..end)));
            }
            rest.start = end;
        }
    }
    chunks
}
