//! The promises about batches: the same bytes whatever the machinery, from any step on.

use std::collections::BTreeMap;
use std::time::Duration;

use imp_loader::{EvalLoader, EvalSpec, Loader, LoaderSettings, explain};
use imp_schemas::batch::Batch;
use imp_schemas::cursor::Cursor;
use imp_schemas::modality::{Modality, RecordKind};
use imp_schemas::resolution::Resolution;
use imp_schemas::shard::manifest_key;
use imp_schemas::store::Store;
use imp_schemas::task::{Mixture, RawMixture};

use crate::stores::{Corpus, Row, image_row, store, three_corpora};

/// Every modality, several views, every augmentation.
pub const MIXTURE: &str = r#"{
    "seed": 9, "alternation": "weights",
    "patching": { "tube": [2, 8, 8], "spectrogram": [8, 16] },
    "spectrogram": { "window": 256, "hop": 128, "n_mels": 32 },
    "tasks": [
        { "name": "image-text", "corpora": ["photos"], "modalities": ["image", "text"], "objective": "nce", "batch": 6, "weight": 3.0,
          "augment": { "crop_area": [0.5, 1.0], "crop_aspect": [0.7, 1.4], "flip": true, "jitter": 0.8 }, "working_side": 40,
          "views": [{ "height": 32, "width": 32, "text_tokens": 4, "drop_rate": 0.5 }, { "height": 16, "width": 24, "text_tokens": 4 }] },
        { "name": "image-class", "corpora": ["photos"], "modalities": ["image"], "objective": "softmax", "batch": 5, "weight": 1.0,
          "views": [{ "height": 16, "width": 16 }] },
        { "name": "audio-text", "corpora": ["sounds"], "modalities": ["audio", "text"], "objective": "nce", "batch": 4, "weight": 1.0,
          "augment": { "gain_db": 6.0 },
          "views": [{ "spectrogram_frames": 48, "text_tokens": 6, "drop_rate": 0.25 }] },
        { "name": "video-text", "corpora": ["clips"], "modalities": ["video", "text"], "objective": "nce", "batch": 3, "weight": 1.0,
          "working_side": 24,
          "views": [{ "frames": 4, "stride": 2, "height": 16, "width": 16, "text_tokens": 4, "drop_rate": 0.5 }] }
    ] }"#;

pub fn mixture(json: &str) -> Mixture {
    serde_json::from_str::<RawMixture>(json).unwrap().try_into().unwrap()
}

pub fn take(store: &Store, settings: &LoaderSettings, start: Option<&Cursor>, n: usize) -> (Vec<Batch>, Cursor) {
    let mut loader = Loader::open(store, mixture(MIXTURE), settings, start).unwrap();
    let batches = (0..n).map(|_| loader.next().unwrap()).collect();
    (batches, loader.cursor())
}

fn digests(batches: &[Batch]) -> Vec<String> {
    batches.iter().map(Batch::digest).collect()
}

#[test]
fn threads_queues_and_cache_never_change_a_byte() {
    let (_dir, store) = three_corpora();
    let plain =
        LoaderSettings { decode_threads: 1, prefetch_batches: 1, decoded_cache_mib: 0, ..LoaderSettings::default() };
    let (want, _) = take(&store, &plain, None, 40);
    let variants = [
        LoaderSettings { decode_threads: 4, prefetch_batches: 9, ..plain.clone() },
        LoaderSettings { decoded_cache_mib: 64, ..plain.clone() },
        LoaderSettings { decoded_cache_mib: 1, decode_threads: 3, max_buffered_mib: 1, ..plain.clone() },
    ];
    for settings in variants {
        let (got, _) = take(&store, &settings, None, 40);
        assert_eq!(digests(&got), digests(&want), "{settings:?}");
    }
}

#[test]
fn the_cache_spares_decoding_and_reading() {
    let (_dir, store) = three_corpora();
    let read = |decoded_cache_mib| {
        let settings = LoaderSettings { decoded_cache_mib, ..LoaderSettings::default() };
        let mut loader = Loader::open(&store, mixture(MIXTURE), &settings, None).unwrap();
        for _ in 0..60 {
            loader.next().unwrap();
        }
        (loader.stats().media_bytes, loader.stats().n_cache_hits)
    };
    let (without, with) = (read(0), read(64));
    assert_eq!(without.1, 0);
    assert!(with.1 > 100 && with.0 * 2 < without.0, "{with:?} {without:?}");
}

