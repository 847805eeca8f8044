//! Metadata against the disk's own speed: `cargo bench -p torchfs-benches --bench meta`.
//!
//! Three metadata nodes in this process, on loopback and one disk. The baseline is how often per second a small append to
//! one file can be synchronised (fdatasync) on the same disk, in the same run. An append that makes a file longer costs the
//! file system a commit of its own, which the metadata log avoids by writing into a file of fixed length: that is how one
//! mkdir, with one synchronised write on each of three nodes at once, can cost less than one synchronised append.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use torchfs_core::layout::Profile;
use torchfs_core::meta::{IfExists, MetaOp, MetaSession, MetaStore, Name, NewInode, NewKind};
use torchfs_core::rpc::MetaClient;
use torchfs_core::{InodeId, MetaId};
use torchfs_meta::{MetaConfig, MetaNode};

const NODES: u64 = 3;
const FOR: Duration = Duration::from_secs(5);
const BATCH: usize = 500;
const CLIENTS: usize = 32;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(Box::pin(measure()));
}

async fn measure() {
    let folder = tempfile::tempdir_in(std::env::var("TORCHFS_BENCH_DIR").unwrap_or_else(|_| ".".into()));
    let folder = folder.expect("a folder on the disk to measure; set TORCHFS_BENCH_DIR");
    let before = syncs_per_second(folder.path());
    let (nodes, session) = cluster(folder.path()).await;

    let sequential = rate(|number| mkdir(session.clone(), format!("one-{number}"))).await;
    let concurrent = many_clients(&session).await;
    let batched = BATCH as f64 * rate(|number| create_batch(session.clone(), number)).await;
    let looked_up = rate(|_| stat(session.clone())).await;

    let after = syncs_per_second(folder.path());
    let disk = before.midpoint(after);
    println!("disk: {before:.0} fdatasync/s before, {after:.0} after");
    println!("{:<44}{:>12}{:>16}", "what", "per second", "of fdatasync/s");
    for (what, rate) in [
        ("mkdir, one after the other", sequential),
        ("mkdir, 32 at a time", concurrent),
        ("creates in batches of 500", batched),
        ("stat, one after the other", looked_up),
    ] {
        println!("{what:<44}{rate:>12.0}{:>16.2}", rate / disk);
    }
    for node in nodes {
        node.shutdown().await;
    }
}

/// Small appends to one file, each on disk before the next.
fn syncs_per_second(folder: &Path) -> f64 {
    let mut file = File::create(folder.join("baseline")).expect("a file");
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < FOR / 2 {
        file.write_all(&[0; 256]).expect("writes");
        file.sync_data().expect("syncs");
        count += 1;
    }
    f64::from(count) / begin.elapsed().as_secs_f64()
}

async fn cluster(folder: &Path) -> (Vec<MetaNode>, MetaSession) {
    let mut listeners = BTreeMap::new();
    for id in 1..=NODES {
        listeners.insert(MetaId(id), TcpListener::bind("127.0.0.1:0").await.expect("binds"));
    }
    let addr = |listener: &TcpListener| listener.local_addr().expect("an address").to_string();
    let peers: BTreeMap<MetaId, String> = listeners.iter().map(|(&id, listener)| (id, addr(listener))).collect();
    let mut nodes = Vec::new();
    for (id, listener) in listeners {
        let data = folder.join(format!("meta-{id}"));
        let config = MetaConfig { id, peers: peers.clone(), data, profile: Profile::DEFAULT };
        nodes.push(MetaNode::start(config, listener).await.expect("starts"));
    }
    let client = MetaClient::connect(peers.into_values().collect(), None).await.expect("connects");
    (nodes, MetaSession::new(Arc::new(client) as Arc<dyn MetaStore>))
}

/// How often per second `work` can be done one after the other.
async fn rate<F: Future<Output = ()>>(work: impl Fn(u64) -> F) -> f64 {
    let begin = Instant::now();
    let mut count = 0;
    while begin.elapsed() < FOR {
        work(count).await;
        count += 1;
    }
    count as f64 / begin.elapsed().as_secs_f64()
}

async fn many_clients(session: &MetaSession) -> f64 {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let session = session.clone();
        clients.spawn(async move { rate(|number| mkdir(session.clone(), format!("{client}-{number}"))).await });
    }
    clients.join_all().await.into_iter().sum()
}

fn inode(kind: NewKind) -> NewInode {
    NewInode { kind, mode: 0o755, uid: 0, gid: 0, mtime: None }
}

fn name(text: String) -> Name {
    Name::new(text).expect("a name")
}

async fn mkdir(session: MetaSession, text: String) {
    let folder = inode(NewKind::Directory);
    session.create(InodeId::ROOT, name(text), folder, IfExists::Fail).await.expect("creates");
}

async fn create_batch(session: MetaSession, number: u64) {
    let create = |at: usize| MetaOp::Create {
        parent: InodeId::ROOT,
        name: name(format!("file-{number:06}-{at:03}")),
        inode: inode(NewKind::File),
        if_exists: IfExists::Fail,
        content: None,
    };
    let replies = session.batch((0..BATCH).map(create).collect()).await.expect("a batch");
    assert!(replies.iter().all(Result::is_ok));
}

async fn stat(session: MetaSession) {
    session.attr(InodeId::ROOT).await.expect("stats");
}
