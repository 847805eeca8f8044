//! Names and attributes.

use super::{Inode, Model, fail, list_bytes};
use crate::error::{Kind, Result};
use crate::ids::InodeId;
use crate::layout::Profile;
use crate::meta::{
    Attr, AttrChange, ContentChange, DirEntry, FileKind, IfExists, Listing, MetaReply, Name, NewInode, NewKind,
    RenameMode, SetTime, Timestamp, XattrMode, XattrName,
};
use crate::settings::{LINKS_MAX, LIST_BYTES_MAX, LIST_ENTRIES_MAX, PATH_BYTES_MAX, XATTR_BYTES_MAX};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

type Place<'a> = (InodeId, &'a Name);

impl Model {
    /// The entries of a folder that has a name.
    pub(super) fn entries(&self, ino: InodeId) -> Result<&BTreeMap<Name, InodeId>> {
        if !self.inode(ino)?.is_folder() {
            return fail(Kind::NotDirectory, format!("inode {ino} is not a folder"));
        }
        match self.folders.get(&ino) {
            Some(entries) => Ok(entries),
            None => fail(Kind::NotFound, format!("folder {ino} was removed")),
        }
    }

    pub(super) fn existing(&self, parent: InodeId, name: &Name) -> Result<InodeId> {
        match self.entries(parent)?.get(name) {
            Some(ino) => Ok(*ino),
            None => fail(Kind::NotFound, format!("there is no '{name}'")),
        }
    }

    pub(super) fn create(
        &mut self,
        parent: InodeId,
        name: &Name,
        new: &NewInode,
        if_exists: IfExists,
        content: Option<&ContentChange>,
    ) -> Result<Attr> {
        check_new(new, content)?;
        let there = self.entries(parent)?.get(name).copied();
        let there_kind = there.map(|ino| self.inode(ino).map(|inode| inode.kind.kind())).transpose()?;
        match (if_exists, there, there_kind) {
            (_, None, _) => self.create_new(parent, name, new, content),
            (IfExists::Keep, Some(ino), Some(kind)) if kind == new.kind.kind() => self.attr(ino),
            (IfExists::Replace, Some(ino), Some(FileKind::File)) if new.kind == NewKind::File => {
                let nothing = ContentChange::nothing();
                let change = ContentChange { keep_bytes: Some(0), ..content.unwrap_or(&nothing).clone() };
                self.check_content(&change)?;
                self.take(ino, parent, new, Some(&change))?;
                self.attr(ino)
            }
            (IfExists::Replace, _, Some(FileKind::Directory)) if new.kind != NewKind::Directory => {
                fail(Kind::IsDirectory, format!("'{name}' is a folder"))
            }
            _ => fail(Kind::Exists, format!("'{name}' exists")),
        }
    }

    fn create_new(
        &mut self,
        parent: InodeId,
        name: &Name,
        new: &NewInode,
        content: Option<&ContentChange>,
    ) -> Result<Attr> {
        content.map_or(Ok(()), |content| self.check_content(content))?;
        let ino = InodeId(self.next_inode);
        self.next_inode += 1;
        self.inodes.insert(ino, Inode::new(new.kind.clone(), self.now));
        if new.kind == NewKind::Directory {
            self.folders.insert(ino, BTreeMap::new());
            self.inode_mut(ino)?.parent = parent;
        }
        self.take(ino, parent, new, content)?;
        self.enter((parent, name), ino);
        self.attr(ino)
    }

