//! Records of different units, or of earlier runs, that are the same → tombstones for the later ones.
//!
//! In: shards in the order of a snapshot. Out: which of their rows are hidden, and why. Only the small columns are read.
//! Never: a row of an earlier snapshot hidden for the sake of a new one, a shard rewritten.

use std::collections::HashMap;

use arrow::array::{Array, AsArray};
use imp_schemas::manifest::ShardEntry;
use imp_schemas::record::column;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::Store;
use imp_schemas::tombstone::{Hidden, Tombstone};

use crate::config::{CorpusConfig, IngestConfig};
use crate::error::IngestError;

/// First 16 bytes of a BLAKE3: two of a billion are alike by chance once in 10^20.
type Short = [u8; 16];

/// Rows that repeat the key of an earlier row.
///
/// # Errors
/// A shard cannot be read.
pub(crate) fn find(
    _config: &IngestConfig,
    corpus: &CorpusConfig,
    store: &Store,
    shards: &[ShardEntry],
    hidden: &Hidden,
) -> Result<Vec<Tombstone>, IngestError> {
    let mut found = Vec::new();
    if shards.len() < 2 {
        return Ok(found);
    }
    let mut keys: HashMap<Short, (u32, u32)> = HashMap::new();
    for (shard_idx, entry) in shards.iter().enumerate() {
        let hidden = hidden.rows(&entry.digest);
        let rows = planning(store, corpus, entry)?;
        for (row, key) in rows.into_iter().enumerate().filter(|(row, _)| hidden.binary_search(&(*row as u64)).is_err())
        {
            let place = (shard_idx as u32, row as u32);
            let first = *keys.entry(short(key.as_bytes())).or_insert(place);
            if first != place {
                let detail = format!(
                    "row {} of shard {} has this key already",
                    first.1,
                    shards[first.0 as usize].digest.short()
                );
                let (shard, row, reason) = (entry.digest.clone(), row as u64, RejectReason::DuplicateKey);
                found.push(Tombstone { shard, row, key, reason, detail });
            }
        }
    }
    Ok(found)
}

fn planning(store: &Store, corpus: &CorpusConfig, entry: &ShardEntry) -> Result<Vec<String>, IngestError> {
    let failed = |source| IngestError::ReadShard { corpus: corpus.name.clone(), source };
    let reader = ShardReader::open(store, &corpus.name, entry).map_err(failed)?;
    let mut keys = Vec::with_capacity(entry.n_rows as usize);
    for batch in reader.read_all(&[column::KEY]).map_err(failed)? {
        if let Some(column) = batch.column_by_name(column::KEY).and_then(|c| c.as_string_opt::<i32>()) {
            keys.extend((0..column.len()).map(|row| column.value(row).to_owned()));
        }
    }
    Ok(keys)
}

fn short(bytes: &[u8]) -> Short {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}
