//! The boxes of an MP4 or MOV → where each sample of a track lies, and when it is shown.
//!
//! In: the whole file. Out: offsets into it. Never: decoding, writing, an index or allocation taken on a header's word.
//! Source: ISO/IEC 14496-12. Own code, because `re_mp4` 0.5 panics on a table that is too short and allocates a sample for
//! every one that a header claims, and symphonia's reader leaves out composition times, without which B-frames have none.

mod movie;

use super::{MediaError, MediaLimits};

pub use movie::{Movie, Track, movie};

/// One access unit of a film, one packet of a sound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Bytes from the start of the file; the sample lies within it.
    pub offset: u64,
    pub len: u64,
    /// Decoding time, ticks of the track's time scale.
    pub dts: i64,
    /// Composition time, ticks of the track's time scale.
    pub pts: i64,
    pub duration: u64,
    /// The container says that decoding may start here.
    pub sync: bool,
}

/// The first video track, in decoding order.
#[derive(Debug)]
pub(super) struct VideoTrack<'a> {
    /// Four letters of the sample description: `avc1`, `hvc1`, ….
    pub fourcc: [u8; 4],
    /// Body of `avcC`.
    pub config: Option<&'a [u8]>,
    /// Pixels, as the sample description says.
    pub size: (u64, u64),
    /// Clockwise quarter turns that make the picture upright.
    pub quarter_turns: u8,
    /// Ticks a second, not 0.
    pub timescale: u32,
    pub samples: Vec<Sample>,
    pub has_audio: bool,
}

fn corrupt(detail: impl Into<String>) -> MediaError {
    MediaError::Corrupt { detail: detail.into() }
}

fn truncated(detail: impl Into<String>) -> MediaError {
    MediaError::Truncated { detail: detail.into() }
}

/// Finds the first video track; `None` if the file has none.
pub(super) fn video_track<'a>(bytes: &'a [u8], limits: &MediaLimits) -> Result<Option<VideoTrack<'a>>, MediaError> {
    let moov = children(bytes).find(|b| b.kind == *b"moov");
    let moov = moov.ok_or_else(|| truncated("an MP4 without its `moov` box, which stands at the end of many"))?;
    let tracks: Vec<Atom<'a>> = children(moov.body).filter(|b| b.kind == *b"trak").collect();
    let handler = |trak: &Atom<'a>| {
        let hdlr = trak.find(&[b"mdia", b"hdlr"]);
        hdlr.and_then(|b| b.body.get(8..12)).map(<[u8]>::to_vec).unwrap_or_default()
    };
    let has_audio = tracks.iter().any(|t| handler(t) == b"soun");
    let Some(trak) = tracks.iter().find(|t| handler(t) == b"vide") else {
        let cut = tracks.is_empty() && moov.cut;
        return if cut { Err(truncated("an MP4 that ends inside its `moov` box")) } else { Ok(None) };
    };
    let mdhd = trak.find(&[b"mdia", b"mdhd"]).ok_or_else(|| corrupt("a track without a media header"))?;
    let timescale = if mdhd.body.first() == Some(&1) { mdhd.u32(20) } else { mdhd.u32(12) };
    let timescale = timescale.filter(|t| *t > 0).ok_or_else(|| corrupt("the track's time scale is 0"))?;
    let stbl = trak.find(&[b"mdia", b"minf", b"stbl"]).ok_or_else(|| corrupt("a track without a sample table"))?;
    let stsd = stbl.find(&[b"stsd"]).ok_or_else(|| corrupt("a track without a sample description"))?;
    let entry = children(stsd.body.get(8..).unwrap_or_default()).next();
    let entry = entry.ok_or_else(|| corrupt("an empty sample description"))?;
    let side = |at: usize| entry.body.get(at..at + 2).map_or(0, |b| u64::from(u16::from_be_bytes([b[0], b[1]])));
    let config = children(entry.body.get(78..).unwrap_or_default()).find(|b| b.kind == *b"avcC").map(|b| b.body);
    let mut track = VideoTrack {
        fourcc: entry.kind,
        config,
        size: (side(24), side(26)),
        quarter_turns: trak.find(&[b"tkhd"]).map_or(0, |tkhd| quarter_turns(&tkhd)),
        timescale,
        samples: Vec::new(),
        has_audio,
    };
    track.samples = samples(bytes, &moov, trak, &stbl, limits)?;
    Ok(Some(track))
}

