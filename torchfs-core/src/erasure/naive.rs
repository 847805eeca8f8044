//! The slow, obvious code that the others are tested against: one byte at a time, its own field tables, its own matrix.
//!
//! GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1, generator 2. The matrix is Vandermonde (row r is r^0, r^1, ...), made
//! systematic by multiplying with the inverse of its first k rows: Plank, "A Tutorial on Reed-Solomon Coding for
//! Fault-Tolerance in RAID-like Systems", with the 2003 correction. Then the columns of the parity rows are scaled so that
//! the first of these rows is all ones, and the other rows so that they begin with one.

use super::ErasureCode;
use super::check::{check_encode, check_reconstruct};
use crate::error::{Error, Kind, Result};
use crate::layout::Profile;

/// The oracle for one profile.
#[derive(Debug)]
pub struct Naive {
    profile: Profile,
    field: Field,
    /// k+m rows of k factors; the first k rows are the identity.
    matrix: Vec<Vec<u8>>,
}

impl Naive {
    /// Builds the code.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for an impossible profile.
    pub fn new(profile: Profile) -> Result<Self> {
        let profile = profile.checked()?;
        let data = usize::from(profile.data);
        let field = Field::new();
        let vandermonde: Vec<Vec<u8>> =
            (0..profile.shards()).map(|row| (0..data).map(|column| field.power(row as u8, column)).collect()).collect();
        let top = (0..data).map(|unit| field.inverse_column(&vandermonde[..data], unit));
        let inverse: Vec<Vec<u8>> = top.collect::<Option<_>>().ok_or_else(singular)?;
        let product = |row: &Vec<u8>| (0..data).map(|column| field.dot(row, &inverse[column])).collect();
        let mut matrix: Vec<Vec<u8>> = vandermonde.iter().map(product).collect();
        let first = matrix[data].clone();
        for row in &mut matrix[data..] {
            let row_scale = field.multiply(field.inverse(row[0]), first[0]);
            for (element, &by) in row.iter_mut().zip(&first) {
                *element = field.multiply(field.multiply(*element, field.inverse(by)), row_scale);
            }
        }
        Ok(Naive { profile, field, matrix })
    }
}

fn singular() -> Error {
    Error::new(Kind::DataLoss, "shards do not determine the content")
}

fn byte(shard: &[u8], at: usize) -> u8 {
    shard.get(at).copied().unwrap_or(0)
}

impl ErasureCode for Naive {
    fn profile(&self) -> Profile {
        self.profile
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<()> {
        check_encode(self.profile, data, parity)?;
        let rows = &self.matrix[data.len()..];
        for (row, output) in rows.iter().zip(parity) {
            for (at, out) in output.iter_mut().enumerate() {
                let column: Vec<u8> = data.iter().map(|shard| byte(shard, at)).collect();
                *out = self.field.dot(row, &column);
            }
        }
        Ok(())
    }

    fn reconstruct(&self, shards: &[Option<&[u8]>], len: usize, wanted: &[usize]) -> Result<Vec<Vec<u8>>> {
        check_reconstruct(self.profile, shards, len, wanted)?;
        let data = usize::from(self.profile.data);
        let present: Vec<usize> = (0..shards.len()).filter(|&index| shards[index].is_some()).take(data).collect();
        let equations: Vec<Vec<u8>> = present.iter().map(|&index| self.matrix[index].clone()).collect();
        let mut restored = vec![vec![0; len]; wanted.len()];
        for at in 0..len {
            let known: Vec<u8> =
                present.iter().map(|&index| shards[index].map_or(0, |shard| byte(shard, at))).collect();
            let content = self.field.solve(equations.clone(), known).ok_or_else(singular)?;
            for (output, &index) in restored.iter_mut().zip(wanted) {
                output[at] = self.field.dot(&self.matrix[index], &content);
            }
        }
        Ok(restored)
    }
}

/// Arithmetic by logarithms.
#[derive(Debug)]
struct Field {
    log: [u8; 256],
    exp: [u8; 255],
}

impl Field {
    fn new() -> Self {
        let (mut log, mut exp) = ([0; 256], [0; 255]);
        let mut power: u16 = 1;
        for exponent in 0..255u8 {
            exp[usize::from(exponent)] = power as u8;
            log[usize::from(power)] = exponent;
            power <<= 1;
            if power > 255 {
                power ^= 0x11d;
            }
        }
        Field { log, exp }
    }

