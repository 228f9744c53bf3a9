//! A WAV or RF64 file → the same sound in the plainest WAV there is.
//!
//! In: bytes that begin with `RIFF` or `RF64`. Out: header, format and samples, their lengths made true. Never: decoding.
//! Symphonia 0.6 refuses odd `LIST` chunks and RF64, ends a streamed file with an error and panics at 65535 channels, so
//! the chunks are walked here and only what it needs is handed on.

use super::{MediaError, first_bytes};

/// Beyond this a header lies: the largest layout in use has 64 (seventh-order ambisonics).
const MAX_CHANNELS: u16 = 64;

/// Walks the chunks and writes them anew.
///
/// # Errors
/// No format, no samples, no channel, or samples that end before the header says.
pub(super) fn tidy(bytes: &[u8]) -> Result<Vec<u8>, MediaError> {
    let corrupt = |detail: String| MediaError::Corrupt { detail };
    if bytes.get(8..12) != Some(b"WAVE") {
        return Err(MediaError::UnknownFormat {
            wanted: "RIFF file with sound in it (WAVE)",
            found: first_bytes(bytes),
        });
    }
    let streamed = matches!(bytes.get(4..8), Some([0, 0, 0, 0] | [0xFF, 0xFF, 0xFF, 0xFF]));
    let (mut format, mut fact, mut long_size): (Option<&[u8]>, Option<&[u8]>, Option<u64>) = (None, None, None);
    let mut at = 12;
    let samples = loop {
        let Some((kind, claimed)) = chunk_header(bytes, at) else { break None };
        let rest = &bytes[at + 8..];
        if kind == *b"data" {
            let claimed = match (claimed, long_size) {
                (u32::MAX, Some(long_size)) => long_size,
                (u32::MAX, None) => rest.len() as u64,
                (0, _) if streamed => rest.len() as u64,
                (claimed, _) => u64::from(claimed),
            };
            if claimed > rest.len() as u64 {
                let detail = format!("{} bytes of samples of {claimed} that the header says", rest.len());
                return Err(MediaError::Truncated { detail });
            }
            break Some(&rest[..claimed as usize]);
        }
        let body = rest.get(..claimed as usize).unwrap_or(rest);
        match &kind {
            b"fmt " => format = Some(body),
            b"fact" => fact = Some(body),
            b"ds64" => long_size = body.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes),
            _ => {}
        }
        // Chunks are padded to even length; the padding is not counted.
        at += 8 + claimed as usize + claimed as usize % 2;
    };
    let format = format.ok_or_else(|| corrupt("a WAV without its format chunk".to_owned()))?;
    let field = |at: usize| format.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]));
    let (channels, block) = (field(2), usize::from(field(12)));
    if channels == 0 || channels > MAX_CHANNELS || block == 0 {
        return Err(corrupt(format!(
            "{channels} channels in blocks of {block} bytes, wanted 1 to {MAX_CHANNELS} channels"
        )));
    }
    let samples = samples.ok_or_else(|| MediaError::Truncated { detail: "a WAV without samples".to_owned() })?;
    let samples = &samples[..samples.len() / block * block];
    if samples.is_empty() {
        return Err(corrupt("the file holds no samples".to_owned()));
    }
    let mut out = Vec::with_capacity(samples.len() + 128);
    out.extend(b"RIFF\0\0\0\0WAVE");
    push_chunk(&mut out, b"fmt ", format);
    if let Some(fact) = fact {
        push_chunk(&mut out, b"fact", fact);
    }
    push_chunk(&mut out, b"data", samples);
    let size = u32::try_from(out.len() - 8).map_err(|_| MediaError::TooLarge {
        what: "bytes of the WAV",
        found: out.len() as u64,
        limit: u64::from(u32::MAX),
    })?;
    out[4..8].copy_from_slice(&size.to_le_bytes());
    Ok(out)
}

fn chunk_header(bytes: &[u8], at: usize) -> Option<([u8; 4], u32)> {
    let header = bytes.get(at..at.checked_add(8)?)?;
    Some((header[..4].try_into().ok()?, u32::from_le_bytes(header[4..].try_into().ok()?)))
}

fn push_chunk(out: &mut Vec<u8>, kind: &[u8; 4], body: &[u8]) {
    out.extend(kind);
    out.extend((body.len() as u32).to_le_bytes());
    out.extend(body);
    if body.len() % 2 == 1 {
        out.push(0);
    }
}
