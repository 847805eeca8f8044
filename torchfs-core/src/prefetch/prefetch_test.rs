//! What the policies want, step by step. How well that works over epochs is tested with the simulator.

use super::*;
use crate::cache::policy::Plan;
use crate::ids::{InodeId, Version};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

fn key(file: u32) -> CacheKey {
    CacheKey { ino: InodeId(u64::from(file) + 1), version: Version(1) }
}

fn number(key: CacheKey) -> u32 {
    key.ino.0 as u32 - 1
}

/// A cache that everything fits that is fetched, over files of ten bytes.
struct Rig {
    planner: Planner,
    dataset: Arc<Dataset>,
    held: BTreeSet<CacheKey>,
    limit_bytes: u64,
    ahead_bytes_max: u64,
}

impl Rig {
    fn new(prefetch: Prefetch, files: u32) -> Rig {
        let dataset = Dataset::new((0..files).map(|file| DataFile { key: key(file), bytes: 10 }).collect());
        let dataset = dataset.expect("a dataset");
        let mut planner = Planner::new(prefetch);
        planner.listed(0, dataset.files());
        Rig { planner, dataset, held: BTreeSet::new(), limit_bytes: 4000, ahead_bytes_max: 1000 }
    }

    fn announce(&mut self, epoch: u64, order: &[u32]) {
        let schedule = Schedule::new(epoch, self.dataset.clone(), order.to_vec()).expect("a schedule");
        self.planner.announce(schedule).expect("announced");
    }

    fn next(&mut self) -> Option<Wanted> {
        let is_held = |key| self.held.contains(&key);
        let (limit_bytes, ahead_bytes_max) = (self.limit_bytes, self.ahead_bytes_max);
        self.planner.next(&View { is_held: &is_held, limit_bytes, ahead_bytes_max })
    }

    /// Fetches all that is wanted; answers what that was.
    fn fetch(&mut self) -> Vec<u32> {
        let mut fetched = Vec::new();
        while let Some(wanted) = self.next() {
            assert_eq!(self.next(), Some(wanted), "asking changes nothing");
            assert!(self.held.insert(wanted.key), "it was held");
            self.planner.started(&wanted);
            fetched.push(number(wanted.key));
        }
        fetched
    }

    /// Opens files one after the other; answers what was fetched meanwhile.
    fn open(&mut self, files: impl IntoIterator<Item = u32>) -> Vec<u32> {
        let open = |file| {
            self.held.insert(key(file));
            drop(self.planner.opened(DataFile { key: key(file), bytes: 10 }));
            self.fetch()
        };
        files.into_iter().flat_map(open).collect()
    }
}

#[test]
fn none_wants_nothing() {
    let mut rig = Rig::new(Prefetch::None, 10);
    rig.announce(0, &[1, 2, 3]);
    assert_eq!(rig.open([1, 2]), [0u32; 0]);
    assert_eq!(rig.planner.plan(key(3)), Plan::At(2), "what leaves the cache is decided by it all the same");
}

#[test]
fn a_schedule_is_fetched_in_its_order() {
    let mut rig = Rig::new(Prefetch::Schedule, 1000);
    rig.announce(0, &[5, 3, 8, 3, 1]);
    assert_eq!(rig.fetch(), [5, 3, 8, 1], "once each");
    rig.announce(1, &[2, 5]);
    assert_eq!(rig.fetch(), [2]);
}

#[test]
fn no_more_is_fetched_ahead_than_was_said() {
    let mut rig = Rig::new(Prefetch::Schedule, 1000);
    rig.announce(0, &(0..1000).collect::<Vec<_>>());
    assert_eq!(rig.fetch(), (0..100).collect::<Vec<_>>());
    assert_eq!(rig.open(0..10), (100..110).collect::<Vec<_>>(), "a hit lets the window slide");
}

