//! `torchfs store`: one storage node, until a signal comes.

use super::meta::listen;
use super::metas;
use crate::args::{Global, Store};
use crate::exit::{Failure, Outcome};
use crate::signal::StopSignals;
use torchfs_core::Context;
use torchfs_store::{StoreConfig, StoreNode};

pub async fn run(global: &Global, args: Store, stop: &mut StopSignals) -> Outcome {
    let metas = metas(global)?;
    if let Some(addr) = &args.advertise {
        crate::args::address(addr).map_err(|message| Failure::usage(format!("--advertise: {message}")))?;
    }
    let listener = listen(&args.listen).await?;
    let config = StoreConfig {
        metas,
        data: args.data,
        capacity: args.capacity.map(|size| size.0).into(),
        domain: args.domain,
        advertise: args.advertise,
    };
    // It waits for the metadata cluster; a signal ends that too.
    let Some(started) = stop.before(StoreNode::start(config, listener)).await else { return Ok(()) };
    let node = started.context(|| "start the storage node")?;
    tracing::info!("storage node {} serves on {}", node.id(), node.addr());
    tokio::select! {
        ended = node.wait() => Ok(ended?),
        () = stop.next() => {
            stop.before(node.shutdown()).await;
            Ok(())
        }
    }
}
