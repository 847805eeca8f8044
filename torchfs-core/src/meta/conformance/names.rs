//! The namespace: folders, links, rename, paths, attributes.

use super::{Case, ROOT, inode, name, refused};
use crate::error::Kind;
use crate::ids::InodeId;
use crate::layout::Profile;
use crate::meta::{
    Attr, AttrChange, FileKind, IfExists, MetaOp, MetaReply, NewInode, NewKind, RenameMode, SetTime, Timestamp,
    XattrMode, XattrName,
};

pub(super) async fn entries(case: Case) {
    let root = case.attr(ROOT).await;
    assert_eq!((root.kind, root.mode, root.nlink, root.uid, root.size), (FileKind::Directory, 0o755, 2, 0, 0));
    let kinds = [
        ("file", NewKind::File),
        ("folder", NewKind::Directory),
        ("link", NewKind::Symlink(b"to/there".to_vec())),
        ("fifo", NewKind::Fifo),
        ("socket", NewKind::Socket),
        ("tty", NewKind::CharDevice(0x501)),
        ("disk", NewKind::BlockDevice(0x801)),
    ];
    for (text, kind) in &kinds {
        let made = case.make(ROOT, text, kind.clone()).await;
        assert_eq!((made.kind, made.uid, made.gid), (kind.kind(), 1000, 100));
        assert_eq!(case.meta.lookup(ROOT, name(text)).await.expect("is there"), made);
    }
    let mut names: Vec<&str> = kinds.iter().map(|(text, _)| *text).collect();
    names.sort_unstable();
    assert_eq!(case.listed(ROOT).await, names);
    let listing = case.meta.list(ROOT, None, 100).await.expect("lists");
    for entry in &listing.entries {
        // A folder that is listed as a file hides everything in it from whoever walks the tree.
        assert_eq!(entry.attr, case.meta.lookup(ROOT, entry.name.clone()).await.expect("is there"));
        let is_link = entry.attr.kind == FileKind::Symlink;
        assert_eq!(entry.target.as_deref(), is_link.then_some(&b"to/there"[..]));
    }
    let disk = case.meta.lookup(ROOT, name("disk")).await.expect("is there");
    assert_eq!(disk.rdev, 0x801);
    let root = case.attr(ROOT).await;
    assert_eq!((root.nlink, root.size), (3, 7));
    pages(&case, &names).await;
}

/// The answer to what makes or removes a name is what a question would be answered then.
pub(super) async fn answers_of_changes(case: Case) {
    let folder = case.make(ROOT, "folder", NewKind::Directory).await.ino;
    let make = |text: &str, kind: NewKind, if_exists: IfExists| {
        let inode = NewInode { mtime: Some(Timestamp { seconds: 9, nanos: 0 }), ..inode(kind) };
        MetaOp::Create { parent: folder, name: name(text), inode, if_exists, content: None }
    };
    let file = case.meta.apply(make("file", NewKind::File, IfExists::Fail)).await.expect("creates");
    let ino = file.attr().expect("an inode").ino;
    let ops = [
        make("file", NewKind::File, IfExists::Keep),
        make("file", NewKind::File, IfExists::Replace),
        make("folder", NewKind::Directory, IfExists::Fail),
        MetaOp::Link { ino, parent: folder, name: name("link") },
        MetaOp::Unlink { parent: folder, name: name("file") },
        MetaOp::Rmdir { parent: folder, name: name("folder") },
        MetaOp::Unlink { parent: folder, name: name("link") },
    ];
    for op in ops {
        let reply = case.meta.apply(op.clone()).await.expect("is done");
        let MetaReply::Named { attr, folder: now } = reply else { panic!("{op:?}: {reply:?}") };
        assert_eq!((&attr, &now), (&case.attr(attr.ino).await, &case.attr(folder).await), "{op:?}");
    }
}

async fn pages(case: &Case, names: &[&str]) {
    for limit in 1..=8u32 {
        let (mut seen, mut after) = (Vec::new(), None);
        loop {
            let page = case.meta.list(ROOT, after, limit).await.expect("lists");
            assert!(page.entries.len() <= limit as usize);
            seen.extend(page.entries.iter().map(|entry| entry.name.to_string()));
            after = page.entries.last().map(|entry| entry.name.clone());
            if !page.more {
                break;
            }
            assert!(after.is_some(), "a page that has more after it is not empty");
        }
        assert_eq!(seen, names);
    }
}

