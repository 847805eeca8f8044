//! What could not be committed is kept, and stored later.

use super::{Rig, pattern};
use crate::client::{Client, SetAside, set_aside};
use crate::error::Kind;
use crate::ids::InodeId;
use crate::meta::Name;
use crate::shard::fault::Fault;
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

async fn cached(rig: &Rig, dir: &Path) -> Client {
    rig.client_with(Client::builder().cache_dir(dir).cache_bytes(8 << 20)).await
}

/// Writes to a file and fails to commit.
async fn fail_to_write(rig: &Rig, client: &Client, path: &str, writes: &[(u64, Bytes)]) {
    let file = client.create(path).await.expect("opened");
    rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    for (offset, bytes) in writes {
        file.write_at(*offset, bytes.clone()).await.expect("staged");
    }
    file.commit().await.expect_err("nothing takes it");
    rig.set_faults(0, None);
}

fn only(dir: &Path) -> SetAside {
    let mut found = set_aside(dir).expect("lists");
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[tokio::test]
async fn a_new_file_that_was_not_stored_is_recovered_by_another_process() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let (head, tail) = (pattern(1, 3 * MIB), pattern(2, 10_000));
    let client = cached(&rig, dir.path()).await;
    fail_to_write(&rig, &client, "/new", &[(0, head.clone()), (5 << 20, tail.clone())]).await;
    drop(client);

    let aside = only(dir.path());
    assert_eq!(aside.name(), Some(&(InodeId::ROOT, Name::new("new").expect("a name"))));
    assert_eq!((aside.size(), aside.written_bytes()), ((5 << 20) + 10_000, (3 * MIB + 10_000) as u64));
    let mut expected = head.to_vec();
    expected.resize(5 << 20, 0);
    expected.extend_from_slice(&tail);

    let client = rig.client().await;
    assert_eq!(client.stat("/new").await.expect("there").size, 0, "the old version stays");
    client.recover(&aside, Some(b"/copy")).await.expect("stored");
    assert!(client.read_file("/copy").await.expect("read") == expected);
    assert_eq!(client.stat("/new").await.expect("there").size, 0);
    client.recover(&aside, None).await.expect("stored");
    assert!(client.read_file("/new").await.expect("read") == expected);
    aside.remove().expect("removed");
    assert!(set_aside(dir.path()).expect("lists").is_empty());
    let left = std::fs::read_dir(dir.path().join("recover")).expect("lists").count();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn what_was_written_over_a_version_is_put_over_that_version_only() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = cached(&rig, dir.path()).await;
    let base = pattern(3, 2 * MIB);
    client.write_file("/f", base.clone()).await.expect("written");
    fail_to_write(&rig, &client, "/f", &[(100, Bytes::from("middle")), (2 << 20, Bytes::from("tail"))]).await;
    let aside = only(dir.path());
    let mut expected = base.to_vec();
    expected[100..106].copy_from_slice(b"middle");
    expected.extend_from_slice(b"tail");

    client.recover(&aside, Some(b"/copy")).await.expect("stored");
    assert!(client.read_file("/copy").await.expect("read") == expected);
    assert!(client.read_file("/f").await.expect("read") == base);
    client.write_file("/f", "other").await.expect("replaced");
    for path in [None, Some(&b"/again"[..])] {
        let error = client.recover(&aside, path).await.expect_err("another version");
        assert_eq!(error.kind(), Kind::Conflict, "{error}");
    }
    assert_eq!(client.stat("/again").await.expect_err("not made").kind(), Kind::NotFound);
    assert_eq!(client.read_file("/f").await.expect("read"), "other");
}

#[tokio::test]
async fn a_cut_and_a_hole_are_recovered_as_such() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = cached(&rig, dir.path()).await;
    let base = pattern(4, MIB);
    client.write_file("/f", base.clone()).await.expect("written");
    let file = client.create("/f").await.expect("opened");
    file.truncate(500_000).await.expect("cut");
    file.punch(1000..200_000).expect("punched");
    file.truncate(700_000).await.expect("grown");
    rig.meta.commit_faults.lock().expect("lock").push(Kind::Unavailable);
    file.commit().await.expect_err("fault");
    drop(file);
    let aside = only(dir.path());
    let mut expected = base[..500_000].to_vec();
    expected[1000..200_000].fill(0);
    expected.resize(700_000, 0);
    for path in [Some(&b"/copy"[..]), None] {
        client.recover(&aside, path).await.expect("stored");
    }
    assert!(client.read_file("/copy").await.expect("read") == expected);
    assert!(client.read_file("/f").await.expect("read") == expected);
}

