//! Pixels and samples → bytes of real media files: JPEG, PNG, WebP, WAV, FLAC, H.264 in MP4.
//!
//! In: pictures and mono samples. Out: the bytes of one file, the same for the same input. Never: decodes.

use std::io::Cursor;

use flacenc::component::BitRepr;
use flacenc::error::Verify;
use image::{ExtendedColorType, ImageEncoder, RgbImage};
use mp4::{AvcConfig, FourCC, MediaConfig, Mp4Config, Mp4Sample, Mp4Writer, TrackConfig, TrackType};
use openh264::OpenH264API;
use openh264::encoder::{Encoder, EncoderConfig, FrameRate, FrameType, QpRange, RateControlMode};
use openh264::formats::{RgbSliceU8, YUVBuffer};

/// An encoder refused its input.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    #[error("cannot encode a {width}x{height} picture")]
    Picture { width: u32, height: u32, source: image::ImageError },
    #[error("cannot write a WAV of {n_samples} samples")]
    Wav { n_samples: usize, source: hound::Error },
    #[error("cannot encode {n_samples} samples as FLAC: {detail}")]
    Flac { n_samples: usize, detail: String },
    #[error("frame {frame_idx} is {width}x{height}; H.264 wants even sides, the same for every frame")]
    FrameSize { frame_idx: usize, width: u32, height: u32 },
    #[error("the H.264 encoder failed at frame {frame_idx}")]
    H264 { frame_idx: usize, source: openh264::Error },
    #[error("the H.264 encoder wrote no {what}")]
    NoParameterSet { what: &'static str },
    #[error("cannot write the MP4")]
    Mp4 { source: mp4::Error },
}

/// Baseline JPEG of `quality` 1 to 100.
///
/// # Errors
/// [`EncodeError::Picture`] for a picture without pixels or wider than 65,535.
pub fn jpeg_bytes(picture: &RgbImage, quality: u8) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    encode_picture(picture, image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality))?;
    Ok(bytes)
}

/// PNG, 8 bits a channel.
///
/// # Errors
/// [`EncodeError::Picture`] for a picture without pixels.
pub fn png_bytes(picture: &RgbImage) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    encode_picture(picture, image::codecs::png::PngEncoder::new(&mut bytes))?;
    Ok(bytes)
}

/// Lossless WebP.
///
/// # Errors
/// [`EncodeError::Picture`] for a picture without pixels or wider than 16,384.
pub fn webp_bytes(picture: &RgbImage) -> Result<Vec<u8>, EncodeError> {
    let mut bytes = Vec::new();
    encode_picture(picture, image::codecs::webp::WebPEncoder::new_lossless(&mut bytes))?;
    Ok(bytes)
}

fn encode_picture<E: ImageEncoder>(picture: &RgbImage, encoder: E) -> Result<(), EncodeError> {
    let (width, height) = picture.dimensions();
    encoder
        .write_image(picture.as_raw(), width, height, ExtendedColorType::Rgb8)
        .map_err(|source| EncodeError::Picture { width, height, source })
}

/// Full scale ±1 → 16 bits; what lies outside is clipped.
fn to_i16(sample: f32) -> i16 {
    (sample.clamp(-1.0, 1.0) * f32::from(i16::MAX)).round() as i16
}

/// Mono WAV, 16-bit PCM. `samples` has full scale ±1, `sampling_rate` is in Hz.
///
/// # Errors
/// [`EncodeError::Wav`] for more than 4 GiB of samples.
pub fn wav_bytes(samples: &[f32], sampling_rate: u32) -> Result<Vec<u8>, EncodeError> {
    let failed = |source| EncodeError::Wav { n_samples: samples.len(), source };
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: sampling_rate,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut bytes = Cursor::new(Vec::new());
    let mut writer = hound::WavWriter::new(&mut bytes, spec).map_err(failed)?;
    for &sample in samples {
        writer.write_sample(to_i16(sample)).map_err(failed)?;
    }
    writer.finalize().map_err(failed)?;
    Ok(bytes.into_inner())
}

/// Where STREAMINFO keeps the least and the greatest block size, bytes from the start of the file.
const MIN_BLOCK_SIZE_AT: usize = 8;
const MAX_BLOCK_SIZE_AT: usize = 10;

