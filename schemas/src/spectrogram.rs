//! The settings of the log-mel spectrogram. The arithmetic is the loader's; the meaning of a band is the model's.
//!
//! Source: the authors' release: 16 kHz, Hann window 2048, hop 1024, 128 bands from 80 to 7600 Hz, magnitude, ln(x + 1e-6).

use serde::{Deserialize, Serialize};

/// How sound becomes a spectrogram; part of a model's identity.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpectrogramSpec {
    /// Hz; every sound is resampled to it.
    pub sample_rate: u32,
    /// Samples of the periodic Hann window; also the FFT length.
    pub window: usize,
    /// Samples from one frame to the next.
    pub hop: usize,
    pub n_mels: usize,
    /// Hz, lower edge of the first band.
    pub f_low: f64,
    /// Hz, upper edge of the last band.
    pub f_high: f64,
    /// Added to a band's magnitude before the natural logarithm.
    pub log_offset: f64,
}

impl Default for SpectrogramSpec {
    fn default() -> Self {
        Self {
            sample_rate: 16_000,
            window: 2048,
            hop: 1024,
            n_mels: 128,
            f_low: 80.0,
            f_high: 7600.0,
            log_offset: 1e-6,
        }
    }
}

/// A spectrogram that cannot be computed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum SpectrogramError {
    #[error("`spectrogram.{key}` is {found}, must be {rule}")]
    Setting { key: &'static str, found: String, rule: &'static str },
}

impl SpectrogramSpec {
    /// Checks that the settings describe a spectrogram.
    ///
    /// # Errors
    /// [`SpectrogramError::Setting`] with the key, its value and the rule.
    pub fn check(&self) -> Result<(), SpectrogramError> {
        let wrong = |key, found: String, rule| Err(SpectrogramError::Setting { key, found, rule });
        let nyquist = f64::from(self.sample_rate) / 2.0;
        if self.sample_rate < 1000 {
            return wrong("sample_rate", self.sample_rate.to_string(), "at least 1000 Hz");
        }
        if self.window < 16 || !self.window.is_multiple_of(2) {
            return wrong("window", self.window.to_string(), "even and at least 16 samples");
        }
        if self.hop == 0 || self.hop > self.window {
            return wrong("hop", self.hop.to_string(), "between 1 and `spectrogram.window`");
        }
        if self.n_mels == 0 {
            return wrong("n_mels", self.n_mels.to_string(), "at least 1");
        }
        if !(self.f_low >= 0.0 && self.f_low < self.f_high) {
            return wrong("f_low", self.f_low.to_string(), "at least 0 and below `spectrogram.f_high`");
        }
        if self.f_high.is_nan() || self.f_high > nyquist {
            return wrong("f_high", self.f_high.to_string(), "at most half of `spectrogram.sample_rate`");
        }
        if self.log_offset.is_nan() || self.log_offset <= 0.0 {
            return wrong("log_offset", self.log_offset.to_string(), "above 0");
        }
        Ok(())
    }

    /// Samples that `frames` frames span without padding the end: `(frames - 1) * hop + window`.
    pub fn n_samples(&self, frames: usize) -> usize {
        frames.saturating_sub(1) * self.hop + self.window
    }
}
