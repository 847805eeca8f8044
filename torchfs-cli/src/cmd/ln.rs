//! `torchfs ln`: hard and symbolic links.

use super::{Target, connect};
use crate::args::{Global, Ln, Remote};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::printable;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use torchfs_core::{Error, Kind};

pub async fn run(global: &Global, args: Ln) -> Outcome {
    let client = connect(global).await?;
    let last = args.target.as_bytes().rsplit(|&byte| byte == b'/').find(|part| !part.is_empty()).map(OsStr::from_bytes);
    let path = Target::find(&client, args.path, 1).await?.path(last)?;
    let made = if args.symbolic {
        client.symlink(args.target.as_bytes(), path.bytes()).await
    } else {
        let existing = Remote::parse(&args.target).map_err(Failure::usage)?;
        client.link(existing.bytes(), path.bytes()).await
    };
    made.map(|_| ()).map_err(|error| refused(error, &args.target, &path))
}

fn refused(error: Error, target: &OsStr, path: &Remote) -> Failure {
    // Of all that is not permitted here, links in place of folders are the only kind that anybody may have.
    if error.kind() == Kind::NotPermitted {
        let target = printable(target.as_bytes());
        let failure = Failure::new(Exit::WrongType, "is a folder, and a folder has one name only").context(&target);
        return failure.hint(format!("make a symbolic link: torchfs ln -s {target} {path}"));
    }
    Failure::from(error).context(path)
}
