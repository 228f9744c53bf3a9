//! Clips: which frames of the source become the frames of an example.
//!
//! In: the number of source frames and the view. Out: source indices. Never: a zero frame: a clip that is too short is
//! repeated along time, as the release does it.

/// Source frames of a clip of `frames` frames, `stride` apart, from a source of `n` frames (at least 1). A source that is
/// long enough gives a window: `start` says where, of the room that it has. A shorter one gives every `stride`-th frame from the
/// first, over and over.
pub fn clip_frames(n: usize, frames: usize, stride: usize, start: impl FnOnce(usize) -> usize) -> Vec<usize> {
    let span = (frames.saturating_sub(1)) * stride + 1;
    if n < span {
        let available = n.max(1).div_ceil(stride);
        return (0..frames).map(|i| i % available * stride).collect();
    }
    let start = start(n - span);
    (0..frames).map(|i| start + i * stride).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::Window;

    #[test]
    fn a_window_lies_within_the_source_and_a_short_source_is_tiled() {
        let middle = |n| clip_frames(n, 4, 2, |room| Window::MIDDLE.start(room));
        assert_eq!(middle(75), [34, 36, 38, 40]);
        assert_eq!(middle(7), [0, 2, 4, 6]);
        assert_eq!(middle(6), [0, 2, 4, 0]);
        assert_eq!(middle(1), [0, 0, 0, 0]);
        assert_eq!(clip_frames(10, 4, 2, |room| room), [3, 5, 7, 9]);
    }
}
