//! [`Heads`]: readers of an order, such as the workers of a data loader, told apart by where they are in it.

/// An open that is not further than this from a head is of the same reader. Batches are longer, mostly.
const HEAD_PLACES: u64 = 4;

/// Heads that are followed at the same time.
const HEADS_MAX: usize = 16;

/// A head that others have moved past so often without it is gone.
pub(super) const HEAD_OPENS: u64 = 64;

/// A reader of the order, as one worker is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    /// The number of the open that it began with.
    pub id: u64,
    /// One beyond the furthest place that it opened.
    pub next: u64,
    /// How many it opened.
    pub run: u32,
    /// The number of its latest open.
    moved: u64,
}

/// The heads of one order. The last to move is the last.
#[derive(Debug, Default)]
pub(super) struct Heads {
    all: Vec<Head>,
    opens: u64,
}

impl Heads {
    /// Learns where an open was; answers how many were near each other there.
    pub fn opened(&mut self, place: u64) -> u32 {
        self.opens += 1;
        let opens = self.opens;
        self.all.retain(|head| head.moved + HEAD_OPENS >= opens);
        let near = self.all.iter().enumerate().min_by_key(|(_, head)| head.next.abs_diff(place));
        let near = near.filter(|(_, head)| head.next.abs_diff(place) <= HEAD_PLACES).map(|(at, _)| at);
        let head = match near {
            Some(at) => {
                let head = self.all.remove(at);
                Head { next: head.next.max(place + 1), run: head.run.saturating_add(1), moved: opens, ..head }
            }
            None => Head { id: opens, next: place + 1, run: 1, moved: opens },
        };
        if self.all.len() == HEADS_MAX {
            self.all.remove(0);
        }
        self.all.push(head);
        head.run
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Head> {
        self.all.iter()
    }

    /// Forgets those beyond a place.
    pub fn cut(&mut self, reached: u64) {
        self.all.retain(|head| head.next <= reached);
    }
}
