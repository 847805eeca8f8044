//! Content changes.

use super::{Case, ROOT, inode, lay, name, refused};
use crate::error::Kind;
use crate::ids::{InodeId, NodeId, StripeId};
use crate::layout::{Extent, Stripe};
use crate::meta::{ContentChange, IfExists, MetaOp, NewInode, NewKind, SetTime, Timestamp};

fn extent(offset: u64, len: u32, stripe: &Stripe, stripe_offset: u32) -> Extent {
    Extent { offset, len, stripe: stripe.id, stripe_offset }
}

async fn extents(case: &Case, ino: InodeId) -> Vec<Extent> {
    let (attr, content) = case.meta.open(ino).await.expect("opens");
    let named: u64 = content.extents.iter().map(|extent| u64::from(extent.len)).sum();
    assert_eq!(attr.allocated, named);
    for extent in &content.extents {
        assert_eq!(content.stripes.iter().filter(|stripe| stripe.id == extent.stripe).count(), 1);
    }
    content.extents
}

pub(super) async fn changes(case: Case) {
    let made = case.make(ROOT, "f", NewKind::File).await;
    let ino = made.ino;
    assert_eq!(extents(&case, ino).await, []);
    let (one, two) = (case.stripe(1000).await, case.stripe(500).await);
    let mtime = Timestamp { seconds: 9, nanos: 1 };
    let first = ContentChange { mtime: SetTime::At(mtime), ..lay(&one, 0, 1000) };
    let attr = case.meta.commit(ino, first).await.expect("commits");
    assert_eq!((attr.size, attr.mtime, attr.version.0), (1000, mtime, made.version.0 + 1));
    // Over the middle.
    case.meta.commit(ino, lay(&two, 100, 500)).await.expect("commits");
    let laid = [extent(0, 100, &one, 0), extent(100, 500, &two, 0), extent(600, 400, &one, 600)];
    assert_eq!(extents(&case, ino).await, laid);
    // A hole, and a size past the end.
    let change = ContentChange { holes: vec![(50, 100), (5000, 1)], size_min: 3000, ..ContentChange::nothing() };
    let attr = case.meta.commit(ino, change).await.expect("commits");
    assert_eq!((attr.size, attr.allocated), (3000, 900));
    let holed = [extent(0, 50, &one, 0), extent(150, 450, &two, 50), extent(600, 400, &one, 600)];
    assert_eq!(extents(&case, ino).await, holed);
    // Cut, then written past the cut: the gap is a hole.
    let change = ContentChange { keep_bytes: Some(700), ..lay(&one, 2000, 10) };
    assert_eq!(case.meta.commit(ino, change).await.expect("commits").size, 2010);
    let cut = [holed[0], holed[1], extent(600, 100, &one, 600), extent(2000, 10, &one, 0)];
    assert_eq!(extents(&case, ino).await, cut);
    // A cut past the end cuts nothing.
    let change = ContentChange { keep_bytes: Some(9000), ..ContentChange::nothing() };
    assert_eq!(case.meta.commit(ino, change).await.expect("commits").size, 2010);
    let nothing = ContentChange { keep_bytes: Some(0), ..ContentChange::nothing() };
    let attr = case.meta.commit(ino, nothing).await.expect("commits");
    assert_eq!((attr.size, attr.allocated, attr.version.0), (0, 0, made.version.0 + 6));
    appends(&case, ino).await;
}

/// One run in file and stripe stays one extent, however many commits it took.
async fn appends(case: &Case, ino: InodeId) {
    let stripe = case.stripe(100).await;
    for number in 0..10 {
        let at = number * 10;
        let change = ContentChange { extents: vec![extent(at.into(), 10, &stripe, at)], ..lay(&stripe, 0, 1) };
        case.meta.commit(ino, change).await.expect("commits");
    }
    assert_eq!(extents(case, ino).await, [extent(0, 100, &stripe, 0)]);
}

