//! Random operations on the state machine and on the naive model: the answers, and all that can be seen afterwards, are the same.

use super::{Standalone, fsck};
use crate::kv::memory::MemoryKv;
use crate::kv::{Durability, Entry, KvRead};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeSet;
use torchfs_core::layout::{Extent, Profile, Stripe, StripeShape};
use torchfs_core::meta::memory::MemoryMeta;
use torchfs_core::meta::{
    AttrChange, Command, ContentChange, IfExists, InternalOp, Listing, MetaAnswer, MetaOp, MetaQuery, MetaReply,
    MetaStore, Name, NewInode, NewKind, NodeState, RenameMode, SetTime, Timestamp, XattrMode, XattrName,
};
use torchfs_core::placement::FailureDomain;
use torchfs_core::{ClientId, ClusterId, InodeId, Kind, NodeId, NodeUuid, RequestId, Result, ShardId, StripeId};

/// A step of a run.
#[derive(Clone, Debug)]
enum Step {
    Op(Box<MetaOp>),
    /// The command before this many once more.
    Retry(usize),
    Wait(i64),
}

fn name() -> impl Strategy<Value = Name> {
    select(vec!["a", "b", "c", "d"]).prop_map(|text| Name::new(text).expect("a name"))
}

/// Few inodes, so that operations meet; some that are not there.
fn ino() -> impl Strategy<Value = InodeId> {
    prop_oneof![2 => Just(InodeId::ROOT), 7 => (2u64..10).prop_map(InodeId), 1 => (0u64..20).prop_map(InodeId)]
}

/// Mostly a folder.
fn folder() -> impl Strategy<Value = InodeId> {
    prop_oneof![3 => Just(InodeId::ROOT), 6 => (2u64..5).prop_map(InodeId), 2 => ino()]
}

/// Mostly a file.
fn file() -> impl Strategy<Value = InodeId> {
    prop_oneof![6 => (5u64..8).prop_map(InodeId), 2 => ino()]
}

/// The tree that every run starts with: folders 2 to 4, files 5 to 7, a link 8.
fn start() -> Vec<MetaOp> {
    let make = |parent: u64, text: &str, kind: NewKind| MetaOp::Create {
        parent: InodeId(parent),
        name: Name::new(text).expect("a name"),
        inode: NewInode { kind, mode: 0o755, uid: 1, gid: 1, mtime: None },
        if_exists: IfExists::Fail,
        content: None,
    };
    let (folder, file) = (NewKind::Directory, NewKind::File);
    vec![
        make(1, "a", folder.clone()),
        make(1, "b", folder.clone()),
        make(2, "a", folder),
        make(1, "c", file.clone()),
        make(2, "b", file.clone()),
        make(4, "c", file),
        make(3, "d", NewKind::Symlink(b"../a/a".to_vec())),
    ]
}

fn time() -> impl Strategy<Value = SetTime> {
    let at = (-5i64..5, prop_oneof![9 => 0u32..1_000_000_000, 1 => Just(u32::MAX)]);
    prop_oneof![Just(SetTime::Now), at.prop_map(|(seconds, nanos)| SetTime::At(Timestamp { seconds, nanos }))]
}

fn new_inode() -> impl Strategy<Value = NewInode> {
    let target = prop_oneof![
        8 => select(vec![&b"a"[..], b"/a/b", b"../c", b"./a/", b"/", b"..", b"b/../d"]).prop_map(<[u8]>::to_vec),
        1 => vec(any::<u8>(), 0..3),
        1 => Just(vec![b'x'; 4096]),
    ];
    let kind = prop_oneof![
        6 => Just(NewKind::File),
        5 => Just(NewKind::Directory),
        2 => target.prop_map(NewKind::Symlink),
        1 => Just(NewKind::Fifo),
        1 => any::<u32>().prop_map(NewKind::CharDevice),
    ];
    let mode = prop_oneof![8 => Just(0o644), 4 => Just(0o2755), 1 => any::<u32>()];
    (kind, mode, 0u32..3, 0u32..3, proptest::option::weighted(0.2, time())).prop_map(|(kind, mode, uid, gid, mtime)| {
        let mtime = mtime.and_then(|time| if let SetTime::At(time) = time { Some(time) } else { None });
        NewInode { kind, mode, uid, gid, mtime }
    })
}

