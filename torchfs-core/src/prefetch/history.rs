//! Fetching in the order of the last epoch, when that is seen to repeat.

use super::{
    DataFile, Dataset, FORESEEN_BYTES_MAX, PrefetchEvent, PrefetchPolicy, Schedule, Scheduled, Timeline, View, Wanted,
};
use crate::cache::CacheKey;
use std::collections::HashMap;
use std::sync::Arc;

/// Opens that must follow the last order from its beginning until it is believed to repeat.
const BELIEVED_OPENS: usize = 16;

/// How far an open may stand from its place in the last order: workers of a data loader take turns unevenly.
const SLACK: u32 = 32;

/// So many more opens that leave the order than keep it, and it is not believed any more.
const DISBELIEVED_OPENS: u32 = 8;

/// Fewer files than these are in any order by chance.
const FILES_MIN: usize = 2 * SLACK as usize;

/// Predicted epochs are numbered from here, so that any order that somebody announces takes their place.
pub const PREDICTED_EPOCHS: u64 = 1 << 63;

/// Most files of which the order is remembered; a reader of more is not predicted. About 150 bytes per file.
const FILES_MAX: usize = 1 << 18;

/// Remembers the order in which files are opened until one is opened again: an epoch. When the next one begins in the same
/// order, it is announced, as if somebody had said so, and followed as by [`Scheduled`].
#[derive(Debug, Default)]
pub struct History {
    scheduled: Scheduled,
    last: Option<Order>,
    current: Order,
    /// Opens of this epoch that were not where the last order has them.
    strayed: u32,
    prediction: Option<Prediction>,
}

/// Files in the order in which they were opened.
#[derive(Debug, Default)]
struct Order {
    files: Vec<DataFile>,
    places: HashMap<CacheKey, u32>,
    /// The same, once it is announced.
    dataset: Option<Arc<Dataset>>,
}

/// What was announced by this policy.
#[derive(Clone, Copy, Debug)]
struct Prediction {
    epoch: u64,
    disbelief: u32,
}

impl PrefetchPolicy for History {
    fn note(&mut self, event: PrefetchEvent<'_>, timeline: &mut Timeline) {
        if let PrefetchEvent::Opened(file) = event
            && file.bytes <= FORESEEN_BYTES_MAX
            && self.record(file)
        {
            self.predict(file, timeline);
        }
        self.scheduled.note(event, timeline);
    }

    fn next(&mut self, timeline: &Timeline, view: &View<'_>) -> Option<Wanted> {
        self.scheduled.next(timeline, view)
    }

    fn expects(&self, key: CacheKey) -> bool {
        self.scheduled.expects(key)
    }
}

impl History {
    /// Notes an open; answers whether it tells of the order.
    fn record(&mut self, file: DataFile) -> bool {
        let opened = self.current.files.len();
        match self.current.places.get(&file.key) {
            // The same reader opens it twice.
            Some(&at) if opened as u32 - at <= SLACK => return false,
            Some(_) => self.begin(),
            None if opened >= FILES_MAX => return false,
            None => {}
        }
        self.current.places.insert(file.key, self.current.files.len() as u32);
        self.current.files.push(file);
        true
    }

    /// An epoch is over, and the next begins.
    fn begin(&mut self) {
        let ended = std::mem::take(&mut self.current);
        let whole = (FILES_MIN..FILES_MAX).contains(&ended.files.len());
        let last = self.last.as_ref();
        let repeated = last.is_some_and(|last| last.files.len() == ended.files.len()) && self.strayed == 0;
        if !repeated {
            self.last = whole.then_some(ended);
        }
        self.strayed = 0;
    }

    fn predict(&mut self, file: DataFile, timeline: &mut Timeline) {
        let Some(last) = &self.last else { return };
        let (opened, all) = (self.current.files.len(), last.files.len());
        let follows = last.places.get(&file.key).is_some_and(|at| at.abs_diff(opened as u32) <= SLACK);
        self.strayed += u32::from(!follows);
        match self.prediction {
            // Somebody else has announced an order, or nobody followed this one.
            Some(prediction) if timeline.last_epoch() != Some(prediction.epoch) => self.prediction = None,
            Some(prediction) => self.doubt(prediction, follows, timeline),
            None => {}
        }
        let is_free = self.prediction.is_none() && timeline.last_epoch().is_none();
        if is_free && opened == BELIEVED_OPENS && self.strayed == 0 {
            self.announce(PREDICTED_EPOCHS, timeline);
            self.current.files.iter().for_each(|file| drop(timeline.opened(file.key)));
        }
        if let Some(prediction) = self.prediction
            && opened == all / 2
        {
            self.announce(prediction.epoch + 1, timeline);
        }
    }

    fn doubt(&mut self, mut prediction: Prediction, follows: bool, timeline: &mut Timeline) {
        prediction.disbelief = if follows { prediction.disbelief.saturating_sub(1) } else { prediction.disbelief + 1 };
        self.prediction = Some(prediction);
        if prediction.disbelief >= DISBELIEVED_OPENS {
            timeline.forget();
            self.prediction = None;
        }
    }

    fn announce(&mut self, epoch: u64, timeline: &mut Timeline) {
        let dataset = self.last.as_mut().and_then(Order::dataset);
        let schedule = dataset.and_then(|dataset| {
            let order = (0..dataset.files().len() as u32).collect();
            Schedule::new(epoch, dataset, order).ok()
        });
        let announced = schedule.map(|schedule| timeline.announce(schedule.with_reorder(SLACK)));
        // An order that is too long besides others is not predicted.
        self.prediction = announced.and_then(Result::ok).map(|()| Prediction { epoch, disbelief: 0 });
    }
}

impl Order {
    fn dataset(&mut self) -> Option<Arc<Dataset>> {
        if self.dataset.is_none() {
            self.dataset = Dataset::new(self.files.clone()).ok();
        }
        self.dataset.clone()
    }
}
