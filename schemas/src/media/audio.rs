//! WAV, AU, AIFF, CAF, FLAC, MP3, Ogg Vorbis, Opus, AAC, ALAC; and the sound track of an MP4 or Matroska → samples.
//!
//! In: the bytes of a sound or a video. Out: one channel of samples, whole or the part that was asked for. Never: part of a sound
//! with the length of the whole, a sample that is no number, resampling, memory on a header's word.

use std::io::{Cursor, ErrorKind};
use std::ops::Range;

use symphonia::core::audio::{Audio, GenericAudioBufferRef};
use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::{
    AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions, well_known as id,
};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;

use super::{MediaError, MediaLimits, au, caught, first_bytes, flac, matroska, opus, wav};

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
    decode(bytes, limits, Keep::All)
}

/// Samples `part` (per channel, counted from the start) of a sound, as [`read_audio`] has them: what comes behind them is not decoded,
/// nor what comes before where the codec does without it. Damage outside of the part may go unseen.
///
/// # Errors
/// As [`read_audio`]; a part that goes past the end is [`MediaError::Truncated`].
pub fn read_audio_part(bytes: &[u8], limits: &MediaLimits, part: Range<u64>) -> Result<Waveform, MediaError> {
    decode(bytes, limits, Keep::Part(part)).map(|(_, waveform)| waveform)
}

/// Which samples are kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Keep {
    None,
    All,
    Part(Range<u64>),
}

/// Decodes a sound as [`read_audio`] does and keeps none of it: memory is that of a packet, however long the sound.
///
/// # Errors
/// As [`read_audio`].
pub fn check_audio(bytes: &[u8], limits: &MediaLimits) -> Result<AudioMeta, MediaError> {
    decode(bytes, limits, Keep::None).map(|(meta, _)| meta)
}

fn decode(bytes: &[u8], limits: &MediaLimits, keep: Keep) -> Result<(AudioMeta, Waveform), MediaError> {
    if bytes.is_empty() {
        return Err(MediaError::Empty);
    }
    let read = caught(|| read_here(bytes, limits, keep.clone()));
    #[cfg(feature = "ffmpeg")]
    let read = super::or_system(read, || super::ffmpeg::read_audio(bytes, limits, keep));
    read
}

/// By the decoders in Rust.
fn read_here(bytes: &[u8], limits: &MediaLimits, keep: Keep) -> Result<(AudioMeta, Waveform), MediaError> {
    if let Some(codec) = known_but(bytes) {
        return Err(unsupported(codec));
    }
    if is_wav(bytes)
        && let Some(pcm) = wav::Wav::of(bytes)?.pcm16()
    {
        return read_pcm16(&pcm, limits, keep);
    }
    let tidied = tidied(bytes)?;
    let bytes = tidied.as_deref().unwrap_or(bytes);
    let mut format = open(bytes)?;
    let track = format.default_track(TrackType::Audio).or_else(|| format.first_track(TrackType::Audio));
    let track = track.ok_or_else(|| unsupported(NO_SOUND))?;
    let Some(CodecParameters::Audio(params)) = &track.codec_params else { return Err(unsupported(NO_SOUND)) };
    let (track_id, n_claimed) = (track.id, track.num_frames);
    let counts_samples =
        track.time_base.is_some_and(|base| base.numer.get() == 1 && params.sample_rate == Some(base.denom.get()));
    let mut decoder = Decoder::new(params)?;
    let codec = decoder.codec;
    let skips = counts_samples && decoder.is_independent();
    let mut sound = Sound::new(limits, keep);
    let mut interleaved: Vec<f32> = Vec::new();
    let mut n_packets = 0_u64;
    let mut last_packet = Box::default();
    loop {
        let packet_idx = n_packets;
        let place = || format!("packet {packet_idx}");
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => return Err(broken(error, codec, &place())),
        };
        if packet.track_id != track_id {
            continue;
        }
        n_packets += 1;
        if skips && sound.pass_over(packet.dur.get()) {
            continue;
        }
        decoder.decode(&packet, &mut interleaved, &mut sound, &place)?;
        if sound.has_enough() {
            return sound.finish_part();
        }
        last_packet = packet.data;
    }
    if let Some(lead_in) = decoder.opus_lead_in {
        sound.truncate(heard_of_opus(bytes, lead_in, sound.n_samples, &last_packet)?);
    }
    sound.finish(codec, n_claimed, bytes)
}

/// Samples of a block of [`read_pcm16`], per channel: one stays in the nearest cache.
const PCM_BLOCK: usize = 2048;

