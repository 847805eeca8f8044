//! `torchfs umount`.

use super::recover::check_nothing_is_left;
use crate::args::Umount;
use crate::exit::{Failure, Outcome, Tally};
use std::path::PathBuf;
use torchfs_fuse::{InUse, unmount};

pub async fn run(args: Umount) -> Outcome {
    let in_use = if args.lazy { InUse::Detach } else { InUse::Refuse };
    let mut tally = Tally::new("umount");
    for mountpoint in args.mountpoints {
        tally.note(one(mountpoint, in_use).await)?;
    }
    tally.finish()
}

async fn one(mountpoint: PathBuf, in_use: InUse) -> Outcome {
    let shown = mountpoint.display().to_string();
    // What it says names the mountpoint, and what to do about it.
    let unmounted = unmount(mountpoint, in_use).await.map_err(|error| Failure::from(error).without_hint())?;
    match (unmounted.cache_dir, unmounted.pid) {
        (Some(cache_dir), Some(pid)) => {
            check_nothing_is_left(&cache_dir, pid).map_err(|failure| failure.context(shown))
        }
        _ => Ok(()),
    }
}
