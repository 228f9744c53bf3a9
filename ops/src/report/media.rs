//! Retrieved records as cards: a picture, a film strip, a sound with its waveform.
//!
//! In: rows of a split. Out: HTML parts with everything inside them as `data:` URIs. Never: a row's bytes larger than a
//! page can carry; what is too large is shown smaller, or only drawn.

use std::fmt::Write as _;
use std::io::Cursor;

use arrow::array::{Array, AsArray, RecordBatch};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::RgbImage;
use imp_schemas::media::{MediaLimits, Picture, read_audio, read_frames, read_image, read_video};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, media_column};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::{Snapshot, Store};
use serde_json::{Value, json};

use super::scores::Retrieved;
use crate::error::OpsError;

/// Larger media are not put into the page as they are.
const MAX_INLINE_BYTES: usize = 160 << 10;
/// Longer side of a picture in the page, pixels.
const THUMB_SIDE: u32 = 160;
const STRIP_FRAMES: usize = 6;
const STRIP_SIDE: u32 = 64;
/// Columns of a waveform.
const WAVE_COLUMNS: usize = 120;

/// The rows of one split, opened shard by shard as they are asked for.
pub struct Shelf {
    store: Store,
    snapshot: Snapshot,
    corpus: String,
    split: String,
    /// By index of the shard in the split.
    open: Vec<Option<ShardReader>>,
}

impl Shelf {
    /// # Errors
    /// The corpus or the split is not in the store.
    pub fn open(store: &Store, corpus: &str, split: &str) -> Result<Self, OpsError> {
        let snapshot = store.manifest(corpus)?;
        let n_shards = snapshot.manifest.shards.iter().filter(|s| s.split == split).count();
        let (corpus, split) = (corpus.to_owned(), split.to_owned());
        Ok(Self { store: store.clone(), snapshot, corpus, split, open: vec![None; n_shards] })
    }

    /// The card of one retrieved record.
    ///
    /// # Errors
    /// The store failed, or the shard cannot be read. A medium that does not decode gives a card that says so.
    pub fn card(&mut self, found: &Retrieved) -> Result<Value, OpsError> {
        let kind = self.snapshot.manifest.kind;
        let Some(batch) = self.row(found.row, &[column::KEY, column::CAPTIONS, column::LABEL, media_column(kind)])?
        else {
            return Ok(json!({ "html": "", "caption": "not in this store", "correct": found.correct }));
        };
        let bytes = media_bytes(&batch, kind).unwrap_or_default();
        let html = match kind {
            RecordKind::ImageText => picture(bytes),
            RecordKind::VideoText => film(bytes),
            RecordKind::AudioText => sound(bytes),
        };
        Ok(json!({
            "html": html.unwrap_or_else(|| "<p class=\"broken\">does not decode</p>".to_owned()),
            "caption": caption(&batch),
            "score": format!("{:.2}", found.score),
            "correct": found.correct,
        }))
    }

    /// One row of the split, counted over its shards in the manifest's order; `None` past its end.
    fn row(&mut self, row: u64, columns: &[&str]) -> Result<Option<RecordBatch>, OpsError> {
        let shards = self.snapshot.manifest.shards.iter().filter(|s| s.split == self.split);
        let mut first = 0;
        for (shard_idx, entry) in shards.enumerate() {
            if row < first + entry.n_rows {
                let reader = match self.open[shard_idx].take() {
                    Some(reader) => reader,
                    None => ShardReader::open(&self.store, &self.corpus, entry)?,
                };
                let batch = reader.read(&[row - first], columns)?;
                self.open[shard_idx] = Some(reader);
                return Ok(Some(batch));
            }
            first += entry.n_rows;
        }
        Ok(None)
    }
}

fn media_bytes(batch: &RecordBatch, kind: RecordKind) -> Option<&[u8]> {
    let medium = batch.column_by_name(media_column(kind))?.as_struct_opt()?;
    let bytes = medium.column_by_name(column::MEDIA_BYTES)?.as_binary_opt::<i32>()?;
    (!bytes.is_empty() && bytes.is_valid(0)).then(|| bytes.value(0))
}

/// The label, else the first caption.
fn caption(batch: &RecordBatch) -> String {
    let label = batch.column_by_name(column::LABEL).and_then(|c| c.as_string_opt::<i32>());
    if let Some(label) = label.filter(|label| !label.is_empty() && label.is_valid(0)) {
        return label.value(0).to_owned();
    }
    let captions = batch.column_by_name(column::CAPTIONS).and_then(|c| c.as_list_opt::<i32>());
    let first =
        captions.filter(|captions| !captions.is_empty() && captions.is_valid(0)).map(|captions| captions.value(0));
    let first = first.as_ref().and_then(|first| first.as_string_opt::<i32>()).filter(|first| !first.is_empty());
    first.map_or_else(String::new, |first| first.value(0).to_owned())
}

