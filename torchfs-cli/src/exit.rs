//! How a command ends: [`Exit`], the documented exit codes, and [`Failure`], which also says what happened and what to do next.

use std::fmt;
use std::io;
use std::process::ExitCode;
use torchfs_core::{Error, Kind};

/// The exit codes. Scripts rely on them: numbers are never given a new meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    Ok = 0,
    Failed = 1,
    Usage = 2,
    NotFound = 3,
    Exists = 4,
    Permission = 5,
    Unavailable = 6,
    DataLoss = 7,
    NoSpace = 8,
    WrongPeer = 9,
    WrongType = 10,
    Interrupted = 130,
}

impl Exit {
    const ALL: [Exit; 12] = [
        Exit::Ok,
        Exit::Failed,
        Exit::Usage,
        Exit::NotFound,
        Exit::Exists,
        Exit::Permission,
        Exit::Unavailable,
        Exit::DataLoss,
        Exit::NoSpace,
        Exit::WrongPeer,
        Exit::WrongType,
        Exit::Interrupted,
    ];

    /// The exit of this number.
    pub fn from_code(code: u8) -> Option<Exit> {
        Exit::ALL.into_iter().find(|exit| *exit as u8 == code)
    }
}

/// The table at the end of `torchfs --help`.
pub const EXIT_CODES: &str = "\
Exit codes:
  0    done
  1    failed for a reason that is not below
  2    wrong usage: flags, arguments, or a request that makes no sense
  3    not found
  4    exists already, or a port is in use
  5    permission denied, or read-only
  6    unavailable: too few nodes answer, or a deadline passed; repeat later
  7    data lost or corrupt
  8    no space left
  9    wrong cluster, not TorchFS, or another version of it
  10   a folder where a file is expected or the reverse, or a folder not empty
  130  interrupted";

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::InvalidInput | Kind::NameTooLong => Exit::Usage,
            Kind::NotFound | Kind::NoAttribute => Exit::NotFound,
            Kind::Exists => Exit::Exists,
            Kind::PermissionDenied | Kind::NotPermitted | Kind::ReadOnly => Exit::Permission,
            Kind::Unavailable | Kind::Timeout => Exit::Unavailable,
            Kind::Corrupt | Kind::DataLoss => Exit::DataLoss,
            Kind::NoSpace => Exit::NoSpace,
            Kind::WrongCluster | Kind::Protocol => Exit::WrongPeer,
            Kind::NotDirectory | Kind::IsDirectory | Kind::NotEmpty => Exit::WrongType,
            Kind::Cancelled => Exit::Interrupted,
            Kind::FileTooLarge
            | Kind::TooManyLinks
            | Kind::SymlinkLoop
            | Kind::TooLarge
            | Kind::Unsupported
            | Kind::Stale
            | Kind::Conflict
            | Kind::Io => Exit::Failed,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// A command that did not succeed: its exit code, what is said about it, and the next step if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub exit: Exit,
    /// What it was about: a path, a pair of paths.
    pub about: Option<String>,
    /// Empty if everything was said already.
    pub message: String,
    pub hint: Option<String>,
}

/// The result of every verb.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without a next step.
    pub fn new(exit: Exit, message: impl Into<String>) -> Self {
        Failure { exit, about: None, message: message.into(), hint: None }
    }

    /// A request that makes no sense, like clap's own errors.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(Exit::Usage, message)
    }

    /// Nothing more to say; only the exit code counts.
    pub fn silent(exit: Exit) -> Self {
        Failure::new(exit, "")
    }

    /// The same failure with what the user can do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same failure without a next step, where many are listed.
    pub fn without_hint(mut self) -> Self {
        self.hint = None;
        self
    }

    /// The same failure, and what it is about, unless that was said already.
    pub fn context(mut self, about: impl fmt::Display) -> Self {
        let about = about.to_string();
        if self.about.is_none() && !self.message.is_empty() {
            if let Some(rest) = self.message.strip_prefix(&about).and_then(|rest| rest.strip_prefix(": ")) {
                self.message = rest.to_owned();
            }
            self.message = without_inode(&self.message).to_owned();
            self.about = Some(about);
        }
        self
    }

    /// The lines for stderr: `torchfs: VERB ABOUT: what happened`, and the hint.
    pub fn lines(&self, verb: &str) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.message.is_empty() {
            let about = self.about.as_ref().map(|about| format!(" {about}")).unwrap_or_default();
            lines.push(format!("torchfs: {verb}{about}: {}", self.message));
        }
        lines.extend(self.hint.iter().map(|hint| format!("  hint: {hint}")));
        lines
    }

    /// Says it on stderr and gives the exit code.
    pub fn report(&self, verb: &str) -> ExitCode {
        for line in self.lines(verb) {
            note!("{line}");
        }
        self.exit.into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = Exit::from(error.kind());
        Failure { hint: next_step(error.kind()).map(str::to_owned), ..Failure::new(exit, error.to_string()) }
    }
}

