//! The mount as programs use it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use torchfs_tests::{
    Cluster, Mount, Noise, assert_same_tree, exit, fuse_or_skip, mounted_or_skip, run, wait_until, write_file,
    write_small_files,
};

/// A tree with everything that a copy can get wrong.
fn nasty_tree(root: &Path) {
    write_small_files(root, 3, 30, 50_000);
    write_file(&root.join("empty"), b"");
    write_file(&root.join("large"), &Noise::new(4).bytes(18_000_003));
    write_file(&root.join("name with spaces"), b"spaces");
    write_file(&root.join("line\nbreak"), b"newline");
    write_file(&root.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")), b"bytes");
    write_file(&root.join("x".repeat(255)), b"long");
    write_file(&root.join("script.sh"), b"#!/bin/sh\n");
    fs::set_permissions(root.join("script.sh"), fs::Permissions::from_mode(0o755)).expect("chmod");
    std::os::unix::fs::symlink("large", root.join("link")).expect("symlink");
    std::os::unix::fs::symlink("nowhere", root.join("dangling")).expect("symlink");
    fs::hard_link(root.join("large"), root.join("other-name")).expect("link");
    let sparse = fs::File::create(root.join("sparse")).expect("creates");
    sparse.write_all_at(b"middle", 40 << 20).expect("writes");
    sparse.set_len(64 << 20).expect("grows");
    fs::create_dir_all(root.join("a/b/c/d/e")).expect("folders");
}

fn shell(folder: &Path, script: &str) {
    run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(folder)).ok();
}

#[test]
fn cp_tar_find_and_rsync_like_tools_keep_everything() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let source = cluster.dir().join("source");
    nasty_tree(&source);
    shell(mount.path(), "cp -a ../source copied");
    shell(mount.path(), "mkdir unpacked && tar --format=posix -C ../source -cf - . | tar -C unpacked -xf -");
    // Fresh eyes: nothing that this mount remembers can help.
    mount.unmount();
    let mount = Mount::start(&cluster, "other");
    assert_same_tree(&source, &mount.join("copied"));
    assert_same_tree(&source, &mount.join("unpacked"));
    // And out through the library.
    let out = cluster.dir().join("out");
    cluster.torchfs(["get", "-r", "/copied", out.to_str().expect("UTF-8")]).ok();
    assert_same_tree(&source, &out);
    // In through the library, out through the mount.
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/put"]).ok();
    assert_same_tree(&source, &mount.join("put"));
    let sparse = fs::metadata(mount.join("put/sparse")).expect("stat");
    assert!(sparse.blocks() * 512 < 8 << 20, "holes stay holes: {} blocks", sparse.blocks());
    mount.unmount();
}

#[test]
fn git_clones_and_checks() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    shell(
        mount.path(),
        "export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
         git init -q one && cd one
         for n in 1 2 3 4 5; do mkdir -p d$n; seq $((n * 1000)) > d$n/file; git add -A; git commit -qm $n; done
         cd .. && git clone -q one two && git -C two fsck --full --strict && git -C two gc -q --prune=now
         test -z \"$(git -C two status --porcelain)\"
         git -C two checkout -q HEAD~2 && test ! -e two/d5",
    );
    mount.unmount();
}

/// What `torchvision.datasets.ImageFolder` does; the prototype marked folders as files, so it found nothing.
#[test]
fn regression_18_python_walks_and_reads_a_dataset() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    write_small_files(&source, 4, 60, 30_000);
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    let mount = Mount::start(&cluster, "mnt");
    let script = "
import os, sys, hashlib
def digest(root):
    out = []
    for entry in sorted(os.scandir(root), key=lambda e: e.name):
        assert entry.is_dir(follow_symlinks=False), entry.name
        for folder, _, names in sorted(os.walk(entry.path)):
            for name in sorted(names):
                out.append((entry.name, name, hashlib.sha256(open(os.path.join(folder, name), 'rb').read()).hexdigest()))
    return out
a, b = digest(sys.argv[1]), digest(sys.argv[2])
assert len(a) == 240 and a == b, (len(a), len(b))
";
    let finished = run(Command::new("python3").args(["-c", script]).arg(&source).arg(mount.join("data")));
    finished.ok();
    mount.unmount();
}

