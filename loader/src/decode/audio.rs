//! Sounds → waveforms or spectrograms of a batch: resample, place, log-mel.
//!
//! In: a decoded waveform. Out: `[samples]`, or `[frames, mels]`. Never: a sound that decides the size: it is cut or
//! padded to the view.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use imp_schemas::media::Waveform;
use rubato::audioadapter_buffers::direct::SequentialSliceOfVecs;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

use super::log_mel::{LogMel, MelTables};
use crate::error::ContentFault;

/// Least input samples of one resampler block: the longer the block, the sharper the filter.
const MIN_BLOCK: usize = 1024;

/// Resamples and transforms on one thread; keeps its tables.
pub struct Sounds {
    log_mel: LogMel,
    sample_rate: u32,
    hop: usize,
    /// By the rate that a sound came with.
    resamplers: HashMap<u32, Fft<f32>>,
}

/// Where the sound stands in its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Placement {
    /// The sound starts at this sample of the frame.
    Pad(usize),
    /// The frame starts at this sample of the sound.
    Cut(usize),
}

impl Sounds {
    pub fn new(tables: &Arc<MelTables>) -> Self {
        let spec = tables.spec();
        let (sample_rate, hop) = (spec.sample_rate, spec.hop);
        Self { log_mel: LogMel::new(tables), sample_rate, hop, resamplers: HashMap::new() }
    }

    /// Hz.
    pub fn sample_rate(&self) -> u32 {
        self.sample_rate
    }

    /// The samples of `waveform` at the spectrogram's rate.
    pub fn resample(&mut self, waveform: Waveform) -> Result<Vec<f32>, ContentFault> {
        if waveform.samples.is_empty() {
            return Err(ContentFault::Impossible { what: "a sound of", found: "0 samples".to_owned() });
        }
        if waveform.sampling_rate == self.sample_rate {
            return Ok(waveform.samples);
        }
        let failed = failed(waveform.sampling_rate);
        let resampler = self.resampler(waveform.sampling_rate)?;
        let n = waveform.samples.len();
        // Copied a block at a time, in and out; the interleaved form goes sample by sample.
        let n_room = resampler.process_all_needed_output_len(n);
        let mut resampled = [vec![0.0; n_room]];
        let input = [waveform.samples];
        let from = SequentialSliceOfVecs::new(&input, 1, n).map_err(|e| failed(&e))?;
        let mut to = SequentialSliceOfVecs::new_mut(&mut resampled, 1, n_room).map_err(|e| failed(&e))?;
        resampler.reset();
        let (_, n_made) = resampler.process_all_into_buffer(&from, &mut to, n, None).map_err(|e| failed(&e))?;
        let [mut samples] = resampled;
        samples.truncate(n_made);
        Ok(samples)
    }

    /// How many samples [`Sounds::resample`] makes of `n` at `rate` Hz.
    pub fn resampled_len(&self, rate: u32, n: u64) -> usize {
        if rate == self.sample_rate {
            return n as usize;
        }
        // In f64 and in this order, as the resampler counts.
        (f64::from(self.sample_rate) / f64::from(rate) * n as f64).ceil() as usize
    }