fn data_uri(mime: &str, bytes: &[u8]) -> String {
    format!("data:{mime};base64,{}", STANDARD.encode(bytes))
}

fn picture(bytes: &[u8]) -> Option<String> {
    let (meta, picture) = read_image(bytes, &MediaLimits::default()).ok()?;
    let is_small = bytes.len() <= MAX_INLINE_BYTES && meta.orientation == 1;
    let uri = match meta.format {
        "jpeg" | "png" | "webp" | "gif" if is_small => data_uri(&format!("image/{}", meta.format), bytes),
        _ => data_uri("image/jpeg", &thumb(picture, THUMB_SIDE)?),
    };
    Some(format!("<img src=\"{uri}\" alt=\"\">"))
}

/// Shrinks to `side` pixels at most; JPEG.
fn thumb(picture: Picture, side: u32) -> Option<Vec<u8>> {
    let picture = RgbImage::from_raw(picture.width as u32, picture.height as u32, picture.rgb)?;
    let scale = (f64::from(side) / f64::from(picture.width().max(picture.height()))).min(1.0);
    let size = |n: u32| ((f64::from(n) * scale).round() as u32).max(1);
    let small = image::imageops::thumbnail(&picture, size(picture.width()), size(picture.height()));
    jpeg(&small)
}

fn jpeg(picture: &RgbImage) -> Option<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Jpeg).ok()?;
    Some(bytes.into_inner())
}

/// Frames from first to last side by side, and the clip itself where it is small.
fn film(bytes: &[u8]) -> Option<String> {
    let limits = MediaLimits::default();
    let meta = read_video(bytes, &limits).ok()?;
    let last = meta.num_frames.checked_sub(1)?;
    let wanted: Vec<usize> = (0..STRIP_FRAMES).map(|i| i * last / (STRIP_FRAMES - 1)).collect();
    let mut frames: Vec<RgbImage> = Vec::new();
    read_frames(bytes, &wanted, &limits, &mut |_, frame| {
        let whole = RgbImage::from_raw(frame.width as u32, frame.height as u32, frame.rgb);
        frames.extend(whole.map(|whole| {
            let width = (STRIP_SIDE * whole.width()).div_ceil(whole.height().max(1)).max(1);
            image::imageops::thumbnail(&whole, width, STRIP_SIDE)
        }));
    })
    .ok()?;
    let width: u32 = frames.iter().map(|f| f.width() + 2).sum();
    let mut strip = RgbImage::from_pixel(width.max(1), STRIP_SIDE, image::Rgb([24, 24, 24]));
    let mut x = 0;
    for frame in &frames {
        image::imageops::replace(&mut strip, frame, i64::from(x), 0);
        x += frame.width() + 2;
    }
    let mut html = String::new();
    if bytes.len() <= MAX_INLINE_BYTES {
        let uri = data_uri("video/mp4", bytes);
        let _ = write!(html, "<video src=\"{uri}\" autoplay loop muted playsinline></video>");
    }
    let _ = write!(html, "<img class=\"strip\" src=\"{}\" alt=\"frames\">", data_uri("image/jpeg", &jpeg(&strip)?));
    Some(html)
}

/// A player where the sound is small, and its waveform.
fn sound(bytes: &[u8]) -> Option<String> {
    let (meta, wave) = read_audio(bytes, &MediaLimits::default()).ok()?;
    let mut html = waveform(&wave.samples);
    if bytes.len() <= MAX_INLINE_BYTES {
        let mime = match bytes {
            [b'R', b'I', b'F', b'F', ..] => "audio/wav",
            [b'f', b'L', b'a', b'C', ..] => "audio/flac",
            [b'O', b'g', b'g', b'S', ..] => "audio/ogg",
            [_, _, _, _, b'f', b't', b'y', b'p', ..] => "audio/mp4",
            _ => "audio/mpeg",
        };
        let _ = write!(html, "<audio controls preload=\"none\" src=\"{}\"></audio>", data_uri(mime, bytes));
    }
    let _ = write!(html, "<small>{:.1} s, {}</small>", meta.duration, meta.codec);
    Some(html)
}

/// Least and greatest sample of each column.
fn waveform(samples: &[f32]) -> String {
    let per_column = samples.len().div_ceil(WAVE_COLUMNS).max(1);
    let peak = samples.iter().fold(1e-6_f32, |peak, s| peak.max(s.abs()));
    let mut path = String::new();
    for (x, column) in samples.chunks(per_column).enumerate() {
        let (low, high) = column.iter().fold((0.0_f32, 0.0_f32), |(low, high), &s| (low.min(s), high.max(s)));
        let _ = write!(path, "M{x}.5 {:.1}V{:.1}", 20.0 - 19.0 * high / peak, 20.5 - 19.0 * low / peak);
    }
    format!(
        "<svg class=\"wave\" viewBox=\"0 0 {WAVE_COLUMNS} 40\" preserveAspectRatio=\"none\"><path d=\"{path}\"/></svg>"
    )
}
