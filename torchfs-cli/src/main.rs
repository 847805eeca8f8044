//! `torchfs`: clusters, mounts and files from the command line. Thin: the work is done by the library crates.

mod args;
mod cmd;
mod exit;
mod output;
mod progress;
mod signal;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = args::Cli::parse();
    let verb = cli.verb.name();
    match cmd::run(cli) {
        Ok(()) => exit::Exit::Ok.into(),
        Err(failure) => failure.report(verb),
    }
}
