//! `torchfs umount`.

use crate::args::Umount;
use crate::exit::{Failure, Outcome, Tally};
use crate::output::printable;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use torchfs_core::{Error, Kind};
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
    let shown = printable(mountpoint.as_os_str().as_bytes());
    let unmounted = tokio::task::spawn_blocking(move || unmount(&mountpoint, in_use)).await;
    let unmounted = unmounted.unwrap_or_else(|_| Err(Error::new(Kind::Io, "the unmount failed")));
    unmounted.map_err(|error| Failure::from(error).without_hint().context(shown))
}
