//! What a corpus lets ingest do to its media: `normalise`, `reencode`, `clip`, `flac`.
//!
//! In: tables of a run file. Out: [`MediaRules`], which states what it guarantees. Never: a default that changes a byte.

use imp_schemas::modality::RecordKind;
use serde::{Deserialize, Serialize};

use crate::error::IngestError;

/// Longest side a JPEG can have, pixels.
const MAX_SIDE: usize = 65_535;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawReencode {
    shorter_side: Option<usize>,
    longest_side: Option<usize>,
    only_if_larger: Option<bool>,
    quality: Option<u8>,
    #[serde(default)]
    format: PictureFormat,
}

/// What becomes of a medium without a pixel, frame or sample of it changing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Normalise {
    pub(crate) jpeg: JpegRule,
    pub(crate) metadata: MetadataRule,
    pub(crate) video: VideoRule,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum JpegRule {
    #[default]
    Keep,
    /// A progressive JPEG is coded anew as a baseline one, from the same coefficients.
    Baseline,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MetadataRule {
    #[default]
    Keep,
    /// Of a picture only what its pixels need stays: colour profiles and the orientation.
    Strip,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum VideoRule {
    #[default]
    Keep,
    /// An MP4 is written anew: index first, then the samples of one film and one sound, interleaved.
    Remux,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PictureFormat {
    #[default]
    Jpeg,
    Png,
}

/// Which side of a picture is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Side {
    Shorter(usize),
    Longest(usize),
}

/// How pictures are made smaller. Guarantees: a side of 1 to 65,535 pixels, a quality of 1 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Reencode {
    pub(crate) side: Side,
    /// Smaller pictures are left as they are.
    pub(crate) only_if_larger: bool,
    pub(crate) quality: u8,
    pub(crate) format: PictureFormat,
}

/// How films are cut. Guarantees: both above 0 and finite.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Clip {
    pub(crate) seconds: f64,
    pub(crate) stride_seconds: f64,
}

/// Everything that may be done to the media of a corpus. Guarantees: what is asked for suits the corpus's kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct MediaRules {
    pub(crate) normalise: Normalise,
    pub(crate) reencode: Option<Reencode>,
    pub(crate) clip: Option<Clip>,
    /// Sounds become 16 kHz mono FLAC.
    pub(crate) flac: bool,
}

/// The tables of one corpus as the file has them.
#[derive(Debug, Clone, Default)]
pub(crate) struct RawMediaRules {
    pub(crate) normalise: Normalise,
    pub(crate) reencode: Option<RawReencode>,
    pub(crate) clip: Option<Clip>,
    pub(crate) flac: bool,
}

impl MediaRules {
    /// Checks the tables of a corpus of `kind`; `key` is the corpus's name in messages, `ingest.corpus.NAME`.
    ///
    /// # Errors
    /// [`IngestError::Config`] names the key, what was found and the rule.
    pub(crate) fn check(key: &str, kind: RecordKind, raw: &RawMediaRules) -> Result<Self, IngestError> {
        let only_for = |name: &str, wanted: RecordKind, is_given: bool| {
            if is_given && kind != wanted {
                let rule = format!("must be left out: it is for corpora of kind `{}`", wanted.name());
                return Err(broken(format!("{key}.{name}"), format!("given for kind `{}`", kind.name()), rule));
            }
            Ok(())
        };
        only_for("reencode", RecordKind::ImageText, raw.reencode.is_some())?;
        only_for("clip", RecordKind::VideoText, raw.clip.is_some())?;
        only_for("flac", RecordKind::AudioText, raw.flac)?;
        if let Some(clip) = raw.clip {
            for (name, seconds) in [("seconds", clip.seconds), ("stride_seconds", clip.stride_seconds)] {
                if !(seconds > 0.0 && seconds.is_finite()) {
                    let rule = "must be a number of seconds above 0".to_owned();
                    return Err(broken(format!("{key}.clip.{name}"), seconds.to_string(), rule));
                }
            }
        }
        let reencode = raw.reencode.as_ref().map(|raw| Reencode::check(&format!("{key}.reencode"), raw)).transpose()?;
        Ok(Self { normalise: raw.normalise, reencode, clip: raw.clip, flac: raw.flac })
    }
}

