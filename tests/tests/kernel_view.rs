//! What the kernel is told never takes back what was acknowledged: readers of older versions and long listings are between the
//! changes of others.

use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use torchfs_tests::{Mount, Noise, mounted_or_skip, wait_until};

/// As read(2) has it, without asking how long the file is.
fn read_plainly(path: &Path) -> Vec<u8> {
    let mut file = File::open(path).expect("opens");
    let (mut all, mut buffer) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).expect("reads") {
            0 => return all,
            bytes => all.extend_from_slice(&buffer[..bytes]),
        }
    }
}

fn append(path: &Path, bytes: &[u8]) {
    let mut file = OpenOptions::new().append(true).open(path).expect("opens");
    file.write_all(bytes).expect("writes");
}

#[test]
fn a_reader_that_comes_to_the_end_of_an_older_version_shortens_the_file_for_nobody() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let (first, second) = ([b'1'; 10], [b'2'; 90]);
    for round in 0..12 {
        let (appends, keeps) = (round % 2 == 0, round % 4 < 2);
        let (here, there) = (one.join(format!("{round}")), two.join(format!("{round}")));
        fs::write(&here, first).expect("writes");
        let reader = File::open(&there).expect("opens");
        let mut buffer = vec![0; 100_000];
        assert_eq!(reader.read_at(&mut buffer, 0).expect("reads"), 10);
        let mut expected = [first.as_slice(), &second].concat();
        if appends {
            append(&here, &second);
        } else {
            fs::write(&here, &expected).expect("writes");
        }
        let old = reader.read_at(&mut buffer, 0).expect("reads");
        assert_eq!(&buffer[..old], &first, "round {round}: it goes on with what it opened");
        let kept = keeps.then_some(reader);
        assert!(read_plainly(&there) == expected, "round {round}: an open after a close sees all of it");
        if let Some(reader) = &kept {
            reader.read_at(&mut buffer, 0).expect("reads");
        }
        append(&there, b"hello");
        expected.extend_from_slice(b"hello");
        assert!(read_plainly(&here) == expected, "round {round}: what is appended comes after what was there");
    }
    two.unmount();
    one.unmount();
}

/// Longer than the kernel answers by itself.
const KERNEL_FORGETS: Duration = Duration::from_millis(1100);

#[expect(clippy::disallowed_methods, reason = "a thread of the test's own, no runtime's")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}

const LISTED: usize = 800;

/// Far behind what the first request brings.
const AT: usize = 700;

/// A folder with so many and so long names that a listing takes many requests.
struct Listing {
    folder: PathBuf,
    entries: fs::ReadDir,
}

/// Its end is nothing that a later version, of which the kernel hears in many ways, could move: what lay behind it would be zeros.
#[test]
fn an_older_version_ends_where_it_ended() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let (before, more, own) = (Noise::new(1).bytes(210_001), Noise::new(2).bytes(65_536), b"and from here");
    for round in 0..24 {
        let (here, there) = (one.join(format!("{round}")), two.join(format!("{round}")));
        fs::write(&here, &before).expect("writes");
        let readers = [(); 2].map(|()| File::open(&there).expect("opens"));
        let mut buffer = vec![0; 1 << 20];
        if round % 2 == 0 {
            // Now the kernel has the page in the middle of which it ends.
            readers[0].read_at(&mut buffer, 0).expect("reads");
        }
        append(&here, &more);
        let now = [before.as_slice(), &more].concat();
        match round % 3 {
            0 => assert!(read_plainly(&there) == now),
            1 => wait_until("its new size is known", || {
                fs::metadata(&there).expect("is there").len() == now.len() as u64
            }),
            _ => assert!(fs::read_dir(two.path()).expect("lists").count() > round),
        }
        for reader in &readers {
            let read = reader.read_at(&mut buffer, 0).expect("reads");
            assert!(buffer[..read] == before, "round {round}: {read} bytes");
            assert_eq!(reader.read_at(&mut buffer, before.len() as u64).expect("reads"), 0, "round {round}");
            assert_eq!(reader.metadata().expect("is open").len(), before.len() as u64, "round {round}");
        }
        // What this machine writes to the new one does not go there either.
        assert!(read_plainly(&there) == now, "round {round}");
        append(&there, own);
        let read = readers[1].read_at(&mut buffer, 0).expect("reads");
        assert!(buffer[..read] == before, "round {round}: {read} bytes");
        let now = [now.as_slice(), own].concat();
        drop(readers);
        assert!(read_plainly(&there) == now && read_plainly(&here) == now, "round {round}");
    }
    two.unmount();
    one.unmount();
}

