//! Shards of every past version stay readable: `tests/golden/shards` holds a small store of each.
#![cfg_attr(feature = "cli", expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do"))]
#![cfg(feature = "cli")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use imp_schemas::manifest::{Manifest, ManifestError};
use imp_schemas::record::{column, media_column};
use imp_schemas::shard::Digest;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::side_table::AddedColumns;
use imp_schemas::store::Store;
use imp_schemas::version::Format;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/shards")
}

/// The versions that have a fixture.
fn versions() -> Vec<String> {
    let entries = std::fs::read_dir(golden()).unwrap().map(Result::unwrap).filter(|e| e.path().is_dir());
    let mut versions: Vec<String> = entries.map(|e| e.file_name().into_string().unwrap()).collect();
    versions.sort();
    versions
}

/// A copy of a fixture that a test may write to.
fn copy(version: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut open = vec![golden().join(version)];
    while let Some(from) = open.pop() {
        for entry in std::fs::read_dir(&from).unwrap().map(Result::unwrap) {
            let to = folder.path().join(entry.path().strip_prefix(golden().join(version)).unwrap());
            if entry.path().is_dir() {
                std::fs::create_dir_all(&to).unwrap();
                open.push(entry.path());
            } else {
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                std::fs::copy(entry.path(), &to).unwrap();
            }
        }
    }
    folder
}

fn imp_shards(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imp-shards")).args(arguments).output().unwrap()
}

/// Every row's medium has the digest that its row says; gives the number of rows.
fn read_every_row(store: &Store, corpus: &str) -> u64 {
    let manifest = store.manifest(corpus).unwrap().manifest;
    let mut n_rows = 0;
    for entry in &manifest.shards {
        let reader = ShardReader::open(store, corpus, entry).unwrap();
        for batch in reader.read_all(&[column::DIGEST, media_column(manifest.kind)]).unwrap() {
            let digests = batch.column_by_name(column::DIGEST).unwrap().as_string::<i32>();
            let media = batch.column_by_name(media_column(manifest.kind)).unwrap().as_struct();
            let bytes = media.column_by_name(column::MEDIA_BYTES).unwrap().as_binary::<i32>();
            for row in 0..batch.num_rows() {
                assert_eq!(Digest::of(bytes.value(row)).0, digests.value(row), "{corpus}, row {row} of its batch");
            }
            n_rows += batch.num_rows() as u64;
        }
    }
    assert_eq!(n_rows, manifest.n_records, "{corpus}");
    n_rows
}

#[test]
fn every_row_of_every_past_version_is_read_by_this_build() {
    assert_eq!(versions()[0], "1.0");
    for version in versions() {
        let folder = copy(&version);
        let store = Store::open(folder.path().to_str().unwrap()).unwrap();
        let corpora = store.corpora().unwrap();
        assert_eq!(corpora, ["world-audio", "world-image", "world-video"], "{version}");
        for corpus in &corpora {
            let manifest = store.manifest(corpus).unwrap().manifest;
            assert_eq!(manifest.schema_version.to_string(), version, "{corpus}");
            assert!(read_every_row(&store, corpus) >= 4, "{version}: {corpus}");
        }
    }
}

#[test]
fn the_check_has_nothing_against_a_past_version() {
    for version in versions() {
        let folder = copy(&version);
        let store = folder.path().to_str().unwrap();
        let done = imp_shards(&["check", "--store", store, "--decode", "all"]);
        let text = String::from_utf8_lossy(&done.stdout);
        assert_eq!(done.status.code(), Some(0), "{version}: {text}{}", String::from_utf8_lossy(&done.stderr));
    }
}

/// Key and value of the added column `n` of every row.
fn added(store: &Store, corpus: &str) -> Vec<(String, Option<i64>)> {
    let manifest = store.manifest(corpus).unwrap().manifest;
    let mut added = AddedColumns::of(store, &manifest);
    let mut all = Vec::new();
    for entry in &manifest.shards {
        let reader = ShardReader::open(store, corpus, entry).unwrap();
        let rows: Vec<u64> = (0..entry.n_rows).collect();
        let batch = added.read_joined(&reader, &rows, &[column::KEY, "n"]).unwrap();
        let (keys, values) = (batch.column(0).as_string::<i32>(), batch.column(1).as_primitive::<Int64Type>());
        all.extend(keys.iter().zip(values).map(|(key, n)| (key.unwrap().to_owned(), n)));
    }
    all
}

