//! Many reads in few requests, and the way back to single ones.

use super::StripeRead;
use super::rig_test::{Rig, Trouble};
use crate::error::Kind;
use crate::layout::{Profile, Stripe};
use crate::settings::GET_MANY_MAX;
use crate::shard::fault::Fault;
use bytes::Bytes;
use proptest::prelude::*;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const LEN: usize = 500_000;

fn reads(stripe: &Arc<Stripe>, ranges: impl IntoIterator<Item = Range<u32>>) -> Vec<StripeRead> {
    ranges.into_iter().map(|range| StripeRead { stripe: stripe.clone(), range }).collect()
}

async fn assert_all(rig: &Rig, reads: Vec<StripeRead>, content: &Bytes) {
    let answers = rig.io.read_many(reads.clone()).await;
    assert_eq!(answers.len(), reads.len());
    for (read, answer) in reads.iter().zip(answers) {
        let expected = content.slice(read.range.start as usize..read.range.end as usize);
        assert!(answer.expect("read") == expected, "bytes {:?} differ", read.range);
    }
}

/// 50 files of 10,000 bytes, one after the other.
fn files(stripe: &Arc<Stripe>) -> Vec<StripeRead> {
    reads(stripe, (0..50).map(|file| file * 10_000..(file + 1) * 10_000))
}

#[tokio::test]
async fn files_of_a_stripe_are_one_request_per_node() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 1).await;
    rig.take_requests();
    assert_all(&rig, files(&stripe), &content).await;
    let requests = rig.take_requests();
    assert!(requests.iter().all(|node| node.get == 0));
    assert_eq!(requests.iter().map(|node| node.get_many).collect::<Vec<_>>(), [1, 1, 1, 1, 0, 0]);
    assert!(rig.io.read_many(Vec::new()).await.is_empty());
}

#[tokio::test]
async fn requests_stay_within_their_limits() {
    let rig = Rig::new(6);
    let mut all = Vec::new();
    let mut contents = Vec::new();
    for seed in 0..GET_MANY_MAX as u64 + 10 {
        let (stripe, content) = rig.write(Profile::DEFAULT, 100, seed).await;
        all.extend(reads(&stripe, std::iter::once(0..100)));
        contents.push(content);
    }
    rig.take_requests();
    let answers = rig.io.read_many(all).await;
    assert!(answers.into_iter().zip(contents).all(|(answer, content)| answer.expect("read") == content));
    assert_eq!(rig.take_reads(), (0, 2), "one node holds all data; one request is not enough");
}

#[tokio::test(start_paused = true)]
async fn any_trouble_falls_back_to_single_reads() {
    for trouble in Trouble::ALL {
        let rig = Rig::new(6);
        let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 2).await;
        rig.make(trouble, &stripe, 0);
        rig.make(trouble, &stripe, 3);
        assert_all(&rig, files(&stripe), &content).await;
    }
}

#[tokio::test]
async fn an_answer_with_entries_missing_is_not_trusted() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 3).await;
    rig.set(1, Some(Fault::DropAnswers));
    assert_all(&rig, files(&stripe), &content).await;
}

#[tokio::test(start_paused = true)]
async fn a_hung_node_does_not_hold_up_the_others() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 4).await;
    rig.make(Trouble::Hangs, &stripe, 1);
    let began = Instant::now();
    assert_all(&rig, files(&stripe), &content).await;
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_known_to_hang_is_hardly_waited_for_and_is_trusted_again() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 4).await;
    assert_all(&rig, files(&stripe), &content).await;
    rig.make(Trouble::Hangs, &stripe, 1);
    for _ in 0..3 {
        assert_all(&rig, files(&stripe), &content).await;
    }
    let began = Instant::now();
    for _ in 0..10 {
        assert_all(&rig, files(&stripe), &content).await;
    }
    let each = began.elapsed() / 10;
    assert!(each < Duration::from_millis(50), "{each:?}");

    (1..=6).for_each(|node| rig.set(node, None));
    assert_all(&rig, files(&stripe), &content).await;
    rig.take_requests();
    assert_all(&rig, files(&stripe), &content).await;
    assert!(rig.take_requests().iter().all(|node| node.get == 0), "its answers count again");
}

#[tokio::test]
async fn each_read_has_its_own_error() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 5).await;
    (0..3).for_each(|index| rig.make(Trouble::Flipped, &stripe, index));
    // The last shard is good; its neighbours cannot be restored.
    let answers = rig.io.read_many(reads(&stripe, [0..10, 450_000..450_010, 7..7, 0..600_000])).await;
    assert_eq!(answers[0].as_ref().expect_err("lost").kind(), Kind::DataLoss);
    assert!(answers[1].as_ref().expect("good") == &content.slice(450_000..450_010));
    assert!(answers[2].as_ref().expect("nothing").is_empty());
    assert_eq!(answers[3].as_ref().expect_err("too long").kind(), Kind::InvalidInput);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_reads_are_the_contents(
        ranges in prop::collection::vec((0.0..1.0, 0.0..0.3), 0..30),
        lost in prop::option::of(0usize..6),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new(6);
            let (stripe, content) = rig.write(Profile::DEFAULT, LEN, 6).await;
            lost.into_iter().for_each(|index| rig.make(Trouble::Lost, &stripe, index));
            let range = |(start, len): (f64, f64)| {
                let start = (start * LEN as f64) as u32;
                start..(start + (len * LEN as f64) as u32).min(LEN as u32)
            };
            assert_all(&rig, reads(&stripe, ranges.into_iter().map(range)), &content).await;
        });
    }
}
