//! Mounting and unmounting.

use std::fs;
use std::io::Write;
use std::process::Command;
use std::time::{Duration, Instant};
use torchfs_tests::{
    Cluster, Mount, Noise, exit, fuse_or_skip, mounted_or_skip, mounts_below, run, wait_until, write_file,
    write_small_files,
};

/// The prototype loaded the whole namespace at mount, one request per entry, and hung at unmount.
#[test]
fn regressions_24_and_25_mounting_is_quick_and_unmounting_ends_the_process() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    write_small_files(&source, 2, 1500, 100);
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    let mount = Mount::start(&cluster, "mnt");
    let names = fs::read_dir(mount.join("data/class-0")).expect("lists").count();
    assert_eq!(names, 1500);
    mount.unmount();
}

#[test]
fn a_background_mount_is_usable_when_the_command_returns() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let point = cluster.dir().join("bg");
    fs::create_dir(&point).expect("mkdir");
    write_file(&cluster.dir().join("g"), &Noise::new(1).bytes(5000));
    cluster.torchfs(["put", cluster.dir().join("g").to_str().expect("UTF-8"), "/g"]).ok();
    // A mount in the background works in another folder than the one where the command was given.
    let mut mount = cluster.command(["mount", "bg", "--background", "--cache-dir", "bg-cache"]);
    run(mount.current_dir(cluster.dir())).ok();
    fs::write(point.join("f"), b"x").expect("the mount is usable");
    assert_eq!(fs::read(point.join("g")).expect("reads").len(), 5000);
    let cached =
        || run(Command::new("find").arg(cluster.dir().join("bg-cache/files")).args(["-type", "f", "-size", "+1"])).ok();
    wait_until("it is in the cache folder", || !cached().is_empty());
    run(Command::new("umount").arg(&point)).ok();
    // And it fails where it cannot be.
    let mut mount = cluster.command(["mount", "/no/such/folder", "--background"]);
    assert_ne!(run(&mut mount).code, Some(0));
}

/// mount(8) calls `/sbin/mount.fuse.torchfs SOURCE MOUNTPOINT -o OPTIONS` for an entry of type fuse.torchfs in fstab(5).
#[test]
fn a_mount_helper_mounts_read_only() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let (point, helper) = (cluster.dir().join("mnt"), cluster.dir().join("mount.fuse.torchfs"));
    fs::create_dir(&point).expect("mkdir");
    std::os::unix::fs::symlink(torchfs_tests::binary(), &helper).expect("links");
    write_file(&cluster.dir().join("f"), b"content");
    cluster.torchfs(["put", cluster.dir().join("f").to_str().expect("UTF-8"), "/f"]).ok();

    let options = format!("ro,noatime,cache_dir={}", cluster.dir().join("cache").display());
    let mut mount = Command::new(&helper);
    mount.arg(cluster.meta_addrs()).arg(&point).args(["-n", "-o", &options, "-t", "fuse.torchfs"]);
    let mounted = run(&mut mount);
    assert_eq!((mounted.code, mounted.stderr.as_str()), (Some(0), ""));
    assert_eq!(fs::read(point.join("f")).expect("reads"), b"content");
    let refused = fs::write(point.join("g"), b"x").expect_err("read-only");
    assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    run(Command::new("umount").arg(&point)).ok();
}

#[test]
fn mounting_where_something_is_mounted_says_so_and_does_not_hang() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let again = || run(cluster.command(["mount", "--cache-dir", "again"]).arg(mount.path()).current_dir(cluster.dir()));
    let text = again().failed_with(exit::EXISTS);
    assert!(text.contains("mounted on") && text.contains("already"), "{text}");
    mount.freeze();
    let began = Instant::now();
    let text = again().failed_with(exit::UNAVAILABLE);
    assert!(text.contains("does not answer") && text.contains("torchfs umount --lazy"), "{text}");
    assert!(began.elapsed() < Duration::from_secs(30), "it took {:?}", began.elapsed());
    mount.thaw();
    fs::write(mount.join("f"), b"x").expect("still mounted");
    mount.unmount();
}

