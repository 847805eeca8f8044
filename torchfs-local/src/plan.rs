//! Which nodes a local cluster has and where they listen: decided once, written to the data folder, and kept, because
//! the nodes' own folders hold each other's addresses.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use tokio::net::TcpListener;
use torchfs_core::folder::{foreign_entry, replace_file};
use torchfs_core::layout::Profile;
use torchfs_core::{Error, Kind, Result};

/// First line of the file; the number changes with the format.
const MAGIC: &str = "torchfs local cluster 1";

const FILE: &str = "local-cluster";

const DEFAULT_METAS: usize = 3;
const DEFAULT_STORES: usize = 6;

/// Free ports are drawn from here: below the range that Linux gives to outgoing connections, so that nobody gets the
/// port of a node that is stopped for a while.
const FREE_PORTS: std::ops::Range<u16> = 10_000..32_000;

/// Draws before giving up; each fails only if somebody else has just this port.
const FREE_PORT_DRAWS: usize = 1000;

/// A folder that holds something else is not for a cluster.
fn refuse_foreign(data: &Path) -> Result<()> {
    // The plan is written first: folders of nodes without one are what an interrupted first start leaves.
    let ours = ["meta-", "store-", FILE];
    match foreign_entry(data, |name| ours.iter().any(|start| name.as_bytes().starts_with(start.as_bytes())))? {
        None => Ok(()),
        Some(name) => {
            let message = format!("{} holds no cluster but {name}: choose an empty or new folder", data.display());
            Err(Error::new(Kind::InvalidInput, message))
        }
    }
}

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    pub metas: Option<usize>,
    pub stores: Option<usize>,
    pub profile: Option<Profile>,
    pub port: Option<u16>,
}

/// The nodes by number (from 1, in order).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub profile: Profile,
    pub metas: Vec<SocketAddr>,
    pub stores: Vec<SocketAddr>,
}

/// A plan with the sockets of its nodes, all of which could be had.
#[derive(Debug)]
pub(crate) struct Bound {
    pub plan: Plan,
    pub metas: Vec<TcpListener>,
    pub stores: Vec<TcpListener>,
}

impl Plan {
    /// Makes the plan, or takes the one that the folder has; listens on all its addresses; and writes it down.
    pub(crate) async fn make(data: &Path, wishes: &Wishes) -> Result<Bound> {
        let mut bound = match Plan::read(data)? {
            Some(plan) => plan.checked(data, wishes)?.bind().await?,
            None => {
                refuse_foreign(data)?;
                Plan::bind_new(wishes).await?
            }
        };
        while bound.plan.stores.len() < wishes.stores.unwrap_or(0) {
            let last = bound.plan.stores.last().or(bound.plan.metas.last()).map_or(0, SocketAddr::port);
            bound.add_store(wishes.port.and(last.checked_add(1))).await?;
        }
        bound.plan.write(data)?;
        Ok(bound)
    }

    fn checked(self, data: &Path, wishes: &Wishes) -> Result<Plan> {
        let refuse = |what: String| {
            let message = format!("{} holds a cluster with {what}", data.display());
            Err(Error::new(Kind::InvalidInput, message))
        };
        let (metas, stores) = (self.metas.len(), self.stores.len());
        let port = self.metas[0].port();
        match wishes {
            Wishes { metas: Some(asked), .. } if *asked != metas => {
                refuse(format!("{metas} metadata nodes, not {asked}"))
            }
            Wishes { stores: Some(asked), .. } if *asked < stores => {
                refuse(format!("{stores} storage nodes, not {asked}: they hold parts of its files"))
            }
            Wishes { port: Some(asked), .. } if *asked != port => refuse(format!("ports from {port}, not {asked}")),
            Wishes { profile: Some(asked), .. } if *asked != self.profile => {
                refuse(format!("profile {}, not {asked}: `torchfs policy set` changes it", self.profile))
            }
            _ => Ok(self),
        }
    }

    async fn bind(self) -> Result<Bound> {
        let mut bound = Bound { plan: self.clone(), metas: Vec::new(), stores: Vec::new() };
        for (number, addr) in (1..).zip(&self.metas) {
            bound.metas.push(listen(&format!("meta-{number}"), *addr).await?);
        }
        for (number, addr) in (1..).zip(&self.stores) {
            bound.stores.push(listen(&format!("store-{number}"), *addr).await?);
        }
        Ok(bound)
    }

