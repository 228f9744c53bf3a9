//! Captions → a sketch from which the share of words in a row that two texts have in common can be read.
//!
//! In: the captions of a record. Out: 64 numbers; two sketches agree in about as many places as their shingles agree. Never: a
//! sketch that depends on the machine, on the order of captions, or on upper case and Unicode's ways to write a letter.
//! Source: Broder 1997, "On the resemblance and containment of documents" (MinHash of word 3-shingles).

use std::collections::BTreeSet;

use unicode_normalization::UnicodeNormalization;

/// Numbers of a sketch: the share of equal ones is off by 0.06 (one standard deviation) at worst.
pub(crate) const SKETCH_LEN: usize = 64;
/// Words of a shingle; a text of fewer is one shingle.
const SHINGLE: usize = 3;

/// Least hash of the shingles under each of 64 hash functions.
pub(crate) type CaptionSketch = [u32; SKETCH_LEN];

/// The sketch of all captions together; `None` without a word.
pub(crate) fn caption_sketch<S: AsRef<str>>(captions: &[S]) -> Option<CaptionSketch> {
    let mut shingles = BTreeSet::new();
    for caption in captions {
        let text: String = caption.as_ref().nfc().collect::<String>().to_lowercase();
        // Punctuation parts words and is none itself.
        let words: Vec<&str> = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
        let n = words.len().min(SHINGLE);
        if n > 0 {
            shingles.extend(words.windows(n).map(hash_of));
        }
    }
    if shingles.is_empty() {
        return None;
    }
    let mut sketch = [u32::MAX; SKETCH_LEN];
    for shingle in shingles {
        for (least, function) in sketch.iter_mut().zip(0_u64..) {
            // The upper half of a mixed sum is as good as an own hash function for each place.
            let mixed = mix(shingle.wrapping_add(function.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
            *least = (*least).min((mixed >> 32) as u32);
        }
    }
    Some(sketch)
}

/// Places in which two sketches agree, of 64: an estimate of the Jaccard index of their shingles.
pub(super) fn n_equal(a: &CaptionSketch, b: &CaptionSketch) -> usize {
    a.iter().zip(b).filter(|(a, b)| a == b).count()
}

fn hash_of(words: &[&str]) -> u64 {
    let digest = blake3::hash(words.join(" ").as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014).
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn jaccard(a: &str, b: &str) -> f64 {
        let shingles = |text: &str| -> BTreeSet<Vec<String>> {
            let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            words.windows(SHINGLE.min(words.len())).map(<[String]>::to_vec).collect()
        };
        let (a, b) = (shingles(a), shingles(b));
        a.intersection(&b).count() as f64 / a.union(&b).count() as f64
    }

    #[test]
    fn case_accents_and_punctuation_do_not_count() {
        let plain = caption_sketch(&["a caf\u{e9} in the rain"]);
        assert_eq!(plain, caption_sketch(&["A CAFE\u{301}, in the rain!"]));
        assert_eq!(plain, caption_sketch(&["a caf\u{e9} in the rain", "A caf\u{e9} in the rain."]));
        assert_ne!(plain, caption_sketch(&["a caf\u{e9} in the snow"]));
        assert_eq!(caption_sketch(&["…", " "]), None);
        assert_eq!(caption_sketch::<&str>(&[]), None);
    }

    #[test]
    fn a_sketch_is_the_same_on_every_machine() {
        let sketch = caption_sketch(&["a dog runs on the beach"]).unwrap();
        let digest = blake3::hash(&sketch.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        assert_eq!(digest.to_hex()[..16], *PINNED);
    }

    /// As first computed; sketches lie in shards, so another number is another format.
    const PINNED: &str = "69b86c7c65f5888d";

    proptest! {
        #[test]
        fn the_share_of_equal_numbers_is_near_the_share_of_equal_shingles(
            words in prop::collection::vec("[a-z]{1,6}", 8..60),
            at in 0..60_usize,
            n in 0..12_usize,
        ) {
            let mut changed = words.clone();
            for (i, word) in changed.iter_mut().enumerate().skip(at).take(n) {
                *word = format!("other{i}");
            }
            let (a, b) = (words.join(" "), changed.join(" "));
            let (left, right) = (caption_sketch(&[&a]).unwrap(), caption_sketch(&[&b]).unwrap());
            let estimate = n_equal(&left, &right) as f64 / SKETCH_LEN as f64;
            // Four and a half standard deviations of 64 draws: once in 10^5 cases.
            prop_assert!((estimate - jaccard(&a, &b)).abs() < 0.28, "{} {}", estimate, jaccard(&a, &b));
        }
    }
}