fn read_pcm16(pcm: &wav::Pcm16<'_>, limits: &MediaLimits, keep: Keep) -> Result<(AudioMeta, Waveform), MediaError> {
    let mut at = match &keep {
        Keep::Part(part) => part.start.min(pcm.n_samples() as u64) as usize,
        Keep::All | Keep::None => 0,
    };
    let mut sound = Sound::new(limits, keep);
    sound.pass_over(at as u64);
    let mut interleaved = Vec::with_capacity(PCM_BLOCK * pcm.channels);
    while at < pcm.n_samples() && !sound.has_enough() {
        pcm.read(at, PCM_BLOCK, &mut interleaved);
        sound.push(pcm.rate, pcm.channels, &interleaved)?;
        at += PCM_BLOCK;
    }
    sound.finish("pcm_s16le", None, &[])
}

fn is_wav(bytes: &[u8]) -> bool {
    matches!(bytes, [b'R', b'I', b'F', b'F', ..] | [b'R', b'F', b'6', b'4', ..])
}

pub(super) const NO_SOUND: &str = "none (the file has no sound track)";

/// What symphonia would refuse or read wrongly, written as it reads it; `None` for a file that is right as it stands.
fn tidied(bytes: &[u8]) -> Result<Option<Vec<u8>>, MediaError> {
    Ok(match bytes {
        _ if is_wav(bytes) => Some(wav::Wav::of(bytes)?.tidied()?),
        [b'.', b's', b'n', b'd', ..] => Some(wav::Wav::of(&au::to_wav(bytes)?)?.tidied()?),
        [b'f', b'L', b'a', b'C', ..] => flac::tidy(bytes),
        _ => None,
    })
}

/// A decoder of symphonia's, or ours for what symphonia only finds.
struct Decoder {
    codec: &'static str,
    kind: DecoderKind,
    /// Samples per channel of an Opus stream before the first that is to be heard.
    opus_lead_in: Option<usize>,
}

enum DecoderKind {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<opus::Decoder>),
}

impl Decoder {
    /// Whether packets decode without those before them.
    fn is_independent(&self) -> bool {
        self.codec == "flac" || self.codec.starts_with("pcm_")
    }

    fn new(params: &AudioCodecParameters) -> Result<Self, MediaError> {
        if params.codec == id::CODEC_ID_OPUS {
            let decoder = opus::Decoder::new(params.extra_data.as_deref().unwrap_or_default())?;
            let opus_lead_in = Some(decoder.lead_in());
            return Ok(Self { codec: "opus", kind: DecoderKind::Opus(Box::new(decoder)), opus_lead_in });
        }
        let codecs = symphonia::default::get_codecs();
        let registered = codecs.get_audio_decoder(params.codec).map(|c| c.codec.info.short_name);
        let codec = registered.ok_or_else(|| unsupported(&codec_name(params.codec)))?;
        let decoder = codecs
            .make_audio_decoder(params, &AudioDecoderOptions::default())
            .map_err(|error| broken(error, codec, "its parameters"))?;
        Ok(Self { codec, kind: DecoderKind::Symphonia(decoder), opus_lead_in: None })
    }

    /// Adds the packet's samples to `sound`; `interleaved` is room for them.
    fn decode(
        &mut self,
        packet: &Packet,
        interleaved: &mut Vec<f32>,
        sound: &mut Sound<'_>,
        place: &dyn Fn() -> String,
    ) -> Result<(), MediaError> {
        match &mut self.kind {
            DecoderKind::Symphonia(decoder) => {
                let decoded = decoder.decode(packet).map_err(|error| broken(error, self.codec, &place()))?;
                let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
                if channels == 2
                    && let GenericAudioBufferRef::S32(whole) = decoded
                    && let Some((left, right)) = whole.plane_pair(0, 1)
                {
                    return sound.push_stereo(rate, left, right);
                }
                decoded.copy_to_vec_interleaved(interleaved);
                sound.push(rate, channels, interleaved)
            }
            DecoderKind::Opus(decoder) => {
                let corrupt = |why| MediaError::Corrupt { detail: format!("opus, {}: {why}", place()) };
                decoder.decode(&packet.data, interleaved).map_err(corrupt)?;
                sound.push(opus::RATE, decoder.n_channels(), interleaved)
            }
        }
    }
}

