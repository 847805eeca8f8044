//! The first bytes of every connection: who is there, which protocol version, which service, which cluster.
//!
//! Their layout never changes, whatever the protocol version, so that any two versions can tell each other apart. Nothing
//! is sent before it is over, and both sides give up after [`CONNECT_DEADLINE`].

use super::{PROTOCOL_VERSION, Service};
use crate::error::{Error, Kind, Result};
use crate::ids::{ClusterId, NodeId};
use crate::settings::CONNECT_DEADLINE;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

const MAGIC: [u8; 8] = *b"TORCHFS\0";

/// Magic, version, service, whether a cluster follows, cluster, an empty line. The empty line makes a server of a text
/// protocol answer at once, so that a wrong address is not noticed only by a deadline.
const HELLO_BYTES: usize = 8 + 2 + 1 + 1 + 16 + 4;

/// Magic, version, offered services as bits, whether a cluster follows, cluster, number of the storage node or 0.
const WELCOME_BYTES: usize = 8 + 2 + 1 + 1 + 16 + 4;

/// Who a server says it is, and whom a client wants: what one side does not know is not compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) cluster: Option<ClusterId>,
    /// Which storage node. An address may be another node's by now.
    pub(super) node: Option<NodeId>,
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Hello {
    version: u16,
    service: u8,
    cluster: Option<ClusterId>,
}

/// What a server is. The client compares; so does the server, which hangs up on a client that will find no match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Welcome {
    version: u16,
    offered: u8,
    peer: Peer,
}

fn cluster_bytes(cluster: Option<ClusterId>) -> [u8; 17] {
    let mut bytes = [0; 17];
    if let Some(ClusterId(id)) = cluster {
        bytes[0] = 1;
        bytes[1..].copy_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn cluster_of(bytes: &[u8]) -> Option<ClusterId> {
    let (&known, id) = bytes.split_first()?;
    (known == 1).then_some(ClusterId(u128::from_le_bytes(id.get(..16)?.try_into().ok()?)))
}

impl Hello {
    fn to_bytes(self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = self.service;
        bytes[11..28].copy_from_slice(&cluster_bytes(self.cluster));
        bytes[28..].copy_from_slice(b"\r\n\r\n");
        bytes
    }

    /// Of the bytes behind the magic.
    fn parse(bytes: [u8; HELLO_BYTES - 8]) -> Self {
        let version = u16::from_le_bytes([bytes[0], bytes[1]]);
        Hello { version, service: bytes[2], cluster: cluster_of(&bytes[3..]) }
    }
}

impl Welcome {
    fn to_bytes(self) -> [u8; WELCOME_BYTES] {
        let mut bytes = [0; WELCOME_BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.version.to_le_bytes());
        bytes[10] = self.offered;
        bytes[11..28].copy_from_slice(&cluster_bytes(self.peer.cluster));
        bytes[28..].copy_from_slice(&self.peer.node.map_or(0, |node| node.0).to_le_bytes());
        bytes
    }

    /// Of the bytes behind the magic.
    fn parse(bytes: [u8; WELCOME_BYTES - 8]) -> Self {
        let version = u16::from_le_bytes([bytes[0], bytes[1]]);
        let node = u32::from_le_bytes([bytes[20], bytes[21], bytes[22], bytes[23]]);
        let node = (node > 0).then_some(NodeId(node));
        Welcome { version, offered: bytes[2], peer: Peer { cluster: cluster_of(&bytes[3..20]), node } }
    }
}

fn bit(service: u8) -> u8 {
    1u8.checked_shl(service.into()).unwrap_or(0)
}

fn differ<T: PartialEq>(one: Option<T>, other: Option<T>) -> Option<(T, T)> {
    one.zip(other).filter(|(one, other)| one != other)
}

/// The client's side. Returns the cluster that the server belongs to, if it knows.
///
/// # Errors
/// `Protocol` if the peer is something else, another version, or another kind of node; `WrongCluster` naming both; `Unavailable`
/// if it is another storage node, the connection ends or nothing comes within the deadline. Each names `addr`.
pub(super) async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    addr: &str,
    service: Service,
    wanted: Peer,
) -> Result<Option<ClusterId>> {
    let hello = Hello { version: PROTOCOL_VERSION, service: service as u8, cluster: wanted.cluster };
    let welcome = timeout(CONNECT_DEADLINE, exchange(stream, addr, hello)).await.map_err(|_| {
        let message = format!(
            "{addr} accepted the connection but said nothing for {} s; is it a TorchFS node?",
            CONNECT_DEADLINE.as_secs()
        );
        Error::new(Kind::Unavailable, message)
    })??;
    if welcome.version != PROTOCOL_VERSION {
        let message = format!(
            "{addr} speaks version {} of the TorchFS protocol, this program version {PROTOCOL_VERSION}; use the same release",
            welcome.version
        );
        return Err(Error::new(Kind::Protocol, message));
    }
    if welcome.offered & bit(service as u8) == 0 {
        let message = format!("{addr} is {}, {} is needed", node_offering(welcome.offered), node_for(service));
        return Err(Error::new(Kind::Protocol, message));
    }
    if let Some((ours, theirs)) = differ(wanted.cluster, welcome.peer.cluster) {
        let message = format!("{addr} belongs to cluster {theirs}, not to {ours}; check the address");
        return Err(Error::new(Kind::WrongCluster, message));
    }
    if let Some((wanted, found)) = differ(wanted.node, welcome.peer.node) {
        let message = format!("{addr} is storage node {found} by now, not {wanted}");
        return Err(Error::new(Kind::Unavailable, message));
    }
    Ok(welcome.peer.cluster)
}

async fn exchange<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, addr: &str, hello: Hello) -> Result<Welcome> {
    let broken = |error: std::io::Error| {
        Error::caused(Kind::Unavailable, format!("{addr} closed the connection during the handshake"), error)
    };
    stream.write_all(&hello.to_bytes()).await.map_err(broken)?;
    let mut magic = [0; 8];
    for at in 0..magic.len() {
        stream.read_exact(&mut magic[at..=at]).await.map_err(broken)?;
        if magic[at] != MAGIC[at] {
            let message = format!("{addr} does not speak the TorchFS protocol; check the address");
            return Err(Error::new(Kind::Protocol, message));
        }
    }
    let mut rest = [0; WELCOME_BYTES - 8];
    stream.read_exact(&mut rest).await.map_err(broken)?;
    Ok(Welcome::parse(rest))
}

