//! Any bytes are a shard that opens and gives rows, or an error.
#![no_main]

use std::collections::BTreeMap;
use std::sync::OnceLock;

use imp_fuzz::let_caught_panics_pass;
use imp_schemas::manifest::ShardEntry;
use imp_schemas::shard::{Digest, shard_key};
use imp_schemas::shard_reader::{ShardReadError, ShardReader};
use imp_schemas::store::Store;
use libfuzzer_sys::fuzz_target;

const CORPUS: &str = "fuzz";

fn store() -> &'static Store {
    static STORE: OnceLock<Store> = OnceLock::new();
    STORE.get_or_init(|| Store::open_with("memory:///", &[]).expect("a store in memory opens"))
}

fuzz_target!(|bytes: &[u8]| {
    let_caught_panics_pass();
    let Some((_, tail)) = bytes.split_last_chunk::<8>() else { return };
    let footer_len = u64::from(u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]));
    let n_bytes = bytes.len() as u64;
    let mut entry = ShardEntry {
        // The same name for all, so that the store holds one.
        digest: Digest::of(b""),
        split: "train".to_owned(),
        n_rows: 0,
        n_bytes,
        footer_len,
        // The page indexes stand before the footer; the whole file is the most that they can be.
        index_offset: 0,
        n_row_groups: 1,
        media_bytes: 0,
        n_deleted: 0,
        ranges: BTreeMap::new(),
    };
    let key = shard_key(CORPUS, &entry.digest);
    store().put(&key, bytes.to_vec().into()).expect("a store in memory takes what it is given");
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
});