#[test]
fn added_columns_follow_the_rows_of_shards_that_are_written_anew() {
    let folder = copy("1.0");
    let url = folder.path().to_str().unwrap();
    let store = Store::open(url).unwrap();
    for corpus in store.corpora().unwrap() {
        let manifest = store.manifest(&corpus).unwrap().manifest;
        let mut table = "key,n\n".to_owned();
        for (i, entry) in manifest.shards.iter().enumerate() {
            let reader = ShardReader::open(&store, &corpus, entry).unwrap();
            for batch in reader.read_all(&[column::KEY]).unwrap() {
                let keys = batch.column(0).as_string::<i32>();
                // All but every third row.
                let rows = keys.iter().flatten().enumerate().filter(|(row, _)| row % 3 != 1);
                table += &rows.map(|(row, key)| format!("{key},{}\n", i * 1000 + row)).collect::<String>();
            }
        }
        let from = folder.path().join("n.csv");
        std::fs::write(&from, table).unwrap();
        let done = imp_shards(&["add-columns", "--store", url, &corpus, "--from", from.to_str().unwrap()]);
        assert!(done.status.success(), "{corpus}: {}", String::from_utf8_lossy(&done.stderr));
        let before = added(&store, &corpus);
        assert!(before.iter().any(|(_, n)| n.is_some()) && before.iter().any(|(_, n)| n.is_none()), "{corpus}");
        assert!(imp_shards(&["upgrade", "--store", url, &corpus]).status.success(), "{corpus}");
        let after = store.manifest(&corpus).unwrap().manifest;
        assert_ne!(after.shards[0].digest, manifest.shards[0].digest, "{corpus}");
        assert_eq!(added(&store, &corpus), before, "{corpus}");
    }
    let done = imp_shards(&["check", "--store", url, "--orphan-hours", "0"]);
    assert_eq!(done.status.code(), Some(0), "{}", String::from_utf8_lossy(&done.stdout));
}

#[test]
fn an_upgraded_store_is_of_this_version_and_clean_and_still_shows_what_it_was() {
    for version in versions() {
        let folder = copy(&version);
        let url = folder.path().to_str().unwrap();
        let store = Store::open(url).unwrap();
        for corpus in store.corpora().unwrap() {
            let before = store.manifest(&corpus).unwrap();
            let done = imp_shards(&["upgrade", "--store", url, &corpus]);
            assert!(done.status.success(), "{corpus}: {}", String::from_utf8_lossy(&done.stderr));
            let after = store.manifest(&corpus).unwrap();
            assert_eq!(after.manifest.schema_version, Format::Shard.current(), "{corpus}");
            assert_eq!(after.manifest.n_records, before.manifest.n_records, "{corpus}");
            assert_eq!(read_every_row(&store, &corpus), before.manifest.n_records, "{corpus}");
            // No record came, went or changed; the snapshot of before is as it was.
            let diff = imp_shards(&["diff", "--store", url, &corpus, "--from", "1", "--json"]);
            let diff: serde_json::Value = serde_json::from_slice(&diff.stdout).unwrap();
            for what in ["n_added", "n_removed", "n_changed"] {
                assert_eq!(diff["records"][what], 0, "{version}: {corpus}: {what}");
            }
            assert_eq!(store.snapshot(&corpus, before.version).unwrap(), before);
            let again = imp_shards(&["upgrade", "--store", url, &corpus]);
            assert!(String::from_utf8_lossy(&again.stdout).contains("nothing to do"), "{corpus}");
        }
        let done = imp_shards(&["check", "--store", url, "--decode", "all", "--orphan-hours", "0"]);
        assert_eq!(done.status.code(), Some(0), "{version}: {}", String::from_utf8_lossy(&done.stdout));
    }
}

#[test]
fn counts_that_add_up_only_because_they_wrap_do_not() {
    let path = golden().join("1.0/world-image/manifests/00000001.json");
    let good: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let read = |manifest: &serde_json::Value| Manifest::from_bytes("m", manifest.to_string().as_bytes());
    let n_rejected = read(&good).unwrap().n_rejected.values().sum::<u64>();
    let mut wrapped = good.clone();
    wrapped["n_rejected"] = serde_json::json!({ "corrupt": u64::MAX, "truncated": n_rejected + 1 });
    assert!(matches!(read(&wrapped), Err(ManifestError::CountsDoNotAddUp { .. })));
    // Rows of all shards, hidden ones included, are a number too.
    let mut hidden = good.clone();
    let shard = hidden["shards"][0].clone();
    for n_rows in [u64::MAX, 7] {
        let mut shard = shard.clone();
        shard["n_rows"] = n_rows.into();
        shard["n_deleted"] = n_rows.into();
        hidden["shards"].as_array_mut().unwrap().push(shard);
    }
    hidden["tombstones"] = serde_json::json!({ "digest": "0", "n_rows": 6 });
    assert!(matches!(read(&hidden), Err(ManifestError::CountsDoNotAddUp { .. })));
}