/// Several at once find out that there is a new version: each gets it, with its size.
#[test]
fn whoever_opens_after_a_change_has_the_new_version() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let (here, there) = (one.join("file"), two.join("file"));
    fs::write(&here, [0; 5000]).expect("writes");
    let mut kept = vec![(File::open(&there).expect("opens"), 5000)];
    for round in 1..=30_u8 {
        let bytes = 1000 * usize::from(round % 7 + 1);
        fs::write(&here, vec![round; bytes]).expect("writes");
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let file = File::open(&there).expect("opens");
                    assert_eq!(file.metadata().expect("is open").len(), bytes as u64, "round {round}");
                    assert!(mapped(&file) == vec![round; bytes], "round {round}");
                    assert!(read_plainly(&there) == vec![round; bytes], "round {round}");
                });
            }
        });
        if round % 5 == 0 {
            kept.push((File::open(&there).expect("opens"), bytes));
        }
        for (reader, bytes) in &kept {
            assert_eq!(reader.metadata().expect("is open").len(), *bytes as u64, "round {round}");
            assert_eq!(mapped(reader).len(), *bytes, "round {round}");
        }
    }
    drop(kept);
    two.unmount();
    one.unmount();
}

/// What a private mapping of an open file shows, which is as long as fstat(2) says.
fn mapped(file: &File) -> Vec<u8> {
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let script = "import mmap, sys\nwith open(sys.argv[1], 'rb') as f: sys.stdout.buffer.write(mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE)[:])";
    let ran = std::process::Command::new("python3").args(["-c", script, &path]).output().expect("runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    ran.stdout
}

/// The old version and the new one are one file: its mode is, and what was acknowledged for one is not lost by the other.
#[test]
fn a_name_leads_to_the_new_version_for_as_long_as_the_old_one_is_read() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let (here, there) = (one.join("file"), two.join("file"));
    fs::write(&here, [1; 5000]).expect("writes");
    let reader = File::open(&there).expect("opens");
    assert_eq!(read_plainly(&there).len(), 5000);
    fs::write(&here, [2; 20_000]).expect("writes");
    // The first to hear of it is not a name, and the kernel takes its time before it looks that up again.
    assert_eq!(reader.metadata().expect("is open").len(), 5000);
    wait(Duration::from_secs(11));
    for _ in 0..3 {
        assert_eq!(fs::metadata(&there).expect("is there").len(), 20_000);
        wait(KERNEL_FORGETS);
    }
    assert_eq!((reader.metadata().expect("is open").len(), mapped(&reader).len()), (5000, 5000));
    assert!(read_plainly(&there) == [2; 20_000]);

    let mode = |attr: fs::Metadata| attr.permissions().mode() & 0o777;
    reader.set_permissions(fs::Permissions::from_mode(0o600)).expect("is the owner");
    assert_eq!(mode(fs::metadata(&there).expect("is there")), 0o600);
    fs::set_permissions(&there, fs::Permissions::from_mode(0o640)).expect("is the owner");
    assert_eq!(mode(reader.metadata().expect("is open")), 0o640);

    // Nobody writes to the old version: what is not the file any more would go over what is.
    let old = format!("/proc/self/fd/{}", reader.as_raw_fd());
    assert_eq!(read_plainly(Path::new(&old)), [1; 5000]);
    let refused = OpenOptions::new().append(true).open(&old).expect_err("it is old").kind();
    assert_eq!(refused, ErrorKind::StaleNetworkFileHandle);
    append(&there, b"more");
    let mut file = OpenOptions::new().write(true).open(&there).expect("opens");
    assert_eq!(file.seek(SeekFrom::End(0)).expect("seeks"), 20_004);
    drop((file, reader));
    two.unmount();
    one.unmount();
}

