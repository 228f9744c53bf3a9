//! Records that are nearly an earlier one, by picture or by captions.
//!
//! In: sketches in a fixed order. Out: for each the earliest kept record that it is near to, the same whatever the machine.
//! Never: a near pair missed (the index gives what comparing with every earlier record gives), a record that was itself
//! dropped counted as an earlier one.
//!
//! Both indexes rest on pigeonholes. Two hashes that differ in at most k of 64 bits agree but for k / 4 bits in one of their
//! four quarters; two sketches that differ in at most m of 64 places agree wholly in one of more than m bands.

use std::collections::HashMap;

use super::caption_sketch::{CaptionSketch, SKETCH_LEN, n_equal};
use super::config::NearRule;

/// Beyond this, probes of the index grow past a thousand a record, and unlike photographs meet.
pub(crate) const MAX_PICTURE_BITS: u32 = 11;

/// What a record is compared by.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sketches {
    pub(crate) picture: Option<u64>,
    pub(crate) captions: Option<CaptionSketch>,
}

/// The earlier record, and how near it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Near {
    /// Bits in which the pictures differ.
    Picture { of: u64, bits: u32 },
    /// Places of 64 in which the captions agree.
    Captions { of: u64, n_equal: usize },
}

/// Records seen so far: about 36 bytes for a picture, 8 MiB once; about 0.5 KiB for captions.
pub(crate) struct NearIndex {
    pictures: Option<PictureIndex>,
    captions: Option<CaptionIndex>,
}

impl NearIndex {
    pub(crate) fn new(rule: &NearRule) -> Self {
        let captions = rule.caption_jaccard.map(|share| {
            // At least the share, and never less for rounding.
            let n_wanted = (share * SKETCH_LEN as f64 - 1e-9).ceil().clamp(1.0, SKETCH_LEN as f64) as usize;
            CaptionIndex::new(n_wanted)
        });
        Self { pictures: rule.picture_bits.map(PictureIndex::new), captions }
    }

    /// Remembers a record that stays whatever it is near to: of an earlier snapshot, of another corpus.
    pub(crate) fn refer(&mut self, id: u64, sketches: &Sketches) {
        if let (Some(index), Some(hash)) = (&mut self.pictures, sketches.picture) {
            index.insert(id, hash);
        }
        if let (Some(index), Some(sketch)) = (&mut self.captions, &sketches.captions) {
            index.insert(id, sketch);
        }
    }

    /// The first record that this one is near to, its picture asked before its captions; without any it is remembered.
    pub(crate) fn judge(&mut self, id: u64, sketches: &Sketches) -> Option<Near> {
        let picture = || Some(self.pictures.as_ref()?.nearest(sketches.picture?)).flatten();
        let captions = || Some(self.captions.as_ref()?.nearest(sketches.captions.as_ref()?)).flatten();
        let near = picture().or_else(captions);
        if near.is_none() {
            self.refer(id, sketches);
        }
        near
    }
}

/// End of a list.
const NONE: u32 = u32::MAX;
const QUARTERS: usize = 4;
/// Values of a quarter.
const VALUES: usize = 1 << 16;

/// Hashes by each of their quarters.
struct PictureIndex {
    max_bits: u32,
    /// Patterns that turn a quarter into one that is near enough, 0 among them.
    patterns: Vec<u16>,
    hashes: Vec<u64>,
    ids: Vec<u64>,
    /// By quarter and its value, the last hash that has it; and for each hash the one before it.
    heads: Vec<u32>,
    before: Vec<[u32; QUARTERS]>,
}

impl PictureIndex {
    fn new(max_bits: u32) -> Self {
        let radius = max_bits.min(MAX_PICTURE_BITS) / QUARTERS as u32;
        let patterns = (0..=u16::MAX).filter(|pattern| pattern.count_ones() <= radius).collect();
        let heads = vec![NONE; QUARTERS * VALUES];
        Self { max_bits, patterns, hashes: Vec::new(), ids: Vec::new(), heads, before: Vec::new() }
    }

