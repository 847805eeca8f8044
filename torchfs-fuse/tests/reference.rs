//! Random operations on a file system of ours and on a local folder: every answer is the same, and so is what is there after
//! each. Once through [`Client`], without FUSE, and once through two mounts, each operation through either.

use proptest::prelude::*;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use torchfs_core::meta::{Attr, AttrChange, FileKind, IfExists, NewInode, NewKind, SetTime};
use torchfs_core::{Client, Error, InodeId, Kind};
use torchfs_fuse::{MountOptions, Mounted};
use torchfs_local::LocalCluster;

/// One operation. Paths are relative to the folder that the operations are in.
#[derive(Clone, Debug)]
enum Step {
    Write(String, usize),
    CreateNew(String),
    WriteAt(String, u64, usize),
    Append(String, usize),
    Truncate(String, u64),
    Read(String),
    Mkdir(String),
    Rmdir(String),
    Unlink(String),
    Rename(String, String),
    Link(String, String),
    Symlink(String, String),
    ReadLink(String),
    Chmod(String, u32),
    Touch(String, u64),
    SetXattr(String, Vec<u8>),
    Xattr(String),
    Stat(String),
    List(String),
}

/// What an operation answers, as far as it must be the same everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer {
    Done,
    Bytes(Vec<u8>),
    Names(Vec<Vec<u8>>),
    Stat { kind: char, mode: u32, size: u64, links: u64, mtime: Option<u64> },
}

type Answered = Result<Answer, Errno>;

/// Where operations are carried out.
trait Place: Debug {
    fn run(&self, step: &Step, number: u64) -> Answered;
}

