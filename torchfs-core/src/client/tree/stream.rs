//! One file from or to a stream whose length is not known: `put -`, `get -`, and files that do not tell their length.

use super::super::Client;
use super::super::pack::content_bytes_per_stripe;
use super::plan::pieces;
use super::{BYTES_IN_FLIGHT, stripes_in_flight};
use crate::error::{Context, Error, IoContext, Kind, Result};
use crate::layout::{Extent, Profile, Stripe, StripeShape};
use crate::meta::{Attr, ContentChange, FileKind, IfExists, MetaOp, NewInode, NewKind, SetTime};
use crate::settings::SHARD_BYTES_MAX;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;

/// Pieces fetched ahead of the one that is written.
const PIECES_AHEAD: usize = BYTES_IN_FLIGHT as usize / SHARD_BYTES_MAX;

/// See [`Client::put_reader`].
pub(super) async fn put_reader(
    client: &Client,
    mut reader: impl AsyncRead + Unpin + Send,
    target: &[u8],
    mode: u32,
) -> Result<Attr> {
    let shown = || String::from_utf8_lossy(target).into_owned();
    let resolved = client.meta().resolve(target).await.context(shown)?;
    if resolved.attr.is_some_and(|attr| attr.kind == FileKind::Directory) {
        return Err(Error::new(Kind::IsDirectory, format!("{}: a folder is there already", shown())));
    }
    let name = resolved.name.ok_or_else(|| Error::new(Kind::IsDirectory, "the root is a folder"))?;
    let (profile, _) = client.meta().profile(resolved.parent).await?;
    let content = store(client, profile, &mut reader).await.context(shown)?.content(SetTime::Now).context(shown)?;
    let (uid, gid) = client.inner.owner;
    let inode = NewInode { kind: NewKind::File, mode: mode & 0o7777, uid, gid, mtime: None };
    let if_exists = IfExists::Replace;
    let op = MetaOp::Create { parent: resolved.parent, name, inode, if_exists, content: Some(content) };
    client.meta().apply_for_attr(op).await.context(shown)
}

/// A stream's content on storage nodes, of which metadata knows nothing yet.
#[derive(Debug)]
pub(super) struct Streamed {
    size: u64,
    extents: Vec<Extent>,
    stripes: Vec<Stripe>,
    /// How reading it ended.
    ended: Result<()>,
}

impl Streamed {
    /// What makes it the whole content of a file.
    ///
    /// # Errors
    /// That of the stream, if it did not end well.
    pub fn content(self, mtime: SetTime) -> Result<ContentChange> {
        self.ended?;
        let (extents, stripes, size_min) = (self.extents, self.stripes, self.size);
        Ok(ContentChange { keep_bytes: Some(0), extents, holes: Vec::new(), stripes, size_min, mtime })
    }
}

/// Stores what a stream gives, a stripe at a time.
///
/// # Errors
/// Those of the cluster; that of the stream is inside the result.
pub(super) async fn store(
    client: &Client,
    profile: Profile,
    mut reader: impl AsyncRead + Unpin + Send,
) -> Result<Streamed> {
    let mut writes = JoinSet::new();
    let mut stored = Vec::new();
    let mut size = 0;
    let ended = loop {
        let data = match read_full(&mut reader, content_bytes_per_stripe(profile) as usize).await {
            Ok(data) if data.is_empty() => break Ok(()),
            Ok(data) => data,
            Err(error) => break Err(error),
        };
        while writes.len() >= stripes_in_flight(profile) {
            stored.extend(next_stored(&mut writes).await?);
        }
        let (offset, len) = (size, data.len() as u64);
        let stripes = client.stripes().clone();
        writes.spawn(async move {
            let stripe = stripes.write(StripeShape::for_content(profile, len), data).await?;
            let extent = Extent { offset, len: len as u32, stripe: stripe.id, stripe_offset: 0 };
            Ok((extent, stripe))
        });
        size += len;
    };
    while let Some(one) = next_stored(&mut writes).await? {
        stored.push(one);
    }
    stored.sort_unstable_by_key(|(extent, _)| extent.offset);
    let (extents, stripes) = stored.into_iter().unzip();
    Ok(Streamed { size, extents, stripes, ended })
}

