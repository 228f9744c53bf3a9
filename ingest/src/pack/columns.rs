//! Rows → Arrow columns, in the order and of the types of the contract.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BinaryBuilder, BooleanArray, Float32Array, Float64Array, Int32Array, Int32Builder,
    Int64Array, ListArray, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use imp_schemas::media::{AudioMeta, ImageMeta, VideoMeta};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{keyframe_fields, media_fields};
use imp_schemas::reject::{Reject, reject_schema};

use super::Row;
use crate::verify::Facts;

/// The rows as one batch; each row's medium is let go once it is copied.
pub(super) fn batch(
    kind: RecordKind,
    schema: &SchemaRef,
    split: &str,
    rows: Vec<Row>,
) -> Result<RecordBatch, ArrowError> {
    let mut captions = ListBuilder::new(StringBuilder::new());
    let mut tokens = ListBuilder::new(ListBuilder::new(Int32Builder::new()));
    let mut labels = ListBuilder::new(StringBuilder::new());
    let mut label_ids = ListBuilder::new(Int32Builder::new());
    for row in &rows {
        row.captions.iter().for_each(|caption| captions.values().append_value(caption));
        captions.append(true);
        for ids in &row.record.tokens {
            tokens.values().values().append_slice(ids);
            tokens.values().append(true);
        }
        tokens.append(true);
        let has_several = row.labels.len() > 1;
        for (id, name) in row.labels.iter().filter(|_| has_several) {
            labels.values().append_value(name);
            label_ids.values().append_value(*id);
        }
        labels.append(has_several);
        label_ids.append(has_several);
    }
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.key))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.source))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|r| &r.record.digest.0))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|r| r.record.media.len() as i64))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|_| split))),
        Arc::new(captions.finish()),
        Arc::new(tokens.finish()),
        Arc::new(
            rows.iter()
                .map(|r| i32::try_from(r.record.tokens.iter().map(Vec::len).max().unwrap_or(0)).ok())
                .collect::<Int32Array>(),
        ),
        Arc::new(rows.iter().map(|r| r.labels.first().map(|(_, name)| name.as_str())).collect::<StringArray>()),
        Arc::new(rows.iter().map(|r| r.labels.first().map(|(id, _)| *id)).collect::<Int32Array>()),
        Arc::new(labels.finish()),
        Arc::new(label_ids.finish()),
        Arc::new(rows.iter().map(|r| r.record.normalised.as_deref()).collect::<StringArray>()),
    ];
    columns.extend(match kind {
        RecordKind::ImageText => {
            let mut columns = image_columns(&metas(&rows, |facts| match facts {
                Facts::Image(image) => Some(image),
                Facts::Video(_) | Facts::Audio(_) => None,
            }));
            // The bits of the hash, whatever the sign they make.
            let hashes = rows.iter().map(|r| r.record.picture_hash.map(u64::cast_signed));
            columns.push(Arc::new(hashes.collect::<Int64Array>()));
            columns
        }
        RecordKind::VideoText => video_columns(&metas(&rows, |facts| match facts {
            Facts::Video(video) => Some(video),
            Facts::Image(_) | Facts::Audio(_) => None,
        }))?,
        RecordKind::AudioText => audio_columns(&metas(&rows, |facts| match facts {
            Facts::Audio(audio) => Some(audio),
            Facts::Image(_) | Facts::Video(_) => None,
        })),
    });
    let names: StringArray =
        rows.iter().map(|r| Some(r.source.rsplit('/').next().unwrap_or(&r.source).to_owned())).collect();
    columns.push(Arc::new(StructArray::try_new(media_fields(), vec![media(rows)?, Arc::new(names)], None)?));
    RecordBatch::try_new(schema.clone(), columns)
}

fn media(mut rows: Vec<Row>) -> Result<ArrayRef, ArrowError> {
    // A medium that is as large as a batch, an hour of sound, is not copied.
    if let [row] = &mut rows[..] {
        let bytes = std::mem::take(&mut row.record.media);
        let offsets = OffsetBuffer::from_lengths([bytes.len()]);
        return Ok(Arc::new(BinaryArray::try_new(offsets, Buffer::from_vec(bytes), None)?));
    }
    let n_bytes = rows.iter().map(|r| r.record.media.len()).sum();
    let mut media = BinaryBuilder::with_capacity(rows.len(), n_bytes);
    for row in rows {
        media.append_value(&row.record.media);
    }
    Ok(Arc::new(media.finish()))
}