/// How every checkpoint writer saves: write beside, rename over.
#[test]
fn regression_19_rename_over_an_existing_name_replaces_it_atomically() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    let (temporary, name) = (mount.join("model.tmp"), mount.join("model"));
    fs::write(&name, b"version 0").expect("writes");
    let mut old = fs::File::open(&name).expect("opens");
    for version in 1..=5 {
        fs::write(&temporary, format!("version {version}")).expect("writes");
        fs::rename(&temporary, &name).expect("replaces");
        assert_eq!(fs::read_to_string(&name).expect("reads"), format!("version {version}"));
    }
    let mut text = String::new();
    old.read_to_string(&mut text).expect("an open file keeps its version");
    assert_eq!(text, "version 0");
    drop(old);
    fs::create_dir(mount.join("folder")).expect("mkdir");
    fs::write(mount.join("folder/inside"), b"x").expect("writes");
    fs::rename(mount.join("folder"), mount.join("moved")).expect("renames");
    assert_eq!(fs::read(mount.join("moved/inside")).expect("reads"), b"x");
    let error = fs::remove_dir(mount.join("moved")).expect_err("it is not empty");
    assert_eq!(error.raw_os_error(), Some(39), "ENOTEMPTY, not {error}");
    mount.unmount();
}

/// The prototype answered EINPROGRESS for "exists", and 0 for failures.
#[test]
fn regression_22_errno_says_what_is_wrong() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    fs::create_dir(mount.join("d")).expect("mkdir");
    fs::write(mount.join("f"), b"x").expect("writes");
    let errno = |result: std::io::Result<()>| result.err().and_then(|error| error.raw_os_error());
    assert_eq!(errno(fs::create_dir(mount.join("d"))), Some(17), "EEXIST");
    assert_eq!(errno(fs::create_dir(mount.join("f/x"))), Some(20), "ENOTDIR");
    assert_eq!(errno(fs::remove_file(mount.join("nothing"))), Some(2), "ENOENT");
    assert_eq!(errno(fs::rename(mount.join("f"), mount.join("d"))), Some(21), "EISDIR");
    assert_eq!(errno(fs::rename(mount.join("d"), mount.join("f"))), Some(20), "ENOTDIR");
    assert_eq!(errno(fs::create_dir(mount.join("n".repeat(256)))), Some(36), "ENAMETOOLONG");
    assert_eq!(errno(fs::OpenOptions::new().write(true).create_new(true).open(mount.join("f")).map(drop)), Some(17));
    mount.unmount();
}

#[test]
fn files_are_written_at_any_place_and_cut_both_ways() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let mut model = Noise::new(6).bytes(20_000_000);
    let opened = fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(mount.join("f"));
    let mut file = opened.expect("creates");
    file.write_all(&model).expect("writes");
    file.sync_all().expect("syncs");
    for (at, len) in [(0, 10), (4_194_300, 20), (16_777_200, 100_000), (19_999_990, 500)] {
        let bytes = Noise::new(at).bytes(len);
        file.seek(SeekFrom::Start(at)).expect("seeks");
        file.write_all(&bytes).expect("writes");
        model.resize(model.len().max(at as usize + len), 0);
        model[at as usize..at as usize + len].copy_from_slice(&bytes);
    }
    let mut seen = vec![0; model.len()];
    file.read_exact_at(&mut seen, 0).expect("reads what it wrote");
    assert!(seen == model);
    file.set_len(18_000_000).expect("cuts");
    file.set_len(18_000_100).expect("grows");
    drop(file);
    model.truncate(18_000_000);
    model.resize(18_000_100, 0);
    fs::OpenOptions::new()
        .append(true)
        .open(mount.join("f"))
        .and_then(|mut end| end.write_all(b"end"))
        .expect("appends");
    model.extend_from_slice(b"end");
    assert!(fs::read(mount.join("f")).expect("reads") == model);
    mount.unmount();
    assert!(cluster.torchfs(["cat", "/f"]).stdout == model, "what close acknowledged is in the cluster");
}

#[test]
fn closing_one_handle_does_not_publish_what_another_is_writing() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let mut first = fs::File::create(mount.join("file")).expect("creates");
    first.write_all(b"the old version").expect("writes");
    first.sync_all().expect("syncs");
    let mut second = fs::OpenOptions::new().write(true).truncate(true).open(mount.join("file")).expect("opens");
    second.write_all(b"the new").expect("writes");
    drop(first);
    // A close that also releases: nothing else has the first handle any more.
    assert_eq!(cluster.torchfs(["cat", "/file"]).stdout, b"the old version");
    second.write_all(b" version").expect("writes");
    drop(second);
    assert_eq!(cluster.torchfs(["cat", "/file"]).stdout, b"the new version");
    mount.unmount();
}

