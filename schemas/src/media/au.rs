//! A Sun `.au` file → the same sound as a WAV.
//!
//! In: bytes that begin with `.snd`. Out: what the WAV reader takes. Never: decoding.
//! Source: the header as `sndfile` and NeXTSTEP's `SNDSoundStruct` write it: six big-endian words and a comment.

use super::MediaError;

const HEADER_LEN: usize = 24;

/// Samples of `.au` are big-endian, and its 8-bit ones are signed; those of WAV are neither.
pub(super) fn to_wav(bytes: &[u8]) -> Result<Vec<u8>, MediaError> {
    let word = |i: usize| bytes.get(4 * i..4 * i + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let (Some(start), Some(claimed), Some(encoding), Some(rate), Some(channels)) =
        (word(1), word(2), word(3), word(4), word(5))
    else {
        return Err(MediaError::Truncated { detail: "an AU file that ends inside its header".to_owned() });
    };
    let rest = bytes.get((start as usize).max(HEADER_LEN)..).unwrap_or_default();
    // All ones: the writer did not know.
    let len = if claimed == u32::MAX { rest.len() } else { claimed as usize };
    let samples = rest.get(..len).ok_or_else(|| MediaError::Truncated {
        detail: format!("{} bytes of samples of {claimed} that the header says", rest.len()),
    })?;
    // WAV's format tag and the bytes of a sample.
    let (tag, width) = match encoding {
        1 => (7_u16, 1),
        2 => (1, 1),
        3 => (1, 2),
        4 => (1, 3),
        5 => (1, 4),
        6 => (3, 4),
        7 => (3, 8),
        27 => (6, 1),
        other => return Err(super::audio::unsupported(&format!("au encoding {other}"))),
    };
    let block = u32::try_from(width).unwrap_or(1).saturating_mul(channels);
    let size = u32::try_from(samples.len());
    let (Ok(channels), Ok(block), Ok(size)) = (u16::try_from(channels), u16::try_from(block), size) else {
        return Err(MediaError::Corrupt { detail: format!("an AU header of {channels} channels") });
    };
    let mut out = b"RIFF\xFF\xFF\xFF\xFFWAVEfmt \x12\0\0\0".to_vec();
    out.reserve(samples.len() + HEADER_LEN);
    out.extend([tag, channels].iter().flat_map(|n| n.to_le_bytes()));
    out.extend([rate, rate.wrapping_mul(u32::from(block))].iter().flat_map(|n| n.to_le_bytes()));
    // The last is the length of an extension, without which G.711's header counts as cut.
    out.extend([block, 8 * width as u16, 0].iter().flat_map(|n| n.to_le_bytes()));
    out.extend(b"data");
    out.extend(size.to_le_bytes());
    if encoding == 2 {
        out.extend(samples.iter().map(|s| s ^ 0x80));
    } else {
        out.extend(samples.chunks(width).flat_map(|sample| sample.iter().rev()));
    }
    Ok(out)
}