/// Samples of one track, those of the `moov` box before those of fragments.
fn samples(
    bytes: &[u8],
    moov: &Atom<'_>,
    trak: &Atom<'_>,
    stbl: &Atom<'_>,
    limits: &MediaLimits,
) -> Result<Vec<Sample>, MediaError> {
    let n_bytes = bytes.len() as u64;
    let mut list = table_samples(stbl, n_bytes, limits)?;
    if let Some(stss) = stbl.find(&[b"stss"]) {
        list.iter_mut().for_each(|sample| sample.sync = false);
        for entry in stss.entries(4) {
            // Samples count from 1.
            if let Some(sample) = (be32(entry) as usize).checked_sub(1).and_then(|i| list.get_mut(i)) {
                sample.sync = true;
            }
        }
    }
    let mut out = Samples { n_bytes, limits, list };
    if let Some(track_id) = track_id(trak) {
        let defaults = children(moov.body)
            .find(|b| b.kind == *b"mvex")
            .and_then(|mvex| children(mvex.body).find(|b| b.kind == *b"trex" && b.u32(4) == Some(track_id)));
        for moof in children(bytes).filter(|b| b.kind == *b"moof") {
            fragment_samples(&moof, track_id, defaults.as_ref(), &mut out)?;
        }
    }
    Ok(out.list)
}

fn track_id(trak: &Atom<'_>) -> Option<u32> {
    trak.find(&[b"tkhd"]).and_then(|b| b.u32(if b.body.first() == Some(&1) { 20 } else { 12 }))
}

/// A box of the file: its kind, and its body as far as the file goes.
#[derive(Debug, Clone, Copy)]
pub struct Atom<'a> {
    pub kind: [u8; 4],
    /// Offset of the box in the slice that `children` was given.
    at: usize,
    pub body: &'a [u8],
    /// It claims more bytes than there are.
    cut: bool,
}

impl<'a> Atom<'a> {
    /// Big-endian number at byte `at` of the body.
    pub fn u32(&self, at: usize) -> Option<u32> {
        self.body.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes)
    }

    /// Big-endian number at byte `at` of the body.
    pub fn u64(&self, at: usize) -> Option<u64> {
        self.body.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_be_bytes)
    }

    /// The first box at `path` below this one.
    pub fn find(&self, path: &[&[u8; 4]]) -> Option<Atom<'a>> {
        let (first, rest) = path.split_first()?;
        let child = children(self.body).find(|b| b.kind == **first)?;
        if rest.is_empty() { Some(child) } else { child.find(rest) }
    }

    /// Entries of `width` bytes from `at` on, as many as both the count before them and the box hold.
    fn entries(&self, width: usize) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let n = self.u32(4).unwrap_or(0) as usize;
        self.body.get(8..).unwrap_or_default().chunks_exact(width).take(n)
    }
}

fn be32(bytes: &[u8]) -> u32 {
    bytes.get(..4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// The boxes in `bytes`, one after another; stops at the first that cannot be one.
pub fn children(bytes: &[u8]) -> impl Iterator<Item = Atom<'_>> {
    let mut at = 0_usize;
    std::iter::from_fn(move || {
        let rest = bytes.get(at..)?;
        let kind: [u8; 4] = rest.get(4..8)?.try_into().ok()?;
        let (header, size) = match be32(rest) {
            0 => (8, rest.len() as u64),
            1 => (16, u64::from_be_bytes(rest.get(8..16)?.try_into().ok()?)),
            size => (8, u64::from(size)),
        };
        if size < header as u64 {
            return None;
        }
        let end = usize::try_from(size).unwrap_or(usize::MAX).min(rest.len());
        let found = Atom { kind, at, body: rest.get(header..end)?, cut: size > rest.len() as u64 };
        at = at.checked_add(end)?;
        Some(found)
    })
}

/// From the upper left of the display matrix; anything but a quarter turn counts as upright.
fn quarter_turns(tkhd: &Atom<'_>) -> u8 {
    let at = if tkhd.body.first() == Some(&1) { 52 } else { 40 };
    let value = |i: usize| tkhd.u32(at + 4 * i).unwrap_or(0).cast_signed().signum();
    match (value(0), value(1), value(3), value(4)) {
        (0, 1, -1, 0) => 1,
        (-1, 0, 0, -1) => 2,
        (0, -1, 1, 0) => 3,
        _ => 0,
    }
}

/// Collects samples and holds each to the file and the limits.
struct Samples<'l> {
    n_bytes: u64,
    limits: &'l MediaLimits,
    list: Vec<Sample>,
}