#[test]
fn closing_a_file_that_was_only_cut_publishes_the_cut() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let mount = Mount::start(&cluster, "mnt");
    write_file(&mount.join("a"), b"content");
    write_file(&mount.join("b"), b"content");
    drop(fs::OpenOptions::new().write(true).truncate(true).open(mount.join("a")).expect("opens"));
    assert_eq!(cluster.torchfs(["cat", "/a"]).ok(), "");
    let file = fs::OpenOptions::new().write(true).open(mount.join("b")).expect("opens");
    file.set_len(3).expect("cuts");
    drop(file);
    assert_eq!(cluster.torchfs(["cat", "/b"]).ok(), "con");
    mount.unmount();
}

#[test]
fn a_program_that_runs_is_not_opened_for_writing() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    let script = "
import errno, os, shutil, subprocess
shutil.copy(shutil.which('sleep'), 'program')
size = os.stat('program').st_size
running = subprocess.Popen(['./program', '60'])
for flags in [os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND]:
    try:
        os.open('program', flags)
        raise SystemExit(f'{flags:x} opened it')
    except OSError as error:
        assert error.errno == errno.ETXTBSY, (flags, error)
try:
    os.truncate('program', 0)
    raise SystemExit('it was cut')
except OSError as error:
    assert error.errno == errno.ETXTBSY, error
assert os.stat('program').st_size == size and running.poll() is None
running.kill(); running.wait()
os.close(os.open('program', os.O_WRONLY | os.O_TRUNC))
assert os.stat('program').st_size == 0
";
    run(Command::new("python3").args(["-c", script]).current_dir(mount.path())).ok();
    mount.unmount();
}

#[test]
fn a_child_that_closes_what_it_inherited_does_not_publish_it() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let mut file = fs::File::create(mount.join("file")).expect("creates");
    file.write_all(b"the first half,").expect("writes");
    // Opening with O_TRUNC and closing is a write like any other: published when close(2) returns.
    fs::write(mount.join("cut"), b"content").expect("writes");
    drop(fs::OpenOptions::new().write(true).truncate(true).open(mount.join("cut")).expect("opens"));
    assert_eq!(fs::metadata(mount.join("cut")).expect("stat").len(), 0);
    // Between fork(2) and exec(3) the child has the descriptor, and the kernel closes it for the child.
    shell(mount.path(), "true");
    assert_eq!(cluster.torchfs(["cat", "/file"]).stdout, b"");
    // A child that writes is a writer: what it wrote is there when it has ended.
    let output = file.try_clone().expect("duplicates");
    assert!(Command::new("echo").arg(" the second").stdout(output).status().expect("starts").success());
    assert_eq!(cluster.torchfs(["cat", "/file"]).stdout, b"the first half, the second\n");
    drop(file);
    mount.unmount();
}

/// A failed close must say so: the prototype uploaded after close had returned.
#[test]
fn regression_06_close_reports_what_could_not_be_stored() {
    let Some((mut cluster, mount)) = mounted_or_skip() else { return };
    fs::write(mount.join("f"), b"the old version").expect("writes");
    for store in 0..5 {
        cluster.kill_store(store);
    }
    // fsync(2) and close(2) both report; std's drop hides close, so dd tells.
    let dd = format!("dd if=/dev/urandom of={} bs=1M count=3 conv=notrunc", mount.join("f").display());
    let finished = run(Command::new("bash").args(["-c", &dd]));
    assert_ne!(finished.code, Some(0), "five of six nodes are gone: {}", finished.stderr);
    cluster.start_all();
    cluster.wait_for_stores("up", 6);
    assert_eq!(cluster.torchfs(["cat", "/f"]).stdout, b"the old version");
}

/// The prototype knew none of these.
#[test]
fn regression_20_cuts_attributes_links_locks_and_xattrs() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    shell(
        mount.path(),
        "echo x > f; chmod 640 f; touch -d '2001-02-03 04:05:06.123456789' f
         test \"$(stat -c '%a %y' f)\" = '640 2001-02-03 04:05:06.123456789 +0000'
         truncate -s 1 f; test \"$(stat -c %s f)\" = 1; truncate -s 3 f; test \"$(stat -c %s f)\" = 3; echo x > f
         chown 7:8 f; test \"$(stat -c %u:%g f)\" = 7:8; flock -n f true; flock f -c '! flock -n f true'
         ln f g; test \"$(stat -c %h f)\" = 2; rm f; test \"$(cat g)\" = x
         ln -s g s; test \"$(readlink s)\" = g; test \"$(cat s)\" = x
         python3 - <<'E'
import os
os.setxattr('g', 'user.label', b'cat\\x00dog')
assert os.getxattr('g', 'user.label') == b'cat\\x00dog'
assert os.listxattr('g') == ['user.label']
os.removexattr('g', 'user.label')
assert os.listxattr('g') == []
f = open('u', 'w+b'); f.write(b'a' * 100000); f.flush(); os.unlink('u')
f.seek(0); assert f.read() == b'a' * 100000
s = os.statvfs('.'); assert s.f_blocks >= s.f_bfree > 0
E
         mkfifo p; test -p p",
    );
    mount.unmount();
}

