//! `torchfs policy`: how a folder's new files are coded.

use super::connect;
use crate::args::{Global, Policy, PolicyAction, Remote};
use crate::exit::{Failure, Outcome};
use crate::output;
use std::io::Write;
use torchfs_core::Client;
use torchfs_core::layout::Profile;
use torchfs_core::meta::NodeState;

pub async fn run(global: &Global, args: Policy) -> Outcome {
    let client = connect(global).await?;
    match args.action {
        PolicyAction::Get { path } => get(&client, &path).await.map_err(|failure| failure.context(&path)),
        PolicyAction::Set { path, ec } => {
            set(&client, &path, ec).await.map_err(|failure| failure.context(&path))?;
            warn_if_too_few_nodes(global, &client, ec).await
        }
    }
}

async fn get(client: &Client, path: &Remote) -> Outcome {
    let attr = client.stat(path.bytes()).await?;
    let (profile, own) = client.meta().profile(attr.ino).await?;
    let mut out = output::stdout();
    writeln!(out, "{profile} ({})", if own { "set here" } else { "inherited" })?;
    Ok(out.flush()?)
}

async fn set(client: &Client, path: &Remote, profile: Profile) -> Outcome {
    Ok(client.set_profile(path.bytes(), profile).await?)
}

async fn warn_if_too_few_nodes(global: &Global, client: &Client, profile: Profile) -> Outcome {
    let map = client.meta().map().await.map_err(Failure::from)?;
    let up = map.nodes.iter().filter(|node| node.state == NodeState::Up).count();
    if up < profile.shards() && !global.quiet {
        note!("torchfs: warning: {}", too_few_nodes(profile, up));
    }
    Ok(())
}

/// The warning for a profile that the nodes cannot serve in full.
pub fn too_few_nodes(profile: Profile, nodes: usize) -> String {
    let (wanted, least) = (profile.shards(), usize::from(profile.data) + usize::from(profile.parity < 2));
    let until = if nodes < least {
        format!("only small files can be written until there are {least}")
    } else {
        "new files survive fewer failures until there are more".to_owned()
    };
    format!("{profile} wants {wanted} storage nodes and {nodes} are there: {until}")
}
