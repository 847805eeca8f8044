//! Ranges copied between files without moving bytes.

use super::{Rig, pattern};
use crate::error::Kind;
use crate::shard::fault::Fault;
use bytes::Bytes;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_copy_shares_stripes_and_outlives_what_it_was_copied_from() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(1, 20 * MIB);
    client.write_file("/a", data.clone()).await.expect("written");
    let stored = client.status().await.expect("status").stored_bytes;
    rig.requests();
    rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    let (source, target) = (client.open("/a").await.expect("open"), client.create("/b").await.expect("made"));
    assert_eq!(source.copy_range(0, &target, 0, u64::MAX).expect("copied"), data.len() as u64);
    target.commit().await.expect("needs no storage node");
    assert_eq!(rig.requests(), 0, "no byte was moved");
    assert_eq!(client.status().await.expect("status").stored_bytes, stored, "nor stored twice");
    rig.set_faults(0, None);
    assert!(client.read_file("/b").await.expect("read") == data);
    client.write_file("/a", "other").await.expect("written");
    client.unlink("/a").await.expect("unlinked");
    assert!(client.read_file("/b").await.expect("read") == data, "it has stripes of its own now");
}

#[tokio::test]
async fn ranges_holes_and_what_is_not_committed_are_copied_as_a_reader_sees_them() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let source = client.create("/a").await.expect("made");
    source.write_at(0, pattern(2, 2 * MIB)).await.expect("written");
    source.write_at(3 << 20, pattern(3, MIB)).await.expect("written");
    source.commit().await.expect("committed");
    source.write_at(1000, Bytes::from("not committed")).await.expect("written");
    source.punch(100_000..300_001).expect("punched");
    let seen = source.read_at(0, 4 * MIB).await.expect("read");

    let target = client.create("/b").await.expect("made");
    target.write_at(0, pattern(4, 3 * MIB)).await.expect("written");
    target.commit().await.expect("committed");
    assert_eq!(source.copy_range(777, &target, 12_345, 3_500_000).expect("copied"), 3_500_000);
    let mut expected = pattern(4, 3 * MIB).to_vec();
    expected.resize(12_345 + 3_500_000, 0);
    expected[12_345..].copy_from_slice(&seen[777..777 + 3_500_000]);
    assert!(target.read_at(0, 9 * MIB).await.expect("read") == expected, "before the commit");
    source.write_at(1000, Bytes::from("changed later")).await.expect("written");
    source.commit().await.expect("committed");
    target.commit().await.expect("committed");
    assert!(client.read_file("/b").await.expect("read") == expected, "after it");
    assert!(target.next_hole(12_345 + 100_000).is_some_and(|hole| hole < 12_345 + 300_001), "holes stay holes");
}

#[tokio::test]
async fn a_file_is_copied_into_itself_but_not_over_itself() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(5, 100_000);
    client.write_file("/a", data.clone()).await.expect("written");
    let file = client.create("/a").await.expect("opened");
    assert_eq!(file.copy_range(0, &file, 100, 1000).expect_err("overlaps").kind(), Kind::InvalidInput);
    assert_eq!(file.copy_range(0, &file, 100_000, 100_000).expect("copied"), 100_000);
    assert_eq!(file.copy_range(200_000, &file, 0, 10).expect("past the end"), 0);
    file.commit().await.expect("committed");
    assert!(client.read_file("/a").await.expect("read") == [&data[..], &data[..]].concat());
    let reader = client.open("/a").await.expect("opened");
    assert_eq!(file.copy_range(0, &reader, 0, 10).expect_err("for reading only").kind(), Kind::NotPermitted);
}

/// The source is replaced and its content deleted before the copy is committed.
#[tokio::test]
async fn a_copy_of_what_was_given_up_is_written_again() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(6, 300_000);
    client.write_file("/a", data.clone()).await.expect("written");
    let (source, target) = (client.open("/a").await.expect("open"), client.create("/b").await.expect("made"));
    source.copy_range(0, &target, 0, u64::MAX).expect("copied");
    drop(source);
    client.write_file("/a", "other").await.expect("written");
    target.commit().await.expect("the stripe is garbage, its bytes are still there");
    assert!(client.read_file("/b").await.expect("read") == data);
}