#[test]
fn times_before_1970_keep_their_fraction() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let source = cluster.dir().join("source");
    fs::create_dir(&source).expect("mkdir");
    let check = "
import os, sys
for path, time in [('file', -1_500_000_000), ('old', -86_400_123_456_789), ('just', -1), ('folder', -2_000_000_000)]:
    if sys.argv[1] == 'make':
        (os.mkdir if path == 'folder' else os.mknod)(path)
        os.utime(path, ns=(time, time))
        assert os.stat(path).st_atime_ns == time, (path, time, os.stat(path).st_atime_ns)
    assert os.stat(path).st_mtime_ns == time, (path, time, os.stat(path).st_mtime_ns)
";
    let python =
        |folder: &Path, step: &str| run(Command::new("python3").args(["-c", check, step]).current_dir(folder)).ok();
    python(&source, "make");
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/put"]).ok();
    python(&mount.join("put"), "check");
    fs::create_dir(mount.join("made")).expect("mkdir");
    python(&mount.join("made"), "make");
    let out = cluster.dir().join("out");
    cluster.torchfs(["get", "-r", "/made", out.to_str().expect("UTF-8")]).ok();
    python(&out, "check");
    mount.unmount();
}

/// xattr(7), and what ext4 and tmpfs answer.
#[test]
fn names_of_extended_attributes_follow_the_rules() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    let script = "
import errno, os
open('f', 'w').close()
def answer(call, *arguments):
    try:
        call('f', *arguments)
        return 0
    except OSError as error:
        return error.errno
for name in ['user.', 'trusted.', 'security.']:
    assert answer(os.setxattr, name, b'x') == errno.EINVAL, name
    assert answer(os.getxattr, name) == errno.EINVAL, name
    assert answer(os.removexattr, name) == errno.EINVAL, name
for name in ['user', 'nonsense', 'nonsense.x', 'system.x', '.x']:
    assert answer(os.setxattr, name, b'x') == errno.EOPNOTSUPP, name
    assert answer(os.getxattr, name) == errno.EOPNOTSUPP, name
    assert answer(os.removexattr, name) == errno.EOPNOTSUPP, name
assert answer(os.setxattr, 'security.x', b'x') == errno.EOPNOTSUPP
assert answer(os.getxattr, 'security.x') == errno.ENODATA
assert answer(os.setxattr, 'user.' + 'n' * 250, b'x') == 0
assert answer(os.setxattr, 'user.' + 'n' * 251, b'x') == errno.ERANGE
assert answer(os.setxattr, '', b'x') == errno.ERANGE
assert answer(os.setxattr, 'user./a//b', b'slashes') == 0
assert os.getxattr('f', 'user./a//b') == b'slashes' and 'user./a//b' in os.listxattr('f')
assert answer(os.setxattr, 'user.large', b'x' * 65536) == 0
assert answer(os.setxattr, 'user.large', b'x' * 65537) == errno.E2BIG
assert answer(os.getxattr, 'user.absent') == errno.ENODATA
assert answer(os.removexattr, 'user.absent') == errno.ENODATA
assert answer(os.setxattr, 'user.large', b'x', os.XATTR_CREATE) == errno.EEXIST
assert answer(os.setxattr, 'user.absent', b'x', os.XATTR_REPLACE) == errno.ENODATA
";
    run(Command::new("python3").args(["-c", script]).current_dir(mount.path())).ok();
    mount.unmount();
}

#[test]
fn what_a_mount_does_not_offer_is_refused_quietly() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let mount = Mount::start_with(&cluster, "mnt", &["--log", "info"]);
    let script = "
import errno, fcntl, os, select, array
file = open('f', 'w+b'); file.write(b'x' * 1000); file.flush()
for command in [0x80086601, 0x5401, 0x12345678]:  # FS_IOC_GETFLAGS (lsattr), TCGETS (isatty), nonsense
    try:
        fcntl.ioctl(file, command, array.array('l', [0]))
        raise SystemExit(f'{command:x} is not refused')
    except OSError as error:
        assert error.errno == errno.ENOTTY, (hex(command), error)
