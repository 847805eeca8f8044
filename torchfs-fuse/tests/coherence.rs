//! Two mounts of one cluster, whose kernels may answer from what they were told for an hour: whatever one sees of the other
//! sooner, it was told.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use torchfs_fuse::{MountOptions, Mounted};
use torchfs_local::LocalCluster;

/// Far below the hour, far above what it takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Two folders, each with the cluster mounted on it.
struct Pair {
    runtime: tokio::runtime::Runtime,
    cluster: Option<LocalCluster>,
    mounts: Vec<Mounted>,
    folder: tempfile::TempDir,
}

impl Pair {
    fn start() -> Option<Pair> {
        if !Path::new("/dev/fuse").exists() {
            assert!(std::env::var_os("TORCHFS_REQUIRE_FUSE").is_none(), "/dev/fuse is required here and missing");
            println!("skipped: no /dev/fuse");
            return None;
        }
        let folder = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let (cluster, mounts) = runtime.block_on(async {
            let cluster =
                LocalCluster::builder().data_dir(folder.path().join("cluster")).start().await.expect("starts");
            let mut mounts = Vec::new();
            for name in ["one", "two"] {
                let point = folder.path().join(name);
                fs::create_dir(&point).expect("mkdir");
                let options = MountOptions { kernel_ttl: Duration::from_secs(3600), ..MountOptions::default() };
                let client = cluster.client().await.expect("a client");
                mounts.push(torchfs_fuse::mount(client, &point, options).expect("mounts"));
            }
            (cluster, mounts)
        });
        Some(Pair { runtime, cluster: Some(cluster), mounts, folder })
    }

    fn one(&self, name: &str) -> PathBuf {
        self.folder.path().join("one").join(name)
    }

    fn two(&self, name: &str) -> PathBuf {
        self.folder.path().join("two").join(name)
    }

    fn end(mut self) {
        let cluster = self.cluster.take().expect("it is there until now");
        self.runtime.block_on(async {
            for mount in &self.mounts {
                mount.unmount().await.expect("unmounts");
            }
            cluster.shutdown().await.expect("shuts down");
        });
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of the test's own, no runtime's")]
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn bytes(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").len()
}

/// The prototype never noticed what another client did.
#[test]
fn regression_23_what_one_mount_changes_the_other_shows_long_before_its_time_is_up() {
    let Some(pair) = Pair::start() else { return };
    let (one, two) = (|name: &str| pair.one(name), |name: &str| pair.two(name));

    assert!(!two("made").exists(), "looked up before it is there");
    fs::write(one("made"), b"first").expect("writes");
    wait_until("a new name is seen", || two("made").exists());
    assert_eq!(fs::read(two("made")).expect("reads"), b"first");

    assert_eq!(bytes(&two("made")), 5);
    fs::write(one("made"), b"second, and longer").expect("writes");
    wait_until("a new size is seen", || bytes(&two("made")) == 18);
    assert_eq!(fs::read(two("made")).expect("reads"), b"second, and longer");

    let mode = || fs::metadata(two("made")).expect("stat").permissions().mode() & 0o777;
    assert_ne!(mode(), 0o600);
    fs::set_permissions(one("made"), fs::Permissions::from_mode(0o600)).expect("chmod");
    wait_until("a new mode is seen", || mode() == 0o600);

    let made = fs::metadata(two("made")).expect("stat").ino();
    fs::write(one("other"), b"another").expect("writes");
    fs::rename(one("other"), one("made")).expect("renames over it");
    wait_until("the file is another", || fs::metadata(two("made")).expect("stat").ino() != made);
    assert!(!two("other").exists());

    fs::rename(one("made"), one("moved")).expect("renames");
    wait_until("the old name is gone", || !two("made").exists());
    assert_eq!(fs::read(two("moved")).expect("reads"), b"another");

    fs::remove_file(one("moved")).expect("unlinks");
    wait_until("it is gone", || !two("moved").exists());

    fs::create_dir(one("folder")).expect("mkdir");
    assert_eq!(fs::read_dir(two("folder")).expect("lists").count(), 0);
    fs::remove_dir(one("folder")).expect("rmdir");
    wait_until("the folder is gone", || !two("folder").exists());
    pair.end();
}

/// A name that is to be forgotten waits in the kernel for requests on its folder. Neither mount may wait for that.
#[test]
fn mounts_that_change_the_same_folder_and_look_at_it_do_not_wait_for_each_other() {
    let Some(pair) = Pair::start() else { return };
    let work = |at: fn(&Pair, &str) -> PathBuf, own: char, others: char| {
        let pair = &pair;
        move || {
            for number in 0..100 {
                let (mine, moved) = (at(pair, &format!("{own}{number}")), at(pair, &format!("{own}{number}.moved")));
                fs::write(&mine, format!("{own}{number}")).expect("writes");
                // Whatever it finds: the kernel knows names that the other is about to change.
                let _ = fs::metadata(at(pair, &format!("{others}{number}"))).map(|found| found.len());
                for entry in fs::read_dir(at(pair, "")).expect("lists").flatten() {
                    let _ = entry.metadata();
                }
                fs::rename(&mine, &moved).expect("renames");
                assert_eq!(fs::read(&moved).expect("reads"), format!("{own}{number}").as_bytes());
                fs::remove_file(&moved).expect("unlinks");
            }
        }
    };
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(work(Pair::one, 'a', 'b'));
        scope.spawn(work(Pair::two, 'b', 'a'));
    });
    println!("2 x 100 rounds took {:?}", start.elapsed());
    for at in [pair.one(""), pair.two("")] {
        wait_until("nothing is left", || fs::read_dir(&at).expect("lists").count() == 0);
    }
    pair.end();
}

/// What this mount writes while another one changes the same file stays its own, and is not lost.
#[test]
fn a_file_that_is_being_written_keeps_what_is_written_when_another_mount_changes_it() {
    let Some(pair) = Pair::start() else { return };
    fs::write(pair.one("shared"), vec![b'.'; 200_000]).expect("writes");
    wait_until("it is there", || pair.two("shared").exists());
    for round in 0..10u64 {
        use std::os::unix::fs::FileExt;
        let open = |path| fs::OpenOptions::new().read(true).write(true).open(path).expect("opens");
        let (mine, other) = (open(pair.one("shared")), open(pair.two("shared")));
        mine.write_all_at(&[b'1'; 10_000], round * 10_000).expect("writes");
        other.write_all_at(&[b'2'; 10_000], 100_000 + round * 10_000).expect("writes");
        drop(other);
        let mut own = vec![0; 10_000];
        mine.read_exact_at(&mut own, round * 10_000).expect("reads");
        assert!(own.iter().all(|byte| *byte == b'1'), "round {round}");
        drop(mine);
    }
    let expected = [vec![b'1'; 100_000], vec![b'2'; 100_000]].concat();
    for path in [pair.one("shared"), pair.two("shared")] {
        wait_until("both have all of it", || fs::read(&path).expect("reads") == expected);
    }
    pair.end();
}
