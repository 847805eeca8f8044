//! The identity file: which node a data folder is, of which cluster, in which format version.
//!
//! Text, so that an operator can look at it; the last line is a checksum, so that a damaged one is not believed.

use std::fs;
use std::path::Path;
use torchfs_core::folder::replace_file;
use torchfs_core::{ClusterId, Error, Kind, NodeId, NodeUuid, Result};

/// The version of the data folder's layout.
pub const FOLDER_FORMAT: u32 = 1;

/// Its name in the data folder.
pub const IDENTITY_FILE: &str = "torchfs-store.id";

/// Its name while it is being written.
pub const IDENTITY_TEMP: &str = "torchfs-store.id.tmp";

/// Who a data folder is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Drawn when the folder is made.
    pub uuid: NodeUuid,
    /// Set by the first registration, for good.
    pub registration: Option<Registration>,
}

/// The node's place in a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node's number in it.
    pub node: NodeId,
}

impl Identity {
    /// Of a new folder.
    #[must_use]
    pub fn new() -> Self {
        Identity { uuid: NodeUuid::random(), registration: None }
    }

    /// The file's text.
    fn encode(&self) -> String {
        let mut text = format!("torchfs-store {FOLDER_FORMAT}\nuuid {}\n", self.uuid);
        if let Some(registration) = self.registration {
            text.push_str(&format!("cluster {}\nnode {}\n", registration.cluster, registration.node));
        }
        let checksum = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc32c {checksum:08x}\n"));
        text
    }

    fn decode(text: &str) -> Result<Self> {
        let body = checked_body(text)?;
        let field =
            |name: &str| body.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(' ')));
        let uuid = field("uuid").and_then(hex).map(NodeUuid).ok_or_else(damaged)?;
        let registration = match (field("cluster"), field("node")) {
            (None, None) => None,
            (Some(cluster), Some(node)) => {
                let cluster = hex(cluster).map(ClusterId).ok_or_else(damaged)?;
                let node = node.parse().map(NodeId).map_err(|_| damaged())?;
                Some(Registration { cluster, node })
            }
            _ => return Err(damaged()),
        };
        Ok(Identity { uuid, registration })
    }

    /// Reads the identity of a folder; `None` if it has none.
    ///
    /// # Errors
    /// `Protocol` for another format version, `Corrupt` for a damaged file.
    pub fn load(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(IDENTITY_FILE);
        let text = match fs::read(&path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        Self::decode(&text).map(Some).map_err(|error| error.context(path.display()))
    }

    /// Writes it for good.
    ///
    /// # Errors
    /// Of the operating system.
    pub fn save(&self, folder: &Path) -> Result<()> {
        replace_file(&folder.join(IDENTITY_FILE), &folder.join(IDENTITY_TEMP), self.encode().as_bytes())
    }
}

impl Default for Identity {
    fn default() -> Self {
        Self::new()
    }
}

/// Everything before the checksum line, once version and checksum are right.
fn checked_body(text: &str) -> Result<&str> {
    let version = text.lines().next().and_then(|line| line.strip_prefix("torchfs-store ")).ok_or_else(damaged)?;
    if version != FOLDER_FORMAT.to_string() {
        let message = format!(
            "data folder format '{version}'; this program uses format {FOLDER_FORMAT}: start it with the torchfs that made the folder"
        );
        return Err(Error::new(Kind::Protocol, message));
    }
    let (body, checksum) = text.trim_end().rsplit_once("\ncrc32c ").ok_or_else(damaged)?;
    let covered = &text[..=body.len()];
    let expected = u32::from_str_radix(checksum, 16).map_err(|_| damaged())?;
    if crc32c::crc32c(covered.as_bytes()) != expected {
        return Err(damaged());
    }
    Ok(covered)
}

fn hex(text: &str) -> Option<u128> {
    u128::from_str_radix(text, 16).ok()
}

fn damaged() -> Error {
    Error::new(
        Kind::Corrupt,
        "the identity file is damaged: restore it from a copy, or start the node on an empty folder",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registered() -> Identity {
        Identity {
            uuid: NodeUuid(0xabc),
            registration: Some(Registration { cluster: ClusterId(0xdef), node: NodeId(3) }),
        }
    }

    #[test]
    fn it_survives_the_disk_before_and_after_registration() {
        let folder = tempfile::tempdir().expect("temp folder");
        assert_eq!(Identity::load(folder.path()).expect("loads"), None);
        for identity in [Identity::new(), registered()] {
            identity.save(folder.path()).expect("saves");
            assert_eq!(Identity::load(folder.path()).expect("loads"), Some(identity));
        }
    }

    #[test]
    fn a_changed_byte_is_noticed() {
        let text = registered().encode();
        for at in 0..text.len() - 1 {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let changed = String::from_utf8_lossy(&bytes).into_owned();
            assert!(Identity::decode(&changed).is_err(), "byte {at}: {changed}");
        }
    }

    #[test]
    fn another_version_names_both() {
        let text = registered().encode().replacen("torchfs-store 1", "torchfs-store 2", 1);
        let error = Identity::decode(&text).expect_err("version 2");
        assert_eq!(error.kind(), Kind::Protocol);
        assert!(error.to_string().contains("'2'") && error.to_string().contains("format 1"), "{error}");
    }
}
