//! The Rust examples run, as whoever copies from them runs them.

use std::path::{Path, PathBuf};
use std::process::Command;
use torchfs_tests::run;

/// An example's binary, of the same build as the tests.
fn example(name: &str) -> PathBuf {
    let tests = std::env::current_exe().expect("a test knows its own path");
    let folder = tests.parent().and_then(Path::parent).expect("target/<profile>/deps/<test>");
    let release = folder.ends_with("release").then_some("--release");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--workspace", "--example", name]).args(release);
    run(cargo.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))).ok();
    folder.join("examples").join(name)
}

#[test]
fn a_loader_with_a_store_of_its_own_has_its_files_before_it_opens_them() {
    let text = run(&mut Command::new(example("embed_loader"))).ok();
    let rows = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let column = |policy: &str, at: usize| -> Vec<u64> {
        let rows = rows.clone().filter(|row| row.first() == Some(&policy));
        rows.map(|row| row[at].parse().expect("a number")).collect()
    };
    const MISSES: usize = 4;
    const MEBIBYTES: usize = 5;
    let [first, second] = column("none", MISSES)[..] else { panic!("{text}") };
    assert!(first == 500 && (375..=385).contains(&second), "a quarter of them was kept: {text}");
    assert!(column("schedule", MISSES).iter().all(|&misses| misses <= 5), "{text}");
    assert_eq!(column("schedule", MEBIBYTES)[0], 31, "each byte once: {text}");
    assert!(column("schedule", MEBIBYTES)[1] <= 24, "what was kept is not fetched again: {text}");
    assert!(text.ends_with("every byte was right\n"), "{text}");
}

#[test]
fn the_other_examples_run() {
    run(&mut Command::new(example("embed"))).ok();
    run(&mut Command::new(example("erasure_only"))).ok();
}