/// Writing to stdout failed. A reader that has seen enough (`torchfs ls | head`) is no failure worth a word.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::silent(Exit::Ok),
            _ => Error::io("write to stdout", error).into(),
        }
    }
}

/// What is said of an inode is said of the path that stands before it.
fn without_inode(message: &str) -> &str {
    let rest = message.strip_prefix("inode ").map(|rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
    rest.and_then(|rest| rest.strip_prefix(' ')).unwrap_or(message)
}

fn next_step(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::NoSpace => Some("`torchfs df` shows what is full; remove files or start one more `torchfs store`"),
        Kind::Unavailable | Kind::Timeout => {
            Some("`torchfs status` shows which nodes are down; nothing is lost by repeating")
        }
        Kind::DataLoss | Kind::Corrupt => Some("`torchfs status` shows damaged shards and nodes that are down"),
        Kind::WrongCluster | Kind::Protocol => Some("check the addresses in --meta or TORCHFS_META"),
        _ => None,
    }
}

/// Several independent pieces of work, where one failing does not stop the others: says each failure as it comes, and
/// ends with the exit code of the first.
#[derive(Debug)]
pub struct Tally {
    verb: &'static str,
    first: Option<Exit>,
}

impl Tally {
    pub fn new(verb: &'static str) -> Self {
        Tally { verb, first: None }
    }

    /// Takes note of how one piece ended.
    ///
    /// # Errors
    /// A reader of stdout that went away ends everything.
    pub fn note(&mut self, outcome: Outcome) -> Outcome {
        match outcome {
            Ok(()) => Ok(()),
            Err(failure) if failure.exit == Exit::Ok => Err(failure),
            Err(failure) => {
                failure.report(self.verb);
                self.first.get_or_insert(failure.exit);
                Ok(())
            }
        }
    }

    /// How it all ended.
    ///
    /// # Errors
    /// With the first failure's exit code.
    pub fn finish(self) -> Outcome {
        self.first.map_or(Ok(()), |exit| Err(Failure::silent(exit)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_code() {
        for exit in Exit::ALL {
            let number = (exit as u8).to_string();
            let listed = EXIT_CODES.lines().any(|line| line.split_whitespace().next() == Some(&number));
            assert!(listed, "{exit:?} = {number} is not in the help");
        }
        assert_eq!(EXIT_CODES.lines().count(), Exit::ALL.len() + 1);
    }

    #[test]
    fn kinds_lead_to_the_documented_codes() {
        let table = [
            (Kind::NotFound, 3),
            (Kind::Exists, 4),
            (Kind::PermissionDenied, 5),
            (Kind::Unavailable, 6),
            (Kind::Timeout, 6),
            (Kind::DataLoss, 7),
            (Kind::Corrupt, 7),
            (Kind::NoSpace, 8),
            (Kind::WrongCluster, 9),
            (Kind::Protocol, 9),
            (Kind::NotEmpty, 10),
            (Kind::IsDirectory, 10),
            (Kind::InvalidInput, 2),
            (Kind::Io, 1),
        ];
        for (kind, code) in table {
            assert_eq!(Exit::from(kind) as u8, code, "{kind:?}");
        }
    }

    #[test]
    fn the_verb_and_the_path_are_said_once() {
        let failure = Failure::from(Error::new(Kind::NotFound, "no such file")).context("/a").context("/outer");
        assert_eq!(failure.lines("put"), ["torchfs: put /a: no such file"]);
        let failure = Failure::from(Error::new(Kind::NotFound, "/a: no such file")).context("/a");
        assert_eq!(failure.lines("put"), ["torchfs: put /a: no such file"]);
        let failure = Failure::from(Error::new(Kind::IsDirectory, "inode 15 is a folder")).context("/a");
        assert_eq!(failure.lines("cat"), ["torchfs: cat /a: is a folder"]);
        let failure = Failure::usage("several sources need a folder").hint("make it first");
        assert_eq!(failure.lines("put"), ["torchfs: put: several sources need a folder", "  hint: make it first"]);
        assert!(Failure::silent(Exit::Failed).lines("put").is_empty());
    }

    #[test]
    fn a_tally_keeps_the_first_code() {
        let mut tally = Tally::new("rm");
        tally.note(Ok(())).expect("goes on");
        tally.note(Err(Failure::silent(Exit::NotFound))).expect("goes on");
        tally.note(Err(Failure::silent(Exit::Failed))).expect("goes on");
        assert_eq!(tally.finish().expect_err("failed").exit, Exit::NotFound);
        assert!(Tally::new("rm").finish().is_ok());
    }

    #[test]
    fn a_closed_pipe_is_quiet() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure, Failure::silent(Exit::Ok));
    }
}
