//! `torchfs mv`: rename(2), and into a folder as mv(1) does.

use super::{Target, connect, sources_and_target};
use crate::args::{Global, Mv, Remote};
use crate::exit::{Failure, Outcome, Tally};
use torchfs_core::Client;

pub async fn run(global: &Global, args: Mv) -> Outcome {
    let (sources, target) = sources_and_target(&args.paths)?;
    let client = connect(global).await?;
    let target = Target::find(&client, target, sources.len()).await?;
    let mut tally = Tally::new("mv");
    for source in sources {
        tally.note(rename(&client, source, &target).await)?;
    }
    tally.finish()
}

async fn rename(client: &Client, source: &Remote, target: &Target) -> Outcome {
    let target = target.path(source.file_name())?;
    let renamed = client.rename(source.bytes(), target.bytes()).await;
    renamed.map_err(|error| Failure::from(error).context(format!("{source} to {target}")))
}
