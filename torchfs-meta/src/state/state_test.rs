//! What only the state machine has: answers kept, records bounded, replicas alike.

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
    let MetaReply::Attr(attr) = reply else { panic!("{reply:?}") };
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
    let op = MetaOp::Rename {
        parent: InodeId::ROOT,
        name: name("a"),
        new_parent: InodeId::ROOT,
        new_name: name("b"),
        mode: RenameMode::Replace,
    };
    assert_eq!(machine.run(op).expect_err("gone").kind(), Kind::NotFound);
}
