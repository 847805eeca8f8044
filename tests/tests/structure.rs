//! Rules of the source tree that no compiler checks: which outside library may be known where.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a member of the workspace").to_owned()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("lists").flatten() {
        let path = entry.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.') || name == "target");
        match path.is_dir() {
            true if !hidden => sources(&path, found),
            false if path.extension().is_some_and(|extension| extension == "rs") => found.push(path),
            _ => (),
        }
    }
}

/// Every file that names `library::` in code, without the places that may.
fn strays(library: &str, allowed: &[&str]) -> Vec<String> {
    let (mut found, root) = (Vec::new(), root());
    sources(&root, &mut found);
    assert!(found.len() > 50, "the source tree was not found");
    let named = format!("{library}::");
    let names = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).expect("readable");
        text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(&named))
    };
    let relative = |path: PathBuf| path.strip_prefix(&root).expect("inside").to_string_lossy().into_owned();
    let strays = found.into_iter().filter(names).map(relative);
    strays.filter(|path| !allowed.iter().any(|allowed| path.starts_with(allowed))).collect()
}

#[test]
fn outside_libraries_stay_where_they_belong() {
    let none: Vec<String> = Vec::new();
    assert_eq!(strays("openraft", &["torchfs-meta/src/raft/"]), none);
    // kv/mod.rs names its own module of that name.
    assert_eq!(strays("fjall", &["torchfs-meta/src/kv/fjall", "torchfs-meta/src/kv/mod.rs"]), none);
    assert_eq!(strays("fuser", &["torchfs-fuse/src/"]), none);
    let services = ["torchfs-core/src/rpc/", "torchfs-meta/src/service.rs", "torchfs-store/src/service.rs"];
    assert_eq!(strays("tarpc", &services), none);
    assert_eq!(strays("reed_solomon_erasure", &["torchfs-core/src/erasure/gf8"]), none);
    // The bench measures the crate as it is, beside ours.
    assert_eq!(strays("reed_solomon_novelpoly", &["torchfs-core/src/erasure/novelpoly", "benches/"]), none);
    assert_eq!(strays("clap", &["torchfs-cli/"]), none);
}

/// torchfs-core is the SDK: it stands on nothing of the servers.
#[test]
fn the_library_depends_on_no_server_and_no_kernel_interface() {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["tree", "-p", "torchfs-core", "-e", "normal", "--prefix", "none", "--offline"]).current_dir(root());
    let tree = torchfs_tests::run(&mut cargo).ok();
    let names: Vec<&str> = tree.lines().filter_map(|line| line.split(' ').next()).collect();
    assert!(names.contains(&"tokio"), "{tree}");
    for absent in ["openraft", "fjall", "fuser", "clap", "torchfs-meta", "torchfs-store", "torchfs-fuse"] {
        assert!(!names.contains(&absent), "torchfs-core depends on {absent}");
    }
}

#[test]
fn the_papers_that_a_stranger_needs_are_there() {
    let papers = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE-APACHE", "LICENSE-MIT"];
    for name in papers.into_iter().chain(["docs/on-disk-format.md", "benches/README.md", ".ci/run"]) {
        let text = std::fs::read_to_string(root().join(name)).unwrap_or_default();
        assert!(text.len() > 100, "{name} is missing or empty");
    }
}
