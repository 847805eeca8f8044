//! Walking a folder's tree, level by level, several folders at a time.

use crate::args::Remote;
use crate::exit::{Failure, Outcome};
use futures::{StreamExt, stream};
use torchfs_core::Client;
use torchfs_core::meta::{DirEntry, FileKind};

/// Listings under way at a time: enough to hide the round trip, few enough to leave the leader to others.
const LISTINGS: usize = 8;

/// Calls `visit` with every folder below and including `root`, and its entries. Folders above come first.
pub async fn walk(client: &Client, root: &Remote, mut visit: impl FnMut(&Remote, &[DirEntry]) -> Outcome) -> Outcome {
    let mut level = vec![root.clone()];
    while !level.is_empty() {
        let mut below = Vec::new();
        let listings = level.into_iter().map(async |folder| {
            let entries = client.list(folder.bytes()).await;
            (folder, entries)
        });
        let mut listings = stream::iter(listings).buffered(LISTINGS);
        while let Some((folder, entries)) = listings.next().await {
            let entries = entries.map_err(|error| Failure::from(error).context(&folder))?;
            let folders = entries.iter().filter(|entry| entry.attr.kind == FileKind::Directory);
            below.extend(folders.map(|entry| folder.join(entry.name.as_bytes())));
            visit(&folder, &entries)?;
        }
        drop(listings);
        level = below;
    }
    Ok(())
}