pub(super) async fn folders(case: Case) {
    let a = case.folder(ROOT, "a").await;
    let b = case.folder(a, "b").await;
    case.file(b, "f").await;
    assert_eq!((case.attr(ROOT).await.nlink, case.attr(a).await.nlink, case.attr(b).await.nlink), (3, 3, 2));
    // rmdir of a folder that is not empty must not orphan what is in it.
    refused(case.meta.rmdir(ROOT, name("a")).await, Kind::NotEmpty);
    refused(case.meta.rmdir(a, name("b")).await, Kind::NotEmpty);
    assert_eq!(case.listed(b).await, ["f"]);
    assert_eq!(case.meta.parent(b).await.expect("has one").ino, a);
    assert_eq!(case.meta.parent(ROOT).await.expect("is its own").ino, ROOT);
    case.meta.unlink(b, name("f")).await.expect("unlinks");
    case.meta.rmdir(a, name("b")).await.expect("removes");
    assert_eq!(case.attr(a).await.nlink, 2);
    refused(case.meta.create(b, name("x"), inode(NewKind::File), IfExists::Fail).await, Kind::NotFound);
    refused(case.meta.lookup(a, name("b")).await, Kind::NotFound);
    let profile = Profile::new(2, 1).expect("a profile");
    assert_eq!(case.meta.profile(a).await.expect("inherits"), (Profile::DEFAULT, false));
    case.meta.set_profile(ROOT, Some(profile)).await.expect("sets");
    assert_eq!(case.meta.profile(a).await.expect("inherits"), (profile, false));
    let file = case.file(a, "f").await;
    case.meta.set_profile(a, Some(Profile::DEFAULT)).await.expect("sets");
    assert_eq!(case.meta.profile(a).await.expect("has its own"), (Profile::DEFAULT, true));
    assert_eq!(case.meta.profile(file).await.expect("keeps").0, profile);
    case.meta.set_profile(a, None).await.expect("unsets");
    assert_eq!(case.meta.profile(a).await.expect("inherits"), (profile, false));
    refused(case.meta.set_profile(file, Some(profile)).await, Kind::NotDirectory);
    sgid(&case, a).await;
}

async fn sgid(case: &Case, folder: InodeId) {
    let change = AttrChange { mode: Some(0o2775), gid: Some(77), ..AttrChange::default() };
    case.meta.set_attr(folder, change).await.expect("changes");
    let below = case.make(folder, "below", NewKind::Directory).await;
    assert_eq!((below.mode, below.gid), (0o2755, 77));
    let file = case.make(folder, "file", NewKind::File).await;
    assert_eq!((file.mode, file.gid), (0o644, 77));
}

pub(super) async fn hard_links_and_orphans(case: Case) {
    let ino = case.file(ROOT, "one").await;
    let folder = case.folder(ROOT, "folder").await;
    assert_eq!(case.meta.link(ino, folder, name("two")).await.expect("links").nlink, 2);
    refused(case.meta.link(ino, folder, name("two")).await, Kind::Exists);
    refused(case.meta.link(folder, ROOT, name("x")).await, Kind::NotPermitted);
    refused(case.meta.link(InodeId(999), ROOT, name("x")).await, Kind::NotFound);
    assert_eq!(case.meta.unlink(ROOT, name("one")).await.expect("unlinks").nlink, 1);
    assert_eq!(case.meta.lookup(folder, name("two")).await.expect("is there").ino, ino);
    assert_eq!(case.meta.unlink(folder, name("two")).await.expect("unlinks").nlink, 0);
    refused(case.meta.lookup(folder, name("two")).await, Kind::NotFound);
    // Whoever has it open goes on.
    assert_eq!(case.attr(ino).await.nlink, 0);
    let stripe = case.stripe(10).await;
    assert_eq!(case.meta.commit(ino, super::lay(&stripe, 0, 10)).await.expect("commits").size, 10);
    refused(case.meta.link(ino, ROOT, name("back")).await, Kind::NotFound);
    assert_eq!(case.meta.status().await.expect("answers").files, 0);
}