#[test]
fn resuming_at_any_step_repeats_the_same_batches() {
    let (_dir, store) = three_corpora();
    let settings = LoaderSettings { decoded_cache_mib: 0, ..LoaderSettings::default() };
    let (whole, end) = take(&store, &settings, None, 24);
    for at in [0, 1, 5, 17] {
        let (before, cursor) = take(&store, &settings, None, at);
        assert_eq!(cursor.step, at as u64);
        let json = serde_json::to_vec(&cursor).unwrap();
        assert!(json.len() < 4096);
        let cursor: Cursor = serde_json::from_slice(&json).unwrap();
        let (after, last) = take(&store, &settings, Some(&cursor), 24 - at);
        assert_eq!(digests(&[before, after].concat()), digests(&whole), "resumed at {at}");
        assert_eq!(last, end);
    }
}

#[test]
fn a_wait_that_is_given_up_loses_no_batch() {
    let (_dir, store) = three_corpora();
    let settings = LoaderSettings::default();
    let (whole, end) = take(&store, &settings, None, 24);
    // On a busy machine the decoders may be ahead of every wait: then another loader is waited for.
    let mut n_given_up = 0;
    for _ in 0..50 {
        let mut loader = Loader::open(&store, mixture(MIXTURE), &settings, None).unwrap();
        let mut batches = Vec::new();
        while batches.len() < 24 {
            match loader.next_within(Duration::from_micros(1)).unwrap() {
                Some(batch) => batches.push(batch),
                None => n_given_up += 1,
            }
            assert_eq!(loader.cursor().step, batches.len() as u64);
        }
        assert_eq!((digests(&batches), loader.cursor()), (digests(&whole), end.clone()));
        if n_given_up > 0 {
            return;
        }
    }
    panic!("no wait was given up");
}

#[test]
fn every_epoch_of_a_task_holds_every_row_once() {
    let (_dir, store) = three_corpora();
    let (batches, _) = take(&store, &LoaderSettings::default(), None, 60);
    let mut seen: BTreeMap<(usize, u64), Vec<u64>> = BTreeMap::new();
    for batch in &batches {
        for example in &batch.examples {
            seen.entry((batch.task_idx, example.epoch)).or_default().push(example.row);
        }
    }
    let n_rows = [23u64, 23, 20, 9];
    let mut n_full = 0;
    for ((task_idx, epoch), mut rows) in seen.clone() {
        // An epoch is over when the task has gone on to the next.
        if seen.contains_key(&(task_idx, epoch + 1)) {
            rows.sort_unstable();
            assert_eq!(rows, (0..n_rows[task_idx]).collect::<Vec<_>>(), "task {task_idx}, epoch {epoch}");
            n_full += 1;
        }
    }
    assert!(n_full >= 10, "{n_full}");
}

#[test]
fn shapes_are_those_of_the_view() {
    let (_dir, store) = three_corpora();
    let mixture = mixture(MIXTURE);
    let (batches, _) = take(&store, &LoaderSettings::default(), None, 24);
    for batch in &batches {
        let view = &mixture.tasks()[batch.task_idx].views()[batch.view_idx];
        let n = batch.n();
        assert_eq!(n, view.n());
        let kept = |resolution: Resolution| {
            let n_tokens = resolution.n_tokens(mixture.patching()).unwrap();
            imp_schemas::resolution::n_kept(n_tokens, view.drop_rate()) * n
        };
        assert_eq!(batch.vision.as_ref().map(|v| v.resolution), view.vision());
        assert_eq!(batch.audio.as_ref().map(|a| a.resolution), view.audio());
        if let Some(vision) = &batch.vision {
            let want = match vision.resolution {
                Resolution::Image { height, width } => height * width * 3,
                Resolution::Video { frames, height, width } => frames * height * width * 3,
                other => panic!("{other}"),
            };
            assert_eq!(vision.pixels.len(), n * want);
            assert_eq!(vision.kept.as_ref().map(Vec::len), (view.drop_rate() > 0.0).then(|| kept(vision.resolution)));
        }
        if let Some(audio) = &batch.audio {
            assert_eq!(audio.values.len(), n * 48 * 32);
            assert_eq!(audio.kept.as_ref().map(Vec::len), Some(kept(audio.resolution)));
        }
        assert_eq!(batch.text.is_some(), view.text().is_some());
        if let Some(text) = &batch.text {
            assert_eq!(text.ids.len(), n * text.n_tokens);
            assert!(text.ids.iter().step_by(text.n_tokens).all(|&id| id > 0));
        }
        let labels = batch.labels.as_ref().unwrap();
        assert!(labels.iter().zip(&batch.examples).all(|(all, e)| *all == [(e.row % 4) as u32]));
    }
}

