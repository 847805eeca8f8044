//! Writes through trouble: every stripe reported as written survives any one node, and what is not in its record is not left
//! behind.

use super::rig_test::Rig;
use crate::erasure::conformance::{bytes, subsets};
use crate::error::Kind;
use crate::ids::NodeId;
use crate::layout::{Profile, Stripe, StripeShape};
use crate::settings::SHARD_BYTES_MAX;
use crate::shard::fault::Fault;
use bytes::Bytes;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

const LEN: usize = 500_000;
/// Of [`LEN`] at 4+2.
const SHARD: u64 = 2 * 64 * 1024;

fn shape() -> StripeShape {
    StripeShape::for_content(Profile::DEFAULT, LEN as u64)
}

fn nodes_of(stripe: &Stripe) -> Vec<u32> {
    stripe.nodes.iter().flatten().map(|node| node.0).collect()
}

/// Reads back with each single node of the record away.
async fn assert_survives_any_one_node(rig: &Rig, stripe: &Arc<Stripe>, content: &Bytes) {
    for node in stripe.nodes.iter().flatten() {
        rig.stores.set_down(*node);
        rig.assert_reads(stripe, 0..content.len() as u32, content).await;
        rig.stores.set_up(*node);
    }
}

/// Lets background work finish. Time is paused, so this is instant.
async fn let_it_settle() {
    tokio::time::sleep(Duration::from_secs(60)).await;
}

#[tokio::test]
async fn shards_go_to_distinct_nodes() {
    let rig = Rig::new(8);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 1).await;
    assert_eq!(nodes_of(&stripe), [1, 2, 3, 4, 5, 6]);
    assert!(!stripe.is_under_spread());
    rig.assert_reads(&stripe, 0..LEN as u32, &content).await;
    assert_eq!(rig.shards_held(), 6);
}

#[tokio::test]
async fn a_small_file_is_three_shards() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 1000, 1).await;
    assert_eq!(rig.shards_held(), 3);
    assert!(!stripe.is_under_spread());
    assert_survives_any_one_node(&rig, &stripe, &content).await;
}

