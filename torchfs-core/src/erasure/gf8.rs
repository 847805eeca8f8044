//! Reed-Solomon over GF(2^8), the default code: the matrix and the SIMD arithmetic of `reed-solomon-erasure`, driven here.
//!
//! The library's parity matrix is scaled by column and by row so that its first row and first column are ones. That keeps
//! every square submatrix invertible, makes the first parity shard the plain XOR of the data, and so makes encoding and the
//! restoring of a single shard mostly XOR. The matrix is part of the on-disk format.
//!
//! The library's own encode and reconstruct want every shard in a mutable buffer of full length. Shards here are slices of
//! one content buffer, the last ones short or empty, and a read wants one shard restored, not all. So this file takes the
//! library's code matrix and multiplies slices itself, in pieces that stay in the first-level cache.

use super::ErasureCode;
use super::check::{check_encode, check_reconstruct};
use crate::error::{Error, Kind, Result};
use crate::layout::Profile;
use reed_solomon_erasure::galois_8::{self, ReedSolomon};
use std::ops::Range;

/// Bytes of each shard worked on at a time: the outputs of a piece (m of them) and one input fit 32 KiB of cache.
const PIECE_BYTES: usize = 8 * 1024;

/// The code for one profile.
#[derive(Debug)]
pub struct Gf8 {
    profile: Profile,
    /// The m rows of k factors by which parity is made from data.
    parity_rows: Vec<Vec<u8>>,
}

impl Gf8 {
    /// Builds the code.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for an impossible profile.
    pub fn new(profile: Profile) -> Result<Self> {
        let profile = profile.checked()?;
        let (data, parity) = (usize::from(profile.data), usize::from(profile.parity));
        let code = ReedSolomon::new(data, parity).map_err(refused)?;
        let mut parity_rows = vec![vec![0; data]; parity];
        for column in 0..data {
            // Encoding a unit vector shows one column of the library's matrix.
            let unit: Vec<[u8; 1]> = (0..data).map(|index| [u8::from(index == column)]).collect();
            let mut coded = vec![[0u8; 1]; parity];
            code.encode_sep(&unit, &mut coded).map_err(refused)?;
            for (row, [factor]) in parity_rows.iter_mut().zip(coded) {
                row[column] = factor;
            }
        }
        scale_to_ones(&mut parity_rows);
        Ok(Gf8 { profile, parity_rows })
    }

    /// The factors that make shard `index` from the data shards.
    fn row(&self, index: usize) -> Vec<u8> {
        let data = usize::from(self.profile.data);
        match index.checked_sub(data) {
            Some(parity) => self.parity_rows[parity].clone(),
            None => (0..data).map(|column| u8::from(column == index)).collect(),
        }
    }

    /// The place in `wanted` of the last data shard that is missing, and its row when the others are restored before it: the
    /// first parity shard is the XOR of all data, so it takes no multiplication. Elements after those for the inputs are
    /// for the outputs before.
    fn last_by_xor(&self, chosen: &[(usize, &[u8])], wanted: &[usize]) -> Option<(usize, Vec<u8>)> {
        let data = usize::from(self.profile.data);
        let has = |index: usize| chosen.iter().any(|&(known, _)| known == index);
        let missing: Vec<usize> = (0..data).filter(|&index| !has(index)).collect();
        let last = wanted.iter().rposition(|index| missing.contains(index))?;
        let before = &wanted[..last];
        let all_before = missing.iter().filter(|&&index| index != wanted[last]).all(|index| before.contains(index));
        if !has(data) || !all_before {
            return None;
        }
        let inputs = chosen.iter().map(|&(index, _)| u8::from(index <= data));
        let counts = |at: usize, index: usize| {
            missing.contains(&index) && index != wanted[last] && !before[..at].contains(&index)
        };
        let outputs = before.iter().enumerate().map(|(at, &index)| u8::from(counts(at, index)));
        Some((last, inputs.chain(outputs).collect()))
    }
}

/// Divides each column by its first element, then each row by its first. No element is zero: each is by itself a square
/// submatrix.
fn scale_to_ones(rows: &mut [Vec<u8>]) {
    let first = rows[0].clone();
    for row in rows {
        row.iter_mut().zip(&first).for_each(|(element, &by)| *element = galois_8::div(*element, by));
        let by = row[0];
        row.iter_mut().for_each(|element| *element = galois_8::div(*element, by));
    }
}