    async fn bind_new(wishes: &Wishes) -> Result<Bound> {
        let profile = wishes.profile.unwrap_or(Profile::DEFAULT).checked()?;
        let (metas, stores) = (wishes.metas.unwrap_or(DEFAULT_METAS), wishes.stores.unwrap_or(DEFAULT_STORES));
        if metas == 0 {
            return Err(Error::new(Kind::InvalidInput, "a cluster needs at least one metadata node"));
        }
        if let Some(port) = wishes.port.filter(|port| usize::from(u16::MAX - port) + 1 < metas + stores) {
            let nodes = metas + stores;
            let message = format!("{nodes} nodes need the ports from {port} up and there are none past {}", u16::MAX);
            return Err(Error::new(Kind::InvalidInput, message));
        }
        let plan = Plan { profile, metas: Vec::new(), stores: Vec::new() };
        let mut bound = Bound { plan, metas: Vec::new(), stores: Vec::new() };
        let mut port = wishes.port;
        for number in 1..=metas {
            let (addr, listener) = listen_new(&format!("meta-{number}"), port).await?;
            bound.plan.metas.push(addr);
            bound.metas.push(listener);
            port = port.and(addr.port().checked_add(1));
        }
        for _ in 0..stores {
            bound.add_store(port).await?;
            port = port.and_then(|port| port.checked_add(1));
        }
        Ok(bound)
    }

    /// Whether the folder has a plan.
    pub(crate) fn is_in(data: &Path) -> bool {
        data.join(FILE).exists()
    }

    fn read(data: &Path) -> Result<Option<Plan>> {
        let path = data.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(format!("read {}", path.display()), error)),
        };
        let damaged = || Error::new(Kind::Protocol, format!("{} is not what this version writes", path.display()));
        Plan::parse(&text).map(Some).ok_or_else(damaged)
    }

    fn parse(text: &str) -> Option<Plan> {
        let mut lines = text.lines();
        if lines.next()? != MAGIC {
            return None;
        }
        let mut plan = Plan { profile: Profile::DEFAULT, metas: Vec::new(), stores: Vec::new() };
        for line in lines {
            match line.split_once(' ')? {
                ("profile", value) => plan.profile = value.parse().ok()?,
                ("meta", value) => plan.metas.push(value.parse().ok()?),
                ("store", value) => plan.stores.push(value.parse().ok()?),
                _ => return None,
            }
        }
        (!plan.metas.is_empty()).then_some(plan)
    }

    fn text(&self) -> String {
        let mut text = format!("{MAGIC}\nprofile {}\n", self.profile);
        self.metas.iter().for_each(|addr| text.push_str(&format!("meta {addr}\n")));
        self.stores.iter().for_each(|addr| text.push_str(&format!("store {addr}\n")));
        text
    }

    fn write(&self, data: &Path) -> Result<()> {
        let path = data.join(FILE);
        replace_file(&path, &path.with_extension("new"), self.text().as_bytes())
    }
}

impl Bound {
    async fn add_store(&mut self, port: Option<u16>) -> Result<()> {
        let name = format!("store-{}", self.plan.stores.len() + 1);
        let (addr, listener) = listen_new(&name, port).await?;
        self.plan.stores.push(addr);
        self.stores.push(listener);
        Ok(())
    }
}

/// Listens for a node. The error names both.
pub(crate) async fn listen(node: &str, addr: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(addr).await.map_err(|error| {
        let in_use = error.kind() == std::io::ErrorKind::AddrInUse;
        let error = Error::io(format!("{node} cannot listen on {addr}"), error);
        if in_use { error.with_kind(Kind::Exists) } else { error }
    })
}

