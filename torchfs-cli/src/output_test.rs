//! How things look: names, modes, sizes, times, and the golden shapes of `--json`.

use super::json::{Entry, Space, Stat, Status};
use super::*;
use serde_json::{Value, json, to_value};
use torchfs_core::layout::{Extent, Profile, Stripe, StripeShape};
use torchfs_core::meta::{self, Attr, Content, FsStat, MetaStatus, NodeLoad, NodeRecord, NodeState, StoreStatus};
use torchfs_core::{ClusterId, InodeId, MapVersion, MetaId, NodeId, NodeUuid, StripeId, Version};

#[test]
fn plain_names_stay_and_odd_ones_can_be_pasted_into_a_shell() {
    let table: [(&[u8], &str); 8] = [
        (b"a-b_c.png", "a-b_c.png"),
        ("größe".as_bytes(), "größe"),
        (b"a b", "'a b'"),
        (b"a'b", "'a'\\''b'"),
        (b"a\nb", "'a'$'\\n''b'"),
        (b"\xff\xfe", "''$'\\377\\376'''"),
        (b"\x1b[31m", "''$'\\033''[31m'"),
        (b"", "''"),
    ];
    for (name, quoted) in table {
        assert_eq!(shell_quoted(name), quoted);
    }
    assert_eq!(Names::Raw.bytes(b"a\nb\xff"), b"a\nb\xff");
}

#[test]
fn a_shell_reads_quoted_names_back() {
    for name in [&b"a b"[..], b"a'b", b"a\nb\tc", b"\xff\xfe x", b"'\n'\xff\n\n", b"$HOME `id` \"*\""] {
        let script = format!("printf %s {}", shell_quoted(name));
        let output = std::process::Command::new("bash").args(["-c", &script]).output().expect("bash runs");
        assert_eq!(output.stdout, name);
    }
}

#[test]
fn modes_look_like_ls() {
    assert_eq!(mode_text(FileKind::Directory, 0o755), "drwxr-xr-x");
    assert_eq!(mode_text(FileKind::File, 0o640), "-rw-r-----");
    assert_eq!(mode_text(FileKind::Directory, 0o1777), "drwxrwxrwt");
    assert_eq!(mode_text(FileKind::File, 0o6711), "-rws--s--x");
    assert_eq!(mode_text(FileKind::File, 0o7000), "---S--S--T");
    assert_eq!(mode_text(FileKind::Symlink, 0o777), "lrwxrwxrwx");
}

#[test]
fn sizes_have_three_digits() {
    let table = [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (12_902, "12.6 KiB"),
        (600 << 20, "600 MiB"),
        (1023 << 20, "1.00 GiB"),
        (u64::MAX, "16.0 EiB"),
    ];
    for (bytes, text) in table {
        assert_eq!(size_text(bytes), text);
    }
    assert_eq!(count_text(0), "0");
    assert_eq!(count_text(999), "999");
    assert_eq!(count_text(1_234_567), "1,234,567");
    assert_eq!(counted(1, "miss", "misses"), "1 miss");
    assert_eq!(counted(3009, "hit", "hits"), "3,009 hits");
    assert_eq!(counted(0, "file", "files"), "0 files");
}

#[test]
fn times_are_utc_dates() {
    let at = |seconds, nanos| time_text(Timestamp { seconds, nanos });
    assert_eq!(at(0, 0), "1970-01-01T00:00:00Z");
    assert_eq!(at(951_782_400, 5), "2000-02-29T00:00:00.000000005Z");
    assert_eq!(at(1_795_309_323, 0), "2026-11-22T01:02:03Z");
    assert_eq!(at(-1, 0), "1969-12-31T23:59:59Z");
    assert_eq!(short_time_text(Timestamp { seconds: 1_795_309_323, nanos: 9 }), "2026-11-22 01:02");
}

#[test]
fn tables_are_aligned_and_end_without_blanks() {
    let mut table = table(&["name", "n"], "<>");
    table.add_row(["a", "1"]);
    table.add_row(["long", "100"]);
    let mut out = Vec::new();
    write_table(&mut out, &table).expect("writes");
    assert_eq!(String::from_utf8_lossy(&out), "name    n\na       1\nlong  100\n");
}

fn attr() -> Attr {
    let time = Timestamp { seconds: 0, nanos: 0 };
    Attr {
        ino: InodeId(7),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 1000,
        gid: 100,
        size: 5,
        allocated: 5,
        atime: time,
        mtime: time,
        ctime: time,
        version: Version(2),
        rdev: 0,
        xattr_bytes: 0,
        profile: None,
    }
}

