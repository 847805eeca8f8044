//! The main job: `torchfs demo`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;
use torchfs_tests::{Finished, binary, fuse_or_skip, mounts_below, run, wait_until, write_small_files};

/// What the shell says of a command that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// A folder to show, and one for everything temporary, which must be empty afterwards.
struct Rig {
    folder: TempDir,
}

impl Rig {
    fn new() -> Self {
        let rig = Rig { folder: tempfile::tempdir().expect("a temporary folder") };
        write_small_files(&rig.source(), 3, 40, 80_000);
        std::fs::create_dir(rig.temporary()).expect("mkdir");
        rig
    }

    fn source(&self) -> PathBuf {
        self.folder.path().join("source")
    }

    fn temporary(&self) -> PathBuf {
        self.folder.path().join("tmp")
    }

    /// `demo` with what comes before it on the command line.
    fn demo(&self, before: &[&str]) -> Command {
        let words: Vec<&str> = before.iter().copied().chain([binary().to_str().expect("UTF-8")]).collect();
        let mut demo = Command::new(words[0]);
        demo.args(&words[1..]).arg("demo").arg(self.source()).env("TMPDIR", self.temporary());
        demo
    }

    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(mounts_below(&self.temporary()), Vec::<PathBuf>::new());
        let left: Vec<_> =
            std::fs::read_dir(self.temporary()).expect("lists").flatten().map(|entry| entry.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

#[track_caller]
fn assert_verified(demo: Finished) -> String {
    assert_eq!(demo.stderr, "", "a demo that goes well says nothing on stderr");
    let text = demo.ok();
    assert!(text.contains("files/s") && text.contains("MB/s"), "a table: {text}");
    assert!(text.contains("120 of 120"), "every file is verified: {text}");
    text
}

#[test]
fn the_demo_verifies_a_folder_and_cleans_up() {
    let rig = Rig::new();
    let text = assert_verified(run(&mut rig.demo(&[])));
    assert_eq!(text.contains("through a mount"), Path::new("/dev/fuse").exists(), "{text}");
    rig.assert_clean();
}

#[test]
fn the_demo_reads_through_the_library_where_there_is_no_fuse() {
    // An empty /dev that nobody else sees.
    let hide = ["unshare", "-m", "sh", "-c", "mount -t tmpfs tmpfs /dev && exec \"$@\"", "sh"];
    if run(Command::new(hide[0]).args(&hide[1..]).arg("true")).code != Some(0) {
        println!("skipped: hiding /dev/fuse needs root");
        return;
    }
    let rig = Rig::new();
    let text = assert_verified(run(&mut rig.demo(&hide)));
    assert!(text.contains("through the library") && text.contains("there is no /dev/fuse"), "{text}");
    rig.assert_clean();
}

/// Interrupts the demo when `is_time`, and expects that nothing is left.
fn interrupt(rig: &Rig, is_time: impl Fn() -> bool) {
    let mut demo = rig.demo(&[]);
    let mut demo = demo.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts");
    wait_until("it is time to interrupt", || is_time() || demo.try_wait().expect("asks").is_some());
    let pid = rustix::process::Pid::from_child(&demo);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it still runs");
    wait_until("the demo ends", || demo.try_wait().expect("asks").is_some());
    assert_eq!(demo.wait().expect("has ended").code(), Some(INTERRUPTED));
    rig.assert_clean();
}

#[test]
fn an_interrupted_demo_cleans_up() {
    let rig = Rig::new();
    let has_begun = || std::fs::read_dir(rig.temporary()).expect("lists").next().is_some();
    interrupt(&rig, has_begun);
    if fuse_or_skip() {
        interrupt(&rig, || !mounts_below(&rig.temporary()).is_empty());
    }
    assert_eq!(std::fs::read_dir(rig.source()).expect("lists").count(), 3, "the source is as it was");
}
