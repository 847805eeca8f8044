//! An open file.

use super::Client;
use crate::error::Result;
use crate::ids::InodeId;
use crate::meta::Attr;
use bytes::Bytes;

/// An open file: a fixed version to read, and this client's writes over it. Cheap to clone. All opens of one inode through
/// one [`Client`] share uncommitted writes, as processes on one machine expect.
///
/// Dropping a `File` does not commit; uncommitted writes are lost when the last one is dropped. Call [`File::commit`].
#[derive(Clone, Debug)]
pub struct File {
    client: Client,
    ino: InodeId,
}

impl File {
    /// Its inode.
    #[must_use]
    pub fn ino(&self) -> InodeId {
        self.ino
    }

    /// Its attributes with this client's uncommitted size and mtime.
    #[must_use]
    pub fn attr(&self) -> Attr {
        let _ = &self.client;
        todo!()
    }

    /// Reads up to `len` bytes at `offset`; fewer only at the end of the file.
    ///
    /// # Errors
    /// `Unavailable`, `DataLoss`, `Timeout`: never wrong bytes.
    pub async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let _ = (offset, len);
        todo!()
    }

    /// Writes at `offset`. Full stripes of sequential data are encoded and sent in the background; an error there is
    /// returned by the next [`File::commit`].
    ///
    /// # Errors
    /// `NoSpace` if the staging folder is full, `FileTooLarge`.
    pub async fn write_at(&self, offset: u64, data: Bytes) -> Result<()> {
        let _ = (offset, data);
        todo!()
    }

    /// Cuts or grows the file to `size` bytes.
    ///
    /// # Errors
    /// `FileTooLarge`.
    pub async fn truncate(&self, size: u64) -> Result<()> {
        let _ = size;
        todo!()
    }

    /// Whether there is anything to commit.
    #[must_use]
    pub fn is_dirty(&self) -> bool {
        todo!()
    }

    /// Makes everything written so far durable in the cluster and visible to others, as one new version. Without
    /// changes it does nothing.
    ///
    /// # Errors
    /// If anything could not be stored; the old version then is what others see, and the staged bytes stay, so that
    /// committing again may succeed.
    pub async fn commit(&self) -> Result<Attr> {
        todo!()
    }
}
