//! H.264 in MP4, MOV and Matroska → frames; with the feature `ffmpeg`, what the system's libav knows besides.
//!
//! In: the bytes of a clip. Out: its planning columns, or the frames that were asked for, upright. Never: a frame in the
//! wrong place, a whole clip of pixels in memory, a repaired frame: what does not decode is an error.

use std::borrow::Cow;
use std::collections::BTreeMap;

use rusty_h264_common::YuvFrame;
use rusty_h264_decoder::{DecodeError, Decoder};

use super::h264::{self, Config, StreamParams};
use super::planes::{PlaneView, PlanesView};
use super::{MediaError, MediaLimits, Picture, caught, first_bytes, matroska, mp4, rgb};

/// A frame that decodes without another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyframe {
    /// Microseconds from the start of presentation.
    pub pts_us: i64,
    /// Byte offset of the frame's sample in the file; -1 if the container does not store it in one piece.
    pub offset: i64,
}

/// What the planning columns say about a clip.
#[derive(Debug, Clone, PartialEq)]
pub struct VideoMeta {
    /// Pixels, upright.
    pub width: usize,
    pub height: usize,
    /// Mean frames per second.
    pub fps: f32,
    pub num_frames: usize,
    /// Seconds.
    pub duration: f64,
    /// `h264`.
    pub codec: String,
    pub keyframes: Vec<Keyframe>,
    pub has_audio: bool,
}

/// Decodes every frame, keeps none, and says what was there: the check that ingest makes.
///
/// # Errors
/// See [`MediaError`].
pub fn read_video(bytes: &[u8], limits: &MediaLimits) -> Result<VideoMeta, MediaError> {
    let read = caught(|| read_here(bytes, limits));
    #[cfg(feature = "ffmpeg")]
    let read = super::or_system(read, || super::ffmpeg::read_video(bytes, limits));
    read
}

/// By the decoder in Rust.
fn read_here(bytes: &[u8], limits: &MediaLimits) -> Result<VideoMeta, MediaError> {
    let clip = open(bytes, limits)?;
    let mut size = (0, 0);
    let mut decoder = ClipDecoder::new(&clip, limits);
    for unit_idx in 0..clip.units.len() {
        let yuv = decoder.decode(unit_idx)?;
        size = (yuv.width, yuv.height);
    }
    let (width, height) = if clip.quarter_turns.is_multiple_of(2) { size } else { (size.1, size.0) };
    let start = clip.units.iter().map(|u| u.pts_us).min().unwrap_or(0);
    let keyframes = clip.units.iter().filter(|u| u.starts);
    let keyframes = keyframes.map(|u| Keyframe { pts_us: u.pts_us - start, offset: u.offset }).collect();
    let (num_frames, duration, has_audio) = (clip.units.len(), clip.duration, clip.has_audio);
    let fps = if duration > 0.0 { (num_frames as f64 / duration) as f32 } else { 0.0 };
    Ok(VideoMeta { width, height, fps, num_frames, duration, codec: "h264".to_owned(), keyframes, has_audio })
}

/// A decoded frame, of which nothing was converted yet.
#[derive(Debug)]
pub struct Frame<'a> {
    pub(super) values: Values<'a>,
    pub(super) quarter_turns: u8,
}

/// As the decoder gave it.
#[derive(Debug)]
pub(super) enum Values<'a> {
    /// 8-bit 4:2:0.
    Planes { width: usize, height: usize, planes: rgb::Planes<'a>, full_range: bool },
    /// Anything else.
    #[cfg_attr(not(feature = "ffmpeg"), expect(dead_code, reason = "only libav decodes anything else"))]
    Picture(Picture),
}

