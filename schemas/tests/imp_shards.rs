//! Promises of the `imp-shards` program, on a small store written here.
#![cfg_attr(feature = "cli", expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do"))]
#![cfg(feature = "cli")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Int32Array, Int32Builder, Int64Array, ListBuilder, StringArray, StringBuilder,
    StructArray,
};
use arrow::record_batch::RecordBatch;
use image::RgbImage;
use imp_schemas::manifest::{Manifest, RejectsEntry, ShardEntry, TokenizerEntry};
use imp_schemas::modality::RecordKind;
use imp_schemas::record::{huggingface_features, media_fields, record_schema};
use imp_schemas::reject::{RejectReason, reject_schema};
use imp_schemas::shard::{Digest, footer, manifest_key, rejects_key, shard_key, tokenizer_key};
use imp_schemas::version::Format;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;
use testkit::media::png_bytes;

const CORPUS: &str = "pictures";
const KIND: RecordKind = RecordKind::ImageText;

/// What a store is written from; the tests break one thing at a time.
struct Plan {
    keys: Vec<&'static str>,
    token_id: i32,
    label_id: i32,
    width: i32,
    digest_of_row_1: Option<&'static str>,
    footer_split: &'static str,
    n_rejected: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            keys: vec!["a", "b", "c"],
            token_id: 5,
            label_id: 1,
            width: 8,
            digest_of_row_1: None,
            footer_split: "train",
            n_rejected: 1,
        }
    }
}

struct Corpus {
    folder: tempfile::TempDir,
    shard: PathBuf,
}

fn put(folder: &Path, key: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(key);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

fn columns(plan: &Plan, media: &[Vec<u8>]) -> RecordBatch {
    let n = media.len();
    let texts = |text: &str| Arc::new(StringArray::from(vec![text; n])) as ArrayRef;
    let numbers = |number: i32| Arc::new(Int32Array::from(vec![number; n])) as ArrayRef;
    let mut digests: Vec<String> = media.iter().map(|m| Digest::of(m).0).collect();
    if let Some(other) = plan.digest_of_row_1 {
        digests[1] = other.to_owned();
    }
    let mut captions = ListBuilder::new(StringBuilder::new());
    let mut tokens = ListBuilder::new(ListBuilder::new(Int32Builder::new()));
    for _ in 0..n {
        captions.values().append_value("a small picture");
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
    let arrays: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(plan.keys.clone())),
        texts("here"),
        Arc::new(StringArray::from(digests)),
        Arc::new(sizes),
        texts("train"),
        Arc::new(captions.finish()),
        Arc::new(tokens.finish()),
        texts("dog"),
        numbers(plan.label_id),
        numbers(plan.width),
        numbers(6),
        texts("png"),
        Arc::new(BooleanArray::from(vec![false; n])),
        numbers(1),
        Arc::new(media_column),
    ];
    RecordBatch::try_new(record_schema(KIND), arrays).unwrap()
}

