//! Bad content is counted and replaced, the same way everywhere; a bad store stops the run.

use imp_loader::{EvalLoader, EvalSpec, Loader, LoaderError, LoaderSettings, explain};
use imp_schemas::batch::Batch;
use imp_schemas::modality::{Modality, RecordKind};
use imp_schemas::shard::shard_key;
use imp_schemas::store::Store;

use crate::batches::{MIXTURE, mixture};
use crate::stores::{Corpus, Row, image_row, store, video_row};

fn only(task_idx: usize) -> String {
    let mut all: serde_json::Value = serde_json::from_str(MIXTURE).unwrap();
    all["tasks"] = serde_json::json!([all["tasks"][task_idx].clone()]);
    all.to_string()
}

/// 23 pictures, of which `bad` are cut short.
fn photos(bad: &[usize]) -> (tempfile::TempDir, Store) {
    let (dir, store) = store();
    let mut rows: Vec<Row> = (0..23).map(image_row).collect();
    for &i in bad {
        let half = rows[i].medium.len() / 2;
        rows[i].medium.truncate(half);
    }
    Corpus::new("photos", RecordKind::ImageText).write(&store, &rows, 1);
    (dir, store)
}

fn take(store: &Store, settings: &LoaderSettings, n: usize) -> Result<(Vec<Batch>, Loader), LoaderError> {
    let mut loader = Loader::open(store, mixture(&only(0)), settings, None)?;
    let batches = (0..n).map(|_| loader.next()).collect::<Result<_, _>>()?;
    Ok((batches, loader))
}

#[test]
fn a_record_that_does_not_decode_is_replaced_alike_on_every_machine() {
    let (_dir, store) = photos(&[3, 4, 20]);
    let settings = LoaderSettings { max_substituted: 3, ..LoaderSettings::default() };
    let (want, loader) = take(&store, &settings, 30).unwrap();
    let one = LoaderSettings { decode_threads: 1, prefetch_batches: 1, decoded_cache_mib: 0, ..settings.clone() };
    let (got, _) = take(&store, &one, 30).unwrap();
    assert!(want.iter().zip(&got).all(|(a, b)| a.digest() == b.digest()));
    for batch in &want {
        assert_eq!(batch.n(), 6);
        assert!(batch.examples.iter().all(|e| ![3, 4, 20].contains(&e.row)));
        let mut rows: Vec<_> = batch.examples.clone();
        rows.sort_unstable();
        rows.dedup();
        assert_eq!(rows.len(), 6, "a substitute comes from beyond the batch");
    }
    let substituted = loader.stats().substituted;
    let rows: Vec<u64> = substituted.iter().map(|s| s.row).collect();
    assert_eq!(substituted.len(), 3);
    assert!(
        rows.contains(&3) && rows.contains(&4) && rows.contains(&6),
        "row 20 is row 6 of the third shard: {rows:?}"
    );
    assert!(substituted.iter().all(|s| s.corpus == "photos" && s.shard.starts_with("photos/shards/")));
}

#[test]
fn too_many_bad_records_stop_the_run_and_name_the_last_one() {
    let (_dir, store) = photos(&[3, 4, 20]);
    let settings = LoaderSettings { max_substituted: 2, ..LoaderSettings::default() };
    let error = take(&store, &settings, 30).err().unwrap();
    let message = error.to_string();
    assert!(matches!(error, LoaderError::TooManySubstituted { n_substituted: 3, limit: 2, .. }), "{message}");
    assert!(message.contains("photos/shards/") && message.contains("row "), "{message}");
}

#[test]
fn after_an_error_the_loader_says_that_it_stopped() {
    let (_dir, store) = photos(&(0..23).collect::<Vec<_>>());
    let settings = LoaderSettings { max_substituted: 100, ..LoaderSettings::default() };
    let mut loader = Loader::open(&store, mixture(&only(0)), &settings, None).unwrap();
    assert!(matches!(loader.next(), Err(LoaderError::NothingDecodes { n_rows: 23, .. })));
    assert!(matches!(loader.next(), Err(LoaderError::Stopped)));
    assert_eq!(loader.cursor().step, 0);
}

#[test]
fn a_missing_shard_is_an_error_and_never_a_substitute() {
    let (_dir, store) = photos(&[]);
    let manifest = store.manifest("photos").unwrap().manifest;
    store.delete(&shard_key("photos", &manifest.shards[1].digest)).unwrap();
    let error = take(&store, &LoaderSettings::default(), 30).err().unwrap();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    assert!(text.contains(&manifest.shards[1].digest.0) && text.contains("does not exist"), "{text}");
}

#[test]
fn evaluation_leaves_no_undecodable_record_out() {
    let (_dir, store) = photos(&[9]);
    let mixture = mixture(&only(0));
    let spec = EvalSpec {
        n: 4,
        ..EvalSpec::new("photos", "train", &[Modality::Image], &mixture.tasks()[0].views()[0], &mixture)
    };
    let all: Vec<_> = EvalLoader::open(&store, &spec, &LoaderSettings::default()).unwrap().collect();
    assert_eq!(all.len(), 3, "two batches before row 9, then the error");
    assert!(matches!(&all[2], Err(LoaderError::Undecodable { row: 2, .. })));
}

#[test]
fn a_silent_video_is_no_example_of_sound_and_no_bad_record() {
    let (_dir, store) = store();
    let rows: Vec<Row> = (0..6).map(|i| video_row(i, 8)).collect();
    Corpus::new("clips", RecordKind::VideoText).write(&store, &rows, 1);
    let json = r#"{ "seed": 1, "patching": { "tube": [2, 8, 8], "spectrogram": [8, 16] }, "spectrogram": { "n_mels": 32 },
        "tasks": [{ "name": "sound", "corpora": ["clips"], "modalities": ["audio", "text"], "objective": "nce", "batch": 2,
            "views": [{ "spectrogram_frames": 8, "text_tokens": 4 }] }] }"#;
    let settings = LoaderSettings { max_substituted: 0, ..LoaderSettings::default() };
    let explained = explain(&store, &mixture(json), None, 0).unwrap();
    assert!(explained.examples.iter().all(|example| example.lacks == Some("sound")), "{explained:?}");
    let mut loader = Loader::open(&store, mixture(json), &settings, None).unwrap();
    let error = loader.next().err().unwrap().to_string();
    assert!(error.contains("none of its 6 records") && error.contains("no sound track"), "{error}");
    assert!(loader.stats().n_without_sound >= 6 && loader.stats().substituted.is_empty());
}
