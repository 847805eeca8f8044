//! `torchfs umount`.

use crate::args::Umount;
use crate::exit::{Failure, Outcome, Tally};
use torchfs_fuse::{InUse, unmount};

pub async fn run(args: Umount) -> Outcome {
    let in_use = if args.lazy { InUse::Detach } else { InUse::Refuse };
    let mut tally = Tally::new("umount");
    for mountpoint in args.mountpoints {
        // What it says names the mountpoint, and what to do about it.
        let unmounted = unmount(mountpoint, in_use).await;
        tally.note(unmounted.map_err(|error| Failure::from(error).without_hint()))?;
    }
    tally.finish()
}