fn entry_json() -> Value {
    json!({
        "name": "b", "path": "/a/b", "type": "file", "mode": "0644", "nlink": 1, "uid": 1000, "gid": 100, "size": 5,
        "allocated": 5, "atime": "1970-01-01T00:00:00Z", "mtime": "1970-01-01T00:00:00Z",
        "ctime": "1970-01-01T00:00:00Z", "ino": 7, "version": 2
    })
}

#[test]
fn ls_json_has_its_shape() {
    assert_eq!(to_value(Entry::new(b"/a/b", &attr(), None)).expect("json"), entry_json());
    let odd = to_value(Entry::new(b"/a/\xff", &attr(), Some(b"x"))).expect("json");
    assert_eq!(odd["name"], "\u{fffd}");
    assert_eq!(odd["path_hex"], "2f612fff");
    assert_eq!(odd["target"], "x");
    assert_eq!(to_value(Entry::new(b"/", &attr(), None)).expect("json")["name"], "/");
}

#[test]
fn stat_json_says_where_the_content_is() {
    let shape = StripeShape::for_content(Profile::DEFAULT, 5);
    let nodes = vec![Some(NodeId(1)), None, None, None, Some(NodeId(2)), Some(NodeId(3))];
    let content = Content {
        extents: vec![Extent { offset: 0, len: 5, stripe: StripeId(9), stripe_offset: 0 }],
        stripes: vec![Stripe { id: StripeId(9), shape, nodes }],
    };
    let mut stat = Stat { entry: Entry::new(b"/a/b", &attr(), None), policy: None, extents: None, stripes: None };
    stat.set_content(&content);
    let mut expected = entry_json();
    expected["extents"] = json!([{ "offset": 0, "len": 5, "stripe": "0000000000000009", "stripe_offset": 0 }]);
    expected["stripes"] = json!([{
        "id": "0000000000000009", "profile": "4+2", "data_bytes": 5, "shard_bytes": 5,
        "nodes": [1, null, null, null, 2, 3]
    }]);
    assert_eq!(to_value(stat).expect("json"), expected);
}

#[test]
fn df_json_has_its_shape() {
    let stat = FsStat { capacity_bytes: 700, used_bytes: 100, inodes: 3, profile: Some(Profile::DEFAULT) };
    let expected = json!({
        "capacity_bytes": 700, "used_bytes": 100, "free_bytes": 600, "content_bytes": 400, "inodes": 3, "profile": "4+2"
    });
    assert_eq!(to_value(Space::from(stat)).expect("json"), expected);
}

#[test]
fn status_json_has_its_shape() {
    let record = |id, state| NodeRecord {
        id: NodeId(id),
        uuid: NodeUuid(1),
        addr: format!("s{id}:1"),
        domain: "host=h1,rack=r1".parse().expect("parses"),
        capacity_bytes: 1000,
        state,
    };
    let load = NodeLoad { capacity_bytes: 1000, used_bytes: 10, shards: 4, requests: 0, write_us: 0 };
    let status = meta::Status {
        cluster: ClusterId(0xab),
        leader: MetaId(2),
        metas: vec![MetaStatus { id: MetaId(2), addr: "m2:1".into(), state: "leader".into() }],
        stores: vec![
            StoreStatus { record: record(1, NodeState::Up), load: Some(load) },
            StoreStatus { record: record(2, NodeState::Down), load: None },
        ],
        files: 3,
        bytes: 100,
        stored_bytes: 150,
        stripes: 1,
        degraded_stripes: 1,
        bad_shards: 0,
        map: MapVersion(5),
        deleted_bytes: 70,
    };
    let expected = json!({
        "leader": { "id": 2, "addr": "m2:1" },
        "metas": [{ "id": 2, "addr": "m2:1", "state": "leader" }],
        "stores": [
            { "id": 1, "addr": "s1:1", "state": "up", "domain": "rack=r1,host=h1", "capacity_bytes": 1000,
              "used_bytes": 10, "shards": 4 },
            { "id": 2, "addr": "s2:1", "state": "down", "domain": "rack=r1,host=h1", "capacity_bytes": 1000,
              "used_bytes": null, "shards": null }
        ],
        "files": 3, "bytes": 100, "stored_bytes": 150, "stripes": 1, "degraded_stripes": 1, "bad_shards": 0,
        "map_version": 5, "deleted_bytes": 70
    });
    assert_eq!(to_value(Status::from(&status)).expect("json"), expected);
}