impl Reencode {
    fn check(key: &str, raw: &RawReencode) -> Result<Self, IngestError> {
        let side = match (raw.shorter_side, raw.longest_side) {
            (Some(side), None) => Side::Shorter(side),
            (None, Some(side)) => Side::Longest(side),
            (None, None) | (Some(_), Some(_)) => {
                let n = if raw.shorter_side.is_some() { "both" } else { "neither" };
                let rule = "must have one of `shorter_side` and `longest_side`".to_owned();
                return Err(broken(key.to_owned(), n.to_owned(), rule));
            }
        };
        let (name, pixels) = match side {
            Side::Shorter(pixels) => ("shorter_side", pixels),
            Side::Longest(pixels) => ("longest_side", pixels),
        };
        if !(1..=MAX_SIDE).contains(&pixels) {
            let rule = format!("must lie within 1 and {MAX_SIDE} pixels");
            return Err(broken(format!("{key}.{name}"), pixels.to_string(), rule));
        }
        let quality = raw.quality.unwrap_or(95);
        if !(1..=100).contains(&quality) {
            return Err(broken(format!("{key}.quality"), quality.to_string(), "must lie within 1 and 100".to_owned()));
        }
        Ok(Self { side, only_if_larger: raw.only_if_larger.unwrap_or(true), quality, format: raw.format })
    }
}

fn broken(key: String, found: String, rule: String) -> IngestError {
    IngestError::Config { key, found, rule }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Table {
        #[serde(default)]
        normalise: Normalise,
        reencode: Option<RawReencode>,
        clip: Option<Clip>,
        #[serde(default)]
        flac: bool,
    }

    fn check(kind: RecordKind, text: &str) -> Result<MediaRules, String> {
        let Table { normalise, reencode, clip, flac } = toml::from_str(text).map_err(|e| e.to_string())?;
        let raw = RawMediaRules { normalise, reencode, clip, flac };
        MediaRules::check("ingest.corpus.a", kind, &raw).map_err(|e| e.to_string())
    }

    #[test]
    fn a_rule_that_does_not_suit_is_named() {
        use RecordKind::{AudioText, ImageText, VideoText};
        let cases = [
            (VideoText, "reencode = { shorter_side = 256 }", "`ingest.corpus.a.reencode`", "image-text"),
            (ImageText, "clip = { seconds = 2.0, stride_seconds = 2.0 }", "`ingest.corpus.a.clip`", "video-text"),
            (ImageText, "flac = true", "`ingest.corpus.a.flac`", "audio-text"),
            (ImageText, "reencode = { quality = 90 }", "neither", "one of `shorter_side`"),
            (ImageText, "reencode = { shorter_side = 9, longest_side = 9 }", "both", "one of `shorter_side`"),
            (ImageText, "reencode = { shorter_side = 0 }", "shorter_side", "1 and 65535"),
            (ImageText, "reencode = { longest_side = 9, quality = 0 }", "quality", "1 and 100"),
            (ImageText, "reencode = { longest_side = 9, format = \"gif\" }", "gif", "jpeg"),
            (ImageText, "normalise = { jpeg = \"baselin\" }", "baselin", "baseline"),
            (VideoText, "clip = { seconds = 0.0, stride_seconds = 2.0 }", "clip.seconds", "above 0"),
            (VideoText, "clip = { seconds = 2.0, stride_seconds = inf }", "clip.stride_seconds", "above 0"),
        ];
        for (kind, text, found, rule) in cases {
            let message = check(kind, text).unwrap_err();
            assert!(message.contains(found) && message.contains(rule), "{text}\n→ {message}");
        }
        assert_eq!(check(AudioText, ""), Ok(MediaRules::default()));
        assert!(check(AudioText, "flac = true").is_ok_and(|rules| rules.flac));
        let rules =
            check(ImageText, "reencode = { longest_side = 512 }\nnormalise = { metadata = \"strip\" }").unwrap();
        let reencode = rules.reencode.unwrap();
        assert_eq!((reencode.side, reencode.only_if_larger, reencode.quality), (Side::Longest(512), true, 95));
        assert_eq!(rules.normalise.metadata, MetadataRule::Strip);
    }
}
