//! `torchfs`: clusters, mounts and files from the command line. Thin: the work is done by the library crates.

/// A line for people on stderr, which may be a pipe that nobody reads any more.
macro_rules! note {
    ($($arg:tt)*) => {{
        let line = format!($($arg)*);
        let _ = std::io::Write::write_all(&mut std::io::stderr(), (line + "\n").as_bytes());
    }};
}

mod args;
mod cmd;
mod exit;
mod memory;
mod output;
mod progress;
mod signal;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    memory::give_back();
    let words: Vec<_> = std::env::args_os().collect();
    let cli = args::Cli::parse_from(args::helper(&words).unwrap_or(words));
    let verb = cli.verb.name();
    match cmd::run(cli) {
        Ok(()) => exit::Exit::Ok.into(),
        Err(failure) => failure.report(verb),
    }
}
