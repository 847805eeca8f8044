//! The key of every record: one prefix byte per table, then numbers in big-endian order. `docs/metadata-state.md` lists them.

use torchfs_core::meta::{Change, Name, Timestamp, XattrName};
use torchfs_core::{ClientId, InodeId, NodeId, ShardId, StripeId};

/// Every key of the state is in `FROM..TO`; other users of the same store keep out of it.
pub const FROM: &[u8] = &[0x01];

/// See [`FROM`].
pub const TO: &[u8] = &[0x20];

const META: u8 = 0x01;
pub(super) const INODES: u8 = 0x02;
pub(super) const ENTRIES: u8 = 0x03;
pub(super) const EXTENTS: u8 = 0x04;
pub(super) const XATTRS: u8 = 0x05;
pub(super) const STRIPES: u8 = 0x06;
pub(super) const STRIPES_OF_NODE: u8 = 0x07;
pub(super) const FLAWED: u8 = 0x08;
pub(super) const GARBAGE: u8 = 0x09;
pub(super) const FORGOTTEN: u8 = 0x0a;
pub(super) const ORPHANS: u8 = 0x0b;
pub(super) const NODES: u8 = 0x0c;
pub(super) const CLIENTS: u8 = 0x0d;
pub(super) const CLIENTS_SEEN: u8 = 0x0e;
pub(super) const ANSWERS: u8 = 0x0f;
pub(super) const TRIMMED: u8 = 0x10;

pub(super) fn cluster() -> Vec<u8> {
    vec![META, 0]
}

pub(super) fn counters() -> Vec<u8> {
    vec![META, 1]
}

pub(super) fn garbage_bytes() -> Vec<u8> {
    vec![META, 2]
}

pub(super) fn inode(ino: InodeId) -> Vec<u8> {
    number(INODES, ino.0)
}

pub(super) fn entries(parent: InodeId) -> Vec<u8> {
    number(ENTRIES, parent.0)
}

pub(super) fn entry(parent: InodeId, name: &Name) -> Vec<u8> {
    [&entries(parent), name.as_bytes()].concat()
}

/// Chunks of extents are found by where their last extent ends, so that a scan forward from an offset starts with the
/// chunk that covers it.
pub(super) fn extents(ino: InodeId, end: u64) -> Vec<u8> {
    [&extents_of(ino)[..], &end.to_be_bytes()].concat()
}

pub(super) fn extents_of(ino: InodeId) -> Vec<u8> {
    number(EXTENTS, ino.0)
}

pub(super) fn xattrs(ino: InodeId) -> Vec<u8> {
    number(XATTRS, ino.0)
}

pub(super) fn xattr(ino: InodeId, name: &XattrName) -> Vec<u8> {
    [&xattrs(ino), name.as_bytes()].concat()
}

pub(super) fn stripe(id: StripeId) -> Vec<u8> {
    number(STRIPES, id.0)
}

pub(super) fn stripes_of_node(node: NodeId) -> Vec<u8> {
    [&[STRIPES_OF_NODE][..], &node.0.to_be_bytes()].concat()
}

pub(super) fn stripe_of_node(node: NodeId, id: StripeId) -> Vec<u8> {
    [&stripes_of_node(node)[..], &id.0.to_be_bytes()].concat()
}

pub(super) fn flawed(id: StripeId) -> Vec<u8> {
    number(FLAWED, id.0)
}

pub(super) fn garbage_before(node: NodeId, time: Timestamp) -> Vec<u8> {
    [&[GARBAGE][..], &node.0.to_be_bytes(), &time_bytes(time)].concat()
}

pub(super) fn garbage_of(node: NodeId) -> Vec<u8> {
    [&[GARBAGE][..], &node.0.to_be_bytes()].concat()
}

pub(super) fn garbage(node: NodeId, since: Timestamp, shard: ShardId) -> Vec<u8> {
    [&garbage_before(node, since)[..], &shard.stripe.0.to_be_bytes(), &[shard.index]].concat()
}

pub(super) fn trimmed(id: StripeId) -> Vec<u8> {
    number(TRIMMED, id.0)
}

pub(super) fn forgotten(id: StripeId) -> Vec<u8> {
    number(FORGOTTEN, id.0)
}

pub(super) fn orphans_before(time: Timestamp) -> Vec<u8> {
    [&[ORPHANS][..], &time_bytes(time)].concat()
}

pub(super) fn orphan(since: Timestamp, ino: InodeId) -> Vec<u8> {
    [&orphans_before(since)[..], &ino.0.to_be_bytes()].concat()
}

pub(super) fn node(id: NodeId) -> Vec<u8> {
    [&[NODES][..], &id.0.to_be_bytes()].concat()
}

pub(super) fn client(id: ClientId) -> Vec<u8> {
    number(CLIENTS, id.0)
}

pub(super) fn clients_seen_before(time: Timestamp) -> Vec<u8> {
    [&[CLIENTS_SEEN][..], &time_bytes(time)].concat()
}

pub(super) fn client_seen(time: Timestamp, id: ClientId) -> Vec<u8> {
    [&clients_seen_before(time)[..], &id.0.to_be_bytes()].concat()
}

pub(super) fn answers(client: ClientId) -> Vec<u8> {
    number(ANSWERS, client.0)
}

pub(super) fn answer(client: ClientId, sequence: u64) -> Vec<u8> {
    [&answers(client)[..], &sequence.to_be_bytes()].concat()
}

/// What the record of this key says something of, when it is something that clients keep in mind.
pub(super) fn subject(key: &[u8]) -> Option<Change> {
    let (table, rest) = key.split_first()?;
    let (number, name) = rest.split_first_chunk()?;
    let ino = InodeId(u64::from_be_bytes(*number));
    match *table {
        INODES | EXTENTS | XATTRS => Some(Change::Inode(ino)),
        ENTRIES => Some(Change::Name(ino, Name::new(name).ok()?)),
        _ => None,
    }
}

/// The first key after all that start with `prefix`. No prefix here is all 0xff.
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The last eight bytes of a key as a number.
pub(super) fn last_number(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|bytes| u64::from_be_bytes(*bytes))
}

fn number(table: u8, number: u64) -> Vec<u8> {
    [&[table][..], &number.to_be_bytes()].concat()
}

/// Twelve bytes that sort as the times do, those before 1970 first.
fn time_bytes(time: Timestamp) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&(time.seconds as u64 ^ 1 << 63).to_be_bytes());
    bytes[8..].copy_from_slice(&time.nanos.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_sort_as_they_pass() {
        let times = [(i64::MIN, 0), (-1, 999), (0, 0), (0, 1), (1, 0), (i64::MAX, 999_999_999)];
        let keys: Vec<_> = times.iter().map(|&(seconds, nanos)| time_bytes(Timestamp { seconds, nanos })).collect();
        assert!(keys.is_sorted());
    }

    #[test]
    fn the_end_of_a_prefix_is_after_all_its_keys_and_before_the_next_prefix() {
        assert_eq!(end_of(&[2, 0, 0xff]), [2, 1]);
        assert_eq!(end_of(&[2, 7]), [2, 8]);
        assert_eq!(end_of(&number(INODES, u64::MAX)), [INODES + 1]);
    }
}
