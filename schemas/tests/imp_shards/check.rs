//! Promises of `imp-shards check`: what is sound passes, and each kind of damage is found and named, and nothing else is.

use std::sync::Arc;

use arrow::array::{FixedSizeBinaryArray, StringArray};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use imp_schemas::media_index::MediaPlace;
use imp_schemas::record::column;
use imp_schemas::shard::{manifest_key, shard_key};
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::EnabledStatistics;

use crate::imp_shards;
use crate::store::{CORPUS, Corpus, Plan, keys, media_path, path, put, with, with_labels, write, write_into};

/// Exit status and kinds of findings of `check --json`.
fn check(corpus: &Corpus) -> (i32, Vec<String>) {
    let arguments = ["check", "--store", corpus.store(), "--decode", "all", "--orphan-hours", "0", "--json"];
    let done = imp_shards(&arguments);
    let report: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap_or_else(|e| {
        panic!("{e}: {}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr))
    });
    let kinds = report["findings"].as_array().unwrap().iter().map(|f| f["kind"].as_str().unwrap().to_owned());
    (done.status.code().unwrap(), kinds.collect())
}

/// The store has findings of this kind and of no other.
fn finds(what: &str, corpus: &Corpus, wanted: &str) {
    let (status, kinds) = check(corpus);
    assert_eq!(status, 1, "{what}");
    assert!(!kinds.is_empty() && kinds.iter().all(|k| k == wanted), "{what}: wanted {wanted}, found {kinds:?}");
}

#[test]
fn a_sound_store_gives_no_finding() {
    let plans = [
        Plan::default(),
        Plan { is_noise: true, ..Plan::default() },
        // The second `a` is hidden: a key is unique among the rows that are seen.
        Plan { keys: keys(&["a", "b", "a"]), hidden: Some(2), ..Plan::default() },
        Plan { batch: |batch| with_labels(&batch, &["dog", "cat"], &[1, 0]), ..Plan::default() },
    ];
    for plan in plans {
        assert_eq!(check(&write(&plan)), (0, vec![]));
    }
    let corpus = write(&Plan::default());
    let text = String::from_utf8(imp_shards(&["check", "--store", corpus.store(), CORPUS]).stdout).unwrap();
    assert!(text.contains(CORPUS) && !text.contains("finding ["), "{text}");
}

#[test]
fn each_kind_of_damage_to_rows_is_found_and_named() {
    let cases = [
        (Plan { keys: keys(&["a", "b", "a"]), ..Plan::default() }, "duplicate_key"),
        (Plan { keys: keys(&["a", "", "c"]), ..Plan::default() }, "key"),
        (Plan { token_id: 0, ..Plan::default() }, "tokens"),
        (Plan { token_id: 10, ..Plan::default() }, "tokens"),
        (Plan { label_id: 2, ..Plan::default() }, "label"),
        // Another label first, an id of another class, a class twice, names or ids alone, one label as several.
        (Plan { batch: |batch| with_labels(&batch, &["cat", "dog"], &[0, 1]), ..Plan::default() }, "label"),
        (Plan { batch: |batch| with_labels(&batch, &["dog", "cat"], &[1, 2]), ..Plan::default() }, "label"),
        (Plan { batch: |batch| with_labels(&batch, &["dog", "dog"], &[1, 1]), ..Plan::default() }, "label"),
        (Plan { batch: |batch| with_labels(&batch, &["dog", "cat"], &[]), ..Plan::default() }, "label"),
        (Plan { batch: |batch| with_labels(&batch, &[], &[1, 0]), ..Plan::default() }, "label"),
        (Plan { batch: |batch| with_labels(&batch, &["dog"], &[1]), ..Plan::default() }, "label"),
        (Plan { width: 9, ..Plan::default() }, "planning"),
        (Plan { caption: " ", ..Plan::default() }, "caption"),
        (Plan { digest_of_row_1: Some("0000"), ..Plan::default() }, "media_digest"),
        (Plan { footer_split: "test", ..Plan::default() }, "footer"),
        (Plan { names_features: false, ..Plan::default() }, "footer"),
        (Plan { footer_version: "2.0".to_owned(), ..Plan::default() }, "version"),
        (Plan { footer_version: "one".to_owned(), ..Plan::default() }, "version"),
        (Plan { footer_version: "1.0".to_owned(), ..Plan::default() }, "version"),
        (
            Plan { batch: |batch| with(&batch, column::SOURCE, Arc::new(StringArray::new_null(3))), ..Plan::default() },
            "null",
        ),
        (Plan { n_rejected: 2, ..Plan::default() }, "rejects"),
    ];
    for (i, (plan, wanted)) in cases.into_iter().enumerate() {
        finds(&format!("case {i}"), &write(&plan), wanted);
    }
}

/// The batch without a column.
fn without(batch: &RecordBatch, name: &str) -> RecordBatch {
    let kept: Vec<usize> = (0..batch.num_columns()).filter(|&i| batch.schema().field(i).name() != name).collect();
    batch.project(&kept).unwrap()
}

/// The batch with one more column, of a type that Hugging Face `datasets` refuses.
fn with_hash(batch: &RecordBatch) -> RecordBatch {
    let mut fields = batch.schema().fields().to_vec();
    fields.push(Arc::new(Field::new("sha", DataType::FixedSizeBinary(2), true)));
    let mut columns = batch.columns().to_vec();
    let values = (0..batch.num_rows()).map(|_| Some([1_u8, 2].as_slice()));
    columns.push(Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, 2).unwrap()));
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// The batch with media that are declared to be there always, which Hugging Face shows as a raw dict.
fn with_media_not_null(batch: &RecordBatch) -> RecordBatch {
    let schema = batch.schema();
    let fields = schema.fields().iter().map(|f| {
        let is_medium = f.name() == "image";
        if is_medium { Arc::new(f.as_ref().clone().with_nullable(false)) } else { f.clone() }
    });
    RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), batch.columns().to_vec()).unwrap()
}