impl Frame<'_> {
    /// RGB, upright.
    ///
    /// # Errors
    /// [`MediaError::Corrupt`] if its planes are shorter than it says.
    pub fn picture(&self) -> Result<Picture, MediaError> {
        let picture = match &self.values {
            Values::Planes { width, height, planes, full_range } => rgb::of_420(*width, *height, planes, *full_range)?,
            Values::Picture(picture) => picture.clone(),
        };
        Ok(rgb::turned(picture, self.quarter_turns))
    }

    /// Its planes; `None` if it is not upright, not 8-bit 4:2:0, or its memory ends with the last row's pixels and not with the row.
    ///
    /// # Errors
    /// As [`Self::picture`].
    pub fn planes(&self) -> Result<Option<PlanesView<'_>>, MediaError> {
        let Values::Planes { width, height, planes, full_range } = self.values else { return Ok(None) };
        if self.quarter_turns != 0 {
            return Ok(None);
        }
        planes.check(width, height)?;
        let [y, u, v] = planes.strides;
        let view = |values, stride, step: usize| PlaneView {
            width: width.div_ceil(step),
            height: height.div_ceil(step),
            values,
            stride,
            step: (step, step),
        };
        let planes = [view(planes.y, y, 1), view(planes.u, u, 2), view(planes.v, v, 2)];
        let is_whole = planes.iter().all(|plane| plane.values.len() >= plane.stride * plane.height);
        Ok(is_whole.then_some(PlanesView { width, height, planes, full_range }))
    }
}

/// Takes the frames that were asked for, each with its index.
pub(super) type Take<'t> = dyn FnMut(usize, &Frame<'_>) -> Result<(), MediaError> + 't;

/// Decodes the frames `wanted` (indices in presentation order, rising, repetition allowed) and hands each to `take`
/// as it comes, so that a caller that reduces frames never holds the full-size clip.
///
/// # Errors
/// See [`MediaError`]; an index past the last frame is [`MediaError::Truncated`].
pub fn read_frames(
    bytes: &[u8],
    wanted: &[usize],
    limits: &MediaLimits,
    take: &mut dyn FnMut(usize, Picture),
) -> Result<(), MediaError> {
    read_raw_frames(bytes, wanted, limits, &mut |frame_idx, frame| {
        take(frame_idx, frame.picture()?);
        Ok(())
    })
}

/// As [`read_frames`], for whoever needs no RGB of the whole frame. What `take` refuses ends the reading.
///
/// # Errors
/// As [`read_frames`], and `take`'s.
pub fn read_raw_frames(
    bytes: &[u8],
    wanted: &[usize],
    limits: &MediaLimits,
    take: &mut dyn FnMut(usize, &Frame<'_>) -> Result<(), MediaError>,
) -> Result<(), MediaError> {
    let mut n_taken = 0;
    let read = caught(|| {
        read_frames_here(bytes, wanted, limits, &mut |frame_idx, frame| {
            n_taken += 1;
            take(frame_idx, frame)
        })
    });
    // A stream may turn into one that is not decoded here behind frames that were handed over.
    #[cfg(feature = "ffmpeg")]
    let read = super::or_system(read, || super::ffmpeg::read_frames(bytes, &wanted[n_taken..], limits, take));
    read
}

fn read_frames_here(
    bytes: &[u8],
    wanted: &[usize],
    limits: &MediaLimits,
    take: &mut Take<'_>,
) -> Result<(), MediaError> {
    let clip = open(bytes, limits)?;
    let needed = clip.needed(wanted)?;
    // Both decoders give the same frames to the bit; libav's is the faster one.
    #[cfg(feature = "ffmpeg")]
    return super::ffmpeg::read_units(&clip, &needed, wanted, limits, take);
    #[cfg(not(feature = "ffmpeg"))]
    read_units(&clip, &needed, wanted, limits, take)
}

/// By the decoder in Rust: it gives a frame for each unit, so those that are shown later than they are decoded are kept.
#[cfg_attr(all(feature = "ffmpeg", not(test)), expect(dead_code, reason = "libav's decoder is the faster one"))]
pub(super) fn read_units(
    clip: &Clip<'_>,
    needed: &[Needed],
    wanted: &[usize],
    limits: &MediaLimits,
    take: &mut Take<'_>,
) -> Result<(), MediaError> {
    let mut decoder = ClipDecoder::new(clip, limits);
    let mut rest = wanted;
    // Frames that were decoded before one that is shown earlier; never more than the stream reorders, 16.
    let mut early: BTreeMap<usize, YuvFrame> = BTreeMap::new();
    for &Needed { unit_idx, frame_idx, is_wanted } in needed {
        let yuv = decoder.decode(unit_idx)?;
        if !is_wanted {
            continue;
        }
        early.insert(frame_idx, yuv);
        while let Some(&next) = rest.first()
            && let Some(yuv) = early.remove(&next)
        {
            rest = hand_over(rest, &frame(&yuv, clip), take)?;
        }
    }
    Ok(())
}

/// Hands `frame` to `take` as often as the first index of `rest` stands there; gives what is left of `rest`.
pub(super) fn hand_over<'a>(
    rest: &'a [usize],
    frame: &Frame<'_>,
    take: &mut Take<'_>,
) -> Result<&'a [usize], MediaError> {
    let Some(&next) = rest.first() else { return Ok(rest) };
    let n_same = rest.iter().take_while(|&&i| i == next).count();
    for _ in 0..n_same {
        take(next, frame)?;
    }
    Ok(&rest[n_same..])
}

