//! Writing and committing, with failures in between.

use super::{Rig, pattern};
use crate::client::File;
use crate::error::Kind;
use crate::ids::InodeId;
use crate::layout::Profile;
use crate::meta::{AttrChange, IfExists, Name, NewKind, SetTime, Timestamp};
use crate::shard::fault::Fault;
use bytes::Bytes;
use futures::future::join_all;
use std::time::Duration;

const MIB: usize = 1024 * 1024;

#[tokio::test]
async fn a_file_comes_back_to_another_client_after_its_commit_and_not_before() {
    let rig = Rig::new().await;
    let (one, two) = (rig.client().await, rig.client().await);
    let data = pattern(1, 3 * MIB + 17);
    let file = one.create("/a").await.expect("created");
    file.write_at(0, data.clone()).await.expect("written");
    assert_eq!(file.read_at(0, data.len()).await.expect("read"), data);
    assert_eq!(file.attr().size, data.len() as u64);
    assert_eq!(two.stat("/a").await.expect("stat").size, 0);
    assert!(file.is_dirty());
    let attr = file.commit().await.expect("committed");
    assert!(!file.is_dirty());
    assert_eq!(attr.size, data.len() as u64);
    assert_eq!(two.read_file("/a").await.expect("read"), data);
    assert_eq!(file.read_at(5, 100).await.expect("read"), data[5..105]);
    assert_eq!(file.commit().await.expect("nothing to do").version, attr.version);
}

#[tokio::test]
async fn a_new_file_costs_two_changes_and_no_question() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    rig.take_meta_requests();
    let inode = client.new_inode(NewKind::File, 0o644);
    let name = Name::new("a").expect("a name");
    let file = client.create_inode(InodeId::ROOT, name.clone(), inode.clone(), IfExists::Fail).await.expect("made");
    assert_eq!(file.read_at(0, 10).await.expect("read"), "");
    file.write_at(0, pattern(1, 12_000)).await.expect("written");
    file.commit().await.expect("committed");
    assert_eq!(rig.take_meta_requests(), (2, 0));
    // A file that is there and has content is not taken for a new one.
    let again = client.create_inode(InodeId::ROOT, name, inode, IfExists::Keep).await.expect("opened");
    assert_eq!(again.read_at(0, 20_000).await.expect("read"), pattern(1, 12_000));
}

#[tokio::test]
async fn a_file_is_coded_with_the_profile_of_its_folder_at_the_time_it_was_made() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    client.mkdir("/d").await.expect("made");
    for (data, parity) in [(2, 1), (1, 2), (3, 1)] {
        let profile = Profile::new(data, parity).expect("a profile");
        client.set_profile("/d", profile).await.expect("set");
        let file = client.create(format!("/d/{data}")).await.expect("made");
        assert_eq!(file.attr().profile, Some(profile));
        client.set_profile("/d", Profile::DEFAULT).await.expect("set");
        file.write_at(0, pattern(1, 10_000)).await.expect("written");
        let attr = file.commit().await.expect("committed");
        let (_, content) = client.meta().open(attr.ino).await.expect("opened");
        assert_eq!(content.stripes[0].shape.profile, profile);
    }
}

#[tokio::test]
async fn opens_of_one_inode_share_uncommitted_writes() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let one = client.create("/a").await.expect("created");
    let two = client.open("/a").await.expect("opened");
    one.write_at(0, Bytes::from_static(b"hello")).await.expect("written");
    assert_eq!(two.read_at(0, 10).await.expect("read"), "hello");
    assert_eq!(two.attr().size, 5);
    one.commit().await.expect("committed");
    assert_eq!(two.read_at(0, 10).await.expect("read"), "hello");
    let refused = two.write_at(0, Bytes::from_static(b"x")).await;
    assert_eq!(refused.expect_err("opened for reading").kind(), Kind::NotPermitted);
}

#[tokio::test]
async fn a_failed_commit_is_reported_keeps_the_old_version_and_can_be_repeated() {
    let rig = Rig::new().await;
    let (one, two) = (rig.client().await, rig.client().await);
    one.write_file("/a", "the old version").await.expect("written");
    let data = pattern(2, 20 * MIB);
    let file = one.create("/a").await.expect("opened");
    file.truncate(0).await.expect("cut");
    rig.set_faults(0, Some(Fault::Fail(Kind::NoSpace)));
    file.write_at(0, data.clone()).await.expect("staged");
    assert_eq!(file.commit().await.expect_err("nodes are full").kind(), Kind::NoSpace);
    rig.set_faults(0, None);
    assert_eq!(two.read_file("/a").await.expect("read"), "the old version");
    assert!(file.is_dirty());
    assert_eq!(file.read_at(0, data.len()).await.expect("read"), data);

    rig.meta.commit_faults.lock().expect("lock").push(Kind::Unavailable);
    assert_eq!(file.commit().await.expect_err("no leader").kind(), Kind::Unavailable);
    assert_eq!(two.read_file("/a").await.expect("read"), "the old version");
    // What is written between the attempts is in the next one too.
    file.write_at(3, Bytes::from_static(b"later")).await.expect("written");
    file.commit().await.expect("third attempt");
    let mut expected = data.to_vec();
    expected[3..8].copy_from_slice(b"later");
    assert!(two.read_file("/a").await.expect("read") == expected);
}

