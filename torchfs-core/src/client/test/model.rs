//! Random writes, cuts, copies, reads, commits and failures against a plain vector.

use super::{Rig, pattern};
use crate::client::{Client, File, set_aside};
use crate::error::Kind;
use crate::shard::fault::Fault;
use proptest::prelude::*;

const MIB: u64 = 1024 * 1024;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, usize),
    Truncate(u64),
    Punch(u64, usize),
    /// From, to, and how many bytes.
    Copy(u64, u64, usize),
    Read(u64, usize),
    Commit,
    FailedCommit,
    Reopen,
    CheckFromOutside,
}

/// Places around which something changes: blocks, shards, stripes, and the beginning.
fn place() -> impl Strategy<Value = u64> {
    let near = prop_oneof![Just(0), Just(64 * 1024), Just(MIB), Just(4 * MIB), Just(16 * MIB)];
    prop_oneof![3 => 0u64..20_000, 2 => (near, 0u64..200).prop_map(|(near, by)| (near + by).saturating_sub(100))]
}

fn step() -> impl Strategy<Value = Step> {
    let len = prop_oneof![4 => 1usize..30_000, 2 => 60_000usize..140_000, 1 => (MIB as usize)..(5 * MIB as usize)];
    prop_oneof![
        6 => (place(), len.clone()).prop_map(|(at, len)| Step::Write(at, len)),
        2 => place().prop_map(Step::Truncate),
        2 => (place(), len.clone()).prop_map(|(at, len)| Step::Punch(at, len)),
        2 => (place(), place(), len.clone()).prop_map(|(from, to, len)| Step::Copy(from, to, len)),
        3 => (place(), len).prop_map(|(at, len)| Step::Read(at, len)),
        2 => Just(Step::Commit),
        1 => Just(Step::FailedCommit),
        2 => Just(Step::Reopen),
        2 => Just(Step::CheckFromOutside),
    ]
}

async fn check(file: &File, model: &[u8], at: u64, len: usize) {
    let start = (at as usize).min(model.len());
    let end = (start + len).min(model.len());
    let bytes = file.read_at(at, len).await.expect("read");
    assert!(bytes == model[start..end], "bytes {start}..{end} of {}, got {}", model.len(), bytes.len());
}

async fn run(steps: Vec<Step>, cache_bytes: Option<u64>) {
    let rig = Rig::new().await;
    let outside = rig.client().await;
    let dir = tempfile::tempdir().expect("folder");
    let client = match cache_bytes {
        Some(bytes) => rig.client_with(Client::builder().cache_dir(dir.path()).cache_bytes(bytes)).await,
        None => rig.client().await,
    };
    let mut file = client.create("/f").await.expect("created");
    let (mut model, mut committed): (Vec<u8>, Vec<u8>) = Default::default();
    for (number, step) in steps.into_iter().enumerate() {
        match step {
            Step::Write(at, len) => {
                let data = pattern(number as u64 + 1, len);
                file.write_at(at, data.clone()).await.expect("written");
                let end = at as usize + len;
                model.resize(model.len().max(end), 0);
                model[at as usize..end].copy_from_slice(&data);
            }
            Step::Truncate(size) => {
                file.truncate(size).await.expect("cut");
                model.resize(size as usize, 0);
            }
            Step::Punch(at, len) => {
                file.punch(at..at + len as u64).expect("punched");
                let end = model.len().min(at as usize + len);
                model[end.min(at as usize)..end].fill(0);
                let data = file.next_data(at).unwrap_or(model.len() as u64);
                assert!(data >= end as u64, "data at {data} in a hole that ends at {end}");
                assert!((at as usize..end).is_empty() || file.next_hole(at) == Some(at));
            }
            Step::Copy(from, to, len) => {
                let start = (from as usize).min(model.len());
                let part = model[start..(start + len).min(model.len())].to_vec();
                let copied = file.copy_range(from, &file, to, len as u64);
                if from.abs_diff(to) < part.len() as u64 {
                    assert_eq!(copied.expect_err("overlaps").kind(), Kind::InvalidInput);
                } else {
                    assert_eq!(copied.expect("copied"), part.len() as u64);
                    let end = if part.is_empty() { 0 } else { to as usize + part.len() };
                    model.resize(model.len().max(end), 0);
                    model[end - part.len()..end].copy_from_slice(&part);
                }
            }
            Step::Read(at, len) => check(&file, &model, at, len).await,
            Step::Commit => {
                file.commit().await.expect("committed");
                committed.clone_from(&model);
            }
            Step::FailedCommit => {
                rig.meta.commit_faults.lock().expect("lock").push(Kind::Unavailable);
                rig.set_faults(2, Some(Fault::Fail(Kind::NoSpace)));
                let was_dirty = file.is_dirty();
                assert_eq!(file.commit().await.is_err(), was_dirty);
                rig.set_faults(0, None);
                rig.meta.commit_faults.lock().expect("lock").clear();
                if was_dirty && cache_bytes == Some(64 * MIB) {
                    let aside = set_aside(dir.path()).expect("lists").pop().expect("it is set aside");
                    outside.recover(&aside, Some(b"/recovered")).await.expect("stored");
                    assert!(outside.read_file("/recovered").await.expect("read") == model, "what was set aside");
                }
            }
            Step::Reopen => {
                drop(file);
                file = client.create("/f").await.expect("opened");
                model.clone_from(&committed);
            }
            Step::CheckFromOutside => {
                assert!(outside.read_file("/f").await.expect("read") == committed, "what others see");
            }
        }
        assert_eq!(file.attr().size, model.len() as u64);
    }
    check(&file, &model, 0, model.len() + 1).await;
    file.commit().await.expect("committed");
    assert!(outside.read_file("/f").await.expect("read") == model);
    check(&file, &model, 0, model.len() + 1).await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn a_file_is_what_was_written(
        steps in prop::collection::vec(step(), 1..24),
        cache_bytes in prop_oneof![Just(None), Just(Some(2 * MIB)), Just(Some(64 * MIB))],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("runtime").block_on(run(steps, cache_bytes));
    }
}