assert select.select([file], [file], [], 10)[:2] == ([file], [file])
";
    run(Command::new("python3").args(["-c", script]).current_dir(mount.path())).ok();
    shell(mount.path(), "cp f h; cmp f h; test -r f; cd .");
    mount.unmount();
    let log = fs::read_to_string(cluster.dir().join("mnt.log")).expect("its log");
    assert!(!log.contains("Not Implemented"), "{log}");
}

#[test]
fn holes_are_kept_punched_and_found() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    shell(
        mount.path(),
        "head -c 1000000 /dev/urandom > f; cp f g
         fallocate -p -o 100000 -l 200000 f; fallocate -z -o 900000 -l 300000 f; fallocate -l 2000000 g
         test \"$(stat -c %s f) $(stat -c %s g)\" = '1200000 2000000'
         cp --sparse=always f copy; cmp f copy
         python3 - <<'E'
import os
f = os.open('f', os.O_RDONLY)
look = lambda: (os.lseek(f, 0, os.SEEK_HOLE), os.lseek(f, 100000, os.SEEK_DATA), os.lseek(f, 300000, os.SEEK_HOLE))
assert look() == (100000, 300000, 900000), look()
try: raise SystemExit(os.lseek(f, 900000, os.SEEK_DATA))
except OSError as e: assert e.errno == 6, e
data = os.pread(f, 2000000, 0)
assert data[100000:300000] == bytes(200000) and data[900000:] == bytes(300000)
assert data[:100000] == open('g', 'rb').read(100000)
E",
    );
    mount.unmount();
    let inspected = cluster.torchfs(["stat", "--json", "/f"]).ok();
    assert!(inspected.contains("700000"), "allocated bytes: {inspected}");
}

/// In the prototype renaming or removing what was there before broke listings, and the next mount.
#[test]
fn regression_17_what_was_there_before_a_mount_is_renamed_and_removed() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let source = cluster.dir().join("source");
    write_small_files(&source, 2, 30, 3000);
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    let change = "cd data; files=(class-0/*); rm ${files[0]}; mv ${files[1]} class-1/moved; mv class-1 renamed
                  test $(ls class-0 | wc -l) = 28; test $(ls renamed | wc -l) = 31; test ! -e class-1";
    let mount = Mount::start(&cluster, "mnt");
    shell(mount.path(), change);
    mount.unmount();
    let mount = Mount::start(&cluster, "mnt");
    shell(
        mount.path(),
        "cd data; test $(find . -type f | wc -l) = 59; cat renamed/moved > /dev/null; rm -r renamed; ls class-0",
    );
    assert_eq!(fs::read_dir(mount.join("data")).expect("lists").count(), 1);
    mount.unmount();
}

/// The prototype started six threads for each.
#[test]
fn regression_28_reading_files_starts_no_threads_for_each() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let source = cluster.dir().join("source");
    write_small_files(&source, 4, 100, 5000);
    cluster.torchfs(["put", "-r", source.to_str().expect("UTF-8"), "/data"]).ok();
    shell(mount.path(), "find data -type f -exec cat {} + > /dev/null");
    let threads = mount.threads();
    assert!((2..40).contains(&threads), "{threads} threads after 400 files, one after the other");
    mount.unmount();
}

#[test]
fn what_one_client_writes_another_reads() {
    if !fuse_or_skip() {
        return;
    }
    let cluster = Cluster::start();
    let (one, two) = (Mount::start(&cluster, "one"), Mount::start(&cluster, "two"));
    for round in 0..5 {
        let text = format!("round {round} {}", "x".repeat(round * 100_000));
        fs::write(one.join("f"), &text).expect("writes");
        // Close-to-open: the size that the other mount's kernel remembers is at most a second old.
        wait_until("the other client sees it", || fs::read_to_string(two.join("f")).is_ok_and(|seen| seen == text));
    }
    fs::remove_file(two.join("f")).expect("removes");
    cluster.torchfs(["stat", "/f"]).failed_with(exit::NOT_FOUND);
}

