//! Shards become batches of one task each, the same whatever the machinery's settings.

use imp_loader::{EvalLoader, EvalSpec, Loader, LoaderSettings};
use imp_schemas::modality::Modality;
use imp_schemas::store::Store;
use imp_trainer::config::TrainConfig;

use crate::fixture::World;

/// Keys of the split `train` of the pictures, in the order an evaluation reads them.
fn keys(store: &Store, config: &TrainConfig) -> Vec<String> {
    let mixture = &config.mixture;
    let spec = EvalSpec {
        n: 5,
        ..EvalSpec::new("world-image", "train", &[Modality::Image], &mixture.tasks()[0].views()[0], mixture)
    };
    let loader = EvalLoader::open(store, &spec, &config.loader).unwrap();
    loader.flat_map(|batch| batch.unwrap().keys).collect()
}

#[test]
fn a_record_that_was_withdrawn_is_in_no_batch_and_all_others_are() {
    let world = World::new();
    let store = world.local_store();
    world.ingest(&store);
    let config = world.train_config(4, 2);
    let before = keys(&store, &config);
    let gone: Vec<String> = [0, 3, before.len() - 1].map(|i| before[i].clone()).to_vec();
    imp_ingest::withdraw(&store, "world-image", &gone, "a test").unwrap();
    let after = keys(&store, &config);
    let left: Vec<String> = before.into_iter().filter(|key| !gone.contains(key)).collect();
    assert_eq!(after, left);
}

#[test]
fn threads_prefetch_and_cache_change_no_byte_of_a_batch() {
    let world = World::new();
    let store = world.local_store();
    world.ingest(&store);
    let config = world.train_config(4, 2);
    let digests = |settings: &LoaderSettings| {
        let mut loader = Loader::open(&store, config.mixture.clone(), settings, None).unwrap();
        (0..20).map(|_| loader.next().unwrap().digest()).collect::<Vec<_>>()
    };
    let one = LoaderSettings { decode_threads: 1, prefetch_batches: 1, decoded_cache_mib: 0, ..config.loader.clone() };
    let many =
        LoaderSettings { decode_threads: 4, prefetch_batches: 7, decoded_cache_mib: 64, ..config.loader.clone() };
    assert_eq!(digests(&one), digests(&many));
}

#[test]
fn a_batch_has_one_task_its_view_and_its_streams() {
    let world = World::new();
    let store = world.local_store();
    world.ingest(&store);
    let config = world.train_config(4, 2);
    let mut loader = Loader::open(&store, config.mixture.clone(), &config.loader, None).unwrap();
    let mut views_seen = std::collections::BTreeSet::new();
    for step in 0..20 {
        let batch = loader.next().unwrap();
        let task = &config.mixture.tasks()[batch.task_idx];
        let view = &task.views()[batch.view_idx];
        assert_eq!((batch.step, batch.n()), (step, view.n()));
        assert_eq!(batch.vision.as_ref().map(|v| v.resolution), view.vision());
        assert_eq!(batch.audio.as_ref().map(|a| a.resolution), view.audio());
        assert_eq!(batch.text.is_some(), view.text().is_some());
        views_seen.insert((batch.task_idx, batch.view_idx));
    }
    assert_eq!(views_seen.len(), 6, "five tasks, one of them at two resolutions: {views_seen:?}");
    assert_eq!(loader.cursor().step, 20);
}