pub(super) async fn replace(case: Case) {
    let (one, two) = (case.stripe(1000).await, case.stripe(10).await);
    let create = async |mode: u32, content: Option<ContentChange>| {
        let (new, if_exists) = (NewInode { mode, ..inode(NewKind::File) }, IfExists::Replace);
        let op = MetaOp::Create { parent: ROOT, name: name("f"), inode: new, if_exists, content };
        case.meta.apply(op).await.expect("creates").attr().expect("an inode").clone()
    };
    let made = create(0o600, Some(lay(&one, 0, 1000))).await;
    assert_eq!((made.size, made.mode), (1000, 0o600));
    case.meta.link(made.ino, ROOT, name("other")).await.expect("links");
    let replaced = create(0o644, Some(lay(&two, 0, 10))).await;
    assert_eq!((replaced.ino, replaced.size, replaced.mode, replaced.nlink), (made.ino, 10, 0o644, 2));
    assert!(replaced.version > made.version);
    assert_eq!(extents(&case, made.ino).await, [extent(0, 10, &two, 0)]);
    let emptied = create(0o644, None).await;
    assert_eq!((emptied.size, emptied.allocated), (0, 0));
    assert!(emptied.version > replaced.version);
    let listing = case.meta.list_with_extents(ROOT, None, 10).await.expect("lists");
    assert!(listing.stripes.is_empty() && listing.entries.len() == 2);
}

async fn refused_changes(case: &Case, ino: InodeId, changes: Vec<ContentChange>, kind: Kind) {
    let before = case.meta.open(ino).await.expect("opens");
    for change in changes {
        refused(case.meta.commit(ino, change).await, kind);
        assert_eq!(case.meta.open(ino).await.expect("opens"), before);
    }
}

async fn refused_all(case: &Case, ino: InodeId) {
    let good = case.stripe(1000).await;
    let never = Stripe { id: StripeId(u64::MAX), ..good.clone() };
    let with = |stripe: Stripe| lay(&stripe, 0, 10);
    let mut shape = good.clone();
    shape.shape.data_bytes = u32::MAX;
    let mut profile = good.clone();
    profile.shape.profile.parity = 0;
    let mut short = good.clone();
    short.nodes.truncate(5);
    let mut unknown = good.clone();
    unknown.nodes[0] = Some(NodeId(999));
    let mut unreadable = good.clone();
    unreadable.nodes = vec![None; 6];
    let mut ghost = good.clone();
    ghost.nodes[1] = Some(NodeId(1));
    let extents = |extents: Vec<Extent>| ContentChange { extents, ..lay(&good, 0, 1) };
    let invalid = vec![
        with(never),
        with(shape),
        with(profile),
        with(short),
        with(unknown.clone()),
        with(unreadable),
        with(ghost),
        lay(&good, 0, 1001),
        extents(vec![extent(0, 1, &good, u32::MAX)]),
        extents(vec![extent(0, 0, &good, 0)]),
        extents(vec![extent(5, 10, &good, 0), extent(0, 5, &good, 0)]),
        extents(vec![extent(0, 10, &good, 0), extent(9, 5, &good, 0)]),
        // Given and not named, named and not given, given twice and differently.
        ContentChange { extents: Vec::new(), ..with(good.clone()) },
        ContentChange { stripes: Vec::new(), ..with(good.clone()) },
        ContentChange { stripes: vec![good.clone(), unknown], ..with(good.clone()) },
        ContentChange { holes: vec![(u64::MAX, 2)], ..ContentChange::nothing() },
        ContentChange { mtime: SetTime::At(Timestamp { seconds: 0, nanos: u32::MAX }), ..ContentChange::nothing() },
    ];
    refused_changes(case, ino, invalid, Kind::InvalidInput).await;
    let large = vec![
        lay(&good, i64::MAX as u64, 10),
        lay(&good, u64::MAX, 10),
        ContentChange { size_min: u64::MAX, ..ContentChange::nothing() },
    ];
    refused_changes(case, ino, large, Kind::FileTooLarge).await;
    case.meta.commit(ino, with(good)).await.expect("the stripe itself is good");
}

pub(super) async fn refusals(case: Case) {
    let ino = case.file(ROOT, "f").await;
    Box::pin(refused_all(&case, ino)).await;
    // A refused creation leaves nothing: no name, no inode counted.
    let inodes = case.meta.fs_stat().await.expect("answers").inodes;
    let content = Some(ContentChange { stripes: Vec::new(), ..lay(&case.stripe(10).await, 0, 10) });
    let (new, if_exists) = (inode(NewKind::File), IfExists::Fail);
    let op = MetaOp::Create { parent: ROOT, name: name("x"), inode: new, if_exists, content };
    refused(case.meta.apply(op).await, Kind::InvalidInput);
    assert_eq!(case.listed(ROOT).await, ["f"]);
    assert_eq!(case.meta.fs_stat().await.expect("answers").inodes, inodes);
}
