//! [`Plan`]: what a replay does, when and on how many threads. Opens for reading, their reads and their closes; nothing that
//! changes anything.
//!
//! What a recorded thread did is done by one thread again, in the same order, and as long after the step before as it was
//! then: a reader that worked between two reads works as long again, however fast the storage is. Recorded threads that were never
//! there at the same time, as the workers of successive epochs are not, share a thread, so that they come one after the other
//! at any speed.

use super::{Item, Names, Op, Reader, Record};
use crate::error::Result;
use crate::ids::InodeId;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::time::Duration;

/// At most so many threads replay; further ones take turns.
const LANES_MAX: usize = 512;

/// A file that is opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedFile {
    /// Its number then.
    pub ino: InodeId,
    /// Its path from the root of the mount on.
    pub path: Option<Vec<u8>>,
    /// The longest that it was.
    pub bytes: u64,
}

/// What a step does. A handle is a number that no other open of the plan has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Opens a file for reading.
    Open {
        /// The new handle.
        handle: u32,
        /// Which of the files.
        file: u32,
    },
    /// Reads from an open file.
    Read {
        /// Through this handle.
        handle: u32,
        /// From here on.
        offset: u64,
        /// So many bytes.
        len: u64,
    },
    /// Closes a file.
    Close {
        /// The handle.
        handle: u32,
    },
}

/// One step of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// How long after the end of the step before; of the first, after the beginning of the replay.
    pub gap: Duration,
    /// What.
    pub action: Action,
}

/// What a trace has that a replay does not do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Reads of files that were open when the trace began, or were opened for writing.
    pub reads: u64,
    /// Opens that failed.
    pub failed_opens: u64,
    /// Files that were made, or opened for writing.
    pub writers: u64,
}

/// What a replay does.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The files, in the order of their first open.
    pub files: Vec<PlannedFile>,
    /// The steps of each thread.
    pub lanes: Vec<Vec<Step>>,
    /// How many opens there are.
    pub opens: u64,
    /// How many opens have at least one read.
    pub opens_read: u64,
    /// How many bytes the reads got.
    pub read_bytes: u64,
    /// What is not replayed.
    pub left_out: LeftOut,
}

/// An action with its place in the recorded time.
#[derive(Clone, Copy, Debug)]
struct Event {
    began: Duration,
    ended: Duration,
    action: Action,
}

/// An open that was not closed yet.
#[derive(Clone, Copy, Debug)]
struct OpenHandle {
    handle: u32,
    thread: u32,
    is_read: bool,
}

#[derive(Debug, Default)]
struct Planner {
    plan: Plan,
    names: Names,
    files: HashMap<InodeId, u32>,
    open: HashMap<u64, OpenHandle>,
    threads: BTreeMap<u32, Vec<Event>>,
}

impl Plan {
    /// Plans the replay of a trace.
    ///
    /// # Errors
    /// As [`Reader`].
    pub fn read(source: impl Read) -> Result<Plan> {
        let mut reader = Reader::new(source)?;
        let mut planner = Planner::default();
        while let Some(item) = reader.next()? {
            match item {
                Item::Name { ino, parent, name } => planner.names.add(ino, parent, name),
                Item::Op(record) => planner.add(&record),
                Item::Mark(_) | Item::Lost(_) => {}
            }
        }
        Ok(planner.finish())
    }
}

impl Planner {
    fn add(&mut self, record: &Record) {
        match (record.op, record.errno) {
            (Op::Open, 0) => self.open(record),
            (Op::Open, _) => self.plan.left_out.failed_opens += 1,
            (Op::OpenWrite | Op::Create, 0) => self.plan.left_out.writers += 1,
            (Op::Read, 0) => self.read(record),
            (Op::Release, _) => {
                if let Some(open) = self.open.remove(&record.handle) {
                    self.event(open.thread, record, Action::Close { handle: open.handle });
                }
            }
            _ => {}
        }
    }

    fn open(&mut self, record: &Record) {
        let files = &mut self.plan.files;
        let file = *self.files.entry(record.ino).or_insert_with(|| {
            files.push(PlannedFile { ino: record.ino, path: None, bytes: 0 });
            files.len() as u32 - 1
        });
        let planned = &mut files[file as usize];
        planned.bytes = planned.bytes.max(record.result);
        let (handle, thread) = (self.plan.opens as u32, record.thread);
        self.plan.opens += 1;
        self.open.insert(record.handle, OpenHandle { handle, thread, is_read: false });
        self.event(thread, record, Action::Open { handle, file });
    }

    fn read(&mut self, record: &Record) {
        let Some(open) = self.open.get_mut(&record.handle) else {
            self.plan.left_out.reads += 1;
            return;
        };
        self.plan.opens_read += u64::from(!std::mem::replace(&mut open.is_read, true));
        self.plan.read_bytes = self.plan.read_bytes.saturating_add(record.result);
        // Whoever opened it waits for what the kernel reads ahead, too.
        let (thread, handle) = (open.thread, open.handle);
        self.event(thread, record, Action::Read { handle, offset: record.offset, len: record.len });
    }