/// Mono FLAC, 16 bits. `samples` has full scale ±1, `sampling_rate` is in Hz.
///
/// # Errors
/// [`EncodeError::Flac`] for a sampling rate that FLAC has no code for, or too few samples for a block.
pub fn flac_bytes(samples: &[f32], sampling_rate: u32) -> Result<Vec<u8>, EncodeError> {
    let failed = |detail: String| EncodeError::Flac { n_samples: samples.len(), detail };
    let config = flacenc::config::Encoder::default().into_verified().map_err(|(_, error)| failed(error.to_string()))?;
    let integers: Vec<i32> = samples.iter().map(|&sample| i32::from(to_i16(sample))).collect();
    let source = flacenc::source::MemSource::from_samples(&integers, 1, 16, sampling_rate as usize);
    let stream = flacenc::encode_with_fixed_block_size(&config, source, config.block_size)
        .map_err(|error| failed(error.to_string()))?;
    let mut sink = flacenc::bitsink::ByteSink::new();
    stream.write(&mut sink).map_err(|error| failed(error.to_string()))?;
    let mut bytes = sink.as_slice().to_vec();
    // STREAMINFO holds the least block size without the last block (RFC 9639, 8.2); flacenc 0.5 counts the last one too,
    // so that a stream of equal blocks claims to be one of varying blocks, and strict readers refuse it.
    bytes.copy_within(MAX_BLOCK_SIZE_AT..MAX_BLOCK_SIZE_AT + 2, MIN_BLOCK_SIZE_AT);
    Ok(bytes)
}

/// Ticks per second of the MP4 clock: every rate from 1 to 120 frames a second divides it or is off by under 1 %.
const TIMESCALE: u32 = 12_800;

/// H.264 (constrained baseline) in MP4 without sound; one key frame at the start.
///
/// # Errors
/// Sides that are odd or change from frame to frame, no frame at all, or a failure of the encoder.
pub fn mp4_bytes(frames: &[RgbImage], fps: f32) -> Result<Vec<u8>, EncodeError> {
    let (width, height) = frames.first().map_or((0, 0), RgbImage::dimensions);
    let encoded = h264_frames(frames, fps)?;
    let find = |kind: u8, what| {
        let nals = encoded.iter().flat_map(|frame| &frame.parameter_sets);
        nals.into_iter().find(|nal| nal_kind(nal) == kind).cloned().ok_or(EncodeError::NoParameterSet { what })
    };
    let track = TrackConfig {
        track_type: TrackType::Video,
        timescale: TIMESCALE,
        language: "und".to_owned(),
        media_conf: MediaConfig::AvcConfig(AvcConfig {
            width: width as u16,
            height: height as u16,
            seq_param_set: find(7, "sequence parameter set")?,
            pic_param_set: find(8, "picture parameter set")?,
        }),
    };
    let failed = |source| EncodeError::Mp4 { source };
    let brand = |name: [u8; 4]| FourCC { value: name };
    let config = Mp4Config {
        major_brand: brand(*b"isom"),
        minor_version: 512,
        compatible_brands: vec![brand(*b"isom"), brand(*b"iso2"), brand(*b"avc1"), brand(*b"mp41")],
        timescale: TIMESCALE,
    };
    let mut writer = Mp4Writer::write_start(Cursor::new(Vec::new()), &config).map_err(failed)?;
    writer.add_track(&track).map_err(failed)?;
    let duration = (f64::from(TIMESCALE) / f64::from(fps)).round() as u32;
    for (frame_idx, frame) in encoded.into_iter().enumerate() {
        let sample = Mp4Sample {
            start_time: frame_idx as u64 * u64::from(duration),
            duration,
            rendering_offset: 0,
            is_sync: frame.is_key,
            bytes: frame.slices.into(),
        };
        writer.write_sample(1, &sample).map_err(failed)?;
    }
    writer.write_end().map_err(failed)?;
    Ok(writer.into_writer().into_inner())
}

/// One coded picture.
struct H264Frame {
    is_key: bool,
    /// SPS and PPS, without start codes.
    parameter_sets: Vec<Vec<u8>>,
    /// Slices, each behind its length in 4 bytes, as MP4 keeps them.
    slices: Vec<u8>,
}

fn nal_kind(nal: &[u8]) -> u8 {
    nal.first().map_or(0, |byte| byte & 0x1f)
}

