//! What becomes of a medium between its corpus and its shard: kept, written anew without loss, or made smaller.
//!
//! In: the bytes of one medium and the corpus's rules. Out: what is stored, with what its planning columns say. The source was
//! decoded in full, and so was whatever bytes of it were put together anew; of a picture that was coded from pixels the tests
//! hold that it decodes, which saves a third of the time.
//! Never: a lossless change whose pixels, frames or samples differ (such a change is not made), I/O.

mod chunks;
mod clips;
mod coefficients;
pub(crate) mod config;
mod exif;
mod flac;
mod jpeg;
pub(crate) mod pixels;
mod remux;
mod shrink;

use imp_schemas::media::{
    AudioMeta, ImageMeta, MediaError, MediaLimits, Needed, Planes, VideoMeta, check_audio, read_audio, read_image,
    read_planes, read_video,
};
use imp_schemas::modality::RecordKind;
use imp_schemas::reject::RejectReason;

use self::config::{MediaRules, MetadataRule, PictureFormat, Reencode, VideoRule};
use self::pixels::Pixels;
use crate::text::Refusal;

/// What decoding found.
#[derive(Debug)]
pub(crate) enum Facts {
    Image(ImageMeta),
    Video(VideoMeta),
    Audio(AudioMeta),
}

/// A medium as it enters a shard.
#[derive(Debug)]
pub(crate) struct Stored {
    /// What is stored in place of the source's bytes; `None` for those as they are.
    pub(crate) changed: Option<Vec<u8>>,
    /// Of what is stored.
    pub(crate) facts: Facts,
    /// Its pixels, of a picture: as decoded, or as coded.
    pub(crate) pixels: Option<Pixels>,
    /// What was done, in the order it was done, `+` between; `None` if nothing was.
    pub(crate) normalised: Option<String>,
    /// Number of the clip's window, if the medium was cut.
    pub(crate) window_idx: Option<usize>,
}

impl Stored {
    fn as_is(facts: Facts) -> Self {
        Self { changed: None, facts, pixels: None, normalised: None, window_idx: None }
    }

    fn changed(bytes: Vec<u8>, facts: Facts, done: &str) -> Self {
        Self { changed: Some(bytes), normalised: Some(done.to_owned()), ..Self::as_is(facts) }
    }
}

/// May refuse a medium for what its source is, before anything is done to it.
pub(crate) type Accept<'a> = dyn FnMut(&Facts) -> Result<(), Refusal> + 'a;

/// Decodes `bytes` and does what `rules` say: one medium gives one stored medium, a film that is cut one for each clip.
///
/// # Errors
/// The source does not decode, `accept` refuses it, or it cannot be coded anew as asked. A lossless change that is not
/// possible is no error: the medium stays as it is, and `normalised` does not name the change.
pub(crate) fn prepare(
    kind: RecordKind,
    bytes: &[u8],
    rules: &MediaRules,
    limits: &MediaLimits,
    accept: &mut Accept<'_>,
) -> Result<Vec<Stored>, Refusal> {
    match kind {
        RecordKind::ImageText => Ok(vec![image(bytes, rules, limits, accept)?]),
        RecordKind::VideoText => video(bytes, rules, limits, accept),
        RecordKind::AudioText => Ok(vec![audio(bytes, rules, limits, accept)?]),
    }
}

fn refusal(error: MediaError) -> Refusal {
    (error.reason(), error.to_string())
}

fn image(bytes: &[u8], rules: &MediaRules, limits: &MediaLimits, accept: &mut Accept<'_>) -> Result<Stored, Refusal> {
    let (meta, pixels) = decoded(bytes, rules.reencode.as_ref(), limits).map_err(refusal)?;
    let facts = Facts::Image(meta.clone());
    accept(&facts)?;
    if let Some(rule) = &rules.reencode
        && let Some((smaller, meta, pixels)) = shrink::shrink(&pixels, rule).map_err(refusal)?
    {
        return Ok(Stored { pixels: Some(pixels), ..Stored::changed(smaller, Facts::Image(meta), "reencode") });
    }
    let rule = rules.normalise;
    let strips = rule.metadata == MetadataRule::Strip;
    let changed = match meta.format {
        "jpeg" => jpeg::normalise(bytes, meta.progressive, meta.orientation, rule.jpeg, rule.metadata),
        "png" if strips => chunks::strip_png(bytes, meta.orientation).map(|bytes| (bytes, vec!["metadata"])),
        "webp" if strips => chunks::strip_webp(bytes, meta.orientation).map(|bytes| (bytes, vec!["metadata"])),
        _ => None,
    };
    // The promise is held for every single picture: same pixels, same orientation, or no change.
    if let Some((changed, done)) = changed
        && let Ok((new_meta, new_picture)) = read_image(&changed, limits)
        && Pixels::Rgb(new_picture) == pixels
        && new_meta.orientation == meta.orientation
    {
        let stored = Stored::changed(changed, Facts::Image(new_meta), &done.join("+"));
        return Ok(Stored { pixels: Some(pixels), ..stored });
    }
    Ok(Stored { pixels: Some(pixels), ..Stored::as_is(facts) })
}

