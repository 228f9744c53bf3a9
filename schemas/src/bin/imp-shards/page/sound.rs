//! A sound as a waveform and a spectrogram.
//!
//! In: samples at full scale ±1. Out: SVG text, PNG bytes. Never: a model's features; this one is for eyes.

use std::f32::consts::PI;
use std::fmt::Write as _;
use std::io::Cursor;

use image::{Rgb, RgbImage};

/// Columns of the waveform.
const WAVE_COLUMNS: usize = 240;
/// Samples of a window, a power of two.
const WINDOW: usize = 1024;
const MAX_COLUMNS: usize = 360;
const ROWS: usize = 96;
/// Quieter than this below the loudest is black.
const RANGE_DB: f32 = 70.0;
/// Hz, lower edge of the picture.
const LOWEST: f32 = 50.0;
/// Dark to bright through five colours, lightness rising all the way.
const RAMP: [[f32; 3]; 5] =
    [[4.0, 5.0, 20.0], [74.0, 16.0, 110.0], [188.0, 55.0, 84.0], [249.0, 142.0, 9.0], [252.0, 255.0, 190.0]];

/// Least and greatest sample of each column as one path, 100 high.
pub(super) fn waveform(samples: &[f32]) -> String {
    let per_column = samples.len().div_ceil(WAVE_COLUMNS).max(1);
    let peak = samples.iter().fold(1e-6_f32, |peak, s| peak.max(s.abs()));
    let mut path = String::new();
    for (x, column) in samples.chunks(per_column).enumerate() {
        let (low, high) = column.iter().fold((0.0_f32, 0.0_f32), |(low, high), &s| (low.min(s), high.max(s)));
        let _ = write!(path, "M{x}.5 {:.1}V{:.1}", 49.5 - 48.0 * high / peak, 50.5 - 48.0 * low / peak);
    }
    format!(
        "<svg class=\"wave\" viewBox=\"0 0 {WAVE_COLUMNS} 100\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"waveform\"><path d=\"{path}\"/></svg>"
    )
}

/// Log magnitudes over time and log frequency as a PNG; `None` for a sound shorter than a few samples.
pub(super) fn spectrogram(samples: &[f32], sampling_rate: u32) -> Option<Vec<u8>> {
    if samples.len() < 16 {
        return None;
    }
    let last = samples.len().saturating_sub(WINDOW);
    let n_columns = (last / (WINDOW / 4) + 1).clamp(1, MAX_COLUMNS);
    let columns: Vec<Vec<f32>> = (0..n_columns)
        .map(|i| decibels(samples, if n_columns == 1 { 0 } else { i * last / (n_columns - 1) }, sampling_rate))
        .collect();
    let loudest = columns.iter().flatten().copied().fold(f32::MIN, f32::max);
    let picture = RgbImage::from_fn(n_columns as u32, ROWS as u32, |x, y| {
        let level = columns[x as usize][ROWS - 1 - y as usize];
        colour(1.0 + (level - loudest) / RANGE_DB)
    });
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).ok()?;
    Some(png.into_inner())
}

/// One window's loudness in bands of rising frequency.
fn decibels(samples: &[f32], start: usize, sampling_rate: u32) -> Vec<f32> {
    let mut re: Vec<f32> = (0..WINDOW)
        .map(|i| {
            let hann = 0.5 - 0.5 * (2.0 * PI * i as f32 / WINDOW as f32).cos();
            samples.get(start + i).map_or(0.0, |s| s * hann)
        })
        .collect();
    let mut im = vec![0.0; WINDOW];
    fft(&mut re, &mut im);
    let power: Vec<f32> = (0..WINDOW / 2).map(|k| re[k] * re[k] + im[k] * im[k]).collect();
    let highest = sampling_rate as f32 / 2.0;
    let lowest = LOWEST.min(highest / 4.0);
    let bin_at = |row: usize| {
        let hz = lowest * (highest / lowest).powf(row as f32 / ROWS as f32);
        hz / highest * (WINDOW / 2) as f32
    };
    let band = |row: usize| {
        let from = (bin_at(row) as usize).min(WINDOW / 2 - 1);
        let to = (bin_at(row + 1).ceil() as usize).clamp(from + 1, WINDOW / 2);
        power[from..to].iter().copied().fold(0.0, f32::max)
    };
    (0..ROWS).map(|row| 10.0 * (band(row) + 1e-12).log10()).collect()
}

/// In place, radix 2; both slices have [`WINDOW`] values.
fn fft(re: &mut [f32], im: &mut [f32]) {
    let n = re.len();
    let mut j = 0;
    for i in 1..n {
        let mut bit = n >> 1;
        while j & bit != 0 {
            j ^= bit;
            bit >>= 1;
        }
        j |= bit;
        if i < j {
            re.swap(i, j);
            im.swap(i, j);
        }
    }
    let mut len = 2;
    while len <= n {
        for k in 0..len / 2 {
            let (sin, cos) = (-2.0 * PI * k as f32 / len as f32).sin_cos();
            for start in (0..n).step_by(len) {
                let (a, b) = (start + k, start + k + len / 2);
                let (x, y) = (re[b] * cos - im[b] * sin, re[b] * sin + im[b] * cos);
                (re[b], im[b]) = (re[a] - x, im[a] - y);
                (re[a], im[a]) = (re[a] + x, im[a] + y);
            }
        }
        len <<= 1;
    }
}

fn colour(level: f32) -> Rgb<u8> {
    let place = level.clamp(0.0, 1.0) * (RAMP.len() - 1) as f32;
    let from = (place as usize).min(RAMP.len() - 2);
    let share = place - from as f32;
    Rgb(std::array::from_fn(|c| (RAMP[from][c] + (RAMP[from + 1][c] - RAMP[from][c]) * share) as u8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tone_is_one_bright_line_at_its_frequency() {
        let (rate, hz) = (16_000, 1000.0);
        let tone: Vec<f32> = (0..16_000).map(|i| (2.0 * PI * hz * i as f32 / rate as f32).sin()).collect();
        let png = image::load_from_memory(&spectrogram(&tone, rate).unwrap()).unwrap().to_rgb8();
        let brightness = |y: u32| png.get_pixel(png.width() / 2, y).0.iter().map(|&c| u32::from(c)).sum::<u32>();
        let brightest = (0..ROWS as u32).max_by_key(|&y| brightness(y)).unwrap();
        // Rows rise by equal factors from 50 Hz to 8 kHz.
        let wanted = ROWS as f32 * (1.0 - (hz / LOWEST).ln() / (8000.0 / LOWEST).ln());
        assert!((brightest as f32 - wanted).abs() < 3.0, "{brightest} {wanted}");
        assert!(brightness(5) < 100, "far from the tone it is dark");
    }

    #[test]
    fn silence_and_a_click_are_drawn_too() {
        assert!(spectrogram(&[0.0; 100], 8000).is_some());
        assert!(spectrogram(&[], 8000).is_none());
        assert!(waveform(&[]).contains("d=\"\""));
    }
}
