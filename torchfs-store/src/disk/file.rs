//! One shard file: written once, read in whole blocks, believed only after every check.
//!
//! Blocking; for threads that may block, but for [`read_cached`], which never waits for the disk. No descriptor outlives
//! the call.

use super::direct::Buffers;
use super::format::{HEADER_BYTES, Header};
use rustix::buffer::spare_capacity;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, ReadWriteFlags};
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use torchfs_core::checksum::verify_blocks;
use torchfs_core::layout::widen_to_blocks;
use torchfs_core::settings::BLOCK_BYTES;
use torchfs_core::shard::ShardBlocks;
use torchfs_core::{ClusterId, Context, Error, IoContext, Kind, Result, ShardId};

/// What a shard file must say of itself to be believed.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The shard its name says it is.
    pub shard: ShardId,
}

/// How a read deals with bytes that are not in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wait {
    ForDisk,
    Never,
}

/// Writes a new file. It is not durable yet.
///
/// # Errors
/// Of the operating system; the file may be there in part.
pub fn write(path: &Path, head: &[u8; HEADER_BYTES], data: &[u8], direct: &Buffers) -> Result<File> {
    let file = File::create_new(path).io(|| format!("make {}", path.display()))?;
    let mut written = direct.write(&file, [head, data]).io(|| format!("write {}", path.display()))?;
    while written < HEADER_BYTES + data.len() {
        let slices = [
            IoSlice::new(&head[written.min(HEADER_BYTES)..]),
            IoSlice::new(&data[written.saturating_sub(HEADER_BYTES)..]),
        ];
        match rustix::io::pwritev(&file, &slices, written as u64) {
            Ok(0) => return Err(Error::new(Kind::Io, format!("write {}: nothing is taken", path.display()))),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(Error::io(format!("write {}", path.display()), error.into())),
        }
    }
    Ok(file)
}

/// Reads and checks the header, and the file's length against it.
///
/// # Errors
/// `NotFound`, `Corrupt`, `Protocol`, or of the operating system.
pub fn read_header(path: &Path, expected: Expected) -> Result<Header> {
    match open_checked(path, expected, Wait::ForDisk) {
        Ok((_, header)) => Ok(header),
        Err(failure) => Err(failure.into_error(path)),
    }
}

/// Reads the blocks that cover `range`.
///
/// # Errors
/// `NotFound`, `InvalidInput` for a range outside the shard, `Corrupt`, `Protocol`, or of the operating system.
pub fn read(path: &Path, expected: Expected, range: &Range<u32>) -> Result<ShardBlocks> {
    read_with(path, expected, range, Wait::ForDisk).map_err(|failure| failure.into_error(path))
}

/// As [`read`] if everything needed is in memory; `None` if the disk would have to be waited for.
pub fn read_cached(path: &Path, expected: Expected, range: &Range<u32>) -> Option<Result<ShardBlocks>> {
    match read_with(path, expected, range, Wait::Never) {
        Ok(blocks) => Some(Ok(blocks)),
        // EOPNOTSUPP and ENOSYS: this kernel or file system cannot say whether it would wait.
        Err(Failure::Os(Errno::AGAIN | Errno::OPNOTSUPP | Errno::NOSYS)) => None,
        Err(failure) => Some(Err(failure.into_error(path))),
    }
}

/// Reads the whole shard, for comparing.
///
/// # Errors
/// See [`read`].
pub fn read_all(path: &Path, expected: Expected) -> Result<ShardBlocks> {
    read(path, expected, &(0..u32::MAX))
}

/// An error that still knows its errno.
enum Failure {
    Os(Errno),
    Ours(Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure::Os(errno)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Ours(error)
    }
}

impl Failure {
    fn into_error(self, path: &Path) -> Error {
        match self {
            Failure::Ours(error) => error.context(path.display()),
            Failure::Os(errno) => Error::io(format!("read {}", path.display()), errno.into()),
        }
    }
}

fn read_with(path: &Path, expected: Expected, range: &Range<u32>, wait: Wait) -> Result<ShardBlocks, Failure> {
    let (file, header) = open_checked(path, expected, wait)?;
    if range.start >= header.bytes || range.is_empty() {
        let message = format!("range {range:?} of shard {} of {} bytes", expected.shard, header.bytes);
        return Err(Error::new(Kind::InvalidInput, message).into());
    }
    let blocks = widen_to_blocks(range, header.bytes);
    let data = read_at(&file, HEADER_BYTES as u64 + u64::from(blocks.start), blocks.len(), wait)?;
    let first = blocks.start as usize / BLOCK_BYTES;
    let checksums = header.checksums[first..first + data.len().div_ceil(BLOCK_BYTES)].to_vec();
    verify_blocks(&data, &checksums).context(|| format!("from byte {}", blocks.start))?;
    Ok(ShardBlocks { offset: blocks.start, data: data.into(), checksums })
}

fn open_checked(path: &Path, expected: Expected, wait: Wait) -> Result<(std::os::fd::OwnedFd, Header), Failure> {
    let resolve = match wait {
        Wait::ForDisk => ResolveFlags::empty(),
        Wait::Never => ResolveFlags::CACHED,
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)?;
    let file_bytes = rustix::fs::fstat(&file)?.st_size as u64;
    if file_bytes < HEADER_BYTES as u64 {
        return Err(corrupt(format!("it has {file_bytes} bytes, less than a header")).into());
    }
    let head = read_at(&file, 0, HEADER_BYTES, wait)?;
    let mut fixed = [0; HEADER_BYTES];
    fixed.copy_from_slice(&head);
    let header = Header::decode(&fixed)?;
    check_header(&header, expected, file_bytes)?;
    Ok((file, header))
}

fn check_header(header: &Header, expected: Expected, file_bytes: u64) -> Result<()> {
    if header.cluster != expected.cluster {
        return Err(corrupt(format!("it is of cluster {}, expected {}", header.cluster, expected.cluster)));
    }
    if header.shard != expected.shard {
        return Err(corrupt(format!("it holds shard {}", header.shard)));
    }
    let expected_bytes = HEADER_BYTES as u64 + u64::from(header.bytes);
    if file_bytes != expected_bytes {
        return Err(corrupt(format!("it has {file_bytes} bytes, expected {expected_bytes}")));
    }
    Ok(())
}

/// Exactly `len` bytes.
fn read_at(file: impl AsFd, offset: u64, len: usize, wait: Wait) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        let count = match wait {
            Wait::ForDisk => rustix::io::pread(&file, spare_capacity(&mut bytes), at),
            Wait::Never => read_nowait(&file, &mut bytes, len, at),
        };
        match count {
            Ok(0) => return Err(corrupt(format!("it ends at byte {at}")).into()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        bytes.truncate(len);
    }
    Ok(bytes)
}

fn read_nowait(file: impl AsFd, bytes: &mut Vec<u8>, len: usize, at: u64) -> Result<usize, Errno> {
    let have = bytes.len();
    bytes.resize(len, 0);
    let result = rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut bytes[have..])], at, ReadWriteFlags::NOWAIT);
    bytes.truncate(have + result.unwrap_or(0));
    result
}

fn corrupt(message: String) -> Error {
    Error::new(Kind::Corrupt, message)
}
