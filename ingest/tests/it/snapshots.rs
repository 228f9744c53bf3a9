//! Snapshots: what is published is never changed, only followed by another.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, Int32Array};
use imp_ingest::{Mode, Progress, Rank, Report, RunOptions, collect_garbage, roll_back, run_as, withdraw};
use imp_schemas::manifest::{AddedColumn, Manifest, SideTableEntry};
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::{Digest, manifest_key, side_table_key};
use imp_schemas::shard_writer::SideTableWriter;
use imp_schemas::side_table::{AddedColumns, AddedType, ScalarType};
use imp_schemas::store::Store;

use crate::common::{World, batches, jpeg, png, seen, tar_of};

const TABLE: &str = "max_reject_share = 0.9\nunit_records = 4\n\
    [[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"c/t.csv\"\n";

/// A table of `names`, whose files are made unless they begin with `late`.
fn table(world: &World, names: &[&str]) {
    let mut rows = "path,caption\n".to_owned();
    for (seed, name) in names.iter().enumerate() {
        rows += &format!("{name}.jpg,about {name}\n");
        if !name.starts_with("late") {
            world.put(&format!("c/{name}.jpg"), jpeg(seed as u32 * 3 + name.len() as u32));
        }
    }
    world.put("c/t.csv", rows);
}

fn run(world: &World, config: &str, mode: Mode) -> Report {
    let options = RunOptions { mode, rank: Rank::default() };
    run_as(&world.config(config).unwrap(), &world.store("store"), &options, &mut Progress::silent()).unwrap()
}

/// Every object of a store with its digest.
fn contents(store: &Store) -> BTreeSet<(String, Digest)> {
    let all = store.list("").unwrap().into_iter();
    all.map(|listed| (listed.key.clone(), Digest::of(&store.get(&listed.key).unwrap()))).collect()
}

/// What a reader must see, whatever objects the journal has.
fn published(store: &Store) -> BTreeSet<(String, Digest)> {
    contents(store).into_iter().filter(|(key, _)| !key.contains("/commits/")).collect()
}

