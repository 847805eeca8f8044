//! What a mount says of itself in `.torchfs`.

use serde_json::Value;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};
use torchfs_tests::{Mount, Noise, exit, mounted_or_skip, wait_until};

fn number(stats: &Value, pointer: &str) -> u64 {
    stats.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {pointer} in {stats}"))
}

/// By how much a counter grew.
fn grown(before: &Value, after: &Value, pointer: &str) -> u64 {
    number(after, pointer) - number(before, pointer)
}

#[test]
fn reading_again_is_a_hit_and_asks_no_storage_node() {
    let Some((cluster, mount)) = mounted_or_skip() else { return };
    let content = Noise::new(7).bytes(300_000);
    let source = cluster.dir().join("source");
    fs::write(&source, &content).expect("writes");
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/file"]).ok();
    let begin = mount.stats();
    assert!(fs::read(mount.join("file")).expect("reads") == content);
    let first = mount.stats();
    assert_eq!(grown(&begin, &first, "/opens"), 1, "reading the stats is not counted");
    assert!(grown(&begin, &first, "/cache/misses") >= 1, "{first}");
    assert_eq!(grown(&begin, &first, "/cache/storage_bytes"), 300_000);
    assert!(
        grown(&begin, &first, "/requests/storage_reads/requests") >= 1
            && number(&first, "/requests/storage_reads/p99_us") > 0
    );

    // The kernel's own pages of it are forgotten, so that the mount is asked.
    let file = fs::File::open(mount.join("file")).expect("opens");
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("advises");
    assert!(fs::read(mount.join("file")).expect("reads") == content);
    let second = mount.stats();
    assert!(grown(&first, &second, "/cache/hits") >= 1, "{second}");
    for nothing in ["/cache/misses", "/cache/storage_bytes", "/requests/storage_reads/requests"] {
        assert_eq!(grown(&first, &second, nothing), 0, "{nothing}");
    }

    let point = mount.path().to_str().expect("UTF-8").to_owned();
    let shown: Value = serde_json::from_str(&cluster.torchfs(["stats", &point, "--json"]).ok()).expect("JSON");
    assert_eq!(shown.pointer("/cache"), second.pointer("/cache"));
    let text = cluster.torchfs(["stats", &point]).ok();
    assert!(text.contains("storage reads") && text.contains("hits"), "{text}");
    // Any path inside tells which mount.
    let inside = cluster.torchfs(["stats", mount.join("file").to_str().expect("UTF-8")]).ok();
    assert!(inside.contains("storage reads"), "{inside}");
    let nowhere = cluster.torchfs(["stats", cluster.dir().to_str().expect("UTF-8")]).failed_with(exit::NOT_FOUND);
    assert!(nowhere.contains("in no mounted TorchFS"), "{nowhere}");
}

#[test]
fn mounts_that_share_a_cache_folder_fetch_a_file_once_between_them() {
    let Some((cluster, one)) = mounted_or_skip() else { return };
    let shared = format!("cache_dir={}", cluster.dir().join("mnt-cache").display());
    let two = Mount::start_with(&cluster, "two", &["-o", &shared]);
    let content = Noise::new(8).bytes(9_000_000);
    let source = cluster.dir().join("source");
    fs::write(&source, &content).expect("writes");
    cluster.torchfs(["put", source.to_str().expect("UTF-8"), "/file"]).ok();
    assert!(fs::read(one.join("file")).expect("reads") == content);
    wait_until("it is whole in the cache", || number(&one.stats(), "/cache/used_bytes") == 9_000_000);
    assert!(fs::read(two.join("file")).expect("reads") == content);
    let of_two = two.stats();
    assert_eq!(number(&of_two, "/cache/storage_bytes"), 0, "{of_two}");
    assert_eq!(number(&of_two, "/cache/sibling_bytes"), 9_000_000);
    let said = cluster.torchfs(["stats", two.path().to_str().expect("UTF-8")]).ok();
    assert!(said.contains("other mounts"), "{said}");
    // Each ends by itself, and a later one finds what it had.
    two.unmount();
    let again = Mount::start_with(&cluster, "two", &["-o", &shared]);
    assert!(fs::read(again.join("file")).expect("reads") == content);
    assert_eq!(number(&again.stats(), "/cache/sibling_bytes"), 0, "its own");
    again.unmount();
    one.unmount();
}

#[test]
fn the_folder_is_in_no_listing_and_cannot_be_changed() {
    let Some((_cluster, mount)) = mounted_or_skip() else { return };
    let names = |path: &str| {
        let entries = fs::read_dir(mount.join(path)).expect("lists");
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect::<Vec<_>>()
    };
    fs::write(mount.join("file"), "x").expect("writes");
    assert_eq!(names(""), ["file"]);
    assert_eq!(names(".torchfs"), ["control", "schedule", "stats", "trace", "version"]);
    let version = fs::read_to_string(mount.join(".torchfs/version")).expect("reads");
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));

    let refused =
        |result: std::io::Result<()>| assert_eq!(result.expect_err("refused").kind(), ErrorKind::PermissionDenied);
    let (folder, file) = (mount.join(".torchfs"), mount.join("file"));
    refused(fs::write(folder.join("stats"), "x"));
    refused(fs::write(folder.join("new"), "x"));
    refused(fs::remove_file(folder.join("stats")));
    refused(fs::rename(&file, folder.join("stats")));
    refused(fs::rename(folder.join("stats"), &file));
    refused(fs::hard_link(folder.join("version"), mount.join("link")));
    refused(fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)));
    assert_eq!(fs::create_dir(&folder).expect_err("is there").kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read_to_string(&file).expect("reads"), "x");
}

#[test]
fn a_mount_whose_cluster_is_gone_says_so_of_itself() {
    let Some((mut cluster, mount)) = mounted_or_skip() else { return };
    let point = mount.path().to_str().expect("UTF-8").to_owned();
    fs::write(mount.join("file"), "x").expect("writes");
    let opens = number(&mount.stats(), "/opens");
    cluster.kill_all();
    let gone = Instant::now();
    // By then neither the kernel nor the mount answers from what it was told.
    wait_until("they forget", || gone.elapsed() > Duration::from_secs(3));
    let stats: Value = serde_json::from_str(&cluster.torchfs(["stats", &point, "--json"]).ok()).expect("JSON");
    assert!(opens > 0 && number(&stats, "/opens") == opens, "{stats}");
    assert!(cluster.torchfs(["pin", &point, "--list"]).ok().starts_with("pinned "));
}
