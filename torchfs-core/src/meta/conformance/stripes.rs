//! Stripes accounted for, and the nodes that hold them.

use super::{Case, ROOT, lay, name, register};
use crate::error::Kind;
use crate::ids::{NodeId, NodeUuid, ShardId, StripeId};
use crate::layout::Profile;
use crate::meta::{Allocate, ContentChange, Heartbeat, MetaQuery, NodeLoad, Status};
use std::collections::BTreeSet;

async fn status(case: &Case) -> Status {
    case.meta.status().await.expect("answers")
}

pub(super) async fn accounting(case: Case) {
    let (a, b) = (case.file(ROOT, "a").await, case.file(ROOT, "b").await);
    let packed = case.stripe(1000).await;
    case.meta.commit(a, lay(&packed, 0, 400)).await.expect("commits");
    case.meta.commit(b, lay(&packed, 0, 600)).await.expect("commits the same stripe again");
    let now = status(&case).await;
    assert_eq!((now.files, now.bytes, now.stripes, now.stored_bytes), (2, 1000, 1, 3000));
    assert_eq!((now.degraded_stripes, now.bad_shards), (0, 0));
    // Damage is counted once per shard; what is not there is passed over.
    let shard = |stripe, index| ShardId { stripe, index };
    let reported = vec![shard(packed.id, 4), shard(packed.id, 4), shard(packed.id, 2), shard(packed.id, 200)];
    case.meta.report_shards(reported).await.expect("reports");
    case.meta.report_shards(vec![shard(StripeId(77_777), 0)]).await.expect("reports");
    let now = status(&case).await;
    assert_eq!((now.degraded_stripes, now.bad_shards), (1, 1));
    // One file less, and it is still there for the other.
    let nothing = ContentChange { keep_bytes: Some(0), ..ContentChange::nothing() };
    case.meta.commit(a, nothing.clone()).await.expect("commits");
    assert_eq!(status(&case).await.stripes, 1);
    case.meta.commit(b, nothing).await.expect("commits");
    let now = status(&case).await;
    assert_eq!((now.bytes, now.stripes, now.stored_bytes, now.bad_shards, now.degraded_stripes), (0, 0, 0, 0, 0));
    assert_eq!(now.deleted_bytes, 3000, "it is not used any more, and still there for those who have it open");
    // Garbage does not come back.
    super::refused(case.meta.commit(a, lay(&packed, 0, 400)).await, Kind::Stale);
    let mut degraded = case.stripe(1000).await;
    degraded.nodes[5] = None;
    case.meta.commit(a, lay(&degraded, 0, 400)).await.expect("commits a degraded stripe");
    assert_eq!(status(&case).await.degraded_stripes, 1);
    case.meta.unlink(ROOT, name("b")).await.expect("unlinks");
    assert_eq!(status(&case).await.files, 1);
    let asked = MetaQuery::Abandoned(vec![packed.id, degraded.id]);
    let answer = case.store().query(asked).await.expect("answers");
    assert_eq!(answer, crate::meta::MetaAnswer::Stripes(Vec::new()));
    // A file that is deleted does not count, although it can still be read; a stripe that another file is in does.
    let shared = case.stripe(1000).await;
    let c = case.file(ROOT, "c").await;
    case.meta.commit(c, lay(&shared, 0, 400)).await.expect("commits");
    let whole = case.stripe(1000).await;
    let both = ContentChange {
        extents: [lay(&shared, 0, 600).extents, lay(&whole, 600, 100).extents].concat(),
        stripes: vec![shared, whole],
        ..ContentChange::nothing()
    };
    let d = case.file(ROOT, "d").await;
    case.meta.commit(d, both).await.expect("commits");
    for gone in ["a", "d"] {
        case.meta.unlink(ROOT, name(gone)).await.expect("unlinks");
    }
    let now = status(&case).await;
    assert_eq!((now.files, now.stripes, now.stored_bytes, now.degraded_stripes), (1, 1, 3000, 0));
    assert_eq!(now.deleted_bytes, 3000 + 2000 + 3000);
}

pub(super) async fn nodes(case: Case) {
    let request = Allocate { profile: Profile::DEFAULT, stripes: 5, shard_bytes: 1 << 16, avoid: Vec::new() };
    super::refused(case.meta.allocate(request.clone()).await, Kind::Unavailable);
    let nodes = case.register().await;
    let map = case.meta.map().await.expect("answers");
    assert_eq!(map.nodes.iter().map(|record| record.id).collect::<Vec<_>>(), nodes);
    // The same again changes nothing.
    case.register().await;
    assert_eq!(case.meta.map().await.expect("answers").version, map.version);
    super::refused(case.meta.apply(register(9, "")).await, Kind::InvalidInput);
    let mut stripes = BTreeSet::new();
    for _ in 0..3 {
        case.register().await;
        for allocation in case.meta.allocate(request.clone()).await.expect("allocates") {
            assert!(stripes.insert(allocation.stripe), "a stripe id is handed out once");
            assert_eq!(allocation.nodes.iter().copied().collect::<BTreeSet<_>>().len(), 6);
        }
    }
    assert_eq!(stripes.len(), 15);
    heartbeats(&case, nodes[0]).await;
}

async fn heartbeats(case: &Case, node: NodeId) {
    let before = case.meta.fs_stat().await.expect("answers");
    // Other programs have filled an eighth of its disk.
    let load = NodeLoad { capacity_bytes: 7 << 37, used_bytes: 12_345, ..NodeLoad::default() };
    let map = case.meta.map().await.expect("answers");
    let beat = Heartbeat {
        node,
        uuid: NodeUuid(1),
        addr: map.node(node).expect("is registered").addr.clone(),
        load,
        deleted: Vec::new(),
        damaged: Vec::new(),
    };
    let reply = case.store().heartbeat(beat.clone()).await.expect("answers");
    assert_eq!(reply.delete, []);
    assert_eq!(reply.map, case.meta.map().await.expect("answers").version);
    let after = case.meta.fs_stat().await.expect("answers");
    assert!(after.used_bytes >= 12_345);
    assert_eq!(before.capacity_bytes - after.capacity_bytes, 1 << 37, "what the node says now counts");
    // A copy of its data folder runs somewhere else.
    let map = case.meta.map().await.expect("answers");
    let copy = Heartbeat { addr: "127.0.0.1:99".to_owned(), ..beat.clone() };
    super::refused(case.store().heartbeat(copy).await, Kind::Exists);
    assert_eq!(case.meta.map().await.expect("answers"), map, "it changes nothing");
    let unknown = Heartbeat { node: NodeId(99), uuid: NodeUuid(99), ..beat };
    super::refused(case.store().heartbeat(unknown).await, Kind::NotFound);
}
