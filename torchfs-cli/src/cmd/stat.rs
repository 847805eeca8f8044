//! `torchfs stat`: attributes, and where content is stored.

use super::connect;
use crate::args::{Global, Remote, Stat};
use crate::exit::{Failure, Outcome, Tally};
use crate::output::{self, count_text, json, kind_text, mode_text, size_text, time_text};
use std::collections::BTreeMap;
use std::io::{self, Write};
use torchfs_core::Client;
use torchfs_core::layout::Profile;
use torchfs_core::meta::{Attr, Content, FileKind};

/// All that is known of a path.
struct Found {
    attr: Attr,
    target: Option<Vec<u8>>,
    content: Option<Content>,
    policy: Option<(Profile, bool)>,
}

pub async fn run(global: &Global, args: Stat) -> Outcome {
    let client = connect(global).await?;
    let mut out = output::stdout();
    let mut tally = Tally::new("stat");
    let mut entries = Vec::new();
    for path in &args.paths {
        match find(&client, path).await {
            Ok(found) if args.json => entries.push(json_entry(path, &found)),
            Ok(found) => write_text(&mut out, path, &found)?,
            Err(failure) => tally.note(Err(failure.context(path)))?,
        }
    }
    if args.json {
        json::write(&mut out, &entries)?;
    }
    out.flush()?;
    tally.finish()
}

async fn find(client: &Client, path: &Remote) -> Outcome<Found> {
    let attr = client.lstat(path.bytes()).await?;
    let mut found = Found { attr, target: None, content: None, policy: None };
    match found.attr.kind {
        FileKind::File => {
            let (attr, content) = client.meta().open(found.attr.ino).await?;
            (found.attr, found.content) = (attr, Some(content));
        }
        FileKind::Directory => found.policy = Some(client.meta().profile(found.attr.ino).await?),
        FileKind::Symlink => found.target = Some(client.meta().read_link(found.attr.ino).await?),
        FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {}
    }
    Ok::<_, Failure>(found)
}

fn json_entry(path: &Remote, found: &Found) -> json::Stat {
    let mut stat = json::Stat {
        entry: json::Entry::new(path.bytes(), &found.attr, found.target.as_deref()),
        policy: found.policy.map(|(profile, _)| profile.to_string()),
        extents: None,
        stripes: None,
    };
    if let Some(content) = &found.content {
        stat.set_content(content);
    }
    stat
}

fn write_text(out: &mut impl Write, path: &Remote, found: &Found) -> io::Result<()> {
    let attr = &found.attr;
    writeln!(out, "{path}")?;
    let mut line = |name: &str, value: String| writeln!(out, "  {name:<9} {value}");
    match &found.target {
        Some(target) => line("type", format!("link to {}", output::printable(target)))?,
        None => line("type", kind_text(attr.kind).to_owned())?,
    }
    line("size", size_line(attr))?;
    line("mode", format!("{:04o} {}", attr.mode, mode_text(attr.kind, attr.mode)))?;
    line("owner", format!("{}:{}", attr.uid, attr.gid))?;
    line("links", attr.nlink.to_string())?;
    line("inode", format!("{}, version {}", attr.ino, attr.version))?;
    line("modified", time_text(attr.mtime))?;
    line("changed", time_text(attr.ctime))?;
    if let Some((profile, own)) = found.policy {
        line("policy", format!("{profile} ({})", if own { "set here" } else { "inherited" }))?;
    }
    if let Some(content) = &found.content {
        line("stored", stored_line(content))?;
        line("nodes", nodes_line(content))?;
    }
    Ok(())
}

fn size_line(attr: &Attr) -> String {
    match attr.kind {
        FileKind::Directory => format!("{} entries", count_text(attr.size)),
        _ if attr.allocated < attr.size => {
            format!("{} bytes ({}), {} allocated", attr.size, size_text(attr.size), size_text(attr.allocated))
        }
        _ => format!("{} bytes ({})", attr.size, size_text(attr.size)),
    }
}

fn stored_line(content: &Content) -> String {
    let shapes: BTreeMap<String, usize> = content.stripes.iter().fold(BTreeMap::new(), |mut shapes, stripe| {
        *shapes.entry(stripe.shape.profile.to_string()).or_default() += 1;
        shapes
    });
    let stripes: Vec<String> = shapes.iter().map(|(profile, count)| format!("{count} of {profile}")).collect();
    let degraded = content.stripes.iter().filter(|stripe| stripe.is_under_spread()).count();
    let extents = content.extents.len();
    let stripes = if stripes.is_empty() { "none".to_owned() } else { stripes.join(", ") };
    let note = if degraded > 0 { format!(", {degraded} DEGRADED") } else { String::new() };
    format!("extents: {extents}, stripes: {stripes}{note}")
}

fn nodes_line(content: &Content) -> String {
    let shards = content.stripes.iter().flat_map(|stripe| &stripe.nodes).flatten();
    let per_node: BTreeMap<_, usize> = shards.fold(BTreeMap::new(), |mut counts, &node| {
        *counts.entry(node).or_default() += 1;
        counts
    });
    let nodes: Vec<String> = per_node.iter().map(|(node, shards)| format!("{node} ({shards})")).collect();
    if nodes.is_empty() { "none".to_owned() } else { format!("{} (shards)", nodes.join(", ")) }
}
