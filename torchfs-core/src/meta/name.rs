//! Names: of directory entries, and of extended attributes. Bytes that are checked once, when they come in.

use crate::error::{Error, Kind, Result};
use crate::settings::NAME_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $is_wrong:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
        pub struct $name(Vec<u8>);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`Kind::NameTooLong`] or [`Kind::InvalidInput`].
            pub fn new(bytes: impl Into<Vec<u8>>) -> Result<Self> {
                let bytes = bytes.into();
                if bytes.len() > NAME_BYTES_MAX {
                    let message = format!("name of {} bytes; at most {NAME_BYTES_MAX} are possible", bytes.len());
                    return Err(Error::new(Kind::NameTooLong, message));
                }
                let is_wrong: fn(&[u8]) -> bool = $is_wrong;
                if bytes.is_empty() || bytes.contains(&0) || is_wrong(&bytes) {
                    let text = String::from_utf8_lossy(&bytes);
                    return Err(Error::new(Kind::InvalidInput, format!(concat!("'{}' cannot be ", $what), text.escape_debug())));
                }
                Ok($name(bytes))
            }

            /// Its bytes.
            #[must_use]
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
        }

        impl TryFrom<Vec<u8>> for $name {
            type Error = Error;

            fn try_from(bytes: Vec<u8>) -> Result<Self> {
                $name::new(bytes)
            }
        }

        impl From<$name> for Vec<u8> {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        /// The name as text; bytes that are not UTF-8 are replaced.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&String::from_utf8_lossy(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", String::from_utf8_lossy(&self.0))
            }
        }
    };
}

name!(
    /// The name of a directory entry: 1 to 255 bytes, any but `/` and NUL, not `.` or `..`. Need not be UTF-8.
    Name,
    "a name",
    |bytes| bytes == b"." || bytes == b".." || bytes.contains(&b'/')
);
name!(
    /// The name of an extended attribute: 1 to 255 bytes, any but NUL, like `user.label`. Which namespaces there are is up to
    /// who offers them.
    XattrName,
    "the name of an attribute",
    |_| false
);