/// Readers of several versions, one after the other and at a time, each have their own.
#[test]
fn every_reader_keeps_what_it_opened() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let (here, there) = (one.join("file"), two.join("file"));
    let mut kept = Vec::new();
    for version in 0..20_u8 {
        let content = vec![version; 10_000 - 400 * usize::from(version)];
        fs::write(&here, &content).expect("writes");
        kept.push((File::open(&there).expect("opens"), content));
        if version % 3 == 2 {
            kept.swap_remove(usize::from(version) % kept.len());
        }
        for (reader, content) in &kept {
            let mut buffer = vec![0; 20_000];
            let read = reader.read_at(&mut buffer, 0).expect("reads");
            assert!(buffer[..read] == *content, "version {version}, opened {}: {read} bytes", content[0]);
        }
    }
    assert_eq!(fs::metadata(&there).expect("is there").len(), 10_000 - 400 * 19);
    drop(kept);
    two.unmount();
    one.unmount();
}

fn name(number: usize) -> String {
    format!("f{number:0250}")
}

impl Listing {
    /// Begins to list a new folder, of which the kernel has forgotten what it was told when it was made.
    fn begin(mount: &Mount, text: &str) -> Listing {
        let folder = mount.join(text);
        fs::create_dir(&folder).expect("makes");
        for number in 0..LISTED {
            File::create_new(folder.join(name(number))).expect("makes");
        }
        wait(KERNEL_FORGETS);
        let mut entries = fs::read_dir(&folder).expect("lists");
        entries.next().expect("an entry").expect("lists");
        Listing { folder, entries }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(name(number))
    }

    /// Lists the rest, and looks at each file but one, so that the kernel asks for attributes too.
    fn finish(mut self, but: usize) -> usize {
        let but = name(but);
        let mut count = 1;
        for entry in &mut self.entries {
            let entry = entry.expect("lists");
            if entry.file_name().to_string_lossy() != but {
                drop(entry.metadata());
            }
            count += 1;
        }
        count
    }
}

#[test]
fn a_listing_that_was_begun_earlier_brings_nothing_back() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    let listing = Listing::begin(&mount, "unlink");
    let path = listing.path(AT);
    fs::remove_file(&path).expect("removes");
    assert!(listing.finish(AT) >= LISTED - 1);
    assert!(!path.exists());
    File::create_new(&path).expect("the name is free");

    let listing = Listing::begin(&mount, "rename");
    let (path, other) = (listing.path(AT), listing.folder.join("zz"));
    fs::rename(&path, &other).expect("renames");
    assert!(listing.finish(AT) >= LISTED - 1);
    assert!(!path.exists() && other.exists());

    let listing = Listing::begin(&mount, "replace");
    let (path, other) = (listing.path(AT), listing.folder.join("zz"));
    fs::write(&other, b"another").expect("writes");
    fs::rename(&other, &path).expect("renames");
    assert!(listing.finish(AT) >= LISTED - 1);
    assert_eq!(fs::read(&path).expect("reads"), b"another");

    let listing = Listing::begin(&mount, "chmod");
    let path = listing.path(AT);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("sets");
    assert_eq!(listing.finish(AT), LISTED);
    assert_eq!(path.metadata().expect("is there").mode() & 0o777, 0o600);
    mount.unmount();
}