#[test]
fn what_cannot_be_kept_or_failed_is_passed_over_and_what_left_unread_comes_back() {
    let mut rig = Rig::new(Prefetch::Schedule, 0);
    let sizes = [10, 0, 5000, 10, 10];
    let files = sizes.iter().enumerate().map(|(at, &bytes)| DataFile { key: key(at as u32), bytes });
    rig.dataset = Dataset::new(files.collect()).expect("a dataset");
    (rig.limit_bytes, rig.ahead_bytes_max) = (4900, 100_000);
    rig.announce(0, &[0, 1, 2, 3, 4]);
    assert_eq!(rig.fetch(), [0, 3, 4], "neither the empty nor the one larger than the cache");
    rig.held.remove(&key(3));
    rig.planner.failed(key(3));
    assert_eq!(rig.fetch(), [0u32; 0], "whoever opens it tries again");
    rig.held.remove(&key(4));
    rig.planner.removed(key(4));
    assert_eq!(rig.fetch(), [4]);
}

#[test]
fn what_is_needed_sooner_or_in_the_same_epoch_stays() {
    let mut rig = Rig::new(Prefetch::Schedule, 1000);
    let order: Vec<u32> = (0..900).collect();
    rig.announce(0, &order);
    drop(rig.open([0]));
    rig.announce(1, &order);
    let wanted = |file, urgency| Wanted { key: key(file), bytes: 10, place: Some(u64::from(file)), urgency };
    let (ahead, urgent) = (wanted(500, Urgency::Ahead), wanted(500, Urgency::Urgent));
    let may = |wanted, file| rig.planner.may_evict(wanted, key(file));
    assert!(!may(&ahead, 499) && !may(&urgent, 499), "needed sooner");
    assert!(!may(&ahead, 501) && may(&urgent, 501), "needed later in this epoch");
    assert!(may(&ahead, 0), "needed in the next epoch");
    assert!(may(&ahead, 950), "needed by nobody");
}

#[test]
fn only_little_of_an_epoch_is_urgent() {
    let mut rig = Rig::new(Prefetch::Schedule, 2000);
    rig.announce(0, &(0..2000).collect::<Vec<_>>());
    let mut urgent = 0;
    while let Some(wanted) = rig.next() {
        urgent += u64::from(wanted.urgency == Urgency::Urgent);
        rig.held.insert(wanted.key);
        rig.planner.started(&wanted);
    }
    assert_eq!(urgent, (20_000 - 4000) / 200 / 10, "0.5 % of what the epoch must fetch");
}

#[test]
fn a_reader_in_order_is_noticed_followed_and_given_up() {
    let mut rig = Rig::new(Prefetch::Sequential, 2000);
    assert_eq!(rig.open([10, 11]), [0u32; 0]);
    assert_eq!(rig.open([12]), [13, 14]);
    assert!(rig.planner.policy_expects(key(13)), "it does not give way to what comes later");
    assert_eq!(rig.open([13]), [15], "the window slides on a hit");
    assert_eq!(rig.open(14..50).last(), Some(&69), "and grows with trust");
    assert_eq!(rig.open([500, 900, 100]), [0u32; 0]);
    let random: Vec<u32> = (0..40).map(|at| 100 + at * 37).collect();
    assert_eq!(rig.open(random), [0u32; 0]);
    assert!(!rig.planner.policy_expects(key(69)), "what was fetched in vain may leave");
    assert_eq!(rig.open([1000, 1001, 1002, 1003]), [0u32; 0], "the next must prove more");
    assert!(!rig.open(1004..1020).is_empty(), "which it does");
}

#[test]
fn several_readers_in_order_are_followed_at_once() {
    let mut rig = Rig::new(Prefetch::Sequential, 2000);
    let opened = (0..50).flat_map(|at| [at, 500 + at, 1000 + at]);
    let missed: Vec<u32> = opened
        .filter(|&file| {
            let missed = !rig.held.contains(&key(file));
            drop(rig.open([file]));
            missed
        })
        .collect();
    assert_eq!(missed.len(), 9, "three opens of each: {missed:?}");
}

