//! `torchfs du`: what is below a path.

use super::{connect, tree};
use crate::args::{Du, Global, Remote};
use crate::exit::{Outcome, Tally};
use crate::output::{self, Names, count_text, json, size_text, table};
use std::collections::HashSet;
use std::io::Write;
use torchfs_core::Client;
use torchfs_core::meta::{Attr, FileKind};

pub async fn run(global: &Global, args: Du) -> Outcome {
    let client = connect(global).await?;
    let mut tally = Tally::new("du");
    let mut sums = Vec::new();
    for path in &args.paths {
        match sum(&client, path).await {
            Ok(usage) => sums.push((path, usage)),
            Err(failure) => tally.note(Err(failure.context(path)))?,
        }
    }
    let mut out = output::stdout();
    if args.json {
        json::write(&mut out, &sums.into_iter().map(|(_, usage)| usage).collect::<Vec<_>>())?;
    } else if !sums.is_empty() {
        let mut table = table(&["content", "allocated", "files", "folders", "path"], ">>>><");
        for (path, usage) in sums {
            let path = Names::for_stdout().bytes(path.bytes());
            table.add_row([
                size_text(usage.bytes),
                size_text(usage.allocated),
                count_text(usage.files),
                count_text(usage.directories),
                String::from_utf8_lossy(&path).into_owned(),
            ]);
        }
        output::write_table(&mut out, &table)?;
    }
    out.flush()?;
    tally.finish()
}

async fn sum(client: &Client, path: &Remote) -> Outcome<json::Usage> {
    let attr = client.stat(path.bytes()).await?;
    let path_text = String::from_utf8_lossy(path.bytes()).into_owned();
    let mut usage = json::Usage { path: path_text, ..json::Usage::default() };
    let mut seen = HashSet::new();
    let mut add = |attr: &Attr| {
        // A file with several names counts once.
        if attr.nlink > 1 && attr.kind != FileKind::Directory && !seen.insert(attr.ino) {
            return;
        }
        match attr.kind {
            FileKind::File => {
                usage.files += 1;
                usage.bytes += attr.size;
                usage.allocated += attr.allocated;
            }
            FileKind::Directory => usage.directories += 1,
            _ => usage.others += 1,
        }
    };
    add(&attr);
    if attr.kind == FileKind::Directory {
        tree::walk(client, path, |_, entries| {
            entries.iter().for_each(|entry| add(&entry.attr));
            Ok(())
        })
        .await?;
    }
    Ok(usage)
}
