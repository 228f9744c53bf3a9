//! Makes one tone: its pitch, its timbre, and what it does over a second.
//!
//! In: a combination and a generator. Out: mono samples at 16 kHz. Never: text, encoding.

use std::f64::consts::TAU;

use imp_schemas::rng::Rng;

use super::combos::Combo;

/// Hz.
pub const SAMPLE_RATE: u32 = 16_000;

/// Hz, an octave apart; in the order of `combos::PITCHES`.
const PITCHES: [f64; 5] = [262.0, 1047.0, 523.0, 131.0, 2093.0];
/// Upper edge of what is synthesised, Hz: below half the sampling rate, so that nothing folds back.
const CEILING: f64 = 7400.0;
const TABLE_LEN: usize = 2048;

/// One tone of 0.9 to 1.1 seconds.
pub fn sound(combo: &Combo, rng: &mut Rng) -> Vec<f32> {
    let rate = f64::from(SAMPLE_RATE);
    let n_samples = (rng.between(0.9, 1.1) * rate) as usize;
    let pitch = PITCHES[combo.values[0]] * rng.between(0.95, 1.05);
    // In the order of `combos::PATTERNS`: holds, pulses, rises, falls. A glide spans six tenths of an octave.
    let glide = [0.0, 0.0, 0.6, -0.6][combo.values[2]];
    let pulses = combo.values[2] == 1;
    let partials = partials(combo.values[1], pitch * 2.0_f64.powf(f64::abs(glide) / 2.0));
    let table = wave_table(&partials);
    let loudness = rng.between(0.25, 0.5);
    let hiss = rng.between(0.001, 0.006);
    let pulse_rate = rng.between(3.5, 4.5);
    let mut phase = rng.unit();
    let mut bell_phases: [f64; 3] = std::array::from_fn(|_| rng.unit());
    (0..n_samples)
        .map(|i| {
            let t = i as f64 / n_samples as f64;
            let frequency = pitch * 2.0_f64.powf(glide * (t - 0.5));
            phase = (phase + frequency / rate).fract();
            let wave = match &table {
                Some(table) => table[(phase * TABLE_LEN as f64) as usize % TABLE_LEN],
                None => {
                    let mut sum = 0.0;
                    for ((ratio, weight), phase) in partials.iter().zip(&mut bell_phases) {
                        *phase = (*phase + frequency * ratio / rate).fract();
                        sum += weight * (TAU * *phase).sin();
                    }
                    sum
                }
            };
            let pulse = if pulses { 0.5 - 0.5 * (TAU * pulse_rate * i as f64 / rate).cos() } else { 1.0 };
            // Ten milliseconds in and out, so that no tone starts or ends with a click.
            let edge = (i.min(n_samples - i) as f64 / (0.01 * rate)).min(1.0);
            (loudness * wave * pulse * edge + hiss * rng.normal()) as f32
        })
        .collect()
}

/// Frequency over pitch and weight of every partial of a timbre, in the order of `combos::TIMBRES`.
fn partials(timbre_idx: usize, highest_pitch: f64) -> Vec<(f64, f64)> {
    let n_below = ((CEILING / highest_pitch) as usize).max(1);
    let harmonics: Vec<(f64, f64)> = match timbre_idx {
        0 => vec![(1.0, 1.0)],
        // A sawtooth: every harmonic.
        1 => (1..=n_below).map(|k| (k as f64, 0.65 / k as f64)).collect(),
        // A square: odd harmonics.
        2 => (1..=n_below).step_by(2).map(|k| (k as f64, 1.0 / k as f64)).collect(),
        // A bell: partials that are no multiples of the lowest.
        _ => vec![(1.0, 0.6), (1.48, 0.45), (2.76, 0.35)],
    };
    harmonics.into_iter().filter(|(ratio, _)| ratio * highest_pitch < CEILING).collect()
}

/// One period, for timbres whose partials are harmonics.
fn wave_table(partials: &[(f64, f64)]) -> Option<Vec<f64>> {
    if partials.iter().any(|(ratio, _)| ratio.fract() != 0.0) {
        return None;
    }
    let at = |i: usize| {
        let phase = TAU * i as f64 / TABLE_LEN as f64;
        partials.iter().map(|(ratio, weight)| weight * (phase * ratio).sin()).sum()
    };
    Some((0..TABLE_LEN).map(at).collect())
}