#[tokio::test(start_paused = true)]
async fn nodes_in_trouble_are_replaced_by_spares() {
    let faults = [
        Fault::Fail(Kind::Io),
        Fault::Fail(Kind::NoSpace),
        Fault::Hang,
        Fault::Delay(Duration::from_secs(9)),
        Fault::LoseReply,
    ];
    for fault in faults {
        for bad in subsets(6, 2) {
            let rig = Rig::new(8);
            bad.iter().for_each(|&index| rig.set(index as u32 + 1, Some(fault)));
            let began = Instant::now();
            let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 2).await;
            assert!(began.elapsed() < Duration::from_secs(2), "{fault:?} {bad:?} took {:?}", began.elapsed());
            assert!(!stripe.is_under_spread());
            assert!(bad.iter().all(|&index| !nodes_of(&stripe).contains(&(index as u32 + 1))), "{fault:?} {bad:?}");
            rig.assert_reads(&stripe, 0..LEN as u32, &content).await;
            bad.iter().for_each(|&index| rig.set(index as u32 + 1, None));
            let_it_settle().await;
            assert_eq!(rig.shards_held(), 6, "copies beside the record's are deleted: {fault:?} {bad:?}");
            rig.assert_reads(&stripe, 0..LEN as u32, &content).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn without_spares_a_shard_is_left_out_or_nodes_hold_two() {
    for fault in [Fault::Fail(Kind::Io), Fault::Hang] {
        for bad in subsets(6, 2).into_iter().filter(|bad| !bad.is_empty()) {
            let rig = Rig::new(6);
            bad.iter().for_each(|&index| rig.set(index as u32 + 1, Some(fault)));
            // The second write knows which nodes failed the first.
            for _ in 0..2 {
                let began = Instant::now();
                let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 3).await;
                assert!(began.elapsed() <= Duration::from_secs(4), "{fault:?} {bad:?} took {:?}", began.elapsed());
                assert!(stripe.is_under_spread());
                let distinct: std::collections::BTreeSet<u32> = nodes_of(&stripe).into_iter().collect();
                assert_eq!(distinct.len(), 6 - bad.len());
                if bad.len() == 1 {
                    assert_eq!(nodes_of(&stripe).len(), 5, "five nodes are enough for a shard each: {stripe:?}");
                }
                assert_survives_any_one_node(&rig, &stripe, &content).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn with_more_than_m_nodes_hung_a_write_fails_and_names_them() {
    for bad in subsets(6, 3).into_iter().filter(|bad| bad.len() == 3) {
        let rig = Rig::new(6);
        bad.iter().for_each(|&index| rig.set(index as u32 + 1, Some(Fault::Hang)));
        for _ in 0..2 {
            let began = Instant::now();
            let error =
                rig.io.write(shape(), bytes(LEN, 3).into()).await.expect_err("three nodes hold two shards each");
            assert_eq!(error.kind(), Kind::Unavailable);
            assert!(began.elapsed() < super::STRIPE_DEADLINE, "{bad:?} took {:?}", began.elapsed());
            for index in &bad {
                assert!(error.to_string().contains(&format!("node {}: no answer", index + 1)), "{bad:?}: {error}");
            }
        }
        bad.iter().for_each(|&index| rig.set(index as u32 + 1, None));
        let_it_settle().await;
        assert_eq!(rig.shards_held(), 0);
        rig.write(Profile::DEFAULT, LEN, 3).await;
    }
}

#[tokio::test]
async fn k_nodes_are_enough_and_fewer_are_not() {
    let rig = Rig::new(4);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 4).await;
    assert!(stripe.is_under_spread());
    assert_survives_any_one_node(&rig, &stripe, &content).await;

    let error = Rig::new(3).io.write(shape(), bytes(LEN, 4).into()).await.expect_err("fewer than k");
    assert_eq!(error.kind(), Kind::Unavailable);
    assert!(error.to_string().contains("3 nodes take writes, at least 4 are needed"), "{error}");
    let mirror = StripeShape::for_content(Profile::new(2, 1).expect("profile"), LEN as u64);
    let error = Rig::new(2).io.write(mirror, bytes(LEN, 4).into()).await.expect_err("no node may be lost");
    assert_eq!(error.kind(), Kind::Unavailable);

    let rig = Rig::new(2);
    let (stripe, content) = rig.write(Profile::DEFAULT, 1000, 4).await;
    assert_eq!(nodes_of(&stripe), [1, 2], "two copies on two nodes");
    assert!(stripe.is_under_spread());
    assert_survives_any_one_node(&rig, &stripe, &content).await;
}

#[tokio::test]
async fn more_than_m_nodes_down_is_an_error_and_leaves_nothing() {
    let rig = Rig::new(6);
    (3..=6).for_each(|node| rig.stores.set_down(NodeId(node)));
    let error = rig.io.write(shape(), bytes(LEN, 5).into()).await.expect_err("two nodes are not enough");
    assert_eq!(error.kind(), Kind::Unavailable);
    for text in ["node 3: node 3 is down", "node 4", "node 5", "node 6 is down", "4+2"] {
        assert!(error.to_string().contains(text), "'{text}' in '{error}'");
    }
    assert_eq!(rig.shards_held(), 0);
    (3..=6).for_each(|node| rig.stores.set_up(NodeId(node)));
    rig.write(Profile::DEFAULT, LEN, 5).await;
}

#[tokio::test]
async fn full_disks_are_no_space_and_one_full_disk_is_nothing() {
    let rig = Rig::with_capacities(&[SHARD - 1; 6]);
    let error = rig.io.write(shape(), bytes(LEN, 6).into()).await.expect_err("all are full");
    assert_eq!(error.kind(), Kind::NoSpace, "{error}");
    let rig = Rig::with_capacities(&[u64::MAX, 0, u64::MAX, u64::MAX, u64::MAX, u64::MAX, u64::MAX]);
    let (stripe, _) = rig.write(Profile::DEFAULT, LEN, 6).await;
    assert!(!stripe.is_under_spread());
}

#[tokio::test]
async fn with_room_for_one_shard_less_the_stripe_is_degraded() {
    let rig = Rig::with_capacities(&[SHARD; 5]);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 7).await;
    assert_eq!(nodes_of(&stripe).len(), 5);
    assert!(stripe.is_under_spread());
    assert_survives_any_one_node(&rig, &stripe, &content).await;

    let rig = Rig::with_capacities(&[SHARD; 4]);
    let error = rig.io.write(shape(), bytes(LEN, 7).into()).await.expect_err("four shards cannot lose one");
    assert_eq!(error.kind(), Kind::NoSpace);
    assert_eq!(rig.shards_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_failed_is_avoided_for_a_while() {
    let rig = Rig::new(8);
    rig.set(2, Some(Fault::Hang));
    rig.write(Profile::DEFAULT, LEN, 8).await;
    let began = Instant::now();
    let (stripe, _) = rig.write(Profile::DEFAULT, LEN, 8).await;
    assert_eq!(*rig.meta.avoided.lock().unwrap(), [NodeId(2)]);
    assert!(!nodes_of(&stripe).contains(&2));
    assert!(began.elapsed() < Duration::from_millis(100), "{:?}", began.elapsed());
    let_it_settle().await;
    rig.set(2, None);
    let (stripe, _) = rig.write(Profile::DEFAULT, LEN, 8).await;
    assert!(nodes_of(&stripe).contains(&2), "it gets another chance");
}

#[tokio::test(start_paused = true)]
async fn nodes_that_are_all_slow_are_waited_for() {
    let rig = Rig::new(8);
    (1..=8).for_each(|node| rig.set(node, Some(Fault::Delay(Duration::from_secs(4)))));
    let (stripe, _) = rig.write(Profile::DEFAULT, LEN, 9).await;
    assert_eq!(nodes_of(&stripe), [1, 2, 3, 4, 5, 6]);
    assert_eq!(rig.take_requests().iter().map(|node| node.put).sum::<usize>(), 6);
}

#[tokio::test]
async fn long_content_becomes_several_stripes() {
    let profile = Profile::new(1, 1).expect("profile");
    let rig = Rig::new(3);
    let content = Bytes::from(bytes(4 * SHARD_BYTES_MAX + 70_000, 10));
    let stripes = rig.io.write_all(profile, content.clone()).await.expect("write");
    assert_eq!(stripes.len(), 5);
    let mut read = Vec::new();
    for stripe in stripes {
        let (len, stripe) = (stripe.shape.data_bytes, Arc::new(stripe));
        read.extend_from_slice(&rig.io.read(&stripe, 0..len).await.expect("read"));
    }
    assert!(content == read);
    assert!(rig.io.write_all(profile, Bytes::new()).await.expect("nothing").is_empty());
}

#[tokio::test(start_paused = true)]
async fn content_that_fails_midway_leaves_nothing() {
    let profile = Profile::new(1, 1).expect("profile");
    let rig = Rig::with_capacities(&[SHARD_BYTES_MAX as u64 * 2; 2]);
    let content = Bytes::from(bytes(5 * SHARD_BYTES_MAX, 11));
    let error = rig.io.write_all(profile, content).await.expect_err("room for two stripes");
    assert_eq!(error.kind(), Kind::NoSpace);
    let_it_settle().await;
    assert_eq!(rig.shards_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_is_given_up_leaves_nothing() {
    let rig = Rig::new(6);
    (4..=6).for_each(|node| rig.set(node, Some(Fault::Delay(Duration::from_secs(1)))));
    let write = rig.io.write(shape(), bytes(LEN, 11).into());
    tokio::time::timeout(Duration::from_millis(500), write).await.expect_err("given up");
    assert_eq!(rig.shards_held(), 3);
    let_it_settle().await;
    assert_eq!(rig.shards_held(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_no_file_names_is_given_back_also_what_is_on_its_way() {
    let rig = Rig::new(6);
    rig.write(Profile::DEFAULT, LEN, 1).await;
    (4..=6).for_each(|node| rig.set(node, Some(Fault::Delay(Duration::from_millis(200)))));
    let io = rig.io.clone();
    let write = tokio::spawn(async move { io.write(shape(), bytes(LEN, 2).into()).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    write.abort();
    rig.io.give_back(Duration::from_secs(2)).await;
    assert_eq!(rig.shards_held(), 0);
    // A node that hangs does not hold up the end.
    rig.write(Profile::DEFAULT, LEN, 3).await;
    rig.set(1, Some(Fault::Hang));
    let began = Instant::now();
    rig.io.give_back(Duration::from_secs(2)).await;
    assert_eq!((began.elapsed(), rig.shards_held()), (Duration::from_secs(2), 1));
}

#[tokio::test]
async fn pieces_are_the_same_as_one_buffer() {
    let content = Bytes::from(bytes(LEN, 12));
    for cuts in [vec![], vec![1], vec![131_072, 262_144], vec![0, 100, 200_000, 200_001, LEN]] {
        let bounds: Vec<usize> = std::iter::once(0).chain(cuts).chain([LEN]).collect();
        let pieces = bounds.windows(2).map(|pair| content.slice(pair[0]..pair[1])).collect();
        let rig = Rig::new(6);
        let stripe = Arc::new(rig.io.write_pieces(shape(), pieces).await.expect("write"));
        rig.assert_reads(&stripe, 0..LEN as u32, &content).await;
        assert_survives_any_one_node(&rig, &stripe, &content).await;
    }
}

#[tokio::test]
async fn content_of_another_length_than_the_shape_is_refused() {
    let rig = Rig::new(6);
    let error = rig.io.write(shape(), bytes(LEN - 1, 13).into()).await.expect_err("a byte short");
    assert_eq!(error.kind(), Kind::InvalidInput);
    assert_eq!(rig.shards_held(), 0);
}

#[tokio::test]
async fn every_operation_can_be_spawned() {
    let io = Rig::new(6).io;
    let profile = Profile::DEFAULT;
    let spawned = tokio::spawn(async move {
        let stripes = io.write_all(profile, bytes(LEN, 14).into()).await?;
        let stripe = Arc::new(io.write_pieces(shape(), vec![bytes(LEN, 14).into()]).await?);
        let read = super::StripeRead { stripe: stripe.clone(), range: 0..10 };
        let many = io.read_many(vec![read]).await.swap_remove(0)?;
        io.discard(&stripes);
        Ok::<_, crate::Error>(io.read(&stripe, 0..10).await? == many)
    });
    assert!(spawned.await.expect("joined").expect("works"));
}

#[tokio::test(start_paused = true)]
async fn a_writer_of_many_small_stripes_asks_for_places_ahead_and_each_is_used_once() {
    let rig = Rig::new(6);
    let mut stripes = std::collections::BTreeSet::new();
    for seed in 0..500 {
        let (stripe, content) = rig.write(Profile::DEFAULT, 1 + 100 * seed, seed as u64).await;
        rig.assert_reads(&stripe, 0..content.len() as u32, &content).await;
        assert!(stripes.insert(stripe.id), "{} was given twice", stripe.id);
    }
    let asked = rig.meta.asked.load(Ordering::Relaxed);
    assert!(asked < 50, "asked {asked} times for 500 stripes");
}

#[tokio::test(start_paused = true)]
async fn places_of_long_ago_are_not_used() {
    let rig = Rig::new(6);
    for seed in 0..4 {
        rig.write(Profile::DEFAULT, 1000, seed).await;
    }
    for seed in 4..8 {
        let asked = rig.meta.asked.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_secs(2)).await;
        rig.write(Profile::DEFAULT, 1000, seed).await;
        assert_eq!(rig.meta.asked.load(Ordering::Relaxed), asked + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn places_asked_for_before_a_node_failed_are_forgotten() {
    let rig = Rig::new(8);
    for seed in 0..4 {
        rig.write(Profile::DEFAULT, 1000, seed).await;
    }
    rig.set(1, Some(Fault::Fail(Kind::Io)));
    let (stripe, _) = rig.write(Profile::DEFAULT, 1000, 4).await;
    assert_eq!(nodes_of(&stripe), [4, 2, 3], "a spare took the place of the node that failed");
    let (stripe, _) = rig.write(Profile::DEFAULT, 1000, 5).await;
    assert_eq!(nodes_of(&stripe), [2, 3, 4]);
    assert_eq!(*rig.meta.avoided.lock().unwrap(), [NodeId(1)]);
}
