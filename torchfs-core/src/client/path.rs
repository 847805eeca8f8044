//! Operations on paths. Every error says the path in front: `/a/b: no such file`.
//!
//! Paths are byte strings from the root, with or without a leading `/`. Links on the way are followed by the metadata
//! cluster, in one request.

use super::Client;
use crate::error::{Context, Error, Kind, Result};
use crate::ids::InodeId;
use crate::layout::Profile;
use crate::meta::{
    Attr, AttrChange, DirEntry, FileKind, IfExists, MetaOp, Name, NewInode, NewKind, RenameMode, Resolved,
};
use crate::settings::{BATCH_OPS_MAX, LIST_ENTRIES_MAX};

/// Rounds over a folder in which nothing could be removed before [`Client::remove_all`] gives up: other clients may
/// change entries between the listing and the removal.
const FRUITLESS_ROUNDS_MAX: u32 = 8;

impl Client {
    /// What is at a path, links followed.
    ///
    /// # Errors
    /// `NotFound`, or what metadata answers.
    pub async fn stat(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let path = path.as_ref();
        self.existing(path).await.context(|| shown(path))
    }

    /// What is at a path; a link at the end is itself the answer.
    ///
    /// # Errors
    /// `NotFound`, or what metadata answers.
    pub async fn lstat(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let path = path.as_ref();
        self.existing_no_follow(path).await.map(|(attr, _)| attr).context(|| shown(path))
    }