#[tokio::test]
async fn a_later_commit_that_succeeds_leaves_nothing_set_aside() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = cached(&rig, dir.path()).await;
    let file = client.create("/f").await.expect("opened");
    rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    for round in 0..3u64 {
        file.write_at(round, Bytes::from("x")).await.expect("staged");
        file.commit().await.expect_err("nothing takes it");
        file.commit().await.expect_err("nor now");
        assert_eq!(only(dir.path()).size(), round + 1, "the newest only");
    }
    rig.set_faults(0, None);
    file.commit().await.expect("stored");
    assert!(set_aside(dir.path()).expect("lists").is_empty());
    assert_eq!(client.read_file("/f").await.expect("read"), "xxx");
}

#[tokio::test]
async fn stripes_that_were_sent_already_are_part_of_it() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = cached(&rig, dir.path()).await;
    let data = pattern(5, 20 * MIB);
    let file = client.create("/large").await.expect("opened");
    file.write_at(0, data.clone()).await.expect("staged");
    rig.meta.commit_faults.lock().expect("lock").push(Kind::Unavailable);
    file.commit().await.expect_err("fault");
    drop(file);
    client.give_back(Duration::from_secs(5)).await;
    let aside = only(dir.path());
    assert_eq!(aside.written_bytes(), data.len() as u64);
    let here = std::fs::metadata(dir.path().join(format!("recover/{}.data", aside.id()))).expect("data");
    assert!(std::os::unix::fs::MetadataExt::blocks(&here) * 512 < (10 << 20), "full stripes are not kept twice");
    client.recover(&aside, None).await.expect("stored");
    assert!(client.read_file("/large").await.expect("read") == data);
}

#[tokio::test]
async fn it_is_bounded_and_the_oldest_goes_first() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = cached(&rig, dir.path()).await;
    for name in ["/a", "/b", "/c"] {
        fail_to_write(&rig, &client, name, &[(0, pattern(6, 3 * MIB))]).await;
    }
    let names: Vec<_> = set_aside(dir.path()).expect("lists").iter().map(|aside| aside.name().cloned()).collect();
    let name = |name: &str| Some((InodeId::ROOT, Name::new(name).expect("a name")));
    assert_eq!(names, [name("b"), name("c")]);
    fail_to_write(&rig, &client, "/too-large", &[(0, pattern(7, 9 * MIB))]).await;
    assert_eq!(set_aside(dir.path()).expect("lists").len(), 2, "what is too large to be kept pushes nothing out");
}

#[tokio::test]
async fn damaged_bytes_are_not_stored() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = cached(&rig, dir.path()).await;
    fail_to_write(&rig, &client, "/f", &[(0, pattern(8, 100_000))]).await;
    let aside = only(dir.path());
    let path = dir.path().join(format!("recover/{}.data", aside.id()));
    let mut bytes = std::fs::read(&path).expect("data");
    bytes[50_000] ^= 1;
    std::fs::write(&path, &bytes).expect("damaged");
    let error = client.recover(&aside, None).await.expect_err("damaged");
    assert_eq!(error.kind(), Kind::Corrupt, "{error}");
    assert_eq!(client.stat("/f").await.expect("there").size, 0);
}

#[tokio::test]
async fn a_damaged_record_keeps_nobody_from_setting_aside() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = cached(&rig, dir.path()).await;
    fail_to_write(&rig, &client, "/one", &[(0, pattern(1, 1000))]).await;
    std::fs::write(dir.path().join("recover/00000000.record"), "damaged").expect("written");
    assert_eq!(set_aside(dir.path()).expect_err("said to who asks").kind(), Kind::Corrupt);
    fail_to_write(&rig, &client, "/two", &[(0, pattern(2, 2000))]).await;
    std::fs::remove_file(dir.path().join("recover/00000000.record")).expect("removed");
    let sizes: Vec<u64> = set_aside(dir.path()).expect("lists").iter().map(SetAside::size).collect();
    assert_eq!(sizes, [1000, 2000]);
}