impl Samples<'_> {
    fn push(&mut self, sample: Sample) -> Result<(), MediaError> {
        let n = self.list.len() as u64;
        if n >= self.limits.max_frames {
            return Err(MediaError::TooLarge {
                what: "frames of the clip",
                found: n + 1,
                limit: self.limits.max_frames,
            });
        }
        let end = sample.offset.checked_add(sample.len);
        if sample.len == 0 || end.is_none_or(|end| end > self.n_bytes) {
            return Err(truncated(format!("frame {n} lies at byte {}, the file has {}", sample.offset, self.n_bytes)));
        }
        self.list.push(sample);
        Ok(())
    }
}

/// Expands runs of (count, value); the last value goes on, 0 without any.
struct Runs<'a, I: Iterator<Item = &'a [u8]>> {
    runs: I,
    left: u32,
    value: u32,
}

impl<'a, I: Iterator<Item = &'a [u8]>> Runs<'a, I> {
    fn new(runs: I) -> Self {
        Self { runs, left: 0, value: 0 }
    }

    fn next(&mut self) -> u32 {
        while self.left == 0 {
            match self.runs.next() {
                Some(run) => (self.left, self.value) = (be32(run), be32(&run[4..])),
                None => self.left = u32::MAX,
            }
        }
        self.left -= 1;
        self.value
    }
}

/// Samples of the `moov` box: none in a fragmented file.
fn table_samples(stbl: &Atom<'_>, n_bytes: u64, limits: &MediaLimits) -> Result<Vec<Sample>, MediaError> {
    let missing = |name: &str| corrupt(format!("the sample table has no `{name}` box"));
    let stsz = stbl.find(&[b"stsz"]).ok_or_else(|| missing("stsz"))?;
    let (fixed, n) = (stsz.u32(4).unwrap_or(0), stsz.u32(8).unwrap_or(0));
    let sizes = stsz.body.get(12..).unwrap_or_default();
    if fixed == 0 && sizes.len() / 4 < n as usize {
        return Err(corrupt(format!("the sample table claims {n} frames and lists {}", sizes.len() / 4)));
    }
    if n == 0 {
        return Ok(Vec::new());
    }
    let stsc = stbl.find(&[b"stsc"]).ok_or_else(|| missing("stsc"))?;
    let stts = stbl.find(&[b"stts"]).ok_or_else(|| missing("stts"))?;
    let ctts = stbl.find(&[b"ctts"]);
    let (chunks, wide) = match (stbl.find(&[b"stco"]), stbl.find(&[b"co64"])) {
        (Some(stco), _) => (stco, false),
        (None, Some(co64)) => (co64, true),
        (None, None) => return Err(missing("stco")),
    };
    let mut durations = Runs::new(stts.entries(8));
    let mut shifts = ctts.as_ref().map(|ctts| Runs::new(ctts.entries(8)));
    let mut out = Samples { n_bytes, limits, list: Vec::new() };
    let mut dts = 0_i64;
    let runs: Vec<(u32, u32)> = stsc.entries(12).map(|e| (be32(e), be32(&e[4..]))).collect();
    let mut run_idx = 0;
    for (chunk_idx, chunk) in chunks.entries(if wide { 8 } else { 4 }).enumerate() {
        // Chunks count from 1; a run goes on until the next one's first chunk.
        while runs.get(run_idx + 1).is_some_and(|next| next.0 as usize <= chunk_idx + 1) {
            run_idx += 1;
        }
        let per_chunk = runs.get(run_idx).map_or(0, |run| run.1);
        let mut offset =
            if wide { (u64::from(be32(chunk)) << 32) | u64::from(be32(&chunk[4..])) } else { u64::from(be32(chunk)) };
        for _ in 0..per_chunk {
            let i = out.list.len();
            if i == n as usize {
                return Ok(out.list);
            }
            let len = u64::from(if fixed == 0 { be32(&sizes[4 * i..]) } else { fixed });
            let duration = u64::from(durations.next());
            let shift = shifts.as_mut().map_or(0, |s| i64::from(s.next().cast_signed()));
            out.push(Sample { offset, len, dts, pts: dts.saturating_add(shift), duration, sync: true })?;
            offset += len;
            dts = dts.saturating_add_unsigned(duration);
        }
    }
    if out.list.len() < n as usize {
        return Err(corrupt(format!("the sample table claims {n} frames and places {}", out.list.len())));
    }
    Ok(out.list)
}