    /// All entries of a folder by name.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub async fn list(&self, path: impl AsRef<[u8]>) -> Result<Vec<DirEntry>> {
        let path = path.as_ref();
        self.list_all(path).await.context(|| shown(path))
    }

    async fn list_all(&self, path: &[u8]) -> Result<Vec<DirEntry>> {
        let ino = self.existing(path).await?.ino;
        let mut entries: Vec<DirEntry> = Vec::new();
        loop {
            let after = entries.last().map(|entry| entry.name.clone());
            let page = self.meta().list(ino, after, LIST_ENTRIES_MAX as u32).await?;
            let more = page.more && !page.entries.is_empty();
            self.listed(entries.len() as u64, &page.entries);
            entries.extend(page.entries);
            if !more {
                return Ok(entries);
            }
        }
    }

    /// Makes a folder, mode 0o755.
    ///
    /// # Errors
    /// `Exists`, `NotFound` for the folder above it.
    pub async fn mkdir(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let path = path.as_ref();
        self.make(path, NewKind::Directory, 0o755, IfExists::Fail).await.context(|| shown(path))
    }

    /// Makes a folder and the folders above it; existing ones are fine.
    ///
    /// # Errors
    /// `NotDirectory` if something else has a name on the way, `Exists` if it has the last one.
    pub async fn mkdir_all(&self, path: impl AsRef<[u8]>) -> Result<Attr> {
        let path = path.as_ref();
        match self.existing(path).await {
            Ok(attr) if attr.kind == FileKind::Directory => return Ok(attr),
            Err(error) if error.kind() != Kind::NotFound => return Err(error.context(shown(path))),
            _ => {}
        }
        let mut attr = self.stat("/").await?;
        let mut above = Vec::new();
        for component in path.split(|&byte| byte == b'/').filter(|component| !component.is_empty()) {
            above.push(b'/');
            above.extend_from_slice(component);
            attr = self.make(&above, NewKind::Directory, 0o755, IfExists::Keep).await.context(|| shown(&above))?;
        }
        Ok(attr)
    }

    /// Renames, replacing a target as rename(2) does.
    ///
    /// # Errors
    /// What rename(2) reports.
    pub async fn rename(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let source = async { place(self.meta().resolve_no_follow(from).await?) };
        let target = async { place(self.meta().resolve_no_follow(to).await?) };
        let source = source.await.context(|| shown(from))?;
        let target = target.await.context(|| shown(to))?;
        let renamed = self.meta().rename(source, target, RenameMode::Replace).await;
        renamed.map(drop).context(|| format!("rename {} to {}", shown(from), shown(to)))
    }

    /// Removes a file, link or other entry that is not a folder.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`.
    pub async fn unlink(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let unlink = async {
            let resolved = self.meta().resolve_no_follow(path).await?;
            let Some(name) = resolved.name else {
                return Err(Error::new(Kind::IsDirectory, "this is the root folder"));
            };
            self.meta().unlink(resolved.parent, name).await.map(drop)
        };
        unlink.await.context(|| shown(path))
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`.
    pub async fn rmdir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let rmdir = async {
            let (parent, name) = place(self.meta().resolve_no_follow(path).await?)?;
            self.meta().rmdir(parent, name).await
        };
        rmdir.await.context(|| shown(path))
    }

    /// Removes a path and all below it, in batches. Returns how many inodes lost a name.
    ///
    /// # Errors
    /// `NotFound`; the first failure that repeating does not get past.
    pub async fn remove_all(&self, path: impl AsRef<[u8]>) -> Result<u64> {
        let path = path.as_ref();
        self.remove_tree(path).await.context(|| shown(path))
    }

    async fn remove_tree(&self, path: &[u8]) -> Result<u64> {
        let (attr, (parent, name)) = {
            let (attr, resolved) = self.existing_no_follow(path).await?;
            (attr, place(resolved)?)
        };
        if attr.kind != FileKind::Directory {
            self.meta().unlink(parent, name).await?;
            return Ok(1);
        }
        let mut removed = 0;
        let mut fruitless = 0;
        loop {
            removed += self.empty_folder(attr.ino).await?;
            match self.meta().rmdir(parent, name.clone()).await {
                Ok(()) => return Ok(removed + 1),
                Err(error) if error.kind() == Kind::NotEmpty && fruitless < FRUITLESS_ROUNDS_MAX => fruitless += 1,
                Err(error) => return Err(error),
            }
        }
    }

    /// Removes all below a folder, depth first, with an explicit stack: trees may be deep.
    async fn empty_folder(&self, root: InodeId) -> Result<u64> {
        let mut removed = 0;
        let mut fruitless = 0;
        let mut stack = vec![root];
        while let Some(&folder) = stack.last() {
            let round = match self.remove_page(folder).await {
                Err(error) if error.kind() == Kind::NotFound && folder != root => Round::default(),
                round => round?,
            };
            removed += round.removed;
            if round.rest == Rest::Nothing {
                stack.pop();
                continue;
            }
            fruitless = if round.removed > 0 || !round.folders.is_empty() { 0 } else { fruitless + 1 };
            if fruitless > FRUITLESS_ROUNDS_MAX {
                let failed = || Error::new(Kind::Conflict, "entries keep changing while they are removed");
                return Err(round.error.unwrap_or_else(failed));
            }
            stack.extend(round.folders);
        }
        Ok(removed)
    }

    async fn remove_page(&self, folder: InodeId) -> Result<Round> {
        let page = self.meta().list(folder, None, BATCH_OPS_MAX as u32).await?;
        if page.entries.is_empty() {
            return Ok(Round::default());
        }
        let op = |entry: &DirEntry| match entry.attr.kind {
            FileKind::Directory => MetaOp::Rmdir { parent: folder, name: entry.name.clone() },
            _ => MetaOp::Unlink { parent: folder, name: entry.name.clone() },
        };
        let replies = self.meta().batch(page.entries.iter().map(op).collect()).await?;
        let mut round = Round { rest: if page.more { Rest::Something } else { Rest::Nothing }, ..Round::default() };
        for (entry, reply) in page.entries.iter().zip(replies) {
            match reply {
                Ok(_) => round.removed += 1,
                Err(error) if error.kind() == Kind::NotFound => {}
                Err(error) => {
                    round.rest = Rest::Something;
                    if error.kind() == Kind::NotEmpty {
                        round.folders.push(entry.attr.ino);
                    } else {
                        round.error.get_or_insert(error.context(&entry.name));
                    }
                }
            }
        }
        Ok(round)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// `Exists`, `NotFound` for the folder.
    pub async fn symlink(&self, target: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Result<Attr> {
        let path = path.as_ref();
        let kind = NewKind::Symlink(target.as_ref().to_vec());
        let link = async {
            let (parent, name) = place(self.meta().resolve_no_follow(path).await?)?;
            self.meta().create(parent, name, self.new_inode(kind, 0o777), IfExists::Fail).await
        };
        link.await.context(|| shown(path))
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `NotPermitted` for a folder.
    pub async fn link(&self, existing: impl AsRef<[u8]>, path: impl AsRef<[u8]>) -> Result<Attr> {
        let path = path.as_ref();
        let ino = self.lstat(existing).await?.ino;
        let link = async {
            let (parent, name) = place(self.meta().resolve_no_follow(path).await?)?;
            self.meta().link(ino, parent, name).await
        };
        link.await.context(|| shown(path))
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `InvalidInput` if it is not a link.
    pub async fn read_link(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let read = async {
            let (attr, _) = self.existing_no_follow(path).await?;
            if attr.kind != FileKind::Symlink {
                return Err(Error::new(Kind::InvalidInput, "not a symbolic link"));
            }
            self.meta().read_link(attr.ino).await
        };
        read.await.context(|| shown(path))
    }

    /// Changes attributes.
    ///
    /// # Errors
    /// `NotFound`, or what metadata answers.
    pub async fn set_attr(&self, path: impl AsRef<[u8]>, change: AttrChange) -> Result<Attr> {
        let path = path.as_ref();
        let set = async { self.set_attr_inode(self.existing(path).await?.ino, change).await };
        set.await.context(|| shown(path))
    }

    /// The profile that new files in a folder take, or that a file's content is coded with.
    ///
    /// # Errors
    /// `NotFound`, or what metadata answers.
    pub async fn profile(&self, path: impl AsRef<[u8]>) -> Result<Profile> {
        let path = path.as_ref();
        let profile = async { self.meta().profile(self.existing(path).await?.ino).await };
        profile.await.map(|(profile, _)| profile).context(|| shown(path))
    }

    /// Sets a folder's profile.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`.
    pub async fn set_profile(&self, path: impl AsRef<[u8]>, profile: Profile) -> Result<()> {
        let path = path.as_ref();
        let set = async { self.meta().set_profile(self.existing(path).await?.ino, Some(profile)).await };
        set.await.context(|| shown(path))
    }

    pub(super) async fn existing(&self, path: &[u8]) -> Result<Attr> {
        self.meta().resolve(path).await?.attr.ok_or_else(no_such_file)
    }

    async fn existing_no_follow(&self, path: &[u8]) -> Result<(Attr, Resolved)> {
        let mut resolved = self.meta().resolve_no_follow(path).await?;
        let attr = resolved.attr.take().ok_or_else(no_such_file)?;
        Ok((attr, resolved))
    }

    async fn make(&self, path: &[u8], kind: NewKind, mode: u32, if_exists: IfExists) -> Result<Attr> {
        // mkdir(2) makes nothing where a link leads; a folder that is kept may be behind one.
        let resolved = self.meta().resolve_no_follow(path).await?;
        let Some(found) = resolved.attr else {
            let taken = || Error::new(Kind::Exists, "this is the root folder");
            let name = resolved.name.ok_or_else(taken)?;
            return self.meta().create(resolved.parent, name, self.new_inode(kind, mode), if_exists).await;
        };
        if if_exists == IfExists::Keep {
            let found = if found.kind == FileKind::Symlink { self.existing(path).await? } else { found };
            if found.kind == kind.kind() {
                return Ok(found);
            }
        }
        Err(Error::new(Kind::Exists, "the name is taken"))
    }

    pub(super) fn new_inode(&self, kind: NewKind, mode: u32) -> NewInode {
        let (uid, gid) = self.inner.owner;
        NewInode { kind, mode, uid, gid, mtime: None }
    }
}

