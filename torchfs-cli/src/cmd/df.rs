//! `torchfs df`: how full the file system is.

use super::connect;
use crate::args::{Df, Global};
use crate::exit::Outcome;
use crate::output::{self, json, size_text, table};
use std::io::Write;

pub async fn run(global: &Global, args: Df) -> Outcome {
    let client = connect(global).await?;
    let space = json::Space::from(client.meta().fs_stat().await?);
    let mut out = output::stdout();
    if args.json {
        json::write(&mut out, &space)?;
    } else {
        write_table(&mut out, &space)?;
    }
    Ok(out.flush()?)
}

fn write_table(out: &mut impl Write, space: &json::Space) -> std::io::Result<()> {
    let mut table = table(&["capacity", "used", "free", "use", "for content", "profile", "inodes"], ">>>>><>");
    let percent = (space.used_bytes as f64 * 100.0 / space.capacity_bytes.max(1) as f64).ceil();
    table.add_row([
        size_text(space.capacity_bytes),
        size_text(space.used_bytes),
        size_text(space.free_bytes),
        format!("{percent:.0} %"),
        size_text(space.content_bytes),
        space.profile.clone().unwrap_or_default(),
        output::count_text(space.inodes),
    ]);
    output::write_table(out, &table)
}
