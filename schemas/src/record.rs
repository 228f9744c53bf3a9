//! Arrow columns of image-text, video-text and audio-text records.
//!
//! The types are the subset that Hugging Face `datasets`, DuckDB, Polars and pyarrow all open, with pictures and sounds
//! shown as such: a media column is a nullable struct of exactly `bytes` and `path`; no map, fixed-size binary, view, large
//! or extension type. Planning columns stand before the medium, so that one contiguous range serves them.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use crate::modality::RecordKind;

/// Names of the columns.
pub mod column {
    /// Unique in the corpus.
    pub const KEY: &str = "key";
    /// The file or tar member that the record was made from.
    pub const SOURCE: &str = "source";
    /// BLAKE3 of the media bytes, 64 hex digits.
    pub const DIGEST: &str = "digest";
    pub const BYTES_LEN: &str = "bytes_len";
    pub const SPLIT: &str = "split";
    /// One or more sentences, UTF-8.
    pub const CAPTIONS: &str = "captions";
    /// Token ids of each caption, in the same order; no padding, not cropped.
    pub const TOKENS: &str = "tokens";
    /// Ids of the longest caption. Since 1.1.
    pub const NUM_TOKENS: &str = "num_tokens";
    /// What ingest did to the medium, such as `jpeg_baseline`; null if it stands as it was found. Since 1.1.
    pub const NORMALISED: &str = "normalised";
    /// Perceptual hash of a picture, 64 bits; near pictures differ in few of them. Since 1.1.
    pub const PHASH: &str = "phash";
    /// Class name, the first one of several, null without one.
    pub const LABEL: &str = "label";
    /// Index into the manifest's classes, null without one.
    pub const LABEL_ID: &str = "label_id";
    /// Class names of a record with several, `label` first; null with fewer than two. Since 1.2.
    pub const LABELS: &str = "labels";
    /// Their indices into the manifest's classes, in the same order; null with fewer than two. Since 1.2.
    pub const LABEL_IDS: &str = "label_ids";
    /// Pixels, after EXIF orientation.
    pub const WIDTH: &str = "width";
    pub const HEIGHT: &str = "height";
    pub const FORMAT: &str = "format";
    pub const PROGRESSIVE: &str = "progressive";
    /// EXIF orientation, 1 to 8.
    pub const ORIENTATION: &str = "orientation";
    /// Frames per second.
    pub const FPS: &str = "fps";
    pub const NUM_FRAMES: &str = "num_frames";
    /// Seconds.
    pub const DURATION: &str = "duration";
    pub const CODEC: &str = "codec";
    /// Presentation time in microseconds and byte offset of every frame that decodes alone.
    pub const KEYFRAMES: &str = "keyframes";
    pub const HAS_AUDIO: &str = "has_audio";
    /// Hz.
    pub const SAMPLING_RATE: &str = "sampling_rate";
    pub const CHANNELS: &str = "channels";
    /// Per channel.
    pub const NUM_SAMPLES: &str = "num_samples";
    /// Encoded media bytes: child of the media column.
    pub const MEDIA_BYTES: &str = "bytes";
    /// Original file name with extension: child of the media column.
    pub const MEDIA_PATH: &str = "path";
}

/// Name of the media column: `image`, `video` or `audio`.
pub fn media_column(kind: RecordKind) -> &'static str {
    kind.medium().name()
}

/// Children of a media column: exactly two, nullable, or Hugging Face shows a raw dict.
pub fn media_fields() -> Fields {
    Fields::from(vec![
        Field::new(column::MEDIA_BYTES, DataType::Binary, true),
        Field::new(column::MEDIA_PATH, DataType::Utf8, true),
    ])
}

/// Item of the `keyframes` list.
pub fn keyframe_fields() -> Fields {
    Fields::from(vec![Field::new("pts", DataType::Int64, true), Field::new("offset", DataType::Int64, true)])
}

/// The Arrow schema of a record, columns in the order they are stored.
pub fn record_schema(kind: RecordKind) -> SchemaRef {
    let list = |item: DataType| DataType::List(Arc::new(Field::new("item", item, true)));
    let mut fields = vec![
        Field::new(column::KEY, DataType::Utf8, false),
        Field::new(column::SOURCE, DataType::Utf8, true),
        Field::new(column::DIGEST, DataType::Utf8, true),
        Field::new(column::BYTES_LEN, DataType::Int64, true),
        Field::new(column::SPLIT, DataType::Utf8, true),
        Field::new(column::CAPTIONS, list(DataType::Utf8), true),
        Field::new(column::TOKENS, list(list(DataType::Int32)), true),
        Field::new(column::NUM_TOKENS, DataType::Int32, true),
        Field::new(column::LABEL, DataType::Utf8, true),
        Field::new(column::LABEL_ID, DataType::Int32, true),
        Field::new(column::LABELS, list(DataType::Utf8), true),
        Field::new(column::LABEL_IDS, list(DataType::Int32), true),
        Field::new(column::NORMALISED, DataType::Utf8, true),
    ];
    fields.extend(match kind {
        RecordKind::ImageText => vec![
            Field::new(column::WIDTH, DataType::Int32, true),
            Field::new(column::HEIGHT, DataType::Int32, true),
            Field::new(column::FORMAT, DataType::Utf8, true),
            Field::new(column::PROGRESSIVE, DataType::Boolean, true),
            Field::new(column::ORIENTATION, DataType::Int32, true),
            Field::new(column::PHASH, DataType::Int64, true),
        ],
        RecordKind::VideoText => vec![
            Field::new(column::WIDTH, DataType::Int32, true),
            Field::new(column::HEIGHT, DataType::Int32, true),
            Field::new(column::FPS, DataType::Float32, true),
            Field::new(column::NUM_FRAMES, DataType::Int32, true),
            Field::new(column::DURATION, DataType::Float64, true),
            Field::new(column::CODEC, DataType::Utf8, true),
            Field::new(column::HAS_AUDIO, DataType::Boolean, true),
            Field::new(column::KEYFRAMES, list(DataType::Struct(keyframe_fields())), true),
        ],
        RecordKind::AudioText => vec![
            Field::new(column::SAMPLING_RATE, DataType::Int32, true),
            Field::new(column::CHANNELS, DataType::Int32, true),
            Field::new(column::NUM_SAMPLES, DataType::Int64, true),
            Field::new(column::DURATION, DataType::Float64, true),
            Field::new(column::CODEC, DataType::Utf8, true),
        ],
    });
    fields.push(Field::new(media_column(kind), DataType::Struct(media_fields()), true));
    Arc::new(Schema::new(fields))
}

/// Value of the `huggingface` footer key: which column is a picture, a film, a sound.
pub fn huggingface_features(kind: RecordKind) -> String {
    let feature = match kind {
        RecordKind::ImageText => serde_json::json!({ "_type": "Image" }),
        RecordKind::VideoText => serde_json::json!({ "_type": "Video" }),
        RecordKind::AudioText => serde_json::json!({ "_type": "Audio" }),
    };
    serde_json::json!({ "info": { "features": { media_column(kind): feature } } }).to_string()
}
