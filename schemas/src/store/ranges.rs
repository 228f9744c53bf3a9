//! Which requests bytes of an object cost.
//!
//! In: the ranges that somebody wants. Out: the ranges that are asked for, rising, none overlapping another. Never: a request
//! made; who reads and who only counts requests call the same functions.

use std::ops::Range;

/// Ranges of one object that lie no farther apart than this are one request.
///
/// The bytes between are paid with the client's time: decrypting and copying 256 KiB takes about as long as signing, sending
/// and parsing one more request, a quarter of a millisecond. A wider gap, such as object_store's 1 MiB, would save latency only if
/// requests went one after the other; they go side by side, and rows that are drawn at random would bring ten times their bytes.
pub const MAX_GAP: u64 = 256 << 10;

/// Longest request. What is longer is cut into equal parts of at least half of this, which come side by side: one connection
/// of an object store gives some 50 to 100 MB/s, however wide the network.
pub const MAX_REQUEST: u64 = 16 << 20;

/// What a disk cache keeps whole: 8 bytes of checksum for each are nothing, and a record that is drawn alone brings half a block
/// more at each end, which its neighbours then need not fetch.
pub const BLOCK: u64 = 16 << 10;

/// Touching and overlapping ranges as one, rising; empty ones are left out.
pub fn merged(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    within(ranges, 0)
}

/// As [`merged`], and ranges with no more than [`MAX_GAP`] between them as one.
pub fn coalesced(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    within(ranges, MAX_GAP)
}

/// `range` in equal parts of no more than [`MAX_REQUEST`], rising.
pub fn split(range: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let (start, n_bytes) = (range.start, range.end.saturating_sub(range.start));
    let n_parts = n_bytes.div_ceil(MAX_REQUEST);
    let part = n_bytes.div_ceil(n_parts.max(1));
    (0..n_parts).map(move |i| start + i * part..start + ((i + 1) * part).min(n_bytes))
}

/// The runs of whole blocks that cover `ranges` of an object of `n_bytes`, rising: what a disk cache looks for, and what is
/// fetched in their place where it keeps it.
pub fn blocks(ranges: &[Range<u64>], n_bytes: u64) -> Vec<Range<u64>> {
    let whole = |range: &Range<u64>| {
        let end = range.end.div_ceil(BLOCK).saturating_mul(BLOCK);
        if range.is_empty() { range.clone() } else { range.start / BLOCK * BLOCK..end.min(n_bytes.max(range.end)) }
    };
    merged(&ranges.iter().map(whole).collect::<Vec<_>>())
}

/// The requests that `ranges` of one object cost: coalesced, then split.
pub fn requests(ranges: &[Range<u64>]) -> Vec<Range<u64>> {
    coalesced(ranges).iter().flat_map(split).collect()
}

fn within(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut ranges: Vec<Range<u64>> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut together: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match together.last_mut() {
            Some(last) if range.start <= last.end.saturating_add(gap) => last.end = last.end.max(range.end),
            _ => together.push(range),
        }
    }
    together
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_are_one_request_and_long_ones_are_many() {
        let far = 10 + MAX_GAP;
        assert_eq!(requests(&[]), []);
        #[expect(clippy::single_range_in_vec_init, reason = "a list of ranges that holds one")]
        let one = [0..far + 5];
        assert_eq!(requests(&[far..far + 5, 0..10, 7..7]), one);
        assert_eq!(requests(&[far + 1..far + 5, 0..10]), [0..10, far + 1..far + 5]);
        assert_eq!(merged(&[4..6, 0..2, 2..3, 5..9]), [0..3, 4..9]);
        let long: Vec<u64> = split(&(5..6 + 2 * MAX_REQUEST)).map(|part| part.end - part.start).collect();
        assert_eq!(long.len(), 3);
        assert!(long.iter().all(|&n| (MAX_REQUEST / 2..=MAX_REQUEST).contains(&n)), "{long:?}");
        assert_eq!(split(&(1..1 + MAX_REQUEST)).count(), 1);
        let end = 5 * BLOCK + 7;
        assert_eq!(blocks(&[0..1, BLOCK - 1..BLOCK + 1, 4 * BLOCK..end, 9..9], end), [0..2 * BLOCK, 4 * BLOCK..end]);
    }

    proptest! {
        #[test]
        fn every_wanted_byte_is_asked_for_once_and_none_far_from_a_wanted_one(
            wanted in prop::collection::vec((0u64..200 << 20, 0u64..20 << 20), 0..12)
        ) {
            let wanted: Vec<Range<u64>> = wanted.into_iter().map(|(start, n)| start..start + n).collect();
            let asked = requests(&wanted);
            prop_assert!(asked.windows(2).all(|pair| pair[0].end <= pair[1].start));
            prop_assert!(asked.iter().all(|r| !r.is_empty() && r.end - r.start <= MAX_REQUEST));
            let together = merged(&asked);
            for range in wanted.iter().filter(|range| !range.is_empty()) {
                prop_assert!(together.iter().any(|all| all.start <= range.start && range.end <= all.end));
            }
            let n_wanted: u64 = merged(&wanted).iter().map(|r| r.end - r.start).sum();
            let n_asked: u64 = asked.iter().map(|r| r.end - r.start).sum();
            prop_assert!(n_asked <= n_wanted + MAX_GAP * wanted.len() as u64);
        }
    }
}
