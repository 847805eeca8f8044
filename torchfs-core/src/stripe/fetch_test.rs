//! Reads through trouble: right bytes or a clear error, and no more requests than needed.

use super::rig_test::{Rig, Trouble};
use crate::erasure::conformance::{bytes, subsets};
use crate::error::Kind;
use crate::ids::NodeId;
use crate::layout::{Codec, Profile, Stripe, StripeShape};
use crate::settings::SHARD_BYTES_MAX;
use crate::shard::fault::Fault;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn any_m_shards_may_be_in_any_trouble() {
    for trouble in Trouble::ALL {
        for lost in subsets(6, 2) {
            let rig = Rig::new(6);
            let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 1).await;
            lost.iter().for_each(|&index| rig.make(trouble, &stripe, index));
            rig.assert_reads(&stripe, 0..500_000, &content).await;
            rig.assert_reads(&stripe, 70_000..70_001, &content).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn more_than_m_losses_are_an_error_and_never_other_bytes() {
    for trouble in Trouble::ALL {
        for lost in subsets(6, 4).into_iter().filter(|lost| lost.len() > 2) {
            let rig = Rig::new(6);
            let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 2).await;
            lost.iter().for_each(|&index| rig.make(trouble, &stripe, index));
            match (trouble, rig.io.read(&stripe, 0..500_000).await) {
                (Trouble::Slow, result) => assert!(result.expect("slow is not lost") == content),
                (_, Ok(bytes)) => {
                    // Four data shards were left, or only parity was hit.
                    assert!(lost.iter().all(|&index| index >= 4), "{trouble:?} {lost:?}");
                    assert!(bytes == content);
                }
                (Trouble::Down | Trouble::Fails | Trouble::Hangs, Err(error)) => {
                    assert_eq!(error.kind(), Kind::Unavailable, "{lost:?} {error}");
                }
                (_, Err(error)) => assert_eq!(error.kind(), Kind::DataLoss, "{trouble:?} {lost:?} {error}"),
            }
        }
    }
}

#[tokio::test]
async fn a_whole_stripe_is_one_request_per_data_shard() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 3).await;
    rig.take_requests();
    rig.assert_reads(&stripe, 0..500_000, &content).await;
    let gets: Vec<usize> = rig.take_requests().iter().map(|node| node.get).collect();
    assert_eq!(gets, [1, 1, 1, 1, 0, 0], "parity is not touched");
}

#[tokio::test]
async fn a_small_range_is_one_request_to_one_node() {
    let rig = Rig::new(6);
    let shape = StripeShape { profile: Profile::DEFAULT, data_bytes: 9 << 20, shard_bytes: SHARD_BYTES_MAX as u32 };
    let content = Bytes::from(bytes(9 << 20, 4));
    let stripe = Arc::new(rig.io.write(shape, content.clone()).await.expect("write"));
    rig.take_requests();
    rig.assert_reads(&stripe, 5_000_000..5_040_000, &content).await;
    let gets: Vec<usize> = rig.take_requests().iter().map(|node| node.get).collect();
    assert_eq!(gets, [0, 1, 0, 0, 0, 0]);
}

#[tokio::test]
async fn what_is_missing_costs_just_the_shards_to_restore_it() {
    // Lost shards, range, requests: every lost one is asked in vain, and k others must come, those with no bytes for free.
    let small = 100;
    let cases: [(usize, &[usize], std::ops::Range<u32>, usize); 6] = [
        (500_000, &[1], 0..500_000, 4 + 1),
        (500_000, &[0, 3], 0..500_000, 4 + 2),
        (500_000, &[0], 5..6, 1 + 4),
        (500_000, &[0], 262_000..263_000, 2),
        (500_000, &[4, 5], 0..500_000, 4),
        (small, &[0], 0..100, 1 + 1),
    ];
    for (len, lost, range, requests) in cases {
        let rig = Rig::new(6);
        let (stripe, content) = rig.write(Profile::DEFAULT, len, 5).await;
        lost.iter().for_each(|&index| rig.make(Trouble::Lost, &stripe, index));
        rig.take_requests();
        rig.assert_reads(&stripe, range.clone(), &content).await;
        assert_eq!(rig.take_reads(), (requests, 0), "{len} {lost:?} {range:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_hung_node_delays_a_read_little_and_later_ones_not_at_all() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 6).await;
    for _ in 0..8 {
        rig.assert_reads(&stripe, 0..500_000, &content).await;
    }
    rig.make(Trouble::Hangs, &stripe, 0);
    let mut waits = Vec::new();
    for _ in 0..5 {
        let began = Instant::now();
        rig.assert_reads(&stripe, 0..10, &content).await;
        waits.push(began.elapsed());
    }
    assert!(waits[0] <= Duration::from_millis(100), "{waits:?}");
    assert!(waits[4] <= Duration::from_millis(2), "{waits:?}");
    rig.set(1, None);
    rig.assert_reads(&stripe, 0..10, &content).await;
    rig.take_requests();
    rig.assert_reads(&stripe, 0..10, &content).await;
    assert_eq!(rig.take_reads(), (1, 0), "it answers again and is trusted again");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_all_slow_are_not_asked_twice() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 7).await;
    (1..=6).for_each(|node| rig.set(node, Some(Fault::Delay(Duration::from_millis(180)))));
    for _ in 0..8 {
        rig.assert_reads(&stripe, 0..500_000, &content).await;
    }
    rig.take_requests();
    rig.assert_reads(&stripe, 0..500_000, &content).await;
    assert_eq!(rig.take_reads(), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn damage_is_reported_once_and_reads_do_not_wait_for_it() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 8).await;
    rig.make(Trouble::Flipped, &stripe, 0);
    rig.make(Trouble::Lost, &stripe, 2);
    for _ in 0..3 {
        rig.assert_reads(&stripe, 0..500_000, &content).await;
    }
    assert_eq!(rig.reported().await, [stripe.shard(0), stripe.shard(2)]);
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_away_are_not_damage() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 9).await;
    rig.make(Trouble::Down, &stripe, 0);
    rig.make(Trouble::Hangs, &stripe, 1);
    rig.assert_reads(&stripe, 0..500_000, &content).await;
    assert_eq!(rig.reported().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_stripe_is_stale_and_not_damage() {
    for away in 0..=3 {
        let rig = Rig::new(6);
        let (stripe, _) = rig.write(Profile::DEFAULT, 500_000, 10).await;
        (0..away).for_each(|index| rig.make(Trouble::Down, &stripe, index));
        (0..6).for_each(|index| assert!(rig.memory(stripe.nodes[index].unwrap()).lose(stripe.shard(index))));
        let error = rig.io.read(&stripe, 0..500_000).await.expect_err("gone");
        assert_eq!(error.kind(), Kind::Stale, "{error}");
        assert_eq!(rig.reported().await, []);
    }
}

#[tokio::test]
async fn the_error_names_nodes_and_reasons() {
    let rig = Rig::new(6);
    let (stripe, _) = rig.write(Profile::DEFAULT, 500_000, 11).await;
    (0..3).for_each(|index| rig.make(Trouble::Down, &stripe, index));
    let error = rig.io.read(&stripe, 0..10).await.expect_err("three are away").to_string();
    for text in ["0000000000000001", "4+2", "shard 0 on node 1: node 1 is down", "node 2 is down", "node 3 is down"] {
        assert!(error.contains(text), "'{text}' in '{error}'");
    }
    rig.stores.set_up(NodeId(2));
    rig.io.read(&stripe, 0..10).await.expect("a node came back");
}

#[tokio::test]
async fn shards_that_were_never_stored_are_restored_and_not_reported() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 500_000, 12).await;
    let mut degraded = Stripe::clone(&stripe);
    degraded.nodes[1] = None;
    degraded.nodes[5] = None;
    let degraded = Arc::new(degraded);
    rig.assert_reads(&degraded, 0..500_000, &content).await;
    assert_eq!(rig.reported().await, []);
    rig.make(Trouble::Lost, &stripe, 0);
    assert_eq!(rig.io.read(&degraded, 0..1).await.expect_err("three are missing").kind(), Kind::DataLoss);
}

