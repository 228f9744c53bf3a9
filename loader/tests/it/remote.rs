//! Reading from an S3 server: which requests are made, what is made good, what is refused, what is not asked for again.

use std::path::Path;
use std::time::Duration;

use arrow::array::AsArray;
use imp_loader::{EvalLoader, EvalSpec, Loader, LoaderSettings, LoaderStats};
use imp_schemas::batch::Batch;
use imp_schemas::manifest::ShardEntry;
use imp_schemas::modality::{Modality, RecordKind};
use imp_schemas::record::column;
use imp_schemas::shard::shard_key;
use imp_schemas::shard_reader::{ShardReadError, ShardReader};
use imp_schemas::store::disk_cache::DiskCache;
use imp_schemas::store::ranges::MAX_REQUEST;
use imp_schemas::store::sealed::{Reading, Sealed};
use imp_schemas::store::{Store, StoreError};
use testkit::s3::{Faults, S3Server};

use crate::batches::{MIXTURE, mixture};
use crate::stores::{Corpus, Row, image_row, three_corpora};

const COLUMNS: [&str; 2] = ["image.bytes", column::TOKENS];

/// Every GET of a shard since the log was last taken, as byte ranges by rising start.
fn asked(server: &S3Server) -> Vec<(u64, u64)> {
    let log = server.take_log();
    let of_shards = log.iter().filter(|asked| asked.method == "GET" && asked.key.contains("/shards/"));
    let mut ranges: Vec<(u64, u64)> = of_shards
        .map(|asked| {
            let range = asked.range.as_ref().and_then(|range| range.strip_prefix("bytes=")).unwrap();
            let (first, last) = range.split_once('-').unwrap();
            (first.parse().unwrap(), last.parse::<u64>().unwrap() + 1)
        })
        .collect();
    ranges.sort_unstable();
    ranges
}

/// A medium that is told from every other at every place.
fn noise(i: usize, n: usize) -> Vec<u8> {
    (0..n).map(|at| ((at / 253) ^ (at % 253) ^ (i * 31)) as u8).collect()
}

/// A shard of media of these sizes, and the rows it was made of.
fn shard(server: &S3Server, sizes: &[usize]) -> (Store, ShardEntry, Vec<Row>) {
    let store = Store::open_with(&server.url("p"), &server.options()).unwrap();
    let row = |(i, &n): (usize, &usize)| Row { medium: noise(i, n), ..image_row(i) };
    let rows: Vec<Row> = sizes.iter().enumerate().map(row).collect();
    let corpus = Corpus { rows_per_group: 4, ..Corpus::new("photos", RecordKind::ImageText) };
    let entry = corpus.write_shard(&store, &rows, "train");
    (store, entry, rows)
}

fn check_rows(reader: &ShardReader, rows: &[Row], wanted: &[u64]) {
    let batch = reader.read(wanted, &COLUMNS).unwrap();
    let media = batch.column_by_name("image").unwrap().as_struct().column(0).as_binary::<i32>();
    for (i, &row) in wanted.iter().enumerate() {
        assert!(media.value(i) == rows[row as usize].medium, "row {row} of {wanted:?}");
    }
}

