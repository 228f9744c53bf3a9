//! The first film and the first sound of an MP4 or MOV, as one who writes the file anew needs them.
//!
//! In: the whole file. Out: its header boxes and every sample of the two tracks. Never: a file that cannot be copied sample
//! by sample: several sample descriptions, media in another file, offsets of which two readings exist.

use super::{Atom, MediaError, MediaLimits, Sample, children, corrupt, samples, track_id, truncated};

/// An MP4 or MOV, taken apart.
#[derive(Debug)]
pub struct Movie<'a> {
    /// Body of `ftyp`; a MOV may be without.
    pub ftyp: Option<&'a [u8]>,
    /// Body of `mvhd`.
    pub mvhd: &'a [u8],
    /// The first film and the first sound, as far as they are there, film first.
    pub tracks: Vec<Track<'a>>,
    /// `moov` stands before the media, and there are no fragments.
    pub is_fast_start: bool,
}

/// One track, with samples in decoding order.
#[derive(Debug)]
pub struct Track<'a> {
    pub is_video: bool,
    /// The `trak` box.
    pub trak: Atom<'a>,
    /// Ticks a second, not 0.
    pub timescale: u32,
    pub samples: Vec<Sample>,
    /// Some samples are those of fragments.
    pub is_fragmented: bool,
}

/// Takes `bytes` apart.
///
/// # Errors
/// A box that is missing or broken, a sample outside the file, more samples than the limits, or a structure that cannot be
/// copied sample by sample.
pub fn movie<'a>(bytes: &'a [u8], limits: &MediaLimits) -> Result<Movie<'a>, MediaError> {
    let top = |kind: &[u8; 4]| children(bytes).find(|b| b.kind == *kind);
    let moov = top(b"moov").ok_or_else(|| truncated("an MP4 without its `moov` box"))?;
    let mvhd = moov.find(&[b"mvhd"]).ok_or_else(|| corrupt("an MP4 without its movie header"))?;
    let is_fragmented = top(b"moof").is_some();
    check_bases(bytes)?;
    let mut tracks = Vec::new();
    for (handler, is_video) in [(b"vide", true), (b"soun", false)] {
        let is_it = |trak: &Atom<'_>| {
            trak.kind == *b"trak" && trak.find(&[b"mdia", b"hdlr"]).is_some_and(|b| b.body.get(8..12) == Some(handler))
        };
        let Some(trak) = children(moov.body).find(is_it) else { continue };
        let mdhd = trak.find(&[b"mdia", b"mdhd"]).ok_or_else(|| corrupt("a track without a media header"))?;
        let timescale = if mdhd.body.first() == Some(&1) { mdhd.u32(20) } else { mdhd.u32(12) };
        let timescale = timescale.filter(|t| *t > 0).ok_or_else(|| corrupt("the track's time scale is 0"))?;
        let minf = trak.find(&[b"mdia", b"minf"]).ok_or_else(|| corrupt("a track without media information"))?;
        let stbl = minf.find(&[b"stbl"]).ok_or_else(|| corrupt("a track without a sample table"))?;
        let n_descriptions = stbl.find(&[b"stsd"]).map_or(0, |b| children(b.body.get(8..).unwrap_or_default()).count());
        if n_descriptions != 1 || track_id(&trak).is_none() {
            return Err(corrupt(format!("a track with {n_descriptions} sample descriptions, wanted 1")));
        }
        let is_elsewhere = |entry: &Atom<'_>| entry.u32(0).is_some_and(|flags| flags & 1 == 0);
        let dref = minf.find(&[b"dinf", b"dref"]);
        if dref.is_some_and(|b| children(b.body.get(8..).unwrap_or_default()).any(|entry| is_elsewhere(&entry))) {
            return Err(corrupt("a track whose media lie in another file"));
        }
        // What bounds the packets of a sound is its samples: a packet holds at least one.
        let max_frames = if is_video { limits.max_frames } else { limits.max_samples };
        let samples = samples(bytes, &moov, &trak, &stbl, &MediaLimits { max_frames, ..*limits })?;
        tracks.push(Track { is_video, trak, timescale, samples, is_fragmented });
    }
    let media_at = children(bytes).position(|b| b.kind == *b"mdat");
    let moov_at = children(bytes).position(|b| b.kind == *b"moov");
    let is_fast_start = !is_fragmented && moov_at < media_at;
    Ok(Movie { ftyp: top(b"ftyp").map(|b| b.body), mvhd: mvhd.body, tracks, is_fast_start })
}

/// Offsets of a fragment's second track count from the end of the first one's data unless it says otherwise, which old files
/// mean and newer readers do not.
fn check_bases(bytes: &[u8]) -> Result<(), MediaError> {
    for moof in children(bytes).filter(|b| b.kind == *b"moof") {
        let headers = children(moof.body).filter(|b| b.kind == *b"traf").filter_map(|traf| traf.find(&[b"tfhd"]));
        if headers.skip(1).any(|tfhd| tfhd.u32(0).unwrap_or(0) & 0x2_0001 == 0) {
            return Err(corrupt("a fragment whose second track does not say where its offsets begin"));
        }
    }
    Ok(())
}