fn keys(store: &Store, manifest: &Manifest) -> BTreeSet<String> {
    let hidden = imp_schemas::tombstone::Hidden::of(&store.tombstones(manifest).unwrap());
    let mut keys = BTreeSet::new();
    for entry in &manifest.shards {
        let hidden = hidden.rows(&entry.digest);
        let rows = batches(store, &manifest.corpus, entry).into_iter().flat_map(|batch| {
            let column = batch.column_by_name("key").unwrap().clone();
            let column = arrow::array::AsArray::as_string::<i32>(&column).clone();
            (0..batch.num_rows()).map(move |row| column.value(row).to_owned()).collect::<Vec<_>>()
        });
        let live = rows.enumerate().filter(|(row, _)| !hidden.contains(&(*row as u64)));
        for (_, key) in live {
            assert!(keys.insert(key.clone()), "{key} twice");
        }
    }
    assert_eq!(keys.len() as u64, manifest.n_records);
    keys
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn a_run_that_is_repeated_writes_nothing_and_reads_no_medium() {
    let world = World::new();
    table(&world, &["a", "b", "c", "d", "e", "f", "g"]);
    assert!(run(&world, TABLE, Mode::Replace).corpora[0].published.is_new);
    let before = contents(&world.store("store"));
    let again = run(&world, TABLE, Mode::Replace);
    assert!(!again.corpora[0].published.is_new);
    assert_eq!(contents(&world.store("store")), before);
    // A medium that changes in place is seen, though its name and caption are the same.
    std::thread::sleep(Duration::from_millis(20));
    world.put("c/c.jpg", jpeg(99));
    assert!(run(&world, TABLE, Mode::Replace).corpora[0].published.is_new);
    assert_eq!(seen(&world.store("store"), "c").iter().find(|row| row.key == "c").unwrap().media, jpeg(99));
}

#[test]
fn any_number_of_workers_publish_what_one_would() {
    let world = World::new();
    let names: Vec<String> = (0..40).map(|i| format!("n{i:02}")).collect();
    table(&world, &names.iter().map(String::as_str).collect::<Vec<_>>());
    world.put("c/n07.jpg", "no picture");
    let config = world.config(TABLE).unwrap();
    imp_ingest::run(&config, &world.store("alone"), &mut Progress::silent()).unwrap();
    for of in [2, 3, 7] {
        let store = world.store(&format!("by{of}"));
        let mut n_published = 0;
        for rank in 0..of {
            let options = RunOptions { mode: Mode::Replace, rank: Rank::new(rank, of).unwrap() };
            let report = run_as(&config, &store, &options, &mut Progress::silent()).unwrap();
            assert_eq!(report.corpora.is_empty(), rank + 1 < of, "worker {rank} of {of}: {report}");
            assert_eq!(report.waiting.is_empty(), rank + 1 == of);
            n_published += report.corpora.len();
        }
        assert_eq!(n_published, 1);
        assert_eq!(contents(&store), contents(&world.store("alone")), "{of} workers");
    }
}

#[test]
fn workers_at_the_same_time_publish_one_manifest() {
    let world = World::new();
    let names: Vec<String> = (0..40).map(|i| format!("n{i:02}")).collect();
    table(&world, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let config = world.config(TABLE).unwrap();
    imp_ingest::run(&config, &world.store("alone"), &mut Progress::silent()).unwrap();
    let store = world.store("together");
    std::thread::scope(|scope| {
        for rank in [0, 1, 2, 0, 1, 2] {
            let (config, store) = (&config, &store);
            scope.spawn(move || {
                let options = RunOptions { mode: Mode::Replace, rank: Rank::new(rank, 3).unwrap() };
                run_as(config, store, &options, &mut Progress::silent()).unwrap();
            });
        }
    });
    assert_eq!(contents(&store), contents(&world.store("alone")));
}

#[test]
fn an_appended_run_keeps_the_old_records_and_hides_what_they_have_already() {
    let world = World::new();
    table(&world, &["a", "b", "c", "d", "e"]);
    run(&world, TABLE, Mode::Replace);
    let first = world.store("store").manifest("c").unwrap();
    table(&world, &["c", "x", "y", "e"]);
    let report = run(&world, TABLE, Mode::Append);
    let store = world.store("store");
    let second = store.manifest("c").unwrap();
    assert_eq!((second.version, report.corpora[0].n_records), (2, 7));
    assert_eq!(keys(&store, &second.manifest), set(&["a", "b", "c", "d", "e", "x", "y"]));
    assert_eq!(second.manifest.n_rejected[&RejectReason::DuplicateKey], 2);
    assert_eq!(second.manifest.n_inputs, 9);
    let hidden = store.tombstones(&second.manifest).unwrap();
    let old: BTreeSet<&Digest> = first.manifest.shards.iter().map(|s| &s.digest).collect();
    assert!(hidden.iter().all(|t| !old.contains(&t.shard)), "the new rows give way, not the old");
    // The old snapshot is what it was, and appending the same again adds nothing.
    assert_eq!(store.snapshot("c", 1).unwrap(), first);
    assert!(!run(&world, TABLE, Mode::Append).corpora[0].published.is_new);
    assert_eq!(store.manifest("c").unwrap().version, 2);
}

#[test]
fn a_retry_takes_up_the_inputs_of_its_reasons_and_no_others() {
    let world = World::new();
    table(&world, &["a", "late1", "b", "late2", "c"]);
    world.put("c/b.jpg", "no picture");
    run(&world, TABLE, Mode::Replace);
    let store = world.store("store");
    assert_eq!(store.manifest("c").unwrap().manifest.n_rejected[&RejectReason::MissingFile], 2);
    world.put("c/late1.jpg", jpeg(50));
    world.put("c/b.jpg", jpeg(51));
    let report = run(&world, TABLE, Mode::Retry(vec![RejectReason::MissingFile, RejectReason::Dns]));
    let manifest = store.manifest("c").unwrap().manifest;
    assert_eq!(keys(&store, &manifest), set(&["a", "c", "late1"]));
    let left: Vec<(RejectReason, u64)> = manifest.n_rejected.into_iter().collect();
    assert_eq!(left, [(RejectReason::MissingFile, 1), (RejectReason::UnknownFormat, 1)]);
    assert_eq!((manifest.n_inputs, report.corpora[0].n_inputs), (5, 5));
    let listed: u64 = manifest.rejects.iter().map(|entry| store.rejects("c", entry).unwrap().len() as u64).sum();
    assert_eq!(listed, 2);
    let options = RunOptions { mode: Mode::Retry(vec![RejectReason::Timeout]), rank: Rank::default() };
    let nothing = run_as(&world.config(TABLE).unwrap(), &store, &options, &mut Progress::silent()).unwrap_err();
    assert!(nothing.to_string().contains("rejected no input for timeout"), "{nothing}");
}

#[test]
fn keys_that_two_tars_share_stand_once() {
    let world = World::new();
    let (one, two) = (png(1), png(2));
    world.put("t/0.tar", tar_of(&[("a.png", &one), ("a.txt", b"first"), ("b.png", &one), ("b.txt", b"b")]));
    world.put("t/1.tar", tar_of(&[("a.png", &two), ("a.txt", b"second"), ("c.png", &two), ("c.txt", b"c")]));
    let config = "shard_mib = 1\nmax_reject_share = 0.9\n\
                  [[ingest.corpus]]\nname = \"c\"\nkind = \"image-text\"\npath = \"t/*.tar\"\n";
    run(&world, config, Mode::Replace);
    let manifest = world.manifest("c");
    assert_eq!(keys(&world.store("store"), &manifest), set(&["a", "b", "c"]));
    assert_eq!((manifest.n_inputs, manifest.n_rejected[&RejectReason::DuplicateKey]), (4, 1));
}

#[test]
fn withdrawn_records_are_hidden_and_a_rollback_shows_them_again() {
    let world = World::new();
    table(&world, &["a", "b", "c", "d"]);
    run(&world, TABLE, Mode::Replace);
    let store = world.store("store");
    let gone = ["b".to_owned(), "nobody".to_owned()];
    let edited = withdraw(&store, "c", &gone, "asked by its owner").unwrap();
    assert_eq!((edited.n_hidden, edited.n_records, &edited.not_found[..]), (1, 3, &["nobody".to_owned()][..]));
    let second = store.manifest("c").unwrap();
    assert_eq!(keys(&store, &second.manifest), set(&["a", "c", "d"]));
    assert_eq!(second.manifest.n_rejected[&RejectReason::Withdrawn], 1);
    assert_eq!(store.tombstones(&second.manifest).unwrap()[0].detail, "asked by its owner");
    assert!(!withdraw(&store, "c", &gone, "asked by its owner").unwrap().published.is_new);
    assert_eq!(roll_back(&store, "c", 1).unwrap().published.version, 3);
    assert_eq!(store.manifest("c").unwrap().manifest, store.snapshot("c", 1).unwrap().manifest);
    assert!(roll_back(&store, "c", 9).unwrap_err().to_string().contains("it has 1, 2, 3"));
}

/// Adds a column of ones to every row of the newest snapshot's shards, as `imp-shards add-columns` does.
fn add_column(store: &Store, name: &str) -> SideTableEntry {
    let snapshot = store.manifest("c").unwrap();
    let kind = AddedType { scalar: ScalarType::Int32, is_list: false };
    let columns = [AddedColumn { name: name.to_owned(), kind }];
    let mut writer = SideTableWriter::create("a test", "c", &columns).unwrap();
    for shard in &snapshot.manifest.shards {
        let n = shard.n_rows as usize;
        writer.write(&shard.digest, &[Arc::new(Int32Array::from(vec![1; n]))], n).unwrap();
    }
    let (file, entry) = writer.seal().unwrap();
    store.put_file(&side_table_key("c", &entry.digest), file.path()).unwrap();
    let mut manifest = snapshot.manifest;
    manifest.side_tables.push(entry.clone());
    let key = manifest_key("c", snapshot.version + 1);
    assert!(store.put_if_absent(&key, manifest.to_bytes().unwrap().into()).unwrap());
    entry
}

#[test]
fn added_columns_stay_as_long_as_a_shard_of_theirs() {
    let world = World::new();
    table(&world, &["a", "b", "c", "d", "e"]);
    run(&world, TABLE, Mode::Replace);
    let store = world.store("store");
    let tables = || store.manifest("c").unwrap().manifest.side_tables;
    let entry = add_column(&store, "score");
    // The same corpus again is the same snapshot, what was added to it included.
    assert!(!run(&world, TABLE, Mode::Replace).corpora[0].published.is_new);
    withdraw(&store, "c", &["a".to_owned()], "asked by its owner").unwrap();
    assert_eq!(tables(), std::slice::from_ref(&entry));
    table(&world, &["x", "late"]);
    run(&world, TABLE, Mode::Append);
    assert_eq!(tables(), std::slice::from_ref(&entry));
    world.put("c/late.jpg", jpeg(50));
    run(&world, TABLE, Mode::Retry(vec![RejectReason::MissingFile]));
    let newest = store.manifest("c").unwrap();
    assert_eq!(newest.manifest.side_tables, std::slice::from_ref(&entry));
    // Rows that came later are covered by no table, and read as null; those of before have their values.
    let mut added = AddedColumns::of(&store, &newest.manifest);
    let nulls = newest.manifest.shards.iter().map(|shard| {
        let rows: Vec<u64> = (0..shard.n_rows).collect();
        added.read(&shard.digest, &rows, &["score"]).unwrap().column(0).null_count() as u64
    });
    assert_eq!((nulls.sum::<u64>(), entry.n_rows), (2, 5));
    // What another column is named is collected with the snapshots that name it.
    let other = add_column(&store, "other");
    roll_back(&store, "c", 2).unwrap();
    assert_eq!(tables(), std::slice::from_ref(&entry));
    collect_garbage(&store, "c", None, Duration::ZERO, true).unwrap();
    let is_there = |entry: &SideTableEntry| store.size(&side_table_key("c", &entry.digest)).unwrap().is_some();
    assert!(is_there(&entry) && is_there(&other));
    collect_garbage(&store, "c", Some(1), Duration::ZERO, true).unwrap();
    assert!(is_there(&entry) && !is_there(&other));
    // Of another corpus no shard is covered.
    table(&world, &["y", "z"]);
    run(&world, TABLE, Mode::Replace);
    assert!(tables().is_empty());
}

#[test]
fn garbage_is_what_no_kept_snapshot_names_and_only_when_it_is_old() {
    let world = World::new();
    table(&world, &["a", "b", "c"]);
    run(&world, TABLE, Mode::Replace);
    let store = world.store("store");
    let orphan = "c/shards/0000.parquet";
    store.put(orphan, "left by a run that died".into()).unwrap();
    let young = collect_garbage(&store, "c", None, Duration::from_secs(3600), true).unwrap();
    assert!(young.objects.is_empty() && store.size(orphan).unwrap().is_some());
    let before = published(&store);
    let listed = collect_garbage(&store, "c", None, Duration::ZERO, false).unwrap();
    assert!(listed.objects.iter().any(|o| o.key == orphan) && store.size(orphan).unwrap().is_some());
    collect_garbage(&store, "c", None, Duration::ZERO, true).unwrap();
    let after = contents(&store);
    assert_eq!(after.len() + 1, before.len(), "all but the orphan of what is published stays");
    assert!(after.is_subset(&before) && after.iter().all(|(key, _)| key != orphan));
    // With the first snapshot given up, its own shards go, the second is whole.
    table(&world, &["x", "y"]);
    run(&world, TABLE, Mode::Replace);
    let removed = collect_garbage(&store, "c", Some(1), Duration::ZERO, true).unwrap();
    assert_eq!(removed.n_snapshots, 1);
    let manifest = store.manifest("c").unwrap().manifest;
    assert_eq!(keys(&store, &manifest), set(&["x", "y"]));
    assert_eq!(store.snapshot_versions("c").unwrap(), [2]);
}
