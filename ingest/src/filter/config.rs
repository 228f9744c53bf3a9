//! What a corpus refuses to hold: the `clean` table.
//!
//! In: a table of a run file. Out: [`CleanRules`], which states what it guarantees. Never: a rule that nobody asked for.

use serde::{Deserialize, Serialize};

use super::near::MAX_PICTURE_BITS;
use crate::error::IngestError;

/// Fewer words of a sketch than this may differ by chance alone.
const LEAST_JACCARD: f64 = 0.5;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawClean {
    dry: bool,
    max_aspect: Option<f64>,
    max_seconds: Option<f64>,
    caption: CaptionRules,
    duplicates: Duplicates,
    near: Option<RawNear>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RawNear {
    picture_bits: Option<u32>,
    caption_jaccard: Option<f64>,
    #[serde(default)]
    against: Vec<String>,
}

/// What a caption may be; one that breaks a rule is taken from its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CaptionRules {
    pub(crate) min_words: Option<usize>,
    pub(crate) max_words: Option<usize>,
    pub(crate) min_chars: Option<usize>,
    pub(crate) max_chars: Option<usize>,
    /// Substrings that no caption may hold, whatever their case.
    pub(crate) deny: Vec<String>,
}

/// Records with the bytes of an earlier one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Duplicates {
    #[default]
    Keep,
    Drop,
}

/// Which records are near duplicates. Guarantees: at least one of the two measures, each within its range.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct NearRule {
    /// Greatest Hamming distance of two pictures' hashes, 0 to 11 of 64 bits.
    pub(crate) picture_bits: Option<u32>,
    /// Least share of equal words in two captions' sketches, 0.5 to 1.
    pub(crate) caption_jaccard: Option<f64>,
    /// Corpora of the store whose records count as earlier ones.
    pub(crate) against: Vec<String>,
}

/// The rules of one corpus. Guarantees: ranges that hold something, no blank substring.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct CleanRules {
    /// Rules are counted and nothing is dropped.
    pub(crate) dry: bool,
    /// Longer side by shorter side, at least 1.
    pub(crate) max_aspect: Option<f64>,
    pub(crate) max_seconds: Option<f64>,
    pub(crate) caption: CaptionRules,
    pub(crate) duplicates: Duplicates,
    pub(crate) near: Option<NearRule>,
}

impl CleanRules {
    /// Checks the table; `key` is its name in messages, `ingest.corpus.NAME.clean`.
    ///
    /// # Errors
    /// [`IngestError::Config`] names the key, what was found and the rule.
    pub(crate) fn check(key: &str, raw: RawClean) -> Result<Self, IngestError> {
        let broken = |name: &str, found: String, rule: &str| {
            Err(IngestError::Config { key: format!("{key}.{name}"), found, rule: rule.to_owned() })
        };
        if let Some(aspect) = raw.max_aspect.filter(|aspect| !(*aspect >= 1.0 && aspect.is_finite())) {
            return broken("max_aspect", aspect.to_string(), "must be the longer side by the shorter one, 1 or more");
        }
        if let Some(seconds) = raw.max_seconds.filter(|seconds| !(*seconds > 0.0 && seconds.is_finite())) {
            return broken("max_seconds", seconds.to_string(), "must be a number of seconds above 0");
        }
        let caption = raw.caption;
        let ranges = [("words", caption.min_words, caption.max_words), ("chars", caption.min_chars, caption.max_chars)];
        for (unit, min, max) in ranges {
            if max.is_some_and(|max| max < min.unwrap_or(0).max(1)) {
                let found = max.unwrap_or(0).to_string();
                let rule = format!("must be at least 1 and at least `min_{unit}`");
                return broken(&format!("caption.max_{unit}"), found, &rule);
            }
        }
        if caption.deny.iter().any(|text| text.trim().is_empty()) {
            return broken("caption.deny", "a blank".to_owned(), "must hold substrings that are not blank");
        }
        let near = match raw.near {
            None => None,
            Some(near) => {
                if near.picture_bits.is_none() && near.caption_jaccard.is_none() {
                    let rule = "must have `picture_bits`, `caption_jaccard` or both";
                    return broken("near", "neither".to_owned(), rule);
                }
                if let Some(bits) = near.picture_bits.filter(|bits| *bits > MAX_PICTURE_BITS) {
                    let rule = format!("must lie within 0 and {MAX_PICTURE_BITS}: beyond, unlike pictures meet");
                    return broken("near.picture_bits", bits.to_string(), &rule);
                }
                if let Some(share) = near.caption_jaccard.filter(|share| !(LEAST_JACCARD..=1.0).contains(share)) {
                    return broken("near.caption_jaccard", share.to_string(), "must lie within 0.5 and 1");
                }
                let RawNear { picture_bits, caption_jaccard, against } = near;
                Some(NearRule { picture_bits, caption_jaccard, against })
            }
        };
        let RawClean { dry, max_aspect, max_seconds, duplicates, .. } = raw;
        Ok(Self { dry, max_aspect, max_seconds, caption, duplicates, near })
    }

    /// Whether records need the hash of their picture.
    pub(crate) fn wants_picture_hash(&self) -> bool {
        self.near.as_ref().is_some_and(|near| near.picture_bits.is_some())
    }

    /// Whether records need the sketch of their captions.
    pub(crate) fn wants_caption_sketch(&self) -> bool {
        self.near.as_ref().is_some_and(|near| near.caption_jaccard.is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Result<CleanRules, String> {
        let raw: RawClean = toml::from_str(text).map_err(|e| e.to_string())?;
        CleanRules::check("ingest.corpus.a.clean", raw).map_err(|e| e.to_string())
    }

    #[test]
    fn a_rule_that_holds_nothing_is_named() {
        let cases = [
            ("max_aspect = 0.5", "max_aspect", "1 or more"),
            ("max_seconds = 0.0", "max_seconds", "above 0"),
            ("caption = { max_words = 0 }", "caption.max_words", "at least 1"),
            ("caption = { min_chars = 9, max_chars = 8 }", "caption.max_chars", "`min_chars`"),
            ("caption = { deny = [\" \"] }", "caption.deny", "not blank"),
            ("near = { against = [] }", "near", "`picture_bits`"),
            ("near = { picture_bits = 12 }", "near.picture_bits", "0 and 11"),
            ("near = { caption_jaccard = 0.4 }", "near.caption_jaccard", "0.5 and 1"),
            ("duplicates = \"dorp\"", "dorp", "drop"),
            ("max_aspct = 3.0", "max_aspct", "max_aspect"),
        ];
        for (text, found, rule) in cases {
            let message = check(text).unwrap_err();
            assert!(message.contains(found) && message.contains(rule), "{text}\n→ {message}");
        }
        assert_eq!(check(""), Ok(CleanRules::default()));
        let rules = check("dry = true\nnear = { picture_bits = 6, against = [\"b\"] }").unwrap();
        assert!(rules.dry && rules.wants_picture_hash() && !rules.wants_caption_sketch());
    }
}