/// Reads until `bytes` are there or the stream ends.
async fn read_full(reader: &mut (impl AsyncRead + Unpin), bytes: usize) -> Result<Bytes> {
    let mut data = BytesMut::new();
    while data.len() < bytes {
        // Grown as needed: a stream of ten bytes should not take a stripe of memory.
        data.reserve((bytes - data.len()).min(data.len().max(64 << 10)));
        let room = bytes - data.len();
        if (&mut *reader).take(room as u64).read_buf(&mut data).await.io(|| "read the stream")? == 0 {
            break;
        }
    }
    Ok(data.freeze())
}

type Stored = (Extent, Stripe);

async fn next_stored(writes: &mut JoinSet<Result<Stored>>) -> Result<Option<Stored>> {
    writes.join_next().await.map(|done| super::joined(done)?).transpose()
}

/// What a stream consists of, in order.
#[derive(Debug)]
enum Part {
    Hole(u64),
    Data(Arc<Stripe>, Range<u32>),
}

/// See [`Client::get_writer`].
pub(super) async fn get_writer(
    client: &Client,
    source: &[u8],
    mut writer: impl AsyncWrite + Unpin + Send,
) -> Result<u64> {
    let shown = || String::from_utf8_lossy(source).into_owned();
    let resolved = client.meta().resolve(source).await.context(shown)?;
    let found = resolved.attr.ok_or_else(|| Error::new(Kind::NotFound, format!("{}: no such file", shown())))?;
    match found.kind {
        FileKind::File => {}
        FileKind::Directory => return Err(Error::new(Kind::IsDirectory, format!("{}: is a folder", shown()))),
        _ => return Err(Error::new(Kind::InvalidInput, format!("{}: is no regular file", shown()))),
    }
    let (attr, content) = client.meta().open(found.ino).await.context(shown)?;
    let stripes = content.stripes.into_iter().map(|stripe| (stripe.id, Arc::new(stripe))).collect();
    let parts = parts(attr.size, &content.extents, &stripes).context(shown)?;
    let fetch = |part| async {
        match part {
            Part::Hole(len) => Ok((len, Bytes::new())),
            Part::Data(stripe, range) => client.stripes().read(&stripe, range).await.map(|data| (0, data)),
        }
    };
    let mut fetched = stream::iter(parts).map(fetch).buffered(PIECES_AHEAD);
    while let Some(part) = fetched.next().await {
        let (hole, data) = part.context(shown)?;
        write_zeros(&mut writer, hole).await.io(|| "write the stream")?;
        writer.write_all(&data).await.io(|| "write the stream")?;
    }
    writer.flush().await.io(|| "write the stream")?;
    Ok(attr.size)
}

fn parts(size: u64, extents: &[Extent], stripes: &HashMap<crate::ids::StripeId, Arc<Stripe>>) -> Result<Vec<Part>> {
    let mut parts = Vec::new();
    let mut at = 0;
    for extent in extents {
        let stripe = stripes.get(&extent.stripe).ok_or_else(|| {
            Error::new(Kind::Protocol, format!("metadata gave an extent without its stripe {}", extent.stripe))
        })?;
        if extent.offset > at {
            parts.push(Part::Hole(extent.offset - at));
        }
        parts.extend(pieces(extent, stripe)?.into_iter().map(|(_, range)| Part::Data(Arc::clone(stripe), range)));
        at = extent.end();
    }
    if size > at {
        parts.push(Part::Hole(size - at));
    }
    Ok(parts)
}

async fn write_zeros(writer: &mut (impl AsyncWrite + Unpin), mut len: u64) -> std::io::Result<()> {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while len > 0 {
        let now = len.min(ZEROS.len() as u64);
        writer.write_all(&ZEROS[..now as usize]).await?;
        len -= now;
    }
    Ok(())
}
