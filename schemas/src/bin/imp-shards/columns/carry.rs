//! Side tables of shards that were written anew: the same rows in the same order, under the new names of their shards.
//!
//! In: a snapshot's side tables, old names → new. Out: their entries, the tables in the store. Never: a value changed.

use std::collections::BTreeMap;

use arrow::array::ArrayRef;
use imp_schemas::manifest::{Manifest, SideTableEntry};
use imp_schemas::shard::Digest;
use imp_schemas::shard_reader::{ShardReadError, ShardReader};
use imp_schemas::shard_writer::SideTableWriter;
use imp_schemas::store::Store;

use super::{ColumnsError, store_table};
use crate::{PROGRAM, ShardsError};

const CHUNK_ROWS: u64 = 8192;

/// The side tables of `manifest` with the shards of `renamed` under their new names.
pub(crate) fn renamed(
    store: &Store,
    manifest: &Manifest,
    renamed: &BTreeMap<Digest, Digest>,
) -> Result<Vec<SideTableEntry>, ShardsError> {
    let is_other = |old: &Digest| renamed.get(old).is_some_and(|new| new != old);
    let carry = |table: &SideTableEntry| {
        if table.shards.iter().any(|covered| is_other(&covered.digest)) {
            rewrite(store, &manifest.corpus, table, renamed)
        } else {
            Ok(table.clone())
        }
    };
    manifest.side_tables.iter().map(carry).collect()
}

fn rewrite(
    store: &Store,
    corpus: &str,
    table: &SideTableEntry,
    renamed: &BTreeMap<Digest, Digest>,
) -> Result<SideTableEntry, ShardsError> {
    let reader = ShardReader::open_side_table(store, corpus, table)?;
    let names: Vec<&str> = table.columns.iter().map(|column| column.name.as_str()).collect();
    let mut writer = SideTableWriter::create(PROGRAM, corpus, &table.columns).map_err(ColumnsError::Write)?;
    let mut first = 0;
    for covered in &table.shards {
        let (end, shard) = (first + covered.n_rows, renamed.get(&covered.digest).unwrap_or(&covered.digest));
        while first < end {
            let rows: Vec<u64> = (first..end.min(first + CHUNK_ROWS)).collect();
            let batch = reader.read(&rows, &names)?;
            let missing = |name: &str| ShardReadError::NoSuchColumn {
                shard: reader.key().to_owned(),
                column: name.to_owned(),
                have: names.join(", "),
            };
            let values: Vec<ArrayRef> = names
                .iter()
                .map(|name| batch.column_by_name(name).cloned().ok_or_else(|| missing(name)))
                .collect::<Result<_, _>>()?;
            writer.write(shard, &values, rows.len()).map_err(ColumnsError::Write)?;
            first += rows.len() as u64;
        }
    }
    store_table(store, corpus, writer)
}
