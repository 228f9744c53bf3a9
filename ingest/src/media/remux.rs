//! MP4 and MOV written anew: index first, then the samples of one film and one sound, in the order they are needed.
//!
//! In: the whole file, and which samples are kept. Out: a flat file whose samples are those of the source byte for byte, so
//! that a clip between two keyframes is one range, sound included. Never: decoding, a changed sample, half a file.
//! Source: ISO/IEC 14496-12.

use imp_schemas::media::mp4::{Atom, Movie, Sample, Track, children, movie};
use imp_schemas::media::{MediaError, MediaLimits};

/// Longest stretch of a film between two stretches of its sound, seconds: players and range reads wait for both.
const MAX_STRETCH: f64 = 1.0;

/// The whole file, written anew.
///
/// # Errors
/// A file that cannot be copied sample by sample; see [`movie`].
pub(super) fn remux(bytes: &[u8], limits: &MediaLimits) -> Result<Vec<u8>, MediaError> {
    let movie = movie(bytes, limits)?;
    let parts: Vec<Part<'_>> = movie.tracks.iter().map(Part::whole).collect::<Result<_, _>>()?;
    write(bytes, &movie, &parts)
}

/// What is kept of one track.
pub(super) struct Part<'a> {
    pub(super) track: &'a Track<'a>,
    pub(super) samples: &'a [Sample],
    pub(super) edits: Edits,
}

/// When the samples of a part are shown.
pub(super) enum Edits {
    /// As in the source: its edit list, or none.
    Kept,
    /// From `media_ticks` of the part's own time on, after `delay` seconds of nothing.
    Shown { delay: f64, media_ticks: i64 },
}

impl<'a> Part<'a> {
    fn whole(track: &'a Track<'a>) -> Result<Self, MediaError> {
        let start = track.samples.first().map_or(0, |s| s.dts);
        let edits = match (start, edit_list(track)) {
            (0, _) => Edits::Kept,
            // A flat file's time begins at 0: what the source starts later is said by an edit.
            (late, None) if late > 0 => {
                Edits::Shown { delay: late as f64 / f64::from(track.timescale), media_ticks: 0 }
            }
            _ => return Err(refused("a track that starts away from 0 and has an edit list")),
        };
        Ok(Self { track, samples: &track.samples, edits })
    }

    fn is_whole(&self) -> bool {
        self.samples.len() == self.track.samples.len()
    }

    fn seconds(&self, ticks: i64) -> f64 {
        ticks as f64 / f64::from(self.track.timescale)
    }

    /// Ticks from the first sample's decoding to the end of the last one.
    fn duration(&self) -> u64 {
        let start = self.samples.first().map_or(0, |s| s.dts);
        self.samples.last().map_or(0, |s| s.dts.abs_diff(start) + s.duration)
    }
}

fn refused(detail: &str) -> MediaError {
    MediaError::Corrupt { detail: detail.to_owned() }
}

/// The `elst` box of a track.
pub(super) fn edit_list<'a>(track: &Track<'a>) -> Option<Atom<'a>> {
    track.trak.find(&[b"edts", b"elst"])
}

/// Samples of one track that lie side by side.
struct Chunk {
    part_idx: usize,
    first: usize,
    n: usize,
}