    /// Samples `part` of what [`Sounds::resample`] would make of the whole sound, to the bit; `read` gives samples of the sound, which
    /// has `n` of them at `rate` Hz. A block of the resampler depends on itself and the one before it.
    pub fn resample_part(
        &mut self,
        rate: u32,
        n: u64,
        part: Range<usize>,
        read: impl FnOnce(Range<u64>) -> Result<Waveform, ContentFault>,
    ) -> Result<Vec<f32>, ContentFault> {
        if rate == self.sample_rate {
            return Ok(read(part.start as u64..part.end as u64)?.samples);
        }
        let resampler = self.resampler(rate)?;
        let (from, to) = (resampler.input_frames_next(), resampler.output_frames_next());
        let delay = resampler.output_delay();
        let first = ((part.start + delay) / to).saturating_sub(1);
        let past = (part.end + delay).div_ceil(to);
        let wanted = (first * from) as u64..((past * from) as u64).min(n);
        let fault = |n: usize| ContentFault::Impossible { what: "a part of a sound of", found: format!("{n} samples") };
        let n_wanted = (wanted.end - wanted.start) as usize;
        let mut waveform = read(wanted)?;
        if waveform.samples.len() < n_wanted {
            return Err(fault(waveform.samples.len()));
        }
        // Whole blocks, as the resampler fills the last one of the whole: of its end alone it may round the number of samples otherwise.
        waveform.samples.resize((past - first) * from, 0.0);
        let mut resampled = self.resample(waveform)?;
        let (start, end) = (part.start - first * to, part.end - first * to);
        if resampled.len() < end {
            return Err(fault(resampled.len()));
        }
        resampled.truncate(end);
        resampled.drain(..start);
        Ok(resampled)
    }

    fn resampler(&mut self, from: u32) -> Result<&mut Fft<f32>, ContentFault> {
        let to = self.sample_rate;
        Ok(match self.resamplers.entry(from) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let window = WindowFunction::BlackmanHarris2;
                let block = block_len(from as usize, to as usize);
                let made = Fft::new_custom(from as usize, to as usize, block, 1, 1, window, FixedSync::Both);
                entry.insert(made.map_err(|e| failed(from)(&e))?)
            }
        })
    }

    /// Samples that `frames` frames of a view span.
    pub fn n_samples(&self, frames: usize) -> usize {
        frames * self.hop
    }

    /// `[frames, mels]` of samples that span whole frames.
    pub fn log_mel(&mut self, samples: &[f32]) -> Vec<f32> {
        self.log_mel.log_mel(samples)
    }
}

/// `samples` placed in `n` samples of silence, `gain` times as loud.
pub fn place(samples: &[f32], n: usize, placement: Placement, gain: f32) -> Vec<f32> {
    let mut frame = vec![0.0; n];
    let (to, from) = match placement {
        Placement::Pad(at) => (at.min(frame.len()), 0),
        Placement::Cut(at) => (0, at.min(samples.len())),
    };
    for (to, from) in frame[to..].iter_mut().zip(&samples[from..]) {
        *to = from * gain;
    }
    frame
}

fn failed(rate: u32) -> impl Fn(&dyn std::fmt::Display) -> ContentFault {
    move |e| ContentFault::Impossible { what: "a sound that cannot be resampled:", found: format!("{rate} Hz, {e}") }
}

/// Input samples of a block. An even number of the shortest possible blocks: the filter's delay is half a block, and only
/// then is that a whole number of samples on both sides, so that nothing is shifted by a fraction of one. A power of two of them:
/// transforms of lengths with a large prime factor take twice as long.
fn block_len(from: usize, to: usize) -> usize {
    let (mut a, mut b) = (from, to);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    let shortest = (from / a.max(1)).max(1);
    MIN_BLOCK.div_ceil(shortest).next_power_of_two().max(2) * shortest
}

#[cfg(test)]
mod tests {
    use imp_schemas::spectrogram::SpectrogramSpec;

    use super::*;

    fn sounds() -> Sounds {
        Sounds::new(&Arc::new(MelTables::new(&SpectrogramSpec::default(), 16_000.0)))
    }

    fn tone(rate: u32, hz: f64, seconds: f64) -> Vec<f32> {
        let n = (f64::from(rate) * seconds) as usize;
        (0..n).map(|i| (std::f64::consts::TAU * hz * i as f64 / f64::from(rate)).sin() as f32).collect()
    }

