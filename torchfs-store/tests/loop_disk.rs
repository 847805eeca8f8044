//! The disk engine on a small ext4 of its own: a power cut in the middle of writes, and a disk that is really full.
//!
//! Needs root, a loop device and xfs_io; without them each test says so in one line and passes.

use bytes::Bytes;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use torchfs_core::checksum::block_checksums;
use torchfs_core::shard::{ShardRead, ShardStore};
use torchfs_core::{ClusterId, Kind, NodeId, Result, ShardId, StripeId};
use torchfs_store::DiskStore;
use torchfs_store::disk::Registration;

/// An ext4 in a file, mounted until dropped.
struct LoopDisk {
    folder: TempDir,
    mount_point: PathBuf,
}

impl LoopDisk {
    fn new(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().expect("temp folder");
        let mount_point = folder.path().join("mnt");
        std::fs::create_dir(&mount_point).expect("makes a folder");
        let image = folder.path().join("image");
        File::create(&image).and_then(|file| file.set_len(bytes)).expect("makes the image");
        let disk = LoopDisk { folder, mount_point };
        let is_there = run("mkfs.ext4", &["-q", "-F", "-m", "0", text(&image)]) && disk.mount();
        if !is_there {
            eprintln!("skipped: no ext4 on a loop device can be mounted here (needs root and /dev/loop*)");
        }
        is_there.then_some(disk)
    }

    fn mount(&self) -> bool {
        run("mount", &["-o", "loop", text(&self.folder.path().join("image")), text(&self.mount_point)])
    }

    /// From now on nothing reaches the disk any more; what was not synced is lost.
    fn cut_power(&self) -> bool {
        run("xfs_io", &["-x", "-c", "shutdown", text(&self.mount_point)])
    }

