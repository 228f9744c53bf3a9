//! A picture → 64 bits that nearly all stay when it is resized, recompressed or tinted, and of which about half differ in
//! another picture.
//!
//! In: pixels. Out: a hash. Never: equality of bytes, mirrored or cropped pictures recognised.
//! Source: the DCT hash ("pHash") of Zauner 2010, "Implementation and benchmarking of perceptual image hash functions":
//! brightness at 32 × 32, the 64 lowest frequencies but the mean, each above or below their median.

use std::f32::consts::PI;

use crate::media::pixels::Pixels;

/// Pixels of a side that the transform sees.
const SIDE: usize = 32;
/// Frequencies of a side that the hash keeps.
const KEPT: usize = 8;

/// The hash; `None` for a picture without pixels.
pub(crate) fn picture_hash(pixels: &Pixels) -> Option<u64> {
    if pixels.size() == (0, 0) {
        return None;
    }
    let frequencies = lowest_frequencies(&pixels.brightness(SIDE).ok()?);
    let mut sorted = frequencies;
    sorted.sort_by(f32::total_cmp);
    let median = (sorted[KEPT * KEPT / 2 - 1] + sorted[KEPT * KEPT / 2]) / 2.0;
    Some(frequencies.iter().enumerate().fold(0, |hash, (i, &f)| hash | (u64::from(f > median) << i)))
}

/// Frequencies 1 to 8 in both directions, without those that do not change along one of them: they hold the mean.
fn lowest_frequencies(luma: &[f32]) -> [f32; KEPT * KEPT] {
    let cosine = |x: usize, u: usize| ((2 * x + 1) as f32 * u as f32 * PI / (2 * SIDE) as f32).cos();
    let table: Vec<[f32; KEPT]> = (0..SIDE).map(|x| std::array::from_fn(|u| cosine(x, u + 1))).collect();
    // Rows first, then columns.
    let rows: Vec<[f32; KEPT]> = luma
        .chunks_exact(SIDE)
        .map(|row| std::array::from_fn(|u| row.iter().zip(&table).map(|(v, cosines)| v * cosines[u]).sum()))
        .collect();
    std::array::from_fn(|i| {
        let (v, u) = (i / KEPT, i % KEPT);
        rows.iter().zip(&table).map(|(row, cosines)| row[u] * cosines[v]).sum()
    })
}

#[cfg(test)]
mod tests {
    use imp_schemas::media::Picture;

    use super::*;

    /// Smooth blobs of every size, another picture for every seed.
    fn blobs(seed: u32, width: usize, height: usize) -> Pixels {
        let mut noise = blake3::Hasher::new_keyed(&[seed as u8; 32]).finalize_xof();
        let mut rgb = vec![0; 12 * 12 * 3];
        noise.fill(&mut rgb);
        Pixels::Rgb(Picture { width: 12, height: 12, rgb }).resized(width, height).unwrap()
    }

    #[test]
    fn resized_and_brightened_copies_stay_near_and_other_pictures_do_not() {
        for seed in 0..20 {
            let hash = picture_hash(&blobs(seed, 320, 240)).unwrap();
            let smaller = picture_hash(&blobs(seed, 97, 64)).unwrap();
            assert!((hash ^ smaller).count_ones() <= 6, "{seed}: {}", (hash ^ smaller).count_ones());
            let Pixels::Rgb(mut brighter) = blobs(seed, 320, 240) else { panic!() };
            brighter.rgb.iter_mut().for_each(|v| *v = 20 + *v / 2);
            let brighter = Pixels::Rgb(brighter);
            let brighter = picture_hash(&brighter).unwrap();
            assert!((hash ^ brighter).count_ones() <= 6, "{seed}: {}", (hash ^ brighter).count_ones());
            let other = picture_hash(&blobs(seed + 1, 320, 240)).unwrap();
            assert!((hash ^ other).count_ones() > 11, "{seed}: {}", (hash ^ other).count_ones());
        }
    }

    #[test]
    fn a_picture_without_pixels_has_no_hash() {
        assert_eq!(picture_hash(&Pixels::Rgb(Picture { width: 0, height: 0, rgb: Vec::new() })), None);
        assert!(picture_hash(&Pixels::Rgb(Picture { width: 1, height: 1, rgb: vec![7, 7, 7] })).is_some());
    }
}
