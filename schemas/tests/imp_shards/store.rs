//! A small store of pictures, written here with the parquet writer: good by default, broken in one way where a test wants it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int32Array, Int32Builder, Int64Array, ListBuilder, StringArray, StringBuilder,
    StructArray, new_null_array,
};
use arrow::record_batch::RecordBatch;
use image::RgbImage;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::{Manifest, MediaIndexEntry, RejectsEntry, ShardEntry, TokenizerEntry, TombstonesEntry};
use imp_schemas::media_index::{MediaPlace, media_index_batch};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{column, huggingface_features, media_fields, record_schema};
use imp_schemas::reject::{RejectReason, reject_schema};
use imp_schemas::shard::{
    Digest, footer, manifest_key, media_index_key, rejects_key, shard_key, tokenizer_key, tombstones_key,
};
use imp_schemas::tombstone::{Tombstone, tombstone_batch};
use imp_schemas::version::Format;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::{EnabledStatistics, WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use testkit::media::png_bytes;

pub const CORPUS: &str = "pictures";
pub const KIND: RecordKind = RecordKind::ImageText;

/// What a store is written from; the tests break one thing at a time.
pub struct Plan {
    pub keys: Vec<String>,
    pub token_id: i32,
    pub label_id: i32,
    pub width: i32,
    pub digest_of_row_1: Option<&'static str>,
    pub footer_split: &'static str,
    pub footer_version: String,
    /// In the Arrow schema that lies in the footer.
    pub names_features: bool,
    pub n_rejected: u64,
    /// A picture of noise weighs its pixels.
    pub is_noise: bool,
    /// Changes the writer's settings.
    pub properties: fn(WriterPropertiesBuilder) -> WriterPropertiesBuilder,
    /// Changes the columns.
    pub batch: fn(RecordBatch) -> RecordBatch,
    /// Changes what the manifest says.
    pub manifest: fn(&mut Manifest),
    /// Row that a tombstone hides.
    pub hidden: Option<u64>,
    /// What the index of media says of every row.
    pub media_place: Option<MediaPlace>,
    pub snapshot: u64,
    pub caption: &'static str,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            keys: keys(&["a", "b", "c"]),
            token_id: 5,
            label_id: 1,
            width: 8,
            digest_of_row_1: None,
            footer_split: "train",
            footer_version: Format::Shard.current().to_string(),
            names_features: true,
            n_rejected: 1,
            is_noise: false,
            properties: |properties| properties,
            batch: |batch| batch,
            manifest: |_| {},
            hidden: None,
            media_place: None,
            snapshot: 1,
            caption: "a small picture",
        }
    }
}

pub fn keys(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|&key| key.to_owned()).collect()
}

pub struct Corpus {
    pub folder: tempfile::TempDir,
    pub shard: PathBuf,
}

impl Corpus {
    pub fn store(&self) -> &str {
        self.folder.path().to_str().unwrap()
    }
}

pub fn put(folder: &Path, key: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

pub fn path(parts: &[&str]) -> ColumnPath {
    ColumnPath::new(parts.iter().map(|&part| part.to_owned()).collect())
}

pub fn media_path() -> ColumnPath {
    path(&["image", column::MEDIA_BYTES])
}

/// A picture of 8 by 6; of noise, 160 by 60, which no PNG makes smaller than its 28,800 bytes.
fn picture(i: usize, is_noise: bool) -> Vec<u8> {
    if !is_noise {
        return png_bytes(&RgbImage::from_pixel(8, 6, image::Rgb([40_u8.wrapping_mul(i as u8); 3]))).unwrap();
    }
    let mut state = 88_172_645_463_325_252_u64 + i as u64;
    let noise = RgbImage::from_fn(160, 60, |_, _| {
        // Marsaglia's xorshift: any noise will do.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        image::Rgb([state as u8, (state >> 8) as u8, (state >> 16) as u8])
    });
    png_bytes(&noise).unwrap()
}

fn columns(plan: &Plan, media: &[Vec<u8>]) -> RecordBatch {
    let (n, schema) = (media.len(), record_schema(KIND));
    let texts = |text: &str| Arc::new(StringArray::from(vec![text; n])) as ArrayRef;
    let numbers = |number: i32| Arc::new(Int32Array::from(vec![number; n])) as ArrayRef;
    let mut digests: Vec<String> = media.iter().map(|m| Digest::of(m).0).collect();
    if let Some(other) = plan.digest_of_row_1 {
        digests[1] = other.to_owned();
    }
    let mut captions = ListBuilder::new(StringBuilder::new());
    let mut tokens = ListBuilder::new(ListBuilder::new(Int32Builder::new()));
    for _ in 0..n {
        captions.values().append_value(plan.caption);
        captions.append(true);
        for id in [plan.token_id, 7, 9] {
            tokens.values().values().append_value(id);
        }
        tokens.values().append(true);
        tokens.append(true);
    }
    let bytes: BinaryArray = media.iter().map(|m| Some(m.as_slice())).collect();
    let paths = StringArray::from(vec!["x.png"; n]);
    let media_column = StructArray::new(media_fields(), vec![Arc::new(bytes), Arc::new(paths)], None);
    let sizes = Int64Array::from(media.iter().map(|m| m.len() as i64).collect::<Vec<_>>());
    let (width, height) = if plan.is_noise { (160, 60) } else { (plan.width, 6) };
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(plan.keys.clone())),
        texts("here"),
        Arc::new(StringArray::from(digests)),
        Arc::new(sizes),
        texts("train"),
        Arc::new(captions.finish()),
        Arc::new(tokens.finish()),
        numbers(3),
        texts("dog"),
        numbers(plan.label_id),
        new_null_array(schema.field_with_name(column::LABELS).unwrap().data_type(), n),
        new_null_array(schema.field_with_name(column::LABEL_IDS).unwrap().data_type(), n),
        Arc::new(StringArray::new_null(n)),
        numbers(width),
        numbers(height),
        texts("png"),
        Arc::new(BooleanArray::from(vec![false; n])),
        numbers(1),
        Arc::new(Int64Array::new_null(n)),
        Arc::new(media_column),
    ];
    (plan.batch)(RecordBatch::try_new(schema, arrays).unwrap())
}

