//! `torchfs rm`.

use super::connect;
use crate::args::{Global, Remote, Rm};
use crate::exit::{Exit, Failure, Outcome, Tally};
use torchfs_core::meta::FileKind;
use torchfs_core::{Client, Kind};

pub async fn run(global: &Global, args: Rm) -> Outcome {
    let client = connect(global).await?;
    let mut tally = Tally::new("rm");
    for path in &args.paths {
        let removed = match args.recursive {
            true => remove_tree(&client, path).await,
            false => remove_file(&client, path).await,
        };
        tally.note(removed.map_err(|failure| failure.context(path)))?;
    }
    tally.finish()
}

async fn remove_file(client: &Client, path: &Remote) -> Outcome {
    match client.unlink(path.bytes()).await {
        Err(error) if matches!(error.kind(), Kind::IsDirectory | Kind::NotPermitted) => {
            let failure = Failure::new(Exit::WrongType, "is a folder");
            Err(failure.hint("add -r to remove it with everything in it"))
        }
        outcome => Ok(outcome?),
    }
}

async fn remove_tree(client: &Client, path: &Remote) -> Outcome {
    let attr = client.lstat(path.bytes()).await?;
    if attr.kind == FileKind::Directory {
        client.remove_all(path.bytes()).await?;
    } else {
        client.unlink(path.bytes()).await?;
    }
    Ok(())
}
