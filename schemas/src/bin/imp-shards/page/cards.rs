//! One record as a card.
//!
//! In: a row with its medium. Out: what the template shows; every medium inside it as a `data:` address. Never: a text that is
//! not escaped by the template, a medium that does not decode and is passed over: its card says why.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use imp_schemas::media::{MediaError, MediaLimits, read_audio, read_frames, read_image, read_video};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::column;
use serde::Serialize;

use super::{pictures, sound};
use crate::ShardsError;
use crate::rows::Rows;

/// A medium up to this size is put into the page whole, so that it plays.
const MAX_INLINE_BYTES: usize = 160 << 10;
const STRIP_FRAMES: usize = 6;

/// What the page shows of one row.
#[derive(Debug, Serialize)]
pub(super) struct Card {
    key: String,
    source: String,
    split: String,
    labels: Vec<String>,
    captions: Vec<String>,
    /// Size, length, format, bytes.
    facts: Vec<String>,
    /// HTML of our own making: addresses in base64 and numbers, nothing from the corpus.
    medium: String,
    /// Why there is no medium.
    broken: Option<String>,
    /// Ids of the longest caption.
    n_tokens: usize,
}

/// The card of row `i`.
///
/// # Errors
/// A column has another type than its schema says.
pub(super) fn card(rows: &Rows<'_>, i: usize, kind: RecordKind) -> Result<Card, ShardsError> {
    let text = |name| Ok::<_, ShardsError>(rows.texts(name)?[i].map(str::to_owned));
    let bytes = rows.media(kind)?[i].unwrap_or_default();
    let drawn = match kind {
        RecordKind::ImageText => picture(bytes),
        RecordKind::VideoText => film(bytes),
        RecordKind::AudioText => tone(bytes),
    };
    let (medium, mut facts, broken) = match drawn {
        Ok((medium, facts)) => (medium, facts, None),
        Err(error) => (String::new(), Vec::new(), Some(error.to_string())),
    };
    facts.push(super::human_bytes(bytes.len() as u64));
    let captions = rows.captions()?.swap_remove(i).into_iter().map(|c| c.unwrap_or_default().to_owned()).collect();
    Ok(Card {
        key: text(column::KEY)?.unwrap_or_default(),
        source: text(column::SOURCE)?.unwrap_or_default(),
        split: text(column::SPLIT)?.unwrap_or_default(),
        labels: rows.labels()?.swap_remove(i).into_iter().map(str::to_owned).collect(),
        captions,
        facts,
        medium,
        broken,
        n_tokens: rows.tokens()?.swap_remove(i).iter().map(Vec::len).max().unwrap_or(0),
    })
}

type Drawn = Result<(String, Vec<String>), MediaError>;

fn data_uri(mime: &str, bytes: &[u8]) -> String {
    format!("data:{mime};base64,{}", STANDARD.encode(bytes))
}

fn img(class: &str, alt: &str, jpeg: Option<Vec<u8>>) -> String {
    let address = jpeg.map_or_else(String::new, |jpeg| data_uri("image/jpeg", &jpeg));
    format!("<img class=\"{class}\" alt=\"{alt}\" src=\"{address}\">")
}

fn picture(bytes: &[u8]) -> Drawn {
    let (meta, picture) = read_image(bytes, &MediaLimits::default())?;
    let mut facts = vec![format!("{} × {}", meta.width, meta.height), meta.format.to_owned()];
    if meta.progressive {
        facts.push("progressive".to_owned());
    }
    Ok((img("picture", "picture", pictures::thumb(picture)), facts))
}

/// Frames from first to last, and the clip itself where it is small.
fn film(bytes: &[u8]) -> Drawn {
    let limits = MediaLimits::default();
    let meta = read_video(bytes, &limits)?;
    let last = meta.num_frames.saturating_sub(1);
    let wanted: Vec<usize> = (0..STRIP_FRAMES).map(|i| i * last / (STRIP_FRAMES - 1)).collect();
    let mut frames = Vec::new();
    read_frames(bytes, &wanted, &limits, &mut |_, frame| frames.extend(pictures::frame(frame)))?;
    let mut html = img("sheet", "six frames, first to last", pictures::sheet(&frames));
    let is_mp4 = bytes.get(4..8) == Some(b"ftyp");
    if is_mp4 && bytes.len() <= MAX_INLINE_BYTES {
        let address = data_uri("video/mp4", bytes);
        html = format!(
            "<div class=\"film\">{html}<video muted loop playsinline preload=\"none\" src=\"{address}\"></video></div>"
        );
    }
    let mut facts = vec![
        format!("{} × {}", meta.width, meta.height),
        format!("{} frames", meta.num_frames),
        format!("{:.1} s", meta.duration),
        format!("{:.3} fps", meta.fps).replace(".000", ""),
        meta.codec,
    ];
    if meta.has_audio {
        facts.push("with sound".to_owned());
    }
    Ok((html, facts))
}

/// Waveform over spectrogram, and a player where the sound is small.
fn tone(bytes: &[u8]) -> Drawn {
    let (meta, wave) = read_audio(bytes, &MediaLimits::default())?;
    let mut html = sound::waveform(&wave.samples);
    if let Some(png) = sound::spectrogram(&wave.samples, wave.sampling_rate) {
        let address = data_uri("image/png", &png);
        html.push_str(&format!("<img class=\"spectrum\" alt=\"spectrogram\" src=\"{address}\">"));
    }
    if bytes.len() <= MAX_INLINE_BYTES {
        let address = data_uri(sound_mime(bytes), bytes);
        html.push_str(&format!("<audio controls preload=\"none\" src=\"{address}\"></audio>"));
    }
    let channels = match meta.channels {
        1 => "mono".to_owned(),
        2 => "stereo".to_owned(),
        n => format!("{n} channels"),
    };
    let rate = format!("{} kHz", f64::from(meta.sampling_rate) / 1000.0);
    Ok((html, vec![format!("{:.2} s", meta.duration), rate, channels, meta.codec]))
}

fn sound_mime(bytes: &[u8]) -> &'static str {
    match bytes {
        [b'R', b'I', b'F', b'F', ..] => "audio/wav",
        [b'f', b'L', b'a', b'C', ..] => "audio/flac",
        [b'O', b'g', b'g', b'S', ..] => "audio/ogg",
        [_, _, _, _, b'f', b't', b'y', b'p', ..] => "audio/mp4",
        _ => "audio/mpeg",
    }
}
