//! Which ids have a hash that an earlier id has, for any number of them.
//!
//! In: hashes with rising ids. Out: the ids that repeat an earlier one, and which. Only these are held in memory: the pairs lie on
//! disk, parted by their hashes, and one part after another is read back and sorted.
//! Memory: a block of [`BLOCK_BYTES`] a part and the pairs of one part: 7.5 MiB for 10^8 pairs, 22 MiB for 10^9.
//! Never: a name in a folder, an answer that depends on the number of parts.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

/// First 16 bytes of a BLAKE3: two of a billion are alike by chance once in 10^20.
pub(super) type Short = [u8; 16];

/// Parts are made so many that one has about this many pairs.
const PART_PAIRS: u64 = 1 << 16;
const MAX_PARTS: u64 = 1 << 12;
/// A pair on disk: hash, id.
const PAIR_BYTES: usize = 24;
/// A block holds pairs of one part, after the offset of the part's block before.
const BLOCK_PAIRS: usize = 170;
const BLOCK_BYTES: usize = 8 + BLOCK_PAIRS * PAIR_BYTES;
/// In place of the offset in the first block of a part.
const NO_BLOCK: u64 = u64::MAX;

/// An id that repeats an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Repeat {
    pub(super) id: u64,
    /// The first with the same hash.
    pub(super) of: u64,
}

/// Pairs of hash and id, on disk.
pub(super) struct Pairs {
    file: File,
    end: u64,
    parts: Vec<Part>,
}

/// Pairs whose hashes begin alike.
#[derive(Debug, Clone)]
struct Part {
    /// Where its newest block is; the others follow from there.
    newest: u64,
    /// Not yet a block.
    pairs: Vec<(Short, u64)>,
}

impl Pairs {
    /// For about `n` pairs.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(super) fn for_about(n: u64) -> std::io::Result<Self> {
        let n_parts = n.div_ceil(PART_PAIRS).next_power_of_two().min(MAX_PARTS);
        let part = Part { newest: NO_BLOCK, pairs: Vec::new() };
        Ok(Self { file: tempfile::tempfile()?, end: 0, parts: vec![part; n_parts as usize] })
    }

    /// # Errors
    /// The disk is full.
    pub(super) fn push(&mut self, hash: Short, id: u64) -> std::io::Result<()> {
        let n_parts = self.parts.len();
        // The number of parts is a power of two of at most 16 bits.
        let part = &mut self.parts[usize::from(u16::from_be_bytes([hash[0], hash[1]])) % n_parts];
        part.pairs.push((hash, id));
        if part.pairs.len() < BLOCK_PAIRS {
            return Ok(());
        }
        let mut block = Vec::with_capacity(BLOCK_BYTES);
        block.extend_from_slice(&part.newest.to_le_bytes());
        for (hash, id) in part.pairs.drain(..) {
            block.extend_from_slice(&hash);
            block.extend_from_slice(&id.to_le_bytes());
        }
        self.file.write_all(&block)?;
        part.newest = self.end;
        self.end += block.len() as u64;
        Ok(())
    }

    /// The ids that repeat an earlier one, rising, as if those that `is_left_out` had never been pushed.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(super) fn repeats(mut self, is_left_out: &dyn Fn(u64) -> bool) -> std::io::Result<Vec<Repeat>> {
        let mut repeats = Vec::new();
        let mut pairs = Vec::new();
        for Part { newest, pairs: rest } in std::mem::take(&mut self.parts) {
            pairs.clear();
            pairs.extend(rest);
            let mut block = newest;
            while block != NO_BLOCK {
                block = self.read_block(block, &mut pairs)?;
            }
            pairs.retain(|(_, id)| !is_left_out(*id));
            pairs.sort_unstable();
            for alike in pairs.chunk_by(|(a, _), (b, _)| a == b) {
                let of = alike[0].1;
                repeats.extend(alike[1..].iter().map(|&(_, id)| Repeat { id, of }));
            }
        }
        repeats.sort_unstable();
        Ok(repeats)
    }

    /// Adds the pairs of the block at `offset`; gives the offset of the block before.
    fn read_block(&mut self, offset: u64, pairs: &mut Vec<(Short, u64)>) -> std::io::Result<u64> {
        let mut block = [0; BLOCK_BYTES];
        self.file.seek(SeekFrom::Start(offset))?;
        self.file.read_exact(&mut block)?;
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |n, &byte| (n << 8) | u64::from(byte));
        for pair in block[8..].as_chunks::<PAIR_BYTES>().0 {
            let mut hash = [0; 16];
            hash.copy_from_slice(&pair[..16]);
            pairs.push((hash, number(&pair[16..])));
        }
        Ok(number(&block[..8]))
    }
}

/// What `id` repeats, of `repeats` by rising id.
pub(super) fn repeated_by(repeats: &[Repeat], id: u64) -> Option<u64> {
    repeats.binary_search_by_key(&id, |repeat| repeat.id).ok().map(|at| repeats[at].of)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// `n` ids of which each has one of `n_distinct` hashes, through a spool for about `expected`.
    fn check(n: u64, n_distinct: u64, expected: u64, left_out: &dyn Fn(u64) -> bool) {
        let hash = |id: u64| {
            let draw = blake3::hash(&id.to_le_bytes()).as_bytes()[0];
            let mut short = Short::default();
            let kind = (id * 7 + u64::from(draw)) % n_distinct;
            short.copy_from_slice(&blake3::hash(&kind.to_le_bytes()).as_bytes()[..16]);
            short
        };
        let (mut pairs, mut first, mut wanted) = (Pairs::for_about(expected).unwrap(), HashMap::new(), Vec::new());
        for id in 0..n {
            pairs.push(hash(id), id).unwrap();
            if !left_out(id) {
                let of = *first.entry(hash(id)).or_insert(id);
                wanted.extend((of != id).then_some(Repeat { id, of }));
            }
        }
        let got = pairs.repeats(left_out).unwrap();
        assert_eq!(got, wanted, "{n} ids of {n_distinct} hashes, {expected} expected");
        assert!(wanted.iter().all(|repeat| repeated_by(&got, repeat.id) == Some(repeat.of)));
        assert_eq!(repeated_by(&got, n), None);
    }

    #[test]
    fn every_repeat_names_the_first_of_its_kind_whatever_the_number_of_parts() {
        for (n, n_distinct) in [(0, 1), (1, 1), (169, 3), (170, 170), (5_000, 1), (5_000, 700), (20_000, 1 << 40)] {
            for expected in [0, n, 1_000_000, u64::MAX >> 1] {
                check(n, n_distinct, expected, &|_| false);
                check(n, n_distinct, expected, &|id| id % 3 == 0);
            }
        }
    }
}
