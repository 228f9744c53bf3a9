//! One record's bytes → what its planning columns say, or why it is not kept.
//!
//! In: a planned record and its medium. Out: a [`Record`] whose medium was decoded in full. Never: I/O, a panic on data.

use std::panic::{AssertUnwindSafe, catch_unwind};

use imp_schemas::media::{AudioMeta, ImageMeta, MediaError, VideoMeta, read_audio, read_image, read_video};
use imp_schemas::modality::RecordKind;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::Digest;

use crate::config::CorpusConfig;
use crate::plan::Planned;
use crate::text::Refusal;
use crate::tokenizer::CaptionTokenizer;

/// What decoding found.
#[derive(Debug)]
pub(crate) enum Facts {
    Image(ImageMeta),
    Video(VideoMeta),
    Audio(AudioMeta),
}

/// What only the medium and the captions' ids add to a [`Planned`] record.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) facts: Facts,
    pub(crate) digest: Digest,
    /// Of each caption.
    pub(crate) tokens: Vec<Vec<i32>>,
    /// Perceptual, of a picture.
    pub(crate) picture_hash: Option<u64>,
    /// What was done to the medium.
    pub(crate) normalised: Option<String>,
    pub(crate) media: Vec<u8>,
}

/// Decodes `media` in full and tokenises the captions.
pub(crate) fn verify(
    corpus: &CorpusConfig,
    tokenizer: &CaptionTokenizer,
    planned: &Planned,
    media: Vec<u8>,
) -> Result<Record, (Refusal, Vec<u8>)> {
    let facts = decode(corpus, &media).and_then(|facts| check_size(corpus, facts));
    let words = facts.and_then(|facts| {
        let tokens: Result<Vec<Vec<i32>>, Refusal> = planned.captions.iter().map(|c| tokenizer.encode(c)).collect();
        Ok((facts, tokens?))
    });
    match words {
        Ok((facts, tokens)) => {
            Ok(Record { facts, digest: Digest::of(&media), tokens, picture_hash: None, normalised: None, media })
        }
        Err(refusal) => Err((refusal, media)),
    }
}

fn decode(corpus: &CorpusConfig, media: &[u8]) -> Result<Facts, Refusal> {
    let limits = corpus.limits.media();
    // A decoder of a library may panic on bytes that nobody foresaw; that costs the record, not the run.
    let facts = catch_unwind(AssertUnwindSafe(|| {
        Ok(match corpus.kind {
            RecordKind::ImageText => Facts::Image(read_image(media, &limits)?.0),
            RecordKind::VideoText => Facts::Video(read_video(media, &limits)?),
            RecordKind::AudioText => Facts::Audio(read_audio(media, &limits)?.0),
        })
    }));
    match facts {
        Ok(facts) => facts.map_err(|error: MediaError| (error.reason(), error.to_string())),
        Err(_) => Err((RejectReason::Corrupt, "the decoder panicked on these bytes".to_owned())),
    }
}

fn check_size(corpus: &CorpusConfig, facts: Facts) -> Result<Facts, Refusal> {
    let limits = &corpus.limits;
    let (side, seconds) = match &facts {
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
        _ => Ok(facts),
    }
}
