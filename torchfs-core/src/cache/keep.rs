//! [`Keep`]: which files stay in the cache until they are let go, as their user has pinned them.
//!
//! Files are known by inode, so a new version of one stays as the old one did, which leaves for it. They stay up to the cache's limit.

use super::{Cache, CacheKey, Index};
use crate::error::Result;
use crate::ids::InodeId;
use crate::prefetch::Dataset;

/// Entries looked at under one lock.
const MARKED_AT_ONCE: usize = 512;

/// What stays.
#[derive(Debug)]
pub(super) enum Keep {
    /// Something is pinned, and it is not known yet which files that is: so all stay that were found at start.
    AllFound,
    /// These files, by number, and how long they are together.
    These { inos: Vec<InodeId>, bytes: u64 },
}

/// How much of the cache is kept.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kept {
    pub files: u64,
    pub bytes: u64,
}

impl Keep {
    /// As long as nothing is listed.
    pub fn unlisted(pins: &[Vec<u8>]) -> Keep {
        if pins.is_empty() { Keep::These { inos: Vec::new(), bytes: 0 } } else { Keep::AllFound }
    }

    /// The first of these files, as many as fit.
    fn of(files: &Dataset, limit_bytes: u64) -> Keep {
        let (mut inos, mut bytes) = (Vec::new(), 0);
        for file in files.files() {
            if bytes + file.bytes > limit_bytes {
                break;
            }
            bytes += file.bytes;
            inos.push(file.key.ino);
        }
        inos.sort_unstable();
        Keep::These { inos, bytes }
    }

    fn names(&self, ino: InodeId) -> bool {
        match self {
            Keep::AllFound => false,
            Keep::These { inos, .. } => inos.binary_search(&ino).is_ok(),
        }
    }
}

impl Cache {
    /// The paths that were pinned when the folder was used last, or by [`Cache::set_pins`]. Blocks on the disk.
    pub(crate) fn pins(&self) -> Vec<Vec<u8>> {
        self.shared.pins.read()
    }

    /// Remembers paths as pinned, for when the folder is used again. Blocks on the disk.
    ///
    /// # Errors
    /// What the operating system reports; then the old ones stay.
    pub(crate) fn set_pins(&self, pins: &[Vec<u8>]) -> Result<()> {
        self.shared.pins.write(pins)
    }

    /// From now on these files stay in the cache, once they are there, whatever version of them: the first of them, as many as fit.
    /// Others that stayed until now leave when their place is needed. Blocks on the disk, and looks at all that is in the cache.
    pub fn keep(&self, files: &Dataset) {
        let shared = &self.shared;
        let keep = Keep::of(files, shared.limit_bytes);
        let keys: Vec<CacheKey> = {
            let mut index = shared.index();
            index.keep = keep;
            index.slots.keys().copied().collect()
        };
        for keys in keys.chunks(MARKED_AT_ONCE) {
            let mut index = shared.index();
            keys.iter().for_each(|&key| index.mark(key));
        }
        let (evicted, _) = shared.index().make_room(0, shared.limit_bytes);
        shared.remove(&evicted);
    }

    /// How much can be held, by the limit and by what the disk has free.
    pub(crate) fn room_bytes(&self) -> u64 {
        self.shared.room_bytes()
    }
}

impl Index {
    /// Whether a file stays once it is there.
    pub(super) fn keeps(&self, ino: InodeId) -> bool {
        self.keep.names(ino)
    }

    /// How much of the cache is set aside for what stays, there or not.
    pub(super) fn set_aside_bytes(&self) -> u64 {
        match self.keep {
            Keep::AllFound => self.kept.bytes,
            Keep::These { bytes, .. } => bytes,
        }
    }

    /// Gives an entry the mark that it should have.
    fn mark(&mut self, key: CacheKey) {
        let is_kept = self.keeps(key.ino) && !self.is_replaced(key);
        let Some(slot) = self.slots.get_mut(&key).filter(|slot| slot.is_kept != is_kept) else { return };
        let (stored, stayed) = (slot.stored_bytes, slot.stays());
        slot.is_kept = is_kept;
        let stays = slot.stays();
        match (stayed, stays) {
            (false, true) => self.staying_bytes += stored,
            (true, false) => self.staying_bytes -= stored,
            _ => {}
        }
        if is_kept {
            self.kept.files += 1;
            self.kept.bytes += stored;
        } else {
            self.kept.files -= 1;
            self.kept.bytes -= stored;
        }
    }
}
