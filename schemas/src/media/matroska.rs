//! Matroska and WebM → the access units of an H.264 track.
//!
//! In: the whole file. Out: its frames in decoding order. Never: decoding.

use std::io::Cursor;

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::video::well_known as id;
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

use super::video::{Clip, Unit, no_video, unsupported};
use super::{MediaError, MediaLimits, h264};

pub(super) fn open<'a>(bytes: &'a [u8], limits: &MediaLimits) -> Result<Clip<'a>, MediaError> {
    let broken = |error: Error| match error {
        // Symphonia's word for a segment that the file's end cuts off.
        Error::IoError(_) | Error::Unsupported("mkv: missing segment element") => {
            MediaError::Truncated { detail: "a Matroska file that ends inside an element".to_owned() }
        }
        other => MediaError::Corrupt { detail: other.to_string() },
    };
    let source = MediaSourceStream::new(Box::new(Cursor::new(bytes)), MediaSourceStreamOptions::default());
    let probe = symphonia::default::get_probe();
    let mut format =
        probe.probe(&Hint::new(), source, FormatOptions::default(), MetadataOptions::default()).map_err(broken)?;
    let has_audio = format.first_track(TrackType::Audio).is_some();
    let track = format.first_track(TrackType::Video).ok_or_else(no_video)?;
    let Some(CodecParameters::Video(params)) = &track.codec_params else { return Err(no_video()) };
    if params.codec != id::CODEC_ID_H264 {
        return Err(unsupported(codec_name(params.codec)));
    }
    let config = params.extra_data.iter().find_map(|extra| h264::config(&extra.data).ok());
    let config =
        config.ok_or_else(|| MediaError::Corrupt { detail: "H.264 without its configuration record".to_owned() })?;
    let (track_id, time_base) = (track.id, track.time_base);
    let seconds =
        |ticks: f64| time_base.map_or(0.0, |tb| ticks * f64::from(tb.numer.get()) / f64::from(tb.denom.get()));
    let mut clip = Clip { config, units: Vec::new(), duration: 0.0, quarter_turns: 0, has_audio };
    let mut searched = 0;
    let mut last_pts: Vec<f64> = Vec::new();
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(error) => return Err(broken(error)),
        };
        if packet.track_id != track_id {
            continue;
        }
        if clip.units.len() as u64 >= limits.max_frames {
            let found = limits.max_frames + 1;
            return Err(MediaError::TooLarge { what: "frames of the clip", found, limit: limits.max_frames });
        }
        let pts = seconds(packet.pts.get() as f64);
        last_pts.push(pts);
        // The reader copies; the frame itself stands in the file in one piece unless it was laced or stripped.
        let place = find(bytes, searched, &packet.data);
        let (data, offset) = match place {
            Some(at) => {
                searched = at + packet.data.len();
                (bytes[at..searched].into(), at as i64)
            }
            None => (packet.data.into_vec().into(), -1),
        };
        clip.units.push(Unit { bytes: data, offset, pts_us: (pts * 1e6).round() as i64, starts: false });
    }
    clip.duration = shown_for(last_pts);
    Ok(clip)
}

/// Blocks have no durations: the last frame is taken to stay as long as the mean of those before it.
pub(super) fn shown_for(mut pts: Vec<f64>) -> f64 {
    pts.sort_by(f64::total_cmp);
    match (pts.first(), pts.last(), pts.len()) {
        (Some(first), Some(last), n) if n > 1 => (last - first) * n as f64 / (n - 1) as f64,
        _ => 0.0,
    }
}

/// Bytes of the file as its segment says; `None` for one that was written as a stream.
#[cfg(feature = "ffmpeg")]
pub(super) fn claimed_len(bytes: &[u8]) -> Option<u64> {
    // An element: the bytes of its name and of its size are told by the zeros each begins with.
    let element = |at: usize| -> Option<(usize, u64, bool)> {
        let name_len = bytes.get(at)?.leading_zeros() as usize + 1;
        let first = *bytes.get(at + name_len)?;
        let size_len = first.leading_zeros() as usize + 1;
        let rest = bytes.get(at + name_len + 1..at + name_len + size_len)?;
        let mask = 0xFF_u8.checked_shr(size_len as u32).unwrap_or(0);
        let size = rest.iter().fold(u64::from(first & mask), |size, &b| (size << 8) | u64::from(b));
        let is_unknown = first & mask == mask && rest.iter().all(|&b| b == 0xFF);
        Some((at + name_len + size_len, size, is_unknown))
    };
    let (header_at, header_len, _) = element(0)?;
    let segment_at = header_at.checked_add(usize::try_from(header_len).ok()?)?;
    bytes.get(segment_at..)?.starts_with(&[0x18, 0x53, 0x80, 0x67]).then_some(())?;
    let (body_at, size, is_unknown) = element(segment_at)?;
    (!is_unknown).then(|| size.saturating_add(body_at as u64))
}

/// Nanoseconds that the group of the last packet says are to be thrown away behind it; symphonia does not hand them on.
pub(super) fn discard_padding(bytes: &[u8], last_packet: &[u8]) -> u64 {
    if last_packet.is_empty() {
        return 0;
    }
    let end = bytes.windows(last_packet.len()).rposition(|w| w == last_packet).map(|at| at + last_packet.len());
    let mut rest = end.and_then(|end| bytes.get(end..)).unwrap_or_default();
    loop {
        // What may follow a block in its group; all of them have a size of one byte.
        let (is_padding, size, after) = match rest {
            [0x75, 0xA2, size @ 0x81..=0x88, after @ ..] => (true, size & 0x7F, after),
            [0x9B | 0xFB | 0xFA, size @ 0x81..=0x88, after @ ..] => (false, size & 0x7F, after),
            _ => return 0,
        };
        let Some((value, after)) = after.split_at_checked(usize::from(size)) else { return 0 };
        if is_padding {
            // Signed; a negative one repeats samples before the block and takes none behind it.
            return if value[0] & 0x80 != 0 { 0 } else { value.iter().fold(0, |n, &b| (n << 8) | u64::from(b)) };
        }
        rest = after;
    }
}

fn find(bytes: &[u8], from: usize, data: &[u8]) -> Option<usize> {
    let (&first, _) = data.split_first()?;
    let mut at = from;
    loop {
        at += bytes.get(at..)?.iter().position(|&b| b == first)?;
        if bytes[at..].starts_with(data) {
            return Some(at);
        }
        at += 1;
    }
}

fn codec_name(codec: symphonia::core::codecs::video::VideoCodecId) -> &'static str {
    match codec {
        id::CODEC_ID_HEVC => "hevc",
        id::CODEC_ID_VP8 => "vp8",
        id::CODEC_ID_VP9 => "vp9",
        id::CODEC_ID_AV1 => "av1",
        id::CODEC_ID_MPEG4 => "mpeg-4 part 2",
        id::CODEC_ID_MPEG1 => "mpeg-1",
        id::CODEC_ID_MPEG2 => "mpeg-2",
        id::CODEC_ID_MJPEG => "motion jpeg",
        id::CODEC_ID_THEORA => "theora",
        _ => "an unnamed video codec",
    }
}
