//! The one public error. Its [`Kind`] tells the caller what to do next; its text tells a person what happened to what.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::sync::Arc;

/// The result of everything in TorchFS that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure this is, which is to say what the caller can do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// No such file, folder, node or shard.
    NotFound,
    /// The name is taken.
    Exists,
    /// A folder is needed and something else is there.
    NotDirectory,
    /// A folder is there and something else is needed.
    IsDirectory,
    /// The folder has entries.
    NotEmpty,
    /// The request makes no sense as given; do not repeat it.
    InvalidInput,
    /// A name is longer than 255 bytes, a path or link target longer than 4095.
    NameTooLong,
    /// A file would be larger than the file system can hold.
    FileTooLarge,
    /// The caller lacks the permission bits (EACCES).
    PermissionDenied,
    /// The operation is not allowed at all to this caller or on this object (EPERM).
    NotPermitted,
    /// An inode has as many links as it can have.
    TooManyLinks,
    /// Too many symbolic links on the way.
    SymlinkLoop,
    /// The extended attribute does not exist.
    NoAttribute,
    /// A limit on the size of a value was passed (ERANGE, E2BIG).
    TooLarge,
    /// The mount or the cluster takes no writes.
    ReadOnly,
    /// Nothing here does this.
    Unsupported,
    /// Disks are full: free space or add a node, then repeat.
    NoSpace,
    /// What the caller holds was replaced or collected meanwhile: open again.
    Stale,
    /// Another change came first: read again and repeat.
    Conflict,
    /// Too few nodes answer. Repeat later, nothing is lost.
    Unavailable,
    /// A deadline passed; the outcome is not known unless the request is retried under its id.
    Timeout,
    /// A checksum does not match; another copy may.
    Corrupt,
    /// Fewer than k good shards exist although every node that holds one answers: the data cannot be restored.
    DataLoss,
    /// The peer or the data folder belongs to another cluster.
    WrongCluster,
    /// The peer does not speak this protocol, or another version of it; or a file has another format version.
    Protocol,
    /// The local operating system refused or failed.
    Io,
    /// The work was given up because its owner went away.
    Cancelled,
}

impl Kind {
    /// Whether the same request may succeed later without anything being changed by the caller.
    #[must_use]
    pub fn is_transient(self) -> bool {
        matches!(self, Kind::Unavailable | Kind::Timeout | Kind::Conflict)
    }
}

/// A failure: its kind, what was being done to what, and the cause underneath.
///
/// ```
/// use torchfs_core::{Error, Kind};
/// let error = Error::new(Kind::NotFound, "no such file").context("open /data/a.png");
/// assert_eq!(error.kind(), Kind::NotFound);
/// assert_eq!(error.to_string(), "open /data/a.png: no such file");
/// ```
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: Kind,
    message: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// Makes an error. The message is lower case, names the thing, and has no full stop.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    /// Makes an error with the error that caused it.
    pub fn caused(
        kind: Kind,
        message: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Error(Box::new(Inner { kind, message: message.into(), source: Some(Arc::new(source)) }))
    }

    /// An error of the local operating system while doing `what`. ENOSPC and EDQUOT become [`Kind::NoSpace`], so that
    /// "disk full" stays recognisable all the way to the application.
    pub fn io(what: impl Into<String>, source: std::io::Error) -> Self {
        use std::io::ErrorKind;
        let kind = match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Kind::NoSpace,
            ErrorKind::NotFound => Kind::NotFound,
            ErrorKind::AlreadyExists => Kind::Exists,
            ErrorKind::PermissionDenied => Kind::PermissionDenied,
            ErrorKind::NotADirectory => Kind::NotDirectory,
            ErrorKind::IsADirectory => Kind::IsDirectory,
            ErrorKind::DirectoryNotEmpty => Kind::NotEmpty,
            ErrorKind::ReadOnlyFilesystem => Kind::ReadOnly,
            ErrorKind::TimedOut => Kind::Timeout,
            _ => Kind::Io,
        };
        Error::caused(kind, what, source)
    }

    /// What kind of failure this is.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The same failure seen from one level up: `context` is put in front of the message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.0.message = format!("{context}: {}", self.0.message);
        self
    }

    /// The same text under another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.0.kind = kind;
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        let mut cause = self.0.source.as_ref().map(|source| source as &dyn std::error::Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({self})", self.0.kind)
    }
}

// The causes are part of the text, so `source()` is not offered a second time.
impl std::error::Error for Error {}

/// Two errors are the same if a caller would act the same: equal kinds.
impl Eq for Error {}

impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind == other.0.kind
    }
}

/// On the wire: the kind and the whole text.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.0.kind, self.to_string()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Error {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (kind, message) = <(Kind, String)>::deserialize(deserializer)?;
        Ok(Error::new(kind, message))
    }
}

/// Adds what was being done to an error on its way up.
pub trait Context<T> {
    /// Puts `what()` in front of the error's message.
    ///
    /// # Errors
    /// The error of `self`, if it is one.
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.context(what()))
    }
}

/// Turns an operating-system result into ours.
pub trait IoContext<T> {
    /// See [`Error::io`].
    ///
    /// # Errors
    /// The error of `self`, if it is one.
    fn io<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> IoContext<T> for std::result::Result<T, E> {
    fn io<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| Error::io(what().to_string(), error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_survives_the_wire_with_its_cause() {
        let error = Error::io("write /d/x", std::io::Error::from_raw_os_error(28)).context("put a");
        assert_eq!(error.kind(), Kind::NoSpace);
        let bytes = postcard::to_allocvec(&error).expect("serializes");
        let back: Error = postcard::from_bytes(&bytes).expect("deserializes");
        assert_eq!(back.kind(), Kind::NoSpace);
        assert_eq!(back.to_string(), error.to_string());
        assert!(back.to_string().starts_with("put a: write /d/x: No space left"));
    }
}
