//! Tiny corpora: real JPEG, WAV and H.264 bytes in Parquet shards, laid out as the contract says.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Float32Array, Int32Array, Int32Builder, Int64Array, ListBuilder, RecordBatch,
    StringArray, StringBuilder, StructArray, new_null_array,
};
use arrow::datatypes::{FieldRef, Schema};
use bytes::Bytes;
use image::{Rgb, RgbImage};
use imp_schemas::manifest::{Manifest, ShardEntry, TokenizerEntry};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, media_column, media_fields, record_schema};
use imp_schemas::shard::{Digest, manifest_key, shard_key};
use imp_schemas::store::Store;
use imp_schemas::version::Format;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaDataReader};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

/// One record to be.
#[derive(Debug, Clone)]
pub struct Row {
    pub medium: Vec<u8>,
    /// Ids of each caption; the captions themselves are made from them.
    pub tokens: Vec<Vec<i32>>,
    pub label: Option<i32>,
    /// Of a record with several labels: all of them, `label` first.
    pub label_ids: Option<Vec<i32>>,
    pub num_frames: i32,
    pub size: (i32, i32),
    pub has_audio: bool,
}

pub const FPS: f32 = 25.0;

/// Distinct for each `i`, and recognisable: its left half is `i` shades of red, a bright bar marks the top.
pub fn picture(i: usize, width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let red = if x < width / 2 { (i * 7 % 200) as u8 + 20 } else { 10 };
        Rgb([red, if y < height / 4 { 220 } else { (x * 3 % 200) as u8 }, (y * 5 % 250) as u8])
    })
}

pub fn image_row(i: usize) -> Row {
    let (width, height) = (40 + (i as u32 % 5) * 8, 48);
    Row {
        medium: testkit::media::jpeg_bytes(&picture(i, width, height), 90).unwrap(),
        tokens: (0..1 + i % 3).map(|c| (0..3 + c).map(|t| (1 + i * 10 + c * 3 + t) as i32).collect()).collect(),
        label: Some(i as i32 % 4),
        label_ids: None,
        num_frames: 1,
        size: (width as i32, height as i32),
        has_audio: false,
    }
}

pub fn tone(i: usize, rate: u32, seconds: f32) -> Vec<f32> {
    let hz = 200.0 + 40.0 * i as f32;
    (0..(rate as f32 * seconds) as usize)
        .map(|n| 0.5 * (std::f32::consts::TAU * hz * n as f32 / rate as f32).sin())
        .collect()
}

pub fn audio_row(i: usize) -> Row {
    let rate = [8_000, 16_000, 44_100][i % 3];
    Row { medium: testkit::media::wav_bytes(&tone(i, rate, 0.3 + 0.1 * (i % 4) as f32), rate).unwrap(), ..image_row(i) }
}

/// A clip whose frame `f` is grey level `20 + 8 f`, `n` frames of them.
pub fn video_row(i: usize, n: usize) -> Row {
    let level = |f: usize| (20 + 8 * f) as u8;
    let frames: Vec<RgbImage> = (0..n).map(|f| RgbImage::from_pixel(48, 32, Rgb([level(f); 3]))).collect();
    let medium = testkit::media::mp4_bytes(&frames, FPS).unwrap();
    Row { medium, num_frames: n as i32, size: (48, 32), ..image_row(i) }
}

pub struct Corpus<'a> {
    pub name: &'a str,
    pub kind: RecordKind,
    pub tokenizer: &'a str,
    pub classes: &'a [&'a str],
    pub rows_per_shard: usize,
    pub rows_per_group: usize,
    /// Without the columns that came with 1.2.
    pub is_before_1_2: bool,
}

impl<'a> Corpus<'a> {
    pub fn new(name: &'a str, kind: RecordKind) -> Self {
        let classes = &["a", "b", "c", "d"];
        Self { name, kind, tokenizer: "t", classes, rows_per_shard: 7, rows_per_group: 3, is_before_1_2: false }
    }

