//! The stated maxima and deadlines, in one place with their reasons.

use std::time::Duration;

/// Bytes covered by one checksum. Part of the on-disk format.
pub const BLOCK_BYTES: usize = 64 * 1024;

/// Most data bytes in one shard. Part of the on-disk format.
pub const SHARD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most shards (k+m) in one stripe.
pub const SHARDS_MAX: usize = 64;

/// Files up to this size are packed, many to a stripe, by `put -r`; larger ones get stripes of their own.
pub const PACK_BYTES_MAX: u64 = 1024 * 1024;

/// Longest name of a directory entry, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest path or symbolic link target, in bytes.
pub const PATH_BYTES_MAX: usize = 4095;

/// Largest extended attribute value, in bytes (as on Linux).
pub const XATTR_BYTES_MAX: usize = 64 * 1024;

/// Largest file: the kernel counts in signed 64-bit numbers.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64;

/// Most names that an inode other than a folder has (as on ext4).
pub const LINKS_MAX: u32 = 65_000;

/// Most symbolic links followed on one path (as on Linux).
pub const LINKS_FOLLOWED_MAX: usize = 40;

/// About how large an answer to a folder listing with extents grows before it is cut short, in bytes.
pub const LIST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most operations in one metadata batch.
pub const BATCH_OPS_MAX: usize = 1024;

/// Most names in one answer to a folder listing.
pub const LIST_ENTRIES_MAX: usize = 4096;

/// Most shard reads in one `get_many`.
pub const GET_MANY_MAX: usize = 256;

/// Most requests that one connection has in flight; further ones wait their turn at the sender.
pub const CONNECTION_REQUESTS_MAX: usize = 128;

/// Largest frame that a peer may announce, header and payloads. A shard, its checksums and some room.
pub const FRAME_BYTES_MAX: usize = 80 * 1024 * 1024;

/// How long connecting to a peer may take, handshake included.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// How long one shard request may take. A disk that syncs 4 MiB under load answers well within it; a node that does not
/// is treated as failed for this request and replaced.
pub const SHARD_DEADLINE: Duration = Duration::from_secs(10);

/// How long one attempt at a metadata request may take before another node is asked.
pub const META_ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);

/// How long a metadata operation may take in all, retries, redirects and an election included.
pub const META_DEADLINE: Duration = Duration::from_secs(20);

/// How long a watch waits for a change. A lease counts from the question and the next one comes after the next answer, so two
/// waits and some delay fit into a [`LEASE`].
pub const WATCH_WAIT: Duration = Duration::from_millis(200);

/// How long the answer to a watch without a lease waits for further changes after the first, so that a busy cluster makes
/// none of them ask more than 200 times a second.
pub const WATCH_GATHER: Duration = Duration::from_millis(5);

/// How long a client that watches may answer from memory. For this long a client that hangs holds up the changes of others,
/// once, and so does a change of the metadata leader.
pub const LEASE: Duration = Duration::from_secs(1);

/// By so much a client takes its lease to be shorter than it is: clocks may run at speeds that differ by some percent.
pub const LEASE_MARGIN: Duration = Duration::from_millis(50);

/// A client that asked nothing for so long wants no lease, so that others need not wait for it.
pub const LEASE_IDLE: Duration = Duration::from_secs(30);

/// About how many changes the answer to one watch holds.
pub const WATCH_CHANGES_MAX: usize = 4096;

/// How often a storage node reports to the leader.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_millis(500);

/// A storage node that was silent for this long is taken to be down.
pub const NODE_DOWN_AFTER: Duration = Duration::from_secs(3);

/// How long the shards of replaced or deleted content stay readable for clients that still have the old version open. Nobody
/// tells metadata which files are open, so this is a promise of a time: long enough for a program to read through a large
/// file that it has open, short enough that a full disk has room again soon.
pub const GARBAGE_GRACE: Duration = Duration::from_secs(600);

/// How often what has passed [`GARBAGE_GRACE`] is looked for.
pub const COLLECT_INTERVAL: Duration = Duration::from_secs(60);

/// How old an uncommitted stripe must be before it counts as abandoned. A writer that stages for longer than this is told
/// [`Kind::Stale`](crate::Kind::Stale) at its commit and sends again.
pub const ABANDONED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// How long the answers to a silent client's last requests are kept for its retries.
pub const CLIENT_EXPIRY: Duration = Duration::from_secs(3600);
