//! The watcher: what other clients change, the kernel is told to forget at once, instead of when its time is up.
//!
//! Nothing relies on it: what the kernel is told holds for a short time only. So whatever goes wrong here is passed over.
//!
//! To take a name back the kernel locks its folder, as long as a request on this folder is under way. Therefore the kernel
//! is told from a thread of its own, which holds nothing that a request could wait for, and only of names that it was told
//! within their time, which are few: a thread that waits inside the kernel would also keep a killed process from ending.

use crate::volume::Volume;
use fuser::{INodeNo, Notifier};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use torchfs_core::meta::{Change, Changes};

/// Time until the next attempt when metadata does not answer.
const PAUSE: Duration = Duration::from_secs(1);

/// Answers that wait for the kernel; further ones are left to time.
const WAITING_MAX: usize = 64;

/// Watches until it is dropped.
pub async fn run(volume: Arc<Volume>, notifier: Notifier) {
    let (to_tell, told) = mpsc::channel(WAITING_MAX);
    tokio::join!(watch(&volume, to_tell), tell(&volume, told, notifier));
}

async fn watch(volume: &Volume, to_tell: mpsc::Sender<Vec<Change>>) {
    let mut seen = None;
    loop {
        match volume.meta().watch(seen).await {
            Ok(changes) => {
                seen = Some(changes.upto);
                let forget = to_forget(volume, changes);
                if !forget.is_empty() {
                    // What finds no room is forgotten when its time is up.
                    let _ = to_tell.try_send(forget);
                }
            }
            Err(error) => {
                tracing::debug!("changes of others show later: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What others changed of what the kernel knows.
fn to_forget(volume: &Volume, changes: Changes) -> Vec<Change> {
    let own = volume.meta().client();
    let others = changes.changed.into_iter().flatten().filter(|changed| changed.by.client != own);
    let mut forget: Vec<Change> =
        others.flat_map(|changed| changed.what).filter(|change| volume.told.take(change)).collect();
    // Where readers keep the version that they have, the new one is found by name only.
    let names = |change: &Change| match change {
        Change::Inode(ino) if volume.handles.will_keep(*ino) => volume.told.take_names(*ino),
        _ => Vec::new(),
    };
    let names: Vec<Change> = forget.iter().flat_map(names).collect();
    forget.extend(names);
    forget
}

async fn tell(volume: &Arc<Volume>, mut told: mpsc::Receiver<Vec<Change>>, notifier: Notifier) {
    while let Some(changes) = told.recv().await {
        let (volume, notifier) = (volume.clone(), notifier.clone());
        // One at a time, so that at most one thread waits inside the kernel.
        let telling =
            tokio::task::spawn_blocking(move || changes.iter().for_each(|change| forget(&volume, &notifier, change)));
        if telling.await.is_err() {
            return;
        }
    }
}

/// The kernel forgets an inode's attributes, or a name. Pages stay: they belong to the version that is open.
fn forget(volume: &Volume, notifier: &Notifier, change: &Change) {
    match change {
        Change::Inode(ino) => volume.forget_attributes(volume.handles.nodes(*ino)),
        Change::Name(parent, name) => {
            if let Err(error) = notifier.inval_entry(INodeNo(parent.0), OsStr::from_bytes(name.as_bytes())) {
                tracing::debug!("the kernel keeps what it knows of {name} for a moment: {error}");
            }
        }
    }
}