async fn listen_new(node: &str, port: Option<u16>) -> Result<(SocketAddr, TcpListener)> {
    let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    if let Some(port) = port {
        return Ok((local(port), listen(node, local(port)).await?));
    }
    for draw in 0..FREE_PORT_DRAWS {
        let span = u64::from(FREE_PORTS.end - FREE_PORTS.start);
        let addr = local(FREE_PORTS.start + (RandomState::new().hash_one(draw) % span) as u16);
        match listen(node, addr).await {
            Err(error) if error.kind() == Kind::Exists => {}
            outcome => return Ok((addr, outcome?)),
        }
    }
    Err(Error::new(Kind::Exists, format!("no free port for {node}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(metas: usize, stores: usize) -> Wishes {
        Wishes { metas: Some(metas), stores: Some(stores), ..Wishes::default() }
    }

    #[tokio::test]
    async fn a_data_folder_keeps_its_nodes_and_ports() {
        let data = tempfile::tempdir().expect("folder");
        let first = Plan::make(data.path(), &wishes(3, 2)).await.expect("plan").plan;
        assert_eq!((first.metas.len(), first.stores.len()), (3, 2));
        let again = Plan::make(data.path(), &Wishes::default()).await.expect("plan").plan;
        assert_eq!(again, first);
        let more = Plan::make(data.path(), &wishes(3, 4)).await.expect("plan").plan;
        assert_eq!((&more.metas, &more.stores[..2]), (&first.metas, &first.stores[..]));
        assert_eq!(more.stores.len(), 4);
    }

    #[tokio::test]
    async fn a_folder_of_another_cluster_is_refused_by_name() {
        let data = tempfile::tempdir().expect("folder");
        Plan::make(data.path(), &wishes(1, 2)).await.expect("plan");
        let profile = Wishes { profile: Some(Profile::new(1, 1).expect("profile")), ..Wishes::default() };
        for wrong in [wishes(3, 2), wishes(1, 1), Wishes { port: Some(1), ..Wishes::default() }, profile] {
            let error = Plan::make(data.path(), &wrong).await.expect_err("refused");
            assert_eq!(error.kind(), Kind::InvalidInput);
            assert!(error.to_string().starts_with(&data.path().display().to_string()), "{error}");
        }
        std::fs::write(data.path().join(FILE), "something else\n").expect("writes");
        assert_eq!(Plan::make(data.path(), &Wishes::default()).await.expect_err("refused").kind(), Kind::Protocol);
    }

    #[tokio::test]
    async fn a_folder_of_something_else_is_refused() {
        let data = tempfile::tempdir().expect("folder");
        std::fs::write(data.path().join("thesis.txt"), "x").expect("writes");
        let error = Plan::make(data.path(), &wishes(1, 2)).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains("thesis.txt"), "{error}");
        assert_eq!(std::fs::read_dir(data.path()).expect("lists").count(), 1, "nothing was put into it");
    }

    #[tokio::test]
    async fn a_port_in_use_names_the_port_and_the_node() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("binds");
        let port = taken.local_addr().expect("addr").port();
        let data = tempfile::tempdir().expect("folder");
        let wishes = Wishes { port: Some(port), ..Wishes::default() };
        let error = Plan::make(data.path(), &wishes).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::Exists);
        assert!(error.to_string().contains(&format!("meta-1 cannot listen on 127.0.0.1:{port}")), "{error}");
        assert!(!data.path().join(FILE).exists());
    }

    #[tokio::test]
    async fn ports_past_the_last_are_refused() {
        let data = tempfile::tempdir().expect("folder");
        let wishes = Wishes { port: Some(u16::MAX - 1), ..wishes(1, 2) };
        let error = Plan::make(data.path(), &wishes).await.expect_err("refused");
        assert_eq!(error.kind(), Kind::InvalidInput);
        assert!(error.to_string().contains("65534"), "{error}");
    }

    #[test]
    fn the_file_reads_as_it_was_written() {
        let text = "torchfs local cluster 1\nprofile 6+3\nmeta 127.0.0.1:7100\nstore 127.0.0.1:7101\n";
        let plan = Plan::parse(text).expect("parses");
        assert_eq!((plan.text().as_str(), plan.stores[0].port()), (text, 7101));
        for bad in ["", "torchfs local cluster 2\n", "torchfs local cluster 1\n", "torchfs local cluster 1\nmeta x\n"] {
            assert_eq!(Plan::parse(bad), None, "{bad}");
        }
    }
}