/// The kernel appends at the size that it knows, and stops reading there; both must be of the version that is opened.
#[test]
fn an_open_right_after_another_client_s_commit_sees_all_of_it() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let append = |mount: &Mount, line: &str| {
        let mut log = fs::OpenOptions::new().append(true).create(true).open(mount.join("log")).expect("opens");
        log.write_all(line.as_bytes()).expect("appends");
    };
    let mut expected = String::new();
    for round in 0..5 {
        for (number, mount) in [&one, &two].into_iter().enumerate() {
            let line = format!("line {round} of {number}\n");
            append(mount, &line);
            expected.push_str(&line);
            // The other one looks at it, so that it knows a size that is old in a moment.
            fs::metadata(one.join("log")).and_then(|_| fs::metadata(two.join("log"))).expect("stat");
        }
    }
    assert_eq!(cluster.torchfs(["cat", "/log"]).stdout, expected.as_bytes());

    let source = cluster.dir().join("source");
    for size in [1000, 900_000, 5_000_000, 300, 2_000_000] {
        let content = Noise::new(size as u64).bytes(size);
        write_file(&source, &content);
        cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/sized"]).ok();
        assert!(fs::read(two.join("sized")).expect("reads") == content, "{size} bytes");
        assert_eq!(fs::read_dir(one.path()).expect("lists").count(), 2);
        assert!(fs::read(one.join("sized")).expect("reads") == content, "{size} bytes");
    }
    one.unmount();
    two.unmount();
}

#[test]
fn a_new_version_is_pure_while_an_old_one_is_open() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let source = cluster.dir().join("source");
    let put = |byte: u8| {
        write_file(&source, &vec![byte; 8 << 20]);
        cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/mix"]).ok();
    };
    put(b'a');
    let old = fs::File::open(mount.join("mix")).expect("opens");
    old.read_exact_at(&mut [0; 10], 0).expect("reads");
    put(b'b');
    let new = fs::File::open(mount.join("mix")).expect("opens");
    let pure = |file: &fs::File| {
        let mut bytes = vec![0; 8 << 20];
        file.read_exact_at(&mut bytes, 0).expect("reads");
        bytes.iter().all(|&byte| byte == b'b')
    };
    let mut between = vec![0; 1 << 20];
    old.read_exact_at(&mut between, 3_000_000).expect("reads");
    assert!(between.iter().all(|&byte| byte == b'a'), "an open file keeps its version");
    assert!(pure(&new));
    drop((old, new));
    assert!(pure(&fs::File::open(mount.join("mix")).expect("opens")), "nothing of the old one stays in the page cache");
    mount.unmount();
}

/// No byte moves: it works without a storage node, and takes no space.
#[test]
fn copy_file_range_shares_what_is_stored() {
    let Some((mut cluster, mount)) = mounted_or_skip() else { return };
    let content = Noise::new(9).bytes(5_000_000);
    fs::write(mount.join("source"), &content).expect("writes");
    let stored = |cluster: &Cluster| cluster.status()["stored_bytes"].as_u64().expect("a number");
    let before = stored(&cluster);
    (0..6).for_each(|store| cluster.kill_store(store));
    let script = "
import os
source, whole, part = os.open('source', os.O_RDONLY), os.open('whole', os.O_RDWR | os.O_CREAT), os.open('part', os.O_RDWR | os.O_CREAT)
left = 5_000_000
while left:
    left -= os.copy_file_range(source, whole, left)
assert os.copy_file_range(source, part, 1_000_001, 777, 3) == 1_000_001
for fd in (source, whole, part):
    os.close(fd)
";
    run(Command::new("python3").args(["-c", script]).current_dir(mount.path())).ok();
    cluster.start_all();
    cluster.wait_for_stores("up", 6);
    assert_eq!(stored(&cluster), before);
    assert!(fs::read(mount.join("whole")).expect("reads") == content);
    let part = fs::read(mount.join("part")).expect("reads");
    assert!(part[..3] == [0; 3] && part[3..] == content[777..777 + 1_000_001]);
    fs::remove_file(mount.join("source")).expect("removes");
    assert!(cluster.torchfs(["cat", "/whole"]).stdout == content);
    // Over what is there, and what is not committed yet.
    let script = "
import os
f = open('f', 'w+b', buffering=0); f.write(b'0123456789')
assert os.copy_file_range(f.fileno(), f.fileno(), 4, 2, 10) == 4
f.seek(3); f.write(b'X'); f.seek(0)
assert f.read() == b'012X4567892345', 'as if it had been read and written'
";
    run(Command::new("python3").args(["-c", script]).current_dir(mount.path())).ok();
    assert_eq!(cluster.torchfs(["cat", "/f"]).stdout, b"012X4567892345");
    mount.unmount();
}