    /// Writes `rows` as split `train` and the first half of them as split `test`, and the manifest as version `version`.
    pub fn write(&self, store: &Store, rows: &[Row], version: u64) -> Manifest {
        let mut shards = Vec::new();
        for (split, rows) in [("train", rows), ("test", &rows[..rows.len() / 2])] {
            for rows in rows.chunks(self.rows_per_shard) {
                shards.push(self.write_shard(store, rows, split));
            }
        }
        let n_records = shards.iter().map(|s| s.n_rows).sum();
        let manifest = Manifest {
            format: Format::Manifest.current(),
            corpus: self.name.to_owned(),
            kind: self.kind,
            schema_version: Format::Shard.current(),
            tokenizer: TokenizerEntry { digest: Digest::of(self.tokenizer.as_bytes()), vocab_size: 1000 },
            classes: self.classes.iter().map(|c| (*c).to_owned()).collect(),
            shards,
            rejects: Vec::new(),
            tombstones: None,
            media_index: None,
            side_tables: Vec::new(),
            runs: Vec::new(),
            n_inputs: n_records,
            n_records,
            n_rejected: BTreeMap::new(),
            broken_rules: BTreeMap::new(),
            histograms: BTreeMap::new(),
            config: serde_json::Value::Null,
        };
        assert!(store.put_if_absent(&manifest_key(self.name, version), manifest.to_bytes().unwrap().into()).unwrap());
        manifest
    }

    pub fn write_shard(&self, store: &Store, rows: &[Row], split: &str) -> ShardEntry {
        let bytes = self.shard_bytes(rows, split);
        let metadata = ParquetMetaDataReader::new()
            .with_page_index_policy(PageIndexPolicy::Required)
            .parse_and_finish(&bytes)
            .unwrap();
        let chunks = metadata.row_groups().iter().flat_map(|g| g.columns());
        let index_offset =
            chunks.flat_map(|c| [c.column_index_offset(), c.offset_index_offset()]).flatten().min().unwrap();
        let tail: [u8; 4] = bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap();
        let digest = Digest::of(&bytes);
        let entry = ShardEntry {
            digest: digest.clone(),
            split: split.to_owned(),
            n_rows: rows.len() as u64,
            n_deleted: 0,
            n_bytes: bytes.len() as u64,
            footer_len: u64::from(u32::from_le_bytes(tail)),
            index_offset: index_offset as u64,
            n_row_groups: metadata.num_row_groups() as u64,
            media_bytes: rows.iter().map(|r| r.medium.len() as u64).sum(),
            ranges: BTreeMap::new(),
        };
        store.put(&shard_key(self.name, &digest), bytes).unwrap();
        entry
    }