#[test]
fn each_kind_of_bad_layout_is_found_and_named() {
    let zstd = |p: parquet::file::properties::WriterPropertiesBuilder| {
        p.set_column_compression(media_path(), Compression::ZSTD(ZstdLevel::default()))
    };
    let many: Vec<String> = (0..10_001).map(|i| format!("k{i}")).collect();
    let cases = [
        ("a column is missing", Plan { batch: |b| without(&b, column::ORIENTATION), ..Plan::default() }, "schema"),
        ("media are not nullable", Plan { batch: |b| with_media_not_null(&b), ..Plan::default() }, "schema"),
        ("a fixed-size binary", Plan { batch: |b| with_hash(&b), ..Plan::default() }, "types"),
        ("media compressed", Plan { properties: zstd, ..Plan::default() }, "encoding"),
        (
            "media in a dictionary",
            Plan { properties: |p| p.set_column_dictionary_enabled(media_path(), true), ..Plan::default() },
            "encoding",
        ),
        (
            "media with statistics",
            Plan {
                properties: |p| p.set_column_statistics_enabled(media_path(), EnabledStatistics::Chunk),
                ..Plan::default()
            },
            "encoding",
        ),
        (
            "no filter on the key",
            Plan { properties: |p| p.set_column_bloom_filter_enabled(path(&[column::KEY]), false), ..Plan::default() },
            "bloom",
        ),
        (
            "large media share a page",
            Plan { is_noise: true, properties: |p| p.set_data_page_row_count_limit(2), ..Plan::default() },
            "pages",
        ),
        (
            "a row group of 10,001 rows",
            Plan { keys: many, properties: |p| p.set_max_row_group_row_count(Some(20_000)), ..Plan::default() },
            "row_group",
        ),
    ];
    for (what, plan, wanted) in cases {
        finds(what, &write(&plan), wanted);
    }
}