/// Puts the film's stretches and the sound beside them into one order. A stretch begins at a keyframe, or where the one
/// before it gets long.
fn interleave(parts: &[Part<'_>]) -> Vec<Chunk> {
    // Times at which a new stretch begins, from the first track: the film, or the sound of a file without one.
    let mut starts: Vec<f64> = Vec::new();
    let mut cuts: Vec<usize> = Vec::new();
    if let Some(lead) = parts.first() {
        for (i, sample) in lead.samples.iter().enumerate() {
            let at = lead.seconds(sample.dts);
            let is_key = lead.track.is_video && sample.sync;
            if i == 0 || is_key || starts.last().is_some_and(|&last| at - last >= MAX_STRETCH) {
                starts.push(at);
                cuts.push(i);
            }
        }
    }
    let mut chunks = Vec::new();
    let mut done = vec![0_usize; parts.len()];
    for stretch in 0..starts.len() {
        for (part_idx, part) in parts.iter().enumerate() {
            let from = done[part_idx];
            let to = match (part_idx, starts.get(stretch + 1)) {
                (0, _) => cuts.get(stretch + 1).copied().unwrap_or(part.samples.len()),
                (_, None) => part.samples.len(),
                (_, Some(&until)) => from + part.samples[from..].partition_point(|s| part.seconds(s.dts) < until),
            };
            done[part_idx] = to;
            if to > from {
                chunks.push(Chunk { part_idx, first: from, n: to - from });
            }
        }
    }
    chunks
}

/// Writes `parts` of `movie`, which was read from `bytes`.
pub(super) fn write(bytes: &[u8], movie: &Movie<'_>, parts: &[Part<'_>]) -> Result<Vec<u8>, MediaError> {
    if parts.iter().all(|part| part.samples.is_empty()) {
        return Err(refused("a file without samples"));
    }
    parts.iter().try_for_each(check_times)?;
    let chunks = interleave(parts);
    let n_media: u64 = parts.iter().flat_map(|part| part.samples).map(|s| s.len).sum();
    let mut out = Vec::new();
    boxed(&mut out, b"ftyp", |out| out.extend(movie.ftyp.unwrap_or(b"isom\0\0\x02\0isomiso2avc1mp41")));
    let moov_at = out.len();
    // The index says where media lie, and they lie behind it: it is written twice, first to know its size.
    let mut index = Vec::new();
    write_moov(&mut index, movie, parts, &chunks, 0)?;
    let media_at = (moov_at + index.len() + 8) as u64;
    write_moov(&mut out, movie, parts, &chunks, media_at)?;
    let mdat_len = u32::try_from(n_media + 8).map_err(|_| refused("media of more than 4 GiB"))?;
    out.reserve_exact(mdat_len as usize);
    out.extend(mdat_len.to_be_bytes());
    out.extend(b"mdat");
    for chunk in &chunks {
        for sample in &parts[chunk.part_idx].samples[chunk.first..chunk.first + chunk.n] {
            let (from, to) = (sample.offset as usize, (sample.offset + sample.len) as usize);
            // The reader held every sample to the file's size.
            out.extend(bytes.get(from..to).ok_or_else(|| refused("a sample outside the file"))?);
        }
    }
    Ok(out)
}

/// Holds the times of a part to what the tables of a flat file can say.
fn check_times(part: &Part<'_>) -> Result<(), MediaError> {
    let steps = part.samples.windows(2).all(|pair| u32::try_from(pair[1].dts - pair[0].dts).is_ok());
    let shifts = part.samples.iter().all(|s| i32::try_from(s.pts - s.dts).is_ok());
    let sizes = part.samples.iter().all(|s| u32::try_from(s.len).is_ok());
    if steps && shifts && sizes { Ok(()) } else { Err(refused("samples whose times run backwards or leap")) }
}

/// Appends a box around what `body` writes.
fn boxed(out: &mut Vec<u8>, kind: &[u8; 4], body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend([0; 4]);
    out.extend(kind);
    body(out);
    let size = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    out[at..at + 4].copy_from_slice(&size.to_be_bytes());
}

/// Appends a box with version and flags.
fn full(out: &mut Vec<u8>, kind: &[u8; 4], version: u8, body: impl FnOnce(&mut Vec<u8>)) {
    boxed(out, kind, |out| {
        out.extend([version, 0, 0, 0]);
        body(out);
    });
}

fn copied(out: &mut Vec<u8>, atom: &Atom<'_>) {
    boxed(out, &atom.kind, |out| out.extend(atom.body));
}

/// `body` with its duration replaced: 4 bytes at `short` in version 0, 8 at `long` in version 1.
fn with_duration(body: &[u8], short: usize, long: usize, duration: u64) -> Result<Vec<u8>, MediaError> {
    let mut body = body.to_vec();
    let (at, value) = if body.first() == Some(&1) {
        (long, duration.to_be_bytes().to_vec())
    } else {
        (short, u32::try_from(duration).unwrap_or(u32::MAX).to_be_bytes().to_vec())
    };
    let place = body.get_mut(at..at + value.len()).ok_or_else(|| refused("a header that is too short"))?;
    place.copy_from_slice(&value);
    Ok(body)
}