/// How many of `n_decoded` samples are to be heard: an Opus stream ends inside its last packet, where its container says.
fn heard_of_opus(bytes: &[u8], lead_in: usize, n_decoded: usize, last_packet: &[u8]) -> Result<usize, MediaError> {
    if bytes.starts_with(b"OggS") {
        let Some(end) = last_ogg_page(bytes).and_then(|page| page.get(6..14)).and_then(|b| b.try_into().ok()) else {
            return Ok(n_decoded);
        };
        let n_heard = usize::try_from(u64::from_le_bytes(end)).unwrap_or(usize::MAX).saturating_sub(lead_in);
        // A packet lasts 120 ms at most, and pages that end a stream hold few.
        if n_heard.saturating_add(opus::RATE as usize) < n_decoded {
            let detail = format!("{n_decoded} samples in a stream that ends after {n_heard}");
            return Err(MediaError::Corrupt { detail });
        }
        let missing = n_heard.saturating_sub(n_decoded);
        // Streams that were cut out of a longer one begin late; those that lack pages in the middle are damaged.
        if missing > 0 && missing < n_decoded && first_ogg_granule(bytes).is_none_or(|g| g <= u64::from(opus::RATE)) {
            let detail =
                format!("{n_decoded} samples of {n_heard} that the last page says: pages are damaged or missing");
            return Err(MediaError::Corrupt { detail });
        }
        return Ok(n_heard.min(n_decoded));
    }
    if bytes.starts_with(&[0x1A, 0x45, 0xDF, 0xA3]) {
        let padding_ns = matroska::discard_padding(bytes, last_packet);
        let padding = padding_ns.saturating_mul(u64::from(opus::RATE)) / 1_000_000_000;
        return Ok(n_decoded.saturating_sub(usize::try_from(padding).unwrap_or(0)));
    }
    Ok(n_decoded)
}

/// The position at the end of the first page that carries sound.
fn first_ogg_granule(bytes: &[u8]) -> Option<u64> {
    let mut rest = bytes;
    loop {
        let page = rest.get(..27).filter(|page| page.starts_with(b"OggS"))?;
        let granule = u64::from_le_bytes(page[6..14].try_into().ok()?);
        // Header pages are at 0, pages on which no packet ends at -1.
        if granule != 0 && granule != u64::MAX {
            return Some(granule);
        }
        let lacing = rest.get(27..27 + usize::from(page[26]))?;
        rest = rest.get(27 + lacing.len() + lacing.iter().map(|&l| usize::from(l)).sum::<usize>()..)?;
    }
}

/// Containers that would be searched for MP3 in vain.
fn known_but(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0, 0, 1, 0xBA | 0xB3, ..] => Some("mpeg-1/2 program stream"),
        [0x30, 0x26, 0xB2, 0x75, ..] => Some("wma (asf container)"),
        [0x0B, 0x77, ..] => Some("ac3"),
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
            wanted: "sound (WAV, FLAC, MP3, Ogg Vorbis, Opus, AAC, MP4, MKV)",
            found: first_bytes(bytes),
        },
    })
}

/// Samples that a part gets room for at once; a longer one grows as it comes.
const MOST_RESERVED: u64 = 1 << 20;

/// Samples as they are collected.
pub(super) struct Sound<'l> {
    pub rate: u32,
    pub channels: usize,
    /// Per channel, so far.
    n_samples: usize,
    /// Those that are kept.
    samples: Vec<f32>,
    keep: Keep,
    limits: &'l MediaLimits,
}

impl<'l> Sound<'l> {
    pub(super) fn new(limits: &'l MediaLimits, keep: Keep) -> Self {
        let n = match &keep {
            Keep::Part(part) => part.end.saturating_sub(part.start).min(MOST_RESERVED) as usize,
            Keep::All | Keep::None => 0,
        };
        Self { rate: 0, channels: 0, n_samples: 0, samples: Vec::with_capacity(n), keep, limits }
    }

    fn truncate(&mut self, n_samples: usize) {
        self.n_samples = self.n_samples.min(n_samples);
        self.samples.truncate(n_samples);
    }

    /// Counts `n_samples` that need not be decoded, because all of them come before the part that is kept.
    fn pass_over(&mut self, n_samples: u64) -> bool {
        let Keep::Part(part) = &self.keep else { return false };
        let end = self.n_samples as u64 + n_samples;
        if n_samples > 0 && end <= part.start {
            self.n_samples = end as usize;
        }
        n_samples > 0 && end <= part.start
    }

    /// Whether the part that is kept is there.
    pub(super) fn has_enough(&self) -> bool {
        matches!(&self.keep, Keep::Part(part) if self.n_samples as u64 >= part.end)
    }

    /// Samples of any number of channels, full scale ±1.
    pub(super) fn push(&mut self, rate: u32, channels: usize, interleaved: &[f32]) -> Result<(), MediaError> {
        if interleaved.is_empty() || channels == 0 {
            return Ok(());
        }
        self.check(rate, channels, interleaved.len())?;
        if has_no_number(interleaved)
            && let Some(at) = interleaved.iter().position(|s| !s.is_finite())
        {
            let detail = format!("sample {} is {}", self.n_samples + at / channels, interleaved[at]);
            return Err(MediaError::Corrupt { detail });
        }
        let kept = self.count(interleaved.len() / channels);
        let kept = &interleaved[kept.start * channels..kept.end * channels];
        match channels {
            1 => self.samples.extend_from_slice(kept),
            // Written out for the compiler's sake: two channels are what most sounds have.
            2 => self.samples.extend(kept.as_chunks::<2>().0.iter().map(|[left, right]| (left + right) * 0.5)),
            _ => {
                let share = 1.0 / channels as f32;
                self.samples.extend(kept.chunks_exact(channels).map(|frame| frame.iter().sum::<f32>() * share));
            }
        }
        Ok(())
    }

