//! Draws one shape: for pictures at a fixed size, for clips as it moves or grows.
//!
//! In: a combination and a generator. Out: RGB frames. Never: text, encoding.

use image::{Rgb, RgbImage};
use imp_schemas::rng::Rng;

use super::combos::{Combo, Scene};

/// Sides of a clip's frames, pixels.
pub const CLIP_SIDE: u32 = 64;
/// Frames of a clip.
pub const CLIP_FRAMES: usize = 16;

/// In the order of `combos::COLOURS`.
const PALETTE: [[f64; 3]; 8] = [
    [222.0, 32.0, 32.0],
    [28.0, 168.0, 52.0],
    [34.0, 66.0, 228.0],
    [242.0, 222.0, 40.0],
    [250.0, 250.0, 250.0],
    [12.0, 12.0, 12.0],
    [248.0, 112.0, 196.0],
    [60.0, 216.0, 228.0],
];

/// A shape somewhere on a picture; lengths in pixels, the angle in radians.
struct Mark {
    shape_idx: usize,
    x: f64,
    y: f64,
    radius: f64,
    angle: f64,
}

/// What does not change from frame to frame.
struct Look {
    /// In 0..255 per channel, at the left and at the right edge.
    background: [[f64; 3]; 2],
    colour: [f64; 3],
}

impl Look {
    fn draw(colour_idx: usize, rng: &mut Rng) -> Self {
        // Greys between the black and the white of the palette, a little tinted and shaded, so that no colour word can be
        // read off the background.
        let grey = rng.between(88.0, 172.0);
        let slope = rng.between(-18.0, 18.0);
        let tint: [f64; 3] = std::array::from_fn(|_| rng.between(-10.0, 10.0));
        let at = |side: f64| tint.map(|t| grey + t + side * slope);
        let light = rng.between(0.9, 1.08);
        Self { background: [at(-1.0), at(1.0)], colour: PALETTE[colour_idx].map(|c| (c * light).min(255.0)) }
    }
}

/// One picture of 64 or 72 pixels a side.
pub fn picture(combo: &Combo, rng: &mut Rng) -> RgbImage {
    let side = if rng.chance(0.5) { 64 } else { 72 };
    let look = Look::draw(combo.values[1], rng);
    // In the order of `combos::SIZES`: small, large, medium.
    let radius = f64::from(side) * [0.125, 0.36, 0.23][combo.values[2]] * rng.between(0.92, 1.08);
    let place = |rng: &mut Rng| {
        let free = f64::from(side) / 2.0 - radius - 2.0;
        f64::from(side) / 2.0 + rng.between(-1.0, 1.0) * free.max(0.0).min(f64::from(side) * 0.25)
    };
    let (x, y) = (place(rng), place(rng));
    let mark = Mark { shape_idx: combo.values[0], x, y, radius, angle: rng.between(-0.2, 0.2) };
    let mut picture = render(side, &look, &mark);
    for value in picture.iter_mut() {
        *value = (f64::from(*value) + rng.normal() * 3.0).clamp(0.0, 255.0) as u8;
    }
    picture
}

/// One clip and its rate in frames per second.
pub fn clip(combo: &Combo, rng: &mut Rng) -> (Vec<RgbImage>, f32) {
    let look = Look::draw(combo.values[1], rng);
    let side = f64::from(CLIP_SIDE);
    let centre = side / 2.0;
    let radius = rng.between(9.5, 13.0);
    let across = rng.between(-1.0, 1.0) * (centre - radius - 4.0);
    let reach = rng.between(0.8, 1.0) * (centre - radius);
    let angle = rng.between(-0.2, 0.2);
    let fps = if rng.chance(0.5) { 8.0 } else { 10.0 };
    let drift = [rng.between(-1.0, 1.0) * 8.0, rng.between(-1.0, 1.0) * 8.0];
    let frames = (0..CLIP_FRAMES).map(|frame_idx| {
        // From -1 in the first frame to 1 in the last.
        let t = 2.0 * frame_idx as f64 / (CLIP_FRAMES - 1) as f64 - 1.0;
        // In the order of `combos::MOTIONS`.
        let (x, y, radius) = match combo.values[2] {
            0 => (centre - t * reach, centre + across, radius),
            1 => (centre + t * reach, centre + across, radius),
            3 => (centre + across, centre - t * reach, radius),
            4 => (centre + across, centre + t * reach, radius),
            growing_or_shrinking => {
                let way = if growing_or_shrinking == 2 { t } else { -t };
                (centre + drift[0], centre + drift[1], 13.0 + way * 8.0)
            }
        };
        render(CLIP_SIDE, &look, &Mark { shape_idx: combo.values[0], x, y, radius, angle })
    });
    debug_assert_eq!(combo.scene, Scene::Video);
    (frames.collect(), fps)
}

fn render(side: u32, look: &Look, mark: &Mark) -> RgbImage {
    let (sin, cos) = mark.angle.sin_cos();
    let mix = |a: f64, b: f64, t: f64| a + (b - a) * t;
    RgbImage::from_fn(side, side, |px, py| {
        // Three by three points per pixel smooth the edge.
        let mut n_inside = 0u32;
        let (dx, dy) = (f64::from(px) + 0.5 - mark.x, f64::from(py) + 0.5 - mark.y);
        if dx.abs().max(dy.abs()) <= mark.radius * 1.3 + 1.0 {
            for (ox, oy) in (0..9).map(|k| (f64::from(k % 3 - 1) / 3.0, f64::from(k / 3 - 1) / 3.0)) {
                let (x, y) = ((dx + ox) / mark.radius, (dy + oy) / mark.radius);
                n_inside += u32::from(is_inside(mark.shape_idx, x * cos + y * sin, y * cos - x * sin));
            }
        }
        let cover = f64::from(n_inside) / 9.0;
        let across = f64::from(px) / f64::from(side);
        Rgb(std::array::from_fn(|channel| {
            let ground = mix(look.background[0][channel], look.background[1][channel], across);
            mix(ground, look.colour[channel], cover).clamp(0.0, 255.0) as u8
        }))
    })
}

/// Whether a point belongs to the shape of about unit radius at the origin; y points down. Shapes cover similar areas.
fn is_inside(shape_idx: usize, x: f64, y: f64) -> bool {
    let distance = x.hypot(y);
    // In the order of `combos::SHAPES`.
    match shape_idx {
        0 => distance < 0.95,
        1 => x.abs().max(y.abs()) < 0.86,
        2 => y < 0.75 && y > -1.05 + 1.75 * x.abs(),
        3 => {
            // Five points: the outline's distance falls from 1.1 at a point to 0.45 halfway to the next.
            let fifth = std::f64::consts::TAU / 5.0;
            let from_point = ((x.atan2(-y) / fifth).rem_euclid(1.0) - 0.5).abs() * 2.0;
            let (inner, outer) = (0.45, 1.12);
            let half = fifth / 2.0;
            // A straight edge between the two corners, in polar form.
            let angle = (1.0 - from_point) * half;
            let edge = outer * inner * half.sin() / (outer * angle.sin() + inner * (half - angle).sin());
            distance < edge
        }
        4 => (0.55..1.0).contains(&distance),
        _ => x.abs().min(y.abs()) < 0.28 && x.abs().max(y.abs()) < 1.0,
    }
}
