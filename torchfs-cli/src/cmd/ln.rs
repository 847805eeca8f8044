//! `torchfs ln`: hard and symbolic links.

use super::{Target, connect};
use crate::args::{Global, Ln, Remote};
use crate::exit::{Failure, Outcome};
use std::os::unix::ffi::OsStrExt;

pub async fn run(global: &Global, args: Ln) -> Outcome {
    let client = connect(global).await?;
    let last = args
        .target
        .as_bytes()
        .rsplit(|&byte| byte == b'/')
        .find(|part| !part.is_empty())
        .map(std::ffi::OsStr::from_bytes);
    let path = Target::find(&client, args.path, 1).await?.path(last)?;
    let made = if args.symbolic {
        client.symlink(args.target.as_bytes(), path.bytes()).await
    } else {
        let existing = Remote::parse(&args.target).map_err(Failure::usage)?;
        client.link(existing.bytes(), path.bytes()).await
    };
    made.map(|_| ()).map_err(|error| Failure::from(error).context(path))
}
