//! [`Summary`]: what a trace comes to.

use super::opens::Collector;
use super::{Item, Op, Opens, Reader, Record};
use crate::error::Result;
use crate::observe::{Latency, LatencyStats};
use serde::Serialize;
use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::time::{Duration, SystemTime};

/// How often something was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OpSummary {
    /// What.
    pub op: Op,
    /// How often, and how long the answers took.
    #[serde(flatten)]
    pub latency: LatencyStats,
    /// Bytes that were read or written by it.
    pub bytes: u64,
}

/// What happened in an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct EpochSummary {
    /// Seconds from the beginning of the trace to its first open.
    pub began_seconds: f64,
    /// Seconds to the first open of the next one, or to the last of the last one.
    pub seconds: f64,
    /// Opens for reading.
    pub opens: u64,
    /// Different files.
    pub files: u64,
    /// How long the opened files are together.
    pub bytes: u64,
    /// Bytes that were read from them through the mount's process.
    pub read_bytes: u64,
}

/// What a trace comes to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// When it began.
    pub began: SystemTime,
    /// How long it is.
    pub length: Duration,
    /// How many operations it has.
    pub records: u64,
    /// How many found no room in it.
    pub lost: u64,
    /// Whether its end is missing.
    pub is_torn: bool,
    /// By what was asked, most often first.
    pub ops: Vec<OpSummary>,
    /// Every open for reading, with its file.
    pub opens: Opens,
    /// The same by epoch.
    pub epochs: Vec<EpochSummary>,
}

impl Summary {
    /// Sums up a trace.
    ///
    /// # Errors
    /// As [`Reader`].
    pub fn read(source: impl Read) -> Result<Summary> {
        let mut reader = Reader::new(source)?;
        let mut sum = Sum::default();
        while let Some(item) = reader.next()? {
            sum.add(&item);
        }
        Ok(sum.finish(reader.began(), reader.is_torn()))
    }
}

#[derive(Debug, Default)]
struct Sum {
    length: Duration,
    records: u64,
    lost: u64,
    ops: BTreeMap<Op, (Latency, u64)>,
    opens: Collector,
}

impl Sum {
    fn add(&mut self, item: &Item) {
        match item {
            Item::Op(record) => self.add_op(record),
            Item::Mark(time) => self.length = self.length.max(*time),
            Item::Lost(count) => self.lost = self.lost.saturating_add(*count),
            Item::Name { .. } => {}
        }
        self.opens.add(item);
    }

    fn add_op(&mut self, record: &Record) {
        self.records += 1;
        self.length = self.length.max(record.ended());
        let (latency, bytes) = self.ops.entry(record.op).or_default();
        latency.add(record.took, record.errno != 0);
        if matches!(record.op, Op::Read | Op::Write | Op::CopyFileRange) {
            *bytes = bytes.saturating_add(record.result);
        }
    }

    fn finish(self, began: SystemTime, is_torn: bool) -> Summary {
        let op = |(op, (latency, bytes)): (Op, (Latency, u64))| OpSummary { op, latency: latency.stats(), bytes };
        let mut ops: Vec<OpSummary> = self.ops.into_iter().map(op).collect();
        ops.sort_by_key(|op| std::cmp::Reverse(op.latency.requests));
        let opens = self.opens.finish();
        let epochs = epochs(&opens);
        Summary { began, length: self.length, records: self.records, lost: self.lost, is_torn, ops, opens, epochs }
    }
}

fn epochs(opens: &Opens) -> Vec<EpochSummary> {
    let ranges = opens.epochs();
    let epoch = |range: &std::ops::Range<usize>| {
        let of_epoch = &opens.opens[range.clone()];
        let began = of_epoch[0].began;
        let next = opens.opens.get(range.end).unwrap_or(&of_epoch[of_epoch.len() - 1]);
        let files: HashSet<u32> = of_epoch.iter().map(|open| open.file).collect();
        EpochSummary {
            began_seconds: began.as_secs_f64(),
            seconds: (next.began - began).as_secs_f64(),
            opens: of_epoch.len() as u64,
            files: files.len() as u64,
            bytes: of_epoch.iter().map(|open| open.bytes).sum(),
            read_bytes: of_epoch.iter().map(|open| open.read_bytes).sum(),
        }
    };
    ranges.iter().map(epoch).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InodeId;
    use crate::trace::{Encoder, ReadPattern};

    fn summary(items: &[Item]) -> Summary {
        let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH);
        items.iter().for_each(|item| encoder.add(item));
        Summary::read(encoder.take().as_slice()).expect("reads")
    }

    fn record(op: Op, began_ms: u64, handle: u64, result: u64) -> Record {
        let (began, took) = (Duration::from_millis(began_ms), Duration::from_millis(1));
        Record { began, took, handle, result, ino: InodeId(handle % 10), ..Record::of(op) }
    }

    #[test]
    fn operations_are_counted_by_kind_and_bytes_belong_to_the_epoch_of_their_open() {
        // Two files twice; the second epoch begins 100 ms after the first.
        let mut items = Vec::new();
        for (began, handle) in [(0, 12), (10, 13), (100, 23), (110, 22)] {
            items.push(Item::Op(record(Op::Open, began, handle, 1000)));
            items.push(Item::Op(Record { len: 4096, ..record(Op::Read, began + 2, handle, 1000) }));
            items.push(Item::Op(record(Op::Release, began + 5, handle, 0)));
        }
        items.push(Item::Op(Record { errno: 2, ..record(Op::Lookup, 50, 1, 0) }));
        items.push(Item::Lost(3));
        items.push(Item::Mark(Duration::from_secs(9)));
        let sum = summary(&items);
        assert_eq!((sum.records, sum.lost, sum.is_torn, sum.length), (13, 3, false, Duration::from_secs(9)));
        let of = |op| sum.ops.iter().find(|summed| summed.op == op).expect("was asked");
        assert_eq!((of(Op::Read).latency.requests, of(Op::Read).bytes), (4, 4000));
        assert_eq!((of(Op::Lookup).latency.requests, of(Op::Lookup).latency.failures), (1, 1));
        assert_eq!(of(Op::Open).bytes, 0, "how long a file is was not moved");
        assert_eq!(sum.opens.pattern, ReadPattern { reads: 4, sequential: 4 });
        let epochs: Vec<_> = sum.epochs.iter().map(|epoch| (epoch.opens, epoch.files, epoch.read_bytes)).collect();
        assert_eq!(epochs, [(2, 2, 2000), (2, 2, 2000)]);
        assert_eq!((sum.epochs[0].seconds, sum.epochs[1].began_seconds), (0.1, 0.1));
    }

    #[test]
    fn an_empty_trace_sums_up_to_nothing() {
        let sum = summary(&[]);
        assert_eq!((sum.records, sum.ops.len(), sum.epochs.len(), sum.opens.files.len()), (0, 0, 0, 0));
    }
}
