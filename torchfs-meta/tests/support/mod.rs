//! A metadata cluster in this process: real TCP, real Raft, real disks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::net::TcpListener;
use torchfs_core::layout::Profile;
use torchfs_core::meta::{IfExists, MetaSession, MetaStore, Name, NewInode, NewKind};
use torchfs_core::rpc::MetaClient;
use torchfs_core::{InodeId, MetaId};
use torchfs_meta::{MetaConfig, MetaNode, MetaSettings};

/// No wait of a test is longer; on a busy machine an election may need several rounds.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Some metadata nodes, some of them running.
pub struct Cluster {
    pub folder: TempDir,
    pub peers: BTreeMap<MetaId, String>,
    pub settings: MetaSettings,
    pub nodes: BTreeMap<MetaId, MetaNode>,
}

impl Cluster {
    /// Starts `count` nodes.
    pub async fn start(count: u64, settings: MetaSettings) -> Cluster {
        let folder = tempfile::tempdir().expect("folder");
        let mut listeners = Vec::new();
        let mut peers = BTreeMap::new();
        for id in 1..=count {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
            peers.insert(MetaId(id), listener.local_addr().expect("addr").to_string());
            listeners.push((MetaId(id), listener));
        }
        let mut cluster = Cluster { folder, peers, settings, nodes: BTreeMap::new() };
        for (id, listener) in listeners {
            cluster.start_on(id, listener).await;
        }
        cluster
    }

    pub fn data(&self, id: MetaId) -> PathBuf {
        self.folder.path().join(format!("meta-{id}"))
    }

    pub fn config(&self, id: MetaId) -> MetaConfig {
        MetaConfig { id, peers: self.peers.clone(), data: self.data(id), profile: Profile::DEFAULT }
    }

    async fn start_on(&mut self, id: MetaId, listener: TcpListener) {
        let node = MetaNode::start_with(self.config(id), self.settings, listener).await.expect("starts");
        self.nodes.insert(id, node);
    }

    /// Starts a node that is not running, where it was before.
    pub async fn restart(&mut self, id: MetaId) {
        let begin = Instant::now();
        let listener = loop {
            match TcpListener::bind(&self.peers[&id]).await {
                Ok(listener) => break listener,
                Err(error) => assert!(begin.elapsed() < PATIENCE, "the port is not free again: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        // A node that was dropped frees its folder a moment later.
        let node = loop {
            let listener = TcpListener::from_std(clone(&listener)).expect("listener");
            match MetaNode::start_with(self.config(id), self.settings, listener).await {
                Ok(node) => break node,
                Err(error) => assert!(begin.elapsed() < PATIENCE, "the node does not start again: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        self.nodes.insert(id, node);
    }

    /// Stops a node gently.
    pub async fn stop(&mut self, id: MetaId) {
        self.nodes.remove(&id).expect("runs").shutdown().await;
    }

    /// Stops a node without letting it do anything more.
    pub fn kill(&mut self, id: MetaId) {
        drop(self.nodes.remove(&id).expect("runs"));
    }

    pub async fn stop_all(&mut self) {
        for (_, node) in std::mem::take(&mut self.nodes) {
            node.shutdown().await;
        }
    }

    /// A client of all nodes, running or not.
    pub async fn client(&self) -> Arc<MetaClient> {
        let addrs: Vec<String> = self.peers.values().cloned().collect();
        let begin = Instant::now();
        loop {
            match MetaClient::connect(addrs.clone(), None).await {
                Ok(client) => return Arc::new(client),
                Err(error) => assert!(begin.elapsed() < PATIENCE, "no client can connect: {error}"),
            }
        }
    }

    pub async fn session(&self) -> MetaSession {
        MetaSession::new(self.client().await as Arc<dyn MetaStore>)
    }

    /// The node that leads, once the running nodes agree on one of them.
    pub async fn leader(&self) -> MetaId {
        let begin = Instant::now();
        loop {
            let leaders: Vec<_> = self.nodes.values().map(MetaNode::leader).collect();
            if let Some(Some(leader)) = leaders.first()
                && self.nodes.contains_key(leader)
                && leaders.iter().all(|other| other == &Some(*leader))
            {
                return *leader;
            }
            assert!(begin.elapsed() < PATIENCE, "no leader: {leaders:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all running nodes have applied the same entries.
    pub async fn settle(&self) {
        let begin = Instant::now();
        loop {
            let applied: Vec<_> = self.nodes.values().map(|node| node.consensus().applied()).collect();
            if applied.iter().all(|index| index == &applied[0]) {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "the nodes stay apart: {applied:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn clone(listener: &TcpListener) -> std::net::TcpListener {
    use std::os::fd::AsFd;
    listener.as_fd().try_clone_to_owned().expect("clones").into()
}

/// Makes a folder in the root.
pub async fn mkdir(session: &MetaSession, text: &str) {
    let made = session.create(InodeId::ROOT, name(text), folder(), IfExists::Fail);
    tokio::time::timeout(PATIENCE, made).await.expect("in time").expect("creates");
}

/// The names in the root.
pub async fn names(session: &MetaSession) -> BTreeSet<String> {
    let listing = session.list(InodeId::ROOT, None, 4096).await.expect("lists");
    assert!(!listing.more);
    listing.entries.iter().map(|entry| entry.name.to_string()).collect()
}

pub fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

pub fn folder() -> NewInode {
    NewInode { kind: NewKind::Directory, mode: 0o755, uid: 0, gid: 0, mtime: None }
}