    fn quarter(hash: u64, quarter: usize) -> u16 {
        (hash >> (16 * quarter)) as u16
    }

    fn insert(&mut self, id: u64, hash: u64) {
        // 2^32 pictures would take 150 GB: an index of that size is not one of a process.
        let Ok(place) = u32::try_from(self.hashes.len()) else { return };
        let before = std::array::from_fn(|quarter| {
            let head = &mut self.heads[quarter * VALUES + usize::from(Self::quarter(hash, quarter))];
            std::mem::replace(head, place)
        });
        self.before.push(before);
        self.hashes.push(hash);
        self.ids.push(id);
    }

    /// The earliest record within the distance.
    fn nearest(&self, hash: u64) -> Option<Near> {
        let mut first: Option<(usize, u32)> = None;
        for quarter in 0..QUARTERS {
            let own = Self::quarter(hash, quarter);
            for pattern in &self.patterns {
                let mut place = self.heads[quarter * VALUES + usize::from(own ^ pattern)];
                while place != NONE {
                    let i = place as usize;
                    let bits = (self.hashes[i] ^ hash).count_ones();
                    if bits <= self.max_bits && first.is_none_or(|(earliest, _)| i < earliest) {
                        first = Some((i, bits));
                    }
                    place = self.before[i][quarter];
                }
            }
        }
        first.map(|(i, bits)| Near::Picture { of: self.ids[i], bits })
    }
}

/// Sketches by bands of their numbers.
struct CaptionIndex {
    /// Places that must agree.
    n_wanted: usize,
    /// Numbers of a band.
    band_len: usize,
    sketches: Vec<CaptionSketch>,
    ids: Vec<u64>,
    /// By band and its hash, the last sketch that has it.
    heads: HashMap<(u8, u64), u32>,
    /// For each sketch and band the one before it, bands of a sketch side by side.
    before: Vec<u32>,
}

impl CaptionIndex {
    fn new(n_wanted: usize) -> Self {
        // The fewest bands, a power of two, of which one must stay whole when `n_wanted` places agree.
        let n_bands = (SKETCH_LEN - n_wanted + 1).next_power_of_two().min(SKETCH_LEN);
        let band_len = SKETCH_LEN / n_bands;
        Self { n_wanted, band_len, sketches: Vec::new(), ids: Vec::new(), heads: HashMap::new(), before: Vec::new() }
    }

    fn n_bands(&self) -> usize {
        SKETCH_LEN / self.band_len
    }