/// Few names, so that operations meet.
fn path() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
    prop_oneof![
        3 => name().prop_map(str::to_owned),
        3 => (name(), name()).prop_map(|(a, b)| format!("{a}/{b}")),
        1 => (name(), name(), name()).prop_map(|(a, b, c)| format!("{a}/{b}/{c}")),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let len = || prop_oneof![Just(0), 1usize..5000, 60_000usize..200_000];
    let at = || prop_oneof![0u64..9000, 60_000u64..300_000];
    let target = prop_oneof![Just("a"), Just("b"), Just("c"), Just("a/b"), Just("./c")];
    prop_oneof![
        4 => (path(), len()).prop_map(|(path, len)| Step::Write(path, len)),
        1 => path().prop_map(Step::CreateNew),
        2 => (path(), at(), len()).prop_map(|(path, at, len)| Step::WriteAt(path, at, len)),
        2 => (path(), len()).prop_map(|(path, len)| Step::Append(path, len)),
        2 => (path(), at()).prop_map(|(path, size)| Step::Truncate(path, size)),
        2 => path().prop_map(Step::Read),
        4 => path().prop_map(Step::Mkdir),
        1 => path().prop_map(Step::Rmdir),
        2 => path().prop_map(Step::Unlink),
        4 => (path(), path()).prop_map(|(from, to)| Step::Rename(from, to)),
        2 => (path(), path()).prop_map(|(from, to)| Step::Link(from, to)),
        2 => (target, path()).prop_map(|(target, path)| Step::Symlink(target.to_owned(), path)),
        1 => path().prop_map(Step::ReadLink),
        2 => (path(), 0u32..0o1000).prop_map(|(path, mode)| Step::Chmod(path, mode)),
        1 => (path(), 0u64..2_000_000_000).prop_map(|(path, time)| Step::Touch(path, time)),
        1 => (path(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(|(path, value)| Step::SetXattr(path, value)),
        1 => path().prop_map(Step::Xattr),
        2 => path().prop_map(Step::Stat),
        1 => path().prop_map(Step::List),
    ]
}

/// Content that differs from step to step and from place to place.
fn content(number: u64, len: usize) -> Vec<u8> {
    (0..len).map(|at| (number as usize * 131 + at * 7 + at / 251) as u8).collect()
}

const XATTR: &str = "user.reference";

/// A local folder, or a folder on a mount.
#[derive(Debug)]
struct Folder(PathBuf);

fn os(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).expect("of the operating system")
}

impl Folder {
    fn at(&self, path: &str) -> PathBuf {
        self.0.join(path)
    }

    fn stat(&self, path: &str) -> Answered {
        let found = fs::symlink_metadata(self.at(path)).map_err(os)?;
        Ok(match found.file_type() {
            kind if kind.is_dir() => Answer::Stat { kind: 'd', mode: mode_of(&found), size: 0, links: 0, mtime: None },
            kind if kind.is_symlink() => {
                Answer::Stat { kind: 'l', mode: 0, size: found.size(), links: found.nlink(), mtime: None }
            }
            _ => {
                Answer::Stat { kind: 'f', mode: mode_of(&found), size: found.size(), links: found.nlink(), mtime: None }
            }
        })
    }
}

fn mode_of(found: &fs::Metadata) -> u32 {
    found.permissions().mode() & 0o7777
}

fn done<T, E>(result: Result<T, E>, errno: impl FnOnce(E) -> Errno) -> Answered {
    result.map(|_| Answer::Done).map_err(errno)
}

impl Place for Folder {
    fn run(&self, step: &Step, number: u64) -> Answered {
        let at = |path: &String| self.at(path);
        match step {
            Step::Write(path, len) => done(fs::write(at(path), content(number, *len)), os),
            Step::CreateNew(path) => done(File::create_new(at(path)), os),
            Step::WriteAt(path, offset, len) => {
                let file = OpenOptions::new().write(true).open(at(path)).map_err(os)?;
                done(file.write_all_at(&content(number, *len), *offset), os)
            }
            Step::Append(path, len) => {
                let mut file = OpenOptions::new().append(true).create(true).open(at(path)).map_err(os)?;
                done(std::io::Write::write_all(&mut file, &content(number, *len)), os)
            }
            Step::Truncate(path, size) => {
                let file = OpenOptions::new().write(true).open(at(path)).map_err(os)?;
                done(file.set_len(*size), os)
            }
            Step::Read(path) => fs::read(at(path)).map(Answer::Bytes).map_err(os),
            Step::Mkdir(path) => done(fs::create_dir(at(path)), os),
            Step::Rmdir(path) => done(fs::remove_dir(at(path)), os),
            Step::Unlink(path) => done(fs::remove_file(at(path)), os),
            Step::Rename(from, to) => done(fs::rename(at(from), at(to)), os),
            Step::Link(from, to) => done(fs::hard_link(at(from), at(to)), os),
            Step::Symlink(target, path) => done(symlink(target, at(path)), os),
            Step::ReadLink(path) => {
                fs::read_link(at(path)).map(|target| Answer::Bytes(target.as_os_str().as_bytes().to_vec())).map_err(os)
            }
            Step::Chmod(path, mode) => done(fs::set_permissions(at(path), fs::Permissions::from_mode(*mode)), os),
            Step::Touch(path, seconds) => {
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(*seconds);
                let file = OpenOptions::new().write(true).open(at(path)).map_err(os)?;
                file.set_modified(time).map_err(os)?;
                drop(file);
                let found = fs::metadata(at(path)).map_err(os)?;
                let Answer::Stat { kind, mode, size, links, .. } = self.stat(path)? else { return self.stat(path) };
                Ok(Answer::Stat { kind, mode, size, links, mtime: Some(found.mtime() as u64) })
            }
            Step::SetXattr(path, value) => {
                done(rustix::fs::setxattr(at(path), XATTR, value, XattrFlags::empty()), |errno| errno)
            }
            Step::Xattr(path) => {
                let mut value = vec![0; 64];
                let len = rustix::fs::getxattr(at(path), XATTR, &mut value)?;
                value.truncate(len);
                Ok(Answer::Bytes(value))
            }
            Step::Stat(path) => self.stat(path),
            Step::List(path) => {
                let mut names = Vec::new();
                for entry in fs::read_dir(at(path)).map_err(os)? {
                    names.push(entry.map_err(os)?.file_name().as_bytes().to_vec());
                }
                names.sort();
                Ok(Answer::Names(names))
            }
        }
    }
}

/// A folder in the cluster, through the library.
#[derive(Debug)]
struct Library<'a> {
    client: Client,
    folder: String,
    runtime: &'a tokio::runtime::Runtime,
}

