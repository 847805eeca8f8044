//! Our kinds of failure as errno, one total match.

use fuser::Errno;
use torchfs_core::{Error, Kind};

/// The errno an application sees for `error`.
#[must_use]
pub fn errno(error: &Error) -> Errno {
    match error.kind() {
        Kind::NotFound => Errno::ENOENT,
        Kind::Exists => Errno::EEXIST,
        Kind::NotDirectory => Errno::ENOTDIR,
        Kind::IsDirectory => Errno::EISDIR,
        Kind::NotEmpty => Errno::ENOTEMPTY,
        Kind::InvalidInput => Errno::EINVAL,
        Kind::NameTooLong => Errno::ENAMETOOLONG,
        Kind::FileTooLarge => Errno::EFBIG,
        Kind::PermissionDenied => Errno::EACCES,
        Kind::NotPermitted => Errno::EPERM,
        Kind::TooManyLinks => Errno::EMLINK,
        Kind::SymlinkLoop => Errno::ELOOP,
        Kind::NoAttribute => Errno::ENODATA,
        Kind::TooLarge => Errno::E2BIG,
        Kind::ReadOnly => Errno::EROFS,
        Kind::Unsupported => Errno::EOPNOTSUPP,
        Kind::NoSpace => Errno::ENOSPC,
        Kind::Stale => Errno::ESTALE,
        Kind::Cancelled => Errno::EINTR,
        // The kernel and its applications know "input/output error" for storage that does not deliver; which node and
        // why is in the log.
        Kind::Conflict
        | Kind::Unavailable
        | Kind::Timeout
        | Kind::Corrupt
        | Kind::DataLoss
        | Kind::WrongCluster
        | Kind::Protocol
        | Kind::Io => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_never_success_and_exists_is_eexist() {
        let number = |kind| errno(&Error::new(kind, "x")).code();
        assert_eq!(number(Kind::Exists), Errno::EEXIST.code());
        assert_eq!(number(Kind::Unavailable), Errno::EIO.code());
        assert_eq!(number(Kind::NoSpace), Errno::ENOSPC.code());
        assert!(number(Kind::Io) > 0);
    }
}