    fn event(&mut self, thread: u32, record: &Record, action: Action) {
        let event = Event { began: record.began, ended: record.ended(), action };
        self.threads.entry(thread).or_default().push(event);
    }

    fn finish(mut self) -> Plan {
        for file in &mut self.plan.files {
            file.path = self.names.path(file.ino);
        }
        let mut threads: Vec<Vec<Event>> = self.threads.into_values().collect();
        // An open is answered before its reads are asked, so the order of beginning keeps what belongs together.
        threads.iter_mut().for_each(|events| events.sort_by_key(|event| event.began));
        threads.sort_by_key(|events| events[0].began);
        let began = threads.first().map_or(Duration::ZERO, |events| events[0].began);
        let lanes = shared_lanes(threads).into_iter();
        self.plan.lanes = lanes.map(|events| steps(&events, began)).collect();
        self.plan
    }
}

/// Puts each thread behind one that had ended when it began, if there is one.
fn shared_lanes(threads: Vec<Vec<Event>>) -> Vec<Vec<Event>> {
    let mut lanes: Vec<Vec<Event>> = Vec::new();
    let end_of = |lane: &Vec<Event>| lane.last().map_or(Duration::ZERO, |event| event.began);
    for events in threads {
        let earliest = (0..lanes.len()).min_by_key(|&lane| end_of(&lanes[lane]));
        let behind = earliest.filter(|&lane| end_of(&lanes[lane]) <= events[0].began || lanes.len() == LANES_MAX);
        match behind {
            Some(lane) => lanes[lane].extend(events),
            None => lanes.push(events),
        }
    }
    lanes
}

fn steps(events: &[Event], began: Duration) -> Vec<Step> {
    let mut ended = began;
    let mut step = |event: &Event| {
        let gap = event.began.saturating_sub(ended);
        ended = ended.max(event.ended);
        Step { gap, action: event.action }
    };
    events.iter().map(&mut step).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Name;
    use crate::trace::Encoder;
    use std::time::SystemTime;

    fn plan(items: &[Item]) -> Plan {
        let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH);
        items.iter().for_each(|item| encoder.add(item));
        Plan::read(encoder.take().as_slice()).expect("reads")
    }

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// Takes a millisecond.
    fn op(op: Op, thread: u32, began: u64, handle: u64) -> Item {
        let (began, took, ino) = (ms(began), ms(1), InodeId(handle));
        Item::Op(Record { began, took, thread, ino, handle, len: 4096, result: 100, ..Record::of(op) })
    }

    #[test]
    fn a_thread_waits_as_long_between_its_steps_as_it_did() {
        let name = Name::new("a").expect("a name");
        let made = plan(&[
            Item::Name { ino: InodeId(7), parent: InodeId::ROOT, name },
            op(Op::Open, 3, 50, 7),
            op(Op::Read, 0, 51, 7),
            op(Op::Release, 0, 60, 7),
            op(Op::Open, 3, 90, 8),
            op(Op::Read, 3, 95, 99),
            op(Op::Create, 3, 96, 100),
        ]);
        let file = |ino, path: Option<&str>| PlannedFile { ino: InodeId(ino), path: path.map(Into::into), bytes: 100 };
        assert_eq!(made.files, [file(7, Some("/a")), file(8, None)]);
        let steps = [
            Step { gap: ms(0), action: Action::Open { handle: 0, file: 0 } },
            Step { gap: ms(0), action: Action::Read { handle: 0, offset: 0, len: 4096 } },
            Step { gap: ms(8), action: Action::Close { handle: 0 } },
            Step { gap: ms(29), action: Action::Open { handle: 1, file: 1 } },
        ];
        assert_eq!(made.lanes, [steps]);
        assert_eq!((made.opens, made.opens_read, made.read_bytes), (2, 1, 100));
        assert_eq!(made.left_out, LeftOut { reads: 1, failed_opens: 0, writers: 1 });
    }

    #[test]
    fn workers_of_successive_epochs_come_one_after_the_other() {
        // Two workers at a time, four in all.
        let opens = [(1, 0), (2, 1), (1, 10), (2, 11), (3, 20), (4, 21), (3, 30), (4, 31)];
        let items: Vec<Item> = opens.iter().map(|&(thread, began)| op(Op::Open, thread, began, began)).collect();
        let made = plan(&items);
        let files = |lane: &Vec<Step>| {
            let file =
                |step: &Step| if let Action::Open { file, .. } = step.action { file } else { panic!("{step:?}") };
            lane.iter().map(file).collect::<Vec<u32>>()
        };
        assert_eq!(made.lanes.iter().map(files).collect::<Vec<_>>(), [[0, 2, 4, 6], [1, 3, 5, 7]]);
        assert_eq!(made.lanes[1][0].gap, ms(1), "after the beginning of all");
    }
}
