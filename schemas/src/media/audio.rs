//! WAV, AIFF, CAF, FLAC, MP3, Ogg Vorbis, AAC, ALAC; and the sound track of an MP4 or Matroska → samples.
//!
//! In: the bytes of a sound or a video. Out: one channel of samples, whole. Never: part of a sound with the length of the
//! whole, a sample that is no number, resampling, memory on a header's word.

use std::io::{Cursor, ErrorKind};

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::{AudioCodecId, AudioDecoderOptions, well_known as id};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

use super::{MediaError, MediaLimits, first_bytes, flac, wav};

/// What the planning columns say about a sound.
#[derive(Debug, Clone, PartialEq)]
pub struct AudioMeta {
    /// Hz.
    pub sampling_rate: u32,
    pub channels: usize,
    /// Per channel, as decoded.
    pub num_samples: u64,
    /// Seconds.
    pub duration: f64,
    /// `pcm_s16le`, `flac`, `mp3`, `vorbis`, `aac`, …
    pub codec: String,
}

/// A decoded sound, mixed down.
#[derive(Debug, Clone, PartialEq)]
pub struct Waveform {
    /// Hz.
    pub sampling_rate: u32,
    /// Mean over the channels, full scale ±1.
    pub samples: Vec<f32>,
}

/// Rates between which a sound is one; beyond them a header lies.
const RATES: std::ops::RangeInclusive<u32> = 1_000..=768_000;

/// Decodes a sound, or the sound track of a video, whole.
///
/// # Errors
/// See [`MediaError`]; a video without a sound track is [`MediaError::UnsupportedCodec`].
pub fn read_audio(bytes: &[u8], limits: &MediaLimits) -> Result<(AudioMeta, Waveform), MediaError> {
    if bytes.is_empty() {
        return Err(MediaError::Empty);
    }
    let tidied;
    let bytes = match known_but(bytes) {
        Some(codec) => return Err(unsupported(codec)),
        None if bytes.starts_with(b"RIFF") || bytes.starts_with(b"RF64") => {
            tidied = wav::tidy(bytes)?;
            &tidied
        }
        None if bytes.starts_with(b"fLaC") => match flac::tidy(bytes) {
            Some(mended) => {
                tidied = mended;
                &tidied
            }
            None => bytes,
        },
        None => bytes,
    };
    let mut format = open(bytes)?;
    let track = format.default_track(TrackType::Audio).or_else(|| format.first_track(TrackType::Audio));
    let track = track.ok_or_else(|| unsupported("none (the file has no sound track)"))?;
    let Some(CodecParameters::Audio(params)) = &track.codec_params else {
        return Err(unsupported("none (the file has no sound track)"));
    };
    let (track_id, n_claimed, codec_id) = (track.id, track.num_frames, params.codec);
    let codecs = symphonia::default::get_codecs();
    let registered = codecs.get_audio_decoder(codec_id);
    let codec = registered.map(|c| c.codec.info.short_name).ok_or_else(|| unsupported(&codec_name(codec_id)))?;
    let mut decoder = codecs
        .make_audio_decoder(params, &AudioDecoderOptions::default())
        .map_err(|error| broken(error, codec, "its parameters"))?;
    let mut sound = Sound { rate: 0, channels: 0, samples: Vec::new(), limits };
    let mut interleaved: Vec<f32> = Vec::new();
    let mut n_packets = 0_u64;
    loop {
        let place = || format!("packet {n_packets}");
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => return Err(broken(error, codec, &place())),
        };
        if packet.track_id != track_id {
            continue;
        }
        let decoded = decoder.decode(&packet).map_err(|error| broken(error, codec, &place()))?;
        decoded.copy_to_vec_interleaved(&mut interleaved);
        sound.push(decoded.spec().rate(), decoded.spec().channels().count(), &interleaved)?;
        n_packets += 1;
    }
    sound.finish(codec, n_claimed, bytes)
}

/// Containers that would be searched for MP3 in vain.
fn known_but(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0, 0, 1, 0xBA | 0xB3, ..] => Some("mpeg-1/2 program stream"),
        [0x30, 0x26, 0xB2, 0x75, ..] => Some("wma (asf container)"),
        [0x0B, 0x77, ..] => Some("ac3"),
        [b'.', b's', b'n', b'd', ..] => Some("au container"),
        [b'F', b'L', b'V', ..] => Some("flv container"),
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', ..] => Some("avi container"),
        _ => None,
    }
}

fn open(bytes: &[u8]) -> Result<Box<dyn FormatReader + '_>, MediaError> {
    let source = MediaSourceStream::new(Box::new(Cursor::new(bytes)), MediaSourceStreamOptions::default());
    let opened = symphonia::default::get_probe().probe(
        &Hint::new(),
        source,
        FormatOptions::default(),
        MetadataOptions::default(),
    );
    opened.map_err(|error| match error {
        // Symphonia has one error for a file of no kind it knows and for a container that lacks its index.
        Error::Unsupported(why) if why.contains("missing moov") => MediaError::Truncated {
            detail: "an MP4 without its `moov` box, which stands at the end of many".to_owned(),
        },
        Error::Unsupported(why) if !why.contains("no suitable format") => unsupported(why),
        Error::DecodeError(why) if why.contains("hvcC") => unsupported("mp4 with a long hvcC box"),
        Error::DecodeError(why) => MediaError::Corrupt { detail: why.to_owned() },
        Error::LimitError(why) => MediaError::Corrupt { detail: why.to_owned() },
        _ => MediaError::UnknownFormat {
            wanted: "sound (WAV, FLAC, MP3, Ogg Vorbis, AAC, MP4, MKV)",
            found: first_bytes(bytes),
        },
    })
}

