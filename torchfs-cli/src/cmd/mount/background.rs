//! A mount that outlives its command: this program starts itself again in a session of its own, and waits until that
//! process says on its stdout that the mount is usable, or why it is not.

use super::cache_dir;
use crate::args::{Global, Mount};
use crate::exit::{Exit, Failure, Outcome};
use crate::signal::StopSignals;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use torchfs_core::IoContext;
use torchfs_core::settings::META_DEADLINE;

/// What the serving process says when the mount is usable; anything else it says is the failure.
const USABLE: &str = "usable\n";

/// Connecting takes at most a metadata deadline; the mount and its first answer follow.
const START_DEADLINE: Duration = META_DEADLINE.saturating_add(Duration::from_secs(15));

/// Starts the serving process and returns when the mount is usable.
pub async fn start(global: &Global, args: &Mount) -> Outcome {
    // What can be said about the command line is said here.
    let metas = super::metas(global)?.join(",");
    let mountpoint = super::mountpoint(global, args).await?;
    let dir = cache_dir(args, &mountpoint)?;
    let log = dir.join("mount.log");
    let mut child = spawn(global, args, &metas, &dir, open_log(&log)?)?;
    let said = match tokio::time::timeout(START_DEADLINE, first_words(&mut child)).await {
        Ok(said) => said.io(|| "read from the mount in the background")?,
        Err(_) => {
            child.start_kill().io(|| "stop the mount in the background")?;
            let message = format!("the mount is not usable after {} s", START_DEADLINE.as_secs());
            return Err(Failure::new(Exit::Unavailable, message));
        }
    };
    if said == USABLE {
        if !global.quiet {
            note!("mounted on {}; what goes wrong is told in {}", mountpoint.display(), log.display());
        }
        return Ok(());
    }
    Err(decode(&said).unwrap_or_else(|| {
        let message = format!("the mount in the background ended at once; its log is {}", log.display());
        Failure::new(Exit::Failed, message)
    }))
}

fn spawn(global: &Global, args: &Mount, metas: &str, cache_dir: &Path, log: File) -> Outcome<Child> {
    let program = std::env::current_exe().io(|| "find this program")?;
    let mut command = Command::new(program);
    command.arg("mount").arg("--serve-background").arg("--cache-size").arg(args.cache_size().to_string());
    command.arg("--eviction").arg(args.eviction().name()).arg("--prefetch").arg(args.prefetch().name());
    command.arg("--cache-dir").arg(cache_dir).arg("--meta").arg(metas);
    if args.is_read_only() {
        command.arg("-oro");
    }
    if !args.passes_through() {
        command.arg("-onopassthrough");
    }
    if !args.keeps_awake() {
        command.arg("-onoawake");
    }
    if let Some(allow) = args.allow_other() {
        command.arg(if allow { "-oallow_other" } else { "-onoallow_other" });
    }
    if let Some(filter) = &global.log {
        command.arg("--log").arg(filter);
    }
    command.arg("--").arg(&args.mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    Ok(command.spawn().io(|| "start the mount in the background")?)
}

fn open_log(path: &Path) -> Outcome<File> {
    Ok(OpenOptions::new().create(true).append(true).open(path).io(|| format!("open {}", path.display()))?)
}

/// All it says, up to the word that the mount is usable.
async fn first_words(child: &mut Child) -> io::Result<String> {
    let mut said = Vec::new();
    if let Some(stdout) = &mut child.stdout {
        while said != USABLE.as_bytes() && stdout.read_buf(&mut said).await? > 0 {}
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// The serving process: leaves the terminal's session, mounts, says so, and serves until it is unmounted or stopped.
pub async fn serve(global: &Global, args: &Mount, stop: &mut StopSignals) -> Outcome {
    // It fails only for a process that leads its group already, which is as good.
    let _ = rustix::process::setsid();
    let Some(started) = stop.before(Box::pin(super::start(global, args))).await else { return Ok(()) };
    let served = match started {
        Ok(served) => served,
        Err(failure) => {
            let exit = failure.exit;
            say(&encode(&failure))?;
            return Err(Failure::silent(exit));
        }
    };
    say(USABLE)?;
    // The mountpoint's parent and this folder must stay free to be unmounted.
    std::env::set_current_dir("/").io(|| "leave the current folder")?;
    served.until_stopped(stop).await
}

fn say(text: &str) -> Outcome {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}

fn encode(failure: &Failure) -> String {
    let (about, hint) = (failure.about.as_deref().unwrap_or_default(), failure.hint.as_deref().unwrap_or_default());
    format!("{}\0{about}\0{}\0{hint}", failure.exit as u8, failure.message)
}

fn decode(text: &str) -> Option<Failure> {
    let mut parts = text.split('\0');
    let exit = Exit::from_code(parts.next()?.parse().ok()?)?;
    let mut optional = || Some(parts.next()?.to_owned());
    let (about, message, hint) = (optional()?, optional()?, optional()?);
    let some = |text: String| (!text.is_empty()).then_some(text);
    Some(Failure { exit, about: some(about), message, hint: some(hint) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_survives_the_pipe() {
        let failure = Failure::usage("no such\nfolder").hint("make it");
        assert_eq!(decode(&encode(&failure)), Some(failure));
        let failure = Failure::new(Exit::Unavailable, "m").context("/mnt");
        assert_eq!(decode(&encode(&failure)), Some(failure));
        assert_eq!(decode("thread panicked"), None);
        assert_eq!(decode(""), None);
    }
}