/// A picture that becomes a smaller JPEG comes in planes if it has them: no colour is converted back and forth, and of one that
/// becomes much smaller only as much is computed as leaves the last half to the resize, as Pillow's thumbnails are made.
fn decoded(bytes: &[u8], rule: Option<&Reencode>, limits: &MediaLimits) -> Result<(ImageMeta, Pixels), MediaError> {
    if let Some(rule) = rule.filter(|rule| rule.format == PictureFormat::Jpeg) {
        let needed = |width, height| {
            let (w, h) = shrink::target(width, height, rule)?;
            Some(Needed { at_least: (2 * w, 2 * h), columns: 0..width, rows: 0..height })
        };
        let mut planes = Planes::default();
        if let Some(meta) = read_planes(bytes, limits, &mut planes, needed)? {
            return Ok((meta, Pixels::Planes(planes)));
        }
    }
    read_image(bytes, limits).map(|(meta, picture)| (meta, Pixels::Rgb(picture)))
}

fn video(
    bytes: &[u8],
    rules: &MediaRules,
    limits: &MediaLimits,
    accept: &mut Accept<'_>,
) -> Result<Vec<Stored>, Refusal> {
    // Samples are copied byte for byte, so it is enough to decode what will be stored.
    let remuxed = match rules.normalise.video {
        VideoRule::Remux => remux::remux(bytes, limits).ok().filter(|remuxed| remuxed != bytes),
        VideoRule::Keep => None,
    };
    let decoded = remuxed.and_then(|remuxed| read_video(&remuxed, limits).ok().map(|meta| (remuxed, meta)));
    let (meta, remuxed) = match decoded {
        Some((remuxed, meta)) => (meta, Some(remuxed)),
        None => (read_video(bytes, limits).map_err(refusal)?, None),
    };
    let facts = Facts::Video(meta.clone());
    accept(&facts)?;
    let Some(rule) = &rules.clip else {
        return Ok(vec![match remuxed {
            Some(remuxed) => Stored::changed(remuxed, facts, "remux"),
            None => Stored::as_is(facts),
        }]);
    };
    if meta.codec != "h264" {
        // Others may open a group of pictures with frames that need the group before: a clip would lose them.
        let detail = format!("`clip` cuts H.264 at its keyframes, this film is {}; re-encode it first", meta.codec);
        return Err((RejectReason::UnsupportedCodec, detail));
    }
    let clips = clips::cut(remuxed.as_deref().unwrap_or(bytes), &meta, rule, limits).map_err(refusal)?;
    let stored = clips.into_iter().map(|cut| {
        let meta = read_video(&cut.bytes, limits).map_err(refusal)?;
        let stored = Stored::changed(cut.bytes, Facts::Video(meta), "clip");
        Ok(Stored { window_idx: Some(cut.window_idx), ..stored })
    });
    stored.collect()
}

fn audio(bytes: &[u8], rules: &MediaRules, limits: &MediaLimits, accept: &mut Accept<'_>) -> Result<Stored, Refusal> {
    if !rules.flac {
        let facts = Facts::Audio(check_audio(bytes, limits).map_err(refusal)?);
        accept(&facts)?;
        return Ok(Stored::as_is(facts));
    }
    let (meta, waveform) = read_audio(bytes, limits).map_err(refusal)?;
    accept(&Facts::Audio(meta))?;
    let coded = flac::to_flac(waveform).map_err(refusal)?;
    let meta = check_audio(&coded, limits).map_err(refusal)?;
    Ok(Stored::changed(coded, Facts::Audio(meta), "flac"))
}

#[cfg(test)]
mod tests;
