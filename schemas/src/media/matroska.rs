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
fn shown_for(mut pts: Vec<f64>) -> f64 {
    pts.sort_by(f64::total_cmp);
    match (pts.first(), pts.last(), pts.len()) {
        (Some(first), Some(last), n) if n > 1 => (last - first) * n as f64 / (n - 1) as f64,
        _ => 0.0,
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