    #[test]
    fn a_tone_survives_resampling_and_keeps_its_place() {
        for rate in [8_000, 22_050, 44_100, 48_000] {
            for hz in [440.0, 3_000.0] {
                let waveform = Waveform { sampling_rate: rate, samples: tone(rate, hz, 1.0) };
                let got = sounds().resample(waveform).unwrap();
                let want = tone(16_000, hz, 1.0);
                assert!(got.len().abs_diff(want.len()) <= 1, "{rate}: {}", got.len());
                // The first and last 50 ms hold the filter's edges.
                let error = got[800..15_200].iter().zip(&want[800..]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(error < 2e-3, "{rate} Hz, tone of {hz} Hz: {error}");
            }
        }
    }

    #[test]
    fn a_part_is_what_the_whole_has_there_to_the_bit() {
        for rate in [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000] {
            let samples: Vec<f32> =
                tone(rate, 440.0, 1.3).iter().zip(tone(rate, 1234.5, 1.3)).map(|(a, b)| a + 0.3 * b).collect();
            let n = samples.len() as u64;
            let whole = sounds().resample(Waveform { sampling_rate: rate, samples: samples.clone() }).unwrap();
            assert_eq!(sounds().resampled_len(rate, n), whole.len(), "{rate}");
            let mut sounds = sounds();
            for part in [0..700, 1..8192, 3000..3001, 5000..13_192, whole.len() - 9000..whole.len(), 0..whole.len()] {
                let mut n_read = 0;
                let got = sounds.resample_part(rate, n, part.clone(), |range| {
                    n_read = range.end - range.start;
                    let samples = samples[range.start as usize..range.end as usize].to_vec();
                    Ok(Waveform { sampling_rate: rate, samples })
                });
                assert_eq!(got.unwrap(), whole[part.clone()], "{rate} Hz, {part:?}");
                let few = part.len() as u64 * u64::from(rate) / 16_000 + 4 * block_len(rate as usize, 16_000) as u64;
                assert!(n_read <= few, "{rate} Hz, {part:?}: {n_read}");
            }
        }
    }

    #[test]
    fn the_end_of_a_sound_is_what_the_whole_has_there_where_lengths_round_apart() {
        let spec = SpectrogramSpec { sample_rate: 24_000, ..SpectrogramSpec::default() };
        let mut sounds = Sounds::new(&Arc::new(MelTables::new(&spec, 24_000.0)));
        for seconds in [6.0, 7.0, 10.0] {
            let samples = tone(44_100, 440.0, seconds);
            let n = samples.len() as u64;
            let whole = sounds.resample(Waveform { sampling_rate: 44_100, samples: samples.clone() }).unwrap();
            assert_eq!(sounds.resampled_len(44_100, n), whole.len());
            for part in [whole.len() - 131_072..whole.len(), whole.len() - 1..whole.len()] {
                let got = sounds.resample_part(44_100, n, part.clone(), |range| {
                    let samples = samples[range.start as usize..range.end as usize].to_vec();
                    Ok(Waveform { sampling_rate: 44_100, samples })
                });
                assert_eq!(got.unwrap(), whole[part], "{seconds} s");
            }
        }
    }

    #[test]
    fn a_tone_above_the_new_half_rate_is_gone() {
        let waveform = Waveform { sampling_rate: 44_100, samples: tone(44_100, 12_000.0, 1.0) };
        let got = sounds().resample(waveform).unwrap();
        let loudest = got[800..15_200].iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(loudest < 1e-3, "{loudest}");
    }

    #[test]
    fn a_sound_is_placed_where_it_is_told() {
        let mut sounds = sounds();
        let samples = tone(16_000, 1_000.0, 0.5);
        let mut padded = vec![0.0; sounds.n_samples(16)];
        padded[3000..3000 + samples.len()].copy_from_slice(&samples);
        assert_eq!(place(&samples, padded.len(), Placement::Pad(3000), 1.0), padded);
        assert_eq!(sounds.log_mel(&padded).len(), 16 * 128);
        let louder: Vec<f32> = samples[1000..1000 + 2048].iter().map(|v| v * 1.5).collect();
        assert_eq!(place(&samples, 2048, Placement::Cut(1000), 1.5), louder);
    }
}