fn write(plan: &Plan) -> Corpus {
    let folder = tempfile::tempdir().unwrap();
    let media: Vec<Vec<u8>> = (0..plan.keys.len())
        .map(|i| png_bytes(&RgbImage::from_pixel(8, 6, image::Rgb([40 * i as u8; 3]))).unwrap())
        .collect();
    let tokenizer = br#"{"made": "up"}"#;
    let tokenizer_digest = Digest::of(tokenizer);
    put(folder.path(), &tokenizer_key(&tokenizer_digest), tokenizer);
    let batch = columns(plan, &media);
    let mut media_digest = blake3::Hasher::new();
    for (i, m) in media.iter().enumerate() {
        let of_row = Digest::of(m).0;
        media_digest.update(plan.digest_of_row_1.filter(|_| i == 1).unwrap_or(&of_row).as_bytes());
    }
    let pairs = [
        (footer::SCHEMA, KIND.name().to_owned()),
        (footer::SCHEMA_VERSION, Format::Shard.current().to_string()),
        (footer::CORPUS, CORPUS.to_owned()),
        (footer::SPLIT, plan.footer_split.to_owned()),
        (footer::WRITER, "this test".to_owned()),
        (footer::N_ROWS, media.len().to_string()),
        (footer::MEDIA_DIGEST, media_digest.finalize().to_hex().to_string()),
        (footer::TOKENIZER, tokenizer_digest.0.clone()),
        (footer::HUGGINGFACE, huggingface_features(KIND)),
    ];
    let pairs = pairs.into_iter().map(|(k, v)| KeyValue::new(k.to_owned(), v)).collect();
    // One row a page, as ingest writes them.
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_data_page_row_count_limit(1)
        .set_write_batch_size(1)
        .set_key_value_metadata(Some(pairs))
        .build();
    let mut writer = ArrowWriter::try_new(Vec::new(), record_schema(KIND), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    let bytes = writer.into_inner().unwrap();
    let footer_len = u32::from_le_bytes(bytes[bytes.len() - 8..bytes.len() - 4].try_into().unwrap());
    let entry = ShardEntry {
        digest: Digest::of(&bytes),
        split: "train".to_owned(),
        n_rows: media.len() as u64,
        n_bytes: bytes.len() as u64,
        footer_len: footer_len.into(),
        // Reading from the start is allowed: the page indexes lie somewhere behind it.
        index_offset: 0,
        n_row_groups: 1,
        media_bytes: media.iter().map(|m| m.len() as u64).sum(),
        ranges: BTreeMap::from([("width".to_owned(), [8.0, 8.0])]),
    };
    let shard = put(folder.path(), &shard_key(CORPUS, &entry.digest), &bytes);
    let rejects = rejects_table();
    let rejects_digest = Digest::of(&rejects);
    put(folder.path(), &rejects_key(CORPUS, &rejects_digest), &rejects);
    let manifest = Manifest {
        format: Format::Manifest.current(),
        corpus: CORPUS.to_owned(),
        kind: KIND,
        schema_version: Format::Shard.current(),
        tokenizer: TokenizerEntry { digest: tokenizer_digest, vocab_size: 10 },
        classes: vec!["cat".to_owned(), "dog".to_owned()],
        n_inputs: entry.n_rows + plan.n_rejected,
        n_records: entry.n_rows,
        shards: vec![entry],
        rejects: Some(RejectsEntry { digest: rejects_digest, n_rows: 1 }),
        n_rejected: BTreeMap::from([(RejectReason::Corrupt, plan.n_rejected)]),
        config: serde_json::Value::Null,
    };
    put(folder.path(), &manifest_key(CORPUS, 1), &manifest.to_bytes().unwrap());
    Corpus { folder, shard }
}

/// A table with one reject.
fn rejects_table() -> Vec<u8> {
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let arrays: Vec<ArrayRef> = vec![
        text("list.csv"),
        Arc::new(Int64Array::from(vec![4])),
        text("d"),
        text("corrupt"),
        text("it does not decode"),
        Arc::new(BinaryArray::from(vec![b"abc".as_slice()])),
    ];
    let batch = RecordBatch::try_new(reject_schema(), arrays).unwrap();
    let mut writer = ArrowWriter::try_new(Vec::new(), reject_schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.into_inner().unwrap()
}

fn imp_shards(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imp-shards")).args(arguments).output().unwrap()
}

/// Exit status and standard output of `check --json`, parsed.
fn check(corpus: &Corpus) -> (i32, Vec<String>) {
    let done = imp_shards(&["check", "--store", corpus.folder.path().to_str().unwrap(), "--decode", "all", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|e| {
        panic!("{e}: {}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
    });
    let kinds = report["findings"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap().to_owned());
    (done.status.code().unwrap(), kinds.collect())
}

#[test]
fn a_sound_store_gives_no_finding() {
    let corpus = write(&Plan::default());
    assert_eq!(check(&corpus), (0, vec![]));
    let store = corpus.folder.path().to_str().unwrap();
    let text = String::from_utf8(imp_shards(&["check", "--store", store, CORPUS]).stdout).unwrap();
    assert!(text.contains(CORPUS) && !text.contains("finding ["), "{text}");
}

#[test]
fn each_kind_of_damage_is_found_and_named() {
    let cases: [(Plan, &str); 7] = [
        (Plan { keys: vec!["a", "b", "a"], ..Plan::default() }, "duplicate_key"),
        (Plan { token_id: 0, ..Plan::default() }, "tokens"),
        (Plan { token_id: 10, ..Plan::default() }, "tokens"),
        (Plan { label_id: 2, ..Plan::default() }, "label"),
        (Plan { width: 9, ..Plan::default() }, "planning"),
        (Plan { digest_of_row_1: Some("0000"), ..Plan::default() }, "media_digest"),
        (Plan { footer_split: "test", ..Plan::default() }, "footer"),
    ];
    for (plan, wanted) in cases {
        let (status, kinds) = check(&write(&plan));
        assert_eq!(status, 1, "{wanted}");
        assert!(!kinds.is_empty() && kinds.iter().all(|k| k == wanted), "{wanted}: {kinds:?}");
    }
    let (status, kinds) = check(&write(&Plan { n_rejected: 2, ..Plan::default() }));
    assert_eq!((status, kinds), (1, vec!["rejects".to_owned()]));
}

#[test]
fn a_missing_shard_is_named() {
    let corpus = write(&Plan::default());
    std::fs::remove_file(&corpus.shard).unwrap();
    assert_eq!(check(&corpus), (1, vec!["missing_shard".to_owned()]));
    let store = corpus.folder.path().to_str().unwrap();
    let text = String::from_utf8(imp_shards(&["check", "--store", store]).stdout).unwrap();
    let name = corpus.shard.file_name().unwrap().to_str().unwrap();
    assert!(text.contains(name) && text.contains("copy the shard"), "{text}");
}

#[test]
fn a_shorter_shard_is_named_with_both_sizes() {
    let corpus = write(&Plan::default());
    let bytes = std::fs::read(&corpus.shard).unwrap();
    std::fs::write(&corpus.shard, &bytes[..bytes.len() - 1]).unwrap();
    assert_eq!(check(&corpus), (1, vec!["size".to_owned()]));
}

#[test]
fn one_changed_byte_anywhere_is_found() {
    let corpus = write(&Plan::default());
    let bytes = std::fs::read(&corpus.shard).unwrap();
    for at in (0..bytes.len()).step_by(bytes.len() / 12) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x20;
        std::fs::write(&corpus.shard, &damaged).unwrap();
        let (status, kinds) = check(&corpus);
        assert_eq!(status, 1, "byte {at}");
        assert!(kinds.contains(&"digest".to_owned()), "byte {at}: {kinds:?}");
    }
}

#[test]
fn a_broken_manifest_is_a_finding_and_a_missing_corpus_is_not() {
    let corpus = write(&Plan::default());
    let store = corpus.folder.path().to_str().unwrap();
    let missing = imp_shards(&["check", "--store", store, "sounds"]);
    assert_eq!(missing.status.code(), Some(2));
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(text.contains("`sounds`") && text.contains("`pictures`"), "{text}");
    put(corpus.folder.path(), &manifest_key(CORPUS, 2), b"{");
    assert_eq!(check(&corpus), (1, vec!["manifest".to_owned()]));
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(imp_shards(&["check", "--store", empty.path().to_str().unwrap()]).status.code(), Some(2));
}

#[test]
fn rows_and_counts_are_shown() {
    let corpus = write(&Plan::default());
    let store = corpus.folder.path().to_str().unwrap();
    let shown = imp_shards(&["show", "--store", store, CORPUS, "--split", "train", "--rows", "2"]);
    let text = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.status.success() && text.contains("small picture") && text.contains("8x6"), "{text}");
    let counted = imp_shards(&["stats", "--store", store, "--json"]);
    let stats: serde_json::Value = serde_json::from_slice(&counted.stdout).unwrap();
    let stats = &stats["corpora"][0];
    assert_eq!(stats["n_records"], 3);
    assert_eq!(stats["n_by_class"]["dog"], 3);
    assert_eq!(stats["splits"]["train"]["n_shards"], 1);
    assert_eq!(stats["tokens_per_caption"]["mean"], 3.0);
    assert_eq!(stats["n_rejected"]["corrupt"], 1);
    let lines = String::from_utf8(imp_shards(&["stats", "--store", store]).stdout).unwrap();
    assert!(lines.contains("rejects: corrupt 1") && lines.contains("classes: 2, 1 seen"), "{lines}");
}
