//! A film → shorter ones, cut between its frames without coding any of them anew.
//!
//! In: an MP4, what its planning columns say, and the rule. Out: an MP4 a clip. A clip is meant to show `seconds` from a
//! multiple of `stride_seconds` on; since it must begin with a frame that decodes alone, it begins at the keyframe at or before
//! that, and its edit list says from where on it is meant to be shown. Never: a changed sample, a clip of which more than half
//! is there only to decode the rest: such a window is left out.

use std::collections::BTreeSet;

use imp_schemas::media::mp4::{Movie, Sample, Track, movie};
use imp_schemas::media::{MediaError, MediaLimits, VideoMeta};

use super::config::Clip;
use super::remux::{Edits, Part, edit_list, write};

/// One clip, and the window that it was cut for.
pub(super) struct Cut {
    pub(super) bytes: Vec<u8>,
    /// Of the windows of the film, those that were left out counted too.
    pub(super) window_idx: usize,
}

/// The clips of a film that decodes; one clip, the whole, of a film that is not longer than `seconds`.
///
/// # Errors
/// A file that cannot be copied sample by sample, MP4 and MOV apart every other; or a film without any window.
pub(super) fn cut(bytes: &[u8], meta: &VideoMeta, rule: &Clip, limits: &MediaLimits) -> Result<Vec<Cut>, MediaError> {
    let movie = movie(bytes, limits)?;
    let film = Film::of(&movie, meta)?;
    let mut cuts: Vec<Cut> = Vec::new();
    let mut last = None;
    for window_idx in 0.. {
        let start = window_idx as f64 * rule.stride_seconds;
        // A film whose last frame ends a hair before the window does is long enough.
        if window_idx > 0 && start + rule.seconds > film.seconds + film.frame_seconds / 2.0 {
            break;
        }
        let Some(span) = film.span(start, start + rule.seconds) else { continue };
        if span.lead_in > rule.seconds || last == Some((span.first, span.end)) {
            continue;
        }
        last = Some((span.first, span.end));
        cuts.push(Cut { bytes: film.write(bytes, &movie, &span)?, window_idx });
    }
    if cuts.is_empty() {
        return Err(MediaError::Corrupt { detail: "no clip can be cut: no keyframe is near any window".to_owned() });
    }
    Ok(cuts)
}

/// Samples of the film track that one clip takes.
struct Span {
    /// In decoding order; the first is a keyframe.
    first: usize,
    end: usize,
    /// Seconds from the film's start: the first frame shown, the window, what is shown at its end.
    start: f64,
    stop: f64,
    /// Seconds from the keyframe to the window.
    lead_in: f64,
}

struct Film<'a> {
    track: &'a Track<'a>,
    sound: Option<&'a Track<'a>>,
    /// Indices of samples that decode alone, with their times.
    keys: Vec<(usize, f64)>,
    /// Of each sample, seconds from the film's first frame.
    times: Vec<f64>,
    seconds: f64,
    frame_seconds: f64,
    /// Ticks at which the film and the sound are shown first.
    first_pts: i64,
    sound_start: i64,
}

impl<'a> Film<'a> {
    fn of(movie: &'a Movie<'a>, meta: &VideoMeta) -> Result<Self, MediaError> {
        let track = movie.tracks.iter().find(|t| t.is_video).filter(|t| !t.samples.is_empty());
        let track = track.ok_or_else(|| MediaError::Corrupt { detail: "no film to cut".to_owned() })?;
        let sound = movie.tracks.iter().find(|t| !t.is_video);
        let first_pts = track.samples.iter().map(|s| s.pts).min().unwrap_or(0);
        let rate = f64::from(track.timescale);
        let times: Vec<f64> = track.samples.iter().map(|s| (s.pts - first_pts) as f64 / rate).collect();
        // What the decoder can start from, not what the container claims.
        let offsets: BTreeSet<u64> = meta.keyframes.iter().filter_map(|k| u64::try_from(k.offset).ok()).collect();
        let is_key = |sample: &Sample| offsets.contains(&sample.offset);
        let keys = track.samples.iter().enumerate().filter(|(_, s)| is_key(s)).map(|(i, _)| (i, times[i])).collect();
        let frame_seconds = meta.duration / meta.num_frames.max(1) as f64;
        // Both tracks start together where their edit lists say so, or at their first ticks.
        let starts_at = |track: &Track<'_>, otherwise: i64| media_time(track).unwrap_or(otherwise);
        let film_start = starts_at(track, 0);
        let sound_start = sound.map_or(0, |sound| {
            let shift = (first_pts - film_start) as f64 / rate * f64::from(sound.timescale);
            starts_at(sound, 0) + shift.round() as i64
        });
        let seconds = meta.duration;
        Ok(Self { track, sound, keys, times, seconds, frame_seconds, first_pts, sound_start })
    }

