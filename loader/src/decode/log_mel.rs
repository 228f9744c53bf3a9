//! Samples → log-mel spectrogram.
//!
//! In: f32 samples at the spectrogram's rate. Out: `[frames, mels]`, f32, `ln(mel + offset)`. Never: a normalised waveform,
//! pre-emphasis, a centred frame: frame i is samples [hop i, hop i + window), zeros past the end, ceil(n / hop) frames.
//! Source: the authors' release and `tf.signal`: periodic Hann, magnitude, triangles straight on the mel axis. Tables are
//! built in f64, because f32 on the mel axis is good to 1e-4 only.

use std::sync::Arc;

use imp_schemas::spectrogram::SpectrogramSpec;
use realfft::num_complex::Complex;
use realfft::{RealFftPlanner, RealToComplex};

/// Window and filters of one spectrogram: made once, shared by all threads.
#[derive(Debug, Clone, PartialEq)]
pub struct MelTables {
    spec: SpectrogramSpec,
    window: Vec<f32>,
    bands: Vec<Band>,
}

/// The bins of one band that are not zero.
#[derive(Debug, Clone, PartialEq)]
struct Band {
    first_bin: usize,
    weights: Vec<f32>,
}

impl MelTables {
    /// Tables of `spec`, with filters laid out for `filter_rate` Hz: the spectrogram's own rate, or 48 kHz to repeat what the
    /// release does (IMP.md, T6).
    pub fn new(spec: &SpectrogramSpec, filter_rate: f64) -> Self {
        let n = spec.window as f64;
        let window = (0..spec.window).map(|k| 0.5 - 0.5 * (std::f64::consts::TAU * k as f64 / n).cos());
        Self { spec: *spec, window: window.map(|w| w as f32).collect(), bands: bands(spec, filter_rate) }
    }

    pub fn spec(&self) -> &SpectrogramSpec {
        &self.spec
    }

    /// Weight of FFT bin `bin` in band `mel`.
    #[cfg(test)]
    fn weight(&self, bin: usize, mel: usize) -> f32 {
        let band = &self.bands[mel];
        bin.checked_sub(band.first_bin).and_then(|i| band.weights.get(i)).copied().unwrap_or(0.0)
    }
}

fn bands(spec: &SpectrogramSpec, filter_rate: f64) -> Vec<Band> {
    let mel = |hz: f64| 1127.0 * (hz / 700.0).ln_1p();
    let (low, high) = (mel(spec.f_low), mel(spec.f_high));
    let edge = |i: usize| low + (high - low) * i as f64 / (spec.n_mels + 1) as f64;
    let n_bins = spec.window / 2 + 1;
    let bin_mel: Vec<f64> = (0..n_bins).map(|bin| mel(filter_rate / 2.0 * bin as f64 / (n_bins - 1) as f64)).collect();
    let band = |i: usize| {
        let [left, centre, right] = [edge(i), edge(i + 1), edge(i + 2)];
        let weight = |m: f64| ((m - left) / (centre - left)).min((right - m) / (right - centre)).max(0.0);
        // Bin 0 is the mean of the signal, not a tone.
        let first_bin = bin_mel.partition_point(|&m| m <= left).max(1);
        let weights = bin_mel.iter().skip(first_bin).take_while(|&&m| m < right).map(|&m| weight(m) as f32).collect();
        Band { first_bin, weights }
    };
    (0..spec.n_mels).map(band).collect()
}

/// Computes spectrograms on one thread.
pub struct LogMel {
    tables: Arc<MelTables>,
    fft: Arc<dyn RealToComplex<f32>>,
    frame: Vec<f32>,
    spectrum: Vec<Complex<f32>>,
    scratch: Vec<Complex<f32>>,
    magnitude: Vec<f32>,
}