/// Samples of one `moof` box.
fn fragment_samples(
    moof: &Atom<'_>,
    track_id: u32,
    defaults: Option<&Atom<'_>>,
    out: &mut Samples<'_>,
) -> Result<(), MediaError> {
    for traf in children(moof.body).filter(|b| b.kind == *b"traf") {
        let Some(tfhd) = traf.find(&[b"tfhd"]).filter(|b| b.u32(4) == Some(track_id)) else { continue };
        let flags = tfhd.u32(0).unwrap_or(0) & 0x00FF_FFFF;
        let mut at = 8;
        let mut field = |flag: u32, width: usize| {
            let here = (flags & flag != 0).then_some(at);
            at += if here.is_some() { width } else { 0 };
            here
        };
        let (base, _, duration, size) = (field(0x1, 8), field(0x2, 4), field(0x8, 4), field(0x10, 4));
        let sample_flags = field(0x20, 4);
        let base = base.and_then(|at| tfhd.u64(at)).unwrap_or(moof.at as u64);
        let or_default = |at: Option<usize>, in_trex: usize| {
            at.and_then(|at| tfhd.u32(at)).or_else(|| defaults?.u32(in_trex)).unwrap_or(0)
        };
        let defaults = Defaults {
            duration: or_default(duration, 12),
            size: or_default(size, 16),
            flags: or_default(sample_flags, 20),
        };
        let tfdt = traf.find(&[b"tfdt"]);
        let start = tfdt.and_then(|b| if b.body.first() == Some(&1) { b.u64(4) } else { b.u32(4).map(u64::from) });
        let follow = out.list.last().map_or(0, |last| last.dts.saturating_add_unsigned(last.duration));
        let mut dts = start.and_then(|s| i64::try_from(s).ok()).unwrap_or(follow);
        let mut offset = base;
        for trun in children(traf.body).filter(|b| b.kind == *b"trun") {
            run_samples(&trun, base, &defaults, &mut offset, &mut dts, out)?;
        }
    }
    Ok(())
}

/// What a sample of a run is unless the run says otherwise.
struct Defaults {
    duration: u32,
    size: u32,
    flags: u32,
}

/// Bit of a fragment's sample flags: decoding may not start here.
const NOT_SYNC: u32 = 0x1_0000;

fn run_samples(
    trun: &Atom<'_>,
    base: u64,
    defaults: &Defaults,
    offset: &mut u64,
    dts: &mut i64,
    out: &mut Samples<'_>,
) -> Result<(), MediaError> {
    let flags = trun.u32(0).unwrap_or(0);
    let n = trun.u32(4).unwrap_or(0);
    let mut at = 8;
    if flags & 0x1 != 0 {
        let shift = i64::from(trun.u32(at).unwrap_or(0).cast_signed());
        *offset = base.saturating_add_signed(shift);
        at += 4;
    }
    let mut first_flags = None;
    if flags & 0x4 != 0 {
        first_flags = trun.u32(at);
        at += 4;
    }
    for _ in 0..n {
        let mut field = |flag: u32| -> Result<Option<u32>, MediaError> {
            if flags & flag == 0 {
                return Ok(None);
            }
            let value = trun.u32(at).ok_or_else(|| corrupt("a fragment's run is shorter than it claims"))?;
            at += 4;
            Ok(Some(value))
        };
        let duration = field(0x100)?.unwrap_or(defaults.duration);
        let size = field(0x200)?.unwrap_or(defaults.size);
        let sample_flags = field(0x400)?.or(first_flags.take()).unwrap_or(defaults.flags);
        let shift = field(0x800)?.unwrap_or(0).cast_signed();
        let sample = Sample {
            offset: *offset,
            len: u64::from(size),
            dts: *dts,
            pts: dts.saturating_add(i64::from(shift)),
            duration: u64::from(duration),
            sync: sample_flags & NOT_SYNC == 0,
        };
        out.push(sample)?;
        *offset = offset.saturating_add(u64::from(size));
        *dts = dts.saturating_add(i64::from(duration));
    }
    Ok(())
}
