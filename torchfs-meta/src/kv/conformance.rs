//! What every [`Kv`] must do, checked against a plain ordered map.

use super::{Durability, Kv, KvRead, WriteBatch};
use std::collections::BTreeMap;

type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// Runs the suite on stores made by `make`, each of which is empty; what comes with the store is kept as long as it.
///
/// # Panics
/// If the store does not conform.
pub fn run<K: Kv, G>(make: impl Fn() -> (G, K)) {
    batches_are_applied_in_order(&make().1);
    scans_are_ordered_and_bounded(&make().1);
    views_do_not_move(&make().1);
    random_work_equals_the_model(&make().1);
}

fn write(kv: &impl Kv, changes: &[(&[u8], Option<&[u8]>)], durability: Durability) {
    let changes = changes.iter().map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
    kv.write(WriteBatch { changes }, durability).expect("writes");
}

fn dump(read: &(impl KvRead + ?Sized)) -> Model {
    read.scan(&[], &[0xff; 9], usize::MAX).expect("scans").into_iter().collect()
}

fn batches_are_applied_in_order(kv: &impl Kv) {
    write(kv, &[], Durability::Disk);
    write(kv, &[(b"a", Some(b"1")), (b"b", Some(b"2")), (b"a", Some(b"3")), (b"b", None)], Durability::Process);
    assert_eq!(kv.get(b"a").expect("reads"), Some(b"3".to_vec()));
    assert_eq!(kv.get(b"b").expect("reads"), None);
    write(kv, &[(b"a", None), (b"b", Some(b"")), (b"a", Some(b"4"))], Durability::Disk);
    assert_eq!(kv.get(b"a").expect("reads"), Some(b"4".to_vec()));
    assert_eq!(kv.get(b"b").expect("reads"), Some(Vec::new()), "an empty value is a value");
    assert_eq!(kv.get(b"").expect("reads"), None);
}

fn scans_are_ordered_and_bounded(kv: &impl Kv) {
    write(
        kv,
        &[(b"b", Some(b"2")), (b"a", Some(b"1")), (b"a\0", Some(b"3")), (b"\xff", Some(b"4"))],
        Durability::Process,
    );
    let keys = |from: &[u8], to: &[u8], limit| -> Vec<Vec<u8>> {
        kv.scan(from, to, limit).expect("scans").into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(b"a", b"b", 10), [b"a".to_vec(), b"a\0".to_vec()], "the end is not included");
    assert_eq!(keys(b"", b"\xff\xff", 10).len(), 4);
    assert_eq!(keys(b"", b"\xff\xff", 2), [b"a".to_vec(), b"a\0".to_vec()]);
    assert!(keys(b"b", b"a", 10).is_empty() && keys(b"a", b"a", 10).is_empty() && keys(b"", b"z", 0).is_empty());
}

fn views_do_not_move(kv: &impl Kv) {
    write(kv, &[(b"a", Some(b"1")), (b"b", Some(b"2"))], Durability::Process);
    let view = kv.view().expect("view");
    write(kv, &[(b"a", Some(b"9")), (b"b", None), (b"c", Some(b"3"))], Durability::Process);
    assert_eq!(view.get(b"a").expect("reads"), Some(b"1".to_vec()));
    assert_eq!(dump(&*view).len(), 2);
    assert_eq!(view.get(b"c").expect("reads"), None);
    assert_eq!(dump(kv).keys().collect::<Vec<_>>(), [b"a", b"c"]);
}

fn random_work_equals_the_model(kv: &impl Kv) {
    let mut random = 1u64;
    let mut next = |bound: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut model = Model::new();
    for round in 0..400 {
        let mut changes = Vec::new();
        for _ in 0..next(20) {
            let key = vec![next(8) as u8, next(8) as u8];
            let value = (next(3) > 0).then(|| vec![round as u8; next(50) as usize]);
            match &value {
                Some(value) => model.insert(key.clone(), value.clone()),
                None => model.remove(&key),
            };
            changes.push((key, value));
        }
        kv.write(WriteBatch { changes }, Durability::Process).expect("writes");
        if round % 40 == 0 {
            assert_eq!(dump(kv), model);
        }
    }
    assert_eq!(dump(kv), model);
    assert_eq!(dump(&*kv.view().expect("view")), model);
}
