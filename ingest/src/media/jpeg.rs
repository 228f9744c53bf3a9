//! JPEG: segments that pixels do not need are taken out, progressive scans become one.
//!
//! In: a JPEG that decodes. Out: another with the same pixels. Never: decoding to pixels, a coefficient that changes, a
//! marker that decides about colours dropped (JFIF, Adobe, ICC profile).

use std::ops::Range;

use super::config::{JpegRule, MetadataRule};
use super::{coefficients, exif};

const SOS: u8 = 0xDA;
const EOI: u8 = 0xD9;
const APP0: u8 = 0xE0;
const APP1: u8 = 0xE1;
const APP2: u8 = 0xE2;
const APP14: u8 = 0xEE;
const APP15: u8 = 0xEF;
const COM: u8 = 0xFE;

/// A JPEG under the rules; `None` if nothing of it changes, or if it cannot be taken apart.
pub(super) fn normalise(
    bytes: &[u8],
    progressive: bool,
    orientation: u8,
    jpeg: JpegRule,
    metadata: MetadataRule,
) -> Option<(Vec<u8>, Vec<&'static str>)> {
    let recodes = progressive && jpeg == JpegRule::Baseline;
    if !recodes && metadata == MetadataRule::Keep {
        return None;
    }
    let mut done = Vec::new();
    let source = Segments::walk(bytes)?;
    let recoded = if recodes { coefficients::to_baseline(bytes).ok() } else { None };
    let keep = |segment: &Segment| metadata == MetadataRule::Keep || is_needed(bytes, segment);
    let kept: Vec<&Segment> = source.apps.iter().filter(|segment| keep(segment)).collect();
    let strips = kept.len() < source.apps.len() || (metadata == MetadataRule::Strip && source.end < bytes.len());
    if recoded.is_none() && !strips {
        return None;
    }
    let mut out = vec![0xFF, 0xD8];
    // JFIF stands first if it is there; EXIF comes next.
    let (jfif, others): (Vec<&Segment>, Vec<&Segment>) = kept.into_iter().partition(|s| s.marker == APP0);
    jfif.iter().for_each(|s| out.extend(&bytes[s.range.clone()]));
    if strips {
        done.push("metadata");
        if let Some(block) = exif::orientation_only(orientation) {
            out.extend([0xFF, APP1, 0, (block.len() + 8) as u8]);
            out.extend(b"Exif\0\0");
            out.extend(block);
        }
    }
    others.iter().for_each(|s| out.extend(&bytes[s.range.clone()]));
    match &recoded {
        Some(recoded) => {
            done.insert(0, "baseline");
            Segments::walk(recoded)?.copy_picture(recoded, &mut out);
        }
        None => source.copy_picture(bytes, &mut out),
    }
    (out != bytes).then_some((out, done))
}

/// One segment with its marker.
struct Segment {
    marker: u8,
    range: Range<usize>,
}

/// A JPEG, taken apart.
struct Segments {
    /// APPn and comments.
    apps: Vec<Segment>,
    /// Everything else up to the end marker, scans included, in order.
    picture: Vec<Range<usize>>,
    /// First byte behind the end marker.
    end: usize,
}

impl Segments {
    fn walk(bytes: &[u8]) -> Option<Self> {
        let (mut apps, mut picture) = (Vec::new(), Vec::new());
        let mut at = 2;
        loop {
            // Fill bytes, and in untidy files others, stand between segments.
            at += bytes.get(at..)?.windows(2).position(|w| w[0] == 0xFF && !matches!(w[1], 0x00 | 0x01 | 0xFF))?;
            let marker = bytes[at + 1];
            match marker {
                EOI => return Some(Self { apps, picture, end: at + 2 }),
                0xD0..=0xD8 => at += 2,
                _ => {
                    let length = usize::from(u16::from_be_bytes([*bytes.get(at + 2)?, *bytes.get(at + 3)?]));
                    let mut end = at + 2 + length.max(2);
                    if end > bytes.len() {
                        return None;
                    }
                    if marker == SOS {
                        end = end_of_scan(bytes, end)?;
                    }
                    let range = at..end;
                    if matches!(marker, APP0..=APP15 | COM) {
                        apps.push(Segment { marker, range });
                    } else {
                        picture.push(range);
                    }
                    at = end;
                }
            }
        }
    }

    fn copy_picture(&self, bytes: &[u8], out: &mut Vec<u8>) {
        self.picture.iter().for_each(|range| out.extend(&bytes[range.clone()]));
        out.extend([0xFF, EOI]);
    }
}

/// First marker behind a scan's data that is neither a stuffed byte nor a restart.
fn end_of_scan(bytes: &[u8], from: usize) -> Option<usize> {
    let is_end = |w: &[u8]| w[0] == 0xFF && !matches!(w[1], 0x00 | 0xD0..=0xD7 | 0xFF);
    bytes.get(from..)?.windows(2).position(is_end).map(|step| from + step)
}

/// Whether a decoder's colours depend on the segment.
fn is_needed(bytes: &[u8], segment: &Segment) -> bool {
    let body = bytes.get(segment.range.start + 4..segment.range.end).unwrap_or_default();
    match segment.marker {
        APP0 => body.starts_with(b"JFIF\0"),
        APP2 => body.starts_with(b"ICC_PROFILE\0"),
        APP14 => body.starts_with(b"Adobe"),
        _ => false,
    }
}