/// The record that this stripe has wherever it is given; some stripes are packed, some degraded, some impossible.
fn stripe(id: u64) -> Stripe {
    let shape = StripeShape::for_content(Profile::DEFAULT, 100 + id * 30_000);
    let place = |index: usize| match (id % 5, index) {
        _ if shape.shard_len(index) == 0 => None,
        (1, 5) => None,
        (2, 5) => Some(NodeId(5)),
        (4, _) if id == 14 => Some(NodeId(77)),
        _ => Some(NodeId(index as u32 + 1)),
    };
    Stripe { id: StripeId(id), shape, nodes: (0..6).map(place).collect() }
}

fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![60 => 0u64..400, 1 => Just(u64::MAX - 10), 1 => Just(i64::MAX as u64 - 20)]
}

fn content() -> impl Strategy<Value = ContentChange> {
    let extent = (0u64..120, 1u32..90, prop_oneof![15 => 1u64..14, 1 => 14u64..16], 0u32..40);
    let edges = (proptest::option::of(offset()), vec((offset(), 0u64..100), 0..2), offset(), time());
    let slips = prop_oneof![15 => Just(0), 1 => 1u32..5];
    (vec(extent, 0..4), edges, slips).prop_map(|(extents, (keep_bytes, holes, size_min, mtime), slip)| {
        let mut at = 0;
        let extents: Vec<Extent> = extents
            .into_iter()
            .map(|(gap, len, id, stripe_offset)| {
                let offset = at + gap;
                at = offset + u64::from(len);
                Extent { offset, len, stripe: StripeId(id), stripe_offset }
            })
            .collect();
        let named: BTreeSet<u64> = extents.iter().map(|extent| extent.stripe.0).collect();
        let stripes = named.into_iter().map(stripe).collect();
        let size_min = if size_min < 300 { 0 } else { size_min };
        slipped(ContentChange { keep_bytes, extents, holes, stripes, size_min, mtime }, slip)
    })
}

/// The change with a mistake in it.
fn slipped(mut change: ContentChange, slip: u32) -> ContentChange {
    match slip {
        1 => change.stripes.clear(),
        2 => change.extents.clear(),
        3 => change.extents.reverse(),
        4 => change.stripes.iter_mut().for_each(|stripe| stripe.nodes.truncate(3)),
        _ => {}
    }
    change
}

fn shards() -> impl Strategy<Value = Vec<ShardId>> {
    let shard = (1u64..16, 0u8..8).prop_map(|(id, index)| ShardId { stripe: StripeId(id), index });
    vec(shard, 1..20)
}

fn attribute() -> impl Strategy<Value = XattrName> {
    select(vec!["user.a", "user.b", "user.a/b", "."]).prop_map(|text| XattrName::new(text).expect("a name"))
}

