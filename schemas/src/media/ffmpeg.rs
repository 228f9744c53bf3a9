//! What the decoders in Rust do not know → frames and samples, by the system's libav (feature `ffmpeg`).
//!
//! In: the bytes of a sound or a clip. Out: the same as from `audio` and `video`. Never: a file that the decoders in Rust read or
//! found broken, but for the frames of H.264, which it decodes to the same bits in less time; half a medium, memory or pixels
//! before they were held to the limits.

mod frame;
mod libav;

use std::ops::ControlFlow;

use self::frame::Frame;
use self::libav::{Codec, Input, Kind, Packet};
use super::audio::{AudioMeta, Keep, Sound, Waveform};
use super::video::{self, Clip, Keyframe, Needed, Take, VideoMeta};
use super::{MediaError, MediaLimits, first_bytes, h264, matroska, mp4};

/// Decodes a sound, or the sound track of a video, whole.
pub(super) fn read_audio(bytes: &[u8], limits: &MediaLimits, keep: Keep) -> Result<(AudioMeta, Waveform), MediaError> {
    let mut track = Track::open(bytes, Kind::Sound, limits)?;
    let mut sound = Sound::new(limits, keep);
    let mut interleaved = Vec::new();
    track.decode(&mut |_| Ok(()), &mut |frame| {
        let (rate, channels) = frame.samples(&mut interleaved)?;
        sound.push(rate, channels, &interleaved)?;
        Ok(if sound.has_enough() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    let facts = track.input.facts(track.stream_idx);
    let n_claimed = facts.claimed.map(|seconds| (seconds * f64::from(sound.rate)) as u64);
    sound.finish(&facts.codec, n_claimed, bytes)
}

/// Decodes every frame, keeps none, and says what was there.
pub(super) fn read_video(bytes: &[u8], limits: &MediaLimits) -> Result<VideoMeta, MediaError> {
    let mut track = Track::open(bytes, Kind::Video, limits)?;
    let facts = track.input.facts(track.stream_idx);
    let (mut size, mut shown) = ((0, 0), Vec::new());
    let mut starts: Vec<(i64, i64)> = Vec::new();
    track.decode(
        &mut |packet| {
            if packet.starts() && !packet.is_hidden() {
                starts.push((packet.pts().unwrap_or(i64::MIN), stored_at(bytes, packet)));
            }
            Ok(())
        },
        &mut |frame| {
            size = frame.size();
            shown.push(frame.pts());
            count(shown.len(), limits)?;
            Ok(ControlFlow::Continue(()))
        },
    )?;
    let seconds = |ticks: i64| ticks as f64 * facts.seconds_per_tick;
    let shown: Vec<f64> = shown.into_iter().flatten().map(seconds).collect();
    let num_frames = shown.len();
    if num_frames == 0 {
        return Err(MediaError::Truncated { detail: "a video track without frames".to_owned() });
    }
    let start = shown.iter().copied().fold(f64::INFINITY, f64::min);
    let duration = matroska::shown_for(shown);
    // As for sounds: a codec's lead-in and an encoder's rounding are a few frames; more than that was lost.
    if let Some(claimed) = facts.claimed
        && claimed > duration * 1.02 + 0.5
    {
        return Err(MediaError::Truncated {
            detail: format!("{duration:.3} s of {claimed:.3} s that the header says"),
        });
    }
    let (width, height) = if quarter_turns(bytes, limits).is_multiple_of(2) { size } else { (size.1, size.0) };
    let keyframe = |&(pts, offset): &(i64, i64)| {
        let pts = if pts == i64::MIN { start } else { seconds(pts) };
        Keyframe { pts_us: ((pts - start) * 1e6).round() as i64, offset }
    };
    Ok(VideoMeta {
        width,
        height,
        fps: if duration > 0.0 { (num_frames as f64 / duration) as f32 } else { 0.0 },
        num_frames,
        duration,
        codec: facts.codec,
        keyframes: starts.iter().map(keyframe).collect(),
        has_audio: track.input.first(Kind::Sound).is_some(),
    })
}

/// Decodes up to the last frame of `wanted` and hands over those asked for.
pub(super) fn read_frames(
    bytes: &[u8],
    wanted: &[usize],
    limits: &MediaLimits,
    take: &mut Take<'_>,
) -> Result<(), MediaError> {
    let mut rest = wanted;
    if rest.is_empty() {
        return Ok(());
    }
    let quarter_turns = quarter_turns(bytes, limits);
    let mut track = Track::open(bytes, Kind::Video, limits)?;
    let mut n_frames = 0;
    track.decode(&mut |_| Ok(()), &mut |frame| {
        if rest.first() == Some(&n_frames) {
            rest = video::hand_over(rest, &video::Frame { values: frame.values()?, quarter_turns }, take)?;
        }
        n_frames += 1;
        count(n_frames, limits)?;
        Ok(if rest.is_empty() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;
    match rest.first() {
        Some(frame_idx) => Err(MediaError::Truncated { detail: format!("frame {frame_idx} of a clip of {n_frames}") }),
        None => Ok(()),
    }
}

/// The frames of a clip that was taken apart already, by libav's H.264: as `video::read_units`, in less time.
pub(super) fn read_units(
    clip: &Clip<'_>,
    needed: &[Needed],
    wanted: &[usize],
    limits: &MediaLimits,
    take: &mut Take<'_>,
) -> Result<(), MediaError> {
    let mut rest = wanted;
    if needed.is_empty() {
        return Ok(());
    }
    let mut codec = Codec::h264(&clip.config.header, limits)?;
    let (mut packet, mut frame) = (Packet::new()?, Frame::new()?);
    let mut unit = Vec::new();
    // One more time round with nothing to decode brings the frames that the decoder holds back.
    for step in needed.iter().map(Some).chain([None]) {
        let place = match step {
            Some(needed) => format!("frame {} (in decoding order)", needed.unit_idx),
            None => "the last frames".to_owned(),
        };
        match step {
            Some(&Needed { unit_idx, frame_idx, .. }) => {
                unit.clear();
                for part in h264::units(&clip.units[unit_idx].bytes, clip.config.length_size)? {
                    h264::push_unit(&mut unit, part);
                }
                // Frames come out in the order of their times, which are their places.
                packet.fill(&unit, frame_idx as i64)?;
                codec.send(Some(&packet), &place)?;
            }
            None => codec.send(None, &place)?,
        }
        while codec.receive(&mut frame, &place)? {
            let (width, height) = frame.size();
            video::check_size(width as u64, height as u64, limits)?;
            if rest.first().is_some_and(|&next| frame.pts() == Some(next as i64)) {
                let frame = video::Frame { values: frame.values()?, quarter_turns: clip.quarter_turns };
                rest = video::hand_over(rest, &frame, take)?;
            }
        }
    }
    match rest.first() {
        Some(frame_idx) => {
            Err(MediaError::Corrupt { detail: format!("frame {frame_idx} does not decode: no picture came of it") })
        }
        None => Ok(()),
    }
}

fn count(n_frames: usize, limits: &MediaLimits) -> Result<(), MediaError> {
    let found = n_frames as u64;
    if found > limits.max_frames {
        return Err(MediaError::TooLarge { what: "frames of the clip", found, limit: limits.max_frames });
    }
    Ok(())
}

/// Only MP4 and MOV are turned by their header; libav's place for it changed from version to version.
fn quarter_turns(bytes: &[u8], limits: &MediaLimits) -> u8 {
    mp4::video_track(bytes, limits).ok().flatten().map_or(0, |track| track.quarter_turns)
}

/// Where the packet lies in the file; -1 if it is not stored there in one piece.
fn stored_at(bytes: &[u8], packet: &Packet) -> i64 {
    /// A Matroska block's headers before its frame, of which libav gives the first byte.
    const HEADERS: usize = 64;
    let (Some(from), data) = (packet.offset(), packet.bytes()) else { return -1 };
    let at = (from..from.saturating_add(HEADERS)).find(|&at| bytes.get(at..).is_some_and(|b| b.starts_with(data)));
    at.filter(|_| !data.is_empty()).and_then(|at| i64::try_from(at).ok()).unwrap_or(-1)
}

/// One stream of a file and its decoder.
struct Track<'a> {
    input: Input<'a>,
    stream_idx: usize,
    codec: Codec,
}

impl<'a> Track<'a> {
    fn open(bytes: &'a [u8], kind: Kind, limits: &MediaLimits) -> Result<Self, MediaError> {
        is_whole(bytes)?;
        let wanted = match kind {
            Kind::Video => "video",
            Kind::Sound => "sound",
        };
        let input = Input::open(bytes, limits)?
            .ok_or_else(|| MediaError::UnknownFormat { wanted, found: first_bytes(bytes) })?;
        let stream_idx = input.first(kind).ok_or_else(|| match kind {
            Kind::Video => super::video::no_video(),
            Kind::Sound => super::audio::unsupported(super::audio::NO_SOUND),
        })?;
        let codec = Codec::open(&input, stream_idx, limits)?;
        Ok(Self { input, stream_idx, codec })
    }

    /// Hands every packet, then the frames that it completes, to the caller, until it has enough.
    fn decode(
        &mut self,
        on_packet: &mut dyn FnMut(&Packet) -> Result<(), MediaError>,
        on_frame: &mut dyn FnMut(&Frame) -> Result<ControlFlow<()>, MediaError>,
    ) -> Result<(), MediaError> {
        let name = self.input.facts(self.stream_idx).codec;
        let (mut packet, mut frame) = (Packet::new()?, Frame::new()?);
        let mut n_packets = 0_u64;
        loop {
            let place = format!("{name}, packet {n_packets}");
            let is_more = self.input.next(self.stream_idx, &mut packet)?;
            if is_more {
                if packet.is_cut() {
                    return Err(MediaError::Truncated { detail: format!("{place}: the file ends inside it") });
                }
                on_packet(&packet)?;
            }
            self.codec.send(is_more.then_some(&packet), &place)?;
            while self.codec.receive(&mut frame, &place)? {
                if on_frame(&frame)?.is_break() {
                    return Ok(());
                }
            }
            if !is_more {
                return Ok(());
            }
            n_packets += 1;
        }
    }
}

/// Whether the file has the length that its first header says; libav takes what is there for the whole.
fn is_whole(bytes: &[u8]) -> Result<(), MediaError> {
    let claimed = match bytes {
        [b'R', b'I', b'F', b'F', size @ ..] => {
            let size = size.first_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size));
            // Both ends of the range are what writers leave that could not go back.
            Some(u64::from(size)).filter(|size| *size != u64::from(u32::MAX)).map(|size| size + 8)
        }
        [0x1A, 0x45, 0xDF, 0xA3, ..] => matroska::claimed_len(bytes),
        // The file properties object: its size, and the size of the file 40 bytes behind its start.
        [0x30, 0x26, 0xB2, 0x75, ..] => bytes
            .windows(8)
            .take(4096)
            .position(|w| w == [0xA1, 0xDC, 0xAB, 0x8C, 0x47, 0xA9, 0xCF, 0x11])
            .and_then(|at| bytes.get(at + 40..at + 48))
            .and_then(|size| size.try_into().ok())
            .map(u64::from_le_bytes),
        _ => None,
    };
    match claimed {
        Some(claimed) if claimed > bytes.len() as u64 => {
            Err(MediaError::Truncated { detail: format!("{} bytes of {claimed} that the header says", bytes.len()) })
        }
        _ => Ok(()),
    }
}

#[cfg(all(test, real_data))]
mod tests {
    use super::*;

    #[test]
    fn frames_of_h264_are_those_of_the_decoder_in_rust_to_the_bit() {
        let shared = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
        let data = std::path::Path::new(&shared).join("data");
        let text = std::fs::read(data.join("ref/video/frames.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let limits = MediaLimits::default();
        let mut n_compared = 0;
        for clip in json["clips"].as_array().unwrap() {
            let bytes = std::fs::read(data.join(clip["path"].as_str().unwrap())).unwrap();
            let Ok(clip) = video::open(&bytes, &limits) else { continue };
            let n = clip.units.len();
            for wanted in [vec![0], vec![n - 1], vec![n / 2, n / 2, n - 1], (n / 3..n).step_by(2).take(16).collect()] {
                let needed = clip.needed(&wanted).unwrap();
                let (mut here, mut there) = (Vec::new(), Vec::new());
                let keep = |into: &mut Vec<_>, i, frame: &video::Frame<'_>| {
                    into.push((i, frame.picture()?));
                    Ok(())
                };
                video::read_units(&clip, &needed, &wanted, &limits, &mut |i, f| keep(&mut here, i, f)).unwrap();
                read_units(&clip, &needed, &wanted, &limits, &mut |i, f| keep(&mut there, i, f)).unwrap();
                assert_eq!(here.iter().map(|(i, _)| *i).collect::<Vec<_>>(), wanted);
                assert!(here == there, "{wanted:?} of {n} frames");
                n_compared += wanted.len();
            }
        }
        assert!(n_compared > 100, "{n_compared}");
    }

    #[test]
    fn frames_are_those_of_ffmpeg_to_the_bit_and_at_its_times() {
        let shared = std::env::var_os("IMP_SHARED").expect("IMP_SHARED names the folder with data/ and golden/");
        let data = std::path::Path::new(&shared).join("data");
        let text = std::fs::read(data.join("ref/video/frames.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        let clips = json["clips"].as_array().unwrap();
        assert_eq!(clips.len(), 12);
        for clip in clips {
            let path = clip["path"].as_str().unwrap();
            let bytes = std::fs::read(data.join(path)).unwrap();
            let mut track = Track::open(&bytes, Kind::Video, &MediaLimits::default()).unwrap();
            let tick = track.input.facts(track.stream_idx).seconds_per_tick;
            let mut frames: Vec<(f64, String)> = Vec::new();
            let mut take = |frame: &Frame| {
                frames.push((frame.pts().unwrap() as f64 * tick, frame.md5().unwrap()));
                Ok(ControlFlow::Continue(()))
            };
            track.decode(&mut |_| Ok(()), &mut take).unwrap_or_else(|e| panic!("{path}: {e}"));
            assert_eq!(frames.len(), clip["frames"].as_u64().unwrap() as usize, "{path}");
            for (i, (pts, md5)) in frames.iter().enumerate() {
                // The reference is written with six digits.
                assert!((pts - clip["pts"][i].as_f64().unwrap()).abs() < 1e-5, "{path}, frame {i}: {pts}");
                assert_eq!(md5, clip["frame_md5"][i].as_str().unwrap(), "{path}, frame {i}");
            }
        }
    }
}