fn write_moov(
    out: &mut Vec<u8>,
    movie: &Movie<'_>,
    parts: &[Part<'_>],
    chunks: &[Chunk],
    media_at: u64,
) -> Result<(), MediaError> {
    let timescale_at = if movie.mvhd.first() == Some(&1) { 20 } else { 12 };
    let timescale =
        movie.mvhd.get(timescale_at..timescale_at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let timescale = timescale.filter(|t| *t > 0).ok_or_else(|| refused("the movie's time scale is 0"))?;
    // Ticks of the movie's clock that a track is shown.
    let shown = |part: &Part<'_>| -> u64 {
        let own = part.duration() as f64 / f64::from(part.track.timescale);
        let seconds = match part.edits {
            Edits::Kept => own,
            Edits::Shown { delay, media_ticks } => delay + own - part.seconds(media_ticks),
        };
        (seconds.max(0.0) * f64::from(timescale)).round() as u64
    };
    let mut offsets: Vec<Vec<u64>> = vec![Vec::new(); parts.len()];
    let mut at = media_at;
    for chunk in chunks {
        offsets[chunk.part_idx].push(at);
        let samples = &parts[chunk.part_idx].samples[chunk.first..chunk.first + chunk.n];
        at += samples.iter().map(|s| s.len).sum::<u64>();
    }
    let longest = parts.iter().map(shown).max().unwrap_or(0);
    let mvhd = with_duration(movie.mvhd, 16, 24, longest)?;
    let mut failed = None;
    boxed(out, b"moov", |out| {
        boxed(out, b"mvhd", |out| out.extend(mvhd));
        for (part_idx, part) in parts.iter().enumerate() {
            let counts = chunks.iter().filter(|c| c.part_idx == part_idx).map(|c| c.n as u32);
            let table = Table { part, per_chunk: counts.collect(), offsets: &offsets[part_idx] };
            if let Err(error) = write_trak(out, &table, shown(part), timescale) {
                failed = Some(error);
            }
        }
    });
    failed.map_or(Ok(()), Err)
}

/// One track of the new file.
struct Table<'a> {
    part: &'a Part<'a>,
    /// Samples of each of its chunks.
    per_chunk: Vec<u32>,
    offsets: &'a [u64],
}

fn write_trak(out: &mut Vec<u8>, table: &Table<'_>, shown: u64, movie_timescale: u32) -> Result<(), MediaError> {
    let part = table.part;
    let find = |path: &[&[u8; 4]]| part.track.trak.find(path).ok_or_else(|| refused("a track without its headers"));
    let is_as_before = part.is_whole() && !part.track.is_fragmented && matches!(part.edits, Edits::Kept);
    let tkhd = find(&[b"tkhd"])?;
    let tkhd = if is_as_before { tkhd.body.to_vec() } else { with_duration(tkhd.body, 20, 28, shown)? };
    let mdhd = with_duration(find(&[b"mdia", b"mdhd"])?.body, 16, 24, part.duration())?;
    let hdlr = find(&[b"mdia", b"hdlr"])?;
    let minf = find(&[b"mdia", b"minf"])?;
    let stsd = find(&[b"mdia", b"minf", b"stbl", b"stsd"])?;
    let edts = part.track.trak.find(&[b"edts"]);
    boxed(out, b"trak", |out| {
        boxed(out, b"tkhd", |out| out.extend(tkhd));
        match (&part.edits, edts) {
            (Edits::Kept, Some(edts)) => copied(out, &edts),
            (Edits::Kept, None) => {}
            (&Edits::Shown { delay, media_ticks }, _) => {
                write_edits(out, delay, media_ticks, shown, movie_timescale);
            }
        }
        boxed(out, b"mdia", |out| {
            boxed(out, b"mdhd", |out| out.extend(mdhd));
            copied(out, &hdlr);
            boxed(out, b"minf", |out| {
                children(minf.body).filter(|b| b.kind != *b"stbl").for_each(|b| copied(out, &b));
                boxed(out, b"stbl", |out| {
                    copied(out, &stsd);
                    write_tables(out, table);
                    // Groups count samples from the first, so they hold only where every sample stayed.
                    let stbl = if is_as_before { minf.find(&[b"stbl"]) } else { None };
                    let groups = stbl.iter().flat_map(|stbl| children(stbl.body));
                    groups.filter(|b| matches!(&b.kind, b"sgpd" | b"sbgp" | b"cslg")).for_each(|b| copied(out, &b));
                });
            });
        });
    });
    Ok(())
}

