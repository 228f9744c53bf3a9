//! Columns that were added later: are their tables what the manifest says, row for row?
//!
//! In: a manifest. Out: findings. Never: a table in memory; a shard: that its rows are as many as the manifest says is found there.

use std::collections::{BTreeMap, BTreeSet};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Int64Type};
use imp_schemas::manifest::{Manifest, SideTableEntry};
use imp_schemas::shard::{Digest, side_table_key};
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::side_table::{AddedType, ROW, SHARD, side_table_schema};
use imp_schemas::store::Store;
use indicatif::ProgressBar;
use parquet::arrow::parquet_to_arrow_schema;

use super::corpus::chain;
use super::shard::digest_of;
use crate::ShardsError;
use crate::finding::Findings;

const KIND: &str = "side_table";
const AGAIN: &str = "add the columns again with imp-shards add-columns; the shards are not affected";
/// Rows whose ids are held together.
const WINDOW_ROWS: u64 = 1 << 16;

pub(super) fn check(store: &Store, manifest: &Manifest, findings: &mut Findings) -> Result<(), ShardsError> {
    check_claims(manifest, findings);
    for table in &manifest.side_tables {
        let key = side_table_key(&manifest.corpus, &table.digest);
        let Some(n_bytes) = store.size(&key)? else {
            findings.push("missing_object", key, "the manifest lists it, the store does not have it", AGAIN);
            continue;
        };
        if n_bytes != table.n_bytes {
            let found = format!("it has {n_bytes} bytes, the manifest says {}", table.n_bytes);
            findings.push("size", key, found, AGAIN);
            continue;
        }
        let found = digest_of(store, &key, n_bytes, &ProgressBar::hidden())?;
        if found != table.digest {
            findings.push("digest", key, format!("its bytes have digest {}…", found.short()), AGAIN);
            continue;
        }
        match ShardReader::open_side_table(store, &manifest.corpus, table) {
            Ok(reader) => {
                check_columns(table, &reader, findings);
                check_rows(table, &reader, findings);
            }
            Err(error) => findings.push(KIND, key, chain(&error), AGAIN),
        }
    }
    Ok(())
}

/// What the manifest alone says: one table for a column of a shard, one type for a column, as many rows as the shards have.
fn check_claims(manifest: &Manifest, findings: &mut Findings) {
    let place = format!("{}/manifests", manifest.corpus);
    let n_rows: BTreeMap<&Digest, u64> = manifest.shards.iter().map(|s| (&s.digest, s.n_rows)).collect();
    let mut kinds: BTreeMap<&str, AddedType> = BTreeMap::new();
    let mut claimed: BTreeSet<(&str, &Digest)> = BTreeSet::new();
    for table in &manifest.side_tables {
        for column in &table.columns {
            let kind = *kinds.entry(&column.name).or_insert(column.kind);
            if kind != column.kind {
                let found =
                    format!("added column `{}` is {kind} in one table and {} in another", column.name, column.kind);
                findings.push(KIND, place.as_str(), found, AGAIN);
            }
            if let Some(twice) = table.shards.iter().find(|s| !claimed.insert((column.name.as_str(), &s.digest))) {
                let found = format!("two tables have column `{}` of shard {}…", column.name, twice.digest.short());
                findings.push(KIND, place.as_str(), found, AGAIN);
            }
        }
        // A shard that is no longer the snapshot's has no row that anyone reads.
        for covered in &table.shards {
            if let Some(n) = n_rows.get(&covered.digest).filter(|n| **n != covered.n_rows) {
                let found = format!(
                    "side table {}… has {} rows of shard {}…, which has {n}",
                    table.digest.short(),
                    covered.n_rows,
                    covered.digest.short()
                );
                findings.push(KIND, place.as_str(), found, AGAIN);
            }
        }
    }
}

/// The columns that the snapshot shows are there with their types, and no row group has rows of two shards.
fn check_columns(table: &SideTableEntry, reader: &ShardReader, findings: &mut Findings) {
    let file = reader.metadata().file_metadata();
    let schema = match parquet_to_arrow_schema(file.schema_descr(), file.key_value_metadata()) {
        Ok(schema) => schema,
        Err(error) => return findings.push(KIND, reader.key(), chain(&error), AGAIN),
    };
    for field in side_table_schema(&table.columns).fields() {
        let found = schema.fields().find(field.name()).map(|(_, field)| field.data_type());
        if found.is_none_or(|found| found != field.data_type()) {
            let found = found.map_or("not there".to_owned(), DataType::to_string);
            let found = format!("column `{}` is {found}, the manifest says {}", field.name(), field.data_type());
            findings.push(KIND, reader.key(), found, AGAIN);
        }
    }
    let mut starts = BTreeSet::from([0]);
    for group in reader.metadata().row_groups() {
        starts.insert(starts.last().copied().unwrap_or(0) + u64::try_from(group.num_rows()).unwrap_or(0));
    }
    let mut start = 0;
    for covered in &table.shards {
        if !starts.contains(&start) {
            let found =
                format!("row {start}, the first of shard {}…, does not begin a row group", covered.digest.short());
            findings.push(KIND, reader.key(), found, AGAIN);
        }
        start += covered.n_rows;
    }
}

/// Every row says which row of which shard it is: all rows of each covered shard, in order.
fn check_rows(table: &SideTableEntry, reader: &ShardReader, findings: &mut Findings) {
    let n_covered: u64 = table.shards.iter().map(|covered| covered.n_rows).sum();
    if n_covered != table.n_rows {
        let found = format!("it has {} rows, its shards in the manifest {n_covered}", table.n_rows);
        return findings.push(KIND, reader.key(), found, AGAIN);
    }
    let mut first = 0;
    for covered in &table.shards {
        let mut row = 0;
        while row < covered.n_rows {
            let end = covered.n_rows.min(row + WINDOW_ROWS);
            let rows: Vec<u64> = (first + row..first + end).collect();
            let batch = match reader.read(&rows, &[SHARD, ROW]) {
                Ok(batch) => batch,
                Err(error) => return findings.push(KIND, reader.key(), chain(&error), AGAIN),
            };
            let shards = batch.column_by_name(SHARD).and_then(|c| c.as_string_opt::<i32>());
            let ids = batch.column_by_name(ROW).and_then(|c| c.as_primitive_opt::<Int64Type>());
            // Another type is found above.
            let (Some(shards), Some(ids)) = (shards, ids) else { return };
            let mut found = shards.iter().zip(ids).zip(row..end);
            let is_other = |((shard, id), want): &((Option<&str>, Option<i64>), u64)| {
                *shard != Some(covered.digest.0.as_str()) || id.and_then(|id| u64::try_from(id).ok()) != Some(*want)
            };
            if let Some(((shard, id), want)) = found.find(is_other) {
                let found = format!(
                    "row {} is of row {id:?} of shard {:.12}…, wanted row {want} of shard {}…",
                    first + want,
                    shard.unwrap_or("null"),
                    covered.digest.short()
                );
                return findings.push(KIND, reader.key(), found, AGAIN);
            }
            row = end;
        }
        first += covered.n_rows;
    }
}
