//! Putting and deleting shards. Blocking.

use super::Inner;
use super::file::{self, Expected};
use super::folder::Group;
use super::format::{HEADER_BYTES, Header, is_shard_length};
use super::journal::{JOURNALED_SHARD_BYTES_MAX, Record, Recorded};
use super::space::Reservation;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use torchfs_core::checksum::verify_blocks;
use torchfs_core::settings::SHARD_BYTES_MAX;
use torchfs_core::{Context, Error, IoContext, Kind, Result, ShardId};

/// Stores a shard for good; see [`ShardStore`](torchfs_core::shard::ShardStore) for what it answers.
///
/// # Errors
/// As said there.
pub fn put(inner: &Inner, shard: ShardId, data: &[u8], checksums: Vec<u32>) -> Result<()> {
    if !is_shard_length(data.len()) {
        let message = format!("shard {shard} of {} bytes; 1 to {SHARD_BYTES_MAX} are possible", data.len());
        return Err(Error::new(Kind::InvalidInput, message));
    }
    let expected = inner.expected(shard)?;
    verify_blocks(data, &checksums).context(|| format!("shard {shard} on arrival"))?;
    inner.durable.check()?;
    let new = New { inner, expected, path: inner.folder.shard(shard), data };
    // Looked at before writing only to spare the work; what decides is the look when the name is taken.
    if let Held::Same = new.held()? {
        return new.sync_name();
    }
    let reservation = inner.space.reserve((HEADER_BYTES + data.len()) as u64)?;
    let header = Header { cluster: expected.cluster, shard, bytes: data.len() as u32, checksums }.encode();
    new.write(&header, reservation).map_err(|failure| inner.space.ran_out(failure))
}

/// Removes a shard if it is there.
///
/// # Errors
/// Of the operating system.
pub fn delete(inner: &Inner, shard: ShardId) -> Result<()> {
    let path = inner.folder.shard(shard);
    let _name = inner.name_of(shard);
    let _recorded = record_delete(inner, shard)?;
    let removed = fs::symlink_metadata(&path).and_then(|metadata| {
        fs::remove_file(&path)?;
        Ok(metadata.len())
    });
    inner.damage.gone(shard);
    match removed.io(|| format!("delete {}", path.display())) {
        Ok(file_bytes) => {
            inner.space.remove(file_bytes);
            Ok(())
        }
        Err(error) if error.kind() == Kind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Sees to it that the journal does not bring back the shard that is about to be deleted.
fn record_delete(inner: &Inner, shard: ShardId) -> Result<Option<Recorded<'_>>> {
    if !inner.journal.would_put(shard) {
        return Ok(None);
    }
    let recorded = inner.journal.append(&inner.durable, &Record::delete(shard))?;
    if recorded.is_none() {
        inner.journal.forget(shard)?;
    }
    Ok(recorded)
}

/// A temp file, removed on drop unless it was renamed.
struct Temp(PathBuf);

impl Drop for Temp {
    fn drop(&mut self) {
        // After the rename there is nothing here; a file that stays is removed at the next start.
        let _ = fs::remove_file(&self.0);
    }
}

/// What is under the shard's name already.
enum Held {
    Nothing,
    Same,
    /// A damaged file of this many bytes.
    Damaged(u64),
}

/// A shard on its way to its name.
struct New<'a> {
    inner: &'a Inner,
    expected: Expected,
    path: PathBuf,
    data: &'a [u8],
}

impl New<'_> {
    fn shard(&self) -> ShardId {
        self.expected.shard
    }

    fn held(&self) -> Result<Held> {
        match file::read_all(&self.path, self.expected) {
            Ok(blocks) if *blocks.data.0 == *self.data => Ok(Held::Same),
            Ok(_) => Err(Error::new(Kind::Exists, format!("shard {} is here with other bytes", self.shard()))),
            Err(error) if error.kind() == Kind::NotFound => Ok(Held::Nothing),
            Err(error) if error.kind() == Kind::Corrupt => {
                let file_bytes = fs::symlink_metadata(&self.path).map_or(0, |metadata| metadata.len());
                Ok(Held::Damaged(file_bytes))
            }
            Err(error) => Err(error),
        }
    }

    /// Stores it for good, in the room set aside.
    fn write(&self, header: &[u8; HEADER_BYTES], reservation: Reservation) -> Result<()> {
        let temp = Temp(self.inner.temp_path(self.shard()));
        let written = file::write(&temp.0, header, self.data, &self.inner.direct)?;
        let reservation = match self.data.len() <= JOURNALED_SHARD_BYTES_MAX {
            true => self.put_journaled(&temp.0, header, reservation)?,
            false => Some(reservation),
        };
        let Some(reservation) = reservation else { return Ok(()) };
        self.inner.durable.sync_file(&written, &temp.0)?;
        drop(written);
        self.take_name(&temp.0, reservation)?;
        self.sync_name()
    }

    /// Makes the shard durable by the journal, then renames the temp file to its name. Gives the reservation back if the
    /// journal has no room; nothing has happened then.
    fn put_journaled(
        &self,
        temp: &Path,
        header: &[u8; HEADER_BYTES],
        reservation: Reservation,
    ) -> Result<Option<Reservation>> {
        // Held over the append: the order of the records of a shard is the order in which its name is taken.
        let _name = self.inner.name_of(self.shard());
        let held = self.held()?;
        if let Held::Same = held {
            return self.sync_name().map(|()| None);
        }
        let record = Record::put(self.shard(), header, self.data);
        let Some(_recorded) = self.inner.journal.append(&self.inner.durable, &record)? else {
            return Ok(Some(reservation));
        };
        self.rename(temp)?;
        self.count(&held, reservation);
        Ok(None)
    }

    /// Renames the durable temp file to the shard's name.
    fn take_name(&self, temp: &Path, reservation: Reservation) -> Result<()> {
        let _name = self.inner.name_of(self.shard());
        let held = self.held()?;
        if let Held::Same = held {
            return Ok(());
        }
        self.inner.journal.forget_delete(self.shard())?;
        self.rename(temp)?;
        self.count(&held, reservation);
        Ok(())
    }

    /// The shard has its name. A damaged file under it was replaced: its bytes could not be had back, and the new ones are
    /// known to be what their writer sent.
    fn count(&self, held: &Held, reservation: Reservation) {
        reservation.keep();
        if let Held::Damaged(file_bytes) = held {
            self.inner.space.remove(*file_bytes);
            self.inner.damage.gone(self.shard());
        }
    }

    fn rename(&self, temp: &Path) -> Result<()> {
        let group = Group::of(self.shard().stripe);
        ensure_group(self.inner, group)?;
        let renamed = fs::rename(temp, &self.path);
        let renamed = match renamed {
            // The group became empty and was removed between the two steps.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                ensure_group(self.inner, group)?;
                fs::rename(temp, &self.path)
            }
            other => other,
        };
        renamed.io(|| format!("rename {} to {}", temp.display(), self.path.display()))
    }

    fn sync_name(&self) -> Result<()> {
        self.inner.durable.sync_names(self.inner.folder.group(Group::of(self.shard().stripe)))
    }
}

/// Makes a group's folder for good, once.
fn ensure_group(inner: &Inner, group: Group) -> Result<()> {
    let mut groups = inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
    if groups.contains(&group) {
        return Ok(());
    }
    let path = inner.folder.group(group);
    match fs::create_dir(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::io(format!("make folder {}", path.display()), error));
        }
        _ => {}
    }
    inner.durable.sync_names(inner.folder.data())?;
    groups.insert(group);
    Ok(())
}
