//! [`Rivals`]: announced epochs that may be read instead of the one that is expected.
//!
//! A training that ends leaves orders that nobody reads, and the next one announces its own behind them. Its opens are in those, too, but
//! nowhere near each other; in their own epoch they are.

use super::heads::Heads;
use std::collections::BTreeSet;

/// So many more opens near each other in an epoch than not, none of which is as expected, and it is the one that is read.
const BELIEVED_OPENS: u32 = 32;

/// Most opens looked at; then it begins anew.
const OPENS_MAX: usize = 256;

/// Epochs by the place of their first entry, and what of them was opened.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    all: Vec<Rival>,
}

#[derive(Debug)]
pub(super) struct Rival {
    first: u64,
    pub heads: Heads,
    pub opened: BTreeSet<u64>,
    score: u32,
}

impl Rivals {
    /// A file was opened where it is not expected, and has this place in the epoch that begins at `first`. Answers that epoch if it
    /// is believed from now on.
    pub fn opened(&mut self, first: u64, place: u64) -> Option<Rival> {
        let known = self.all.iter().position(|rival| rival.first == first);
        let at = known.unwrap_or_else(|| {
            self.all.push(Rival { first, heads: Heads::default(), opened: BTreeSet::new(), score: 0 });
            self.all.len() - 1
        });
        let rival = &mut self.all[at];
        let is_near = rival.heads.opened(place) > 1;
        rival.opened.insert(place);
        rival.score = if is_near { rival.score + 1 } else { rival.score.saturating_sub(1) };
        if rival.score >= BELIEVED_OPENS {
            return Some(self.all.swap_remove(at));
        }
        if rival.opened.len() > OPENS_MAX {
            self.all.swap_remove(at);
        }
        None
    }

    /// A file was opened as expected.
    pub fn expected(&mut self) {
        self.all.iter_mut().for_each(|rival| rival.score = rival.score.saturating_sub(1));
        self.all.retain(|rival| rival.score > 0);
    }

    /// Orders were announced or forgotten.
    pub fn clear(&mut self) {
        self.all.clear();
    }
}
