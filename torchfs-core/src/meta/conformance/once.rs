//! Exactly-once, and batches.

use super::{Case, ROOT, command, inode, name, refused};
use crate::error::Kind;
use crate::meta::{AttrChange, IfExists, MetaOp, MetaReply, NewKind};

fn create(text: &str) -> MetaOp {
    let (parent, inode) = (ROOT, inode(NewKind::File));
    MetaOp::Create { parent, name: name(text), inode, if_exists: IfExists::Fail, content: None }
}

pub(super) async fn retries(case: Case) {
    let send = |sequence, answered_below, op| case.store().apply(command(5, sequence, answered_below, op));
    let first = send(1, 0, create("a")).await.expect("creates");
    let made = first.attr().expect("an inode");
    // A retry after the answer was lost makes no second inode and reports no failure.
    assert_eq!(send(1, 0, create("a")).await.expect("the same answer"), first);
    refused(send(2, 0, create("a")).await, Kind::Exists);
    case.meta.unlink(ROOT, name("a")).await.expect("unlinks");
    // A failure is an answer too: it stays although it would succeed now.
    refused(send(2, 0, create("a")).await, Kind::Exists);
    assert_eq!(send(1, 0, create("a")).await.expect("the first answer"), first);
    assert_eq!(case.listed(ROOT).await, [""; 0]);
    // The same number of another client is another request.
    let other = case.store().apply(command(6, 1, 0, create("a"))).await.expect("creates");
    assert!(other.attr().is_some_and(|attr| attr.ino != made.ino));
    // A later request may overtake an earlier one.
    send(9, 3, create("nine")).await.expect("creates");
    send(4, 3, create("four")).await.expect("creates");
    // What the client has the answer to cannot come again.
    refused(send(2, 0, create("late")).await, Kind::Stale);
    assert_eq!(case.listed(ROOT).await, ["a", "four", "nine"]);
    let unlink = MetaOp::Unlink { parent: ROOT, name: name("four") };
    let gone = send(10, 3, unlink.clone()).await.expect("unlinks");
    assert_eq!(send(10, 3, unlink).await.expect("the same answer"), gone);
}

pub(super) async fn batches(case: Case) {
    let bad = AttrChange { mode: Some(u32::MAX), ..AttrChange::default() };
    let ops = vec![
        create("a"),
        create("a"),
        MetaOp::Batch(vec![create("nested")]),
        MetaOp::SetAttr { ino: ROOT, change: bad },
        create("b"),
        MetaOp::Unlink { parent: ROOT, name: name("a") },
    ];
    let sent = command(5, 1, 0, MetaOp::Batch(ops));
    let answer = case.store().apply(sent.clone()).await.expect("is answered");
    let MetaReply::Batch(replies) = &answer else { panic!("{answer:?}") };
    let kinds: Vec<_> = replies.iter().map(|reply| reply.as_ref().err().map(crate::Error::kind)).collect();
    let invalid = Some(Kind::InvalidInput);
    assert_eq!(kinds, [None, Some(Kind::Exists), invalid, invalid, None, None]);
    assert_eq!(case.store().apply(sent).await.expect("the same answer"), answer);
    assert_eq!(case.listed(ROOT).await, ["b"]);
    refused(case.meta.batch(vec![create("x"); 1025]).await, Kind::InvalidInput);
    assert_eq!(case.listed(ROOT).await, ["b"]);
}