    /// Samples of two channels that lie apart, whole numbers of 32 bits, as what codes without loss has them: the same to the bit, in one pass.
    fn push_stereo(&mut self, rate: u32, left: &[i32], right: &[i32]) -> Result<(), MediaError> {
        const FULL_SCALE: f32 = (1_u32 << 31) as f32;
        if left.is_empty() {
            return Ok(());
        }
        self.check(rate, 2, left.len() + right.len())?;
        let kept = self.count(left.len().min(right.len()));
        let level = |sample: &i32| *sample as f32 / FULL_SCALE;
        let both = left[kept.clone()].iter().zip(&right[kept]);
        self.samples.extend(both.map(|(left, right)| (level(left) + level(right)) * 0.5));
        Ok(())
    }

    /// Whether `n_values` more of all channels can belong to the sound.
    fn check(&mut self, rate: u32, channels: usize, n_values: usize) -> Result<(), MediaError> {
        let corrupt = |detail: String| Err(MediaError::Corrupt { detail });
        if self.rate == 0 {
            (self.rate, self.channels) = (rate, channels);
        }
        if (rate, channels) != (self.rate, self.channels) {
            let (was_rate, was) = (self.rate, self.channels);
            return corrupt(format!("the sound turns from {was_rate} Hz, {was} channels into {rate} Hz, {channels}"));
        }
        if !RATES.contains(&rate) {
            return corrupt(format!("the sampling rate is {rate} Hz, wanted {} to {}", RATES.start(), RATES.end()));
        }
        let found = self.n_samples as u64 * channels as u64 + n_values as u64;
        if found > self.limits.max_samples {
            return Err(MediaError::TooLarge { what: "samples of the sound", found, limit: self.limits.max_samples });
        }
        Ok(())
    }

    /// Counts `n` more samples per channel; gives those of them that are kept.
    fn count(&mut self, n: usize) -> Range<usize> {
        let before = self.n_samples as u64;
        self.n_samples += n;
        match &self.keep {
            Keep::None => 0..0,
            Keep::All => 0..n,
            Keep::Part(part) => {
                let within = |at: u64| at.saturating_sub(before).min(n as u64) as usize;
                within(part.start)..within(part.end)
            }
        }
    }

    /// A part of a sound, without what is said of the whole.
    pub(super) fn finish_part(self) -> Result<(AudioMeta, Waveform), MediaError> {
        let meta = AudioMeta {
            sampling_rate: self.rate,
            channels: self.channels,
            num_samples: self.samples.len() as u64,
            duration: self.samples.len() as f64 / f64::from(self.rate.max(1)),
            codec: String::new(),
        };
        Ok((meta, Waveform { sampling_rate: self.rate, samples: self.samples }))
    }

    pub(super) fn finish(
        self,
        codec: &str,
        n_claimed: Option<u64>,
        bytes: &[u8],
    ) -> Result<(AudioMeta, Waveform), MediaError> {
        let num_samples = self.n_samples as u64;
        if let Keep::Part(part) = &self.keep {
            if num_samples >= part.end {
                return self.finish_part();
            }
            let detail = format!("samples {} to {} of a sound of {num_samples}", part.start, part.end);
            return Err(MediaError::Truncated { detail });
        }
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

/// Whether a sample is infinite or not a number: all of its exponent's bits are set. A greatest value is found many at a time.
fn has_no_number(samples: &[f32]) -> bool {
    const EXPONENT: u32 = 0x7F80_0000;
    samples.iter().fold(0, |most, sample| most.max(sample.to_bits() & EXPONENT)) == EXPONENT
}

/// Whether the last page says that it is the last: an Ogg file has no other length.
fn ends_its_ogg_stream(bytes: &[u8]) -> bool {
    last_ogg_page(bytes).and_then(|page| page.get(5)).is_some_and(|flags| flags & 4 != 0)
}

fn last_ogg_page(bytes: &[u8]) -> Option<&[u8]> {
    bytes.windows(4).rposition(|w| w == b"OggS").map(|at| &bytes[at..])
}

pub(super) fn unsupported(codec: &str) -> MediaError {
    let remedy = if cfg!(feature = "ffmpeg") {
        "re-encode it as FLAC, WAV, MP3 or Ogg Vorbis, e.g. `ffmpeg -i IN OUT.flac`"
    } else {
        "build with `--features ffmpeg`, or re-encode it as FLAC, WAV, MP3 or Ogg Vorbis, e.g. `ffmpeg -i IN OUT.flac`"
    };
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
