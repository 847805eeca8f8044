//! The main job: `torchfs demo`.

use std::process::Command;
use torchfs_tests::{binary, run, write_small_files};

#[test]
fn the_demo_verifies_a_folder_and_cleans_up() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (source, temporary) = (folder.path().join("source"), folder.path().join("tmp"));
    write_small_files(&source, 3, 40, 80_000);
    std::fs::create_dir(&temporary).expect("mkdir");
    let mut demo = Command::new(binary());
    let text = run(demo.arg("demo").arg(&source).env("TMPDIR", &temporary)).ok();
    assert!(text.contains("files/s") && text.contains("MB/s"), "a table: {text}");
    assert!(text.contains("120"), "every file is verified: {text}");
    let left: Vec<_> = std::fs::read_dir(&temporary).expect("lists").flatten().map(|entry| entry.path()).collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}
