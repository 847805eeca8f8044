//! Erasure codes at 4+2 against memcpy of the same content, all in one run. Throughput is content bytes per second.
//!
//! `content` is 1 MiB of content in all, `shard` is 1 MiB per shard. Decoding restores two lost data shards.
//! Run with `cargo bench -p torchfs-benches --bench erasure`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use torchfs_core::erasure::conformance::{bytes, encoded};
use torchfs_core::erasure::{ErasureCode, code};
use torchfs_core::layout::{Codec, Profile};

const DATA: u8 = 4;
const PARITY: u8 = 2;

struct Case {
    name: &'static str,
    shard_bytes: usize,
}

const CASES: [Case; 2] =
    [Case { name: "content", shard_bytes: (1 << 20) / DATA as usize }, Case { name: "shard", shard_bytes: 1 << 20 }];

fn codes() -> [(&'static str, std::sync::Arc<dyn ErasureCode>); 2] {
    let code_of = |codec| code(Profile { codec, data: DATA, parity: PARITY }).expect("4+2 is possible");
    [("gf8", code_of(Codec::Gf8)), ("novelpoly", code_of(Codec::Novelpoly))]
}

fn content(case: &Case) -> Vec<Vec<u8>> {
    (0..u64::from(DATA)).map(|shard| bytes(case.shard_bytes, shard)).collect()
}

fn memcpy(group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>, case: &Case) {
    let content = content(case).concat();
    let mut copy = vec![1; content.len()];
    group.bench_function(BenchmarkId::new("memcpy", case.name), |bencher| {
        bencher.iter(|| black_box(&mut copy).copy_from_slice(black_box(&content)));
    });
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode 4+2");
    group.sample_size(20);
    for case in &CASES {
        group.throughput(Throughput::Bytes((case.shard_bytes * DATA as usize) as u64));
        memcpy(&mut group, case);
        let content = content(case);
        let data: Vec<&[u8]> = content.iter().map(Vec::as_slice).collect();
        for (name, code) in codes() {
            let mut parity = vec![vec![1; case.shard_bytes]; PARITY as usize];
            group.bench_function(BenchmarkId::new(name, case.name), |bencher| {
                bencher.iter(|| {
                    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
                    code.encode(black_box(&data), black_box(&mut outputs)).expect("encode");
                });
            });
        }
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode of 2 lost, 4+2");
    group.sample_size(20);
    for case in &CASES {
        group.throughput(Throughput::Bytes((case.shard_bytes * DATA as usize) as u64));
        memcpy(&mut group, case);
        let content = content(case);
        let data: Vec<&[u8]> = content.iter().map(Vec::as_slice).collect();
        for (name, code) in codes() {
            let parity = encoded(code.as_ref(), &data, case.shard_bytes);
            let mut left: Vec<Option<&[u8]>> = data.iter().map(|shard| Some(*shard)).collect();
            left.extend(parity.iter().map(|shard| Some(shard.as_slice())));
            left[..2].fill(None);
            group.bench_function(BenchmarkId::new(name, case.name), |bencher| {
                bencher.iter(|| code.reconstruct(black_box(&left), case.shard_bytes, &[0, 1]).expect("decode"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, encode, decode);
criterion_main!(benches);