fn h264_frames(frames: &[RgbImage], fps: f32) -> Result<Vec<H264Frame>, EncodeError> {
    // Without rate control the quantiser is fixed; one thread and no scene cuts, so that the same frames give the same bytes.
    let config = EncoderConfig::new()
        .rate_control_mode(RateControlMode::Off)
        .qp(QpRange::new(18, 30))
        .skip_frames(false)
        .scene_change_detect(false)
        .background_detection(false)
        .adaptive_quantization(false)
        .max_frame_rate(FrameRate::from_hz(fps))
        .num_threads(1);
    let mut encoder = Encoder::with_api_config(OpenH264API::from_source(), config)
        .map_err(|source| EncodeError::H264 { frame_idx: 0, source })?;
    let wanted = frames.first().map(RgbImage::dimensions);
    let mut encoded = Vec::with_capacity(frames.len());
    for (frame_idx, frame) in frames.iter().enumerate() {
        let (width, height) = frame.dimensions();
        if Some((width, height)) != wanted || width == 0 || height == 0 || width % 2 != 0 || height % 2 != 0 {
            return Err(EncodeError::FrameSize { frame_idx, width, height });
        }
        let yuv = YUVBuffer::from_rgb8_source(RgbSliceU8::new(frame.as_raw(), (width as usize, height as usize)));
        let stream = encoder.encode(&yuv).map_err(|source| EncodeError::H264 { frame_idx, source })?;
        let mut out = H264Frame {
            is_key: matches!(stream.frame_type(), FrameType::IDR),
            parameter_sets: Vec::new(),
            slices: Vec::new(),
        };
        for layer in (0..stream.num_layers()).filter_map(|l| stream.layer(l)) {
            for nal in (0..layer.nal_count()).filter_map(|n| layer.nal_unit(n)) {
                // OpenH264 puts a start code of 3 or 4 bytes before every unit: zeros, then a one.
                let start = nal.iter().position(|&byte| byte == 1).map_or(0, |at| at + 1);
                let nal = &nal[start..];
                if matches!(nal_kind(nal), 7 | 8) {
                    out.parameter_sets.push(nal.to_vec());
                } else {
                    out.slices.extend_from_slice(&(nal.len() as u32).to_be_bytes());
                    out.slices.extend_from_slice(nal);
                }
            }
        }
        encoded.push(out);
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(width: u32, height: u32, shift: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 3 + shift) as u8, (y * 3) as u8, 128]))
    }

    #[test]
    fn a_jpeg_and_a_png_decode_to_what_was_encoded() {
        let picture = gradient(48, 40, 0);
        let png = image::load_from_memory(&png_bytes(&picture).unwrap()).unwrap().to_rgb8();
        assert_eq!(png, picture);
        let webp = image::load_from_memory(&webp_bytes(&picture).unwrap()).unwrap().to_rgb8();
        assert_eq!(webp, picture);
        let jpeg = image::load_from_memory(&jpeg_bytes(&picture, 95).unwrap()).unwrap().to_rgb8();
        let worst = jpeg.as_raw().iter().zip(picture.as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
        // Quality 95 halves chroma and rounds coefficients; a smooth gradient stays within a few levels.
        assert!(worst.is_some_and(|worst| worst < 24), "{worst:?}");
    }

    #[test]
    fn a_wav_reads_back_sample_by_sample() {
        let samples: Vec<f32> = (0..500).map(|i| (i as f32 * 0.1).sin() * 0.5).collect();
        let bytes = wav_bytes(&samples, 16_000).unwrap();
        let reader = hound::WavReader::new(Cursor::new(bytes)).unwrap();
        assert_eq!(reader.spec().sample_rate, 16_000);
        let got: Vec<i16> = reader.into_samples::<i16>().map(Result::unwrap).collect();
        assert_eq!(got, samples.iter().map(|&s| to_i16(s)).collect::<Vec<_>>());
    }

    #[test]
    fn a_flac_is_smaller_than_its_wav_and_starts_as_flac_does() {
        let samples: Vec<f32> = (0..16_000).map(|i| (i as f32 * 0.1).sin() * 0.5).collect();
        let flac = flac_bytes(&samples, 16_000).unwrap();
        assert_eq!(&flac[..4], b"fLaC");
        // 16,000 samples are three blocks of 4096 and a shorter one, which does not count.
        assert_eq!(flac[8..12], [0x10, 0, 0x10, 0]);
        assert!(flac.len() < wav_bytes(&samples, 16_000).unwrap().len());
    }

    #[test]
    fn an_mp4_holds_every_frame_at_its_rate_and_is_the_same_each_time() {
        let frames: Vec<RgbImage> = (0..12).map(|i| gradient(64, 48, i * 4)).collect();
        let bytes = mp4_bytes(&frames, 10.0).unwrap();
        assert_eq!(bytes, mp4_bytes(&frames, 10.0).unwrap());
        let n_bytes = bytes.len() as u64;
        let reader = mp4::Mp4Reader::read_header(Cursor::new(bytes), n_bytes).unwrap();
        let track = &reader.tracks()[&1];
        assert_eq!((track.sample_count(), track.width(), track.height()), (12, 64, 48));
        assert!((track.frame_rate() - 10.0).abs() < 0.01, "{}", track.frame_rate());
    }

    #[test]
    fn frames_of_odd_or_changing_size_are_named() {
        let message = mp4_bytes(&[gradient(64, 48, 0), gradient(62, 48, 0)], 10.0).unwrap_err().to_string();
        assert!(message.contains("frame 1 is 62x48"), "{message}");
    }
}
