//! Shards train a model, its checkpoint gets scores; the same over S3.

use imp_schemas::run_file::RunFile;
use imp_schemas::store::Store;
use imp_trainer::config::RawTrain;
use imp_trainer::eval::Measure;
use imp_trainer::{checkpoint, device, metrics};
use testkit::s3::S3Server;

use crate::fixture::World;

/// Task, bytes of the batch, bits of the loss.
type Step = (String, String, u32);

fn steps_of(run: &Store) -> Vec<Step> {
    let steps = metrics::read(run).unwrap();
    steps.into_iter().map(|s| (s.task, s.batch_digest, s.loss.to_bits())).collect()
}

/// Ingest → loader → checkpoint → scores, all through `store` and `run`.
fn whole_path(world: &World, store: &Store, run: &Store) -> Vec<Step> {
    let report = world.ingest(store);
    assert_eq!(report.corpora.len(), 3);
    let config = world.train_config(8, 3);
    let fitted = device::fit(&config, store, run, &mut |_| {}).unwrap();
    assert_eq!((fitted.first_step, fitted.steps), (0, 8));
    assert_eq!(checkpoint::steps(run).unwrap(), [6, 8], "keep_checkpoints is 2, one every 3 steps and one at the end");
    let scores = device::eval(&config, store, run, &mut |_| {}).unwrap();
    assert_eq!(scores.step, 8);
    assert_eq!(
        scores.scores.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(),
        ["images", "clips", "sounds", "sounds as waveforms", "images by a probe"]
    );
    for score in &scores.scores {
        let share = match &score.measure {
            Measure::ZeroShot(classified) => {
                assert_eq!(classified.chance, 1.0 / classified.n_classes as f64);
                assert_eq!(classified.n_classes, 6, "the tiny world holds out six combinations of each scene");
                classified.top1
            }
            Measure::Retrieval { r_at_10, .. } => *r_at_10,
            Measure::LinearProbe { n_train, classified } => {
                assert!(*n_train > 12, "{score:?}");
                classified.top1
            }
        };
        assert!((0.0..=1.0).contains(&share) && score.n == 12, "{score:?}");
    }
    assert!(!scores.examples.is_empty());
    steps_of(run)
}

#[test]
fn the_whole_path_gives_the_same_steps_on_a_folder_and_on_s3_over_http() {
    let world = World::new();
    let local = whole_path(&world, &world.local_store(), &world.local_run("run"));
    assert_eq!(local.len(), 8);
    assert_eq!(local.iter().map(|(task, ..)| task).collect::<std::collections::BTreeSet<_>>().len(), 5);

    let server = S3Server::start().unwrap();
    let store = Store::open_with(&server.url("store"), &server.options()).unwrap();
    let run = Store::open_with(&server.url("run"), &server.options()).unwrap();
    assert_eq!(whole_path(&world, &store, &run), local);
    assert!(server.n_requests() > 20, "the steps above came through the server");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_what_its_step_started_from_is_kept() {
    let world = World::new();
    let (store, run) = (world.local_store(), world.local_run("run"));
    world.ingest(&store);
    let path = world.run_file(40, 1);
    let text = std::fs::read_to_string(&path).unwrap().replace("peak_lr = 1e-3", "peak_lr = 1e30");
    std::fs::write(&path, text).unwrap();
    let raw: RawTrain = RunFile::read(&path).unwrap().table(&path, "train").unwrap();
    let error = device::fit(&raw.try_into().unwrap(), &store, &run, &mut |_| {}).unwrap_err();
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    assert!(
        text.contains("task `") && text.contains("in `failed/000000") && text.contains("lower the peak rate"),
        "{text}"
    );
    let last = *checkpoint::steps(&run).unwrap().last().unwrap();
    let key = |name: &str| format!("failed/{last:08}/{name}");
    let why: serde_json::Value = serde_json::from_slice(&run.get(&key("why.json")).unwrap()).unwrap();
    assert_eq!(why["step"], last);
    assert!(!why["examples"].as_array().unwrap().is_empty() && why["batch_digest"].as_str().unwrap().len() == 64);
    // Nothing had moved: it is the checkpoint after the step before.
    let newest = imp_schemas::checkpoint::checkpoint_keys(last);
    assert_eq!(run.get(&key("model.safetensors")).unwrap(), run.get(&newest.model).unwrap());
}

#[test]
fn stopping_at_any_step_and_starting_again_repeats_the_same_steps_to_the_last_bit() {
    let world = World::new();
    let store = world.local_store();
    world.ingest(&store);
    let whole = world.local_run("whole");
    device::fit(&world.train_config(9, 9), &store, &whole, &mut |_| {}).unwrap();
    let wanted = steps_of(&whole);
    for stop in 1..9 {
        let run = world.local_run(&format!("stopped-{stop}"));
        let mut config = world.train_config(9, 9);
        config.steps = stop;
        device::fit(&config, &store, &run, &mut |_| {}).unwrap();
        config.steps = 9;
        let fitted = device::fit(&config, &store, &run, &mut |_| {}).unwrap();
        assert_eq!(fitted.first_step, stop);
        assert_eq!(steps_of(&run), wanted, "stopped after {stop} steps");
    }
}

#[test]
fn a_run_is_not_resumed_on_other_shards_or_another_mixture() {
    let world = World::new();
    let (store, run) = (world.local_store(), world.local_run("run"));
    world.ingest(&store);
    device::fit(&world.train_config(2, 2), &store, &run, &mut |_| {}).unwrap();
    let path = world.run_file(4, 2);
    let changed = std::fs::read_to_string(&path).unwrap().replace("seed = 11", "seed = 12");
    std::fs::write(&path, changed).unwrap();
    let raw: imp_trainer::config::RawTrain =
        imp_schemas::run_file::RunFile::read(&path).unwrap().table(&path, "train").unwrap();
    let error = device::fit(&raw.try_into().unwrap(), &store, &run, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("seed") && error.contains("11") && error.contains("12"), "{error}");
}

#[test]
fn a_damaged_checkpoint_is_named_and_never_used() {
    let world = World::new();
    let (store, run) = (world.local_store(), world.local_run("run"));
    world.ingest(&store);
    device::fit(&world.train_config(2, 2), &store, &run, &mut |_| {}).unwrap();
    let key = imp_schemas::checkpoint::checkpoint_keys(2).model;
    let mut bytes = run.get(&key).unwrap().to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    run.put(&key, bytes.into()).unwrap();
    let error = device::fit(&world.train_config(4, 2), &store, &run, &mut |_| {}).unwrap_err().to_string();
    assert!(error.contains(&key) && error.contains("digest"), "{error}");
}
