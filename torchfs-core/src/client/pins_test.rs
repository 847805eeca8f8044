//! What whoever pins files notices: they are there, they stay, also after a restart, and they are never old.

use super::*;
use crate::client::ClientBuilder;
use crate::client::test::{Rig, pattern};
use crate::shard::fault::Fault;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);
const FILE_BYTES: usize = 3000;
const LIMIT: u64 = 20 * FILE_BYTES as u64;

struct Cached {
    rig: Rig,
    client: Option<Client>,
    dir: TempDir,
}

fn content(path: &str) -> Vec<u8> {
    pattern(path.bytes().map(u64::from).sum::<u64>() + 1, FILE_BYTES).to_vec()
}

impl Cached {
    /// Ten files in /kept and forty in /others, and a cache for twenty.
    async fn new() -> Cached {
        let (rig, dir) = (Rig::new().await, tempfile::tempdir().expect("folder"));
        let mut cached = Cached { rig, client: None, dir };
        cached.restart().await;
        for path in files("/kept", 10).chain(files("/others", 40)) {
            cached.client().mkdir_all(path.rsplit_once('/').expect("a folder").0).await.expect("made");
            cached.client().write_file(&path, content(&path)).await.expect("written");
        }
        cached
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder().cache_dir(self.dir.path()).cache_bytes(LIMIT)
    }

    async fn restart(&mut self) {
        self.client = None;
        // Tasks that were under way let go of the folder a moment later.
        let again = async {
            loop {
                let client = self.rig.client_with(self.builder()).await;
                if client.cache_dir() == Some(self.dir.path()) {
                    return client;
                }
                drop(client);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        self.client = Some(tokio::time::timeout(DEADLINE, again).await.expect("the folder is free"));
    }

    fn client(&self) -> &Client {
        self.client.as_ref().expect("it runs")
    }

    async fn read(&self, path: &str) {
        let data = tokio::time::timeout(DEADLINE, self.client().read_file(path)).await.expect("in time");
        assert!(data.expect("read") == content(path), "{path}");
        self.client().inner.cache.as_ref().expect("a cache").settle().await;
    }

    async fn read_others(&self) {
        for path in files("/others", 40) {
            self.read(&path).await;
        }
    }

    async fn wait_for(&self, what: &str, is_so: impl Fn(&[Pin]) -> bool) {
        let waiting = async {
            while !is_so(&self.client().pins().await.expect("a cache")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.unwrap_or_else(|_| panic!("waited in vain until {what}"));
    }

    fn pinned_bytes(&self) -> u64 {
        self.client().cache_stats().expect("a cache").pinned_bytes
    }
}

fn files(folder: &'static str, count: usize) -> impl Iterator<Item = String> {
    (0..count).map(move |file| format!("{folder}/{file:03}"))
}

fn are_there(pins: &[Pin]) -> bool {
    !pins.is_empty() && pins.iter().all(|pin| pin.warmth.is_complete() && pin.warmth.files > 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_pinned_is_fetched_and_stays_until_it_is_unpinned() {
    let mut cached = Cached::new().await;
    cached.client().pin("/kept/").await.expect("pinned");
    cached.wait_for("all is there", are_there).await;
    assert_eq!(cached.pinned_bytes(), 10 * FILE_BYTES as u64);
    for _ in 0..2 {
        cached.read_others().await;
        cached.restart().await;
        // Before it can be known which files are pinned, too.
        cached.read_others().await;
    }
    cached.wait_for("all is there", are_there).await;
    let stats = cached.client().cache_stats().expect("a cache");
    assert!(stats.used_bytes <= LIMIT && stats.pinned_files == 10, "{stats:?}");
    cached.rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    for path in files("/kept", 10) {
        cached.read(&path).await;
    }
    cached.rig.set_faults(0, None);

    cached.client().unpin("kept").await.expect("unpinned");
    assert_eq!((cached.pinned_bytes(), cached.client().pins().await.expect("a cache")), (0, Vec::new()));
    cached.read_others().await;
    let warmth = cached.client().warmth(crate::WarmOrder::below("/kept")).await.expect("listed");
    assert_eq!(warmth.cached_files, 0, "they left as others did");
    cached.restart().await;
    assert!(cached.client().pins().await.expect("a cache").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_there_is_room_for_is_refused_with_numbers() {
    let cached = Cached::new().await;
    let error = cached.client().pin("/others").await.expect_err("twice as much");
    let message = error.to_string();
    assert_eq!(error.kind(), Kind::NoSpace);
    assert!(message.contains("/others") && message.contains("120000") && message.contains("60000"), "{message}");
    cached.client().pin("/kept").await.expect("fits");
    for path in files("/others", 10) {
        cached.client().pin(&path).await.expect("fits");
    }
    let error = cached.client().pin("/others/010").await.expect_err("one more");
    assert!(error.kind() == Kind::NoSpace && error.to_string().contains("now 60000"), "{error}");
    assert_eq!(cached.client().pins().await.expect("a cache").len(), 11);
    // Nothing else finds a place, and all can be read.
    cached.wait_for("all is there", are_there).await;
    cached.read_others().await;
    assert_eq!(cached.pinned_bytes(), LIMIT);
    // What is in a folder that is pinned takes no further room.
    cached.client().pin("/kept/003").await.expect("fits");
    for (path, kind, said) in [
        ("/none", Kind::NotFound, "/none"),
        ("/others", Kind::NotFound, "not pinned"),
        ("/kept/004", Kind::NotFound, "/kept, which"),
    ] {
        let done = if path == "/none" { cached.client().pin(path).await } else { cached.client().unpin(path).await };
        let error = done.expect_err(path);
        assert!(error.kind() == kind && error.to_string().contains(said), "{error}");
    }
    assert_eq!(cached.rig.client().await.pin("/kept").await.expect_err("no cache").kind(), Kind::Unsupported);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_replace_add_or_remove_is_followed() {
    let cached = Cached::new().await;
    cached.client().pin("/kept").await.expect("pinned");
    cached.wait_for("all is there", are_there).await;
    let other = cached.rig.client().await;
    other.write_file("/kept/new", content("/kept/new")).await.expect("written");
    other.unlink("/kept/000").await.expect("removed");
    // In place, and under the same name.
    let file = other.create("/kept/001").await.expect("opened");
    file.write_at(0, "changed".into()).await.expect("written");
    file.commit().await.expect("committed");
    other.write_file("/kept/002", "another").await.expect("replaced");
    assert!(cached.client().read_file("/kept/001").await.expect("read").starts_with(b"changed"), "never the old one");
    assert_eq!(cached.client().read_file("/kept/002").await.expect("read"), "another");
    let bytes = 9 * FILE_BYTES as u64 + 7;
    cached.wait_for("it is followed", |pins| pins[0].warmth.is_complete() && pins[0].warmth.bytes == bytes).await;
    let is_exact = async {
        while cached.pinned_bytes() != bytes {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(DEADLINE, is_exact).await.expect("old versions are gone");
    cached.rig.set_faults(0, Some(Fault::Fail(Kind::Unavailable)));
    cached.read("/kept/new").await;
}