/// A unit that must be decoded for the frames that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needed {
    pub unit_idx: usize,
    /// In presentation order.
    pub frame_idx: usize,
    pub is_wanted: bool,
}

/// One access unit, in decoding order.
pub(super) struct Unit<'a> {
    pub bytes: Cow<'a, [u8]>,
    pub offset: i64,
    pub pts_us: i64,
    /// Decoding may start here.
    pub starts: bool,
}

/// A clip, demultiplexed.
pub(super) struct Clip<'a> {
    pub config: Config,
    pub units: Vec<Unit<'a>>,
    /// Seconds.
    pub duration: f64,
    pub quarter_turns: u8,
    pub has_audio: bool,
}

pub(super) fn open<'a>(bytes: &'a [u8], limits: &MediaLimits) -> Result<Clip<'a>, MediaError> {
    let known_but = |codec: &str| Err(unsupported(codec));
    let mut clip = match bytes {
        [] => return Err(MediaError::Empty),
        [0x1A, 0x45, 0xDF, 0xA3, ..] => matroska::open(bytes, limits)?,
        [_, _, _, _, kind @ ..] if MP4_STARTS.iter().any(|k| kind.starts_with(k)) => open_mp4(bytes, limits)?,
        [b'R', b'I', b'F', b'F', _, _, _, _, b'A', b'V', b'I', ..] => return known_but("avi container"),
        [0, 0, 1, 0xBA | 0xB3, ..] => return known_but("mpeg-1/2 program stream"),
        [b'G', b'I', b'F', b'8', ..] => return known_but("gif"),
        [b'F', b'L', b'V', ..] => return known_but("flv container"),
        [b'O', b'g', b'g', b'S', ..] => return known_but("ogg video"),
        [0x30, 0x26, 0xB2, 0x75, ..] => return known_but("asf/wmv container"),
        [0x47, rest @ ..] if rest.get(187) == Some(&0x47) => return known_but("mpeg transport stream"),
        _ => return Err(MediaError::UnknownFormat { wanted: "video (MP4, MOV, MKV)", found: first_bytes(bytes) }),
    };
    if clip.units.is_empty() {
        return Err(MediaError::Truncated { detail: "a video track without frames".to_owned() });
    }
    if let Some(params) = clip.config.params {
        check_params(&params, limits)?;
    }
    for unit in &mut clip.units {
        unit.starts = h264::units(&unit.bytes, clip.config.length_size)?.iter().any(|u| h264::unit_type(u) == 5);
    }
    if !clip.units[0].starts {
        return Err(MediaError::Corrupt { detail: "the first frame does not decode alone".to_owned() });
    }
    Ok(clip)
}

