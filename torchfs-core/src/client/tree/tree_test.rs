//! Trees in and out again, over stores in memory.

use super::rig_test::{Rig, assert_same, bytes, seen, write};
use super::{SourceLink, TreeOptions};
use crate::error::Kind;
use crate::shard::fault::Fault;
use proptest::prelude::*;
use std::ffi::OsStr;
use std::fs::{File, FileTimes, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn set_mtime(path: &Path, seconds: u64, nanos: u32) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos);
    File::open(path).unwrap().set_times(FileTimes::new().set_modified(time)).unwrap();
}

fn folder(path: PathBuf) -> PathBuf {
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Every kind of thing that a real tree may hold.
fn nasty_tree(root: &Path) {
    let names: [&[u8]; 7] =
        [b"with space", b"new\nline", b"\xff\xfe\x80", &[b'n'; 255], b"-rf", b"...", "ünï".as_bytes()];
    for (seed, name) in names.iter().enumerate() {
        write(root.join(OsStr::from_bytes(name)), bytes(seed as u64, 1000 * seed));
        write(folder(root.join("folders").join(OsStr::from_bytes(name))).join("x"), name);
    }
    for number in 0..3000 {
        let folder = folder(root.join(format!("small/{}", number % 13)));
        write(folder.join(format!("{number}")), bytes(number, (number * 7919 % 9000) as usize));
    }
    let mut deep = root.join("deep");
    (0..60).for_each(|level| deep.push(format!("level{level}")));
    write(folder(deep).join("bottom"), "bottom");
    write(root.join("large"), bytes(1, 40 << 20));
    write(root.join("exactly one stripe"), bytes(2, 16 << 20));
    write(root.join("largest that is packed"), bytes(3, 1 << 20));
    write(root.join("smallest that is not"), bytes(4, (1 << 20) + 1));
    write(root.join("small/shared"), "shared");
    std::fs::hard_link(root.join("small/shared"), root.join("again")).unwrap();
    std::fs::hard_link(root.join("small/shared"), root.join("small/0/again")).unwrap();
    std::fs::hard_link(root.join("large"), root.join("large again")).unwrap();
    symlink("small/1", root.join("link")).unwrap();
    symlink("/nowhere\nat all", root.join("dangling")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(&bytes(5, 10_000), 0).unwrap();
    sparse.write_all_at(&bytes(6, 3 << 20), 5 << 20).unwrap();
    sparse.set_len(64 << 20).unwrap();
    File::create(root.join("one hole")).unwrap().set_len(1 << 30).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), rustix::fs::Mode::RUSR).unwrap();
    std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    for mode in [0o000, 0o4755, 0o2711, 0o1777, 0o444] {
        write(root.join(format!("{mode:o}")), "x");
        set_mode(&root.join(format!("{mode:o}")), mode);
        set_mode(&folder(root.join(format!("folder {mode:o}"))), mode | 0o700);
    }
    set_mtime(&root.join("large"), 1_000_000_000, 123_456_789);
    set_mtime(&root.join("folders/-rf"), 1, 5);
    set_mtime(&root.join("deep"), 77, 0);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(root.join("large"), Some(1234), Some(5678)).unwrap();
        std::os::unix::fs::lchown(root.join("dangling"), Some(1234), Some(5678)).unwrap();
        std::os::unix::fs::chown(root.join("folders"), Some(12), Some(34)).unwrap();
    } else {
        std::fs::remove_file(root.join("0")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nasty_tree_comes_back_as_it_was() {
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    nasty_tree(&folder(source.clone()));
    let rig = Rig::new().await;
    let options = TreeOptions::default();
    let put = rig.client.put_tree(&source, "/tree", options.clone()).await.unwrap();
    assert!(put.failed.is_empty(), "{:?}", put.failed);

    let status = rig.client.status().await.unwrap();
    assert!((3..20).contains(&status.stripes), "{} stripes for {} files", status.stripes, status.files);
    assert_eq!(status.files, put.files);
    assert!(put.files > 3000);
    assert!(status.stored_bytes < 150 << 20, "holes were stored: {}", status.stored_bytes);
    assert_eq!(options.progress.files.load(Relaxed), options.progress.files_total.load(Relaxed));
    assert_eq!(options.progress.bytes.load(Relaxed), options.progress.bytes_total.load(Relaxed));

    rig.reads();
    let options = TreeOptions::default();
    let get = rig.client.get_tree("/tree", &back, options.clone()).await.unwrap();
    assert!(get.failed.is_empty(), "{:?}", get.failed);
    assert!(rig.reads() < 150, "small files were fetched one by one");
    assert_same(&source, &back);
    assert_eq!(
        (get.files, get.directories, get.others, get.bytes),
        (put.files, put.directories, put.others, put.bytes)
    );
    assert_eq!(options.progress.files.load(Relaxed), get.files);
    assert_eq!(options.progress.bytes.load(Relaxed), options.progress.bytes_total.load(Relaxed));
    for name in ["sparse", "one hole"] {
        let blocks = std::fs::metadata(back.join(name)).unwrap().blocks();
        assert!(blocks * 512 < 4 << 20, "{name}: {blocks} blocks");
    }
}

/// Sets an attribute; whether the file system has any.
fn set_xattr(path: &Path, name: &str, value: &[u8]) -> bool {
    match rustix::fs::lsetxattr(path, name, value, rustix::fs::XattrFlags::empty()) {
        Ok(()) => true,
        Err(rustix::io::Errno::NOTSUP) => false,
        Err(error) => panic!("{}: {error}", path.display()),
    }
}

#[tokio::test]
async fn user_attributes_go_in_and_come_out() {
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("source"), local.path().join("back"));
    folder(source.join("folder"));
    for name in ["plain", "labelled", "empty", "read only"] {
        write(source.join(name), if name == "empty" { "" } else { name });
    }
    if !set_xattr(&source.join("labelled"), "user.label", b"cat\0dog") {
        println!("skipped: no attributes in {}", source.display());
        return;
    }
    set_xattr(&source.join("labelled"), "user.empty", b"");
    set_xattr(&source.join("labelled"), "user.a/b", b"a slash");
    for name in ["empty", "read only", "folder", "."] {
        set_xattr(&source.join(name), "user.label", name.as_bytes());
    }
    set_mode(&source.join("read only"), 0o444);
    std::fs::hard_link(source.join("labelled"), source.join("folder/again")).unwrap();

    let rig = Rig::new().await;
    rig.put(&source, "/t").await;
    let ino = rig.client.stat("/t/labelled").await.unwrap().ino;
    let name = crate::meta::XattrName::new("user.label").unwrap();
    assert_eq!(rig.client.meta().xattr(ino, name).await.unwrap(), b"cat\0dog");

    rig.get("/t", &back).await;
    assert_same(&source, &back);
    assert_eq!(seen(&back)[Path::new("labelled")].xattrs.len(), 3, "the comparison sees them");
    rig.get("/t/labelled", &local.path().join("alone")).await;
    assert_eq!(seen(&local.path().join("alone"))[Path::new("")].xattrs, seen(&back)[Path::new("labelled")].xattrs);
    // A folder that was there is filled and otherwise left as it is.
    let there = folder(local.path().join("there"));
    rig.get("/t", &there).await;
    assert!(seen(&there)[Path::new("")].xattrs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn putting_over_a_tree_makes_it_the_new_one() {
    let local = tempfile::tempdir().unwrap();
    let (old, new) = (local.path().join("old"), local.path().join("new"));
    let (back, again) = (local.path().join("back"), local.path().join("again"));
    for (root, seed) in [(folder(old.clone()), 1), (folder(new.clone()), 100)] {
        for number in 0..40 {
            write(folder(root.join("d")).join(format!("{number}")), bytes(seed + number, 3000));
        }
        write(root.join("large"), bytes(seed, (2 << 20) + seed as usize));
        symlink(format!("target {seed}"), root.join("link")).unwrap();
        std::fs::hard_link(root.join("d/1"), root.join("same")).unwrap();
    }
    write(old.join("a link later"), "a file first");
    symlink("large", new.join("a link later")).unwrap();
    symlink("large", old.join("a file later")).unwrap();
    write(new.join("a file later"), "a file now");
    write(old.join("joined later"), "by itself");
    std::fs::hard_link(new.join("d/2"), new.join("joined later")).unwrap();

    let rig = Rig::new().await;
    rig.put(&old, "/t").await;
    rig.put(&new, "/t").await;
    rig.get("/t", &back).await;
    assert_same(&new, &back);
    // And once more, where nothing is new.
    rig.put(&new, "/t").await;
    rig.get("/t", &again).await;
    assert_same(&new, &again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_replaced_is_always_whole() {
    let local = tempfile::tempdir().unwrap();
    let sources: Vec<PathBuf> = (0..2).map(|seed| folder(local.path().join(format!("{seed}")))).collect();
    for (seed, source) in sources.iter().enumerate() {
        write(source.join("small"), bytes(seed as u64, 5000 + seed));
        write(source.join("large"), bytes(seed as u64, (17 << 20) + seed));
    }
    let rig = Rig::new().await;
    rig.put(&sources[0], "/t").await;
    let stop = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (client, stop) = (rig.client.clone(), stop.clone());
        async move {
            let mut versions = [0, 0];
            while !stop.load(Relaxed) {
                for (name, len) in [("small", 5000), ("large", 17 << 20)] {
                    let read = client.read_file(format!("/t/{name}")).await.expect("reads");
                    let seed = read.len() - len;
                    assert_eq!(read, bytes(seed as u64, len + seed), "{name}");
                    versions[seed] += 1;
                }
            }
            versions
        }
    });
    for round in 0..8 {
        rig.put(&sources[round % 2], "/t").await;
    }
    stop.store(true, Relaxed);
    assert!(reader.await.unwrap().iter().sum::<i32>() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_fail_midway_end_the_copy_and_the_old_files_stay() {
    let local = tempfile::tempdir().unwrap();
    let (old, new, back) = (local.path().join("old"), local.path().join("new"), local.path().join("back"));
    for (root, seed) in [(folder(old.clone()), 1), (folder(new.clone()), 2)] {
        for number in 0..20 {
            write(root.join(format!("{number}")), bytes(seed * 1000 + number, 400_000));
        }
        write(root.join("zz large"), bytes(seed, 70 << 20));
    }
    let rig = Rig::new().await;
    rig.put(&old, "/t").await;
    // One stripe goes through, then every node refuses.
    for store in &rig.faults {
        store.script([None]);
        store.set(Some(Fault::Fail(Kind::Unavailable)));
    }
    let error = rig.client.put_tree(&new, "/t", Default::default()).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error}");

    rig.fail(0, Fault::Hang);
    rig.get("/t", &back).await;
    let (old, new, back) = (seen(&old), seen(&new), seen(&back));
    assert_eq!(old.len(), back.len());
    for (path, one) in back.iter().filter(|(path, _)| *path != Path::new("")) {
        assert!(one == &old[path] || one == &new[path], "{} is neither old nor new", path.display());
    }
    let large = Path::new("zz large");
    assert_eq!(back[large], old[large]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_away_change_nothing_and_three_spoil_what_they_hold() {
    let local = tempfile::tempdir().unwrap();
    let (source, back, spoiled) = (local.path().join("s"), local.path().join("b"), local.path().join("c"));
    for number in 0..300 {
        write(folder(source.clone()).join(format!("{number}")), bytes(number, 50_000));
    }
    File::create(source.join("empty")).unwrap();
    let rig = Rig::new().await;
    rig.put(&source, "/t").await;
    rig.fail(2, Fault::Fail(Kind::Unavailable));
    rig.get("/t", &back).await;
    assert_same(&source, &back);

    rig.fail(3, Fault::Fail(Kind::Unavailable));
    let report = rig.client.get_tree("/t", &spoiled, Default::default()).await.unwrap();
    assert!(!report.failed.is_empty());
    assert!(report.failed.iter().all(|(_, error)| error.kind() == Kind::Unavailable), "{:?}", report.failed);
    assert_eq!(report.failed.len() as u64 + report.files, 301);
    let (source, spoiled) = (seen(&source), seen(&spoiled));
    for (path, one) in &spoiled {
        assert_eq!(source.get(path), Some(one), "{} is half a file or a leftover", path.display());
    }
    assert_eq!(spoiled.len() as u64, report.files + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn getting_over_a_tree_replaces_its_files_and_keeps_the_others() {
    let local = tempfile::tempdir().unwrap();
    let (source, back) = (local.path().join("s"), folder(local.path().join("b")));
    for name in ["a", "b", "d/c", "in the way"] {
        folder(source.join(name).parent().unwrap().to_owned());
        write(source.join(name), format!("new {name}"));
    }
    write(back.join("a"), "old and longer than the new one");
    write(back.join("other"), "other");
    std::fs::create_dir(back.join("in the way")).unwrap();
    write(folder(back.join("d")).join("c"), "old");
    let rig = Rig::new().await;
    rig.put(&source, "/t").await;
    let report = rig.client.get_tree("/t", &back, Default::default()).await.unwrap();
    assert_eq!(report.failed.len(), 1, "{:?}", report.failed);
    assert_eq!(report.failed[0].0, back.join("in the way"));
    assert_eq!(report.files, 3);
    for (name, content) in [("a", "new a"), ("b", "new b"), ("d/c", "new d/c"), ("other", "other")] {
        assert_eq!(std::fs::read_to_string(back.join(name)).unwrap(), content);
    }
    assert_eq!(seen(&back).len(), 7, "temporary names are left: {:?}", seen(&back).keys());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_never_stops_changing_is_whole_or_reported() {
    let local = tempfile::tempdir().unwrap();
    let source = folder(local.path().join("s"));
    write(source.join("calm"), "calm");
    write(source.join("busy"), bytes(0, 900_000));
    write(source.join("busy and large"), bytes(0, 20 << 20));
    std::fs::hard_link(source.join("busy"), source.join("second name")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = ["busy", "busy and large"]
        .into_iter()
        .map(|name| {
            let (file, stop) = (File::options().append(true).open(source.join(name)).unwrap(), stop.clone());
            std::thread::spawn(move || {
                use std::io::Write;
                while !stop.load(Relaxed) {
                    (&file).write_all(b"more").unwrap();
                }
            })
        })
        .collect();
    let rig = Rig::new().await;
    let report = rig.client.put_tree(&source, "/t", Default::default()).await.unwrap();
    stop.store(true, Relaxed);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert!(report.failed.iter().all(|(_, error)| error.kind() == Kind::Conflict), "{:?}", report.failed);
    // Whether a moment without a write was found is chance; that no torn file is there is not.
    for (name, len) in [("busy", 900_000), ("busy and large", 20 << 20)] {
        match rig.client.read_file(format!("/t/{name}")).await {
            Ok(read) => {
                assert!(read[..len] == bytes(0, len)[..], "{name} is torn");
                assert!(read[len..].chunks(4).all(|piece| piece == b"more"), "{name} is torn");
            }
            Err(error) => {
                assert_eq!(error.kind(), Kind::NotFound);
                assert!(report.failed.iter().any(|(path, _)| path == &source.join(name)), "{name} is missing silently");
            }
        }
    }
    assert_eq!(rig.client.read_file("/t/calm").await.unwrap(), "calm");
    assert_eq!(report.files + report.others + report.failed.len() as u64, 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn single_files_and_wrong_targets() {
    let local = tempfile::tempdir().unwrap();
    let (file, back) = (local.path().join("f"), local.path().join("back"));
    write(&file, "one file");
    let rig = Rig::new().await;
    rig.put(&file, "/name").await;
    rig.get("/name", &back).await;
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "one file");
    rig.client.mkdir("/folder").await.unwrap();

    let none = TreeOptions::default();
    let put = |source: PathBuf, target: &'static str| {
        let (client, options) = (rig.client.clone(), none.clone());
        async move { client.put_tree(&source, target, options).await }
    };
    assert_eq!(put(local.path().join("missing"), "/x").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(put(file.clone(), "/no/such/folder").await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(put(file.clone(), "/folder").await.unwrap_err().kind(), Kind::IsDirectory);
    assert_eq!(put(file.clone(), "/").await.unwrap_err().kind(), Kind::IsDirectory);
    assert_eq!(put(local.path().to_owned(), "/name").await.unwrap_err().kind(), Kind::NotDirectory);
    let get = |source: &'static str, target: PathBuf| {
        let (client, options) = (rig.client.clone(), none.clone());
        async move { client.get_tree(source, &target, options).await }
    };
    assert_eq!(get("/missing", back.clone()).await.unwrap_err().kind(), Kind::NotFound);
    assert_eq!(get("/folder", file.clone()).await.unwrap_err().kind(), Kind::NotDirectory);
    assert_eq!(get("/name", local.path().to_owned()).await.unwrap_err().kind(), Kind::IsDirectory);
    assert_eq!(get("/folder", local.path().join("no/such")).await.unwrap_err().kind(), Kind::NotFound);

    let link = local.path().join("link");
    symlink("f", &link).unwrap();
    let follow = TreeOptions { source_link: SourceLink::Follow, ..TreeOptions::default() };
    rig.client.put_tree(&link, "/followed", follow.clone()).await.unwrap();
    assert_eq!(rig.client.read_file("/followed").await.unwrap(), "one file");
    rig.put(&link, "/link").await;
    assert_eq!(rig.client.read_link("/link").await.unwrap(), b"f");
    rig.client.symlink("/followed", "/link to it").await.unwrap();
    let followed = local.path().join("followed");
    rig.client.get_tree("/link to it", &followed, follow).await.unwrap();
    assert_eq!(std::fs::read_to_string(followed).unwrap(), "one file");

    // Into the root, which is there and has no name.
    std::fs::remove_file(&back).unwrap();
    rig.put(local.path(), "/").await;
    assert_eq!(rig.client.read_file("/f").await.unwrap(), "one file");
    assert_eq!(rig.client.read_file("/name").await.unwrap(), "one file");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_go_in_and_out_whole() {
    let rig = Rig::new().await;
    for len in [0, 1, 100_000, 16 << 20, (50 << 20) + 3] {
        let content = bytes(len as u64, len);
        let attr = rig.client.put_reader(&content[..], "/f", 0o600).await.unwrap();
        assert_eq!((attr.size, attr.mode), (len as u64, 0o600));
        let mut back = Vec::new();
        assert_eq!(rig.client.get_writer("/f", &mut back).await.unwrap(), len as u64);
        assert!(back == content, "{len} bytes differ");
    }
    use tokio::io::AsyncReadExt;
    let broken = bytes(1, 20 << 20);
    let broken = (&broken[..]).chain(PulledCable);
    let error = rig.client.put_reader(broken, "/f", 0o600).await.unwrap_err();
    assert!(error.to_string().contains("cable pulled"), "{error}");
    assert_eq!(rig.client.stat("/f").await.unwrap().size, (50 << 20) + 3);
    assert_eq!(rig.client.put_reader(&b""[..], "/", 0o600).await.unwrap_err().kind(), Kind::IsDirectory);
    assert_eq!(rig.client.get_writer("/", &mut Vec::new()).await.unwrap_err().kind(), Kind::IsDirectory);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sparse_stream_has_its_zeros() {
    let local = tempfile::tempdir().unwrap();
    let path = local.path().join("sparse");
    let file = File::create(&path).unwrap();
    file.write_all_at(b"here", 3 << 20).unwrap();
    file.set_len(6 << 20).unwrap();
    let rig = Rig::new().await;
    rig.put(&path, "/sparse").await;
    let mut back = Vec::new();
    rig.client.get_writer("/sparse", &mut back).await.unwrap();
    assert!(back == std::fs::read(&path).unwrap());
}

/// A stream that breaks at once.
struct PulledCable;

impl tokio::io::AsyncRead for PulledCable {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        _: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Err(std::io::Error::other("cable pulled")))
    }
}

/// A small random tree: what each path component holds.
#[derive(Clone, Debug)]
enum Node {
    File(u32),
    Sparse(u32),
    Link(Vec<u8>),
    Folder(Vec<(Vec<u8>, Node)>),
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop_oneof![1u8..=46, 48u8..=255], 1..20)
        .prop_filter("dots", |name| name != b"." && name != b"..")
}

fn node() -> impl Strategy<Value = Node> {
    let leaf = prop_oneof![
        (0u32..3_000).prop_map(Node::File),
        (0u32..3_000_000).prop_map(Node::File),
        (1u32..200).prop_map(Node::Sparse),
        name().prop_map(Node::Link),
    ];
    leaf.prop_recursive(4, 40, 8, |inner| prop::collection::vec((name(), inner), 0..8).prop_map(Node::Folder))
}

fn build(path: &Path, node: &Node) {
    match node {
        Node::File(len) => write(path, bytes(u64::from(*len), *len as usize)),
        Node::Sparse(blocks) => {
            let file = File::create(path).unwrap();
            (0..*blocks)
                .step_by(3)
                .for_each(|at| file.write_all_at(&bytes(at.into(), 4096), u64::from(at) * 65536).unwrap());
        }
        Node::Link(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
        Node::Folder(children) => {
            folder(path.to_owned());
            for (name, child) in children {
                let path = path.join(OsStr::from_bytes(name));
                if path.symlink_metadata().is_err() {
                    build(&path, child);
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_comes_back_as_it_was(first in node(), second in node()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let local = tempfile::tempdir().unwrap();
            let rig = Rig::new().await;
            for (number, tree) in [first, second].iter().enumerate() {
                let (source, back) = (local.path().join("s"), local.path().join("b"));
                build(&source, tree);
                let target = format!("/{number}");
                rig.put(&source, &target).await;
                rig.get(&target, &back).await;
                assert_same(&source, &back);
                for path in [source, back] {
                    let removed = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
                    removed.unwrap();
                }
            }
        });
    }
}
