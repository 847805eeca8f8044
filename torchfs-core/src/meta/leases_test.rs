//! Time is the test's own: it passes only when everybody waits.

use super::*;
use crate::ids::{InodeId, RequestId};
use crate::meta::{Change, Changed};

const LENGTH: Duration = Duration::from_secs(1);
const NOW: Option<Duration> = Some(Duration::ZERO);
const HOLDER: ClientId = ClientId(1);
const OTHER: ClientId = ClientId(2);
const BY_OTHER: RequestId = RequestId { client: OTHER, sequence: 1 };

struct Rig {
    feed: Feed,
    leases: Leases,
}

impl Rig {
    fn new() -> Self {
        let rig = Rig { feed: Feed::new(0), leases: Leases::new(LENGTH) };
        rig.change(1);
        rig
    }

    fn change(&self, number: u64) {
        self.feed.push(number, Changed { by: BY_OTHER, what: vec![Change::Inode(InodeId(number))] });
    }

    async fn watch(&self, client: ClientId, seen: Option<u64>) -> Changes {
        self.leases.watch(&self.feed, Watch { client, seen, wish: Wish::Lease }, NOW).await
    }

    /// How long a change by `client` waits for others.
    async fn waits(&self, client: ClientId) -> Duration {
        let start = Instant::now();
        self.leases.seen_by_others(client, self.feed.last_change()).await;
        start.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_waits_until_the_holder_asks_on() {
    let rig = Rig::new();
    assert_eq!(rig.watch(HOLDER, None).await.lease, LENGTH);
    rig.watch(HOLDER, Some(1)).await;
    assert_eq!(rig.waits(OTHER).await, Duration::ZERO, "it has seen everything");

    rig.change(2);
    let soon = Duration::from_millis(30);
    let asks_on = async {
        tokio::time::sleep(soon).await;
        rig.watch(HOLDER, Some(2)).await;
    };
    let (waited, ()) = tokio::join!(rig.waits(OTHER), asks_on);
    assert_eq!(waited, soon);
    rig.change(3);
    assert_eq!(rig.waits(HOLDER).await, Duration::ZERO, "nobody waits for itself");
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_hangs_holds_others_up_once_and_as_long_as_its_lease_lasts() {
    let rig = Rig::new();
    rig.watch(HOLDER, None).await;
    let asked = Instant::now();
    rig.change(2);
    rig.waits(OTHER).await;
    assert!(asked.elapsed() <= LENGTH + Duration::from_millis(1), "{:?}", asked.elapsed());
    rig.change(3);
    assert_eq!(rig.waits(OTHER).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_wanted_runs_out_and_one_that_is_given_up_ends_at_once() {
    let rig = Rig::new();
    let watch = |wish| rig.leases.watch(&rig.feed, Watch { client: HOLDER, seen: Some(1), wish }, NOW);
    assert_eq!(watch(Wish::Lease).await.lease, LENGTH);
    let start = Instant::now();
    while start.elapsed() <= LENGTH {
        assert_eq!(watch(Wish::Nothing).await.lease, Duration::ZERO);
    }
    rig.change(2);
    assert_eq!(rig.waits(OTHER).await, Duration::ZERO, "the lease ran out");

    rig.watch(HOLDER, Some(2)).await;
    rig.change(3);
    let start = Instant::now();
    assert_eq!(watch(Wish::Leave).await.lease, Duration::ZERO);
    assert_eq!(start.elapsed(), Duration::ZERO, "nobody waits for news at the end");
    assert_eq!(rig.waits(OTHER).await, Duration::ZERO);
}

/// It asks again and again and never says that it has seen anything.
#[tokio::test(start_paused = true)]
async fn a_holder_that_does_not_take_in_what_it_is_told_loses_its_lease() {
    let rig = Rig::new();
    rig.watch(HOLDER, Some(1)).await;
    rig.change(2);
    let deaf = async {
        loop {
            rig.watch(HOLDER, Some(1)).await;
            tokio::time::sleep(LENGTH / 10).await;
        }
    };
    let waited = tokio::select! {
        waited = rig.waits(OTHER) => waited,
        () = deaf => unreachable!(),
    };
    assert!(waited <= 2 * LENGTH, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_leaves_out_something_gives_no_lease() {
    use crate::settings::WATCH_CHANGES_MAX;
    let rig = Rig::new();
    let many = |from: u64| Changed {
        by: BY_OTHER,
        what: (from..from + 3000).map(|ino| Change::Inode(InodeId(ino))).collect(),
    };
    rig.feed.push(2, many(0));
    rig.feed.push(3, many(3000));
    rig.feed.push(4, many(6000));
    let first = rig.watch(HOLDER, Some(1)).await;
    assert!(3000 + 3000 > WATCH_CHANGES_MAX && first.upto == 3, "{}", first.upto);
    assert_eq!(first.lease, Duration::ZERO);
    // It did not take in all that was due; the next lease begins when the one that was noted has ended.
    assert_eq!(rig.watch(HOLDER, Some(3)).await.lease, Duration::ZERO);
    assert_eq!(rig.watch(HOLDER, Some(4)).await.lease, LENGTH);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_waits_for_the_leases_of_the_one_before() {
    let rig = Rig::new();
    rig.leases.leads(7);
    assert_eq!(rig.waits(OTHER).await, LENGTH);
    rig.leases.leads(7);
    rig.leases.leads(6);
    assert_eq!(rig.waits(OTHER).await, Duration::ZERO, "it has led for long");
    rig.leases.leads(8);
    rig.leases.leads_first(8);
    assert_eq!(rig.waits(OTHER).await, Duration::ZERO, "there was nobody to have one");
}

#[tokio::test(start_paused = true)]
async fn a_lease_counts_from_when_it_was_sure_that_nobody_else_leads() {
    let rig = Rig::new();
    let watch = Watch { client: HOLDER, seen: None, wish: Wish::Lease };
    let ago = Duration::from_millis(300);
    assert_eq!(rig.leases.watch(&rig.feed, watch, Some(ago)).await.lease, LENGTH - ago);
    let watch = Watch { client: HOLDER, seen: Some(1), wish: Wish::Lease };
    assert_eq!(rig.leases.watch(&rig.feed, watch, Some(2 * LENGTH)).await.lease, Duration::ZERO);
    assert_eq!(rig.leases.watch(&rig.feed, watch, None).await.lease, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn there_are_only_so_many() {
    let rig = Rig::new();
    for client in 0..HOLDERS_MAX as u64 {
        assert_eq!(rig.watch(ClientId(client), None).await.lease, LENGTH);
    }
    let late = ClientId(u64::MAX);
    assert_eq!(rig.watch(late, None).await.lease, Duration::ZERO);
    tokio::time::sleep(LENGTH).await;
    assert_eq!(rig.watch(late, None).await.lease, LENGTH, "those of others have ended");
}