#[test]
fn a_manifest_that_says_something_else_than_the_rows_is_found() {
    let cases: [(&str, Plan, &str); 7] = [
        (
            "a range that is too narrow",
            Plan { manifest: |m| *m.shards[0].ranges.get_mut("width").unwrap() = [8.0, 7.0], ..Plan::default() },
            "statistics",
        ),
        (
            "a histogram of another corpus",
            Plan { manifest: |m| m.histograms.get_mut("width").unwrap().push(3.0), ..Plan::default() },
            "statistics",
        ),
        ("media of other weight", Plan { manifest: |m| m.shards[0].media_bytes += 1, ..Plan::default() }, "count"),
        ("more row groups", Plan { manifest: |m| m.shards[0].n_row_groups += 1, ..Plan::default() }, "count"),
        (
            "an index of media that lie elsewhere",
            Plan { media_place: Some(MediaPlace { offset: 4, len: 70 }), ..Plan::default() },
            "media_index",
        ),
        ("a tombstone for no row", Plan { hidden: Some(3), ..Plan::default() }, "tombstones"),
        (
            "a tokenizer that is not there",
            Plan { manifest: |m| m.tokenizer.digest.0.make_ascii_uppercase(), ..Plan::default() },
            "missing_object",
        ),
    ];
    for (what, plan, wanted) in cases {
        let corpus = write(&plan);
        if wanted == "missing_object" {
            // The footer names the tokenizer too, so that is found as well.
            let (status, kinds) = check(&corpus);
            assert_eq!((status, kinds), (1, vec!["missing_object".to_owned(), "footer".to_owned()]), "{what}");
        } else {
            finds(what, &corpus, wanted);
        }
    }
}

#[test]
fn orphans_and_broken_older_snapshots_are_found_once_they_are_old_enough() {
    let corpus = write(&Plan::default());
    let orphan = shard_key(CORPUS, &imp_schemas::shard::Digest::of(b"nobody's"));
    put(corpus.folder.path(), &orphan, b"nobody's");
    finds("an orphan", &corpus, "orphan");
    let patient = imp_shards(&["check", "--store", corpus.store()]);
    assert_eq!(patient.status.code(), Some(0), "a run that is under way may have put it there");
    std::fs::remove_file(corpus.folder.path().join(orphan)).unwrap();
    write_into(corpus.folder.path(), &Plan { keys: keys(&["x", "y"]), snapshot: 2, ..Plan::default() });
    assert_eq!(check(&corpus), (0, vec![]));
    std::fs::remove_file(&corpus.shard).unwrap();
    finds("a shard of snapshot 1 is gone", &corpus, "old_snapshot");
}

#[test]
fn a_missing_shard_is_named() {
    let corpus = write(&Plan::default());
    std::fs::remove_file(&corpus.shard).unwrap();
    assert_eq!(check(&corpus), (1, vec!["missing_shard".to_owned()]));
    let text = String::from_utf8(imp_shards(&["check", "--store", corpus.store()]).stdout).unwrap();
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
    let missing = imp_shards(&["check", "--store", corpus.store(), "sounds"]);
    assert_eq!(missing.status.code(), Some(2));
    let text = String::from_utf8(missing.stderr).unwrap();
    assert!(text.contains("`sounds`") && text.contains("`pictures`"), "{text}");
    put(corpus.folder.path(), &manifest_key(CORPUS, 2), b"{");
    assert_eq!(check(&corpus), (1, vec!["manifest".to_owned()]));
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(imp_shards(&["check", "--store", empty.path().to_str().unwrap()]).status.code(), Some(2));
}

#[test]
fn the_help_says_what_each_exit_status_means() {
    let text = String::from_utf8(imp_shards(&["check", "--help"]).stdout).unwrap();
    for line in ["0  nothing found", "1  findings", "2  the check could not run"] {
        assert!(text.contains(line), "{text}");
    }
}