pub(super) async fn rename(case: Case) {
    let (a, b) = (case.folder(ROOT, "a").await, case.folder(ROOT, "b").await);
    let inner = case.folder(a, "inner").await;
    let (one, two) = (case.file(a, "one").await, case.file(b, "two").await);
    let moved = |from: (InodeId, &str), to: (InodeId, &str), mode| {
        case.meta.rename((from.0, name(from.1)), (to.0, name(to.1)), mode)
    };
    use RenameMode::{Exchange, NoReplace, Replace};
    refused(moved((a, "none"), (b, "x"), Replace).await, Kind::NotFound);
    refused(moved((a, "one"), (b, "two"), NoReplace).await, Kind::Exists);
    refused(moved((a, "one"), (b, "x"), Exchange).await, Kind::NotFound);
    refused(moved((a, "one"), (ROOT, "b"), Replace).await, Kind::IsDirectory);
    refused(moved((ROOT, "b"), (a, "one"), Replace).await, Kind::NotDirectory);
    refused(moved((ROOT, "b"), (ROOT, "a"), Replace).await, Kind::NotEmpty);
    refused(moved((ROOT, "a"), (inner, "x"), Replace).await, Kind::InvalidInput);
    refused(moved((ROOT, "a"), (a, "x"), Replace).await, Kind::InvalidInput);
    refused(moved((a, "inner"), (ROOT, "a"), Replace).await, Kind::NotEmpty);
    refused(moved((a, "inner"), (ROOT, "a"), Exchange).await, Kind::InvalidInput);
    // The temp-and-rename of every checkpoint writer.
    assert_eq!(moved((a, "one"), (b, "two"), Replace).await.expect("replaces").ino, one);
    assert_eq!((case.listed(a).await, case.listed(b).await), (vec!["inner".to_owned()], vec!["two".to_owned()]));
    assert_eq!(case.attr(two).await.nlink, 0);
    assert_eq!(case.meta.lookup(b, name("two")).await.expect("is there").ino, one);
    // Two names of one inode: both stay.
    case.meta.link(one, a, name("same")).await.expect("links");
    moved((a, "same"), (b, "two"), Replace).await.expect("does nothing");
    assert_eq!(case.attr(one).await.nlink, 2);
    // A folder takes along what is in it.
    let deep = case.file(inner, "deep").await;
    moved((a, "inner"), (b, "moved"), Replace).await.expect("moves");
    assert_eq!((case.attr(a).await.nlink, case.attr(b).await.nlink), (2, 3));
    assert_eq!(case.meta.parent(inner).await.expect("has one").ino, b);
    assert_eq!(case.meta.resolve(b"/b/moved/deep").await.expect("leads there").attr.map(|attr| attr.ino), Some(deep));
    // Exchange of a folder and a file in different folders.
    moved((b, "moved"), (a, "same"), Exchange).await.expect("swaps");
    assert_eq!((case.attr(a).await.nlink, case.attr(b).await.nlink), (3, 2));
    assert_eq!(case.meta.parent(inner).await.expect("has one").ino, a);
    assert_eq!(case.meta.lookup(b, name("moved")).await.expect("is there").ino, one);
    // Over an empty folder.
    let empty = case.folder(ROOT, "empty").await;
    moved((a, "same"), (ROOT, "empty"), Replace).await.expect("replaces");
    assert_eq!(case.attr(empty).await.nlink, 0);
    assert_eq!(case.listed(inner).await, ["deep"]);
}

pub(super) async fn paths(case: Case) {
    let a = case.folder(ROOT, "a").await;
    let b = case.folder(a, "b").await;
    let file = case.file(b, "f").await;
    for (text, target) in [("up", "../a/b"), ("abs", "/a/b/f"), ("loop", "loop"), ("gone", "b/gone"), ("slash", "b/f/")]
    {
        case.make(a, text, NewKind::Symlink(target.into())).await;
    }
    let leads = async |path: &str| case.meta.resolve(path.as_bytes()).await;
    let ino = async |path: &str| leads(path).await.expect("leads somewhere").attr.map(|attr| attr.ino);
    for path in ["a/b/f", "/a//./b/f", "a/b/../b/f", "a/up/f", "a/abs", "../../a/up/../b/f"] {
        assert_eq!(ino(path).await, Some(file), "{path}");
    }
    for path in ["a/b", "a/up", "a/up/", "a/b/.", "a/up/../b"] {
        assert_eq!(ino(path).await, Some(b), "{path}");
    }
    let root = leads("/").await.expect("is there");
    assert_eq!((root.parent, root.name, root.attr.map(|attr| attr.ino)), (ROOT, None, Some(ROOT)));
    let back = leads("a/b/..").await.expect("leads back");
    assert_eq!((back.parent, back.name), (ROOT, Some(name("a"))));
    for path in ["a/b/new", "a/b/new/", "a/up/new"] {
        let new = leads(path).await.expect("only the last is missing");
        assert_eq!((new.parent, new.name, new.attr), (b, Some(name("new")), None), "{path}");
    }
    let gone = leads("a/gone").await.expect("only what the link names is missing");
    assert_eq!((gone.parent, gone.name, gone.attr), (b, Some(name("gone")), None));
    refused(leads("a/x/y").await, Kind::NotFound);
    refused(leads("a/b/f/x").await, Kind::NotDirectory);
    refused(leads("a/b/f/").await, Kind::NotDirectory);
    refused(leads("a/slash").await, Kind::NotDirectory);
    refused(leads("a/loop").await, Kind::SymlinkLoop);
    refused(leads(&"a/".repeat(3000)).await, Kind::NameTooLong);
    refused(leads(&"x".repeat(256)).await, Kind::NameTooLong);
    let link = case.meta.resolve_no_follow(b"a/up").await.expect("is there").attr.expect("is there");
    assert_eq!(link.kind, FileKind::Symlink);
    assert_eq!(case.meta.read_link(link.ino).await.expect("reads"), b"../a/b");
    refused(case.meta.read_link(file).await, Kind::InvalidInput);
}