fn errno(error: &Error) -> Errno {
    match error.kind() {
        Kind::NotFound => Errno::NOENT,
        Kind::Exists => Errno::EXIST,
        Kind::NotDirectory => Errno::NOTDIR,
        Kind::IsDirectory => Errno::ISDIR,
        Kind::NotEmpty => Errno::NOTEMPTY,
        Kind::InvalidInput => Errno::INVAL,
        Kind::NotPermitted => Errno::PERM,
        Kind::SymlinkLoop => Errno::LOOP,
        Kind::NoAttribute => Errno::NODATA,
        other => panic!("{other:?} has no place here: {error}"),
    }
}

impl Library<'_> {
    fn at(&self, path: &str) -> String {
        format!("{}/{path}", self.folder)
    }

    async fn existing(&self, path: &str) -> torchfs_core::Result<torchfs_core::File> {
        let ino = self.client.stat(self.at(path)).await?.ino;
        self.client.open_inode(ino).await
    }

    async fn answer(&self, step: &Step, number: u64) -> torchfs_core::Result<Answer> {
        let (client, at) = (&self.client, |path: &String| self.at(path));
        match step {
            Step::Write(path, len) => {
                let file = client.create(at(path)).await?;
                file.truncate(0).await?;
                file.write_at(0, content(number, *len).into()).await?;
                file.commit().await?;
            }
            Step::CreateNew(path) => {
                let resolved = client.meta().resolve_no_follow(at(path).as_bytes()).await?;
                let name = resolved.name.expect("not the root");
                let new = NewInode { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0, mtime: None };
                client.create_inode(resolved.parent, name, new, IfExists::Fail).await?;
            }
            Step::WriteAt(path, offset, len) => {
                let file = self.existing(path).await?;
                if *len > 0 {
                    file.write_at(*offset, content(number, *len).into()).await?;
                }
                file.commit().await?;
            }
            Step::Append(path, len) => {
                let file = client.create(at(path)).await?;
                file.write_at(file.attr().size, content(number, *len).into()).await?;
                file.commit().await?;
            }
            Step::Truncate(path, size) => {
                let file = self.existing(path).await?;
                file.truncate(*size).await?;
                file.commit().await?;
            }
            Step::Read(path) => return Ok(Answer::Bytes(client.read_file(at(path)).await?.to_vec())),
            Step::Mkdir(path) => _ = client.mkdir(at(path)).await?,
            Step::Rmdir(path) => client.rmdir(at(path)).await?,
            Step::Unlink(path) => client.unlink(at(path)).await?,
            Step::Rename(from, to) => client.rename(at(from), at(to)).await?,
            Step::Link(from, to) => _ = client.link(at(from), at(to)).await?,
            Step::Symlink(target, path) => _ = client.symlink(target, at(path)).await?,
            Step::ReadLink(path) => return Ok(Answer::Bytes(client.read_link(at(path)).await?)),
            Step::Chmod(path, mode) => {
                let change = AttrChange { mode: Some(*mode), ..AttrChange::default() };
                client.set_attr(at(path), change).await?;
            }
            Step::Touch(path, seconds) => {
                let file = self.existing(path).await?;
                let time = SystemTime::UNIX_EPOCH + Duration::from_secs(*seconds);
                let change = AttrChange { mtime: Some(SetTime::At(time.into())), ..AttrChange::default() };
                let set = client.set_attr_inode(file.ino(), change).await?;
                let mtime = SystemTime::from(set.mtime).duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
                let Answer::Stat { kind, mode, size, links, .. } = stat(&client.lstat(at(path)).await?) else {
                    unreachable!("stat answers a stat")
                };
                return Ok(Answer::Stat { kind, mode, size, links, mtime: Some(mtime.as_secs()) });
            }
            Step::SetXattr(path, value) => {
                let ino = self.client.stat(at(path)).await?.ino;
                let name = torchfs_core::meta::XattrName::new(XATTR).expect("a name");
                let mode = torchfs_core::meta::XattrMode::Either;
                client.meta().set_xattr(ino, name, value.clone(), mode).await?;
            }
            Step::Xattr(path) => {
                let ino = self.client.stat(at(path)).await?.ino;
                let name = torchfs_core::meta::XattrName::new(XATTR).expect("a name");
                return Ok(Answer::Bytes(client.meta().xattr(ino, name).await?));
            }
            Step::Stat(path) => return Ok(stat(&client.lstat(at(path)).await?)),
            Step::List(path) => {
                let entries = client.list(at(path)).await?;
                return Ok(Answer::Names(entries.iter().map(|entry| entry.name.as_bytes().to_vec()).collect()));
            }
        }
        Ok(Answer::Done)
    }
}