#[tokio::test]
async fn impossible_records_and_ranges_are_refused() {
    let rig = Rig::new(6);
    let (stripe, _) = rig.write(Profile::DEFAULT, 1000, 13).await;
    let mut few_nodes = Stripe::clone(&stripe);
    few_nodes.nodes.pop();
    let mut no_shape = Stripe::clone(&stripe);
    no_shape.shape.shard_bytes = 0;
    for (stripe, range) in [(Arc::new(few_nodes), 0..10), (Arc::new(no_shape), 0..10), (stripe.clone(), 0..1001)] {
        let read = super::StripeRead { stripe: stripe.clone(), range: range.clone() };
        assert_eq!(rig.io.read(&stripe, range).await.expect_err("refused").kind(), Kind::InvalidInput);
        let many = rig.io.read_many(vec![read]).await;
        assert_eq!(many[0].as_ref().expect_err("refused").kind(), Kind::InvalidInput);
    }
    assert!(rig.io.read(&stripe, 7..7).await.expect("nothing").is_empty());
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    prop::sample::select(Trouble::ALL.to_vec())
}

fn any_profile() -> impl Strategy<Value = Profile> {
    let codec = prop::sample::select(vec![Codec::Gf8, Codec::Gf8, Codec::Gf8, Codec::Novelpoly]);
    let sizes = prop::sample::select(vec![(4, 2), (6, 3), (10, 4), (1, 1), (2, 1), (1, 2)]);
    (codec, sizes).prop_map(|(codec, (data, parity))| Profile { codec, data, parity })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    /// Any content, any ranges, up to m shards each in its own kind of trouble.
    #[test]
    fn any_range_is_the_contents(
        profile in any_profile(),
        len in prop_oneof![1usize..3000, 60_000usize..700_000],
        tight in any::<bool>(),
        troubles in prop::collection::vec((0usize..14, any_trouble()), 0..4),
        ranges in prop::collection::vec((0.0..1.0, 0.0..1.0), 1..4),
        seed in any::<u64>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new(profile.shards() as u32);
            let content = Bytes::from(bytes(len, seed));
            let mut shape = StripeShape::for_content(profile, len as u64);
            if !tight {
                // Shards larger than needed, as when a packed stripe did not become full.
                shape.shard_bytes = (shape.shard_bytes + 70_001).min(SHARD_BYTES_MAX as u32);
            }
            let stripe = Arc::new(rig.io.write(shape, content.clone()).await.expect("write"));
            let stored: Vec<usize> = shape.stored_shards().collect();
            let mut hit = Vec::new();
            for (number, trouble) in troubles.into_iter().take(profile.parity.into()) {
                let index = stored[number % stored.len()];
                if !hit.contains(&index) && (shape.shard_len(index) > 10 || !matches!(trouble, Trouble::Cut)) {
                    rig.make(trouble, &stripe, index);
                    hit.push(index);
                }
            }
            for (a, b) in ranges {
                let (a, b) = ((a * len as f64) as u32, (b * len as f64) as u32);
                rig.assert_reads(&stripe, a.min(b)..a.max(b), &content).await;
            }
            rig.assert_reads(&stripe, 0..len as u32, &content).await;
        });
    }
}