/// Batches of pictures with their labels alone.
fn labelled(rows: &[Row], is_before_1_2: bool) -> Vec<Batch> {
    let (_dir, store) = store();
    let corpus = Corpus { is_before_1_2, ..Corpus::new("photos", RecordKind::ImageText) };
    corpus.write(&store, rows, 1);
    let json = r#"{
        "seed": 4, "alternation": "weights", "patching": { "tube": [2, 8, 8], "spectrogram": [8, 16] },
        "spectrogram": { "window": 256, "hop": 128, "n_mels": 32 },
        "tasks": [{ "name": "image-class", "corpora": ["photos"], "modalities": ["image"], "objective": "sigmoid", "batch": 5, "weight": 1.0,
            "views": [{ "height": 16, "width": 16 }] }] }"#;
    let mut loader = Loader::open(&store, mixture(json), &LoaderSettings::default(), None).unwrap();
    (0..8).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn a_batch_carries_every_label_of_its_records_the_first_one_first() {
    let mut rows: Vec<Row> = (0..20).map(image_row).collect();
    rows.iter_mut().step_by(3).for_each(|row| row.label_ids = row.label.map(|first| vec![first, (first + 2) % 4]));
    let mut n_several = 0;
    for batch in labelled(&rows, false) {
        for (all, example) in batch.labels.as_ref().unwrap().iter().zip(&batch.examples) {
            let row = &rows[example.row as usize];
            let want: Vec<u32> =
                row.label_ids.clone().unwrap_or_else(|| vec![row.label.unwrap()]).iter().map(|&id| id as u32).collect();
            assert_eq!(*all, want, "row {}", example.row);
            n_several += usize::from(all.len() > 1);
        }
    }
    assert!(n_several > 5, "{n_several}");
}

#[test]
fn shards_of_before_there_were_several_labels_give_the_same_batches() {
    let rows: Vec<Row> = (0..20).map(image_row).collect();
    assert_eq!(digests(&labelled(&rows, true)), digests(&labelled(&rows, false)));
}

#[test]
fn a_cursor_of_another_run_is_refused_and_says_what_differs() {
    let (_dir, store) = three_corpora();
    let settings = LoaderSettings::default();
    let (_, cursor) = take(&store, &settings, None, 3);
    let open = |json: &str, cursor: &Cursor| {
        Loader::open(&store, mixture(json), &settings, Some(cursor)).err().map(|e| e.to_string()).unwrap_or_default()
    };
    assert_eq!(open(MIXTURE, &cursor), "");
    let seed = open(&MIXTURE.replace("\"seed\": 9", "\"seed\": 10"), &cursor);
    assert!(seed.contains("seed is 9, this run has 10"), "{seed}");
    let other = open(&MIXTURE.replace("\"gain_db\": 6.0", "\"gain_db\": 7.0"), &cursor);
    assert!(other.contains("mixture digest") && other.contains(&cursor.mixture_digest), "{other}");
    let mut counted = cursor.clone();
    counted.tasks[0].n_examples += 1;
    assert!(open(MIXTURE, &counted).contains("count"), "{}", open(MIXTURE, &counted));
    let rows: Vec<Row> = (0..24).map(image_row).collect();
    Corpus::new("photos", RecordKind::ImageText).write(&store, &rows, 2);
    assert_eq!(open(MIXTURE, &cursor), "", "the snapshot that the run began with is still there");
    store.delete(&manifest_key("photos", 1)).unwrap();
    let manifest = open(MIXTURE, &cursor);
    assert!(manifest.contains("manifest digest of corpus `photos`"), "{manifest}");
    assert!(manifest.contains(&cursor.manifest_digests["photos"]), "{manifest}");
}

#[test]
fn a_run_goes_on_with_the_snapshots_that_it_began_with() {
    let (_dir, store) = three_corpora();
    let settings = LoaderSettings::default();
    let (want, _) = take(&store, &settings, None, 12);
    let (_, cursor) = take(&store, &settings, None, 5);
    for version in 2..4 {
        let rows: Vec<Row> = (0..30 + version).map(|i| image_row(i as usize)).collect();
        Corpus::new("photos", RecordKind::ImageText).write(&store, &rows, version);
    }
    let (got, _) = take(&store, &settings, Some(&cursor), 7);
    assert_eq!(got, want[5..]);
    let mixture = mixture(MIXTURE);
    let explained = |run: Option<&Cursor>| {
        let step = |step| explain(&store, &mixture, run, step).unwrap();
        (5..12).map(step).collect::<Vec<_>>()
    };
    assert!(explained(Some(&cursor)) != explained(None), "new runs begin with the newest snapshot");
    let loader = Loader::open(&store, mixture.clone(), &settings, Some(&cursor)).unwrap();
    assert_eq!(loader.manifests()["photos"].version, 1);
}

