//! `torchfs up`: a whole cluster in this process, until a signal comes.

use super::mount::Served;
use super::policy::too_few_nodes;
use crate::args::{Global, Up};
use crate::exit::{Failure, Outcome};
use crate::signal::StopSignals;
use std::path::Path;
use torchfs_core::layout::Profile;
use torchfs_core::{Client, Error, Kind};
use torchfs_fuse::{MountOptions, mount};
use torchfs_local::LocalCluster;

const DEFAULT_PORT: u16 = 7100;

pub async fn run(global: &Global, args: Up, stop: &mut StopSignals) -> Outcome {
    let Some(started) = stop.before(Box::pin(start(&args))).await else { return Ok(()) };
    let cluster = started?;
    let outcome = tokio::select! {
        outcome = Box::pin(serve(global, &args, &cluster, stop)) => outcome,
        error = cluster.wait_for_failure() => Err(error.into()),
    };
    // A second signal leaves it as after a crash, which is safe.
    stop.before(cluster.shutdown()).await.unwrap_or(Ok(()))?;
    outcome
}

async fn start(args: &Up) -> Outcome<LocalCluster> {
    let mut builder = LocalCluster::builder().data_dir(&args.data);
    // A folder that has a cluster has its ports too.
    let port = args.port.or_else(|| (!LocalCluster::is_in(&args.data)).then_some(DEFAULT_PORT));
    builder = builder.port(port);
    if let Some(metas) = args.metas {
        builder = builder.metas(metas.into());
    }
    if let Some(stores) = args.stores {
        builder = builder.stores(stores.into());
    }
    if let Some(profile) = args.ec {
        builder = builder.profile(profile);
    }
    builder.start().await.map_err(|error| start_failure(error, &args.data))
}

fn start_failure(error: Error, data: &Path) -> Failure {
    let in_use = error.kind() == Kind::Exists;
    let failure = Failure::from(error);
    match in_use {
        // Its ports are written down and cannot be others.
        true if LocalCluster::is_in(data) => {
            let hint = format!("does the cluster in {} run already? if not, free its ports", data.display());
            failure.hint(hint)
        }
        true => failure.hint("another process has the port: choose others with --port"),
        false => failure,
    }
}

/// Until a signal comes.
async fn serve(global: &Global, args: &Up, cluster: &LocalCluster, stop: &mut StopSignals) -> Outcome {
    let Some(ready) = stop.before(Box::pin(get_ready(global, args, cluster))).await else { return Ok(()) };
    match ready? {
        Some(served) => served.until_stopped(stop).await,
        None => {
            stop.next().await;
            Ok(())
        }
    }
}

/// Mounts, if it is to, and says how the cluster is used.
async fn get_ready(global: &Global, args: &Up, cluster: &LocalCluster) -> Outcome<Option<Served>> {
    let client = cluster.client().await?;
    let profile = client.profile("/").await?;
    if !global.quiet {
        warn_if_too_few(cluster, profile);
    }
    let Some(mountpoint) = &args.mount else {
        say(global, cluster, None);
        return Ok(None);
    };
    std::fs::create_dir_all(mountpoint).map_err(|error| Error::io(mountpoint.display().to_string(), error))?;
    let cache_dir = args.data.join("cache");
    let client = Client::builder().metas(cluster.meta_addrs()).cache_dir(&cache_dir).connect().await?;
    let mounted = mount(client.clone(), mountpoint, MountOptions::default())?;
    say(global, cluster, Some(mountpoint));
    let cache_dir = client.cache_dir().map_or(cache_dir, Path::to_owned);
    Ok(Some(Served { mounted, client, cache_dir }))
}

fn warn_if_too_few(cluster: &LocalCluster, profile: Profile) {
    let stores = cluster.store_addrs().len();
    if stores < profile.shards() {
        note!("torchfs: warning: {}", too_few_nodes(profile, stores));
    }
}

fn say(global: &Global, cluster: &LocalCluster, mountpoint: Option<&Path>) {
    if global.quiet {
        return;
    }
    let metas = cluster.meta_addrs().join(",");
    println!("metadata nodes  {}", cluster.meta_addrs().join(" "));
    println!("storage nodes   {}", cluster.store_addrs().join(" "));
    println!("data            {}", cluster.data_dir().display());
    if let Some(mountpoint) = mountpoint {
        println!("mounted on      {}", mountpoint.display());
    }
    println!();
    println!("In another terminal:");
    println!("  export TORCHFS_META={metas}");
    println!("  torchfs put -r SOME_FOLDER /data");
    println!("  torchfs ls -l /data");
    println!("  torchfs status");
    if mountpoint.is_none() {
        println!("  torchfs mount MOUNTPOINT");
    }
    println!();
    println!("Ctrl-C stops the cluster; the same command starts it again with everything in it.");
}