fn refused(error: reed_solomon_erasure::Error) -> Error {
    Error::caused(Kind::InvalidInput, "erasure code", error)
}

impl ErasureCode for Gf8 {
    fn profile(&self) -> Profile {
        self.profile
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<()> {
        check_encode(self.profile, data, parity)?;
        combine(&self.parity_rows, data, parity);
        Ok(())
    }

    fn reconstruct(&self, shards: &[Option<&[u8]>], len: usize, wanted: &[usize]) -> Result<Vec<Vec<u8>>> {
        check_reconstruct(self.profile, shards, len, wanted)?;
        // Data shards come first in this order, and each makes a row of the matrix trivial.
        let chosen: Vec<(usize, &[u8])> = shards
            .iter()
            .enumerate()
            .filter_map(|(index, shard)| shard.map(|bytes| (index, bytes)))
            .take(usize::from(self.profile.data))
            .collect();
        let to_data = invert(chosen.iter().map(|&(index, _)| self.row(index)).collect())?;
        let mut rows: Vec<Vec<u8>> = wanted.iter().map(|&index| row_times(&self.row(index), &to_data)).collect();
        if let Some((last, row)) = self.last_by_xor(&chosen, wanted) {
            rows[last] = row;
        }
        let inputs: Vec<&[u8]> = chosen.iter().map(|&(_, bytes)| bytes).collect();
        // Made piece by piece in memory that is in the cache, and then appended: new memory is written once, not zeroed first.
        let mut restored: Vec<Vec<u8>> = wanted.iter().map(|_| Vec::with_capacity(len)).collect();
        let mut scratch = vec![0; PIECE_BYTES.min(len) * wanted.len()];
        for start in (0..len).step_by(PIECE_BYTES) {
            let piece = start..len.min(start + PIECE_BYTES);
            let mut outputs: Vec<&mut [u8]> =
                scratch.chunks_mut(PIECE_BYTES.min(len)).map(|out| &mut out[..piece.len()]).collect();
            combine_piece(&rows, &inputs, piece, &mut outputs);
            restored.iter_mut().zip(outputs).for_each(|(shard, output)| shard.extend_from_slice(output));
        }
        Ok(restored)
    }
}

/// Makes each output the sum of all inputs, each times the factor in the output's row. Inputs count as padded with zeros.
fn combine(rows: &[Vec<u8>], inputs: &[&[u8]], outputs: &mut [&mut [u8]]) {
    let len = outputs.first().map_or(0, |output| output.len());
    for start in (0..len).step_by(PIECE_BYTES) {
        let piece = start..len.min(start + PIECE_BYTES);
        let mut pieces: Vec<&mut [u8]> = outputs.iter_mut().map(|output| &mut output[piece.clone()]).collect();
        combine_piece(rows, inputs, piece, &mut pieces);
    }
}

/// The same for one piece of the inputs. Where a row goes on after the inputs, its factors are for the outputs before.
fn combine_piece(rows: &[Vec<u8>], inputs: &[&[u8]], piece: Range<usize>, outputs: &mut [&mut [u8]]) {
    for (column, input) in inputs.iter().enumerate() {
        let input = &input[piece.start.min(input.len())..piece.end.min(input.len())];
        for (row, output) in rows.iter().zip(outputs.iter_mut()) {
            let (covered, rest) = output.split_at_mut(input.len());
            if column == 0 {
                multiply(row[column], input, covered);
                rest.fill(0);
            } else {
                multiply_add(row[column], input, covered);
            }
        }
    }
    for (at, row) in rows.iter().enumerate() {
        let (before, output) = outputs.split_at_mut(at);
        for (factor, earlier) in row[inputs.len()..].iter().zip(before) {
            multiply_add(*factor, earlier, output[0]);
        }
    }
}

/// The library panics on empty slices, and does not know that some factors need no table.
fn multiply(factor: u8, input: &[u8], output: &mut [u8]) {
    match factor {
        0 => output.fill(0),
        1 => output.copy_from_slice(input),
        _ if input.is_empty() => {}
        _ => galois_8::mul_slice(factor, input, output),
    }
}

fn multiply_add(factor: u8, input: &[u8], output: &mut [u8]) {
    match factor {
        0 => {}
        1 => output.iter_mut().zip(input).for_each(|(sum, byte)| *sum ^= byte),
        _ if input.is_empty() => {}
        _ => galois_8::mul_slice_xor(factor, input, output),
    }
}

/// `row` times `matrix`.
fn row_times(row: &[u8], matrix: &[Vec<u8>]) -> Vec<u8> {
    let product = |column: usize| {
        row.iter().zip(matrix).fold(0, |sum, (&factor, line)| sum ^ galois_8::mul(factor, line[column]))
    };
    (0..row.len()).map(product).collect()
}

/// The inverse of a square matrix by Gauss-Jordan elimination.
fn invert(mut matrix: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>> {
    let size = matrix.len();
    let mut inverse: Vec<Vec<u8>> =
        (0..size).map(|row| (0..size).map(|column| u8::from(row == column)).collect()).collect();
    for at in 0..size {
        // Any k rows of the code's matrix are independent, so a pivot exists; without one the shards are of no use.
        let pivot = (at..size)
            .find(|&row| matrix[row][at] != 0)
            .ok_or_else(|| Error::new(Kind::DataLoss, "shards do not determine the content"))?;
        matrix.swap(at, pivot);
        inverse.swap(at, pivot);
        let scale = galois_8::div(1, matrix[at][at]);
        for line in [&mut matrix[at], &mut inverse[at]] {
            line.iter_mut().for_each(|element| *element = galois_8::mul(*element, scale));
        }
        for row in (0..size).filter(|&row| row != at) {
            let factor = matrix[row][at];
            subtract_row(&mut matrix, row, at, factor);
            subtract_row(&mut inverse, row, at, factor);
        }
    }
    Ok(inverse)
}

fn subtract_row(matrix: &mut [Vec<u8>], row: usize, from: usize, factor: u8) {
    if factor == 0 {
        return;
    }
    let source = matrix[from].clone();
    for (element, value) in matrix[row].iter_mut().zip(source) {
        *element ^= galois_8::mul(value, factor);
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    #[test]
    fn gf8_conforms() {
        for (data, parity) in [(1, 1), (2, 1), (4, 2), (6, 3), (10, 4), (1, 3)] {
            conformance::suite(&Gf8::new(Profile::new(data, parity).expect("profile")).expect("code"));
        }
    }

    #[test]
    fn the_first_parity_shard_is_the_xor_of_the_data() {
        let code = Gf8::new(Profile::DEFAULT).expect("code");
        let data: Vec<Vec<u8>> = (0..4).map(|shard| conformance::bytes(3 * PIECE_BYTES + 5, shard)).collect();
        let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let parity = conformance::encoded(&code, &slices, data[0].len());
        let xor = |at: usize| data.iter().fold(0, |sum, shard| sum ^ shard[at]);
        assert!((0..data[0].len()).all(|at| parity[0][at] == xor(at)));
    }

    #[test]
    fn any_order_and_repetition_of_what_is_wanted_is_restored() {
        let code = Gf8::new(Profile::DEFAULT).expect("code");
        let data: Vec<Vec<u8>> = (0..4).map(|shard| conformance::bytes(PIECE_BYTES + 77, shard)).collect();
        let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        let len = data[0].len();
        let parity = conformance::encoded(&code, &slices, len);
        let all: Vec<&[u8]> = data.iter().chain(&parity).map(Vec::as_slice).collect();
        for (first, second) in (0..36).map(|pair| (pair / 6, pair % 6)) {
            let mut left: Vec<Option<&[u8]>> = all.iter().copied().map(Some).collect();
            (left[first], left[second]) = (None, None);
            for wanted in [vec![first, second], vec![second, first, second], vec![first, 0, second, 3], vec![second]] {
                let restored = code.reconstruct(&left, len, &wanted).expect("restored");
                assert!(restored.iter().zip(&wanted).all(|(shard, &index)| shard == all[index]), "{wanted:?}");
            }
        }
    }

    #[test]
    fn the_matrix_of_the_format_does_not_change() {
        let code = Gf8::new(Profile::DEFAULT).expect("code");
        assert_eq!(code.parity_rows, PARITY_4_2);
    }

    /// As stored by every version so far.
    const PARITY_4_2: [[u8; 4]; 2] = [[1, 1, 1, 1], [1, 217, 92, 172]];
}
