//! What readers do to an announced order, and that the timeline knows where they are all the same.

use super::super::{Dataset, ENTRIES_MAX};
use super::*;
use crate::error::Kind;
use crate::ids::{InodeId, Version};
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

fn key(file: u32) -> CacheKey {
    CacheKey { ino: InodeId(u64::from(file) + 1), version: Version(1) }
}

fn dataset(files: u32) -> Arc<Dataset> {
    Dataset::new((0..files).map(|file| DataFile { key: key(file), bytes: 10 }).collect()).expect("a dataset")
}

/// A timeline that knows these orders as epochs 0, 1, ...
fn timeline(files: u32, reorder: u32, orders: &[Vec<u32>]) -> Timeline {
    let (mut timeline, dataset) = (Timeline::default(), dataset(files));
    for (epoch, order) in orders.iter().enumerate() {
        let schedule = Schedule::new(epoch as u64, dataset.clone(), order.clone()).expect("a schedule");
        timeline.announce(schedule.with_reorder(reorder)).expect("announced");
    }
    timeline
}

fn order(files: u32) -> Vec<u32> {
    (0..files).collect()
}

fn open(timeline: &mut Timeline, files: impl IntoIterator<Item = u32>) {
    files.into_iter().for_each(|file| drop(timeline.opened(key(file))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Orders with repeats, as of samplers with replacement, against the obvious search.
    #[test]
    fn an_orderly_reader_is_followed_exactly(
        orders in prop::collection::vec(prop::collection::vec(0u32..30, 1..60), 1..4),
    ) {
        let mut timeline = timeline(30, 8, &orders);
        let all: Vec<u32> = orders.concat();
        for at in 0..=all.len() {
            for file in 0..30 {
                let next = all[at..].iter().position(|&other| other == file).map(|ahead| Plan::At((at + ahead) as u64));
                let plan = timeline.plan(key(file));
                match next {
                    Some(next) => prop_assert_eq!(plan, next),
                    None => prop_assert!(matches!(plan, Plan::Read | Plan::Unknown)),
                }
            }
            open(&mut timeline, all.get(at).copied());
        }
        prop_assert_eq!(timeline.low(), all.len() as u64);
    }
}

#[test]
fn what_was_read_is_told_from_what_is_in_no_order() {
    let mut timeline = timeline(10, 8, &[vec![3, 4, 5, 3]]);
    assert_eq!((timeline.plan(key(3)), timeline.plan(key(9))), (Plan::At(0), Plan::Unknown));
    assert_eq!(timeline.opened(key(3)), [key(3)]);
    assert_eq!(timeline.plan(key(3)), Plan::At(3));
    open(&mut timeline, [4, 5, 3]);
    assert_eq!((timeline.plan(key(3)), timeline.plan(key(9))), (Plan::Read, Plan::Unknown));
    assert_eq!(timeline.epoch(), Some(0), "an epoch that is over is known until the next begins");
}

#[test]
fn workers_interleave() {
    let mut timeline = timeline(200, 64, &[order(200)]);
    let interleaved = super::super::interleave(&order(200), 4, 10);
    for (opened, &file) in interleaved.iter().enumerate() {
        assert_eq!(timeline.opened(key(file)), [key(file)], "nothing else is given up");
        assert!(timeline.low() as usize <= opened + 1);
    }
    assert_eq!(timeline.low(), 200);
}

#[test]
fn each_worker_is_a_head_with_a_stretch_of_its_own() {
    let mut timeline = timeline(2000, 1024, &[order(2000)]);
    open(&mut timeline, [0, 100, 200, 1, 101, 201]);
    let places: Vec<Range<u64>> = timeline.stretches().into_iter().map(|stretch| stretch.places).collect();
    assert_eq!(places, [2..102, 102..202, 202..2000]);
}

#[test]
fn what_is_skipped_for_long_counts_as_read() {
    let mut timeline = timeline(200, 20, &[order(200)]);
    open(&mut timeline, 1..20);
    assert_eq!((timeline.plan(key(0)), timeline.low()), (Plan::At(0), 0));
    assert_eq!(timeline.opened(key(20)), [key(20), key(0)], "who needs to know is told");
    assert_eq!((timeline.plan(key(0)), timeline.low()), (Plan::Read, 21));
}

#[test]
fn the_next_epoch_begins_before_the_last_files_are_read() {
    let reversed: Vec<u32> = (0..100).rev().collect();
    let mut timeline = timeline(100, 30, &[order(100), reversed]);
    open(&mut timeline, 0..95);
    open(&mut timeline, [94, 93, 92, 91, 90]);
    assert_eq!(timeline.plan(key(99)), Plan::At(99), "still awaited in the first epoch");
    assert_eq!(timeline.plan(key(94)), Plan::Read);
    assert_eq!(timeline.epoch(), Some(1));
    open(&mut timeline, 95..100);
    assert_eq!(timeline.plan(key(99)), Plan::At(100));
    open(&mut timeline, (0..90).rev());
    assert_eq!(timeline.plan(key(0)), Plan::Read);
}

#[test]
fn strangers_change_nothing_until_nobody_follows_the_order() {
    let mut timeline = timeline(2000, 16, &[order(1500)]);
    open(&mut timeline, 0..10);
    let (low, revision) = (timeline.low(), timeline.revision());
    open(&mut timeline, (1500..2000).cycle().take(1400));
    open(&mut timeline, [1200, 700, 400]);
    assert_eq!((timeline.low(), timeline.revision()), (low, revision));
    open(&mut timeline, [10]);
    assert_eq!(timeline.plan(key(10)), Plan::Read, "the reader is still followed");
    open(&mut timeline, (1500..2000).cycle().take(1501));
    assert_eq!((timeline.plan(key(11)), timeline.epoch()), (Plan::Unknown, None));
    assert_ne!(timeline.revision(), revision, "who keeps plans is told");
}

#[test]
fn files_opened_twice_do_not_carry_the_reader_away() {
    let mut shuffled = order(2000);
    shuffled.shuffle(&mut StdRng::seed_from_u64(1));
    let mut timeline = timeline(2000, 1024, &[order(2000), shuffled]);
    for file in 0..1900 {
        open(&mut timeline, [file, file]);
        assert_eq!((timeline.epoch(), timeline.low()), (Some(0), u64::from(file) + 1));
    }
}

#[test]
fn a_reader_who_resumes_far_ahead_is_found() {
    let mut timeline = timeline(100_000, 1024, &[order(100_000)]);
    open(&mut timeline, 0..5);
    open(&mut timeline, 50_000..50_015);
    assert_eq!(timeline.low(), 5, "not believed yet");
    open(&mut timeline, 50_015..50_100);
    assert_eq!(timeline.plan(key(40_000)), Plan::Read);
    assert_eq!(timeline.plan(key(50_100)), Plan::At(50_100));
}

fn shuffled(files: u32, seed: u64) -> Vec<u32> {
    let mut order = order(files);
    order.shuffle(&mut StdRng::seed_from_u64(seed));
    order
}

#[test]
fn epochs_that_nobody_reads_are_passed_over() {
    let orders = [shuffled(2000, 1), shuffled(2000, 2), shuffled(2000, 3), shuffled(2000, 4)];
    let interleaved = super::super::interleave(&orders[2], 4, 16);
    for (read_before, next) in [(2000, &orders[2]), (700, &orders[2]), (700, &interleaved)] {
        let mut timeline = timeline(2000, 1024, &orders);
        open(&mut timeline, orders[0][..read_before].iter().copied());
        let revision = timeline.revision();
        open(&mut timeline, next[..60].iter().copied());
        assert_eq!((timeline.epoch(), timeline.last_epoch()), (Some(2), Some(3)));
        assert_ne!(timeline.revision(), revision, "who keeps plans is told");
        let at = |file: u32| orders[2].iter().position(|&other| other == file).expect("all are read") as u64;
        for &file in &next[60..] {
            assert_eq!(timeline.plan(key(file)), Plan::At(4000 + at(file)));
        }
        // A few were where they were expected by chance.
        let is_read = |file: &&u32| matches!(timeline.plan(key(**file)), Plan::At(place) if place >= 6000);
        assert!(next[..60].iter().filter(is_read).count() >= 45);
        open(&mut timeline, next[60..].iter().chain(&orders[3]).copied());
        assert_eq!((timeline.epoch(), timeline.low()), (Some(3), 8000));
    }
}

#[test]
fn who_reads_as_expected_is_not_taken_to_be_elsewhere() {
    // The later epoch has the same order, or somebody else looks through the files.
    let mut repeated = timeline(2000, 1024, &[shuffled(2000, 1), shuffled(2000, 1)]);
    open(&mut repeated, shuffled(2000, 1)[..1500].iter().copied());
    assert_eq!((repeated.epoch(), repeated.low()), (Some(0), 1500));
    let read = shuffled(2000, 1);
    let mut watched = timeline(2000, 64, &[read.clone(), shuffled(2000, 2)]);
    open(&mut watched, (0..1000).flat_map(|at| [read[at as usize], at]));
    assert_eq!(watched.epoch(), Some(0));
}

#[test]
fn an_epoch_announced_again_is_read_from_its_beginning() {
    let mut timeline = timeline(50, 16, &[order(50), order(50)]);
    open(&mut timeline, 0..30);
    let again = Schedule::new(0, dataset(50), vec![7, 8, 9]).expect("a schedule");
    timeline.announce(again).expect("announced");
    assert_eq!((timeline.epoch(), timeline.last_epoch()), (Some(0), Some(0)), "what came after it is replaced too");
    let planned: Vec<u64> = timeline.unread(0..u64::MAX).map(|(_, file)| file.key.ino.0 - 1).collect();
    assert_eq!(planned, [7, 8, 9]);
    timeline.forget();
    assert_eq!(timeline.plan(key(7)), Plan::Unknown);
}

#[test]
fn more_than_memory_should_hold_is_refused_and_changes_nothing() {
    let files = dataset(2);
    let too_long = Schedule::new(0, files.clone(), vec![0; ENTRIES_MAX + 1]).expect_err("too long");
    assert_eq!(too_long.kind(), Kind::TooLarge);
    let mut timeline = Timeline::default();
    timeline.announce(Schedule::new(0, files.clone(), vec![1, 0]).expect("a schedule")).expect("announced");
    let long = Schedule::new(1, files.clone(), vec![0; ENTRIES_MAX]).expect("alone it fits");
    let error = timeline.announce(long).expect_err("too much together");
    assert!(error.kind() == Kind::TooLarge && error.to_string().contains("a part at a time"), "{error}");
    assert_eq!((timeline.last_epoch(), timeline.plan(key(1))), (Some(0), Plan::At(0)));
    for (wrong, said) in [(vec![], "no file"), (vec![2], "file 2 of a dataset of 2 files")] {
        let error = Schedule::new(0, files.clone(), wrong).expect_err("refused").to_string();
        assert!(error.contains(said), "{error}");
    }
    assert!(Dataset::new(vec![DataFile { key: key(1), bytes: 1 }; 2]).is_err(), "one file twice");
}
