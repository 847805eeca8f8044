//! The shapes of `--json`. Scripts rely on them: fields are added, never renamed or removed.

use super::time_text;
use serde::Serialize;
use std::io::{self, Write};
use torchfs_core::layout::Stripe;
use torchfs_core::meta::{self, Attr, Content, FileKind, FsStat, NodeState};
use torchfs_core::observe::LatencyStats;
use torchfs_core::sim::{Announce, EpochReport, Report, Settings};
use torchfs_core::trace::{EpochSummary, OpSummary, OpenedFile, ReadPattern};

/// Writes a value as indented JSON and a newline.
///
/// # Errors
/// Of the writer.
pub fn write(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// Writes a value as JSON on one line.
///
/// # Errors
/// Of the writer.
pub fn write_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

/// Bytes as a JSON string can hold them: lossy text, and all the bytes in hexadecimal if they are not UTF-8.
#[derive(Debug, Serialize)]
pub struct Text {
    text: String,
    hex: Option<String>,
}

impl Text {
    fn new(bytes: &[u8]) -> Self {
        let hex = std::str::from_utf8(bytes).is_err();
        let hex = hex.then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        Text { text: String::from_utf8_lossy(bytes).into_owned(), hex }
    }
}

/// An entry of `ls --json`, and the first part of `stat --json`.
#[derive(Debug, Serialize)]
pub struct Entry {
    pub name: String,
    pub path: String,
    /// The path's bytes, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    #[serde(rename = "type")]
    pub kind: &'static str,
    pub mode: String,
    pub nlink: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub allocated: u64,
    pub atime: String,
    pub mtime: String,
    pub ctime: String,
    pub ino: u64,
    pub version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

impl Entry {
    pub fn new(path: &[u8], attr: &Attr, target: Option<&[u8]>) -> Self {
        let name = path.rsplit(|&byte| byte == b'/').next().filter(|name| !name.is_empty()).unwrap_or(b"/");
        let Text { text, hex } = Text::new(path);
        Entry {
            name: Text::new(name).text,
            path: text,
            path_hex: hex,
            kind: kind_word(attr.kind),
            mode: format!("{:04o}", attr.mode),
            nlink: attr.nlink,
            uid: attr.uid,
            gid: attr.gid,
            size: attr.size,
            allocated: attr.allocated,
            atime: time_text(attr.atime),
            mtime: time_text(attr.mtime),
            ctime: time_text(attr.ctime),
            ino: attr.ino.0,
            version: attr.version.0,
            target: target.map(|target| Text::new(target).text),
        }
    }
}

/// As find(1) and most tools call the kinds, since scripts compare these words.
fn kind_word(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
        FileKind::CharDevice => "char_device",
        FileKind::BlockDevice => "block_device",
    }
}

/// An element of `stat --json`.
#[derive(Debug, Serialize)]
pub struct Stat {
    #[serde(flatten)]
    pub entry: Entry,
    /// Folders: how new files are coded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// Files: where the content is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extents: Option<Vec<Extent>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripes: Option<Vec<StripePlace>>,
}

#[derive(Debug, Serialize)]
pub struct Extent {
    pub offset: u64,
    pub len: u32,
    pub stripe: String,
    pub stripe_offset: u32,
}

#[derive(Debug, Serialize)]
pub struct StripePlace {
    pub id: String,
    pub profile: String,
    pub data_bytes: u32,
    pub shard_bytes: u32,
    /// The node of each shard, data first; null: that shard does not exist.
    pub nodes: Vec<Option<u32>>,
}

impl From<&Stripe> for StripePlace {
    fn from(stripe: &Stripe) -> Self {
        StripePlace {
            id: stripe.id.to_string(),
            profile: stripe.shape.profile.to_string(),
            data_bytes: stripe.shape.data_bytes,
            shard_bytes: stripe.shape.shard_bytes,
            nodes: stripe.nodes.iter().map(|node| node.map(|node| node.0)).collect(),
        }
    }
}

impl Stat {
    /// Adds where a file's content is.
    pub fn set_content(&mut self, content: &Content) {
        let extent = |extent: &torchfs_core::layout::Extent| Extent {
            offset: extent.offset,
            len: extent.len,
            stripe: extent.stripe.to_string(),
            stripe_offset: extent.stripe_offset,
        };
        self.extents = Some(content.extents.iter().map(extent).collect());
        self.stripes = Some(content.stripes.iter().map(StripePlace::from).collect());
    }
}

/// An element of `du --json`.
#[derive(Debug, Default, Serialize)]
pub struct Usage {
    pub path: String,
    pub bytes: u64,
    pub allocated: u64,
    pub files: u64,
    pub directories: u64,
    pub others: u64,
}

/// `df --json`.
#[derive(Debug, Serialize)]
pub struct Space {
    pub capacity_bytes: u64,
    pub used_bytes: u64,
    pub free_bytes: u64,
    /// Bytes of content that fit into the free space with the root folder's profile.
    pub content_bytes: u64,
    pub inodes: u64,
    pub profile: Option<String>,
}

impl From<FsStat> for Space {
    fn from(stat: FsStat) -> Self {
        let free = stat.capacity_bytes.saturating_sub(stat.used_bytes);
        let content = stat.profile.map_or(free, |profile| {
            let bytes = u128::from(free) * u128::from(profile.data) / profile.shards() as u128;
            u64::try_from(bytes).unwrap_or(free)
        });
        Space {
            capacity_bytes: stat.capacity_bytes,
            used_bytes: stat.used_bytes,
            free_bytes: free,
            content_bytes: content,
            inodes: stat.inodes,
            profile: stat.profile.map(|profile| profile.to_string()),
        }
    }
}

/// `status --json`.
#[derive(Debug, Serialize)]
pub struct Status {
    pub leader: Leader,
    pub metas: Vec<MetaNode>,
    pub stores: Vec<StoreNode>,
    pub files: u64,
    pub bytes: u64,
    pub stored_bytes: u64,
    pub stripes: u64,
    pub degraded_stripes: u64,
    pub deleted_bytes: u64,
    pub bad_shards: u64,
    pub map_version: u64,
}

#[derive(Debug, Serialize)]
pub struct Leader {
    pub id: u64,
    pub addr: String,
}

#[derive(Debug, Serialize)]
pub struct MetaNode {
    pub id: u64,
    pub addr: String,
    pub state: String,
}

#[derive(Debug, Serialize)]
pub struct StoreNode {
    pub id: u32,
    pub addr: String,
    pub state: NodeState,
    pub domain: String,
    pub capacity_bytes: u64,
    /// Null until the node has reported to the present leader.
    pub used_bytes: Option<u64>,
    pub shards: Option<u64>,
}

impl From<&meta::Status> for Status {
    fn from(status: &meta::Status) -> Self {
        let leader = status.metas.iter().find(|meta| meta.id == status.leader);
        let store = |store: &meta::StoreStatus| StoreNode {
            id: store.record.id.0,
            addr: store.record.addr.clone(),
            state: store.record.state,
            domain: store.record.domain.to_string(),
            capacity_bytes: store.load.map_or(store.record.capacity_bytes, |load| load.capacity_bytes),
            used_bytes: store.load.map(|load| load.used_bytes),
            shards: store.load.map(|load| load.shards),
        };
        let meta =
            |meta: &meta::MetaStatus| MetaNode { id: meta.id.0, addr: meta.addr.clone(), state: meta.state.clone() };
        Status {
            leader: Leader { id: status.leader.0, addr: leader.map(|meta| meta.addr.clone()).unwrap_or_default() },
            metas: status.metas.iter().map(meta).collect(),
            stores: status.stores.iter().map(store).collect(),
            files: status.files,
            bytes: status.bytes,
            stored_bytes: status.stored_bytes,
            stripes: status.stripes,
            degraded_stripes: status.degraded_stripes,
            deleted_bytes: status.deleted_bytes,
            bad_shards: status.bad_shards,
            map_version: status.map.0,
        }
    }
}

/// `sim --json`.
#[derive(Debug, Serialize)]
pub struct Simulated {
    /// The order of opens, in words: no rate means anything without it.
    pub order: String,
    pub files: u64,
    pub bytes: u64,
    pub epochs: u64,
    pub runs: Vec<SimulatedRun>,
}

/// One cache of `sim --json`. Rates and means are of the epochs after the first, if there are more.
#[derive(Debug, Serialize)]
pub struct SimulatedRun {
    pub cache: String,
    pub cache_bytes: u64,
    pub policy: &'static str,
    pub prefetch: &'static str,
    pub announced: &'static str,
    pub hit_rate: f64,
    pub late_rate: f64,
    pub wasted: u64,
    pub storage_bytes_per_epoch: u64,
    pub optimum_bytes_per_epoch: u64,
    #[serde(rename = "per_epoch")]
    pub epochs: Vec<EpochReport>,
}

impl SimulatedRun {
    pub fn new(cache: String, settings: &Settings, report: &Report) -> Self {
        let first = usize::from(report.epochs.len() > 1);
        let (total, counted) = (report.total_from(first), (report.epochs.len() - first).max(1) as u64);
        SimulatedRun {
            cache,
            cache_bytes: settings.cache_bytes,
            policy: settings.eviction.name(),
            prefetch: settings.prefetch.name(),
            announced: match settings.announce {
                Announce::Never => "no",
                Announce::AtStart => "at start",
                Announce::OneAhead => "one ahead",
            },
            hit_rate: total.hit_rate(),
            late_rate: total.late as f64 / total.opens.max(1) as f64,
            wasted: total.wasted,
            storage_bytes_per_epoch: total.storage_bytes / counted,
            optimum_bytes_per_epoch: total.optimum_bytes / counted,
            epochs: report.epochs.clone(),
        }
    }
}

/// `trace summary --json`.
#[derive(Debug, Serialize)]
pub struct TraceSummary {
    pub began: String,
    pub seconds: f64,
    pub operations: u64,
    /// Operations that found no room in the recording.
    pub lost: u64,
    /// Whether the end of the file is missing.
    pub is_torn: bool,
    pub ops: Vec<OpSummary>,
    pub reads: ReadPattern,
    pub epochs: Vec<EpochSummary>,
    /// Different files opened for reading.
    pub files_opened: u64,
    /// The most opened of them.
    pub files: Vec<TracedFile>,
}

/// A file of `trace summary --json`.
#[derive(Debug, Serialize)]
pub struct TracedFile {
    /// Null if its name was never looked up.
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path_hex: Option<String>,
    pub ino: u64,
    pub size: u64,
    pub opens: u64,
    pub read_bytes: u64,
}

impl From<&OpenedFile> for TracedFile {
    fn from(file: &OpenedFile) -> Self {
        let path = file.path.as_deref().map(Text::new);
        let (path, path_hex) = path.map_or((None, None), |path| (Some(path.text), path.hex));
        let OpenedFile { ino, bytes, opens, read_bytes, .. } = *file;
        TracedFile { path, path_hex, ino: ino.0, size: bytes, opens, read_bytes }
    }
}

/// `trace replay --json`.
#[derive(Debug, Serialize)]
pub struct Replayed {
    pub seconds: f64,
    pub threads: u64,
    pub opens: LatencyStats,
    pub reads: LatencyStats,
    pub read_bytes: u64,
    pub files_per_second: f64,
    pub bytes_per_second: f64,
    pub made_files: u64,
    /// Files that could not be opened or read.
    pub failed_files: u64,
    /// Opens of files whose names the recording does not have.
    pub nameless_opens: u64,
}
