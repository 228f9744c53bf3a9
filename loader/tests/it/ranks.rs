//! What a step trains on depends on nothing but the plan: not on ranks, threads, or where a run was interrupted.

use std::collections::BTreeMap;

use imp_loader::{Loader, LoaderError, LoaderSettings, Rank};
use imp_schemas::batch::{Batch, ExampleId};
use imp_schemas::modality::RecordKind;
use imp_schemas::store::Store;
use imp_schemas::task::Mixture;
use proptest::prelude::*;

use crate::batches::{MIXTURE, mixture};
use crate::stores::{Corpus, Row, audio_row, image_row, store, video_row};

/// Step, task, view, and of each example which it is and what it holds.
type Seen = (u64, usize, usize, Vec<(ExampleId, String)>);

fn seen(batch: &Batch) -> Seen {
    let examples = (0..batch.n()).map(|i| (batch.examples[i], batch.example_digest(i)));
    (batch.step, batch.task_idx, batch.view_idx, examples.collect())
}

/// Three corpora, some of whose records do not decode.
fn corpora() -> (tempfile::TempDir, Store) {
    let (dir, store) = store();
    let mut rows: Vec<Row> = (0..23).map(image_row).collect();
    for i in [2, 3, 11] {
        rows[i].medium.truncate(60);
    }
    Corpus::new("photos", RecordKind::ImageText).write(&store, &rows, 1);
    let mut rows: Vec<Row> = (0..20).map(audio_row).collect();
    rows[7].medium.truncate(30);
    Corpus::new("sounds", RecordKind::AudioText).write(&store, &rows, 1);
    let rows: Vec<Row> = (0..9).map(|i| video_row(i, 6 + i)).collect();
    Corpus::new("clips", RecordKind::VideoText).write(&store, &rows, 1);
    (dir, store)
}

fn changed(seed: u64, alternation: &str, radius: Option<u64>, changes: &[(&str, serde_json::Value)]) -> Mixture {
    let mut all: serde_json::Value = serde_json::from_str(MIXTURE).unwrap();
    all["seed"] = seed.into();
    all["alternation"] = alternation.into();
    all["shuffle_radius"] = serde_json::json!(radius);
    if alternation == "intervals" {
        for (i, task) in all["tasks"].as_array_mut().unwrap().iter_mut().enumerate() {
            task.as_object_mut().unwrap().remove("weight");
            task["interval"] = (i + 1).into();
        }
    }
    for (key, value) in changes {
        all[*key] = value.clone();
    }
    mixture(&all.to_string())
}

/// Steps `steps` by `n_ranks` loaders, each with settings of its own, put together.
fn by_ranks(
    store: &Store,
    mixture: &Mixture,
    n_ranks: usize,
    threads: usize,
    steps: std::ops::Range<u64>,
) -> Vec<Seen> {
    let mut together: BTreeMap<u64, Seen> = BTreeMap::new();
    for rank in 0..n_ranks {
        let settings = LoaderSettings {
            decode_threads: 1 + (threads + rank) % 3,
            prefetch_batches: 1 + (threads * 2 + rank) % 4,
            decoded_cache_mib: (threads + rank) % 2,
            ..LoaderSettings::default()
        };
        let rank = Rank { rank, of: n_ranks };
        let mut loader = Loader::open_at_step(store, mixture.clone(), &settings, steps.start, rank).unwrap();
        for _ in steps.clone() {
            let part = seen(&loader.next().unwrap());
            match together.get_mut(&part.0) {
                Some(all) => {
                    assert_eq!((all.1, all.2), (part.1, part.2));
                    all.3.extend(part.3);
                }
                None => _ = together.insert(part.0, part),
            }
        }
        assert_eq!(loader.cursor().step, steps.end);
    }
    together.into_values().collect()
}