/// What one pass over a page of a folder did.
#[derive(Debug, Default)]
struct Round {
    removed: u64,
    /// Subfolders that have to be emptied first.
    folders: Vec<InodeId>,
    rest: Rest,
    error: Option<Error>,
}

/// Whether a folder may hold more.
#[derive(Debug, Default, PartialEq, Eq)]
enum Rest {
    #[default]
    Nothing,
    Something,
}

/// A path as text for messages: the beginning of one that is longer than any can be.
pub(super) fn shown(path: &[u8]) -> String {
    const SHOWN_MAX: usize = 4096;
    let path = path.strip_prefix(b"./").unwrap_or(path);
    let text = String::from_utf8_lossy(&path[..path.len().min(SHOWN_MAX)]);
    let (begin, end) = (if text.starts_with('/') { "" } else { "/" }, if path.len() > SHOWN_MAX { "…" } else { "" });
    format!("{begin}{text}{end}")
}

pub(super) fn no_such_file() -> Error {
    Error::new(Kind::NotFound, "no such file")
}

/// The folder and name that a path stands for; the root has none.
fn place(resolved: Resolved) -> Result<(InodeId, Name)> {
    let root = || Error::new(Kind::InvalidInput, "this is the root folder");
    Ok((resolved.parent, resolved.name.ok_or_else(root)?))
}