#[test]
fn the_requests_of_a_read_are_those_that_are_told() {
    let server = S3Server::start().unwrap();
    let sizes = [400_000, 100, 400_000, 400_000, 2 * MAX_REQUEST as usize + 5, 100, 100, 400_000, 50_000, 60_000];
    let (store, entry, rows) = shard(&server, &sizes);
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    let index = entry.index_offset;
    assert_eq!(asked(&server), [(index, entry.n_bytes)], "footer and index are one request");
    let mut n_requests = 1;
    for wanted in [&[0][..], &[0, 2], &[0, 1, 3], &[4], &[0, 4, 9], &[8, 9], &(0..10).collect::<Vec<_>>()] {
        let told = reader.requests(wanted, &COLUMNS).unwrap();
        assert_eq!(asked(&server), [], "telling reads nothing");
        check_rows(&reader, &rows, wanted);
        let told: Vec<(u64, u64)> = told.iter().map(|range| (range.start, range.end)).collect();
        assert_eq!(asked(&server), told, "rows {wanted:?}");
        n_requests += told.len() as u64;
        if wanted.contains(&4) {
            assert!(told.iter().filter(|(start, end)| end - start >= MAX_REQUEST / 2).count() >= 3, "{told:?}");
        }
    }
    assert_eq!(
        reader.requests(&[0, 3], &COLUMNS).unwrap().len(),
        2,
        "two media far apart, the first of them behind the columns"
    );
    assert_eq!(reader.requests(&[], &COLUMNS).unwrap(), []);
    assert!(matches!(reader.requests(&[10], &COLUMNS), Err(ShardReadError::Rows { row: 10, .. })));
    assert_eq!(store.reading_stats().n_requests, n_requests);
    // A cache that is full changes nothing.
    let dir = tempfile::tempdir().unwrap();
    let full = store.reading(Reading::new(Duration::ZERO, Some(DiskCache::open(dir.path(), 0, []))));
    let reader = ShardReader::open(&full, "photos", &entry).unwrap();
    server.take_log();
    check_rows(&reader, &rows, &[0, 4, 9]);
    let told = reader.requests(&[0, 4, 9], &COLUMNS).unwrap();
    assert_eq!(asked(&server), told.iter().map(|range| (range.start, range.end)).collect::<Vec<_>>());
}

#[test]
fn what_a_disk_cache_holds_between_what_it_does_not_is_read_with_it() {
    let server = S3Server::start().unwrap();
    let (store, entry, rows) = shard(&server, &[60_000; 7]);
    let dir = tempfile::tempdir().unwrap();
    let with =
        |max_bytes| store.reading(Reading::new(Duration::ZERO, Some(DiskCache::open(dir.path(), max_bytes, []))));
    let roomy = ShardReader::open(&with(1 << 30), "photos", &entry).unwrap();
    check_rows(&roomy, &rows, &[1]);
    check_rows(&roomy, &rows, &[5]);
    // The rows around those come in one request that spans them: without room to keep it, and with.
    let full = ShardReader::open(&with(0), "photos", &entry).unwrap();
    check_rows(&full, &rows, &[0, 1, 3, 5, 6]);
    check_rows(&roomy, &rows, &[0, 1, 3, 5, 6]);
    server.take_log();
    check_rows(&roomy, &rows, &[0, 1, 3, 5, 6]);
    assert_eq!(asked(&server), []);
}

#[test]
fn a_range_beyond_the_object_is_refused_before_anything_is_allocated() {
    let server = S3Server::start().unwrap();
    let (store, entry, _) = shard(&server, &[1000; 3]);
    let sealed = Sealed::new(shard_key("photos", &entry.digest), entry.digest.clone(), entry.n_bytes);
    server.take_log();
    let n = entry.n_bytes;
    for range in [0..n + 1, n..u64::MAX, 1 << 62..1 << 63, std::ops::Range { start: 5, end: 4 }] {
        let error = store.get_sealed(&sealed, &[0..4, range.clone()]).unwrap_err();
        assert!(matches!(&error, StoreError::Read { range: Some(said), .. } if *said == range), "{error}");
    }
    assert_eq!(store.get_sealed(&sealed, &[n..n, 0..4]).unwrap()[1].len(), 4);
    assert_eq!(asked(&server).len(), 1);
}