    fn bands<'s>(&self, sketch: &'s CaptionSketch) -> impl Iterator<Item = (u8, u64)> + use<'s> {
        // Fowler, Noll, Vo: bands that meet by chance cost a comparison, nothing else.
        let hash = |band: &[u32]| {
            band.iter().fold(0xCBF2_9CE4_8422_2325, |h: u64, v| (h ^ u64::from(*v)).wrapping_mul(0x0100_0000_01B3))
        };
        (0_u8..).zip(sketch.chunks_exact(self.band_len).map(hash))
    }

    fn insert(&mut self, id: u64, sketch: &CaptionSketch) {
        let Ok(place) = u32::try_from(self.sketches.len()) else { return };
        for band in self.bands(sketch) {
            let before = self.heads.insert(band, place);
            self.before.push(before.unwrap_or(NONE));
        }
        self.sketches.push(*sketch);
        self.ids.push(id);
    }

    fn nearest(&self, sketch: &CaptionSketch) -> Option<Near> {
        let mut first: Option<(usize, usize)> = None;
        for band in self.bands(sketch) {
            let mut place = self.heads.get(&band).copied().unwrap_or(NONE);
            while place != NONE {
                let i = place as usize;
                if first.is_none_or(|(earliest, _)| i < earliest) {
                    let n_equal = n_equal(&self.sketches[i], sketch);
                    if n_equal >= self.n_wanted {
                        first = Some((i, n_equal));
                    }
                }
                place = self.before[i * self.n_bands() + usize::from(band.0)];
            }
        }
        first.map(|(i, n_equal)| Near::Captions { of: self.ids[i], n_equal })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(picture_bits: Option<u32>, caption_jaccard: Option<f64>) -> NearRule {
        NearRule { picture_bits, caption_jaccard, against: Vec::new() }
    }

    /// Compares with every record that was kept, in order.
    fn by_force(rule: &NearRule, records: &[Sketches]) -> Vec<Option<Near>> {
        let mut kept: Vec<(u64, Sketches)> = Vec::new();
        let mut out = Vec::new();
        for (id, record) in (0..).zip(records) {
            let picture = kept.iter().find_map(|(of, other)| {
                let bits = (other.picture? ^ record.picture?).count_ones();
                (bits <= rule.picture_bits?).then_some(Near::Picture { of: *of, bits })
            });
            let captions = kept.iter().find_map(|(of, other)| {
                let n_equal = n_equal(other.captions.as_ref()?, record.captions.as_ref()?);
                (n_equal as f64 / 64.0 >= rule.caption_jaccard?).then_some(Near::Captions { of: *of, n_equal })
            });
            let near = picture.or(captions);
            if near.is_none() {
                kept.push((id, *record));
            }
            out.push(near);
        }
        out
    }

    fn indexed(rule: &NearRule, records: &[Sketches]) -> Vec<Option<Near>> {
        let mut index = NearIndex::new(rule);
        (0..).zip(records).map(|(id, record)| index.judge(id, record)).collect()
    }

    /// Records of which many are changed copies of a few.
    fn records() -> impl Strategy<Value = Vec<Sketches>> {
        let one =
            (0..4_u64, prop::collection::vec(0..64_u32, 0..14), 0..4_u32, prop::collection::vec(0..64_usize, 0..40));
        prop::collection::vec((one, any::<bool>(), any::<bool>()), 0..60).prop_map(|all| {
            let record = |((seed, flips, words, places), has_picture, has_captions): (_, bool, bool)| {
                let (flips, places): (Vec<u32>, Vec<usize>) = (flips, places);
                let base = u64::from_le_bytes([seed as u8; 8]).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                let hash = flips.iter().fold(base, |hash, bit| hash ^ (1 << bit));
                let mut sketch: CaptionSketch = std::array::from_fn(|i| words * 1000 + i as u32);
                places.iter().for_each(|&i| sketch[i] = seed as u32 * 77 + 1_000_000);
                Sketches { picture: has_picture.then_some(hash), captions: has_captions.then_some(sketch) }
            };
            all.into_iter().map(record).collect()
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_comparing_with_everything_finds(
            records in records(),
            bits in prop::option::of(0..=MAX_PICTURE_BITS),
            jaccard in prop::option::of(0.5..=1.0_f64),
        ) {
            let rule = rule(bits, jaccard);
            prop_assert_eq!(indexed(&rule, &records), by_force(&rule, &records));
        }
    }

    #[test]
    fn a_record_near_to_a_dropped_one_only_is_kept() {
        let picture = |hash: u64| Sketches { picture: Some(hash), captions: None };
        let got = indexed(&rule(Some(2), None), &[picture(0), picture(0b11), picture(0b1111), picture(0b111)]);
        let near = |of, bits| Some(Near::Picture { of, bits });
        assert_eq!(got, [None, near(0, 2), None, near(2, 1)]);
    }

    #[test]
    fn records_that_are_referred_to_count_even_if_they_are_near_each_other() {
        let mut index = NearIndex::new(&rule(Some(1), None));
        let picture = |hash: u64| Sketches { picture: Some(hash), captions: None };
        index.refer(100, &picture(0));
        index.refer(101, &picture(1));
        assert_eq!(index.judge(1, &picture(0b11)), Some(Near::Picture { of: 101, bits: 1 }));
        assert_eq!(index.judge(2, &Sketches::default()), None);
    }
}
