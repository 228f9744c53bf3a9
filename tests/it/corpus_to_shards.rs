//! Real encoded files become shards, exactly once.

use imp_schemas::shard::Digest;

use crate::fixture::World;

#[test]
fn the_same_corpus_and_config_give_the_same_bytes_and_no_second_snapshot() {
    let world = World::new();
    let store = world.local_store();
    world.ingest(&store);
    let first = store.list("").unwrap();
    world.ingest(&store);
    assert_eq!(store.list("").unwrap(), first, "the second run wrote something");
    let other = world.local_run("other-store");
    world.ingest(&other);
    assert_eq!(other.list("").unwrap(), first, "another store got other names or sizes");
    for listed in first {
        assert_eq!(other.get(&listed.key).unwrap(), store.get(&listed.key).unwrap(), "{}", listed.key);
    }
}

#[test]
fn every_record_of_the_world_is_in_a_shard_of_its_split_under_its_digest() {
    let world = World::new();
    let store = world.local_store();
    world.ingest(&store);
    let report = testkit::world::standing(&world.corpora()).unwrap();
    for scene in &report.scenes {
        let manifest = store.manifest(&scene.name).unwrap().manifest;
        assert_eq!(manifest.n_rows("train"), scene.n_train as u64, "{}", scene.name);
        assert_eq!(manifest.n_rows("test"), scene.n_test as u64, "{}", scene.name);
        assert_eq!(manifest.n_inputs, manifest.n_records, "{}: nothing of the world is rejected", scene.name);
        for shard in &manifest.shards {
            let bytes = store.get(&imp_schemas::shard::shard_key(&scene.name, &shard.digest)).unwrap();
            assert_eq!(Digest::of(&bytes), shard.digest);
            assert_eq!(bytes.len() as u64, shard.n_bytes);
        }
    }
}