fn simple_op() -> impl Strategy<Value = MetaOp> {
    let exists = select(vec![IfExists::Fail, IfExists::Keep, IfExists::Replace]);
    let create = (folder(), name(), new_inode(), exists, proptest::option::weighted(0.4, content()));
    let rename_mode =
        select(vec![RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]);
    let xattr_mode = select(vec![XattrMode::Either, XattrMode::Create, XattrMode::Replace]);
    let attrs = (proptest::option::of(0u32..0o10100), proptest::option::of(0u32..3), proptest::option::of(time()));
    let profile = (0u8..5, 0u8..3).prop_map(|(data, parity)| Profile { data, parity, ..Profile::DEFAULT });
    let value = prop_oneof![9 => vec(any::<u8>(), 0..4), 1 => Just(vec![0; 70_000])];
    prop_oneof![
        10 => create.prop_map(|(parent, name, inode, if_exists, content)| {
            let content = content.filter(|_| inode.kind == NewKind::File || name.as_bytes() == b"d");
            MetaOp::Create { parent, name, inode, if_exists, content }
        }),
        3 => (file(), folder(), name()).prop_map(|(ino, parent, name)| MetaOp::Link { ino, parent, name }),
        3 => (folder(), name()).prop_map(|(parent, name)| MetaOp::Unlink { parent, name }),
        3 => (folder(), name()).prop_map(|(parent, name)| MetaOp::Rmdir { parent, name }),
        8 => (folder(), name(), folder(), name(), rename_mode).prop_map(|(parent, name, new_parent, new_name, mode)| {
            MetaOp::Rename { parent, name, new_parent, new_name, mode }
        }),
        2 => (ino(), attrs).prop_map(|(ino, (mode, uid, mtime))| {
            MetaOp::SetAttr { ino, change: AttrChange { mode, uid, gid: uid, atime: mtime, mtime } }
        }),
        8 => (file(), content()).prop_map(|(ino, change)| MetaOp::Commit { ino, change }),
        3 => (file(), attribute(), value, xattr_mode).prop_map(|(ino, name, value, mode)| {
            MetaOp::SetXattr { ino, name, value, mode }
        }),
        2 => (file(), attribute()).prop_map(|(ino, name)| MetaOp::RemoveXattr { ino, name }),
        1 => (folder(), proptest::option::of(profile)).prop_map(|(ino, profile)| MetaOp::SetProfile { ino, profile }),
        1 => shards().prop_map(MetaOp::ReportShards),
        1 => (1u128..9, 1u32..9).prop_map(|(uuid, addr)| register(uuid, addr)),
        2 => internal().prop_map(MetaOp::Internal),
    ]
}

fn register(uuid: u128, addr: u32) -> MetaOp {
    let domain = FailureDomain::default();
    MetaOp::Register { uuid: NodeUuid(uuid), addr: format!("n{addr}:1"), domain, capacity_bytes: 1 << 30 }
}