/// Boxes with which an MP4 or MOV begins.
const MP4_STARTS: [&[u8]; 7] = [b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp"];

fn open_mp4<'a>(bytes: &'a [u8], limits: &MediaLimits) -> Result<Clip<'a>, MediaError> {
    let track = mp4::video_track(bytes, limits)?.ok_or_else(no_video)?;
    if !matches!(&track.fourcc, b"avc1" | b"avc3") {
        return Err(unsupported(&codec_name(&track.fourcc)));
    }
    let config =
        track.config.ok_or_else(|| MediaError::Corrupt { detail: "H.264 without its `avcC` box".to_owned() })?;
    check_size(track.size.0, track.size.1, limits)?;
    let seconds = |ticks: f64| ticks / f64::from(track.timescale);
    let unit = |sample: &mp4::Sample| {
        // The samples were held to the file's size.
        let (start, end) = (sample.offset as usize, (sample.offset + sample.len) as usize);
        let pts_us = (seconds(sample.pts as f64) * 1e6).round() as i64;
        Unit { bytes: bytes[start..end].into(), offset: start as i64, pts_us, starts: false }
    };
    Ok(Clip {
        config: h264::config(config)?,
        units: track.samples.iter().map(unit).collect(),
        duration: seconds(track.samples.iter().map(|s| s.duration as f64).sum()),
        quarter_turns: track.quarter_turns,
        has_audio: track.has_audio,
    })
}

pub(super) fn no_video() -> MediaError {
    unsupported("none (the file has no video track)")
}

pub(super) fn unsupported(codec: &str) -> MediaError {
    let remedy = if cfg!(feature = "ffmpeg") {
        "re-encode it as H.264 (8-bit 4:2:0, progressive) in MP4, e.g. `ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`"
    } else {
        "build with `--features ffmpeg`, or re-encode it as H.264 (8-bit 4:2:0, progressive) in MP4, e.g. \
         `ffmpeg -i IN -c:v libx264 -pix_fmt yuv420p OUT.mp4`"
    };
    MediaError::UnsupportedCodec { codec: codec.to_owned(), remedy }
}

fn codec_name(fourcc: &[u8; 4]) -> String {
    match fourcc {
        b"hvc1" | b"hev1" | b"dvh1" | b"dvhe" => "hevc".to_owned(),
        b"vp08" => "vp8".to_owned(),
        b"vp09" => "vp9".to_owned(),
        b"av01" => "av1".to_owned(),
        b"mp4v" => "mpeg-4 part 2".to_owned(),
        b"encv" => "encrypted video".to_owned(),
        other => String::from_utf8_lossy(other).escape_default().to_string(),
    }
}

pub(super) fn check_size(width: u64, height: u64, limits: &MediaLimits) -> Result<(), MediaError> {
    let found = width * height;
    if found > limits.max_pixels {
        return Err(MediaError::TooLarge { what: "pixels of a frame", found, limit: limits.max_pixels });
    }
    Ok(())
}

fn check_params(params: &StreamParams, limits: &MediaLimits) -> Result<(), MediaError> {
    if params.chroma_format != 1 {
        let name = ["4:0:0", "4:2:0", "4:2:2", "4:4:4"].get(params.chroma_format as usize).unwrap_or(&"unknown chroma");
        return Err(unsupported(&format!("h264 {name}")));
    }
    if params.bit_depth != 8 {
        return Err(unsupported(&format!("h264 {}-bit", params.bit_depth)));
    }
    if params.interlaced {
        return Err(unsupported("h264 interlaced"));
    }
    check_size(params.width, params.height, limits)
}

