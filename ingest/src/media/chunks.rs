//! PNG and WebP without the chunks that pixels do not need.
//!
//! In: a PNG or WebP that decodes. Out: another with the same pixels and colour description. Never: decoding, a chunk of the
//! picture or of its colours dropped.

use super::exif;

/// Chunks of a PNG beside those whose first letter says that they are critical: transparency, colours, animation.
const PNG_KEPT: [&[u8; 4]; 11] =
    [b"tRNS", b"cHRM", b"gAMA", b"iCCP", b"sBIT", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"acTL", b"fcTL"];
const PNG_FRAME_DATA: &[u8; 4] = b"fdAT";
const PNG_SIGNATURE: usize = 8;

/// A PNG of what it needs; `None` if that is all of it, or if it cannot be taken apart.
pub(super) fn strip_png(bytes: &[u8], orientation: u8) -> Option<Vec<u8>> {
    let mut out = bytes.get(..PNG_SIGNATURE)?.to_vec();
    let mut exif = exif::orientation_only(orientation);
    let mut at = PNG_SIGNATURE;
    loop {
        let length = u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize;
        let kind: &[u8; 4] = bytes.get(at + 4..at + 8)?.try_into().ok()?;
        // Length, kind and checksum take 12 bytes.
        let end = at.checked_add(12)?.checked_add(length)?;
        let chunk = bytes.get(at..end)?;
        if kind == b"IDAT"
            && let Some(block) = exif.take()
        {
            push_png_chunk(&mut out, b"eXIf", &block);
        }
        let is_critical = kind[0].is_ascii_uppercase();
        if is_critical || PNG_KEPT.contains(&kind) || kind == PNG_FRAME_DATA {
            out.extend_from_slice(chunk);
        }
        at = end;
        if kind == b"IEND" {
            break;
        }
    }
    (out != bytes).then_some(out)
}

fn push_png_chunk(out: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
    let mut checksum = flate2::Crc::new();
    checksum.update(kind);
    checksum.update(body);
    out.extend((body.len() as u32).to_be_bytes());
    out.extend(kind);
    out.extend(body);
    out.extend(checksum.sum().to_be_bytes());
}

const WEBP_KEPT: [&[u8; 4]; 7] = [b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"];
/// Bits of the `VP8X` chunk's flags.
const WEBP_HAS_EXIF: u8 = 0x08;
const WEBP_HAS_XMP: u8 = 0x04;

/// A WebP of what it needs; `None` if that is all of it, or if it cannot be taken apart.
pub(super) fn strip_webp(bytes: &[u8], orientation: u8) -> Option<Vec<u8>> {
    let claimed = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?) as usize;
    let file = bytes.get(..claimed.checked_add(8)?)?;
    let mut out = b"RIFF\0\0\0\0WEBP".to_vec();
    let mut flags_at = None;
    let mut at = 12;
    while at + 8 <= file.len() {
        let kind: &[u8; 4] = file[at..at + 4].try_into().ok()?;
        let length = u32::from_le_bytes(file[at + 4..at + 8].try_into().ok()?) as usize;
        // Chunks are padded to even length; the last may lack its padding.
        let end = at.checked_add(8)?.checked_add(length)?;
        let padded = end.checked_add(length % 2)?.min(file.len());
        let chunk = file.get(at..end)?;
        if WEBP_KEPT.contains(&kind) {
            flags_at = if kind == b"VP8X" { Some(out.len() + 8) } else { flags_at };
            out.extend_from_slice(chunk);
            out.resize(out.len() + length % 2, 0);
        }
        at = padded;
    }
    let exif = exif::orientation_only(orientation);
    if let Some(flags) = flags_at.and_then(|at| out.get_mut(at)) {
        *flags &= !(WEBP_HAS_EXIF | WEBP_HAS_XMP);
        *flags |= if exif.is_some() { WEBP_HAS_EXIF } else { 0 };
    }
    if let Some(block) = exif {
        out.extend(b"EXIF");
        out.extend((block.len() as u32).to_le_bytes());
        out.extend(&block);
        out.resize(out.len() + block.len() % 2, 0);
    }
    let n_bytes = u32::try_from(out.len() - 8).ok()?;
    out[4..8].copy_from_slice(&n_bytes.to_le_bytes());
    (out != bytes).then_some(out)
}
