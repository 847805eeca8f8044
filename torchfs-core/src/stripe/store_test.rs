//! Writes through trouble: every stripe reported as written survives any one node, and is on other nodes than those that
//! failed.

use super::rig_test::Rig;
use crate::layout::Profile;

#[tokio::test]
async fn shards_go_to_distinct_nodes() {
    let rig = Rig::new(6);
    let (stripe, content) = rig.write(Profile::DEFAULT, 1 << 20, 1).await;
    assert!(!stripe.is_under_spread());
    rig.assert_reads(&stripe, 0..1 << 20, &content).await;
}
