//! Draws that change an example without changing what it shows.
//!
//! In: the address of an example and the task's settings. Out: a crop, a flip, colours, a place in time. Never: a running
//! state: every draw has an address of its own, so that none depends on how many were made before it.
//! Source: Szegedy et al. 2015, arXiv:1409.4842 (crops); the release (flip, jitter; grey-scale never).

use imp_schemas::batch::ExampleId;
use imp_schemas::rng::{Rng, Role, rng_for};
use imp_schemas::task::Augment;

/// Part of a picture, pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    pub left: usize,
    pub top: usize,
    pub width: usize,
    pub height: usize,
}

/// What a draw is for. The tag is part of every seed's meaning: never reuse or reorder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Draw {
    Caption,
    Crop,
    Flip,
    Jitter,
    /// First frame of a clip.
    Start,
    /// Place of a sound.
    Shift,
    Gain,
    /// Tokens kept of pictures and clips.
    KeptVision,
    /// Tokens kept of sounds.
    KeptAudio,
}

/// Where an example's draws come from.
#[derive(Debug, Clone, Copy)]
pub struct Draws {
    seed: u64,
    at: [u64; 4],
}

impl Draws {
    /// Draws at (task, epoch, corpus, row).
    pub fn new(seed: u64, task_idx: usize, example: &ExampleId) -> Self {
        Self { seed, at: [task_idx as u64, example.epoch, u64::from(example.corpus_idx), example.row] }
    }

    pub fn rng(&self, draw: Draw) -> Rng {
        let (role, tag) = match draw {
            Draw::Caption => (Role::Augment, 0),
            Draw::Crop => (Role::Augment, 1),
            Draw::Flip => (Role::Augment, 2),
            Draw::Jitter => (Role::Augment, 3),
            Draw::Start => (Role::Augment, 4),
            Draw::Shift => (Role::Augment, 5),
            Draw::Gain => (Role::Augment, 6),
            Draw::KeptVision => (Role::DropToken, 0),
            Draw::KeptAudio => (Role::DropToken, 1),
        };
        let [task, epoch, corpus, row] = self.at;
        rng_for(self.seed, role, &[task, epoch, corpus, row, tag])
    }
}

/// The largest centred part of a picture that has the shape of the view: what a short-side resize followed by a centre crop
/// shows, in one step.
pub fn centre_box(width: usize, height: usize, view_width: usize, view_height: usize) -> CropBox {
    centred(width, height, view_width as f64 / view_height as f64)
}

/// A random part of a picture for a view of `view` (width, height): area and shape by `augment`, anywhere. Ten tries; then the
/// largest centred part whose shape is within bounds.
pub fn random_box(rng: &mut Rng, width: usize, height: usize, view: (usize, usize), augment: &Augment) -> CropBox {
    let shape = view.0 as f64 / view.1 as f64;
    let [least, greatest] = augment.crop_aspect.map(|aspect| aspect * shape);
    for _ in 0..10 {
        let area = rng.between(augment.crop_area[0], augment.crop_area[1]) * (width * height) as f64;
        let aspect = rng.between(least.ln(), greatest.ln()).exp();
        let (crop_width, crop_height) =
            ((area * aspect).sqrt().round() as usize, (area / aspect).sqrt().round() as usize);
        if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
            let left = rng.below((width - crop_width) as u64 + 1) as usize;
            let top = rng.below((height - crop_height) as u64 + 1) as usize;
            return CropBox { left, top, width: crop_width, height: crop_height };
        }
    }
    centred(width, height, (width as f64 / height as f64).clamp(least, greatest))
}

/// The largest centred part of a `width` × `height` picture with the given width over height.
fn centred(width: usize, height: usize, aspect: f64) -> CropBox {
    let fitted = |length: f64, most: usize| (length.round() as usize).clamp(1, most);
    let (crop_width, crop_height) = if width as f64 > height as f64 * aspect {
        (fitted(height as f64 * aspect, width), height)
    } else {
        (width, fitted(width as f64 / aspect, height))
    };
    CropBox { left: (width - crop_width) / 2, top: (height - crop_height) / 2, width: crop_width, height: crop_height }
}

/// Mirrors rows of `width` RGB pixels left and right.
pub fn flip(rgb: &mut [u8], width: usize) {
    for row in rgb.chunks_exact_mut(width * 3) {
        for x in 0..width / 2 {
            let other = width - 1 - x;
            for c in 0..3 {
                row.swap(x * 3 + c, other * 3 + c);
            }
        }
    }
}

/// One change of colours, the same for all frames of a clip.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter {
    /// Added, levels.
    brightness: f32,
    saturation: f32,
    contrast: f32,
    /// Turn of the chroma plane, radians.
    hue: f32,
}

impl Jitter {
    /// Brightness by up to 32 levels, saturation and contrast by 0.6 to 1.4, hue by up to a fifth of a turn: the ranges of the
    /// release's video pipeline.
    pub fn draw(rng: &mut Rng) -> Self {
        let brightness = rng.between(-32.0, 32.0) as f32;
        let saturation = rng.between(0.6, 1.4) as f32;
        let contrast = rng.between(0.6, 1.4) as f32;
        let hue = (rng.between(-0.2, 0.2) * std::f64::consts::TAU) as f32;
        Self { brightness, saturation, contrast, hue }
    }

