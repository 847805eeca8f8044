//! What every [`ErasureCode`] must do, as a test suite.

use super::ErasureCode;
use crate::error::Kind;
use crate::settings::BLOCK_BYTES;

/// Runs everything.
///
/// # Panics
/// With what is wrong, if the code does not conform.
pub fn suite(code: &dyn ErasureCode) {
    for len in [0, 1, 2, 7, 64, 257] {
        every_loss_of_up_to_m_is_restored(code, &full(code, len), len);
    }
    every_loss_of_up_to_m_is_restored(code, &short(code, 100), 100);
    one_more_loss_is_data_loss(code);
    blocks_are_independent(code);
    wrong_arguments_are_refused(code);
}

/// Bytes that repeat nowhere near, the same for the same seed.
#[must_use]
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The m parity shards of `len` bytes for these data shards.
///
/// # Panics
/// If encoding fails.
#[must_use]
pub fn encoded(code: &dyn ErasureCode, data: &[&[u8]], len: usize) -> Vec<Vec<u8>> {
    // Not zeros: old content of the buffers must not show through.
    let mut parity = vec![vec![0xa5; len]; usize::from(code.profile().parity)];
    let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
    code.encode(data, &mut outputs).expect("encode");
    parity
}

fn full(code: &dyn ErasureCode, len: usize) -> Vec<Vec<u8>> {
    (0..u64::from(code.profile().data)).map(|index| bytes(len, index)).collect()
}

/// As in a stripe that is not full: one data shard is short, those after it are empty.
fn short(code: &dyn ErasureCode, len: usize) -> Vec<Vec<u8>> {
    let mut data = full(code, len);
    let at = data.len() / 2;
    data[at].truncate(len / 3);
    data[at + 1..].iter_mut().for_each(Vec::clear);
    data
}

fn slices(shards: &[Vec<u8>]) -> Vec<&[u8]> {
    shards.iter().map(Vec::as_slice).collect()
}

fn padded(shard: &[u8], len: usize) -> Vec<u8> {
    let mut padded = shard.to_vec();
    padded.resize(len, 0);
    padded
}

/// All sets of at most `most` of `0..count`.
#[must_use]
pub fn subsets(count: usize, most: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..most {
        let until = all.len();
        for at in from..until {
            let next = all[at].last().map_or(0, |last| last + 1);
            for element in next..count {
                let longer = [all[at].as_slice(), &[element]].concat();
                all.push(longer);
            }
        }
        from = until;
    }
    all
}

fn every_loss_of_up_to_m_is_restored(code: &dyn ErasureCode, data: &[Vec<u8>], len: usize) {
    let parity = encoded(code, &slices(data), len);
    let all: Vec<&[u8]> = data.iter().chain(&parity).map(Vec::as_slice).collect();
    for lost in subsets(all.len(), usize::from(code.profile().parity)) {
        let left: Vec<Option<&[u8]>> =
            all.iter().enumerate().map(|(index, shard)| (!lost.contains(&index)).then_some(*shard)).collect();
        let restored = code.reconstruct(&left, len, &lost).expect("reconstruct");
        assert_eq!(restored.len(), lost.len());
        for (index, shard) in lost.iter().zip(restored) {
            assert!(shard == padded(all[*index], len), "shard {index} of {len} bytes after losing {lost:?}");
        }
    }
    // What is asked for need not be lost.
    let present: Vec<Option<&[u8]>> = all.iter().map(|shard| Some(*shard)).collect();
    let copies = code.reconstruct(&present, len, &[all.len() - 1, 0]).expect("reconstruct");
    assert!(copies == [padded(all[all.len() - 1], len), padded(all[0], len)]);
}

fn one_more_loss_is_data_loss(code: &dyn ErasureCode) {
    let shard = [1u8; 8];
    let profile = code.profile();
    let mut left = vec![Some(&shard[..]); profile.shards()];
    left[..=usize::from(profile.parity)].fill(None);
    assert_eq!(code.reconstruct(&left, 8, &[0]).expect_err("k-1 are left").kind(), Kind::DataLoss);
}

/// The parity of a range of blocks is the range of the parity.
fn blocks_are_independent(code: &dyn ErasureCode) {
    let len = 2 * BLOCK_BYTES + 11;
    let data = full(code, len);
    let whole = encoded(code, &slices(&data), len);
    for (start, end) in [(0, BLOCK_BYTES), (BLOCK_BYTES, 2 * BLOCK_BYTES), (BLOCK_BYTES, len), (2 * BLOCK_BYTES, len)] {
        let part: Vec<&[u8]> = data.iter().map(|shard| &shard[start..end]).collect();
        for (whole, part) in whole.iter().zip(encoded(code, &part, end - start)) {
            assert!(part == whole[start..end], "parity of bytes {start}..{end}");
        }
    }
}

fn wrong_arguments_are_refused(code: &dyn ErasureCode) {
    let profile = code.profile();
    let (k, m) = (usize::from(profile.data), usize::from(profile.parity));
    let shard = [1u8; 9];
    let encode = |data: usize, data_len: usize, parity_lens: Vec<usize>| {
        let mut parity: Vec<Vec<u8>> = parity_lens.into_iter().map(|len| vec![0; len]).collect();
        let mut outputs: Vec<&mut [u8]> = parity.iter_mut().map(Vec::as_mut_slice).collect();
        code.encode(&vec![&shard[..data_len]; data], &mut outputs).map_err(|error| error.kind())
    };
    assert_eq!(encode(k, 8, vec![8; m]), Ok(()));
    assert_eq!(encode(k + 1, 8, vec![8; m]), Err(Kind::InvalidInput));
    assert_eq!(encode(k, 8, vec![8; m + 1]), Err(Kind::InvalidInput));
    assert_eq!(encode(k, 9, vec![8; m]), Err(Kind::InvalidInput));
    if m > 1 {
        let mut uneven = vec![8; m];
        uneven[1] = 9;
        assert_eq!(encode(k, 8, uneven), Err(Kind::InvalidInput));
    }
    let reconstruct = |shards: usize, len: usize, wanted: usize| {
        code.reconstruct(&vec![Some(&shard[..]); shards], len, &[wanted]).map(|_| ()).map_err(|error| error.kind())
    };
    assert_eq!(reconstruct(k + m, 9, 0), Ok(()));
    assert_eq!(reconstruct(k + m - 1, 9, 0), Err(Kind::InvalidInput));
    assert_eq!(reconstruct(k + m, 8, 0), Err(Kind::InvalidInput));
    assert_eq!(reconstruct(k + m, 9, k + m), Err(Kind::InvalidInput));
}