pub(super) async fn attributes(case: Case) {
    let new = NewInode { mtime: Some(Timestamp { seconds: 5, nanos: 6 }), ..inode(NewKind::File) };
    let made = case.meta.create(ROOT, name("f"), new, IfExists::Fail).await.expect("creates");
    assert_eq!(made.mtime, Timestamp { seconds: 5, nanos: 6 });
    let past = Timestamp { seconds: -100, nanos: 7 };
    let change = AttrChange {
        mode: Some(0o4711),
        uid: Some(1),
        gid: Some(2),
        atime: Some(SetTime::At(past)),
        mtime: Some(SetTime::Now),
    };
    let changed = case.meta.set_attr(made.ino, change).await.expect("changes");
    assert_eq!((changed.mode, changed.uid, changed.gid, changed.atime), (0o4711, 1, 2, past));
    assert!(changed.mtime >= made.ctime && changed.ctime >= made.ctime && changed.version == made.version);
    // What is answered is what everyone sees from then on.
    assert_eq!(case.attr(made.ino).await, changed);
    let kept =
        case.meta.set_attr(made.ino, AttrChange { uid: Some(9), ..AttrChange::default() }).await.expect("changes");
    assert_eq!(kept, Attr { uid: 9, ctime: kept.ctime, ..changed });
    xattrs(&case, made.ino).await;
}

async fn xattrs(case: &Case, ino: InodeId) {
    let set = |text: &str, value: &[u8], mode| case.meta.set_xattr(ino, attribute(text), value.to_vec(), mode);
    set("user.b", b"1", XattrMode::Create).await.expect("sets");
    set("user.a", b"", XattrMode::Either).await.expect("sets");
    set("user.b/c", b"what names no file may name an attribute", XattrMode::Create).await.expect("sets");
    set("user.b", b"\0\xff", XattrMode::Replace).await.expect("sets");
    refused(set("user.b", b"3", XattrMode::Create).await, Kind::Exists);
    refused(set("user.c", b"3", XattrMode::Replace).await, Kind::NoAttribute);
    refused(set("user.c", &vec![0; 64 * 1024 + 1], XattrMode::Either).await, Kind::TooLarge);
    set("user.c", &vec![3; 64 * 1024], XattrMode::Either).await.expect("sets the largest");
    assert_eq!(case.meta.xattr(ino, attribute("user.c")).await.expect("reads").len(), 64 * 1024);
    case.meta.remove_xattr(ino, attribute("user.c")).await.expect("removes");
    refused(case.meta.remove_xattr(ino, attribute("user.c")).await, Kind::NoAttribute);
    refused(case.meta.xattr(ino, attribute("user.c")).await, Kind::NoAttribute);
    assert_eq!(case.meta.xattr(ino, attribute("user.b")).await.expect("reads"), b"\0\xff");
    assert_eq!(
        case.meta.xattrs(ino).await.expect("lists"),
        [attribute("user.a"), attribute("user.b"), attribute("user.b/c")]
    );
    // Names of six, six and eight bytes, each with one more: also in a listing, so that who copies a folder knows whom to ask.
    assert_eq!(case.attr(ino).await.xattr_bytes, 23);
    let listed = case.meta.list(ROOT, None, 100).await.expect("lists").entries;
    assert!(listed.iter().all(|entry| entry.attr.xattr_bytes == if entry.attr.ino == ino { 23 } else { 0 }));
    assert!(listed.iter().any(|entry| entry.attr.ino == ino));
}

fn attribute(text: &str) -> XattrName {
    XattrName::new(text).expect("a name of an attribute")
}
