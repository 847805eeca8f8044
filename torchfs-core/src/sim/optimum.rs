//! What no cache can do better: Belady's rule (MIN) with all opens known from the beginning.
//!
//! A file that is needed later than everything in the cache is read through. For files of one size nothing fetches less
//! (L. A. Belady, "A study of replacement algorithms for a virtual-storage computer", 1966); for others finding the least is
//! too hard, and this is what the same rule gives.

use super::workload::Workload;
use std::collections::BTreeSet;

/// Behind all opens.
const NEVER: u64 = u64::MAX;

/// The bytes that each epoch fetches.
pub(super) fn optimum(workload: &Workload, cache_bytes: u64) -> Vec<u64> {
    let mut cache = Belady {
        workload,
        room: cache_bytes,
        next: vec![NEVER; workload.dataset().files().len()],
        held: BTreeSet::new(),
    };
    let mut opens = next_opens(workload).into_iter();
    let epochs = workload.epochs().iter().map(|epoch| {
        let opened = epoch.opened.iter().zip(opens.by_ref());
        opened.map(|(&file, next)| cache.open(file, next)).sum()
    });
    epochs.collect()
}

/// For each open the number of the next open of the same file.
fn next_opens(workload: &Workload) -> Vec<u64> {
    let opens: Vec<u32> = workload.epochs().iter().flat_map(|epoch| &epoch.opened).copied().collect();
    let mut coming = vec![NEVER; workload.dataset().files().len()];
    let mut next: Vec<u64> =
        (0..opens.len()).rev().map(|at| std::mem::replace(&mut coming[opens[at] as usize], at as u64)).collect();
    next.reverse();
    next
}

struct Belady<'a> {
    workload: &'a Workload,
    room: u64,
    /// Of each file that is held its next open.
    next: Vec<u64>,
    held: BTreeSet<(u64, u32)>,
}

impl Belady<'_> {
    /// Opens a file; answers how much is fetched for it.
    fn open(&mut self, file: u32, next: u64) -> u64 {
        let bytes = self.bytes(file);
        let was_held = self.held.remove(&(self.next[file as usize], file));
        if was_held {
            self.room += bytes;
        }
        self.next[file as usize] = next;
        if next != NEVER && self.make_room(bytes, next) {
            self.held.insert((next, file));
            self.room -= bytes;
        }
        if was_held { 0 } else { bytes }
    }

    fn bytes(&self, file: u32) -> u64 {
        self.workload.dataset().files()[file as usize].bytes
    }

    /// Gives up what is needed later than `next`, if that is enough.
    fn make_room(&mut self, bytes: u64, next: u64) -> bool {
        let later = self.held.iter().rev().take_while(|&&(needed, _)| needed > next);
        let (mut room, mut victims) = (self.room, Vec::new());
        for &(needed, file) in later {
            if room >= bytes {
                break;
            }
            room += self.bytes(file);
            victims.push((needed, file));
        }
        if room < bytes {
            return false;
        }
        for victim in victims {
            self.held.remove(&victim);
        }
        self.room = room;
        true
    }
}
