//! `torchfs completions`: a completion script on stdout.

use crate::args::{Cli, Completions};
use crate::exit::Outcome;
use crate::output;
use clap::CommandFactory;
use std::io::Write;

pub fn run(args: Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "torchfs", &mut script);
    let mut out = output::stdout();
    out.write_all(&script)?;
    Ok(out.flush()?)
}