/// The batch with another column of that name.
pub fn with(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let at = batch.schema().index_of(name).unwrap();
    let mut columns = batch.columns().to_vec();
    columns[at] = column;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

/// The batch with these labels in its first row, null without any; the others keep the one that they have.
pub fn with_labels(batch: &RecordBatch, names: &[&str], ids: &[i32]) -> RecordBatch {
    let mut labels = ListBuilder::new(StringBuilder::new());
    let mut label_ids = ListBuilder::new(Int32Builder::new());
    names.iter().for_each(|name| labels.values().append_value(name));
    label_ids.values().append_slice(ids);
    labels.append(!names.is_empty());
    label_ids.append(!ids.is_empty());
    for _ in 1..batch.num_rows() {
        labels.append(false);
        label_ids.append(false);
    }
    let batch = with(batch, column::LABELS, Arc::new(labels.finish()));
    with(&batch, column::LABEL_IDS, Arc::new(label_ids.finish()))
}

/// One row a page, filters on the two identifiers, media as they are: as ingest writes them.
fn properties(pairs: Vec<KeyValue>) -> WriterPropertiesBuilder {
    let mut properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_data_page_row_count_limit(1)
        .set_write_batch_size(1)
        .set_column_statistics_enabled(media_path(), EnabledStatistics::None)
        .set_key_value_metadata(Some(pairs));
    for id in [column::KEY, column::DIGEST] {
        properties = properties
            .set_column_bloom_filter_enabled(path(&[id]), true)
            .set_column_bloom_filter_max_ndv(path(&[id]), 100);
    }
    properties
}

/// Writes a store of one corpus.
pub fn write(plan: &Plan) -> Corpus {
    let folder = tempfile::tempdir().unwrap();
    write_into(folder.path(), plan);
    let manifest: Manifest =
        serde_json::from_slice(&std::fs::read(folder.path().join(manifest_key(CORPUS, plan.snapshot))).unwrap())
            .unwrap();
    let shard = folder.path().join(shard_key(CORPUS, &manifest.shards[0].digest));
    Corpus { folder, shard }
}

/// Adds a snapshot of one shard to what lies in the folder.
pub fn write_into(folder: &Path, plan: &Plan) {
    let media: Vec<Vec<u8>> = (0..plan.keys.len()).map(|i| picture(i, plan.is_noise)).collect();
    let tokenizer = br#"{"made": "up"}"#;
    let tokenizer_digest = Digest::of(tokenizer);
    put(folder, &tokenizer_key(&tokenizer_digest), tokenizer);
    let batch = columns(plan, &media);
    let mut media_digest = blake3::Hasher::new();
    for (i, m) in media.iter().enumerate() {
        let of_row = Digest::of(m).0;
        media_digest.update(plan.digest_of_row_1.filter(|_| i == 1).unwrap_or(&of_row).as_bytes());
    }
    let pairs = [
        (footer::SCHEMA, KIND.name().to_owned()),
        (footer::SCHEMA_VERSION, plan.footer_version.clone()),
        (footer::CORPUS, CORPUS.to_owned()),
        (footer::SPLIT, plan.footer_split.to_owned()),
        (footer::WRITER, "this test".to_owned()),
        (footer::N_ROWS, media.len().to_string()),
        (footer::MEDIA_DIGEST, media_digest.finalize().to_hex().to_string()),
        (footer::TOKENIZER, tokenizer_digest.0.clone()),
        (footer::HUGGINGFACE, huggingface_features(KIND)),
    ];
    let pairs = pairs.into_iter().map(|(k, v)| KeyValue::new(k.to_owned(), v)).collect();
    let properties = (plan.properties)(properties(pairs)).build();
    let features = [(footer::HUGGINGFACE.to_owned(), huggingface_features(KIND))];
    let features: std::collections::HashMap<_, _> = features.into_iter().filter(|_| plan.names_features).collect();
    let described = Arc::new(batch.schema().as_ref().clone().with_metadata(features));
    let mut writer = ArrowWriter::try_new(Vec::new(), described, Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    let n_row_groups = {
        writer.flush().unwrap();
        writer.flushed_row_groups().len() as u64
    };
    let bytes = writer.into_inner().unwrap();
    let footer_len = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap());
    let width = if plan.is_noise { 160.0 } else { f64::from(plan.width) };
    let mut histogram = Histogram::default();
    media.iter().for_each(|_| histogram.push(width));
    let entry = ShardEntry {
        digest: Digest::of(&bytes),
        split: "train".to_owned(),
        n_rows: media.len() as u64,
        n_deleted: plan.hidden.iter().len() as u64,
        n_bytes: bytes.len() as u64,
        footer_len: footer_len.into(),
        // Reading from the start is allowed: the page indexes lie somewhere behind it.
        index_offset: 0,
        n_row_groups,
        media_bytes: media.iter().map(|m| m.len() as u64).sum(),
        ranges: BTreeMap::from([("width".to_owned(), [width, width])]),
    };
    put(folder, &shard_key(CORPUS, &entry.digest), &bytes);
    let rejects = table(&rejects_batch());
    let rejects_digest = Digest::of(&rejects);
    put(folder, &rejects_key(CORPUS, &rejects_digest), &rejects);
    let mut n_rejected = BTreeMap::from([(RejectReason::Corrupt, plan.n_rejected)]);
    let tombstones = plan.hidden.map(|row| {
        n_rejected.insert(RejectReason::Withdrawn, 1);
        tombstones(folder, &entry.digest, row)
    });
    let mut manifest = Manifest {
        format: Format::Manifest.current(),
        corpus: CORPUS.to_owned(),
        kind: KIND,
        schema_version: Format::Shard.current(),
        tokenizer: TokenizerEntry { digest: tokenizer_digest, vocab_size: 10 },
        classes: vec!["cat".to_owned(), "dog".to_owned()],
        n_inputs: entry.n_rows + plan.n_rejected,
        n_records: entry.n_live(),
        shards: vec![entry],
        rejects: vec![RejectsEntry { digest: rejects_digest, n_rows: 1 }],
        tombstones,
        media_index: plan.media_place.map(|place| media_index(folder, place, media.len())),
        side_tables: Vec::new(),
        runs: Vec::new(),
        n_rejected,
        broken_rules: BTreeMap::new(),
        histograms: BTreeMap::from([("width".to_owned(), histogram)]),
        config: serde_json::json!({ "limits": { "max_pixels": plan.snapshot } }),
    };
    (plan.manifest)(&mut manifest);
    put(folder, &manifest_key(CORPUS, plan.snapshot), &manifest.to_bytes().unwrap());
}

fn tombstones(folder: &Path, shard: &Digest, row: u64) -> TombstonesEntry {
    let hidden = Tombstone {
        shard: shard.clone(),
        row,
        key: "taken <b>out</b>".to_owned(),
        reason: RejectReason::Withdrawn,
        detail: "its owner asked".to_owned(),
    };
    let bytes = table(&tombstone_batch(&[hidden]).unwrap());
    let digest = Digest::of(&bytes);
    put(folder, &tombstones_key(CORPUS, &digest), &bytes);
    TombstonesEntry { digest, n_rows: 1 }
}

fn media_index(folder: &Path, place: MediaPlace, n_rows: usize) -> MediaIndexEntry {
    let bytes = table(&media_index_batch(&vec![place; n_rows]).unwrap());
    let digest = Digest::of(&bytes);
    put(folder, &media_index_key(CORPUS, &digest), &bytes);
    MediaIndexEntry { digest, n_rows: n_rows as u64 }
}

/// A table with one reject, whose texts would be a page's undoing if it did not escape them.
fn rejects_batch() -> RecordBatch {
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let arrays: Vec<ArrayRef> = vec![
        text("list.csv"),
        Arc::new(Int64Array::from(vec![4])),
        text("d"),
        text("corrupt"),
        text("it does not decode: <script>alert(1)</script>"),
        Arc::new(BinaryArray::from(vec![b"<svg\x00".as_slice()])),
    ];
    RecordBatch::try_new(reject_schema(), arrays).unwrap()
}

fn table(batch: &RecordBatch) -> Vec<u8> {
    let mut writer = ArrowWriter::try_new(Vec::new(), batch.schema(), None).unwrap();
    writer.write(batch).unwrap();
    writer.into_inner().unwrap()
}