    /// Gives an inode the attributes and content of a new one.
    fn take(&mut self, ino: InodeId, parent: InodeId, new: &NewInode, content: Option<&ContentChange>) -> Result<()> {
        let (profile, _) = self.profile(parent)?;
        let (folder_mode, folder_gid) = (self.inode(parent)?.mode, self.inode(parent)?.gid);
        let sgid = folder_mode & 0o2000;
        let inode = self.inode_mut(ino)?;
        inode.mode = new.mode | if inode.is_folder() { sgid } else { 0 };
        inode.uid = new.uid;
        inode.gid = if sgid == 0 { new.gid } else { folder_gid };
        inode.profile = (new.kind == NewKind::File).then_some(profile);
        if let Some(content) = content {
            self.change_content(ino, content)?;
        }
        let inode = self.inode_mut(ino)?;
        inode.mtime = new.mtime.unwrap_or(inode.mtime);
        Ok(())
    }

    fn touch(&mut self, folder: InodeId) {
        let now = self.now;
        if let Some(inode) = self.inodes.get_mut(&folder) {
            (inode.mtime, inode.ctime) = (now, now);
        }
    }

    fn enter(&mut self, (parent, name): Place<'_>, ino: InodeId) {
        self.folders.entry(parent).or_default().insert(name.clone(), ino);
        self.touch(parent);
    }

    fn leave(&mut self, (parent, name): Place<'_>) {
        self.folders.entry(parent).or_default().remove(name);
        self.touch(parent);
    }

    pub(super) fn link(&mut self, ino: InodeId, parent: InodeId, name: &Name) -> Result<Attr> {
        let attr = self.attr(ino)?;
        if self.entries(parent)?.contains_key(name) {
            return fail(Kind::Exists, format!("'{name}' exists"));
        }
        match attr {
            Attr { kind: FileKind::Directory, .. } => fail(Kind::NotPermitted, format!("inode {ino} is a folder")),
            Attr { nlink: 0, .. } => fail(Kind::NotFound, format!("inode {ino} was removed")),
            Attr { nlink: LINKS_MAX.., .. } => fail(Kind::TooManyLinks, format!("inode {ino} has too many names")),
            _ => {
                self.enter((parent, name), ino);
                self.inode_mut(ino)?.ctime = self.now;
                self.attr(ino)
            }
        }
    }

    pub(super) fn unlink(&mut self, parent: InodeId, name: &Name) -> Result<Attr> {
        let ino = self.existing(parent, name)?;
        if self.inode(ino)?.is_folder() {
            return fail(Kind::IsDirectory, format!("'{name}' is a folder"));
        }
        self.leave((parent, name));
        self.lose_name(ino)
    }

    /// After an inode lost a name.
    fn lose_name(&mut self, ino: InodeId) -> Result<Attr> {
        let now = self.now;
        self.folders.remove(&ino);
        let nlink = self.attr(ino)?.nlink;
        let inode = self.inode_mut(ino)?;
        inode.ctime = now;
        if nlink == 0 {
            inode.orphan_since = Some(now);
        }
        self.attr(ino)
    }

    pub(super) fn rmdir(&mut self, parent: InodeId, name: &Name) -> Result<Attr> {
        let ino = self.existing(parent, name)?;
        if !self.inode(ino)?.is_folder() {
            return fail(Kind::NotDirectory, format!("'{name}' is not a folder"));
        }
        if !self.entries(ino)?.is_empty() {
            return fail(Kind::NotEmpty, format!("folder '{name}' has entries"));
        }
        self.leave((parent, name));
        self.lose_name(ino)
    }

    fn is_at_or_above(&self, above: InodeId, ino: InodeId) -> Result<bool> {
        Ok(ino == above || (ino != InodeId::ROOT && self.is_at_or_above(above, self.inode(ino)?.parent)?))
    }