#[test]
fn an_object_that_is_not_the_listed_one_is_refused_without_a_request_more() {
    let server = S3Server::start().unwrap();
    let (store, entry, rows) = shard(&server, &[400_000; 6]);
    let key = shard_key("photos", &entry.digest);
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    check_rows(&reader, &rows, &[1]);
    let whole = store.get(&key).unwrap();
    let refused = |reader: &ShardReader, row: u64| match reader.read(&[row], &COLUMNS) {
        Err(ShardReadError::Fetch { source: StoreError::OtherObject { what, .. }, .. }) => what,
        other => panic!("{other:?}"),
    };
    // Of the same length.
    let mut other = whole.to_vec();
    other[10] ^= 1;
    store.put(&key, other.into()).unwrap();
    assert_eq!(refused(&reader, 2), "ETag");
    // The same bytes again, as a second ingest may write them.
    store.put(&key, whole.clone()).unwrap();
    check_rows(&reader, &rows, &[2]);
    store.put(&key, [&whole[..], b"more"].concat().into()).unwrap();
    assert_eq!(refused(&reader, 2), "length");
    // Cut off before the row, and within it.
    let first = reader.requests(&[5], &COLUMNS).unwrap().pop().unwrap();
    for n in [100, first.end - 100] {
        store.put(&key, whole.slice(..n as usize)).unwrap();
        assert_eq!(refused(&reader, 5), "length");
    }
    let message = ShardReader::open(&store, "photos", &entry).unwrap_err();
    let source = std::error::Error::source(&message).unwrap().to_string();
    assert!(source.contains(&key) && source.contains(&entry.n_bytes.to_string()), "{source}");
    store.delete(&key).unwrap();
    match reader.read(&[0], &COLUMNS) {
        Err(ShardReadError::Fetch { source: StoreError::NotFound { .. }, .. }) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn bodies_that_break_off_are_gone_on_with() {
    let server = S3Server::start().unwrap();
    let (store, entry, rows) = shard(&server, &[300_000; 12]);
    server.faults(Some(Faults { share_refused: 0.05, share_slow: 0.0, share_cut: 0.2, seed: 3 }));
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    for row in 0..12 {
        check_rows(&reader, &rows, &[row]);
    }
    check_rows(&reader, &rows, &(0..12).collect::<Vec<_>>());
    assert!(server.take_log().iter().filter(|asked| asked.fault.is_some()).count() > 5);
}

#[test]
fn a_request_that_falls_silent_is_made_again_and_the_second_answer_counts() {
    let server = S3Server::start().unwrap();
    let (store, entry, rows) = shard(&server, &[3_000; 8]);
    let read = |hedge_ms| {
        let store = store.reading(Reading::new(Duration::from_millis(hedge_ms), None));
        let reader = ShardReader::open(&store, "photos", &entry).unwrap();
        server.faults(Some(Faults { share_refused: 0.0, share_slow: 0.06, share_cut: 0.0, seed: 1 }));
        for i in 0..150 {
            check_rows(&reader, &rows, &[i % 8]);
        }
        server.faults(None);
        store.reading_stats()
    };
    let (without, with) = (read(0), read(50));
    assert_eq!((without.n_hedges, without.n_requests), (0, 151));
    // A slow answer of this server takes 300 ms, so a second request after 50 ms is there first.
    assert!(with.n_hedges_won >= 5 && with.n_hedges <= 4 + with.n_requests / 16, "{with:?}");
}

#[test]
fn a_store_that_is_slow_as_a_whole_is_not_asked_twice_for_everything() {
    let server = S3Server::start().unwrap();
    let (store, entry, rows) = shard(&server, &[3_000; 8]);
    server.late("/shards/", Duration::from_millis(30));
    let store = store.reading(Reading::new(Duration::from_millis(5), None));
    let reader = ShardReader::open(&store, "photos", &entry).unwrap();
    for i in 0..40 {
        check_rows(&reader, &rows, &[i % 8]);
    }
    let stats = store.reading_stats();
    assert!(stats.n_hedges <= 4 + stats.n_requests / 16, "{stats:?}");
    assert!((41..=41 + stats.n_hedges).contains(&stats.n_requests), "{stats:?}");
}

/// The three corpora in a bucket.
fn bucket() -> (S3Server, Store) {
    let server = S3Server::start().unwrap();
    let store = Store::open_with(&server.url("p"), &server.options()).unwrap();
    let (_dir, local) = three_corpora();
    for listed in local.list("").unwrap() {
        store.put(&listed.key, local.get(&listed.key).unwrap()).unwrap();
    }
    (server, store)
}

fn cached(folder: &Path) -> LoaderSettings {
    LoaderSettings {
        disk_cache: Some(folder.to_owned()),
        disk_cache_gib: 1,
        decoded_cache_mib: 0,
        ..LoaderSettings::default()
    }
}

fn take(store: &Store, settings: &LoaderSettings, n: usize) -> (Vec<String>, LoaderStats) {
    let mut loader = Loader::open(store, mixture(MIXTURE), settings, None).unwrap();
    let batches: Vec<Batch> = (0..n).map(|_| loader.next().unwrap()).collect();
    (batches.iter().map(Batch::digest).collect(), loader.stats())
}

#[test]
fn a_second_epoch_asks_the_store_for_nothing() {
    let (server, store) = bucket();
    let dir = tempfile::tempdir().unwrap();
    let plain = LoaderSettings { decoded_cache_mib: 0, ..LoaderSettings::default() };
    let (want, without) = take(&store, &plain, 80);
    assert!(without.reading.n_requests > 40 && without.reading.disk.is_none());
    let settings = cached(dir.path());
    // Long enough that every row was read, those that are prefetched too.
    let (got, first) = take(&store, &settings, 80);
    assert_eq!(got, want);
    let disk = first.reading.disk.unwrap();
    assert!(disk.n_misses > 0 && disk.n_hits > 0 && disk.stored_bytes > 0 && disk.fault.is_none(), "{disk:?}");
    server.take_log();
    let (got, second) = take(&store, &settings, 80);
    assert_eq!(got, want);
    assert_eq!(asked(&server), [], "neither a footer nor a medium");
    let disk = second.reading.disk.unwrap();
    assert_eq!((disk.n_misses, disk.stored_bytes, second.reading.n_requests), (0, 0, 0));
    assert!(disk.hit_bytes > 0 && disk.used_bytes > 0);
    // Evaluation reads through it too.
    let mixture = mixture(MIXTURE);
    let spec = EvalSpec {
        n: 4,
        ..EvalSpec::new("photos", "train", &[Modality::Image], &mixture.tasks()[0].views()[0], &mixture)
    };
    assert!(EvalLoader::open(&store, &spec, &settings).unwrap().all(|batch| batch.is_ok()));
    assert_eq!(asked(&server), []);
}

#[test]
fn a_damaged_cache_makes_the_same_batches_and_heals() {
    let (server, store) = bucket();
    let dir = tempfile::tempdir().unwrap();
    let settings = cached(dir.path());
    let (want, _) = take(&store, &settings, 60);
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 12, "{files:?}");
    for (i, path) in files.iter().enumerate() {
        let mut bytes = std::fs::read(path).unwrap();
        match i % 4 {
            0 => bytes.truncate(bytes.len() / 2),
            1 => bytes.iter_mut().step_by(997).for_each(|byte| *byte ^= 4),
            2 => bytes.fill(0),
            _ => continue,
        }
        std::fs::write(path, bytes).unwrap();
    }
    server.faults(Some(Faults { share_refused: 0.05, share_slow: 0.0, share_cut: 0.05, seed: 5 }));
    let (got, stats) = take(&store, &settings, 60);
    assert_eq!(got, want);
    assert!(stats.reading.n_requests > 0 && stats.reading.disk.unwrap().fault.is_none());
    server.take_log();
    assert_eq!(take(&store, &settings, 60).0, want);
    assert_eq!(asked(&server), [], "it is whole again");
}

#[test]
fn loaders_that_share_a_cache_all_make_the_same_batches() {
    let (_server, store) = bucket();
    let dir = tempfile::tempdir().unwrap();
    let settings = cached(dir.path());
    let (want, _) = take(&store, &LoaderSettings::default(), 40);
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..3).map(|_| scope.spawn(|| take(&store, &settings, 40).0)).collect();
        assert!(all.into_iter().all(|one| one.join().unwrap() == want));
    });
}

#[test]
fn a_cache_that_cannot_be_kept_is_gone_on_without() {
    let (_server, store) = bucket();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "no folder").unwrap();
    let (want, _) = take(&store, &LoaderSettings::default(), 20);
    let (got, stats) = take(&store, &cached(&file), 20);
    assert_eq!(got, want);
    assert!(stats.reading.disk.unwrap().fault.is_some());
}

#[test]
fn a_local_store_is_not_cached() {
    let (_dir, store) = three_corpora();
    let dir = tempfile::tempdir().unwrap();
    let (_, stats) = take(&store, &cached(&dir.path().join("cache")), 20);
    assert_eq!(stats.reading, Default::default());
    assert!(!dir.path().join("cache").exists());
}
