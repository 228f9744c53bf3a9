//! A WAV or RF64 file → its samples, or the same sound in the plainest WAV there is.
//!
//! In: bytes that begin with `RIFF` or `RF64`. Out: format and samples, their lengths made true; those of 16 bits as numbers. Never:
//! another kind of sample decoded. Symphonia 0.6 refuses odd `LIST` chunks and RF64, ends a streamed file with an error and panics at
//! 65535 channels, so the chunks are walked here and only what it needs is handed on. Samples of 16 bits, which most sounds have, are
//! read here: its reader goes through them byte by byte, a quarter of the time in which a sound of 48 kHz becomes a spectrogram.

use super::{MediaError, first_bytes};

/// Beyond this a header lies: the largest layout in use has 64 (seventh-order ambisonics).
const MAX_CHANNELS: u16 = 64;
const INTEGERS: u16 = 1;
/// The format is an identifier further on.
const EXTENSIBLE: u16 = 0xFFFE;
const PCM_IDENTIFIER: [u8; 16] = [1, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xAA, 0, 0x38, 0x9B, 0x71];

/// The chunks of a file that matter.
pub(super) struct Wav<'a> {
    format: &'a [u8],
    fact: Option<&'a [u8]>,
    /// Whole blocks, at least one.
    samples: &'a [u8],
}

/// Samples that are whole numbers of 16 bits.
pub(super) struct Pcm16<'a> {
    /// Hz.
    pub rate: u32,
    pub channels: usize,
    /// Interleaved, little-endian.
    samples: &'a [[u8; 2]],
}

impl Pcm16<'_> {
    /// Per channel.
    pub fn n_samples(&self) -> usize {
        self.samples.len() / self.channels
    }

    /// Replaces `interleaved` by `n` samples of every channel from `start` on, or by those that there are; full scale ±1.
    pub fn read(&self, start: usize, n: usize, interleaved: &mut Vec<f32>) {
        let (start, end) = (start.min(self.n_samples()), start.saturating_add(n).min(self.n_samples()));
        let wanted = &self.samples[start * self.channels..end * self.channels];
        interleaved.clear();
        interleaved.extend(wanted.iter().map(|&sample| f32::from(i16::from_le_bytes(sample)) / 32_768.0));
    }
}

impl<'a> Wav<'a> {
    /// Walks the chunks.
    ///
    /// # Errors
    /// No format, no samples, no channel, or samples that end before the header says.
    pub fn of(bytes: &'a [u8]) -> Result<Self, MediaError> {
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
        Ok(Self { format, fact, samples })
    }

    /// `None` for samples of another kind.
    pub fn pcm16(&self) -> Option<Pcm16<'a>> {
        let field = |at: usize| self.format.get(at..at + 2).map(|b| u16::from_le_bytes([b[0], b[1]]));
        let (channels, block, bits) = (field(2)?, field(12)?, field(14)?);
        let integers = match field(0)? {
            INTEGERS => true,
            // Length of what follows, bits that count, identifier of the format.
            EXTENSIBLE => field(16)? == 22 && field(18)? == 16 && self.format.get(24..40)? == PCM_IDENTIFIER,
            _ => false,
        };
        if !integers || bits != 16 || block != channels.checked_mul(2)? {
            return None;
        }
        let rate = u32::from(field(4)?) | u32::from(field(6)?) << 16;
        Some(Pcm16 { rate, channels: channels.into(), samples: self.samples.as_chunks().0 })
    }

    /// The file without what does not matter.
    ///
    /// # Errors
    /// More bytes than the format can count.
    pub fn tidied(&self) -> Result<Vec<u8>, MediaError> {
        let mut out = Vec::with_capacity(self.samples.len() + 128);
        out.extend(b"RIFF\0\0\0\0WAVE");
        push_chunk(&mut out, b"fmt ", self.format);
        if let Some(fact) = self.fact {
            push_chunk(&mut out, b"fact", fact);
        }
        push_chunk(&mut out, b"data", self.samples);
        let size = u32::try_from(out.len() - 8).map_err(|_| MediaError::TooLarge {
            what: "bytes of the WAV",
            found: out.len() as u64,
            limit: u64::from(u32::MAX),
        })?;
        out[4..8].copy_from_slice(&size.to_le_bytes());
        Ok(out)
    }
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