    fn unmount(&self) {
        assert!(run("umount", &[text(&self.mount_point)]), "unmounts");
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.mount_point).output();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temp path is text")
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

fn open(disk: &LoopDisk) -> Arc<DiskStore> {
    let store = DiskStore::open(&disk.mount_point.join("data"), None).expect("opens");
    store.register(Registration { cluster: ClusterId(1), node: NodeId(1) }).expect("registers");
    Arc::new(store)
}

fn shard(number: u64) -> ShardId {
    ShardId { stripe: StripeId(number * 37), index: (number % 6) as u8 }
}

/// Between 1 byte and 200 KB, different for every shard.
fn content(number: u64) -> Bytes {
    let len = 1 + (number * 7919) % 200_000;
    (0..len).map(|at| (at.wrapping_mul(number + 3) >> 3) as u8).collect::<Vec<_>>().into()
}

async fn put(store: &DiskStore, number: u64) -> Result<()> {
    let data = content(number);
    store.put(shard(number), data.clone().into(), block_checksums(&data)).await
}

async fn get(store: &DiskStore, number: u64) -> Result<Bytes> {
    let blocks = store.get(ShardRead { shard: shard(number), range: 0..u32::MAX }).await?;
    Ok(blocks.data.0)
}

/// Puts shards 8·n + `lane` until the disk fails; returns for each whether it was acknowledged.
async fn put_until_failure(store: Arc<DiskStore>, lane: u64, stop: Arc<AtomicBool>) -> BTreeMap<u64, bool> {
    let mut acknowledged = BTreeMap::new();
    for number in (0..).map(|round| 8 * round + lane) {
        let is_ok = put(&store, number).await.is_ok();
        acknowledged.insert(number, is_ok);
        if !is_ok || stop.load(Ordering::SeqCst) {
            break;
        }
    }
    acknowledged
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_what_was_acknowledged_is_there_and_the_rest_whole_or_absent() {
    let Some(disk) = LoopDisk::new(512 << 20) else { return };
    for round in 0..3u64 {
        let store = open(&disk);
        let stop = Arc::new(AtomicBool::new(false));
        let lanes = (0..8).map(|lane| tokio::spawn(put_until_failure(store.clone(), lane, stop.clone())));
        let lanes: Vec<_> = lanes.collect();
        tokio::time::sleep(Duration::from_millis(150 + 100 * round)).await;
        if !disk.cut_power() {
            stop.store(true, Ordering::SeqCst);
            eprintln!("skipped: xfs_io cannot shut the file system down here");
            return;
        }
        let mut acknowledged = BTreeMap::new();
        for lane in lanes {
            acknowledged.extend(lane.await.expect("a lane of puts"));
        }
        store.close().await;
        drop(store);
        disk.unmount();
        assert!(disk.mount(), "mounts again");

        let store = open(&disk);
        assert!(acknowledged.values().filter(|is_ok| **is_ok).count() > 8, "puts were under way");
        assert!(acknowledged.values().any(|is_ok| !is_ok), "the cut came in the middle");
        for (&number, &is_ok) in &acknowledged {
            match get(&store, number).await {
                Ok(data) => assert!(data == content(number), "shard {number} has other bytes"),
                Err(error) => assert!(!is_ok && error.kind() == Kind::NotFound, "round {round}, {number}: {error}"),
            }
        }
        for stat in store.list(None, u32::MAX).await.expect("lists") {
            store.stat(stat.shard).await.expect("every file that is there is whole");
        }
        store.close().await;
    }
    disk.unmount();
}

/// Small shards are acknowledged when the journal has them. By the time of the cut it has been used over and over: what is
/// still in it is replayed, and all before must be where it belongs.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_power_cut_small_shards_are_there_from_the_journal_or_from_their_place() {
    let Some(disk) = LoopDisk::new(512 << 20) else { return };
    let store = open(&disk);
    let data = |number: u64| content(number).slice(..content(number).len().min(60_000));
    let put = |number: u64| {
        let (store, data) = (store.clone(), data(number));
        async move { store.put(shard(number), data.clone().into(), block_checksums(&data)).await }
    };
    put(0).await.expect("put");
    while !disk.mount_point.join("data/journal/segment-1").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for lot in 0..80 {
        let puts = (1..=8).map(|number| put(lot * 8 + number));
        assert!(futures::future::join_all(puts).await.iter().all(Result::is_ok));
    }
    if !disk.cut_power() {
        eprintln!("skipped: xfs_io cannot shut the file system down here");
        return;
    }
    store.close().await;
    drop(store);
    disk.unmount();
    assert!(disk.mount(), "mounts again");
    let store = open(&disk);
    for number in 0..=640 {
        let held = get(&store, number).await.expect("held");
        assert!(held == data(number), "shard {number} has other bytes");
    }
    store.close().await;
    disk.unmount();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_and_loses_nothing() {
    let Some(disk) = LoopDisk::new(24 << 20) else { return };
    let store = open(&disk);
    let mut stored = Vec::new();
    let refusal = loop {
        let number = stored.len() as u64;
        match put(&store, number).await {
            Ok(()) => stored.push(number),
            Err(error) => break error,
        }
    };
    assert_eq!(refusal.kind(), Kind::NoSpace);
    assert!(stored.len() > 50, "only {} shards fit", stored.len());
    for &number in &stored {
        assert_eq!(get(&store, number).await.expect("held"), content(number));
    }
    assert!(store.poisoned().is_none(), "a full disk is no broken disk");
    let load = store.load().expect("load");
    assert!(load.capacity_bytes - load.used_bytes < 1 << 20, "it says that it is full: {load:?}");

    let deleted: Vec<ShardId> = stored.iter().take(40).map(|&number| shard(number)).collect();
    store.delete(deleted).await.expect("deletes");
    put(&store, 1_000).await.expect("there is room again");
    store.close().await;
    drop(store);
    disk.unmount();
    assert!(disk.mount(), "mounts again");
    let store = open(&disk);
    for &number in stored.iter().skip(40) {
        assert_eq!(get(&store, number).await.expect("held after a remount"), content(number));
    }
    store.close().await;
    disk.unmount();
}

/// Somebody else fills the disk between the reservation and the write: the put fails cleanly, whatever its stage.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_others_fill_refuses_and_is_not_broken() {
    let Some(disk) = LoopDisk::new(24 << 20) else { return };
    let store = open(&disk);
    put(&store, 1).await.expect("put");
    let hog = disk.mount_point.join("hog");
    let is_full = !run("dd", &["if=/dev/zero", &format!("of={}", text(&hog)), "bs=64k"]);
    assert!(is_full, "dd fills the disk");
    assert_eq!(put(&store, 2).await.expect_err("full").kind(), Kind::NoSpace);
    assert_eq!(get(&store, 1).await.expect("held"), content(1));
    std::fs::remove_file(&hog).expect("removes");
    put(&store, 2).await.expect("there is room again");
    store.close().await;
    disk.unmount();
}