    fn shard_bytes(&self, rows: &[Row], split: &str) -> Bytes {
        let is_here = |field: &FieldRef| {
            !self.is_before_1_2 || ![column::LABELS, column::LABEL_IDS].contains(&field.name().as_str())
        };
        let fields: Vec<FieldRef> = record_schema(self.kind).fields().iter().filter(|f| is_here(f)).cloned().collect();
        let schema = Arc::new(Schema::new(fields));
        let n = rows.len();
        let (mut captions, mut tokens) =
            (ListBuilder::new(StringBuilder::new()), ListBuilder::new(ListBuilder::new(Int32Builder::new())));
        for row in rows {
            for ids in &row.tokens {
                captions.values().append_value(format!("{ids:?}"));
                tokens.values().values().append_slice(ids);
                tokens.values().append(true);
            }
            captions.append(true);
            tokens.append(true);
        }
        let media: BinaryArray = rows.iter().map(|r| Some(&r.medium[..])).collect();
        let paths: StringArray = rows.iter().map(|_| Some("m.bin")).collect();
        let media = StructArray::new(media_fields(), vec![Arc::new(media), Arc::new(paths)], None);
        let mut columns: BTreeMap<&str, ArrayRef> = BTreeMap::new();
        let keys: StringArray =
            rows.iter().enumerate().map(|(i, r)| Some(format!("{split}-{}-{i}", r.tokens[0][0]))).collect();
        columns.insert(column::KEY, Arc::new(keys));
        columns.insert(column::CAPTIONS, Arc::new(captions.finish()));
        columns.insert(column::TOKENS, Arc::new(tokens.finish()));
        columns.insert(column::LABEL_ID, Arc::new(rows.iter().map(|r| r.label).collect::<Int32Array>()));
        let mut label_ids = ListBuilder::new(Int32Builder::new());
        for row in rows {
            label_ids.append_option(row.label_ids.clone().map(|ids| ids.into_iter().map(Some)));
        }
        columns.insert(column::LABEL_IDS, Arc::new(label_ids.finish()));
        columns.insert(media_column(self.kind), Arc::new(media));
        if self.kind == RecordKind::AudioText {
            // A row of something else than sound says nothing.
            let sounds = || rows.iter().map(|row| hound::WavReader::new(&row.medium[..]).ok());
            let rates = sounds().map(|sound| Some(sound?.spec().sample_rate as i32));
            columns.insert(column::SAMPLING_RATE, Arc::new(rates.collect::<Int32Array>()));
            let lengths = sounds().map(|sound| Some(i64::from(sound?.duration())));
            columns.insert(column::NUM_SAMPLES, Arc::new(lengths.collect::<Int64Array>()));
        }
        if self.kind != RecordKind::AudioText {
            columns.insert(column::WIDTH, Arc::new(rows.iter().map(|r| Some(r.size.0)).collect::<Int32Array>()));
            columns.insert(column::HEIGHT, Arc::new(rows.iter().map(|r| Some(r.size.1)).collect::<Int32Array>()));
        }
        if self.kind == RecordKind::VideoText {
            columns
                .insert(column::NUM_FRAMES, Arc::new(rows.iter().map(|r| Some(r.num_frames)).collect::<Int32Array>()));
            columns.insert(column::FPS, Arc::new(rows.iter().map(|_| Some(FPS)).collect::<Float32Array>()));
            columns
                .insert(column::HAS_AUDIO, Arc::new(rows.iter().map(|r| Some(r.has_audio)).collect::<BooleanArray>()));
        }
        let arrays = schema
            .fields()
            .iter()
            .map(|field| columns.remove(field.name().as_str()).unwrap_or_else(|| new_null_array(field.data_type(), n)));
        let batch = RecordBatch::try_new(schema.clone(), arrays.collect()).unwrap();
        let blob = ColumnPath::from(vec![media_column(self.kind).to_owned(), column::MEDIA_BYTES.to_owned()]);
        let properties = WriterProperties::builder()
            .set_max_row_group_row_count(Some(self.rows_per_group))
            .set_dictionary_enabled(false)
            .set_compression(Compression::UNCOMPRESSED)
            .set_write_batch_size(1)
            .set_data_page_size_limit(1)
            .set_column_statistics_enabled(blob, EnabledStatistics::None)
            .build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes.into()
    }
}

/// A folder and the store in it.
pub fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().to_str().unwrap()).unwrap();
    (dir, store)
}

/// Three corpora of 23 pictures, 20 sounds and 9 clips.
pub fn three_corpora() -> (tempfile::TempDir, Store) {
    let (dir, store) = store();
    let rows: Vec<Row> = (0..23).map(image_row).collect();
    Corpus::new("photos", RecordKind::ImageText).write(&store, &rows, 1);
    let rows: Vec<Row> = (0..20).map(audio_row).collect();
    Corpus::new("sounds", RecordKind::AudioText).write(&store, &rows, 1);
    let rows: Vec<Row> = (0..9).map(|i| video_row(i, 6 + i)).collect();
    Corpus::new("clips", RecordKind::VideoText).write(&store, &rows, 1);
    (dir, store)
}
