//! What a watcher is told.

use super::{Case, ROOT, inode, lay, name};
use crate::ids::{ClientId, InodeId};
use crate::meta::{
    AttrChange, Change, IfExists, MetaOp, MetaSession, NewKind, RenameMode, Timestamp, Watch, XattrMode, XattrName,
};
use std::collections::BTreeSet;
use std::time::Duration;

/// For whatever passes until a change is told; only a broken store needs it.
const PATIENCE: Duration = Duration::from_secs(20);

/// One who watches, beside the one who changes.
struct Watcher {
    meta: MetaSession,
    seen: Option<u64>,
}

impl Watcher {
    /// The changes from the last call up to now, and by whom. `last` is among the latest.
    async fn told(&mut self, last: &Change) -> (BTreeSet<Change>, BTreeSet<ClientId>) {
        let (mut told, mut by) = (BTreeSet::new(), BTreeSet::new());
        let watching = async {
            while !told.contains(last) {
                let changes = self.meta.watch(self.seen).await.expect("answers");
                assert!(Some(changes.upto) >= self.seen, "it never goes back");
                self.seen = Some(changes.upto);
                for changed in changes.changed.expect("it remembers what has only just happened") {
                    by.insert(changed.by);
                    told.extend(changed.what);
                }
            }
        };
        tokio::time::timeout(PATIENCE, watching).await.expect("is told");
        (told, by)
    }
}

fn named(parent: InodeId, text: &str) -> Change {
    Change::Name(parent, name(text))
}

pub(super) async fn changes(case: Case) {
    let mut watcher = Watcher { meta: MetaSession::new(case.store().clone()), seen: None };
    let first = watcher.meta.watch(None).await.expect("answers");
    assert_eq!(first.changed, None, "who has seen nothing knows nothing");
    watcher.seen = Some(first.upto);
    let quiet = watcher.meta.watch(watcher.seen).await.expect("answers");
    assert_eq!(quiet.changed, Some(vec![]), "nothing happened: {quiet:?}");

    let folder = case.folder(ROOT, "d").await;
    let file = case.file(folder, "f").await;
    let (told, by) = watcher.told(&named(folder, "f")).await;
    let all = [named(ROOT, "d"), named(folder, "f")].into_iter().chain([ROOT, folder, file].map(Change::Inode));
    assert_told(&told, all);
    assert_eq!(by, BTreeSet::from([case.meta.client()]));

    content_and_attributes(&case, &mut watcher, file).await;
    moves(&case, &mut watcher, folder, file).await;

    let ops =
        vec![MetaOp::Unlink { parent: ROOT, name: name("none") }, MetaOp::Rmdir { parent: ROOT, name: name("d") }];
    case.meta.batch(ops).await.expect("answers");
    let (told, _) = watcher.told(&named(ROOT, "d")).await;
    assert_told(&told, [named(ROOT, "d"), Change::Inode(ROOT), Change::Inode(folder)]);

    let unheard = Watch { client: watcher.meta.client(), seen: Some(u64::MAX) };
    assert_eq!(case.store().watch(unheard).await.expect("answers").changed, None, "seen what never was");
}

fn assert_told(told: &BTreeSet<Change>, expected: impl IntoIterator<Item = Change>) {
    let missing: Vec<Change> = expected.into_iter().filter(|change| !told.contains(change)).collect();
    assert!(missing.is_empty(), "missing {missing:?} in {told:?}");
}

async fn content_and_attributes(case: &Case, watcher: &mut Watcher, file: InodeId) {
    let changed = Change::Inode(file);
    let stripe = case.stripe(1000).await;
    case.meta.commit(file, lay(&stripe, 0, 1000)).await.expect("commits");
    watcher.told(&changed).await;
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    case.meta.set_attr(file, change).await.expect("sets");
    watcher.told(&changed).await;
    case.meta.set_xattr(file, attribute(), b"7".to_vec(), XattrMode::Either).await.expect("sets");
    watcher.told(&changed).await;
    case.meta.remove_xattr(file, attribute()).await.expect("removes");
    let (told, _) = watcher.told(&changed).await;
    assert_eq!(told, BTreeSet::from([changed]), "nothing else");
}

fn attribute() -> XattrName {
    XattrName::new("user.label").expect("a name")
}

async fn moves(case: &Case, watcher: &mut Watcher, folder: InodeId, file: InodeId) {
    case.meta.link(file, ROOT, name("l")).await.expect("links");
    let (told, _) = watcher.told(&named(ROOT, "l")).await;
    assert_told(&told, [Change::Inode(file), Change::Inode(ROOT)]);

    let replaced = case.file(ROOT, "target").await;
    watcher.told(&named(ROOT, "target")).await;
    case.meta.rename((folder, name("f")), (ROOT, name("target")), RenameMode::Replace).await.expect("renames");
    let (told, _) = watcher.told(&named(ROOT, "target")).await;
    let all = [file, replaced, folder, ROOT].map(Change::Inode).into_iter();
    assert_told(&told, all.chain([named(folder, "f")]));

    case.meta.unlink(ROOT, name("l")).await.expect("unlinks");
    let (told, _) = watcher.told(&named(ROOT, "l")).await;
    assert_told(&told, [Change::Inode(file), Change::Inode(ROOT)]);

    let new = inode(NewKind::File);
    let new = crate::meta::NewInode { mtime: Some(Timestamp::default()), ..new };
    case.meta.create(ROOT, name("target"), new, IfExists::Replace).await.expect("replaces");
    let (told, _) = watcher.told(&Change::Inode(file)).await;
    assert_told(&told, [Change::Inode(file)]);
}
