//! One record's bytes → what is stored of it, or why it is not kept.
//!
//! In: a planned record and its medium. Out: [`Record`]s whose media were decoded in full, after whatever the corpus's rules
//! did to them. Never: I/O, a panic on data.

use std::panic::{AssertUnwindSafe, catch_unwind};

use imp_schemas::reject::RejectReason;
use imp_schemas::shard::Digest;

use crate::config::CorpusConfig;
use crate::filter::{self, Finding, picture_hash};
use crate::media::{Stored, prepare};
use crate::plan::Planned;
use crate::text::Refusal;
use crate::tokenizer::CaptionTokenizer;

pub(crate) use crate::media::Facts;

/// What only the medium and the captions' ids add to a [`Planned`] record.
#[derive(Debug)]
pub(crate) struct Record {
    /// What the record's key has behind it: empty, or `#0003` for the clip of window 3.
    pub(crate) key_suffix: String,
    pub(crate) facts: Facts,
    pub(crate) digest: Digest,
    /// Those that the rules leave.
    pub(crate) captions: Vec<String>,
    /// Of each caption.
    pub(crate) tokens: Vec<Vec<i32>>,
    /// Perceptual, of a picture; if the rules compare pictures.
    pub(crate) picture_hash: Option<u64>,
    /// What was done to the medium: `baseline`, `metadata`, `baseline+metadata`, `reencode`, `remux`, `clip` or `flac`.
    pub(crate) normalised: Option<String>,
    /// Rules that the record or one of its captions breaks: what a dry run would have dropped, and captions that were.
    pub(crate) findings: Vec<Finding>,
    pub(crate) media: Vec<u8>,
}

/// Decodes `media` in full, holds it and its captions to the corpus's rules, changes it as they say and tokenises what is
/// left of the captions. One record comes of it, or one for each clip of a film that is cut.
pub(crate) fn verify(
    corpus: &CorpusConfig,
    tokenizer: &CaptionTokenizer,
    planned: &Planned,
    media: Vec<u8>,
) -> Result<Vec<Record>, (Refusal, Vec<u8>)> {
    // A library may panic on bytes that nobody foresaw; that costs the record, not the run.
    let prepared = catch_unwind(AssertUnwindSafe(|| checked(corpus, tokenizer, planned, &media)));
    let panicked = || Err((RejectReason::Corrupt, "the decoder panicked on these bytes".to_owned()));
    match prepared.unwrap_or_else(|_| panicked()) {
        Ok((words, stored)) => Ok(records(words, stored, media)),
        Err(refusal) => Err((refusal, media)),
    }
}

/// What the records of one medium have in common.
struct Words {
    captions: Vec<String>,
    tokens: Vec<Vec<i32>>,
    findings: Vec<Finding>,
}

type Checked = (Words, Vec<(Stored, Option<u64>)>);

fn checked(
    corpus: &CorpusConfig,
    tokenizer: &CaptionTokenizer,
    planned: &Planned,
    media: &[u8],
) -> Result<Checked, Refusal> {
    let clean = &corpus.clean;
    let mut findings = Vec::new();
    let captions = settle_captions(corpus, planned, &mut findings)?;
    let mut accept = |facts: &Facts| {
        check_size(corpus, facts)?;
        match filter::check_medium(clean, facts) {
            Some(finding) if !clean.dry => Err(finding.into()),
            finding => {
                findings.extend(finding);
                Ok(())
            }
        }
    };
    let stored = prepare(corpus.kind, media, &corpus.media, &corpus.limits.media(), &mut accept)?;
    let tokens: Result<Vec<Vec<i32>>, Refusal> = captions.iter().map(|c| tokenizer.encode(c)).collect();
    let wants_hash = clean.wants_picture_hash();
    let hash = |stored: &Stored| stored.pixels.as_ref().filter(|_| wants_hash).and_then(picture_hash);
    let stored = stored.into_iter().map(|stored| {
        let hash = hash(&stored);
        (stored, hash)
    });
    Ok((Words { captions, tokens: tokens?, findings }, stored.collect()))
}

/// The captions that pass; refused if none is left of some, label or not: its captions are what the record is for.
fn settle_captions(
    corpus: &CorpusConfig,
    planned: &Planned,
    findings: &mut Vec<Finding>,
) -> Result<Vec<String>, Refusal> {
    let broken = filter::check_captions(&corpus.clean.caption, &planned.captions);
    let passes: Vec<bool> = broken.iter().map(Option::is_none).collect();
    let first = broken.iter().flatten().next().cloned();
    findings.extend(broken.into_iter().flatten());
    if corpus.clean.dry {
        return Ok(planned.captions.clone());
    }
    match first {
        Some(finding) if !passes.contains(&true) => Err(finding.into()),
        _ => Ok(planned.captions.iter().zip(passes).filter(|(_, passes)| *passes).map(|(c, _)| c.clone()).collect()),
    }
}

fn records(words: Words, stored: Vec<(Stored, Option<u64>)>, media: Vec<u8>) -> Vec<Record> {
    let Words { captions, tokens, findings } = words;
    let record = |(stored, picture_hash): (Stored, Option<u64>), media: Vec<u8>| Record {
        key_suffix: stored.window_idx.map(|window| format!("#{window:04}")).unwrap_or_default(),
        facts: stored.facts,
        digest: Digest::of(&media),
        captions: captions.clone(),
        tokens: tokens.clone(),
        picture_hash,
        normalised: stored.normalised,
        findings: Vec::new(),
        media,
    };
    // The source's bytes go to the one record that stores them as they are.
    let mut source = Some(media);
    let mut records: Vec<Record> = stored
        .into_iter()
        .filter_map(|(mut stored, hash)| {
            let media = stored.changed.take().or_else(|| source.take())?;
            Some(record((stored, hash), media))
        })
        .collect();
    // Counted once, whatever the number of clips.
    if let Some(first) = records.first_mut() {
        first.findings = findings;
    }
    records
}

