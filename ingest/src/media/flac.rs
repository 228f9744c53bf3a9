//! Sounds → 16 kHz mono FLAC, what speech models read, at about half the bytes of WAV.
//!
//! In: a decoded waveform. Out: the bytes of a FLAC file, 16 bits a sample. Never: a sound longer or shorter by more than a
//! sample, a value beyond full scale that wraps.

use flacenc::component::BitRepr;
use flacenc::error::Verify;
use imp_schemas::media::{MediaError, Waveform};
use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler, WindowFunction};

/// Hz.
const RATE: u32 = 16_000;
/// Least input samples of one resampler block: the longer the block, the sharper the filter.
const MIN_BLOCK: usize = 1024;
/// Where STREAMINFO keeps the least and the greatest block size, bytes from the start of the file.
const MIN_BLOCK_SIZE_AT: usize = 8;
const MAX_BLOCK_SIZE_AT: usize = 10;
/// A FLAC block that is not the last has at least 16 samples (RFC 9639, 5); a shorter sound is filled up with silence.
const LEAST_SAMPLES: usize = 16;

/// The sound at 16 kHz as FLAC.
///
/// # Errors
/// A rate that cannot be resampled, or a failure of the encoder.
pub(super) fn to_flac(waveform: Waveform) -> Result<Vec<u8>, MediaError> {
    let failed = |detail: String| MediaError::Corrupt { detail: format!("the sound does not become FLAC: {detail}") };
    let samples = resampled(waveform).map_err(failed)?;
    let mut integers: Vec<i32> =
        samples.iter().map(|s| (s.clamp(-1.0, 1.0) * f32::from(i16::MAX)).round() as i32).collect();
    integers.resize(integers.len().max(LEAST_SAMPLES), 0);
    let config = flacenc::config::Encoder::default().into_verified().map_err(|(_, error)| failed(error.to_string()))?;
    let source = flacenc::source::MemSource::from_samples(&integers, 1, 16, RATE as usize);
    let stream = flacenc::encode_with_fixed_block_size(&config, source, config.block_size)
        .map_err(|error| failed(error.to_string()))?;
    let mut sink = flacenc::bitsink::ByteSink::new();
    stream.write(&mut sink).map_err(|error| failed(error.to_string()))?;
    let mut bytes = sink.as_slice().to_vec();
    // STREAMINFO's least block size leaves out the last block (RFC 9639, 8.2); flacenc 0.5 counts it, and strict readers
    // then take the stream for one of varying blocks and refuse it.
    bytes.copy_within(MAX_BLOCK_SIZE_AT..MAX_BLOCK_SIZE_AT + 2, MIN_BLOCK_SIZE_AT);
    Ok(bytes)
}

fn resampled(waveform: Waveform) -> Result<Vec<f32>, String> {
    if waveform.sampling_rate == RATE {
        return Ok(waveform.samples);
    }
    let (from, to) = (waveform.sampling_rate as usize, RATE as usize);
    let window = WindowFunction::BlackmanHarris2;
    let mut resampler = Fft::<f32>::new_custom(from, to, block_len(from, to), 1, 1, window, FixedSync::Both)
        .map_err(|e| format!("{from} Hz, {e}"))?;
    let n = waveform.samples.len();
    let input = InterleavedSlice::new(&waveform.samples, 1, n).map_err(|e| e.to_string())?;
    Ok(resampler.process_all(&input, n, None).map_err(|e| e.to_string())?.take_data())
}

/// Input samples of a block: an even number of the shortest possible blocks, so that the filter's delay of half a block is a
/// whole number of samples on both sides.
fn block_len(from: usize, to: usize) -> usize {
    let (mut a, mut b) = (from, to);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    let shortest = (from / a.max(1)).max(1);
    2 * MIN_BLOCK.div_ceil(2 * shortest) * shortest
}