fn internal() -> impl Strategy<Value = InternalOp> {
    let state = select(vec![NodeState::Up, NodeState::Down, NodeState::Draining]);
    // Clients are never forgotten here: how exactly the machine knows when they were last heard of is its own.
    let clients_before = Timestamp { seconds: i64::MIN, nanos: 0 };
    prop_oneof![
        (1u32..9, state).prop_map(|(node, state)| InternalOp::SetNodeState { node: NodeId(node), state }),
        (0u32..2).prop_map(|count| InternalOp::ReserveStripes { count }),
        (0u64..6).prop_map(|stripe| InternalOp::AdvanceHorizon { stripe: StripeId(stripe) }),
        shards().prop_map(InternalOp::Deleted),
        shards().prop_map(InternalOp::Damaged),
        (0i64..200).prop_map(move |seconds| {
            InternalOp::Collect { before: Timestamp { seconds, nanos: 0 }, clients_before }
        }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let nested = vec(prop_oneof![9 => simple_op(), 1 => Just(MetaOp::Batch(Vec::new()))], 0..5);
    prop_oneof![
        20 => simple_op().prop_map(|op| Step::Op(Box::new(op))),
        2 => nested.prop_map(|ops| Step::Op(Box::new(MetaOp::Batch(ops)))),
        2 => (1usize..6).prop_map(Step::Retry),
        3 => (0i64..40).prop_map(Step::Wait),
    ]
}

/// The two side by side.
struct Pair {
    machine: Standalone,
    model: MemoryMeta,
    sent: Vec<Command>,
    now: i64,
}

impl Pair {
    fn new() -> Self {
        let (cluster, profile) = (ClusterId(7), Profile::DEFAULT);
        let kv = Box::new(MemoryKv::new());
        let machine = Standalone::open(kv, Durability::Process, cluster, profile).expect("opens");
        let mut pair = Pair { machine, model: MemoryMeta::new(cluster, profile), sent: Vec::new(), now: 0 };
        (1..=6).for_each(|number| pair.same(&Step::Op(Box::new(register(number, number as u32)))));
        start().into_iter().for_each(|op| pair.same(&Step::Op(Box::new(op))));
        pair.same(&Step::Op(Box::new(MetaOp::Internal(InternalOp::ReserveStripes { count: 14 }))));
        pair
    }

    fn same(&mut self, step: &Step) {
        let command = match step {
            Step::Wait(seconds) => {
                self.now += seconds;
                let now = Timestamp { seconds: self.now, nanos: 7 };
                self.machine.set_time(now);
                return self.model.set_time(now);
            }
            Step::Retry(back) => match self.sent.len().checked_sub(*back) {
                Some(at) => self.sent[at].clone(),
                None => return,
            },
            Step::Op(op) => {
                if let MetaOp::Internal(op) = &**op {
                    return compare(self.machine.internal(op.clone()), self.model.internal(op.clone()), op);
                }
                let sequence = self.sent.len() as u64 + 1;
                let request = RequestId { client: ClientId(sequence % 2), sequence };
                Command { request, answered_below: sequence.saturating_sub(4), op: (**op).clone() }
            }
        };
        compare(self.machine.apply_now(&command), self.model.apply_now(&command), &command);
        self.sent.push(command);
    }

    fn ask(&self, query: MetaQuery) -> Result<MetaAnswer> {
        let asked = format!("{query:?}");
        let ours = futures::executor::block_on(self.machine.query(query.clone()));
        compare(ours.clone(), self.model.query_now(&query), asked);
        ours
    }

    /// Everything that can be asked.
    fn all_the_same(&self) {
        for number in 0..40 {
            let ino = InodeId(number);
            for query in [MetaQuery::Attr(ino), MetaQuery::Open(ino), MetaQuery::Parent(ino), MetaQuery::ReadLink(ino)]
            {
                drop(self.ask(query));
            }
            drop(self.ask(MetaQuery::Profile(ino)));
            if let Ok(MetaAnswer::Names(names)) = self.ask(MetaQuery::Xattrs(ino)) {
                names.into_iter().for_each(|name| drop(self.ask(MetaQuery::Xattr { ino, name })));
            }
            self.same_pages(ino);
        }
        let stripes = (0..20).map(StripeId).collect();
        for query in [MetaQuery::Map, MetaQuery::Status, MetaQuery::FsStat, MetaQuery::Abandoned(stripes)] {
            self.ask(query).expect("answers");
        }
    }

    fn same_pages(&self, ino: InodeId) {
        for limit in [1, 3, 4096] {
            let mut after = None;
            loop {
                let page = self.ask(MetaQuery::List { ino, after: after.clone(), limit, extents: limit != 3 });
                match page {
                    Ok(MetaAnswer::Listing(Listing { entries, more: true, .. })) => {
                        after = entries.last().map(|entry| entry.name.clone());
                    }
                    _ => break,
                }
            }
        }
    }

    fn same_path(&self, from: InodeId, path: &[u8]) {
        for follow in [true, false] {
            drop(self.ask(MetaQuery::Resolve { from, path: path.to_vec(), follow }));
        }
    }

    fn sound(&self) {
        assert_eq!(fsck(self.machine.kv()).expect("reads"), Vec::<String>::new());
    }
}

fn compare<T: PartialEq + std::fmt::Debug>(ours: Result<T>, model: Result<T>, what: impl std::fmt::Debug) {
    assert_eq!(ours, model, "state machine left, model right: {what:?}");
    assert_ne!(ours.err().map(|error| error.kind()), Some(Kind::Corrupt), "{what:?}");
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let part = select(vec![&b"a"[..], b"b", b"c", b"d", b"..", b".", b"", b"e\0"]);
    vec(part, 0..6).prop_map(|parts| parts.join(&b'/'))
}

proptest! {
    #[test]
    fn the_state_machine_does_what_the_model_does(
        steps in vec(step(), 1..80),
        paths in vec((ino(), path()), 20),
    ) {
        let mut pair = Pair::new();
        for step in &steps {
            pair.same(step);
        }
        pair.sound();
        pair.all_the_same();
        paths.iter().for_each(|(from, path)| pair.same_path(*from, path));
    }

    /// Two replicas that read from their stores in different ways hold the same bytes.
    #[test]
    fn replicas_hold_the_same_bytes(steps in vec(step(), 1..40)) {
        let mut pair = Pair::new();
        let mut log = Vec::new();
        for step in &steps {
            match step {
                Step::Wait(seconds) => pair.now += seconds,
                Step::Op(op) => log.push((pair.now, (**op).clone())),
                Step::Retry(_) => {}
            }
        }
        let [one, other] = [Replica::Live, Replica::View].map(|replica| replica.run(&log));
        prop_assert_eq!(one, other);
    }
}

/// Guards the two tests above: their steps do change things, in every way there is.
#[test]
fn random_operations_often_succeed_and_often_fail() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut done: std::collections::BTreeMap<(String, Option<String>), u32> = Default::default();
    for _ in 0..60 {
        let steps = vec(step(), 80).new_tree(&mut runner).expect("draws").current();
        let mut pair = Pair::new();
        for step in &steps {
            pair.same(step);
            let Step::Op(op) = step else { continue };
            let Some(sent) = pair.sent.last().filter(|sent| sent.op == **op) else { continue };
            let kind = pair.machine.apply_now(sent).err().map(|error| format!("{:?}", error.kind()));
            let op = format!("{op:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
            *done.entry((op, kind)).or_default() += 1;
        }
    }
    let count =
        |op: &str, kind: Option<&str>| done.get(&(op.to_owned(), kind.map(str::to_owned))).copied().unwrap_or(0);
    let all =
        ["Create", "Link", "Unlink", "Rmdir", "Rename", "SetAttr", "Commit", "SetXattr", "RemoveXattr", "SetProfile"];
    for op in all {
        assert!(count(op, None) >= 5, "{op} succeeds too rarely: {done:?}");
    }
    for (op, kind) in
        [("Commit", "Stale"), ("Commit", "InvalidInput"), ("Rename", "NotEmpty"), ("Rename", "InvalidInput")]
    {
        assert!(count(op, Some(kind)) >= 3, "{op} is {kind} too rarely: {done:?}");
    }
}

/// How a replica reads what it applies to.
#[derive(Clone, Copy, Debug)]
enum Replica {
    Live,
    /// Through a view, with every command applied twice and only the second time written.
    View,
}

impl Replica {
    fn run(self, log: &[(i64, MetaOp)]) -> (Vec<Entry>, Vec<Result<MetaReply>>) {
        use crate::kv::Kv;
        let kv = MemoryKv::new();
        let found = MetaOp::Internal(InternalOp::Found { cluster: ClusterId(7), profile: Profile::DEFAULT });
        let setup = (1..=6).map(|number| register(number, number as u32));
        let reserve = MetaOp::Internal(InternalOp::ReserveStripes { count: 14 });
        let ops = [found]
            .into_iter()
            .chain(setup)
            .chain(start())
            .chain([reserve])
            .map(|op| (0, op))
            .chain(log.iter().cloned());
        let mut answers = Vec::new();
        for (number, (seconds, op)) in ops.enumerate() {
            let request = RequestId { client: ClientId(1), sequence: number as u64 + 1 };
            let command = Command { request, answered_below: number as u64, op };
            let time = Timestamp { seconds, nanos: 0 };
            let (batch, answer) = match self {
                Replica::Live => super::apply(&kv, time, &command).expect("applies"),
                Replica::View => {
                    let view = kv.view().expect("views");
                    let first = super::apply(&*view, time, &command).expect("applies");
                    assert_eq!(super::apply(&*view, time, &command).expect("applies"), first);
                    first
                }
            };
            kv.write(batch, Durability::Process).expect("writes");
            answers.push(answer);
        }
        (kv.scan(super::keys::FROM, super::keys::TO, usize::MAX).expect("reads"), answers)
    }
}