#[test]
fn a_reader_is_followed_into_the_next_folder_once_it_has_gone_on_into_one() {
    let mut rig = Rig::new(Prefetch::Sequential, 0);
    let folder = |at: u32| (100 * at..100 * at + 100).map(|file| DataFile { key: key(file), bytes: 10 });
    for at in 0..4 {
        let files: Vec<DataFile> = folder(at).collect();
        rig.planner.listed(0, &files[..60]);
        rig.planner.listed(60, &files[60..]);
    }
    assert_eq!(rig.open(0..100).last(), Some(&99), "not beyond the folder's end, but beyond what was listed at once");
    assert_eq!(rig.open([100])[..2], [101, 102], "where the reader goes on");
    assert_eq!(rig.open(101..199).last(), Some(&297), "and on, half as far as it was followed");
    drop(rig.open(199..250));
    // What is listed again is where it was.
    rig.planner.listed(0, &folder(2).collect::<Vec<_>>());
    assert_eq!(rig.open(250..260).last(), Some(&359), "as far as there is room");
}

#[test]
fn a_reader_who_turns_back_into_the_folder_before_is_followed_on() {
    let mut rig = Rig::new(Prefetch::Sequential, 20);
    let files: Vec<DataFile> = (20..60).map(|file| DataFile { key: key(file), bytes: 10 }).collect();
    rig.planner.listed(0, &files);
    rig.open([10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 19, 22, 21]);
    assert!(rig.open(23..30).contains(&33), "its window slides on");
}

#[test]
fn a_folder_that_changed_is_listed_anew() {
    let mut rig = Rig::new(Prefetch::Sequential, 100);
    let newer = |file: u32| CacheKey { version: Version(2), ..key(file) };
    let files = |changed: u32| (0..100).map(move |file| if file == changed { newer(file) } else { key(file) });
    let listed: Vec<DataFile> = files(50).map(|key| DataFile { key, bytes: 10 }).collect();
    rig.planner.listed(0, &listed);
    assert_eq!(rig.open(0..40).len(), 57);
    assert!(rig.held.contains(&newer(50)) && !rig.held.contains(&key(50)), "the file as it is now");
}

#[test]
fn what_an_order_names_is_not_guessed_and_all_else_is() {
    let mut rig = Rig::new(Prefetch::Auto, 2000);
    rig.announce(3, &[500, 10, 700]);
    assert_eq!(rig.fetch(), [500, 10, 700]);
    assert_eq!(rig.open(0..8), [3, 4, 5, 6, 7, 8, 9, 11], "10 is there, 3 is fetched after three opens");
    assert_eq!(rig.open([500, 10]), [0u32; 0], "opened as announced");
}

#[test]
fn large_files_are_fetched_ahead_when_they_are_announced_and_not_on_a_guess() {
    let large = |file: u32| file % 2 == 1;
    let file = |file| DataFile { key: key(file), bytes: if large(file) { FORESEEN_BYTES_MAX + 1 } else { 10 } };
    let mut rig = Rig::new(Prefetch::Auto, 0);
    (rig.limit_bytes, rig.ahead_bytes_max) = (1 << 40, 1 << 38);
    rig.dataset = Dataset::new((0..200).map(file).collect()).expect("a dataset");
    rig.planner.listed(0, rig.dataset.files());
    let mut fetched = Vec::new();
    for _ in 0..2 {
        rig.held.clear();
        for at in 0..100 {
            drop(rig.planner.opened(file(at)));
            rig.held.insert(key(at));
            fetched.extend(rig.fetch());
        }
    }
    assert!(fetched.len() > 90 && !fetched.iter().any(|&file| large(file)), "{fetched:?}");
    rig.announce(0, &[151, 152]);
    assert_eq!(rig.fetch(), [151, 152]);
}