impl LogMel {
    pub fn new(tables: &Arc<MelTables>) -> Self {
        let fft = RealFftPlanner::<f32>::new().plan_fft_forward(tables.spec.window);
        let (frame, spectrum, scratch) = (fft.make_input_vec(), fft.make_output_vec(), fft.make_scratch_vec());
        let magnitude = vec![0.0; spectrum.len()];
        Self { tables: Arc::clone(tables), fft, frame, spectrum, scratch, magnitude }
    }

    /// `[ceil(samples / hop), n_mels]`.
    pub fn log_mel(&mut self, samples: &[f32]) -> Vec<f32> {
        let tables = Arc::clone(&self.tables);
        let spec = &tables.spec;
        let mut out = Vec::with_capacity(samples.len().div_ceil(spec.hop) * spec.n_mels);
        for start in (0..samples.len()).step_by(spec.hop) {
            self.frame_magnitude(&samples[start..]);
            for band in &tables.bands {
                let bins = &self.magnitude[band.first_bin.min(self.magnitude.len())..];
                let mel: f32 = band.weights.iter().zip(bins).map(|(w, m)| w * m).sum();
                out.push((f64::from(mel) + spec.log_offset).ln() as f32);
            }
        }
        out
    }

    /// Magnitudes of the window at the start of `samples`, zeros past its end.
    fn frame_magnitude(&mut self, samples: &[f32]) {
        let n = samples.len().min(self.frame.len());
        for ((to, from), window) in self.frame.iter_mut().zip(samples).zip(&self.tables.window) {
            *to = from * window;
        }
        self.frame[n..].fill(0.0);
        // The buffers have the lengths that the plan asked for, and that is all that can fail.
        let done = self.fft.process_with_scratch(&mut self.frame, &mut self.spectrum, &mut self.scratch);
        debug_assert!(done.is_ok());
        for (to, bin) in self.magnitude.iter_mut().zip(&self.spectrum) {
            *to = bin.norm_sqr().sqrt();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::golden::{Golden, Values, folder};

    fn close(golden: &Golden, name: &str, got: &[f32]) {
        golden.check(name, got).unwrap();
    }

    fn samples(golden: &Golden, name: &str) -> Vec<f32> {
        let Values::I16(values) = &golden.tensor(name).unwrap().values else { panic!("{name} is not i16") };
        values.iter().map(|&v| f32::from(v) / 32768.0).collect()
    }

    #[test]
    fn window_and_filters_are_the_golden_ones() {
        let golden = Golden::read(&folder(), "logmel").unwrap();
        let tables = MelTables::new(&SpectrogramSpec::default(), 16_000.0);
        close(&golden, "common/window", &tables.window);
        let matrix: Vec<f32> = (0..1025)
            .flat_map(|bin| (0..128).map(move |mel| (bin, mel)))
            .map(|(bin, mel)| tables.weight(bin, mel))
            .collect();
        close(&golden, "common/mel_matrix", &matrix);
    }

    #[test]
    fn spectrograms_are_the_golden_ones() {
        let golden = Golden::read(&folder(), "logmel").unwrap();
        let own = Arc::new(MelTables::new(&SpectrogramSpec::default(), 16_000.0));
        let released = Arc::new(MelTables::new(&SpectrogramSpec::default(), 48_000.0));
        let cases = [("clip", "logmel", &own), ("short", "logmel", &own), ("clip", "logmel_filters48k", &released)];
        for (case, name, tables) in cases {
            let samples = samples(&golden, &format!("{case}/waveform"));
            close(&golden, &format!("{case}/{name}"), &LogMel::new(tables).log_mel(&samples));
        }
    }

    #[test]
    fn silence_is_the_logarithm_of_the_offset() {
        let tables = Arc::new(MelTables::new(&SpectrogramSpec::default(), 16_000.0));
        let got = LogMel::new(&tables).log_mel(&[0.0; 3000]);
        assert_eq!(got.len(), 3 * 128);
        assert!(got.iter().all(|&v| (v - 1e-6f32.ln()).abs() < 1e-5));
    }
}