    /// Applies it to `[…, 3]` sRGB levels. Contrast turns around the mean of what is passed.
    pub fn apply(&self, rgb: &mut [u8]) {
        let total: u64 = rgb.iter().map(|&v| u64::from(v)).sum();
        let mean = total as f32 / rgb.len().max(1) as f32 + self.brightness;
        let (sin, cos) = (self.hue.sin() * self.saturation, self.hue.cos() * self.saturation);
        for pixel in rgb.chunks_exact_mut(3) {
            let [r, g, b] = [0, 1, 2].map(|c| f32::from(pixel[c]) + self.brightness);
            // YIQ: brightness apart, hue a rotation, saturation a radius.
            let y = 0.299 * r + 0.587 * g + 0.114 * b;
            let i = 0.596 * r - 0.274 * g - 0.322 * b;
            let q = 0.211 * r - 0.523 * g + 0.312 * b;
            let (i, q) = (i * cos - q * sin, i * sin + q * cos);
            let turned = [y + 0.956 * i + 0.621 * q, y - 0.272 * i - 0.647 * q, y - 1.106 * i + 1.703 * q];
            for (to, v) in pixel.iter_mut().zip(turned) {
                *to = (mean + (v - mean) * self.contrast).round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// `n_kept` of `n_tokens` positions, uniform without replacement, rising.
pub fn kept_tokens(rng: &mut Rng, n_tokens: usize, n_kept: usize) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n_tokens as u32).collect();
    let n_kept = n_kept.min(n_tokens);
    for i in 0..n_kept {
        let j = i + rng.below((n_tokens - i) as u64) as usize;
        all.swap(i, j);
    }
    all.truncate(n_kept);
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rng(seed: u64) -> imp_schemas::rng::Rng {
        Draws::new(seed, 0, &ExampleId { corpus_idx: 0, row: 0, epoch: 0 }).rng(Draw::Crop)
    }

    proptest! {
        #[test]
        fn a_crop_lies_within_the_picture(
            width in 1usize..700, height in 1usize..700, seed in any::<u64>(),
            low in 0.05f64..1.0, wide in 1.0f64..4.0,
        ) {
            let augment = Augment { crop_area: [low, 1.0], crop_aspect: [1.0 / wide, wide], ..Augment::default() };
            for b in [random_box(&mut rng(seed), width, height, (48, 64), &augment), centre_box(width, height, 64, 48)] {
                prop_assert!(b.width >= 1 && b.height >= 1 && b.left + b.width <= width && b.top + b.height <= height);
            }
        }

        #[test]
        fn kept_tokens_are_distinct_and_rise(n in 1usize..300, k in 1usize..300, seed in any::<u64>()) {
            let kept = kept_tokens(&mut rng(seed), n, k);
            prop_assert_eq!(kept.len(), k.min(n));
            prop_assert!(kept.windows(2).all(|w| w[0] < w[1]) && kept.last().is_some_and(|&i| (i as usize) < n));
        }
    }

    #[test]
    fn every_token_is_kept_equally_often() {
        let mut counts = [0u32; 16];
        for seed in 0..8000 {
            kept_tokens(&mut rng(seed), 16, 4).iter().for_each(|&i| counts[i as usize] += 1);
        }
        // Five standard deviations of a binomial with n = 8,000, p = 1/4 are 194.
        assert!(counts.iter().all(|&n| n.abs_diff(2000) < 194), "{counts:?}");
    }

    #[test]
    fn default_settings_are_a_centre_crop() {
        let want = CropBox { left: 84, top: 0, width: 333, height: 333 };
        assert_eq!(random_box(&mut rng(1), 500, 333, (64, 64), &Augment::default()), CropBox { left: 83, ..want });
        assert_eq!(centre_box(500, 333, 64, 64), CropBox { left: 83, ..want });
        let wide = random_box(&mut rng(1), 100, 100, (64, 32), &Augment::default());
        assert_eq!((wide.width, wide.height), (100, 50), "things keep their shape");
        assert_eq!(centre_box(100, 100, 64, 32), CropBox { left: 0, top: 25, width: 100, height: 50 });
    }

    #[test]
    fn areas_and_shapes_stay_within_bounds() {
        let augment = Augment { crop_area: [0.3, 0.6], crop_aspect: [0.8, 1.25], ..Augment::default() };
        for seed in 0..500 {
            let b = random_box(&mut rng(seed), 400, 300, (16, 16), &augment);
            let (area, aspect) = ((b.width * b.height) as f64 / 120_000.0, b.width as f64 / b.height as f64);
            // Sides are rounded to whole pixels.
            assert!((0.295..0.605).contains(&area) && (0.79..1.26).contains(&aspect), "{b:?}");
        }
    }

    #[test]
    fn a_flip_mirrors_and_a_neutral_jitter_changes_nothing() {
        let mut row = vec![1, 2, 3, 4, 5, 6, 7, 8, 9];
        flip(&mut row, 3);
        assert_eq!(row, [7, 8, 9, 4, 5, 6, 1, 2, 3]);
        let mut rgb: Vec<u8> = (0..=254).collect();
        Jitter { brightness: 0.0, saturation: 1.0, contrast: 1.0, hue: 0.0 }.apply(&mut rgb);
        // The YIQ matrices have three digits.
        assert!(rgb.iter().zip(0..=254u8).all(|(a, b)| a.abs_diff(b) <= 1));
        let mut grey = vec![100u8; 9];
        Jitter { brightness: 0.0, saturation: 1.4, contrast: 0.6, hue: 1.0 }.apply(&mut grey);
        assert!(grey.iter().all(|v| v.abs_diff(100) <= 1), "{grey:?}");
    }
}
