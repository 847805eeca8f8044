//! What only the state machine has: records bounded, answers forgotten, garbage handed out, damage noticed.

use super::*;
use crate::kv::memory::MemoryKv;
use crate::kv::{Durability, Kv};
use torchfs_core::layout::{Extent, Profile, Stripe, StripeShape};
use torchfs_core::meta::{
    ContentChange, IfExists, MetaAnswer, MetaQuery, Name, NewInode, NewKind, RenameMode, SetTime,
};
use torchfs_core::placement::FailureDomain;
use torchfs_core::{ClientId, ClusterId, InodeId, NodeId, NodeUuid, RequestId, StripeId};

fn time(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn file() -> NewInode {
    NewInode { kind: NewKind::File, mode: 0o644, uid: 1, gid: 2, mtime: None }
}

fn create(parent: InodeId, text: &str, content: Option<ContentChange>) -> MetaOp {
    MetaOp::Create { parent, name: name(text), inode: file(), if_exists: IfExists::Fail, content }
}

/// A store with its own request numbers.
struct Machine {
    kv: MemoryKv,
    sequence: u64,
    now: i64,
}

impl Machine {
    fn founded() -> Self {
        let mut machine = Machine { kv: MemoryKv::new(), sequence: 0, now: 100 };
        let op = InternalOp::Found { cluster: ClusterId(7), profile: Profile::DEFAULT };
        machine.run(MetaOp::Internal(op)).expect("founds");
        for number in 1..=6 {
            let op = MetaOp::Register {
                uuid: NodeUuid(number),
                addr: format!("n{number}:1"),
                domain: FailureDomain::default(),
                capacity_bytes: 1 << 30,
            };
            machine.run(op).expect("registers");
        }
        machine.run(MetaOp::Internal(InternalOp::ReserveStripes { count: 1000 })).expect("reserves");
        machine
    }

    fn command(&mut self, op: MetaOp) -> Command {
        self.sequence += 1;
        let request = RequestId { client: ClientId(9), sequence: self.sequence };
        Command { request, answered_below: 0, op }
    }

    fn run(&mut self, op: MetaOp) -> Result<MetaReply> {
        let command = self.command(op);
        self.send(&command)
    }

    fn send(&self, command: &Command) -> Result<MetaReply> {
        let (batch, answer) = apply(&self.kv, time(self.now), command).expect("the store is sound");
        self.kv.write(batch, Durability::Process).expect("writes");
        answer
    }

    fn sound(&self) {
        assert_eq!(fsck(&self.kv).expect("reads"), Vec::<String>::new());
    }
}

fn stripe(id: u64, bytes: u32) -> Stripe {
    let shape = StripeShape::for_content(Profile::DEFAULT, bytes.into());
    let nodes = (0..6).map(|index| (shape.shard_len(index) > 0).then_some(NodeId(index as u32 + 1))).collect();
    Stripe { id: StripeId(id), shape, nodes }
}

fn one_stripe(id: u64, offset: u64, len: u32) -> ContentChange {
    ContentChange {
        extents: vec![Extent { offset, len, stripe: StripeId(id), stripe_offset: 0 }],
        stripes: vec![stripe(id, len)],
        mtime: SetTime::Now,
        ..ContentChange::nothing()
    }
}

#[test]
fn a_file_is_made_read_overwritten_and_collected() {
    let mut machine = Machine::founded();
    let reply = machine.run(create(InodeId::ROOT, "a", Some(one_stripe(1, 0, 1000)))).expect("creates");
    let attr = reply.attr().expect("an inode");
    assert_eq!((attr.size, attr.allocated), (1000, 1000));
    machine.sound();
    let answer = query(&machine.kv, &MetaQuery::Open(attr.ino)).expect("opens");
    let MetaAnswer::Opened(_, content) = answer else { panic!("{answer:?}") };
    assert_eq!(content.stripes, [stripe(1, 1000)]);
    machine.run(MetaOp::Commit { ino: attr.ino, change: one_stripe(2, 0, 2000) }).expect("commits");
    machine.sound();
    assert_eq!(garbage_shards(&machine.kv, NodeId(1), time(101), 9).expect("reads").len(), 1);
    assert_eq!(garbage_shards(&machine.kv, NodeId(1), time(100), 9).expect("reads").len(), 0);
    machine.run(MetaOp::Unlink { parent: InodeId::ROOT, name: name("a") }).expect("unlinks");
    machine.sound();
    let collect = InternalOp::Collect { before: time(101), clients_before: time(0) };
    machine.run(MetaOp::Internal(collect)).expect("collects");
    machine.sound();
    assert_eq!(query(&machine.kv, &MetaQuery::Attr(attr.ino)).expect_err("gone").kind(), Kind::NotFound);
    // Who had it open had since the unlink to read on; no second wait begins with the collection.
    let unlinked = garbage_shards(&machine.kv, NodeId(1), time(101), 9).expect("reads");
    assert_eq!(unlinked.len(), 2, "{unlinked:?}");
    let op = MetaOp::Rename {
        parent: InodeId::ROOT,
        name: name("a"),
        new_parent: InodeId::ROOT,
        new_name: name("b"),
        mode: RenameMode::Replace,
    };
    assert_eq!(machine.run(op).expect_err("gone").kind(), Kind::NotFound);
}

#[tokio::test]
async fn keeps_the_contract_of_every_metadata_store() {
    torchfs_core::meta::conformance::run(|| async {
        let kv = Box::new(MemoryKv::new());
        let store = Standalone::open(kv, Durability::Process, ClusterId(1), Profile::DEFAULT).expect("opens");
        std::sync::Arc::new(store) as std::sync::Arc<dyn torchfs_core::meta::MetaStore>
    })
    .await;
}

/// What `len` bytes at `offset` of the file are after many commits, in chunks of bounded size.
#[test]
fn a_file_of_many_extents_is_kept_in_small_records() {
    let mut machine = Machine::founded();
    let reply = machine.run(create(InodeId::ROOT, "a", None)).expect("creates");
    let attr = reply.attr().expect("an inode");
    let (one, other) = (stripe(1, 1000), stripe(2, 1000));
    let every_other = |from: u64, count: u64, stripe: &Stripe| ContentChange {
        extents: (from..from + count)
            .map(|at| Extent { offset: at * 2, len: 1, stripe: stripe.id, stripe_offset: at as u32 % 1000 })
            .collect(),
        stripes: vec![stripe.clone()],
        ..ContentChange::nothing()
    };
    for change in [every_other(0, 5000, &one), every_other(5000, 10, &one), every_other(2000, 3, &other)] {
        machine.run(MetaOp::Commit { ino: attr.ino, change }).expect("commits");
        machine.sound();
    }
    let (from, to) = (keys::extents(attr.ino, 0), keys::end_of(&keys::extents_of(attr.ino)));
    let chunks = machine.kv.scan(&from, &to, 99).expect("reads");
    assert!(chunks.len() >= 5 && chunks.iter().all(|(_, bytes)| bytes.len() < 32 << 10), "{}", chunks.len());
    let answer = query(&machine.kv, &MetaQuery::Open(attr.ino)).expect("opens");
    let MetaAnswer::Opened(attr, content) = answer else { panic!("{answer:?}") };
    assert_eq!((content.extents.len(), attr.allocated, content.stripes.len()), (5010, 5010, 2));
    assert!(content.extents.is_sorted_by_key(|extent| extent.offset));
}

#[test]
fn deleted_garbage_is_forgotten_and_its_stripe_stays_refused() {
    let mut machine = Machine::founded();
    machine.run(create(InodeId::ROOT, "a", Some(one_stripe(5, 0, 10)))).expect("creates");
    let replace = MetaOp::Create {
        parent: InodeId::ROOT,
        name: name("a"),
        inode: file(),
        if_exists: IfExists::Replace,
        content: None,
    };
    machine.run(replace).expect("replaces");
    let mut shards = Vec::new();
    for node in 1..=6 {
        shards.extend(garbage_shards(&machine.kv, NodeId(node), time(999), 9).expect("reads"));
    }
    assert_eq!(shards.iter().map(|shard| shard.index).collect::<Vec<_>>(), [0, 4, 5]);
    for shard in shards {
        assert_eq!(abandoned(&machine.kv, &[StripeId(5)]).expect("reads"), []);
        machine.run(MetaOp::Internal(InternalOp::Deleted(vec![shard]))).expect("notes");
        machine.sound();
    }
    assert_eq!(abandoned(&machine.kv, &[StripeId(5), StripeId(6)]).expect("reads"), [StripeId(5)]);
    let again = machine.run(create(InodeId::ROOT, "b", Some(one_stripe(5, 0, 10))));
    assert_eq!(again.expect_err("is stale").kind(), Kind::Stale);
    machine.run(MetaOp::Internal(InternalOp::AdvanceHorizon { stripe: StripeId(8) })).expect("advances");
    assert_eq!(horizon(&machine.kv).expect("reads"), StripeId(8));
    for id in 5..8 {
        let late = machine.run(create(InodeId::ROOT, "b", Some(one_stripe(id, 0, 10))));
        assert_eq!(late.expect_err("is stale").kind(), Kind::Stale);
    }
    machine.run(create(InodeId::ROOT, "b", Some(one_stripe(8, 0, 10)))).expect("is not given up");
    machine.sound();
}

#[test]
fn silent_clients_are_forgotten_with_their_answers_and_others_are_not() {
    let mut machine = Machine::founded();
    let early = machine.command(create(InodeId::ROOT, "a", None));
    let first = machine.send(&early).expect("creates");
    machine.now += 5000;
    let request = RequestId { client: ClientId(10), sequence: 1 };
    let late = Command { request, answered_below: 0, op: create(InodeId::ROOT, "b", None) };
    let second = machine.send(&late).expect("creates");
    assert_eq!(machine.send(&early).expect("the same answer"), first);
    let collect = MetaOp::Internal(InternalOp::Collect { before: time(0), clients_before: time(4000) });
    let request = RequestId { client: ClientId(11), sequence: 1 };
    machine.send(&Command { request, answered_below: 0, op: collect }).expect("collects");
    assert_eq!(machine.send(&late).expect("the same answer"), second);
    assert_eq!(machine.send(&early).expect_err("was forgotten").kind(), Kind::Exists);
    machine.sound();
}

#[test]
fn answers_that_a_client_has_are_not_kept() {
    let mut machine = Machine::founded();
    for number in 0..50 {
        let mut command = machine.command(create(InodeId::ROOT, &format!("f{number}"), None));
        command.answered_below = command.request.sequence;
        machine.send(&command).expect("creates");
    }
    let (from, to) = (keys::answers(ClientId(9)), keys::end_of(&keys::answers(ClientId(9))));
    assert_eq!(machine.kv.scan(&from, &to, 99).expect("reads").len(), 1);
}

/// Regression: errors inside apply were logged and success returned.
#[test]
fn a_damaged_record_stops_the_replica_and_is_no_answer() {
    let mut machine = Machine::founded();
    let changes = vec![(keys::inode(InodeId::ROOT), Some(vec![1, 255, 255]))];
    machine.kv.write(WriteBatch { changes }, Durability::Process).expect("writes");
    let command = machine.command(create(InodeId::ROOT, "a", None));
    assert_eq!(apply(&machine.kv, time(1), &command).expect_err("is damaged").kind(), Kind::Corrupt);
}

#[test]
fn nothing_happens_before_the_cluster_is_founded() {
    let kv = MemoryKv::new();
    let request = RequestId { client: ClientId(1), sequence: 1 };
    let command = Command { request, answered_below: 0, op: create(InodeId::ROOT, "a", None) };
    let (batch, answer) = apply(&kv, time(1), &command).expect("the store is sound");
    assert_eq!((batch, answer.expect_err("is not founded").kind()), (WriteBatch::default(), Kind::Unavailable));
    assert_eq!(query(&kv, &MetaQuery::Map).expect_err("is not founded").kind(), Kind::Unavailable);
}

/// Regression: apply read the clock, so replicas had different times.
#[test]
fn the_only_time_is_the_one_given() {
    let mut machine = Machine::founded();
    machine.now = -7;
    let reply = machine.run(create(InodeId::ROOT, "a", None)).expect("creates");
    let attr = reply.attr().expect("an inode");
    assert_eq!([attr.atime, attr.mtime, attr.ctime], [time(-7); 3]);
}

/// Regression: after a restart the namespace was empty, after a leader change every size 0.
#[test]
fn all_of_the_state_is_in_the_store() {
    let mut machine = Machine::founded();
    machine.run(create(InodeId::ROOT, "a", Some(one_stripe(1, 0, 1000)))).expect("creates");
    let copy = MemoryKv::new();
    let all = machine.kv.scan(keys::FROM, keys::TO, usize::MAX).expect("reads");
    let changes = all.into_iter().map(|(key, value)| (key, Some(value))).collect();
    copy.write(WriteBatch { changes }, Durability::Process).expect("writes");
    let lookup = MetaQuery::Lookup { parent: InodeId::ROOT, name: name("a") };
    let answer = query(&copy, &lookup).expect("is there");
    assert!(matches!(&answer, MetaAnswer::Attr(attr) if attr.size == 1000), "{answer:?}");
    let mut restarted = Machine { kv: copy, ..machine };
    restarted.run(MetaOp::Unlink { parent: InodeId::ROOT, name: name("a") }).expect("unlinks");
    restarted.sound();
}
