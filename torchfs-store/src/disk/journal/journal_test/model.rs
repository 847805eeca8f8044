//! Whatever is done and whenever the power is cut: what was acknowledged is there, as a plain map has it.

use super::*;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Put { stripe: u64, len: usize, seed: u8 },
    Delete { stripe: u64 },
    Checkpoint,
    Reopen,
    PowerCut { fates: u64, come_back: bool },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![12 => 1..12_000usize, 1 => 65_000..66_000usize];
    let step = prop_oneof![
        6 => (0..5u64, len, 0..2u8).prop_map(|(stripe, len, seed)| Step::Put { stripe, len, seed }),
        5 => (0..5u64).prop_map(|stripe| Step::Delete { stripe }),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Reopen),
        3 => (any::<u64>(), any::<bool>()).prop_map(|(fates, come_back)| Step::PowerCut { fates, come_back }),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_what_was_acknowledged_holds(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(check(steps));
    }
}

async fn check(steps: Vec<Step>) {
    let (mut root, mut store) = ready(SMALL).await;
    let (mut model, mut ever) = (BTreeMap::<u64, Bytes>::new(), BTreeMap::<u64, Bytes>::new());
    for step in steps {
        match step {
            Step::Put { stripe, len, seed } => {
                let data = content(len, seed);
                let result = put(&store, shard(stripe), &data).await;
                match model.get(&stripe).is_some_and(|held| *held != data) {
                    true => assert_eq!(result.expect_err("taken").kind(), Kind::Exists),
                    false => {
                        result.expect("put");
                        ever.insert(stripe, data.clone());
                        model.insert(stripe, data);
                    }
                }
            }
            Step::Delete { stripe } => {
                store.delete(vec![shard(stripe)]).await.expect("deletes");
                model.remove(&stripe);
            }
            Step::Checkpoint => checkpoint(&store).await,
            Step::Reopen => {
                store.close().await;
                drop(store);
                store = open(root.path(), SMALL);
            }
            Step::PowerCut { fates, come_back } => {
                let mut fates = fates;
                let copy = after_power_cut(&store, |_| {
                    fates = fates.rotate_left(2);
                    [Fate::Kept, Fate::Lost, Fate::Short, Fate::Zeros][(fates % 4) as usize]
                });
                if come_back {
                    bring_back(&copy, &ever);
                }
                store.close().await;
                drop(store);
                root = copy;
                store = open(root.path(), SMALL);
            }
        }
        for (&stripe, data) in &model {
            assert_eq!(get(&store, shard(stripe)).await.expect("held"), data, "shard {stripe}");
        }
        assert_eq!(store.list(None, 100).await.expect("lists").len(), model.len());
    }
    assert_eq!(store.load().expect("load").shards, model.len() as u64);
    store.close().await;
}

/// Files whose deletion is in the journal and did not reach the disk.
fn bring_back(copy: &TempDir, ever: &BTreeMap<u64, Bytes>) {
    let mut deleted = BTreeMap::new();
    let mut segments: Vec<_> = (0..2)
        .filter_map(|number| Segment::open(&copy.path().join(format!("journal/segment-{number}"))).expect("opens"))
        .map(|segment| (segment.epoch().expect("reads").expect("whole"), segment))
        .collect();
    segments.sort_by_key(|(epoch, _)| *epoch);
    for (epoch, segment) in segments {
        let (mut at, mut index) = (PAGE_BYTES as u64, 0);
        while let Some((found, _)) = segment.record(at, Place { epoch, index }).expect("reads") {
            deleted.insert(found.shard, found.change == Change::Delete);
            (at, index) = (at + found.padded_bytes() as u64, index + 1);
        }
    }
    for (&stripe, data) in ever {
        if deleted.get(&shard(stripe)) == Some(&true) {
            fs::write(
                copy.path().join(format!("data/0000000000000/{}", shard(stripe))),
                shard_file(shard(stripe), data),
            )
            .expect("writes");
        }
    }
}