fn stat(attr: &Attr) -> Answer {
    let (mode, size, links) = (attr.mode, attr.size, attr.nlink.into());
    match attr.kind {
        FileKind::Directory => Answer::Stat { kind: 'd', mode, size: 0, links: 0, mtime: None },
        FileKind::Symlink => Answer::Stat { kind: 'l', mode: 0, size, links, mtime: None },
        _ => Answer::Stat { kind: 'f', mode, size, links, mtime: None },
    }
}

impl Place for Library<'_> {
    fn run(&self, step: &Step, number: u64) -> Answered {
        self.runtime.block_on(self.answer(step, number)).map_err(|error| errno(&error))
    }
}

/// Everything in a place: what it is, and its content.
fn everything(place: &dyn Place, folder: &str, found: &mut Vec<(String, Answered, Answered)>) {
    let Ok(Answer::Names(names)) = place.run(&Step::List(folder.to_owned()), 0) else {
        panic!("{folder} does not list")
    };
    for name in names {
        let name = String::from_utf8(name).expect("as it was made");
        let path = if folder == "." { name } else { format!("{folder}/{name}") };
        let stat = place.run(&Step::Stat(path.clone()), 0);
        let is = |wanted| matches!(stat, Ok(Answer::Stat { kind, .. }) if kind == wanted);
        let content = match () {
            () if is('f') => place.run(&Step::Read(path.clone()), 0),
            () if is('l') => place.run(&Step::ReadLink(path.clone()), 0),
            () => Ok(Answer::Done),
        };
        let is_folder = is('d');
        found.push((path.clone(), stat, content));
        if is_folder {
            everything(place, &path, found);
        }
    }
}

/// Runs each step on the reference and on one of `tried`, and compares all of them after it.
fn compare(reference: &dyn Place, tried: &[&dyn Place], steps: &[(usize, Step)]) {
    for (number, (by, step)) in (1u64..).zip(steps) {
        let expected = reference.run(step, number);
        let found = tried[by % tried.len()].run(step, number);
        assert!(found == expected, "step {number}, {step:?}: {} instead of {}", short(&found), short(&expected));
        let mut all = Vec::new();
        everything(reference, ".", &mut all);
        for place in tried {
            let mut of_place = Vec::new();
            everything(*place, ".", &mut of_place);
            for (found, expected) in of_place.iter().zip(&all) {
                assert!(
                    found == expected,
                    "after step {number}, {step:?}: {} is {}, {} instead of {}, {}: {}",
                    found.0,
                    short(&found.1),
                    short(&found.2),
                    short(&expected.1),
                    short(&expected.2),
                    expected.0
                );
            }
            assert_eq!(of_place.len(), all.len(), "after step {number}, {step:?}");
        }
    }
}

