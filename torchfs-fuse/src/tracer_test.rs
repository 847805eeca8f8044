//! What a reader gets, without a mount.

use super::*;
use torchfs_core::trace::{Op, Reader};

fn tracer() -> Arc<Tracer> {
    let tracer = Arc::new(Tracer::default());
    tracer.open(5, || vec![(InodeId::ROOT, Name::new("data").expect("a name"), InodeId(2))]).expect("opens");
    tracer
}

fn read_one(tracer: &Arc<Tracer>) {
    let record = Record { ino: InodeId(7), handle: 3, offset: 4096, len: 8192, ..Record::of(Op::Read) };
    let asked = tracer.asked(record).expect("is noted");
    asked.answered(Note::of(&Ok::<Bytes, Errno>(Bytes::from_static(b"four"))));
}

async fn items(tracer: &Tracer, reads: usize) -> Vec<Item> {
    let mut bytes = Vec::new();
    for _ in 0..reads {
        bytes.extend(tracer.read(1 << 20).await);
    }
    let mut reader = Reader::new(&bytes[..]).expect("a trace");
    let mut items = Vec::new();
    while let Some(item) = reader.next().expect("whole") {
        items.push(item);
    }
    assert!(!reader.is_torn());
    items
}

#[tokio::test]
async fn what_happens_while_it_is_open_is_read() {
    let tracer = tracer();
    read_one(&tracer);
    let of_own = Record { ino: Special::Stats.ino(), ..Record::of(Op::Read) };
    assert!(tracer.asked(of_own).is_none(), "nobody asks for what the mount says of itself");
    // The first read does not wait; the second finds that nothing else was done.
    let found = items(&tracer, 2).await;
    assert!(matches!(&found[0], Item::Name { name, .. } if name.as_bytes() == b"data"), "{found:?}");
    let Item::Op(record) = found[1] else { panic!("{found:?}") };
    assert_eq!(
        (record.op, record.ino, record.offset, record.len, record.result),
        (Op::Read, InodeId(7), 4096, 8192, 4)
    );
    assert!(matches!(found[2..], [Item::Mark(time)] if time >= record.ended()), "{found:?}");
}

#[tokio::test]
async fn one_reads_at_a_time_and_nothing_is_noted_without_one() {
    let tracer = tracer();
    assert_eq!(tracer.open(6, Vec::new).expect_err("is read").kind(), Kind::Exists);
    assert!(tracer.is_read_by(5) && !tracer.close(6));
    let asked = tracer.asked(Record::of(Op::Statfs)).expect("is noted");
    assert!(tracer.close(5) && !tracer.is_read_by(5));
    assert!(tracer.asked(Record::of(Op::Statfs)).is_none());
    tracer.open(7, Vec::new).expect("is free");
    asked.answered(Note::default());
    let found = items(&tracer, 2).await;
    assert!(matches!(found[..], [Item::Mark(_), Item::Mark(_)]), "what an earlier trace began is not in it: {found:?}");
}

#[tokio::test]
async fn what_finds_no_room_is_counted() {
    let tracer = tracer();
    (0..QUEUE_MAX + 9).for_each(|_| read_one(&tracer));
    let found = items(&tracer, 6).await;
    let lost = |item: &Item| if let Item::Lost(count) = item { *count } else { 0 };
    // One place is taken by the name.
    assert_eq!(found.iter().map(lost).sum::<u64>(), 10);
    let ops = found.iter().filter(|item| matches!(item, Item::Op(_))).count();
    assert_eq!(ops, QUEUE_MAX - 1);
}

#[tokio::test]
async fn when_the_mount_ends_so_does_the_trace() {
    let tracer = tracer();
    read_one(&tracer);
    assert!(tracer.stop(), "somebody reads");
    assert_eq!(items(&tracer, 2).await.len(), 2);
    assert!(tracer.read(100).await.is_empty());
}