/// What has taken its place is nobody's business but the one who mounted it.
#[test]
fn an_unmount_takes_only_its_own_mount() {
    let Some((cluster, mut mount)) = mounted_or_skip() else { return };
    let file = fs::File::create(mount.join("f")).expect("creates");
    run(cluster.command(["umount", "--lazy"]).arg(mount.path())).ok();
    let other = Mount::start_on_path(&cluster, mount.path(), "other");
    (&file).write_all(b"x").expect("what is open can be used on");
    drop(file);
    wait_until("the first mount's process ends", || mount.has_ended());
    assert_eq!(mounts_below(other.path()).len(), 1, "the second mount is still there");
    assert_eq!(fs::read(other.join("f")).expect("reads"), b"x");
    other.unmount();
}

/// The kernel then says that the connection was aborted, where it otherwise says that there is none.
#[test]
fn a_mount_ends_well_while_much_is_being_closed() {
    let Some((cluster, mut mount)) = mounted_or_skip() else { return };
    let point = mount.path().to_owned();
    for round in 0..8 {
        let open: Vec<_> = (0..500).map(|_| fs::File::open(&point).expect("opens")).collect();
        run(cluster.command(["umount", "--lazy"]).arg(&point)).ok();
        drop(open);
        let status = mount.wait_for_end();
        assert!(status.success(), "round {round}: {status}; mnt.log says why");
        mount = Mount::start(&cluster, "mnt");
    }
    mount.unmount();
}

#[test]
fn umount_waits_for_the_process_and_refuses_what_is_in_use() {
    let Some((cluster, mut mount)) = mounted_or_skip() else { return };
    let point = mount.path().to_owned();
    let umount = |lazy: &[&str]| run(cluster.command(["umount"]).args(lazy).arg(&point));
    let file = fs::File::create(mount.join("file")).expect("creates");
    let text = umount(&[]).failed_with(exit::FAILED);
    assert!(text.contains("in use") && text.contains("--lazy"), "{text}");
    (&file).write_all(b"content").expect("still mounted");
    drop(file);
    umount(&[]).ok();
    assert!(mount.has_ended(), "the process has ended when the command returns");
    assert_eq!(cluster.torchfs(["cat", "/file"]).stdout, b"content");
    let text = umount(&[]).failed_with(exit::NOT_FOUND);
    assert!(text.contains("nothing is mounted on"), "{text}");
    let text = cluster.torchfs(["umount", "/proc"]).failed_with(exit::USAGE);
    assert!(text.contains("type proc"), "{text}");

    // What hangs is let go of only when asked.
    let mount = Mount::start(&cluster, "mnt");
    mount.freeze();
    let text = umount(&[]).failed_with(exit::UNAVAILABLE);
    assert!(text.contains("does not answer"), "{text}");
    umount(&["--lazy"]).ok();
    assert_eq!(fs::read_dir(&point).expect("the bare folder").count(), 0);
    mount.thaw();
}

#[test]
fn what_a_killed_mount_leaves_is_cleaned_by_umount_and_by_the_next_mount() {
    let Some((cluster, mut mount)) = mounted_or_skip() else { return };
    let point = mount.path().to_owned();
    fs::write(mount.join("file"), b"content").expect("writes");
    mount.crash();
    let error = fs::read_dir(&point).expect_err("a dead mount");
    assert_eq!(error.raw_os_error(), Some(107), "ENOTCONN, not {error}");
    // Relative paths and links too: a dead mountpoint cannot be looked at.
    run(cluster.command(["umount"]).arg("mnt/.").current_dir(cluster.dir())).ok();
    assert_eq!(fs::read_dir(&point).expect("the bare folder").count(), 0);

    let mut mount = Mount::start(&cluster, "mnt");
    mount.crash();
    let log = cluster.dir().join("mnt.log");
    let before = mounts_below(&point).len();
    let args = ["mount", "--background", "--cache-dir"];
    run(cluster.command(args).arg(cluster.dir().join("mnt-cache")).arg(&point)).ok();
    assert_eq!(mounts_below(&point).len(), before, "in its place, not over it; {}", log.display());
    assert_eq!(fs::read(point.join("file")).expect("reads"), b"content");
    run(cluster.command(["umount"]).arg(&point)).ok();
    assert!(mounts_below(&point).is_empty());
}
