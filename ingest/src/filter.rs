//! Rules of cleaning: which records a corpus refuses, and which of their captions.
//!
//! In: what decoding found, captions, sketches. Out: findings, each with the name of its rule and a reason. Never: I/O, a
//! record dropped without a finding, a finding that depends on a record of another place in the order.

mod caption_sketch;
pub(crate) mod config;
mod near;
mod picture_hash;
mod tally;

use imp_schemas::reject::RejectReason;

pub(crate) use self::caption_sketch::caption_sketch;
pub(crate) use self::near::{Near, NearIndex, Sketches};
pub(crate) use self::picture_hash::picture_hash;
pub(crate) use self::tally::Tally;

use self::config::{CaptionRules, CleanRules};
use crate::media::Facts;
use crate::text::Refusal;

/// One rule that something breaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The rule's key in the config: `max_aspect`, `caption.min_words`, `near.picture_bits`, …
    pub(crate) rule: &'static str,
    pub(crate) reason: RejectReason,
    pub(crate) detail: String,
}

impl From<Finding> for Refusal {
    fn from(finding: Finding) -> Self {
        (finding.reason, finding.detail)
    }
}

/// The first rule that the medium breaks.
pub(crate) fn check_medium(rules: &CleanRules, facts: &Facts) -> Option<Finding> {
    let (sides, seconds) = match facts {
        Facts::Image(image) => (Some((image.width, image.height)), None),
        Facts::Video(video) => (Some((video.width, video.height)), Some(video.duration)),
        Facts::Audio(audio) => (None, Some(audio.duration)),
    };
    if let (Some(limit), Some((width, height))) = (rules.max_aspect, sides) {
        let aspect = width.max(height) as f64 / width.min(height).max(1) as f64;
        if aspect > limit {
            let detail = format!("{width} x {height} pixels are {aspect:.2} to 1, the limit is {limit} to 1");
            return Some(Finding { rule: "max_aspect", reason: RejectReason::AspectRatio, detail });
        }
    }
    if let (Some(limit), Some(seconds)) = (rules.max_seconds, seconds)
        && seconds > limit
    {
        let detail = format!("it lasts {seconds:.3} s, the limit is {limit} s");
        return Some(Finding { rule: "max_seconds", reason: RejectReason::TooLarge, detail });
    }
    None
}

/// The first rule that each caption breaks, in the captions' order.
pub(crate) fn check_captions(rules: &CaptionRules, captions: &[String]) -> Vec<Option<Finding>> {
    let deny: Vec<String> = rules.deny.iter().map(|text| text.to_lowercase()).collect();
    captions.iter().map(|caption| check_caption(rules, &deny, caption)).collect()
}

fn check_caption(rules: &CaptionRules, deny: &[String], caption: &str) -> Option<Finding> {
    let found = |rule, detail| Some(Finding { rule, reason: RejectReason::CaptionRule, detail });
    let n_words = caption.split_whitespace().count();
    let n_chars = caption.chars().count();
    let ranges = [
        ("caption.min_words", rules.min_words, n_words, "words", true),
        ("caption.max_words", rules.max_words, n_words, "words", false),
        ("caption.min_chars", rules.min_chars, n_chars, "characters", true),
        ("caption.max_chars", rules.max_chars, n_chars, "characters", false),
    ];
    for (rule, limit, n, unit, is_least) in ranges {
        if let Some(limit) = limit
            && (if is_least { n < limit } else { n > limit })
        {
            let wanted = if is_least { "at least" } else { "at most" };
            return found(rule, format!("`{}` has {n} {unit}, wanted {wanted} {limit}", shortened(caption)));
        }
    }
    let lower = if deny.is_empty() { String::new() } else { caption.to_lowercase() };
    let denied = deny.iter().find(|text| lower.contains(text.as_str()))?;
    found("caption.deny", format!("`{}` holds `{denied}`", shortened(caption)))
}

/// The first words of a caption, for messages.
fn shortened(caption: &str) -> String {
    const LETTERS: usize = 60;
    match caption.char_indices().nth(LETTERS) {
        Some((at, _)) => format!("{}…", &caption[..at]),
        None => caption.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use imp_schemas::media::{AudioMeta, ImageMeta};

    use super::*;

    fn image(width: usize, height: usize) -> Facts {
        Facts::Image(ImageMeta { width, height, format: "jpeg", progressive: false, orientation: 1 })
    }

    #[test]
    fn a_medium_beyond_a_rule_is_found_and_one_at_the_limit_is_not() {
        let rules = CleanRules { max_aspect: Some(3.0), max_seconds: Some(2.0), ..CleanRules::default() };
        let sound = |duration: f64| {
            Facts::Audio(AudioMeta { sampling_rate: 8000, channels: 1, num_samples: 1, duration, codec: "flac".into() })
        };
        let cases = [
            (image(300, 100), None),
            (image(100, 301), Some((RejectReason::AspectRatio, "max_aspect"))),
            (image(301, 100), Some((RejectReason::AspectRatio, "max_aspect"))),
            (sound(2.0), None),
            (sound(2.1), Some((RejectReason::TooLarge, "max_seconds"))),
        ];
        for (facts, wanted) in cases {
            let got = check_medium(&rules, &facts);
            assert_eq!(got.as_ref().map(|f| (f.reason, f.rule)), wanted, "{facts:?}");
            assert_eq!(check_medium(&CleanRules::default(), &facts), None);
        }
    }

    #[test]
    fn each_caption_is_held_to_every_rule() {
        let rules = CaptionRules {
            min_words: Some(2),
            max_words: Some(4),
            min_chars: Some(5),
            max_chars: Some(20),
            deny: vec!["Shutterstock".to_owned(), "http://".to_owned()],
        };
        let cases = [
            ("a dog runs", None),
            ("dog", Some("caption.min_words")),
            ("a b c d e", Some("caption.max_words")),
            ("é ü", Some("caption.min_chars")),
            ("aaaaaaaaaaaa bbbbbbbbbbbb", Some("caption.max_chars")),
            ("by SHUTTERSTOCK", Some("caption.deny")),
            ("see http://x", Some("caption.deny")),
        ];
        let captions: Vec<String> = cases.iter().map(|(caption, _)| (*caption).to_owned()).collect();
        for (got, (caption, wanted)) in check_captions(&rules, &captions).into_iter().zip(cases) {
            assert_eq!(got.map(|f| f.rule), wanted, "{caption}");
        }
    }
}