fn check_size(corpus: &CorpusConfig, facts: &Facts) -> Result<(), Refusal> {
    let limits = &corpus.limits;
    let (side, seconds) = match facts {
        Facts::Image(image) => (Some(image.width.min(image.height)), None),
        Facts::Video(video) => (Some(video.width.min(video.height)), Some(video.duration)),
        Facts::Audio(audio) => (None, Some(audio.duration)),
    };
    let too_small = |detail: String| Err((RejectReason::TooSmall, detail));
    match (side, seconds) {
        (Some(side), _) if side < limits.min_side => {
            too_small(format!("its shorter side has {side} pixels, the limit is {}", limits.min_side))
        }
        (_, Some(seconds)) if seconds < limits.min_seconds => {
            too_small(format!("it lasts {seconds:.3} s, the limit is {} s", limits.min_seconds))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use image::RgbImage;
    use imp_schemas::run_file::RunFile;
    use testkit::media::{mp4_bytes, png_bytes};

    use super::*;
    use crate::config::{IngestConfig, TokenizerSpec};
    use crate::corpus::Place;

    /// What becomes of `media` and `captions` under the rules of a `[[ingest.corpus]]` table.
    fn check(kind: &str, rules: &str, media: &[u8], captions: &[&str]) -> Result<Vec<Record>, Refusal> {
        let text = format!(
            "store = \"s\"\nrun = \"r\"\n[[ingest.corpus]]\nname = \"a\"\nkind = \"{kind}\"\npath = \"x\"\n{rules}\n"
        );
        let file: RunFile = toml::from_str(&text).unwrap();
        let config = IngestConfig::of(&file, Path::new("run.toml")).unwrap();
        let words: Vec<String> = captions.iter().map(|&c| c.to_owned()).collect();
        let tokenizer = CaptionTokenizer::train(&TokenizerSpec::default(), &mut words.clone().into_iter()).unwrap();
        let medium = Place::File { file: Arc::from(Path::new("x")), offset: 0, len: media.len() as u64 };
        let planned = Planned {
            key: "k".to_owned(),
            source: "x".to_owned(),
            row: 0,
            listed_in: None,
            captions: words,
            label_ids: Vec::new(),
            medium,
        };
        verify(&config.corpora[0], &tokenizer, &planned, media.to_vec()).map_err(|(refusal, bytes)| {
            assert_eq!(bytes, media);
            refusal
        })
    }

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 3) as u8, (y * 5) as u8, 90]))
    }

    #[test]
    fn captions_that_break_a_rule_are_dropped_and_the_record_with_the_last() {
        let media = png_bytes(&picture(40, 30)).unwrap();
        let rules = "clean = { caption = { min_words = 3 } }";
        let record = check("image-text", rules, &media, &["a red dog", "dog", "two red dogs run"]).unwrap().remove(0);
        assert_eq!(record.captions, ["a red dog", "two red dogs run"]);
        assert_eq!((record.tokens.len(), record.findings.len()), (2, 1));
        assert_eq!(record.findings[0].rule, "caption.min_words");
        let (reason, detail) = check("image-text", rules, &media, &["dog", "cat"]).unwrap_err();
        assert_eq!(reason, RejectReason::CaptionRule);
        assert!(detail.contains("`dog` has 1 words"), "{detail}");
        let dry = "clean = { dry = true, max_aspect = 1.1, caption = { min_words = 3 } }";
        let record = check("image-text", dry, &media, &["dog"]).unwrap().remove(0);
        let found: Vec<&str> = record.findings.iter().map(|finding| finding.rule).collect();
        assert_eq!((record.captions, found), (vec!["dog".to_owned()], vec!["caption.min_words", "max_aspect"]));
    }

    #[test]
    fn what_a_record_says_of_its_medium_is_true_of_the_bytes_that_are_stored() {
        let media = png_bytes(&picture(400, 300)).unwrap();
        let rules = "reencode = { shorter_side = 30 }\nclean = { near = { picture_bits = 6, caption_jaccard = 0.9 } }";
        let record = check("image-text", rules, &media, &["a red dog"]).unwrap().remove(0);
        let Facts::Image(facts) = &record.facts else { panic!() };
        assert_eq!((facts.width, facts.height, facts.format), (40, 30, "jpeg"));
        assert_eq!((record.digest, record.normalised.as_deref()), (Digest::of(&record.media), Some("reencode")));
        assert!(record.picture_hash.is_some());
        let record = check("image-text", "", &media, &["a red dog"]).unwrap().remove(0);
        assert_eq!((&record.media, record.normalised, record.key_suffix.as_str()), (&media, None, ""));
        assert!(record.picture_hash.is_none());
    }

    #[test]
    fn clips_have_keys_of_their_own_and_the_captions_of_their_film() {
        let frames: Vec<RgbImage> = (0..20).map(|i| picture(64 + 2 * (i / 40), 48)).collect();
        let media = mp4_bytes(&frames, 10.0).unwrap();
        let rules = "clip = { seconds = 1.0, stride_seconds = 1.0 }";
        let records = check("video-text", rules, &media, &["a red dog"]).unwrap();
        let keys: Vec<&str> = records.iter().map(|record| record.key_suffix.as_str()).collect();
        assert_eq!(keys, ["#0000", "#0001"]);
        assert!(records.iter().all(|record| record.captions == ["a red dog"] && record.tokens.len() == 1));
    }
}
