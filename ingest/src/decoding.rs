//! What decoding a medium will hold beside its own bytes, told from its first bytes.
//!
//! In: a medium and its corpus's rules. Out: bytes, about and rather too many. Never: decodes, believes a header so far as to
//! allocate.

use std::io::Cursor;

use image::{ImageDecoder, ImageReader};
use imp_schemas::modality::RecordKind;

use crate::config::CorpusConfig;
use crate::media::config::{JpegRule, MediaRules, MetadataRule};

/// Bytes of a pixel: as it is decoded, and once more if the picture has to be turned upright.
const PIXEL: u64 = 3 + 3;
/// Coefficients of a pixel at full chroma, 16 bits each: a progressive JPEG holds all of them at once.
const COEFFICIENTS: u64 = 6;
/// Of each byte of a sound: it is written anew in the plainest form that the decoder reads.
const TIDIED: u64 = 1;
/// Of each byte of a sound that becomes FLAC: samples, the same resampled, as integers, and as FLAC's residuals are 4 bytes
/// each, and a byte of a compressed sound is some of them.
const RECODED: u64 = 32;

/// Bytes that verifying `media` as a record of `corpus` holds beside it. Of a film only what is copied: its frames are
/// decoded one after another.
pub(crate) fn bytes_to_decode(corpus: &CorpusConfig, media: &[u8]) -> u64 {
    let (rules, len) = (&corpus.media, media.len() as u64);
    match corpus.kind {
        RecordKind::ImageText => bytes_of_picture(rules, media),
        RecordKind::VideoText => len,
        RecordKind::AudioText => len * if rules.flac { RECODED } else { TIDIED },
    }
}

fn bytes_of_picture(rules: &MediaRules, media: &[u8]) -> u64 {
    let is_changed = rules.reencode.is_some()
        || rules.normalise.jpeg == JpegRule::Baseline
        || rules.normalise.metadata == MetadataRule::Strip;
    // What was changed is decoded again while the first is there to compare with.
    let again = if is_changed { PIXEL } else { 0 };
    if let Some((n_pixels, is_progressive)) = jpeg_frame(media) {
        let coefficients = if is_progressive || is_changed { COEFFICIENTS } else { 0 };
        return n_pixels.saturating_mul(PIXEL + coefficients + again);
    }
    let decoder = ImageReader::new(Cursor::new(media)).with_guessed_format().ok().and_then(|r| r.into_decoder().ok());
    decoder.map_or(0, |decoder| {
        let (width, height) = decoder.dimensions();
        let n_pixels = u64::from(width) * u64::from(height);
        decoder.total_bytes().saturating_add(n_pixels.saturating_mul(PIXEL + again))
    })
}

/// Pixels of a JPEG, and whether it is progressive; `None` if it is no JPEG or has no frame.
fn jpeg_frame(bytes: &[u8]) -> Option<(u64, bool)> {
    let number = |at: usize| Some(u64::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    if !bytes.starts_with(&[0xFF, 0xD8]) {
        return None;
    }
    let mut at = 2;
    loop {
        match (*bytes.get(at)?, *bytes.get(at + 1)?) {
            (0xFF, 0xFF) => at += 1,
            (0xFF, 0x01 | 0xD0..=0xD8) => at += 2,
            // Samples, or the end, before any frame.
            (0xFF, 0xD9 | 0xDA) => return None,
            (0xFF, marker @ 0xC0..=0xCF) if ![0xC4, 0xC8, 0xCC].contains(&marker) => {
                let is_progressive = matches!(marker, 0xC2 | 0xC6 | 0xCA | 0xCE);
                return Some((number(at + 5)? * number(at + 7)?, is_progressive));
            }
            (0xFF, _) => at += 2 + usize::try_from(number(at + 2)?).ok()?,
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use image::{ExtendedColorType, ImageEncoder, RgbImage};

    use super::*;

    fn jpeg(width: u16, height: u16, is_progressive: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 80);
        encoder.set_progressive(is_progressive);
        let rgb = vec![90; usize::from(width) * usize::from(height) * 3];
        encoder.encode(&rgb, width, height, jpeg_encoder::ColorType::Rgb).unwrap();
        bytes
    }

    #[test]
    fn a_header_tells_what_decoding_holds() {
        let (keep, n) = (MediaRules::default(), 640 * 360);
        let mut png = Vec::new();
        let picture = RgbImage::new(640, 360);
        image::codecs::png::PngEncoder::new(&mut png)
            .write_image(picture.as_raw(), 640, 360, ExtendedColorType::Rgb8)
            .unwrap();
        assert_eq!(bytes_of_picture(&keep, &jpeg(640, 360, false)), n * PIXEL);
        assert_eq!(bytes_of_picture(&keep, &jpeg(640, 360, true)), n * (PIXEL + COEFFICIENTS));
        assert_eq!(bytes_of_picture(&keep, &png), n * (3 + PIXEL));
        let mut changed = keep;
        changed.normalise.metadata = MetadataRule::Strip;
        assert_eq!(bytes_of_picture(&changed, &jpeg(640, 360, false)), n * (2 * PIXEL + COEFFICIENTS));
        for broken in [&b""[..], b"\xFF\xD8", b"\xFF\xD8\xFF\xC0\x00", b"no picture", &[0xFF; 40]] {
            assert_eq!(bytes_of_picture(&keep, broken), 0);
        }
    }
}