fn metas<'a, T>(rows: &'a [Row], meta: impl Fn(&'a Facts) -> Option<&'a T>) -> Vec<Option<&'a T>> {
    rows.iter().map(|row| meta(&row.record.facts)).collect()
}

fn int32<T>(metas: &[Option<&T>], value: impl Fn(&T) -> usize) -> ArrayRef {
    let values = metas.iter().map(|meta| meta.and_then(|meta| i32::try_from(value(meta)).ok()));
    Arc::new(values.collect::<Int32Array>())
}

fn text<T>(metas: &[Option<&T>], value: impl Fn(&T) -> &str) -> ArrayRef {
    Arc::new(metas.iter().map(|meta| meta.map(&value)).collect::<StringArray>())
}

fn boolean<T>(metas: &[Option<&T>], value: impl Fn(&T) -> bool) -> ArrayRef {
    Arc::new(metas.iter().map(|meta| meta.map(&value)).collect::<BooleanArray>())
}

fn float64<T>(metas: &[Option<&T>], value: impl Fn(&T) -> f64) -> ArrayRef {
    Arc::new(metas.iter().map(|meta| meta.map(&value)).collect::<Float64Array>())
}

fn image_columns(metas: &[Option<&ImageMeta>]) -> Vec<ArrayRef> {
    vec![
        int32(metas, |m| m.width),
        int32(metas, |m| m.height),
        text(metas, |m| m.format),
        boolean(metas, |m| m.progressive),
        int32(metas, |m| usize::from(m.orientation)),
    ]
}

fn video_columns(metas: &[Option<&VideoMeta>]) -> Result<Vec<ArrayRef>, ArrowError> {
    Ok(vec![
        int32(metas, |m| m.width),
        int32(metas, |m| m.height),
        Arc::new(metas.iter().map(|meta| meta.map(|m| m.fps)).collect::<Float32Array>()),
        int32(metas, |m| m.num_frames),
        float64(metas, |m| m.duration),
        text(metas, |m| &m.codec),
        boolean(metas, |m| m.has_audio),
        keyframes(metas)?,
    ])
}

fn audio_columns(metas: &[Option<&AudioMeta>]) -> Vec<ArrayRef> {
    let n_samples = metas.iter().map(|meta| meta.and_then(|m| i64::try_from(m.num_samples).ok()));
    vec![
        int32(metas, |m| m.sampling_rate as usize),
        int32(metas, |m| m.channels),
        Arc::new(n_samples.collect::<Int64Array>()),
        float64(metas, |m| m.duration),
        text(metas, |m| &m.codec),
    ]
}

fn keyframes(metas: &[Option<&VideoMeta>]) -> Result<ArrayRef, ArrowError> {
    let all = || metas.iter().flatten().flat_map(|meta| &meta.keyframes);
    let pts: ArrayRef = Arc::new(Int64Array::from_iter_values(all().map(|k| k.pts_us)));
    let offset: ArrayRef = Arc::new(Int64Array::from_iter_values(all().map(|k| k.offset)));
    let mut ends = vec![0i32];
    for meta in metas {
        let n = meta.map_or(0, |m| m.keyframes.len());
        let end = i32::try_from(n).ok().and_then(|n| ends.last()?.checked_add(n));
        ends.push(
            end.ok_or_else(|| ArrowError::InvalidArgumentError("more than 2^31 keyframes in a row group".to_owned()))?,
        );
    }
    let structs = StructArray::try_new(keyframe_fields(), vec![pts, offset], None)?;
    let item = Arc::new(Field::new("item", DataType::Struct(keyframe_fields()), true));
    let offsets = OffsetBuffer::new(ScalarBuffer::from(ends));
    Ok(Arc::new(ListArray::try_new(item, offsets, Arc::new(structs), None)?))
}

pub(super) fn rejects_batch(rejects: &[Reject]) -> Result<RecordBatch, ArrowError> {
    let column =
        |value: fn(&Reject) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(rejects.iter().map(value))) };
    let rows = rejects.iter().map(|r| i64::try_from(r.row).unwrap_or(i64::MAX));
    RecordBatch::try_new(
        reject_schema(),
        vec![
            column(|r| &r.source),
            Arc::new(Int64Array::from_iter_values(rows)),
            column(|r| &r.key),
            column(|r| r.reason.name()),
            column(|r| &r.detail),
            Arc::new(BinaryArray::from_iter_values(rejects.iter().map(|r| &r.first_bytes))),
        ],
    )
}
