//! Files by path: opening them, and reading or replacing them whole.

use super::path::shown;
use super::{Client, File, OpenMode};
use crate::error::{Context, Error, Kind, Result};
use crate::layout::{Extent, Stripe};
use crate::meta::{Attr, ContentChange, FileKind, IfExists, MetaOp, NewKind};
use bytes::Bytes;

impl Client {
    /// Opens a file for reading.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`.
    pub async fn open(&self, path: impl AsRef<[u8]>) -> Result<File> {
        let path = path.as_ref();
        let open = async { self.open_as(self.existing(path).await?.ino, OpenMode::Read).await };
        let file = open.await.context(|| shown(path))?;
        file.begin_reading();
        Ok(file)
    }

    /// Opens a file for reading and writing, making it if it is not there (mode 0o644).
    ///
    /// # Errors
    /// `NotFound` for the folder, `IsDirectory`.
    pub async fn create(&self, path: impl AsRef<[u8]>) -> Result<File> {
        let path = path.as_ref();
        let open = async {
            let resolved = self.meta().resolve(path).await?;
            match (resolved.attr, resolved.name) {
                (Some(attr), _) => self.open_inode(attr.ino).await,
                (None, Some(name)) => {
                    let inode = self.new_inode(NewKind::File, 0o644);
                    self.create_inode(resolved.parent, name, inode, IfExists::Keep).await
                }
                (None, None) => Err(Error::new(Kind::IsDirectory, "this is the root folder")),
            }
        };
        open.await.context(|| shown(path))
    }

    /// A whole file's bytes.
    ///
    /// # Errors
    /// As [`Client::open`] and [`File::read_at`].
    pub async fn read_file(&self, path: impl AsRef<[u8]>) -> Result<Bytes> {
        let path = path.as_ref();
        let file = self.open(path).await?;
        let size = usize::try_from(file.attr().size);
        let size = size.map_err(|_| Error::new(Kind::TooLarge, format!("{}: too large for memory", shown(path))))?;
        file.read_at(0, size).await.context(|| shown(path))
    }

    /// Makes or atomically replaces a whole file.
    ///
    /// # Errors
    /// `NotFound` for the folder, `IsDirectory`; `NoSpace` or `Unavailable` if the content cannot be stored: then nothing
    /// has changed.
    pub async fn write_file(&self, path: impl AsRef<[u8]>, data: impl Into<Bytes>) -> Result<Attr> {
        let path = path.as_ref();
        self.replace_file(path, data.into()).await.context(|| shown(path))
    }

    async fn replace_file(&self, path: &[u8], data: Bytes) -> Result<Attr> {
        let resolved = self.meta().resolve(path).await?;
        let folder = || Error::new(Kind::IsDirectory, "this is a folder");
        let name = resolved.name.ok_or_else(folder)?;
        let mut inode = self.new_inode(NewKind::File, 0o644);
        match &resolved.attr {
            Some(attr) if attr.kind == FileKind::Directory => return Err(folder()),
            Some(attr) => (inode.mode, inode.uid, inode.gid) = (attr.mode, attr.uid, attr.gid),
            None => {}
        }
        let (profile, _) = self.meta().profile(resolved.parent).await?;
        let stripes = if data.is_empty() { Vec::new() } else { self.stripes().write_all(profile, data).await? };
        let content = ContentChange { extents: in_order(&stripes), stripes, ..ContentChange::nothing() };
        let op = MetaOp::Create {
            parent: resolved.parent,
            name,
            inode,
            if_exists: IfExists::Replace,
            content: Some(content),
        };
        self.meta().apply_for_attr(op).await
    }
}

/// The extents of a file that is these stripes one after the other.
fn in_order(stripes: &[Stripe]) -> Vec<Extent> {
    let mut offset = 0;
    let mut extents = Vec::with_capacity(stripes.len());
    for stripe in stripes {
        let len = stripe.shape.data_bytes;
        extents.push(Extent { offset, len, stripe: stripe.id, stripe_offset: 0 });
        offset += u64::from(len);
    }
    extents
}
