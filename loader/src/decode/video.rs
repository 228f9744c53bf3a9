//! Clips: which frames of the source become the frames of an example.
//!
//! In: the number of source frames and the view. Out: source indices. Never: a zero frame: a clip that is too short is
//! repeated along time, as the release does it.

use imp_schemas::rng::Rng;

/// Source frames of a clip of `frames` frames, `stride` apart, from a source of `n` frames (at least 1). A source that is
/// long enough gives a window: anywhere if there is a generator, else in the middle. A shorter one gives every
/// `stride`-th frame from the first, over and over.
pub fn clip_frames(n: usize, frames: usize, stride: usize, rng: Option<&mut Rng>) -> Vec<usize> {
    let span = (frames.saturating_sub(1)) * stride + 1;
    if n < span {
        let available = n.max(1).div_ceil(stride);
        return (0..frames).map(|i| i % available * stride).collect();
    }
    let room = n - span;
    let start = rng.map_or(room / 2, |rng| rng.below(room as u64 + 1) as usize);
    (0..frames).map(|i| start + i * stride).collect()
}

#[cfg(test)]
mod tests {
    use imp_schemas::rng::{Role, rng_for};

    use super::*;

    #[test]
    fn a_window_lies_within_the_source_and_a_short_source_is_tiled() {
        assert_eq!(clip_frames(75, 4, 2, None), [34, 36, 38, 40]);
        assert_eq!(clip_frames(7, 4, 2, None), [0, 2, 4, 6]);
        assert_eq!(clip_frames(6, 4, 2, None), [0, 2, 4, 0]);
        assert_eq!(clip_frames(1, 4, 2, None), [0, 0, 0, 0]);
        let mut starts: Vec<usize> =
            (0..500).map(|i| clip_frames(10, 4, 2, Some(&mut rng_for(1, Role::Augment, &[i])))[0]).collect();
        starts.sort_unstable();
        starts.dedup();
        assert_eq!(starts, [0, 1, 2, 3]);
    }
}