/// One decoding thread, nothing ahead, nothing kept, one rank: the reference.
fn reference(store: &Store, mixture: &Mixture, n_steps: usize) -> Vec<Seen> {
    let settings =
        LoaderSettings { decode_threads: 1, prefetch_batches: 1, decoded_cache_mib: 0, ..LoaderSettings::default() };
    let mut loader = Loader::open(store, mixture.clone(), &settings, None).unwrap();
    (0..n_steps).map(|_| seen(&loader.next().unwrap())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn ranks_threads_and_interruptions_change_nothing(
        seed in any::<u64>(),
        alternation in prop::sample::select(vec!["weights", "random", "intervals"]),
        radius in prop::option::of(1u64..40),
        // Where the run stops and with how many ranks and threads it goes on.
        stints in prop::collection::vec((1u64..14, 1usize..4, 0usize..6), 2..4),
    ) {
        let (_dir, store) = corpora();
        let mixture = changed(seed, alternation, radius, &[]);
        let n_steps: u64 = stints.iter().map(|stint| stint.0).sum();
        let want = reference(&store, &mixture, n_steps as usize);
        let (mut got, mut step) = (Vec::new(), 0);
        for (n, n_ranks, threads) in stints {
            got.extend(by_ranks(&store, &mixture, n_ranks, threads, step..step + n));
            step += n;
        }
        prop_assert_eq!(got, want);
    }
}

#[test]
fn a_rank_that_is_none_and_a_batch_that_cannot_be_cut_are_refused() {
    let (_dir, store) = corpora();
    let open = |rank, of| {
        let opened = Loader::open_rank(&store, mixture(MIXTURE), &LoaderSettings::default(), None, Rank { rank, of });
        opened.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert!(open(2, 2).contains("rank 2 of 2"));
    let message = open(0, 4);
    assert!(message.contains("`video-text`") && message.contains("at least one for each of 4 ranks"), "{message}");
}

#[test]
fn a_run_goes_on_with_changes_ahead_of_it_and_not_with_others_behind_it() {
    let (_dir, store) = corpora();
    let settings = LoaderSettings::default();
    let plain = changed(4, "weights", None, &[]);
    let mut loader = Loader::open(&store, plain.clone(), &settings, None).unwrap();
    for _ in 0..10 {
        loader.next().unwrap();
    }
    let cursor = loader.cursor();
    let skip = |from: u64| [("skip", serde_json::json!([[from, from + 5]]))];
    let ahead = changed(4, "weights", None, &skip(10));
    let mut resumed = Loader::open(&store, ahead, &settings, Some(&cursor)).unwrap();
    let want = reference(&store, &plain, 20);
    for step in 10..15usize {
        let got = seen(&resumed.next().unwrap());
        assert_eq!((got.0, &got.3), (step as u64, &want[step + 5].3), "what step {} would have had", step + 5);
    }
    let behind = changed(4, "weights", None, &skip(9));
    let error = Loader::open(&store, behind, &settings, Some(&cursor)).err().unwrap();
    assert!(matches!(&error, LoaderError::OtherRun { what, .. } if what == "mixture digest"), "{error}");

    let phases = serde_json::json!([{ "from_step": 12, "tasks": { "image-text": { "weight": 0.0 } } }]);
    let phased = changed(4, "weights", None, &[("phases", phases)]);
    let mut resumed = Loader::open(&store, phased, &settings, Some(&cursor)).unwrap();
    let tasks: Vec<usize> = (10..30).map(|_| resumed.next().unwrap().task_idx).collect();
    assert!(tasks[2..].iter().all(|&task| task != 0) && tasks[..2] == [want[10].1, want[11].1], "{tasks:?}");
}

#[test]
fn a_batch_holds_records_of_one_shape_and_an_epoch_every_record() {
    let (_dir, store) = store();
    let rows: Vec<Row> = (0..40).map(image_row).collect();
    let sizes: Vec<(i32, i32)> = rows.iter().map(|row| row.size).collect();
    Corpus::new("photos", RecordKind::ImageText).write(&store, &rows, 1);
    let json = r#"{ "seed": 2, "patching": { "tube": [2, 8, 8], "spectrogram": [8, 16] }, "tasks": [{ "name": "t",
        "corpora": ["photos"], "modalities": ["image", "text"], "objective": "nce", "batch": 2, "aspect_buckets": true,
        "views": [{ "height": 32, "width": 32, "text_tokens": 4 }, { "height": 24, "width": 32, "text_tokens": 4 },
                  { "height": 32, "width": 24, "text_tokens": 4 }, { "height": 16, "width": 32, "text_tokens": 4 }] }] }"#;
    let mut loader = Loader::open(&store, mixture(json), &LoaderSettings::default(), None).unwrap();
    let (mut views, mut rows) = (BTreeMap::new(), Vec::new());
    for _ in 0..20 {
        let batch = loader.next().unwrap();
        for example in &batch.examples {
            let (width, height) = sizes[example.row as usize];
            let of_view = *views.entry(width * 1000 / height).or_insert(batch.view_idx);
            assert_eq!(of_view, batch.view_idx, "{width} x {height} came at two shapes");
            rows.push(example.row);
        }
    }
    assert!(views.values().collect::<std::collections::BTreeSet<_>>().len() > 1, "{views:?}");
    rows.sort_unstable();
    rows.dedup();
    // Each bucket's epoch ends within a batch of the others'.
    assert!(rows.len() >= 40 - 4 * 2, "{}", rows.len());
}
