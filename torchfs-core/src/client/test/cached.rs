//! The client with a cache folder.

use super::{Rig, pattern};
use crate::client::Client;
use crate::error::Kind;
use crate::shard::fault::Fault;
use std::os::unix::fs::FileExt;

const MIB: usize = 1024 * 1024;

/// Until what was read is on the disk.
async fn settle(client: &Client) {
    client.inner.cache.as_ref().expect("there is one").settle().await;
}

#[tokio::test]
async fn what_was_read_once_needs_no_storage_and_lies_there_as_a_plain_file() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = rig.client_with(Client::builder().cache_dir(dir.path())).await;
    let data = pattern(1, 3 * MIB);
    client.write_file("/a", data.clone()).await.expect("written");
    assert!(client.read_file("/a").await.expect("read") == data);
    settle(&client).await;
    rig.requests();
    rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    assert!(client.read_file("/a").await.expect("from the cache") == data);
    assert_eq!(rig.requests(), 0);
    let file = client.open("/a").await.expect("opened");
    let backing = file.cached_file().await.expect("whole");
    let mut bytes = vec![0; data.len()];
    backing.read_exact_at(&mut bytes, 0).expect("read");
    assert!(bytes == data);
    drop(file);

    rig.set_faults(0, None);
    let new = pattern(2, 2 * MIB);
    rig.client().await.write_file("/a", new.clone()).await.expect("replaced");
    assert!(client.read_file("/a").await.expect("read") == new, "the cache is never out of date");
    assert_eq!(client.cache_stats().expect("cache").storage_bytes, 5 * MIB as u64);
}

#[tokio::test]
async fn the_cache_survives_the_client_and_two_share_its_folder() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    let builder = || Client::builder().cache_dir(dir.path()).cache_bytes(64 << 20);
    let client = rig.client_with(builder()).await;
    client.write_file("/a", pattern(3, MIB)).await.expect("written");
    client.read_file("/a").await.expect("read");
    settle(&client).await;
    let second = rig.client_with(builder()).await;
    assert_ne!(second.cache_dir(), client.cache_dir());
    rig.requests();
    assert!(second.read_file("/a").await.expect("read") == pattern(3, MIB));
    assert_eq!(rig.requests(), 0, "the first one has it");
    settle(&second).await;
    drop((client, second));
    let client = rig.client_with(builder()).await;
    rig.requests();
    assert!(client.read_file("/a").await.expect("read") == pattern(3, MIB));
    assert_eq!(rig.requests(), 0);
}

#[tokio::test]
async fn regression_09_leftovers_in_the_cache_folder_are_never_content() {
    let rig = Rig::new().await;
    let dir = tempfile::tempdir().expect("folder");
    drop(rig.client_with(Client::builder().cache_dir(dir.path())).await);
    std::fs::create_dir_all(dir.path().join("staging")).expect("folder");
    std::fs::write(dir.path().join("staging/2"), "left").expect("written");
    std::fs::write(dir.path().join("files/00/0000000000000000"), "left").expect("written");
    // Tasks of the one before let go of the folder a moment after it.
    let own = async {
        loop {
            let client = rig.client_with(Client::builder().cache_dir(dir.path())).await;
            if client.cache_dir() == Some(dir.path()) {
                return client;
            }
            drop(client);
            tokio::task::yield_now().await;
        }
    };
    let client = tokio::time::timeout(std::time::Duration::from_secs(60), own).await.expect("the folder is free");
    client.write_file("/a", "good").await.expect("written");
    assert_eq!(client.read_file("/a").await.expect("read"), "good");
    assert!(!dir.path().join("staging/2").exists());
}
