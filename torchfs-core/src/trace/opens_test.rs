//! Which opens make an epoch.

use super::*;
use crate::meta::Name;
use crate::trace::Encoder;
use std::time::SystemTime;

/// Opens of files by number, a millisecond apart; named so that the listing is in the order of the numbers.
fn opens(order: impl IntoIterator<Item = u64>) -> Opens {
    let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH);
    for (at, file) in (1..).zip(order) {
        let (ino, parent) = (InodeId(file + 100), InodeId::ROOT);
        encoder.add(&Item::Name { ino, parent, name: Name::new(format!("{file:08}")).expect("a name") });
        let began = Duration::from_millis(at);
        encoder.add(&Item::Op(Record { began, ino, handle: at, result: file + 1, ..Record::of(Op::Open) }));
    }
    Opens::read(encoder.take().as_slice()).expect("reads")
}

fn lengths(opens: &Opens) -> Vec<usize> {
    opens.epochs().into_iter().map(|epoch| epoch.len()).collect()
}

#[test]
fn an_epoch_begins_when_files_come_again() {
    let shuffled = |epoch: u64| (0..97).map(move |at| (at * (epoch * 2 + 3)) % 97);
    assert_eq!(lengths(&opens((0..5).flat_map(shuffled))), [97; 5]);
    assert_eq!(lengths(&opens((0..4).flat_map(|_| 0..3))), [3; 4], "few files, many epochs");
    assert_eq!(lengths(&opens(0..50)), [50]);
    assert_eq!(lengths(&opens([])), [0; 0]);
}

#[test]
fn files_that_are_opened_often_begin_no_epoch() {
    // A label file that is opened before every tenth file, and each file twice in a row.
    let labels = |_| (0..100).flat_map(|file| if file % 10 == 0 { vec![999, file] } else { vec![file] });
    assert_eq!(lengths(&opens((0..3).flat_map(labels))), [110; 3]);
    let twice = |_| (0..100).flat_map(|file| [file, file]);
    let found = lengths(&opens((0..3).flat_map(twice)));
    assert!(found.len() == 3 && found.iter().all(|epoch| epoch.abs_diff(200) <= 4), "{found:?}");
}

#[test]
fn a_trace_that_begins_within_an_epoch_finds_the_next() {
    let order = (60..100).chain((0..100).map(|at| (at * 7) % 100)).chain((0..100).map(|at| (at * 3) % 100));
    let found = lengths(&opens(order));
    assert_eq!((found.len(), found.iter().sum::<usize>()), (3, 240));
    assert!(found[0].abs_diff(40) <= 16 && found[1].abs_diff(100) <= 16, "{found:?}");
}

#[test]
fn workers_that_overlap_at_the_boundary_blur_it_by_a_few_files() {
    // The last eight files of an epoch come among the first eight of the next.
    let blurred = (0..92).chain((0..8).flat_map(|at| [at, 92 + at])).chain(8..100);
    let found = lengths(&opens(blurred));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].abs_diff(100) <= 16, "{found:?}");
}

#[test]
fn the_simulator_gets_the_same_orders_over_the_listing_by_path() {
    let workload = opens([2, 0, 1, 1, 2, 0]).workload().expect("opens");
    let sizes: Vec<u64> = workload.dataset().files().iter().map(|file| file.bytes).collect();
    assert_eq!(sizes, [1, 2, 3]);
    let orders: Vec<&[u32]> = workload.epochs().iter().map(|epoch| &epoch.opened[..]).collect();
    assert_eq!(orders, [[2, 0, 1], [1, 2, 0]]);
    assert!(opens([]).workload().expect_err("nothing").to_string().contains("no open"));
}

#[test]
fn reads_count_for_their_file_and_are_sequential_when_they_meet() {
    let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH);
    encoder.add(&Item::Op(Record { ino: InodeId(5), handle: 1, result: 1 << 20, ..Record::of(Op::Open) }));
    // The second and third were answered in the other order; the last is anywhere.
    for (offset, result) in [(0, 4096), (8192, 4096), (4096, 4096), (12288, 4096), (500_000, 4096)] {
        encoder.add(&Item::Op(Record {
            ino: InodeId(5),
            handle: 1,
            offset,
            len: 4096,
            result,
            ..Record::of(Op::Read)
        }));
    }
    let found = Opens::read(encoder.take().as_slice()).expect("reads");
    assert_eq!(found.pattern, ReadPattern { reads: 5, sequential: 3 });
    assert_eq!((found.files[0].read_bytes, found.opens[0].read_bytes), (5 * 4096, 5 * 4096));
}