#[test]
fn a_mixture_that_the_corpora_cannot_give_is_refused_before_the_first_batch() {
    let (_dir, store) = three_corpora();
    Corpus { classes: &[], tokenizer: "other", ..Corpus::new("plain", RecordKind::ImageText) }.write(
        &store,
        &(0..8).map(image_row).collect::<Vec<_>>(),
        1,
    );
    let cases = [
        (
            "[\"photos\"], \"modalities\": [\"image\", \"text\"]",
            "[\"fotos\"], \"modalities\": [\"image\", \"text\"]",
            vec!["task `image-text`", "`fotos`", "`clips`, `photos`, `plain`, `sounds`"],
        ),
        ("\"batch\": 6", "\"batch\": 6, \"split\": \"val\"", vec!["no split `val`", "`train`, `test`"]),
        ("\"batch\": 6", "\"batch\": 24", vec!["24 examples", "23 rows"]),
        ("[\"sounds\"]", "[\"photos\"]", vec!["`modalities` is audio", "image, text"]),
        ("[\"photos\"], \"modalities\": [\"image\"]", "[\"plain\"], \"modalities\": [\"image\"]", vec!["no classes"]),
        (
            "[\"photos\"], \"modalities\": [\"image\", \"text\"]",
            "[\"photos\", \"plain\"], \"modalities\": [\"image\", \"text\"]",
            vec!["different tokenizers", "`plain`"],
        ),
    ];
    for (from, to, wants) in cases {
        assert!(MIXTURE.contains(from));
        let error = Loader::open(&store, mixture(&MIXTURE.replace(from, to)), &LoaderSettings::default(), None);
        let message = error.err().map(|e| e.to_string()).unwrap_or_default();
        for want in wants {
            assert!(message.contains(want), "{to}: {message}");
        }
    }
    let settings = LoaderSettings { decode_threads: 0, ..LoaderSettings::default() };
    let error = Loader::open(&store, mixture(MIXTURE), &settings, None).err().unwrap().to_string();
    assert_eq!(error, "`train.loader.decode_threads` is 0, must be between 1 and 1024");
}

#[test]
fn evaluation_sees_every_row_once_in_order_with_all_its_captions() {
    let (_dir, store) = three_corpora();
    let mixture = mixture(MIXTURE);
    let cases: [(&str, usize, &[Modality], u64); 3] = [
        ("photos", 0, &[Modality::Image, Modality::Text], 23),
        ("sounds", 2, &[Modality::Audio, Modality::Text], 20),
        ("clips", 3, &[Modality::Video, Modality::Text], 9),
    ];
    for (corpus, task_idx, modalities, n_rows) in cases {
        let batches = |settings: &LoaderSettings| {
            let spec = EvalSpec {
                n: 4,
                ..EvalSpec::new(corpus, "train", modalities, &mixture.tasks()[task_idx].views()[0], &mixture)
            };
            EvalLoader::open(&store, &spec, settings).unwrap().map(Result::unwrap).collect::<Vec<_>>()
        };
        let all = batches(&LoaderSettings::default());
        assert_eq!(
            all,
            batches(&LoaderSettings { decode_threads: 1, prefetch_batches: 1, ..LoaderSettings::default() })
        );
        let rows: Vec<u64> = all.iter().flat_map(|b| b.rows.clone()).collect();
        assert_eq!(rows, (0..n_rows).collect::<Vec<_>>());
        assert_eq!(all.last().unwrap().batch.n() as u64, (n_rows - 1) % 4 + 1);
        for batch in &all {
            for (i, &row) in batch.rows.iter().enumerate() {
                let want = image_row(row as usize).tokens;
                assert_eq!(batch.tokens[i], want);
                assert_eq!(batch.captions[i], want.iter().map(|ids| format!("{ids:?}")).collect::<Vec<_>>());
                assert!(batch.keys[i].starts_with("train-"));
            }
            assert!(batch.batch.vision.as_ref().is_none_or(|v| v.kept.is_none()));
        }
    }
}

#[test]
fn a_loader_can_be_dropped_at_any_time() {
    let (_dir, store) = three_corpora();
    for n in [0, 1, 7] {
        let started = std::time::Instant::now();
        let mut loader = Loader::open(&store, mixture(MIXTURE), &LoaderSettings::default(), None).unwrap();
        for _ in 0..n {
            loader.next().unwrap();
        }
        drop(loader);
        // Nothing here takes longer than a batch; the limit is generous for a busy machine.
        assert!(started.elapsed().as_secs() < 9);
    }
    let (_empty, nothing) = store_without_corpora();
    let error = Loader::open(&nothing, mixture(MIXTURE), &LoaderSettings::default(), None).err().unwrap().to_string();
    assert!(error.contains("run imp-ingest first"), "{error}");
}

fn store_without_corpora() -> (tempfile::TempDir, Store) {
    store()
}
