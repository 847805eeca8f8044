//! Reed-Solomon over GF(2^16) by additive FFT, crate `reed-solomon-novelpoly` (Lin, Chung, Han: "Novel Polynomial Basis and
//! Its Application to Reed-Solomon Erasure Codes", FOCS 2014).
//!
//! The library codes a payload of interleaved two-byte symbols and wants k and n to be powers of two. Both stay inside:
//! it is given the payload with symbol `i` of every shard side by side, so that its first k outputs are the data shards
//! themselves; data shards up to the next power of two are zeros that nobody stores and that always count as received;
//! and of its parity only the m shards of the profile are kept. So storage is k+m shards as with any code.
//!
//! An odd last byte is coded as a symbol whose high byte is zero. The library's elements are written in a Cantor basis, in
//! which the elements below 256 are the subfield GF(2^8), and all of the at most 128 evaluation points lie in it: parity of
//! such symbols has a zero high byte too, and one byte is enough to store it.

use super::ErasureCode;
use super::check::{check_encode, check_reconstruct};
use crate::error::{Error, Kind, Result};
use crate::layout::Profile;
use reed_solomon_novelpoly::{CodeParams, ReedSolomon, WrappedShard};

/// The code for one profile.
#[derive(Debug)]
pub struct Novelpoly {
    profile: Profile,
    /// The library's k: the profile's, rounded up to a power of two.
    width: usize,
    code: ReedSolomon,
}

impl Novelpoly {
    /// Builds the code.
    ///
    /// # Errors
    /// [`Kind::InvalidInput`] for an impossible profile.
    pub fn new(profile: Profile) -> Result<Self> {
        let profile = profile.checked()?;
        let width = usize::from(profile.data).next_power_of_two();
        let code = CodeParams::derive_parameters(width + usize::from(profile.parity), width).map_err(refused)?;
        Ok(Novelpoly { profile, width, code: code.make_encoder() })
    }

    /// The m parity shards of `len` bytes.
    fn parity(&self, data: &[&[u8]], len: usize) -> Result<Vec<Vec<u8>>> {
        let coded = self.code.encode::<WrappedShard>(&self.interleaved(data, len)).map_err(refused)?;
        let parity = coded.into_iter().skip(self.width).take(usize::from(self.profile.parity));
        Ok(parity.map(|shard| from_symbols(shard.into_inner(), len)).collect())
    }

    /// The library's payload: the first symbol of each shard, then the second of each, and so on.
    fn interleaved(&self, data: &[&[u8]], len: usize) -> Vec<u8> {
        let mut payload = vec![0; len.next_multiple_of(2) * self.width];
        for (index, shard) in data.iter().enumerate() {
            for (at, &byte) in shard.iter().enumerate() {
                payload[at / 2 * 2 * self.width + 2 * index + place_in_symbol(at, len)] = byte;
            }
        }
        payload
    }

    /// One data shard out of the library's payload.
    fn deinterleaved(&self, payload: &[u8], index: usize, len: usize) -> Vec<u8> {
        (0..len).map(|at| payload[at / 2 * 2 * self.width + 2 * index + place_in_symbol(at, len)]).collect()
    }

    /// What the library is to think it received: the shards that are there, and the zero shards between k and its own k.
    fn received(&self, shards: &[Option<&[u8]>], len: usize) -> Vec<Option<WrappedShard>> {
        let data = usize::from(self.profile.data);
        let zeros: &[u8] = &[];
        let padding = std::iter::repeat_n(Some(zeros), self.width - data);
        let all = shards[..data].iter().copied().chain(padding).chain(shards[data..].iter().copied());
        all.map(|shard| shard.map(|bytes| WrappedShard::new(to_symbols(bytes, len)))).collect()
    }
}

fn refused(error: reed_solomon_novelpoly::Error) -> Error {
    Error::caused(Kind::InvalidInput, "erasure code", error)
}

/// Symbols are big-endian; a symbol with one byte has it in the low half.
fn place_in_symbol(at: usize, len: usize) -> usize {
    if at + 1 == len && len % 2 == 1 { 1 } else { at % 2 }
}

/// A shard's bytes, padded with zeros to `len`, as whole symbols.
fn to_symbols(bytes: &[u8], len: usize) -> Vec<u8> {
    let mut symbols = bytes.to_vec();
    symbols.resize(len, 0);
    if len % 2 == 1 {
        symbols.insert(len - 1, 0);
    }
    symbols
}

/// The `len` bytes of a shard given as whole symbols.
fn from_symbols(mut symbols: Vec<u8>, len: usize) -> Vec<u8> {
    if len % 2 == 1 {
        debug_assert_eq!(symbols[len - 1], 0, "a symbol of one byte stays in the subfield");
        symbols.remove(len - 1);
    }
    symbols
}

impl ErasureCode for Novelpoly {
    fn profile(&self) -> Profile {
        self.profile
    }

    fn encode(&self, data: &[&[u8]], parity: &mut [&mut [u8]]) -> Result<()> {
        check_encode(self.profile, data, parity)?;
        let len = parity[0].len();
        if len == 0 {
            return Ok(());
        }
        for (output, shard) in parity.iter_mut().zip(self.parity(data, len)?) {
            output.copy_from_slice(&shard);
        }
        Ok(())
    }

    fn reconstruct(&self, shards: &[Option<&[u8]>], len: usize, wanted: &[usize]) -> Result<Vec<Vec<u8>>> {
        check_reconstruct(self.profile, shards, len, wanted)?;
        if len == 0 {
            return Ok(vec![Vec::new(); wanted.len()]);
        }
        let data = usize::from(self.profile.data);
        let payload = self.code.reconstruct(self.received(shards, len)).map_err(refused)?;
        let restored: Vec<Vec<u8>> = (0..data).map(|index| self.deinterleaved(&payload, index, len)).collect();
        let parity = if wanted.iter().any(|&index| index >= data) {
            let slices: Vec<&[u8]> = restored.iter().map(Vec::as_slice).collect();
            self.parity(&slices, len)?
        } else {
            Vec::new()
        };
        Ok(wanted.iter().map(|&index| restored.get(index).unwrap_or_else(|| &parity[index - data]).clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::conformance;
    use super::*;

    fn novelpoly(data: u8, parity: u8) -> Novelpoly {
        let profile = Profile { codec: crate::layout::Codec::Novelpoly, data, parity };
        Novelpoly::new(profile).expect("code")
    }

    #[test]
    fn novelpoly_conforms() {
        for (data, parity) in [(1, 1), (2, 1), (3, 2), (4, 2), (6, 3)] {
            conformance::suite(&novelpoly(data, parity));
        }
    }

    #[test]
    fn an_odd_length_needs_no_extra_byte_for_the_widest_code() {
        let code = novelpoly(33, 31);
        let shards: Vec<Vec<u8>> = (0..33).map(|shard| conformance::bytes(7, shard)).collect();
        let slices: Vec<&[u8]> = shards.iter().map(Vec::as_slice).collect();
        let parity = conformance::encoded(&code, &slices, 7);
        let mut left: Vec<Option<&[u8]>> = vec![None; 31];
        left.extend(slices[31..].iter().map(|shard| Some(*shard)));
        left.extend(parity.iter().map(|shard| Some(shard.as_slice())));
        let wanted: Vec<usize> = (0..31).collect();
        assert!(code.reconstruct(&left, 7, &wanted).expect("restored") == shards[..31]);
    }
}