fn node_for(service: Service) -> &'static str {
    match service {
        Service::Store => "a storage node",
        Service::Meta | Service::Raft => "a metadata node",
    }
}

fn node_offering(offered: u8) -> &'static str {
    let offers = |service: Service| offered & bit(service as u8) != 0;
    if offers(Service::Store) {
        "a storage node"
    } else if offers(Service::Meta) || offers(Service::Raft) {
        "a metadata node"
    } else {
        "a TorchFS node that offers nothing"
    }
}

/// The server's side. Returns the service to start, or `None` if the peer is to be hung up on.
pub(super) async fn welcome<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    offered: &[Service],
    own: Peer,
) -> Option<Service> {
    timeout(CONNECT_DEADLINE, answer(stream, offered, own)).await.ok()?.ok()?
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    offered: &[Service],
    own: Peer,
) -> std::io::Result<Option<Service>> {
    let mut magic = [0; 8];
    stream.read_exact(&mut magic).await?;
    if magic != MAGIC {
        return Ok(None);
    }
    let mut rest = [0; HELLO_BYTES - 8];
    stream.read_exact(&mut rest).await?;
    let hello = Hello::parse(rest);
    let bits = offered.iter().fold(0, |bits, &service| bits | bit(service as u8));
    stream.write_all(&Welcome { version: PROTOCOL_VERSION, offered: bits, peer: own }.to_bytes()).await?;
    let agreed = hello.version == PROTOCOL_VERSION && differ(hello.cluster, own.cluster).is_none();
    Ok(offered.iter().copied().find(|&service| agreed && service as u8 == hello.service))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: ClusterId = ClusterId(0xaaaa);
    const OTHER: ClusterId = ClusterId(0xbbbb);

    fn of(cluster: Option<ClusterId>) -> Peer {
        Peer { cluster, node: None }
    }

    async fn meet(
        service: Service,
        cluster: Option<ClusterId>,
        offered: &[Service],
        server_cluster: Option<ClusterId>,
    ) -> (Result<Option<ClusterId>>, Option<Service>) {
        let (mut near, mut far) = tokio::io::duplex(256);
        tokio::join!(greet(&mut near, "node:1", service, of(cluster)), welcome(&mut far, offered, of(server_cluster)))
    }

    #[tokio::test]
    async fn a_client_learns_the_cluster() {
        let (greeted, welcomed) = meet(Service::Meta, None, &[Service::Meta, Service::Raft], Some(OURS)).await;
        assert_eq!(greeted.expect("agrees"), Some(OURS));
        assert_eq!(welcomed, Some(Service::Meta));
        let (greeted, welcomed) = meet(Service::Raft, Some(OURS), &[Service::Raft], None).await;
        assert_eq!(greeted.expect("agrees"), None);
        assert_eq!(welcomed, Some(Service::Raft));
    }

    #[tokio::test]
    async fn a_wrong_node_is_named() {
        let (greeted, welcomed) = meet(Service::Meta, None, &[Service::Store], Some(OURS)).await;
        let error = greeted.expect_err("another service");
        assert_eq!(error.to_string(), "node:1 is a storage node, a metadata node is needed");
        assert_eq!((error.kind(), welcomed), (Kind::Protocol, None));
        let (greeted, welcomed) = meet(Service::Store, Some(OURS), &[Service::Store], Some(OTHER)).await;
        let error = greeted.expect_err("another cluster");
        assert_eq!((error.kind(), welcomed), (Kind::WrongCluster, None));
        assert!(error.to_string().contains(&OURS.to_string()) && error.to_string().contains(&OTHER.to_string()));
    }

    #[tokio::test]
    async fn another_storage_node_at_the_address_is_found_out() {
        let meet = async |wanted: Option<u32>, found: Option<u32>| {
            let (mut near, mut far) = tokio::io::duplex(256);
            let peer = |node: Option<u32>| Peer { cluster: Some(OURS), node: node.map(NodeId) };
            let server = welcome(&mut far, &[Service::Store], peer(found));
            tokio::join!(greet(&mut near, "node:1", Service::Store, peer(wanted)), server).0
        };
        for (wanted, found) in [(Some(3), Some(3)), (Some(3), None), (None, Some(5))] {
            meet(wanted, found).await.expect("agrees");
        }
        let error = meet(Some(3), Some(5)).await.expect_err("another node");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert_eq!(error.to_string(), "node:1 is storage node 5 by now, not 3");
    }

    #[tokio::test]
    async fn another_version_is_named_on_both_sides() {
        let (mut near, mut far) = tokio::io::duplex(256);
        let server = Welcome { version: 77, offered: 0xff, peer: Peer::default() }.to_bytes();
        far.write_all(&server).await.expect("room");
        let error = greet(&mut near, "node:1", Service::Store, Peer::default()).await.expect_err("another version");
        assert_eq!(error.kind(), Kind::Protocol);
        assert!(error.to_string().contains("version 77"), "{error}");

        let (mut near, mut far) = tokio::io::duplex(256);
        let hello = Hello { version: 77, service: Service::Store as u8, cluster: None }.to_bytes();
        near.write_all(&hello).await.expect("room");
        assert_eq!(welcome(&mut far, &[Service::Store], Peer::default()).await, None);
        let mut reply = [0; WELCOME_BYTES];
        near.read_exact(&mut reply).await.expect("answered all the same");
    }

    #[tokio::test]
    async fn a_stranger_is_recognised_from_its_first_byte() {
        let (mut near, mut far) = tokio::io::duplex(256);
        far.write_all(b"HTTP/1.1 400 Bad Request\r\n").await.expect("room");
        let error = greet(&mut near, "node:1", Service::Store, Peer::default()).await.expect_err("HTTP");
        assert_eq!(error.to_string(), "node:1 does not speak the TorchFS protocol; check the address");

        let (mut near, mut far) = tokio::io::duplex(256);
        near.write_all(b"GET / HTTP/1.1\r\n").await.expect("room");
        assert_eq!(welcome(&mut far, &[Service::Store], Peer::default()).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_at_the_deadline() {
        let (mut near, mut far) = tokio::io::duplex(256);
        let error = greet(&mut near, "node:1", Service::Store, Peer::default()).await.expect_err("silent");
        assert_eq!(error.kind(), Kind::Unavailable);
        assert!(error.to_string().contains("said nothing"), "{error}");
        let (_open, mut silent) = tokio::io::duplex(256);
        assert_eq!(welcome(&mut silent, &[Service::Store], Peer::default()).await, None);
        drop(far.shutdown().await);
    }

    #[test]
    fn the_layout_is_fixed() {
        let hello = Hello { version: 1, service: Service::Meta as u8, cluster: Some(ClusterId(2)) };
        let bytes = hello.to_bytes();
        assert_eq!(&bytes[..], b"TORCHFS\0\x01\0\x02\x01\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\r\n\r\n");
        assert_eq!(Hello::parse(bytes[8..].try_into().expect("length")), hello);
        let welcome = Welcome { version: 1, offered: 0b1100, peer: Peer { cluster: None, node: Some(NodeId(7)) } };
        let bytes = welcome.to_bytes();
        assert_eq!(&bytes[..], b"TORCHFS\0\x01\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x07\0\0\0");
        assert_eq!(Welcome::parse(bytes[8..].try_into().expect("length")), welcome);
    }
}