#[test]
fn a_listing_that_was_begun_earlier_does_not_shorten_files_that_were_written_since() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    for writes_elsewhere in [false, true] {
        let listing = Listing::begin(&one, if writes_elsewhere { "elsewhere" } else { "here" });
        let path = listing.path(AT);
        let written = if writes_elsewhere { two.join("elsewhere").join(name(AT)) } else { path.clone() };
        fs::write(&written, [b'n'; 5000]).expect("writes");
        let mut held = OpenOptions::new().read(true).append(true).open(&path).expect("opens");
        assert!(listing.finish(LISTED) == LISTED);
        assert_eq!(held.metadata().expect("is there").len(), 5000);
        let mut buffer = vec![0; 10_000];
        assert_eq!(held.read_at(&mut buffer, 0).expect("reads"), 5000);
        held.write_all(b"hello").expect("appends");
        drop(held);
        let bytes = read_plainly(&path);
        assert!(bytes.len() == 5005 && bytes.ends_with(b"nhello"), "{} bytes", bytes.len());
    }
    two.unmount();
    one.unmount();
}

#[test]
fn an_older_version_that_nobody_reads_any_more_is_not_opened_again() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let two = Mount::start(&cluster, "two");
    let (here, there) = (one.join("file"), two.join("file"));
    fs::write(&here, b"first").expect("writes");
    let reader = File::open(&there).expect("opens");
    let place = OpenOptions::new().read(true).custom_flags(OFlags::PATH.bits() as i32).open(&there).expect("a place");
    let by_place = format!("/proc/self/fd/{}", place.as_raw_fd());
    fs::write(&here, b"second, and longer").expect("writes");
    assert_eq!(read_plainly(&there), b"second, and longer");
    assert_eq!(read_plainly(Path::new(&by_place)), b"first", "it is that of the reader");
    let is_stale = |opened: std::io::Result<File>| {
        opened.is_err_and(|error| error.raw_os_error() == Some(Errno::STALE.raw_os_error()))
    };
    drop(reader);
    wait_until("the kernel has told that it is closed", || is_stale(File::open(&by_place)));
    assert!(is_stale(OpenOptions::new().append(true).open(&by_place)), "written, it would be lost beside the other");
    for path in [&here, &there] {
        append(path, b"!");
    }
    assert!(is_stale(OpenOptions::new().write(true).open(&by_place)));
    for path in [&here, &there] {
        assert_eq!(read_plainly(path), b"second, and longer!!");
    }
    drop(place);
    two.unmount();
    one.unmount();
}

#[test]
fn what_close_could_not_store_is_shown_to_nobody_who_opens_the_file_afterwards() {
    let Some((mut cluster, one)) = mounted_or_skip() else { return };
    let (old, new) = (Noise::new(1).bytes(20_000), Noise::new(2).bytes(20_000));
    let (unseen, seen) = (one.join("unseen"), one.join("seen"));
    for path in [&unseen, &seen] {
        fs::write(path, &old).expect("writes");
        // It is in the cache of the mount, too, so that it can be read without storage nodes.
        rustix::fs::fadvise(File::open(path).expect("opens"), 0, None, rustix::fs::Advice::DontNeed).expect("advises");
        assert!(read_plainly(path) == old);
    }
    wait_until("they are in the cache", || one.stats()["cache"]["used_bytes"] == 40_000);
    (0..6).for_each(|store| cluster.kill_store(store));
    for path in [&unseen, &seen] {
        let writer = OpenOptions::new().read(true).write(true).open(path).expect("opens");
        writer.write_all_at(&new, 0).expect("written here");
        if path == &seen {
            writer.sync_all().expect_err("no storage node is there");
            assert!(read_plainly(path) == new, "as long as it is being written");
        }
        drop(writer);
        // The kernel tells a moment later that it is closed.
        wait_until("it is the version from before", || read_plainly(path) == old);
        assert!(fs::read(path).expect("reads") == old);
    }
}