#[tokio::test]
async fn what_was_staged_for_too_long_is_sent_again() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(3, 36 * MIB);
    let file = client.create("/a").await.expect("created");
    file.write_at(0, data.clone()).await.expect("written");
    rig.meta.commit_faults.lock().expect("lock").push(Kind::Stale);
    file.commit().await.expect("committed");
    assert!(rig.client().await.read_file("/a").await.expect("read") == data);
}

#[tokio::test]
async fn full_stripes_are_sent_while_the_writer_goes_on() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let data = pattern(4, 33 * MIB);
    let file = client.create("/a").await.expect("created");
    for start in (0..data.len()).step_by(MIB) {
        file.write_at(start as u64, data.slice(start..start + MIB)).await.expect("written");
    }
    let deadline = Duration::from_secs(30);
    let sent = async {
        let mut puts = 0;
        while puts < 12 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            puts += rig.nodes.iter().map(|node| node.take_requests().put).sum::<usize>();
        }
    };
    tokio::time::timeout(deadline, sent).await.expect("two stripes of six shards before any commit");
    assert!(file.read_at(0, data.len()).await.expect("read") == data, "sent bytes are read back");
    file.write_at(10, Bytes::from_static(b"over a sent stripe")).await.expect("written");
    file.commit().await.expect("committed");
    let mut expected = data.to_vec();
    expected[10..28].copy_from_slice(b"over a sent stripe");
    assert!(rig.client().await.read_file("/a").await.expect("read") == expected);
}

#[tokio::test]
async fn many_little_writes_become_one_stripe() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    client.write_file("/a", pattern(5, 10 * MIB)).await.expect("written");
    let file = client.create("/a").await.expect("opened");
    rig.requests();
    for number in 0..10u64 {
        file.write_at(number * 900_000, Bytes::from_static(b"mark")).await.expect("written");
    }
    file.commit().await.expect("committed");
    let puts: usize = rig.nodes.iter().map(|node| node.take_requests().put).sum();
    assert_eq!(puts, 3, "one data shard and two of parity");
}

#[tokio::test]
async fn a_file_that_is_written_in_pieces_does_not_stay_in_pieces() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let mut expected = Vec::new();
    for number in 0..60u64 {
        let file = client.create("/log").await.expect("opened");
        let line = pattern(number + 1, 1000);
        file.write_at(expected.len() as u64, line.clone()).await.expect("written");
        file.commit().await.expect("committed");
        expected.extend_from_slice(&line);
    }
    let ino = client.stat("/log").await.expect("stat").ino;
    let (_, content) = client.meta().open(ino).await.expect("open");
    assert!(content.extents.len() <= 16, "{} extents", content.extents.len());
    assert!(client.read_file("/log").await.expect("read") == expected);
}

#[tokio::test]
async fn holes_are_not_stored_and_read_as_zeros() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let file = client.create("/a").await.expect("created");
    file.write_at(1 << 40, Bytes::from_static(b"end")).await.expect("written");
    file.truncate((1 << 40) + 100).await.expect("grown");
    let attr = file.commit().await.expect("committed");
    assert_eq!((attr.size, attr.allocated), ((1 << 40) + 100, 3));
    let file = rig.client().await.open("/a").await.expect("opened");
    let tail = file.read_at((1 << 40) - 5, 1000).await.expect("read");
    assert_eq!(tail[..8], *b"\0\0\0\0\0end");
    assert_eq!(tail.len(), 105);
    assert!(tail[8..].iter().all(|&byte| byte == 0));
}

