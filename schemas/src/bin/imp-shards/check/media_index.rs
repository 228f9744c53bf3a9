//! The index of a snapshot's media: does it lead to the media?
//!
//! In: a snapshot. Out: findings. The first and the last row of every shard are followed to their bytes.

use arrow::array::AsArray;
use imp_schemas::media_index::MediaIndex;
use imp_schemas::record::column;
use imp_schemas::shard::{Digest, media_index_key};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::{Snapshot, Store, StoreError};

use super::corpus::chain;
use crate::ShardsError;
use crate::finding::Findings;

const AGAIN: &str = "ingest the corpus again; the shards are not affected";

pub(super) fn check(
    store: &Store,
    corpus: &str,
    snapshot: &Snapshot,
    findings: &mut Findings,
) -> Result<(), ShardsError> {
    let Some(entry) = &snapshot.manifest.media_index else { return Ok(()) };
    let key = media_index_key(corpus, &entry.digest);
    let index = match MediaIndex::load(store, snapshot) {
        Ok(Some(index)) => index,
        Ok(None) => return Ok(()),
        Err(error @ (StoreError::NotFound { .. } | StoreError::Table { .. })) => {
            findings.push("media_index", key, chain(&error), AGAIN);
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    let mut first = 0;
    for shard in &snapshot.manifest.shards {
        let last = shard.n_rows.saturating_sub(1);
        let rows = if last == 0 { vec![0] } else { vec![0, last] };
        // A shard that cannot be read is found by the check of shards.
        if let Ok(reader) = ShardReader::open(store, corpus, shard)
            && let Ok(batch) = reader.read(&rows, &[column::DIGEST])
            && let Some(digests) = batch.column_by_name(column::DIGEST).and_then(|c| c.as_string_opt::<i32>())
        {
            for (row, digest) in rows.iter().zip(digests) {
                let found = index.get(first + row).ok().flatten().map(|bytes| Digest::of(&bytes));
                if found.as_ref().map(|d| d.0.as_str()) != digest {
                    let found = format!("row {} is not where it says, in shard {}", first + row, shard.digest.short());
                    findings.push("media_index", key.as_str(), found, AGAIN);
                }
            }
        }
        first += shard.n_rows;
    }
    Ok(())
}
