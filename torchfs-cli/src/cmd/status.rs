//! `torchfs status`: the cluster at a glance.

use super::connect;
use crate::args::{Global, Status};
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{self, count_text, json, size_text, table};
use std::io::{self, Write};
use torchfs_core::Error;
use torchfs_core::meta::{self, NodeState};
use torchfs_core::settings::{COLLECT_INTERVAL, GARBAGE_GRACE};

pub async fn run(global: &Global, args: Status) -> Outcome {
    let client = connect(global).await?;
    let status = client.status().await.map_err(no_status)?;
    let mut out = output::stdout();
    if args.json {
        json::write(&mut out, &json::Status::from(&status))?;
    } else {
        write_text(&mut out, &status)?;
    }
    Ok(out.flush()?)
}

fn no_status(error: Error) -> Failure {
    let failure = Failure::from(error);
    match failure.exit {
        Exit::Unavailable => failure.hint("start the metadata nodes that do not answer; nothing is lost meanwhile"),
        _ => failure,
    }
}

fn write_text(out: &mut impl Write, status: &meta::Status) -> io::Result<()> {
    writeln!(out, "cluster {}", status.cluster)?;
    writeln!(out)?;
    let mut metas = table(&["meta", "address", "state"], "><<");
    for meta in &status.metas {
        metas.add_row([meta.id.to_string(), meta.addr.clone(), meta.state.clone()]);
    }
    output::write_table(out, &metas)?;
    writeln!(out)?;
    let mut stores = table(&["store", "address", "state", "domain", "used", "capacity", "shards", "busy"], "><<<>>>>");
    status.stores.iter().for_each(|store| {
        stores.add_row(store_row(store));
    });
    output::write_table(out, &stores)?;
    writeln!(out)?;
    write_totals(out, status)
}

fn store_row(store: &meta::StoreStatus) -> Vec<String> {
    let state = match store.record.state {
        NodeState::Up => "up",
        NodeState::Down => "DOWN",
        NodeState::Draining => "draining",
    };
    let load = |text: fn(meta::NodeLoad) -> String| store.load.map_or("?".to_owned(), text);
    vec![
        store.record.id.to_string(),
        store.record.addr.clone(),
        state.to_owned(),
        store.record.domain.to_string(),
        load(|load| size_text(load.used_bytes)),
        size_text(store.load.map_or(store.record.capacity_bytes, |load| load.capacity_bytes)),
        load(|load| count_text(load.shards)),
        load(|load| load.requests.to_string()),
    ]
}

fn write_totals(out: &mut impl Write, status: &meta::Status) -> io::Result<()> {
    let (bytes, stored) = (size_text(status.bytes), size_text(status.stored_bytes));
    writeln!(out, "files {}, {bytes}, stored as {stored}{}", count_text(status.files), factor_text(status))?;
    if status.deleted_bytes > 0 {
        let minutes = (GARBAGE_GRACE + COLLECT_INTERVAL).as_secs() / 60;
        writeln!(out, "{} deleted, space returns within {minutes} min", size_text(status.deleted_bytes))?;
    }
    let (stripes, degraded, bad) = (status.stripes, status.degraded_stripes, status.bad_shards);
    if degraded == 0 && bad == 0 {
        return writeln!(out, "stripes {}, all whole", count_text(stripes));
    }
    let (stripes, degraded, bad) = (count_text(stripes), count_text(degraded), count_text(bad));
    writeln!(out, "stripes {stripes}, {degraded} DEGRADED; shards damaged or gone: {bad}")
}

/// How much larger the files are in the cluster; says little of a few small ones.
fn factor_text(status: &meta::Status) -> String {
    let factor = status.stored_bytes as f64 / status.bytes.max(1) as f64;
    if (0.1..10.0).contains(&factor) { format!(" ({factor:.2} x)") } else { String::new() }
}