    /// Samples for the window; `None` if no frame is shown in it.
    fn span(&self, start: f64, stop: f64) -> Option<Span> {
        // Times of frames are multiples of a tick, those of windows are not.
        let slack = self.frame_seconds / 2.0;
        let &(first, key_time) = self.keys.iter().rev().find(|(_, time)| *time <= start + slack)?;
        let mut last = (first..self.times.len()).rev().find(|&i| self.times[i] + slack < stop)?;
        // Frames that are decoded to decode others may be shown after the window; then so is what lies between.
        loop {
            let latest = self.times[first..=last].iter().copied().fold(f64::MIN, f64::max);
            match (last + 1..self.times.len()).rev().find(|&i| self.times[i] < latest) {
                Some(further) => last = further,
                None => break,
            }
        }
        Some(Span { first, end: last + 1, start: key_time, stop, lead_in: (start - key_time).max(0.0) })
    }

    fn write(&self, bytes: &[u8], movie: &Movie<'_>, span: &Span) -> Result<Vec<u8>, MediaError> {
        let samples = &self.track.samples[span.first..span.end];
        let rate = f64::from(self.track.timescale);
        let lead_in = (span.lead_in * rate).round() as i64;
        let shown = samples.first().map_or(0, |s| s.pts - s.dts) + lead_in;
        let mut parts =
            vec![Part { track: self.track, samples, edits: Edits::Shown { delay: 0.0, media_ticks: shown } }];
        if let Some(sound) = self.sound {
            let rate = f64::from(sound.timescale);
            let time = |s: &Sample| (s.pts - self.sound_start) as f64 / rate;
            let from = sound.samples.partition_point(|s| time(s) < span.start);
            let to = sound.samples.partition_point(|s| time(s) < span.stop).max(from);
            if let Some(first) = sound.samples.get(from).filter(|_| to > from) {
                // The sound starts with the first whole packet; relative to the shown part it may come before or after.
                let late = time(first) - (span.start + span.lead_in);
                let media_ticks = (-late * rate).round().max(0.0) as i64;
                let edits = Edits::Shown { delay: late.max(0.0), media_ticks };
                parts.push(Part { track: sound, samples: &sound.samples[from..to], edits });
            }
        }
        debug_assert!(self.first_pts <= samples.first().map_or(i64::MAX, |s| s.pts), "a frame before the first");
        write(bytes, movie, &parts)
    }
}

/// Media time of an edit list's first edit that shows anything.
fn media_time(track: &Track<'_>) -> Option<i64> {
    let elst = edit_list(track)?;
    let is_long = elst.body.first() == Some(&1);
    let (width, time_at) = if is_long { (20, 8) } else { (12, 4) };
    let entries = elst.body.get(8..).unwrap_or_default().chunks_exact(width);
    let time = |entry: &[u8]| {
        if is_long {
            entry.get(time_at..time_at + 8).and_then(|b| b.try_into().ok()).map(i64::from_be_bytes)
        } else {
            entry.get(time_at..time_at + 4).and_then(|b| b.try_into().ok()).map(|b| i64::from(i32::from_be_bytes(b)))
        }
    };
    entries.filter_map(time).find(|time| *time >= 0)
}
