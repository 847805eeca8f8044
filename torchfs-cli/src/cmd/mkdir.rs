//! `torchfs mkdir`.

use super::connect;
use crate::args::{Global, Mkdir};
use crate::exit::{Failure, Outcome, Tally};

pub async fn run(global: &Global, args: Mkdir) -> Outcome {
    let client = connect(global).await?;
    let mut tally = Tally::new("mkdir");
    for path in &args.paths {
        let made = match args.parents {
            true => client.mkdir_all(path.bytes()).await,
            false => client.mkdir(path.bytes()).await,
        };
        tally.note(made.map(|_| ()).map_err(|error| Failure::from(error).context(path)))?;
    }
    tally.finish()
}
