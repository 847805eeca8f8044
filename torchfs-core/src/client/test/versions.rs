//! Versions and failures seen by a reader.

use super::{Rig, pattern};
use crate::client::File;
use crate::error::Kind;
use crate::shard::fault::Fault;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn an_open_file_keeps_its_version_when_another_client_replaces_it() {
    let rig = Rig::new().await;
    let (one, two) = (rig.client().await, rig.client().await);
    let (old, new) = (pattern(1, 5 * MIB), pattern(2, 6 * MIB));
    one.write_file("/a", old.clone()).await.expect("written");
    let open = one.open("/a").await.expect("opened");
    assert_eq!(open.read_at(0, 10).await.expect("read"), old[..10]);
    two.write_file("/a", new.clone()).await.expect("replaced");
    assert!(open.read_at(0, 10 * MIB).await.expect("read") == old);
    let again = one.open("/a").await.expect("opened again");
    assert!(again.read_at(0, 10 * MIB).await.expect("read") == new);
    assert!(open.read_at(0, 10 * MIB).await.expect("read") == old, "still");
}

#[tokio::test]
async fn a_snapshot_stays_what_it_is_whatever_this_client_writes() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    client.write_file("/a", "before").await.expect("written");
    let (open, file) = (client.open("/a").await.expect("opened"), client.create("/a").await.expect("opened"));
    let snapshot = open.snapshot();
    let reads = async |file: &File| file.read_at(0, 100).await.expect("read");
    file.write_at(6, " and after".into()).await.expect("written");
    assert_eq!((reads(&open).await, reads(&snapshot).await), ("before and after".into(), "before".into()));
    file.commit().await.expect("committed");
    assert_eq!((reads(&open).await, reads(&snapshot).await), ("before and after".into(), "before".into()));
    assert_eq!((open.attr().size, snapshot.attr().size), (16, 6));
    let refused = snapshot.write_at(0, "x".into()).await.expect_err("it is for reading");
    assert_eq!(refused.kind(), Kind::NotPermitted);
}

#[tokio::test]
async fn too_few_nodes_are_an_error_and_never_other_bytes() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(3, 9 * MIB);
    client.write_file("/a", data.clone()).await.expect("written");
    client.write_file("/small", "small").await.expect("written");
    rig.set_faults(4, Some(Fault::Fail(Kind::Unavailable)));
    assert!(client.read_file("/a").await.expect("two of six are gone") == data);
    rig.set_faults(3, Some(Fault::Fail(Kind::Unavailable)));
    assert_eq!(client.read_file("/a").await.expect_err("three are gone").kind(), Kind::Unavailable);
    rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    assert_eq!(client.read_file("/small").await.expect_err("all are gone").kind(), Kind::Unavailable);
    rig.set_faults(0, None);
    assert!(client.read_file("/a").await.expect("all are back") == data);
    assert_eq!(client.read_file("/small").await.expect("read"), "small");
}

#[tokio::test]
async fn a_failed_fetch_does_not_make_a_later_commit_store_emptiness() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(4, 2 * MIB);
    client.write_file("/a", data.clone()).await.expect("written");
    let file = client.create("/a").await.expect("opened");
    rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    file.read_at(0, 100).await.expect_err("no node answers");
    file.commit().await.expect("nothing to store");
    rig.set_faults(0, None);
    file.write_at(0, "new".into()).await.expect("written");
    file.commit().await.expect("committed");
    let mut expected = data.to_vec();
    expected[..3].copy_from_slice(b"new");
    assert!(rig.client().await.read_file("/a").await.expect("read") == expected);
}

#[tokio::test]
async fn small_sequential_reads_do_not_each_become_a_request() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(5, 32 * MIB);
    client.write_file("/a", data.clone()).await.expect("written");
    let file = client.open("/a").await.expect("opened");
    rig.requests();
    for start in (0..data.len()).step_by(128 * 1024) {
        let piece = file.read_at(start as u64, 128 * 1024).await.expect("read");
        assert!(piece == data[start..start + 128 * 1024]);
    }
    let requests = rig.requests();
    assert!(requests <= 40, "{requests} requests for 256 reads");
}
