//! `torchfs meta`: one metadata node, until a signal comes.

use crate::args::Meta;
use crate::exit::{Failure, Outcome};
use crate::signal::StopSignals;
use tokio::net::{TcpListener, lookup_host};
use torchfs_core::{Context, Error, IoContext, Kind, MetaId};
use torchfs_meta::{MetaConfig, MetaNode};

pub async fn run(args: Meta, stop: &mut StopSignals) -> Outcome {
    let id = MetaId(args.id);
    if !args.peers.contains_key(&id) {
        let known: Vec<String> = args.peers.keys().map(ToString::to_string).collect();
        let message = format!("--id {id} is not one of --peers ({})", known.join(", "));
        return Err(Failure::usage(message).hint("--peers lists all metadata nodes, this one included"));
    }
    warn_of_unknown_hosts(&args).await;
    let listener = listen(&args.listen).await?;
    let config = MetaConfig { id, peers: args.peers, data: args.data, profile: args.ec };
    let Some(started) = stop.before(Box::pin(MetaNode::start(config, listener))).await else { return Ok(()) };
    let node = started.context(|| format!("start metadata node {id}"))?;
    tracing::info!("metadata node {id} serves on {}", node.addr());
    tokio::select! {
        ended = node.wait() => Ok(ended?),
        () = stop.next() => {
            stop.before(node.shutdown()).await;
            Ok(())
        }
    }
}

/// Names may become known later, as machines come up one by one; a misspelt one never does.
async fn warn_of_unknown_hosts(args: &Meta) {
    for (id, addr) in &args.peers {
        if let Err(error) = lookup_host(addr).await {
            tracing::warn!("the address {addr} of metadata node {id} cannot be resolved now: {error}");
        }
    }
}

/// Listens where a server was told to.
pub async fn listen(addr: &str) -> Outcome<TcpListener> {
    crate::args::address(addr).map_err(|message| Failure::usage(format!("--listen: {message}")))?;
    match TcpListener::bind(addr).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            let failure = Failure::from(Error::caused(Kind::Exists, format!("listen on {addr}"), error));
            Err(failure.hint("another process has the port: choose another with --listen"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::AddrNotAvailable => {
            let failure =
                Failure::from(Error::io(format!("listen on {addr}: this machine has no such address"), error));
            Err(failure.hint("give one of its own (`ip addr` lists them), or 0.0.0.0:PORT for all"))
        }
        Err(error) => Err(error).io(|| format!("listen on {addr}")).map_err(Failure::from),
    }
}
