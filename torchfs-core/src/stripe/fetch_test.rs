//! Reads through trouble: right bytes or a clear error, and no more requests than needed.

use super::StripeRead;
use super::rig_test::{Rig, Trouble};
use crate::erasure::conformance::subsets;
use crate::error::Kind;
use crate::ids::NodeId;
use crate::layout::{Codec, Profile, Stripe, StripeShape};
use crate::shard::fault::Fault;
use bytes::Bytes;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const BLOCK: u32 = 64 * 1024;

fn six_three() -> Profile {
    Profile::new(6, 3).expect("profile")
}

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