    fn multiply(&self, a: u8, b: u8) -> u8 {
        if a == 0 || b == 0 {
            return 0;
        }
        let sum = u16::from(self.log[usize::from(a)]) + u16::from(self.log[usize::from(b)]);
        self.exp[usize::from(sum % 255)]
    }

    /// The inverse of an element that is not zero.
    fn inverse(&self, a: u8) -> u8 {
        self.exp[(255 - usize::from(self.log[usize::from(a)])) % 255]
    }

    fn power(&self, base: u8, exponent: usize) -> u8 {
        (0..exponent).fold(1, |product, _| self.multiply(product, base))
    }

    fn dot(&self, a: &[u8], b: &[u8]) -> u8 {
        a.iter().zip(b).fold(0, |sum, (&x, &y)| sum ^ self.multiply(x, y))
    }

    /// Solves `equations` · x = `known` by elimination; `None` if they do not determine x.
    fn solve(&self, mut equations: Vec<Vec<u8>>, mut known: Vec<u8>) -> Option<Vec<u8>> {
        for at in 0..known.len() {
            let pivot = (at..known.len()).find(|&row| equations[row][at] != 0)?;
            equations.swap(at, pivot);
            known.swap(at, pivot);
            let scale = self.inverse(equations[at][at]);
            for row in 0..known.len() {
                let factor = self.multiply(equations[row][at], scale);
                if row == at || factor == 0 {
                    continue;
                }
                let pivot_row = equations[at].clone();
                for (element, &term) in equations[row].iter_mut().zip(&pivot_row) {
                    *element ^= self.multiply(factor, term);
                }
                known[row] ^= self.multiply(factor, known[at]);
            }
        }
        Some((0..known.len()).map(|at| self.multiply(known[at], self.inverse(equations[at][at]))).collect())
    }

    /// Column `unit` of the inverse of a square matrix.
    fn inverse_column(&self, matrix: &[Vec<u8>], unit: usize) -> Option<Vec<u8>> {
        let known = (0..matrix.len()).map(|row| u8::from(row == unit)).collect();
        self.solve(matrix.to_vec(), known)
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::super::gf8::Gf8;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn naive_conforms() {
        for (data, parity) in [(1, 1), (2, 1), (4, 2)] {
            conformance::suite(&Naive::new(Profile::new(data, parity).expect("profile")).expect("code"));
        }
    }

    #[test]
    fn the_field_is_a_field() {
        let field = Field::new();
        assert_eq!(field.multiply(0x80, 2), 0x1d);
        for a in 1..=255 {
            assert_eq!(field.multiply(a, field.inverse(a)), 1);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Two independent implementations agree on every parity byte.
        #[test]
        fn gf8_makes_the_same_parity(data in 1u8..20, parity in 1u8..8, len in 0usize..200, seed in any::<u64>()) {
            let profile = Profile::new(data, parity).expect("profile");
            let shards: Vec<Vec<u8>> = (0..u64::from(data)).map(|shard| conformance::bytes(len, seed ^ shard)).collect();
            let slices: Vec<&[u8]> = shards.iter().map(Vec::as_slice).collect();
            let coded = |code: &dyn ErasureCode| conformance::encoded(code, &slices, len);
            let (naive, gf8) = (Naive::new(profile).expect("code"), Gf8::new(profile).expect("code"));
            prop_assert_eq!(coded(&naive), coded(&gf8));
        }
    }
}