    pub(super) fn rename(&mut self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> Result<MetaReply> {
        self.entries(from.0)?;
        self.entries(to.0)?;
        let source = self.existing(from.0, from.1)?;
        let target = self.entries(to.0)?.get(to.1).copied();
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return fail(Kind::Exists, format!("'{}' exists", to.1)),
            (RenameMode::Exchange, None) => return fail(Kind::NotFound, format!("there is no '{}'", to.1)),
            _ => {}
        }
        if self.is_at_or_above(source, to.0)? {
            return fail(Kind::InvalidInput, format!("folder '{}' cannot be moved into itself", from.1));
        }
        if let Some(target) = target {
            if self.is_at_or_above(target, from.0)? {
                let kind = if mode == RenameMode::Exchange { Kind::InvalidInput } else { Kind::NotEmpty };
                return fail(kind, format!("'{}' is above what is to be moved", to.1));
            }
            if target == source {
                return Ok(MetaReply::Renamed { moved: self.attr(source)?, other: None });
            }
            if mode != RenameMode::Exchange {
                self.check_replace(source, target)?;
            }
        }
        self.leave(from);
        self.leave(to);
        self.enter(to, source);
        self.moved(source, to.0)?;
        match target {
            Some(target) if mode == RenameMode::Exchange => {
                self.enter(from, target);
                self.moved(target, from.0)?;
            }
            Some(target) => {
                self.lose_name(target)?;
            }
            None => {}
        }
        Ok(MetaReply::Renamed { moved: self.attr(source)?, other: target })
    }

    fn check_replace(&self, source: InodeId, target: InodeId) -> Result<()> {
        match (self.inode(source)?.is_folder(), self.inode(target)?.is_folder()) {
            (true, false) => fail(Kind::NotDirectory, "a folder cannot replace what is none"),
            (false, true) => fail(Kind::IsDirectory, "only a folder can replace a folder"),
            (true, true) if !self.entries(target)?.is_empty() => fail(Kind::NotEmpty, "the folder has entries"),
            _ => Ok(()),
        }
    }

    fn moved(&mut self, ino: InodeId, parent: InodeId) -> Result<()> {
        let now = self.now;
        let inode = self.inode_mut(ino)?;
        (inode.ctime, inode.parent) = (now, parent);
        Ok(())
    }

    pub(super) fn set_attr(&mut self, ino: InodeId, change: &AttrChange) -> Result<Attr> {
        change.mode.map_or(Ok(()), check_mode)?;
        change.atime.map_or(Ok(()), check_time)?;
        change.mtime.map_or(Ok(()), check_time)?;
        let now = self.now;
        let inode = self.inode_mut(ino)?;
        inode.mode = change.mode.unwrap_or(inode.mode);
        inode.uid = change.uid.unwrap_or(inode.uid);
        inode.gid = change.gid.unwrap_or(inode.gid);
        inode.atime = change.atime.map_or(inode.atime, |time| at(time, now));
        inode.mtime = change.mtime.map_or(inode.mtime, |time| at(time, now));
        inode.ctime = now;
        self.attr(ino)
    }

    pub(super) fn set_xattr(&mut self, ino: InodeId, name: &XattrName, value: &[u8], mode: XattrMode) -> Result<()> {
        if value.len() > XATTR_BYTES_MAX {
            return fail(Kind::TooLarge, format!("attribute '{name}' of {} bytes", value.len()));
        }
        let now = self.now;
        let inode = self.inode_mut(ino)?;
        match (mode, inode.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return fail(Kind::Exists, format!("attribute '{name}' exists")),
            (XattrMode::Replace, false) => return fail(Kind::NoAttribute, format!("there is no attribute '{name}'")),
            _ => {}
        }
        let names: BTreeSet<&XattrName> = inode.xattrs.keys().chain([name]).collect();
        if list_bytes(names) > XATTR_BYTES_MAX {
            return fail(Kind::TooLarge, "the names of all attributes are too long together");
        }
        inode.xattrs.insert(name.clone(), value.to_vec());
        inode.ctime = now;
        Ok(())
    }

    pub(super) fn remove_xattr(&mut self, ino: InodeId, name: &XattrName) -> Result<()> {
        let now = self.now;
        let inode = self.inode_mut(ino)?;
        if inode.xattrs.remove(name).is_none() {
            return fail(Kind::NoAttribute, format!("there is no attribute '{name}'"));
        }
        inode.ctime = now;
        Ok(())
    }