impl Clip<'_> {
    /// What of the clip must be decoded for the frames `wanted`, in decoding order: from the last place before them where decoding
    /// may start, and no frame that only shows itself.
    pub(super) fn needed(&self, wanted: &[usize]) -> Result<Vec<Needed>, MediaError> {
        let mut shown: Vec<usize> = (0..self.units.len()).collect();
        shown.sort_by_key(|&unit_idx| (self.units[unit_idx].pts_us, unit_idx));
        let mut frame_of_unit = vec![0; shown.len()];
        shown.iter().enumerate().for_each(|(frame_idx, &unit_idx)| frame_of_unit[unit_idx] = frame_idx);
        let mut wanted_units = Vec::with_capacity(wanted.len());
        for &frame_idx in wanted {
            let past =
                || MediaError::Truncated { detail: format!("frame {frame_idx} of a clip of {}", self.units.len()) };
            wanted_units.push(*shown.get(frame_idx).ok_or_else(past)?);
        }
        wanted_units.sort_unstable();
        let (Some(&first), Some(&last)) = (wanted_units.first(), wanted_units.last()) else { return Ok(Vec::new()) };
        let start = self.units[..=first].iter().rposition(|u| u.starts).unwrap_or(0);
        let mut needed = Vec::new();
        for (unit_idx, &frame_idx) in frame_of_unit.iter().enumerate().take(last + 1).skip(start) {
            let is_wanted = wanted_units.binary_search(&unit_idx).is_ok();
            if is_wanted || !self.is_disposable(unit_idx)? {
                needed.push(Needed { unit_idx, frame_idx, is_wanted });
            }
        }
        Ok(needed)
    }

    /// Whether no other frame is decoded from this one: most B-frames, half of many streams.
    fn is_disposable(&self, unit_idx: usize) -> Result<bool, MediaError> {
        let parts = h264::units(&self.units[unit_idx].bytes, self.config.length_size)?;
        // Parameter sets in the unit may serve later ones.
        Ok(parts.iter().all(|p| p[0] & 0x60 == 0 && !matches!(h264::unit_type(p), 7 | 8)))
    }
}

/// Decodes units in decoding order, from one that starts.
struct ClipDecoder<'c> {
    clip: &'c Clip<'c>,
    limits: &'c MediaLimits,
    decoder: Decoder,
    packet: Vec<u8>,
}

impl<'c> ClipDecoder<'c> {
    fn new(clip: &'c Clip<'c>, limits: &'c MediaLimits) -> Self {
        Self { clip, limits, decoder: Decoder::new(), packet: clip.config.header.clone() }
    }

    fn decode(&mut self, unit_idx: usize) -> Result<YuvFrame, MediaError> {
        let broken = |why: &str| MediaError::Corrupt {
            detail: format!("frame {unit_idx} (in decoding order) does not decode: {why}"),
        };
        for part in h264::units(&self.clip.units[unit_idx].bytes, self.clip.config.length_size)? {
            // A stream may change its parameters on the way.
            if h264::unit_type(part) == 7
                && let Some(params) = h264::stream_params(part)
            {
                check_params(&params, self.limits)?;
            }
            h264::push_unit(&mut self.packet, part);
        }
        let decoded = self.decoder.decode(&self.packet);
        self.packet.clear();
        match decoded {
            Ok(Some(yuv)) => Ok(yuv),
            Ok(None) => Err(broken("its slices do not make a picture")),
            Err(DecodeError::Unsupported(tool)) => Err(unsupported(&format!("h264 with {tool}"))),
            Err(DecodeError::Truncated) => Err(broken("its data end early")),
            Err(DecodeError::MissingParameterSet) => Err(broken("its parameter set is missing")),
            Err(DecodeError::Internal(why)) => Err(broken(why)),
        }
    }
}

fn frame<'a>(yuv: &'a YuvFrame, clip: &Clip<'_>) -> Frame<'a> {
    let planes = rgb::Planes { y: &yuv.y, u: &yuv.u, v: &yuv.v, strides: [yuv.width, yuv.width / 2, yuv.width / 2] };
    let full_range = clip.config.params.is_some_and(|p| p.full_range);
    let values = Values::Planes { width: yuv.width, height: yuv.height, planes, full_range };
    Frame { values, quarter_turns: clip.quarter_turns }
}