/// An answer for people, without thousands of bytes.
fn short(answer: &Answered) -> String {
    let text = format!("{answer:?}");
    if text.len() < 200 { text } else { format!("{}... of {} characters", &text[..200], text.len()) }
}

/// A cluster, and folders that no case has used yet.
struct Rig {
    runtime: tokio::runtime::Runtime,
    cluster: LocalCluster,
    disk: tempfile::TempDir,
    cases: std::cell::Cell<u32>,
}

impl Rig {
    fn start() -> Rig {
        // As the modes of what the library makes.
        rustix::process::umask(0o022.into());
        let disk = tempfile::tempdir().expect("a folder");
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
        let cluster = LocalCluster::builder().data_dir(disk.path().join("cluster"));
        let cluster = runtime.block_on(cluster.start()).expect("starts");
        Rig { runtime, cluster, disk, cases: std::cell::Cell::new(0) }
    }

    /// A new name, and a local folder of it.
    fn next(&self) -> (String, Folder) {
        self.cases.set(self.cases.get() + 1);
        let name = format!("case-{}", self.cases.get());
        let local = self.disk.path().join("local").join(&name);
        fs::create_dir_all(&local).expect("mkdir");
        (name, Folder(local))
    }

    fn client(&self) -> Client {
        self.runtime.block_on(self.cluster.client()).expect("a client")
    }

    fn mount(&self, name: &str) -> Mounted {
        let point = self.disk.path().join(name);
        fs::create_dir(&point).expect("mkdir");
        // What the kernel is told counts for no time, so that what is compared is what the mount says.
        let options = MountOptions { kernel_ttl: Duration::ZERO, ..MountOptions::default() };
        let client = self.client();
        self.runtime.block_on(async { torchfs_fuse::mount(client, &point, options) }).expect("mounts")
    }

    fn end(self) {
        self.runtime.block_on(self.cluster.shutdown()).expect("shuts down");
    }
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    prop::collection::vec((0usize..2, step()), 1..50)
}

fn check(cases: u32, run: impl Fn(Vec<(usize, Step)>)) {
    let config =
        ProptestConfig { cases, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&steps(), |steps| {
        run(steps);
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
}

#[test]
fn the_library_answers_as_a_local_folder_does() {
    let rig = Rig::start();
    let client = rig.client();
    check(48, |steps| {
        let (name, local) = rig.next();
        let folder = format!("/{name}");
        rig.runtime.block_on(client.mkdir(&folder)).expect("mkdir");
        let library = Library { client: client.clone(), folder, runtime: &rig.runtime };
        compare(&local, &[&library], &steps);
    });
    assert!(rig.runtime.block_on(client.meta().attr(InodeId::ROOT)).expect("is there").nlink > 40);
    rig.end();
}

#[test]
fn two_mounts_answer_as_one_local_folder_does() {
    if !Path::new("/dev/fuse").exists() {
        assert!(std::env::var_os("TORCHFS_REQUIRE_FUSE").is_none(), "/dev/fuse is required here and missing");
        println!("skipped: no /dev/fuse");
        return;
    }
    let rig = Rig::start();
    let mounts = [rig.mount("one"), rig.mount("two")];
    check(24, |steps| {
        let (name, local) = rig.next();
        let [one, two] = [0, 1].map(|number| Folder(mounts[number].mountpoint().join(&name)));
        fs::create_dir(&one.0).expect("mkdir");
        compare(&local, &[&one, &two], &steps);
    });
    for mount in &mounts {
        rig.runtime.block_on(mount.unmount()).expect("unmounts");
    }
    rig.end();
}
