//! Any bytes are what a reader opens in a store, or an error: a shard that gives rows, a table of rejects, of tombstones or of
//! places of media, and, if they begin with `{`, a manifest whose numbers add up.
#![no_main]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use imp_fuzz::held;
use imp_schemas::manifest::{Manifest, MediaIndexEntry, RejectsEntry, ShardEntry, TokenizerEntry, TombstonesEntry};
use imp_schemas::modality::RecordKind;
use imp_schemas::shard::{Digest, media_index_key, rejects_key, shard_key, tombstones_key};
use imp_schemas::shard_reader::{ShardReadError, ShardReader};
use imp_schemas::store::{Store, StoreError};
use imp_schemas::tombstone::{Hidden, row_of_live};
use imp_schemas::version::Format;
use libfuzzer_sys::fuzz_target;

const CORPUS: &str = "fuzz";
/// Rows of a shard that is read as a whole: more may be a gigabyte, which a shard of a manifest is not.
const MAX_WHOLE: u64 = 64;

fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| Store::open_with("memory:///", &[]).expect("a store in memory opens"))
}

fuzz_target!(|bytes: &[u8]| {
    held(|| {
        if bytes.first() == Some(&b'{') {
            read_manifest(bytes);
        } else if let Some((_, tail)) = bytes.split_last_chunk::<8>() {
            let footer_len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
            read_shard(bytes, footer_len);
            read_tables(bytes);
        }
    });
});

fn entry(n_rows: u64, n_bytes: u64, footer_len: u64) -> ShardEntry {
    ShardEntry {
        // The same name for all, so that the store holds one.
        digest: Digest::of(b""),
        split: "train".to_owned(),
        n_rows,
        n_bytes,
        footer_len,
        // The page indexes stand before the footer; the whole file is the most that they can be.
        index_offset: 0,
        n_row_groups: 1,
        media_bytes: 0,
        n_deleted: 0,
        ranges: BTreeMap::new(),
    }
}

fn put(key: &str, bytes: &[u8]) {
    store().put(key, bytes.to_vec().into()).expect("a store in memory takes what it is given");
}

fn read_shard(bytes: &[u8], footer_len: u64) {
    let mut entry = entry(0, bytes.len() as u64, footer_len);
    put(&shard_key(CORPUS, &entry.digest), bytes);
    let opened = match ShardReader::open(store(), CORPUS, &entry) {
        // A manifest is trusted, so it is made to say what the footer says.
        Err(ShardReadError::NotAsListed { found, .. }) => {
            entry.n_rows = found;
            ShardReader::open(store(), CORPUS, &entry)
        }
        opened => opened,
    };
    let Ok(shard) = opened else { return };
    let columns: Vec<String> =
        shard.metadata().file_metadata().schema().get_fields().iter().map(|f| f.name().to_owned()).collect();
    let columns: Vec<&str> = columns.iter().map(String::as_str).collect();
    let n_rows = shard.n_rows();
    for rows in [vec![0], vec![n_rows / 2], vec![n_rows.saturating_sub(1)], vec![0, 1, 2]] {
        let wanted = rows.len();
        if let Ok(batch) = shard.read(&rows, &columns) {
            assert_eq!(batch.num_rows(), wanted);
        }
    }
    if n_rows <= MAX_WHOLE
        && let Ok(batches) = shard.read_all(&columns)
    {
        assert_eq!(batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>(), n_rows);
    }
}

fn read_tables(bytes: &[u8]) {
    let digest = Digest::of(b"");
    put(&rejects_key(CORPUS, &digest), bytes);
    counted(|n_rows| store().rejects(CORPUS, &RejectsEntry { digest: digest.clone(), n_rows }), Vec::len);
    let with = |tombstones, media_index, n_rows| Manifest {
        format: Format::Manifest.current(),
        corpus: CORPUS.to_owned(),
        kind: RecordKind::ImageText,
        schema_version: Format::Shard.current(),
        tokenizer: TokenizerEntry { digest: digest.clone(), vocab_size: 300 },
        classes: Vec::new(),
        shards: vec![entry(n_rows, 0, 0)],
        rejects: Vec::new(),
        tombstones,
        media_index,
        side_tables: Vec::new(),
        runs: Vec::new(),
        n_inputs: n_rows,
        n_records: n_rows,
        n_rejected: BTreeMap::new(),
        broken_rules: BTreeMap::new(),
        histograms: BTreeMap::new(),
        config: Default::default(),
    };
    put(&tombstones_key(CORPUS, &digest), bytes);
    let read =
        |n_rows| store().tombstones(&with(Some(TombstonesEntry { digest: digest.clone(), n_rows }), None, n_rows));
    if let Some(tombstones) = counted(read, Vec::len) {
        let hidden = Hidden::of(&tombstones);
        assert!(hidden.n_rows() <= tombstones.len() as u64);
        for tombstone in &tombstones {
            let rows = hidden.rows(&tombstone.shard);
            assert!(rows.contains(&tombstone.row) && !rows.contains(&row_of_live(&rows, tombstone.row)));
        }
    }
    put(&media_index_key(CORPUS, &digest), bytes);
    let read = |n_rows| {
        let index = MediaIndexEntry { digest: digest.clone(), n_rows };
        store().media_places(&with(None, Some(index), n_rows)).map(Option::unwrap_or_default)
    };
    if let Some(places) = counted(read, Vec::len) {
        assert!(places.iter().all(|place| place.offset.checked_add(place.len).is_some()));
    }
}

/// Reads a table as one whose number of rows the manifest knows: the first answer says how many there are.
fn counted<T>(read: impl Fn(u64) -> Result<T, StoreError>, n_rows_of: impl Fn(&T) -> usize) -> Option<T> {
    match read(0) {
        Ok(table) => Some(table),
        Err(StoreError::Table { detail, .. }) => {
            let found = detail.strip_prefix("it has ")?.split(' ').next()?.parse().ok()?;
            let table = read(found).expect("the table has the rows that it said");
            assert_eq!(n_rows_of(&table) as u64, found);
            Some(table)
        }
        Err(_) => None,
    }
}

fn read_manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::from_bytes("m", bytes) else { return };
    let n_rejected: u64 = manifest.n_rejected.values().sum();
    assert_eq!(manifest.n_records.checked_add(n_rejected), Some(manifest.n_inputs));
    let by_split: u64 = manifest.splits().iter().map(|split| manifest.n_rows(split)).sum();
    assert_eq!(by_split, manifest.n_records);
    for split in manifest.splits() {
        assert!(manifest.split(split).is_ok_and(|shards| !shards.is_empty()));
    }
    let again = manifest.to_bytes().expect("what was read can be written");
    let again = Manifest::from_bytes("m", &again).expect("what was written can be read");
    assert_eq!(again.n_inputs, manifest.n_inputs);
}
