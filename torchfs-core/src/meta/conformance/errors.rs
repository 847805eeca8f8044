//! Which error comes first, and that nothing from the wire does harm.

use super::{Case, ROOT, inode, name, refused};
use crate::error::Kind;
use crate::ids::{ClusterId, InodeId};
use crate::layout::Profile;
use crate::meta::{
    AttrChange, ContentChange, IfExists, InternalOp, MetaOp, MetaQuery, NewInode, NewKind, SetTime, Timestamp,
};

pub(super) async fn precedence(case: Case) {
    let (file, folder) = (case.file(ROOT, "file").await, case.folder(ROOT, "folder").await);
    let nowhere = InodeId(12345);
    for (parent, kind) in [(nowhere, Kind::NotFound), (file, Kind::NotDirectory)] {
        refused(case.meta.create(parent, name("x"), inode(NewKind::File), IfExists::Fail).await, kind);
        refused(case.meta.lookup(parent, name("x")).await, kind);
        refused(case.meta.unlink(parent, name("x")).await, kind);
        refused(case.meta.rmdir(parent, name("x")).await, kind);
        refused(case.meta.list(parent, None, 10).await, kind);
        refused(case.meta.parent(parent).await, kind);
        refused(case.meta.link(file, parent, name("x")).await, kind);
    }
    refused(case.meta.unlink(ROOT, name("none")).await, Kind::NotFound);
    refused(case.meta.unlink(ROOT, name("folder")).await, Kind::IsDirectory);
    refused(case.meta.rmdir(ROOT, name("none")).await, Kind::NotFound);
    refused(case.meta.rmdir(ROOT, name("file")).await, Kind::NotDirectory);
    refused(case.meta.open(folder).await, Kind::IsDirectory);
    refused(case.meta.open(nowhere).await, Kind::NotFound);
    refused(case.meta.commit(folder, ContentChange::nothing()).await, Kind::IsDirectory);
    refused(case.meta.commit(nowhere, ContentChange::nothing()).await, Kind::NotFound);
    refused(case.meta.xattrs(nowhere).await, Kind::NotFound);
    if_exists(&case).await;
}

async fn if_exists(case: &Case) {
    use IfExists::{Fail, Keep, Replace};
    let create = |text: &str, kind, mode| case.meta.create(ROOT, name(text), inode(kind), mode);
    for text in ["file", "folder"] {
        let before = case.meta.lookup(ROOT, name(text)).await.expect("is there");
        refused(create(text, NewKind::File, Fail).await, Kind::Exists);
        refused(create(text, NewKind::Directory, Fail).await, Kind::Exists);
        refused(create(text, NewKind::Fifo, Keep).await, Kind::Exists);
        assert_eq!(case.meta.lookup(ROOT, name(text)).await.expect("is there"), before);
    }
    let kept = create("folder", NewKind::Directory, Keep).await.expect("keeps");
    assert_eq!(kept, case.meta.lookup(ROOT, name("folder")).await.expect("is there"));
    refused(create("folder", NewKind::File, Keep).await, Kind::Exists);
    refused(create("folder", NewKind::File, Replace).await, Kind::IsDirectory);
    refused(create("folder", NewKind::Directory, Replace).await, Kind::Exists);
    refused(create("file", NewKind::Fifo, Replace).await, Kind::Exists);
    assert_eq!(case.listed(ROOT).await, ["file", "folder"]);
}

pub(super) async fn from_the_wire(case: Case) {
    let file = case.file(ROOT, "file").await;
    let create = |new: NewInode| case.meta.create(ROOT, name("x"), new, IfExists::Fail);
    let bad_time = Timestamp { seconds: 0, nanos: 1_000_000_000 };
    refused(create(NewInode { mode: 0o10000, ..inode(NewKind::File) }).await, Kind::InvalidInput);
    refused(create(NewInode { mtime: Some(bad_time), ..inode(NewKind::File) }).await, Kind::InvalidInput);
    for (target, kind) in [
        (b"".to_vec(), Kind::InvalidInput),
        (b"a\0b".to_vec(), Kind::InvalidInput),
        (vec![b'a'; 4096], Kind::NameTooLong),
    ] {
        refused(create(inode(NewKind::Symlink(target))).await, kind);
    }
    case.make(ROOT, "longest", NewKind::Symlink(vec![b'a'; 4095])).await;
    let changes = [
        AttrChange { mode: Some(u32::MAX), ..AttrChange::default() },
        AttrChange { atime: Some(SetTime::At(bad_time)), ..AttrChange::default() },
        AttrChange { mtime: Some(SetTime::At(bad_time)), ..AttrChange::default() },
    ];
    for change in changes {
        refused(case.meta.set_attr(file, change).await, Kind::InvalidInput);
    }
    for limit in [0, 4097, u32::MAX] {
        refused(case.meta.list(ROOT, None, limit).await, Kind::InvalidInput);
    }
    for (data, parity) in [(0, 2), (4, 0), (200, 200)] {
        let profile = Profile { data, parity, ..Profile::DEFAULT };
        refused(case.meta.set_profile(ROOT, Some(profile)).await, Kind::InvalidInput);
    }
    refused(case.meta.set_profile(ROOT, None).await, Kind::InvalidInput);
    // A client cannot do what is the cluster's own.
    let found = InternalOp::Found { cluster: ClusterId(1), profile: Profile::DEFAULT };
    let internal = MetaOp::Internal(found);
    refused(case.meta.apply(internal.clone()).await, Kind::NotPermitted);
    refused(case.meta.apply(MetaOp::Batch(vec![internal])).await, Kind::NotPermitted);
    let answer = case.store().query(MetaQuery::ReadLink(ROOT)).await;
    refused(answer, Kind::InvalidInput);
    assert_eq!(case.listed(ROOT).await, ["file", "longest"]);
}
