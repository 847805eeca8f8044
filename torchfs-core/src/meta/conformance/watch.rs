//! What a watcher is told, and what others wait for while it holds a lease.

use super::{Case, ROOT, inode, lay, name};
use crate::ids::{ClientId, InodeId};
use crate::meta::{
    AttrChange, Change, Changes, IfExists, MetaOp, MetaSession, NewKind, RenameMode, Timestamp, Watch, Wish, XattrMode,
    XattrName,
};
use std::collections::BTreeSet;
use std::pin::pin;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// For whatever passes until a change is told; only a broken store needs it.
const PATIENCE: Duration = Duration::from_secs(20);

/// One who watches, beside the one who changes.
struct Watcher {
    meta: MetaSession,
    seen: Option<u64>,
    by: BTreeSet<ClientId>,
}

impl Watcher {
    fn new(case: &Case) -> Self {
        Watcher { meta: MetaSession::new(case.store().clone()), seen: None, by: BTreeSet::new() }
    }

    async fn watch(&mut self) -> Changes {
        let changes = self.meta.watch(self.seen).await.expect("answers");
        assert!(Some(changes.upto) >= self.seen, "it never goes back");
        self.seen = Some(changes.upto);
        changes
    }

    /// Watches while `work` is under way and until `last` is told. Returns the answer of the work and what was told.
    async fn told_of<T>(&mut self, last: &Change, work: impl Future<Output = T>) -> (T, BTreeSet<Change>) {
        let (mut work, mut done, mut told) = (pin!(work), None, BTreeSet::new());
        let watching = async {
            while done.is_none() || !told.contains(last) {
                tokio::select! {
                    answer = &mut work, if done.is_none() => done = Some(answer),
                    changes = self.watch() => {
                        for changed in changes.changed.expect("it remembers what has only just happened") {
                            self.by.insert(changed.by.client);
                            told.extend(changed.what);
                        }
                    }
                }
            }
        };
        timeout(PATIENCE, watching).await.expect("is told");
        (done.expect("is done"), told)
    }
}

fn named(parent: InodeId, text: &str) -> Change {
    Change::Name(parent, name(text))
}

pub(super) async fn changes(case: Case) {
    let mut watcher = Watcher::new(&case);
    let first = watcher.watch().await;
    assert_eq!(first.changed, None, "who has seen nothing knows nothing");
    let quiet = watcher.watch().await;
    assert_eq!(quiet.changed, Some(vec![]), "nothing happened: {quiet:?}");

    let (folder, mut told) = watcher.told_of(&named(ROOT, "d"), case.folder(ROOT, "d")).await;
    let (file, more) = watcher.told_of(&named(folder, "f"), case.file(folder, "f")).await;
    told.extend(more);
    let all = [named(ROOT, "d"), named(folder, "f")].into_iter().chain([ROOT, folder, file].map(Change::Inode));
    assert_told(&told, all);
    assert_eq!(watcher.by, BTreeSet::from([case.meta.client()]));

    content_and_attributes(&case, &mut watcher, file).await;
    moves(&case, &mut watcher, folder, file).await;

    let ops =
        vec![MetaOp::Unlink { parent: ROOT, name: name("none") }, MetaOp::Rmdir { parent: ROOT, name: name("d") }];
    let (done, told) = watcher.told_of(&named(ROOT, "d"), case.meta.batch(ops)).await;
    done.expect("answers");
    assert_told(&told, [named(ROOT, "d"), Change::Inode(ROOT), Change::Inode(folder)]);

    let unheard = Watch { client: watcher.meta.client(), seen: Some(u64::MAX), wish: Wish::Lease };
    assert_eq!(case.store().watch(unheard).await.expect("answers").changed, None, "seen what never was");
}

fn assert_told(told: &BTreeSet<Change>, expected: impl IntoIterator<Item = Change>) {
    let missing: Vec<Change> = expected.into_iter().filter(|change| !told.contains(change)).collect();
    assert!(missing.is_empty(), "missing {missing:?} in {told:?}");
}

async fn content_and_attributes(case: &Case, watcher: &mut Watcher, file: InodeId) {
    let changed = Change::Inode(file);
    let stripe = case.stripe(1000).await;
    watcher.told_of(&changed, case.meta.commit(file, lay(&stripe, 0, 1000))).await.0.expect("commits");
    let change = AttrChange { mode: Some(0o600), ..AttrChange::default() };
    watcher.told_of(&changed, case.meta.set_attr(file, change)).await.0.expect("sets");
    let set = case.meta.set_xattr(file, attribute(), b"7".to_vec(), XattrMode::Either);
    watcher.told_of(&changed, set).await.0.expect("sets");
    let (removed, told) = watcher.told_of(&changed, case.meta.remove_xattr(file, attribute())).await;
    removed.expect("removes");
    assert_eq!(told, BTreeSet::from([changed]), "nothing else");
}

fn attribute() -> XattrName {
    XattrName::new("user.label").expect("a name")
}

async fn moves(case: &Case, watcher: &mut Watcher, folder: InodeId, file: InodeId) {
    let (linked, told) = watcher.told_of(&named(ROOT, "l"), case.meta.link(file, ROOT, name("l"))).await;
    linked.expect("links");
    assert_told(&told, [Change::Inode(file), Change::Inode(ROOT)]);

    let (replaced, _) = watcher.told_of(&named(ROOT, "target"), case.file(ROOT, "target")).await;
    let rename = case.meta.rename((folder, name("f")), (ROOT, name("target")), RenameMode::Replace);
    let (renamed, told) = watcher.told_of(&named(ROOT, "target"), rename).await;
    renamed.expect("renames");
    let all = [file, replaced, folder, ROOT].map(Change::Inode).into_iter();
    assert_told(&told, all.chain([named(folder, "f")]));

    let (unlinked, told) = watcher.told_of(&named(ROOT, "l"), case.meta.unlink(ROOT, name("l"))).await;
    unlinked.expect("unlinks");
    assert_told(&told, [Change::Inode(file), Change::Inode(ROOT)]);

    let new = inode(NewKind::File);
    let new = crate::meta::NewInode { mtime: Some(Timestamp::default()), ..new };
    let create = case.meta.create(ROOT, name("target"), new, IfExists::Replace);
    let (created, told) = watcher.told_of(&Change::Inode(file), create).await;
    created.expect("replaces");
    assert_told(&told, [Change::Inode(file)]);
}

/// A change waits for a client that holds a lease and does not ask on, as long as the lease lasts; and not for itself.
pub(super) async fn leases(case: Case) {
    let mut watcher = Watcher::new(&case);
    watcher.watch().await;
    let asked = Instant::now();
    let lease = watcher.watch().await.lease;
    case.folder(ROOT, "a").await;
    assert!(asked.elapsed() >= lease, "done after {:?}, in spite of a lease of {lease:?}", asked.elapsed());

    let mut own = Watcher { meta: case.meta.clone(), ..watcher };
    own.watch().await;
    let work = async {
        for number in 0..50 {
            case.folder(ROOT, &format!("own-{number}")).await;
        }
    };
    timeout(25 * lease.max(PATIENCE / 20), work).await.expect("nobody waits for itself");
}