#[tokio::test]
async fn holes_are_punched_and_found_before_and_after_the_commit() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let file = client.create("/a").await.expect("created");
    file.write_at(0, vec![1; 300_000].into()).await.expect("written");
    file.truncate(500_000).await.expect("grown");
    file.punch(100_000..200_000).expect("punched");
    file.punch(450_000..900_000).expect("punched");
    let look = |file: &File| {
        let data =
            [0, 99_999, 100_000, 150_000, 200_000, 299_999, 300_000, 499_999, 500_000].map(|at| file.next_data(at));
        let holes =
            [0, 99_999, 100_000, 150_000, 200_000, 299_999, 300_000, 499_999, 500_000].map(|at| file.next_hole(at));
        let (first, second, third) = (Some(100_000), Some(200_000), Some(300_000));
        assert_eq!(data, [Some(0), Some(99_999), second, second, second, Some(299_999), None, None, None]);
        assert_eq!(holes, [first, first, first, Some(150_000), third, third, third, Some(499_999), None]);
        assert_eq!(file.attr().size, 500_000);
    };
    look(&file);
    let attr = file.commit().await.expect("committed");
    assert_eq!(attr.allocated, 200_000);
    look(&file);
    let other = rig.client().await.open("/a").await.expect("opened");
    look(&other);
    // A hole over committed bytes, and bytes over a hole.
    file.punch(0..50_000).expect("punched");
    file.write_at(120_000, vec![2; 10_000].into()).await.expect("written");
    assert_eq!(
        (file.next_data(0), file.next_hole(50_000), file.next_data(100_000)),
        (Some(50_000), Some(100_000), Some(120_000))
    );
    assert_eq!(file.commit().await.expect("committed").allocated, 160_000);
    let bytes = rig.client().await.read_file("/a").await.expect("read");
    let mut expected = vec![0; 500_000];
    expected[50_000..100_000].fill(1);
    expected[120_000..130_000].fill(2);
    expected[200_000..300_000].fill(1);
    assert!(bytes == expected);
}

#[tokio::test]
async fn a_time_set_after_writing_survives_the_commit() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let file = client.create("/a").await.expect("created");
    file.write_at(0, Bytes::from_static(b"text")).await.expect("written");
    let time = Timestamp { seconds: 1_000_000, nanos: 5 };
    let change = AttrChange { mtime: Some(SetTime::At(time)), ..AttrChange::default() };
    client.set_attr("/a", change).await.expect("set");
    assert_eq!(file.attr().mtime, time);
    assert_eq!(file.commit().await.expect("committed").mtime, time);
    assert_eq!(client.stat("/a").await.expect("stat").mtime, time);
}

#[tokio::test]
async fn two_clients_that_write_different_ranges_both_keep_their_bytes() {
    let rig = Rig::new().await;
    let (one, two) = (rig.client().await, rig.client().await);
    one.write_file("/a", vec![b'-'; 100]).await.expect("written");
    let (first, second) = (one.create("/a").await.expect("opened"), two.create("/a").await.expect("opened"));
    first.write_at(0, Bytes::from_static(b"first")).await.expect("written");
    second.write_at(50, Bytes::from_static(b"second")).await.expect("written");
    first.commit().await.expect("committed");
    second.commit().await.expect("committed");
    let mut expected = vec![b'-'; 100];
    expected[..5].copy_from_slice(b"first");
    expected[50..56].copy_from_slice(b"second");
    assert_eq!(second.read_at(0, 100).await.expect("read"), expected);
    assert_eq!(one.read_file("/a").await.expect("read"), expected);
}

#[tokio::test]
async fn many_who_commit_at_the_same_time_share_requests_and_stripes_and_each_has_its_own_outcome() {
    const FILES: usize = 40;
    let rig = Rig::new().await;
    let client = rig.client().await;
    let mut files = Vec::new();
    for number in 0..FILES {
        let file = client.create(format!("/{number}")).await.expect("made");
        file.write_at(0, pattern(number as u64, 10_000 + number)).await.expect("written");
        files.push(file);
    }
    client.unlink("/7").await.expect("removed while it is open");
    rig.take_meta_requests();
    rig.requests();

    // Slow enough that the others come while the first is under way.
    rig.set_faults(0, Some(Fault::Delay(Duration::from_millis(20))));
    let committed = join_all(files.iter().map(File::commit)).await;
    rig.set_faults(0, None);
    assert!(committed.iter().all(Result::is_ok), "{committed:?}");
    let (changes, _) = rig.take_meta_requests();
    let puts = rig.requests();
    assert!(changes < FILES / 2, "{changes} changes for {FILES} files");
    assert!(puts < 3 * FILES / 2, "{puts} shards for {FILES} files");

    let other = rig.client().await;
    for number in (0..FILES).filter(|&number| number != 7) {
        let found = other.read_file(format!("/{number}")).await.expect("read");
        assert_eq!(found, pattern(number as u64, 10_000 + number), "file {number}");
    }
    assert_eq!(files[7].read_at(0, 20_000).await.expect("read"), pattern(7, 10_007));
}

#[tokio::test]
async fn one_refused_commit_of_a_group_fails_alone() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let mut files = Vec::new();
    for number in 0..12 {
        let file = client.create(format!("/{number}")).await.expect("made");
        file.write_at(0, pattern(number, 5_000)).await.expect("written");
        files.push(file);
    }
    let long = Name::new("x".repeat(200)).expect("a name");
    rig.set_faults(0, Some(Fault::Delay(Duration::from_millis(20))));
    let commits = join_all(files.iter().map(File::commit));
    let wrong = client.meta().unlink(InodeId::ROOT, long);
    let (committed, refused) = tokio::join!(commits, wrong);
    rig.set_faults(0, None);
    assert_eq!(refused.expect_err("there is no such name").kind(), Kind::NotFound);
    assert!(committed.iter().all(Result::is_ok), "{committed:?}");
}
