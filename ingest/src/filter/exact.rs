//! Media whose bytes were there before.
//!
//! In: digests in a fixed order. Out: for each the earlier one that it repeats. Never: two media taken for one by chance: of
//! 10^9 media that happens once in 10^20 runs.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use imp_schemas::shard::Digest;

/// Digests seen so far, about 48 bytes each.
#[derive(Debug, Default)]
pub(crate) struct ExactIndex {
    first: HashMap<[u8; 16], u64>,
}

impl ExactIndex {
    /// The earlier medium with these bytes; `id` itself is remembered if there is none.
    pub(crate) fn judge(&mut self, id: u64, digest: &Digest) -> Option<u64> {
        // Half of the hex digits of a BLAKE3; a digest of another form is hashed first.
        let mut short = [0; 16];
        let digits = digest.0.as_bytes().as_chunks::<2>().0;
        let byte = |pair: &[u8; 2]| std::str::from_utf8(pair).ok().and_then(|text| u8::from_str_radix(text, 16).ok());
        if digits.len() < 16 || !short.iter_mut().zip(digits).all(|(to, pair)| byte(pair).map(|b| *to = b).is_some()) {
            short.copy_from_slice(&blake3::hash(digest.0.as_bytes()).as_bytes()[..16]);
        }
        match self.first.entry(short) {
            Entry::Occupied(entry) => Some(*entry.get()),
            Entry::Vacant(entry) => {
                entry.insert(id);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_digest_names_the_first_of_its_kind() {
        let mut index = ExactIndex::default();
        let got: Vec<Option<u64>> = ["a", "b", "a", "a", "c", "b"]
            .iter()
            .zip(10..)
            .map(|(bytes, id)| index.judge(id, &Digest::of(bytes.as_bytes())))
            .collect();
        assert_eq!(got, [None, None, Some(10), Some(10), None, Some(11)]);
        assert_eq!(index.judge(99, &Digest("no digest".to_owned())), None);
        assert_eq!(index.judge(100, &Digest("no digest".to_owned())), Some(99));
    }
}