fn write_edits(out: &mut Vec<u8>, delay: f64, media_ticks: i64, shown: u64, movie_timescale: u32) {
    let delay = (delay * f64::from(movie_timescale)).round() as u64;
    boxed(out, b"edts", |out| {
        full(out, b"elst", 1, |out| {
            let is_late = delay > 0;
            out.extend((1 + u32::from(is_late)).to_be_bytes());
            // Duration, media time (-1 is nothing at all), rate 1.
            if is_late {
                out.extend(delay.to_be_bytes());
                out.extend((-1_i64).to_be_bytes());
                out.extend([0, 1, 0, 0]);
            }
            out.extend(shown.saturating_sub(delay).to_be_bytes());
            out.extend(media_ticks.to_be_bytes());
            out.extend([0, 1, 0, 0]);
        });
    });
}

/// Runs of equal values.
fn runs<T: PartialEq + Copy>(values: impl Iterator<Item = T>) -> Vec<(u32, T)> {
    let mut runs: Vec<(u32, T)> = Vec::new();
    for value in values {
        match runs.last_mut() {
            Some((n, last)) if *last == value => *n += 1,
            _ => runs.push((1, value)),
        }
    }
    runs
}

fn numbers(out: &mut Vec<u8>, values: impl ExactSizeIterator<Item = u32>) {
    out.extend((values.len() as u32).to_be_bytes());
    values.for_each(|value| out.extend(value.to_be_bytes()));
}

fn write_tables(out: &mut Vec<u8>, table: &Table<'_>) {
    let samples = table.part.samples;
    // The time to the next sample; the last one's own duration ends the track.
    let next = samples.iter().skip(1).map(|s| Some(s.dts)).chain([None]);
    let steps = samples.iter().zip(next).map(|(sample, next)| match next {
        Some(next) => u32::try_from(next - sample.dts).unwrap_or(0),
        None => u32::try_from(sample.duration).unwrap_or(u32::MAX),
    });
    full(out, b"stts", 0, |out| {
        let runs = runs(steps);
        out.extend((runs.len() as u32).to_be_bytes());
        runs.iter().for_each(|(n, step)| out.extend([n.to_be_bytes(), step.to_be_bytes()].concat()));
    });
    let shifts: Vec<(u32, i32)> = runs(samples.iter().map(|s| i32::try_from(s.pts - s.dts).unwrap_or(0)));
    if shifts.iter().any(|(_, shift)| *shift != 0) {
        let is_signed = shifts.iter().any(|(_, shift)| *shift < 0);
        full(out, b"ctts", u8::from(is_signed), |out| {
            out.extend((shifts.len() as u32).to_be_bytes());
            shifts.iter().for_each(|(n, shift)| out.extend([n.to_be_bytes(), shift.to_be_bytes()].concat()));
        });
    }
    full(out, b"stsc", 0, |out| {
        let runs = runs(table.per_chunk.iter().copied());
        out.extend((runs.len() as u32).to_be_bytes());
        let mut first_chunk = 1_u32;
        for (n, per_chunk) in runs {
            out.extend([first_chunk.to_be_bytes(), per_chunk.to_be_bytes(), 1_u32.to_be_bytes()].concat());
            first_chunk += n;
        }
    });
    let size = |sample: &Sample| u32::try_from(sample.len).unwrap_or(u32::MAX);
    let sizes = runs(samples.iter().map(size));
    full(out, b"stsz", 0, |out| {
        if let [(n, size)] = sizes[..] {
            out.extend([size.to_be_bytes(), n.to_be_bytes()].concat());
        } else {
            out.extend([0; 4]);
            numbers(out, samples.iter().map(size));
        }
    });
    if table.part.track.is_video && samples.iter().any(|s| !s.sync) {
        let keys: Vec<u32> = samples.iter().zip(1..).filter(|(s, _)| s.sync).map(|(_, number)| number).collect();
        full(out, b"stss", 0, |out| numbers(out, keys.into_iter()));
    }
    // Media under 4 GiB need no more than 32 bits; `write` holds them to it.
    full(out, b"stco", 0, |out| {
        numbers(out, table.offsets.iter().map(|&offset| u32::try_from(offset).unwrap_or(u32::MAX)));
    });
}
