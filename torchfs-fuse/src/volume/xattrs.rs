//! Extended attributes.

use super::Volume;
use crate::special::Special;
use torchfs_core::meta::{XattrMode, XattrName};
use torchfs_core::{Error, InodeId, Kind, Result};

impl Volume {
    pub async fn set_xattr(&self, ino: InodeId, name: XattrName, value: Vec<u8>, mode: XattrMode) -> Result<()> {
        Special::refuse(ino)?;
        check_xattr_name(&name, Kind::Unsupported)?;
        self.client.meta().set_xattr(ino, name, value, mode).await
    }

    pub async fn xattr(&self, ino: InodeId, name: XattrName) -> Result<Vec<u8>> {
        if Special::of(ino).is_some() {
            return Err(Error::new(Kind::NoAttribute, "what is in .torchfs has no attributes"));
        }
        self.client.meta().xattr(ino, name).await
    }

    pub async fn xattrs(&self, ino: InodeId) -> Result<Vec<XattrName>> {
        if Special::of(ino).is_some() {
            return Ok(Vec::new());
        }
        self.client.meta().xattrs(ino).await
    }

    pub async fn remove_xattr(&self, ino: InodeId, name: XattrName) -> Result<()> {
        Special::refuse(ino)?;
        check_xattr_name(&name, Kind::NoAttribute)?;
        self.client.meta().remove_xattr(ino, name).await
    }
}

/// The name of an attribute that may be there.
///
/// # Errors
/// As [`check_xattr_name`].
pub fn readable_xattr(name: XattrName) -> Result<XattrName> {
    check_xattr_name(&name, Kind::NoAttribute).map(|()| name)
}

/// Only `user.` and `trusted.` attributes are kept: access control lists and security labels would have to be obeyed too.
///
/// # Errors
/// As a local file system has it: `InvalidInput` for a namespace without a name in it, `Unsupported` for what is no
/// namespace, and for `security.`, which every file system has, what is given.
fn check_xattr_name(name: &XattrName, security: Kind) -> Result<()> {
    let bytes = name.as_bytes();
    let within = |namespace: &[u8]| bytes.strip_prefix(namespace);
    let kind = match within(b"user.").or(within(b"trusted.")).or(within(b"security.")) {
        Some(b"") => Kind::InvalidInput,
        Some(_) if within(b"security.").is_none() => return Ok(()),
        Some(_) => security,
        None => Kind::Unsupported,
    };
    Err(Error::new(kind, format!("extended attribute {name}: only user.NAME and trusted.NAME are kept")))
}