    pub(super) fn set_profile(&mut self, ino: InodeId, profile: Option<Profile>) -> Result<()> {
        profile.map(Profile::checked).transpose()?;
        self.entries(ino)?;
        if ino == InodeId::ROOT && profile.is_none() {
            return fail(Kind::InvalidInput, "the root folder has nothing to inherit a profile from");
        }
        let now = self.now;
        let inode = self.inode_mut(ino)?;
        (inode.profile, inode.ctime) = (profile, now);
        Ok(())
    }

    /// The profile in effect, and whether the folder itself sets it.
    pub(super) fn profile(&self, ino: InodeId) -> Result<(Profile, bool)> {
        let inode = self.inode(ino)?;
        match (inode.kind.kind(), inode.profile) {
            (FileKind::File, Some(profile)) => Ok((profile, false)),
            (FileKind::Directory, own) => {
                self.entries(ino)?;
                own.map_or_else(
                    || self.profile(inode.parent).map(|(profile, _)| (profile, false)),
                    |own| Ok((own, true)),
                )
            }
            _ => fail(Kind::InvalidInput, format!("inode {ino} has no content and no profile")),
        }
    }

    pub(super) fn list(&self, ino: InodeId, after: Option<&Name>, limit: u32, extents: bool) -> Result<Listing> {
        let limit = limit as usize;
        if limit == 0 || limit > LIST_ENTRIES_MAX {
            return fail(Kind::InvalidInput, format!("a page of {limit} entries"));
        }
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.entries(ino)?.range::<Name, _>((start, Bound::Unbounded)).peekable();
        let mut listing = Listing { entries: Vec::new(), stripes: Vec::new(), more: false };
        let mut bytes = 0;
        while let Some((name, child)) = rest.next_if(|_| listing.entries.len() < limit && bytes < LIST_BYTES_MAX) {
            let inode = self.inode(*child)?;
            let entry = DirEntry {
                name: name.clone(),
                attr: self.attr(*child)?,
                target: if let NewKind::Symlink(target) = &inode.kind { Some(target.clone()) } else { None },
                extents: if extents { inode.extents.extents().to_vec() } else { Vec::new() },
            };
            bytes += 128 + entry.target.as_ref().map_or(0, Vec::len) + 64 * entry.extents.len();
            listing.entries.push(entry);
        }
        listing.more = rest.peek().is_some();
        listing.stripes = self.stripes_of(listing.entries.iter().flat_map(|entry| &entry.extents));
        Ok(listing)
    }
}

fn check_new(new: &NewInode, content: Option<&ContentChange>) -> Result<()> {
    check_mode(new.mode)?;
    new.mtime.map_or(Ok(()), |time| check_time(SetTime::At(time)))?;
    match &new.kind {
        NewKind::Symlink(target) if target.len() > PATH_BYTES_MAX => {
            return fail(Kind::NameTooLong, format!("link target of {} bytes", target.len()));
        }
        NewKind::Symlink(target) if target.is_empty() || target.contains(&0) => {
            return fail(Kind::InvalidInput, "a link target is empty or holds a NUL byte");
        }
        _ => {}
    }
    match content {
        Some(_) if new.kind != NewKind::File => fail(Kind::InvalidInput, "only a regular file can have content"),
        Some(content) => super::content::check(content),
        None => Ok(()),
    }
}

fn check_mode(mode: u32) -> Result<()> {
    if mode <= 0o7777 { Ok(()) } else { fail(Kind::InvalidInput, format!("impossible mode {mode:o}")) }
}

pub(super) fn check_time(time: SetTime) -> Result<()> {
    match time {
        SetTime::At(Timestamp { nanos: 1_000_000_000.., .. }) => fail(Kind::InvalidInput, "impossible time"),
        _ => Ok(()),
    }
}

pub(super) fn at(time: SetTime, now: Timestamp) -> Timestamp {
    match time {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}