#[test]
fn an_order_that_repeats_is_foreseen() {
    let mut rig = Rig::new(Prefetch::History, 2000);
    let order: Vec<u32> = (0..1000).map(|at| at * 7 % 1000).collect();
    assert_eq!(rig.open(order.iter().copied()), [0u32; 0], "nothing is known of the first epoch");
    rig.held.clear();
    assert_eq!(rig.open(order[..15].iter().copied()), [0u32; 0]);
    let fetched = rig.open(order[15..20].iter().copied());
    assert_eq!(fetched[..6], order[16..22], "what came next the last time");
    assert!(rig.planner.timeline().last_epoch() >= Some(PREDICTED_EPOCHS));
    let other: Vec<u32> = (20..60).map(|at| order[(at * 331) % 1000]).collect();
    drop(rig.open(other));
    assert_eq!(rig.planner.timeline().last_epoch(), None, "it is not believed any more");
}

#[test]
fn an_announced_order_takes_the_place_of_a_foreseen_one() {
    let mut rig = Rig::new(Prefetch::History, 2000);
    (0..2).for_each(|_| drop(rig.open(0..200)));
    assert!(rig.planner.timeline().last_epoch() >= Some(PREDICTED_EPOCHS));
    rig.announce(5, &[1500, 1501]);
    assert_eq!(rig.planner.timeline().last_epoch(), Some(5));
    drop(rig.open(0..100));
    assert!(matches!(rig.planner.plan(key(1500)), Plan::At(_)), "and keeps it");
}

#[test]
fn a_policy_is_found_by_its_name() {
    for prefetch in Prefetch::ALL {
        assert_eq!(prefetch.name().parse::<Prefetch>().expect("its name"), prefetch);
    }
    assert_eq!("oracle".parse::<Prefetch>().expect_err("unknown").kind(), Kind::InvalidInput);
}

/// What may happen to a cache and its planner.
#[derive(Clone, Copy, Debug)]
enum Step {
    List { first: u32, files: u32, continues: bool },
    Open(u32),
    Fetch,
    Fail(u32),
    Remove(u32),
    Announce { epoch: u64, seed: u64 },
    Forget,
}

const FILES: u32 = 96;

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..FILES, 0..FILES, any::<bool>())
            .prop_map(|(first, files, continues)| Step::List { first, files, continues }),
        12 => (0..FILES).prop_map(Step::Open),
        4 => Just(Step::Fetch),
        2 => (0..FILES).prop_map(Step::Fail),
        3 => (0..FILES).prop_map(Step::Remove),
        1 => (0..3u64, any::<u64>()).prop_map(|(epoch, seed)| Step::Announce { epoch, seed }),
        1 => Just(Step::Forget),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Runs of neighbours, which the policies look for, and whatever may come between.
    #[test]
    fn whatever_happens_no_more_is_wanted_than_fits_and_nothing_that_is_held(
        steps in prop::collection::vec((step(), 1..20u32, any::<bool>()), 1..80),
    ) {
        for prefetch in Prefetch::ALL {
            let mut rig = Rig::new(prefetch, FILES);
            for &(step, run, backwards) in &steps {
                match step {
                    Step::List { first, files, continues } => {
                        let files = &rig.dataset.files()[first as usize..(first + files).min(FILES) as usize];
                        rig.planner.listed(if continues { 7 } else { 0 }, files);
                    }
                    Step::Open(first) => {
                        let files = (0..run).map(|at| if backwards { first.saturating_sub(at) } else { first + at });
                        rig.open(files.filter(|&file| file < FILES));
                    }
                    Step::Fetch => drop(rig.fetch()),
                    Step::Fail(file) => {
                        rig.held.remove(&key(file));
                        rig.planner.failed(key(file));
                    }
                    Step::Remove(file) => {
                        if rig.held.remove(&key(file)) {
                            rig.planner.removed(key(file));
                        }
                    }
                    Step::Announce { epoch, seed } => {
                        let order: Vec<u32> = (0..FILES).map(|at| (seed >> (at % 32)) as u32 % FILES).collect();
                        rig.announce(epoch, &order);
                    }
                    Step::Forget => rig.planner.forget(),
                }
            }
        }
    }
}