/// Samples as they are collected.
struct Sound<'l> {
    rate: u32,
    channels: usize,
    samples: Vec<f32>,
    limits: &'l MediaLimits,
}

impl Sound<'_> {
    fn push(&mut self, rate: u32, channels: usize, interleaved: &[f32]) -> Result<(), MediaError> {
        let corrupt = |detail: String| Err(MediaError::Corrupt { detail });
        if interleaved.is_empty() || channels == 0 {
            return Ok(());
        }
        if self.samples.is_empty() {
            (self.rate, self.channels) = (rate, channels);
        }
        if (rate, channels) != (self.rate, self.channels) {
            let (was_rate, was) = (self.rate, self.channels);
            return corrupt(format!("the sound turns from {was_rate} Hz, {was} channels into {rate} Hz, {channels}"));
        }
        if !RATES.contains(&rate) {
            return corrupt(format!("the sampling rate is {rate} Hz, wanted {} to {}", RATES.start(), RATES.end()));
        }
        let found = self.samples.len() as u64 * channels as u64 + interleaved.len() as u64;
        if found > self.limits.max_samples {
            return Err(MediaError::TooLarge { what: "samples of the sound", found, limit: self.limits.max_samples });
        }
        if let Some(at) = interleaved.iter().position(|s| !s.is_finite()) {
            return corrupt(format!("sample {} is {}", self.samples.len() + at / channels, interleaved[at]));
        }
        if channels == 1 {
            self.samples.extend_from_slice(interleaved);
        } else {
            let share = 1.0 / channels as f32;
            self.samples.extend(interleaved.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() * share));
        }
        Ok(())
    }

    fn finish(self, codec: &str, n_claimed: Option<u64>, bytes: &[u8]) -> Result<(AudioMeta, Waveform), MediaError> {
        let num_samples = self.samples.len() as u64;
        if num_samples == 0 {
            return Err(MediaError::Corrupt { detail: "the file holds no samples".to_owned() });
        }
        // A codec's lead-in and tail, or an encoder's rounding, are a few packets; more than that was lost.
        let slack = u64::from(self.rate) / 5 + num_samples / 50;
        if let Some(n_claimed) = n_claimed
            && n_claimed > num_samples.saturating_add(slack)
        {
            return Err(MediaError::Truncated {
                detail: format!("{num_samples} samples of {n_claimed} that the header says"),
            });
        }
        if bytes.starts_with(b"OggS") && !ends_its_ogg_stream(bytes) {
            return Err(MediaError::Truncated { detail: "an Ogg stream without its last page".to_owned() });
        }
        let duration = num_samples as f64 / f64::from(self.rate);
        let meta = AudioMeta {
            sampling_rate: self.rate,
            channels: self.channels,
            num_samples,
            duration,
            codec: codec.to_owned(),
        };
        Ok((meta, Waveform { sampling_rate: self.rate, samples: self.samples }))
    }
}

/// Whether the last page says that it is the last: an Ogg file has no other length.
fn ends_its_ogg_stream(bytes: &[u8]) -> bool {
    let last = bytes.windows(4).rposition(|w| w == b"OggS");
    last.and_then(|at| bytes.get(at + 5)).is_some_and(|flags| flags & 4 != 0)
}

fn unsupported(codec: &str) -> MediaError {
    let remedy = "re-encode it as FLAC, WAV, MP3 or Ogg Vorbis, e.g. `ffmpeg -i IN OUT.flac`";
    MediaError::UnsupportedCodec { codec: codec.to_owned(), remedy }
}

fn broken(error: Error, codec: &str, place: &str) -> MediaError {
    match error {
        Error::IoError(io) if io.kind() == ErrorKind::UnexpectedEof => {
            MediaError::Truncated { detail: format!("{codec}, {place}: the file ends inside it") }
        }
        Error::Unsupported(what) => unsupported(&format!("{codec} with {what}")),
        // What symphonia says when the media box is longer than the file.
        Error::DecodeError(why) if why.contains("no atom pending") => {
            MediaError::Truncated { detail: format!("{codec}, {place}: the file ends before it") }
        }
        other => MediaError::Corrupt { detail: format!("{codec}, {place}: {other}") },
    }
}

/// Names of codecs that this build recognises and does not decode.
fn codec_name(codec: AudioCodecId) -> String {
    let name = match codec {
        id::CODEC_ID_OPUS => "opus",
        id::CODEC_ID_SPEEX => "speex",
        id::CODEC_ID_ADPCM_MS | id::CODEC_ID_ADPCM_IMA_WAV | id::CODEC_ID_ADPCM_IMA_QT => "adpcm",
        id::CODEC_ID_AC3 => "ac3",
        id::CODEC_ID_EAC3 => "eac3",
        id::CODEC_ID_AC4 => "ac4",
        id::CODEC_ID_DCA => "dts",
        id::CODEC_ID_WMA => "wma",
        id::CODEC_ID_WAVPACK => "wavpack",
        id::CODEC_ID_TRUEHD => "truehd",
        _ => return format!("number {codec}"),
    };
    name.to_owned()
}
