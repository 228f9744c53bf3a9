//! Values by record key → values by shard and row.
//!
//! In: a table and a snapshot. Out: side tables in the store, and how many keys met. Both sides are put aside on disk by a hash
//! of the key, joined a bucket at a time, and what met is put aside by group of shards: memory is the spools' buffers (64 MiB)
//! and one bucket, about a 1024th of the table or of the corpus's keys, 16 MiB where that is less; or one shard's values.
//! Never: a hidden row given a value, two values for a record.
//!
//! ```text
//! table ───────► by key ─┐
//! shards' keys ► by key ─┴► met ► by group of shards ─► side tables, shard after shard
//! ```

use std::collections::HashMap;
use std::ops::Range;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, new_null_array};
use arrow::compute::kernels::zip::zip;
use arrow::row::{RowConverter, SortField};
use imp_schemas::manifest::SideTableEntry;
use imp_schemas::record::column;
use imp_schemas::shard::Digest;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::shard_writer::{SHARDS_PER_TABLE, SideTableWriter};
use imp_schemas::side_table::AddedColumns;
use imp_schemas::store::{Snapshot, Store};

use super::source::Source;
use super::spool::{Fields, MAX_BUCKETS, Spool};
use super::{ColumnsError, store_table};
use crate::{PROGRAM, ShardsError};

/// Bytes of the table, and rows of the corpus, that a bucket should hold; more once there are [`MAX_BUCKETS`].
const BUCKET_BYTES: u64 = 16 << 20;
const BUCKET_ROWS: u64 = 1 << 18;
/// Rows that are laid out together.
const CHUNK_ROWS: u64 = 8192;
/// Keys without a record that are named.
const MAX_NAMED: usize = 10;

/// What came of it.
pub(super) struct Joined {
    pub tables: Vec<SideTableEntry>,
    pub n_keys: u64,
    pub n_matched: u64,
    pub n_unmatched: u64,
    /// The first of them.
    pub unmatched: Vec<String>,
}

struct Join<'a> {
    store: &'a Store,
    snapshot: &'a Snapshot,
    source: &'a Source,
    /// Values of a row ↔ bytes.
    rows: RowConverter,
    n_buckets: usize,
    /// Shards that are written from one bucket.
    groups: Vec<Range<usize>>,
}

/// Joins, and puts the side tables into the store.
pub(super) fn join(store: &Store, snapshot: &Snapshot, source: &Source, update: bool) -> Result<Joined, ShardsError> {
    let fields = source.columns().iter().map(|column| SortField::new(column.kind.data_type())).collect();
    let n_rows: u64 = snapshot.manifest.shards.iter().map(|shard| shard.n_rows).sum();
    let n_buckets = (source.n_bytes() / BUCKET_BYTES).max(n_rows / BUCKET_ROWS) as usize;
    let n_buckets = n_buckets.clamp(1, MAX_BUCKETS);
    let rows = RowConverter::new(fields).map_err(ColumnsError::Rows)?;
    let groups = groups(snapshot, n_rows.div_ceil(n_buckets as u64));
    let join = Join { store, snapshot, source, rows, n_buckets, groups };
    let mut table = join.spool_table()?;
    let mut keys = join.spool_keys()?;
    let (mut met, mut joined) = join.meet(&mut table, &mut keys)?;
    joined.tables = join.write(&mut met, update)?;
    Ok(joined)
}

/// Neighbouring shards of about `n_rows` rows together, of one at least.
fn groups(snapshot: &Snapshot, n_rows: u64) -> Vec<Range<usize>> {
    let mut groups: Vec<Range<usize>> = Vec::new();
    let mut n = 0;
    for (i, shard) in snapshot.manifest.shards.iter().enumerate() {
        match groups.last_mut() {
            Some(group) if n + shard.n_rows <= n_rows => group.end = i + 1,
            _ => {
                n = 0;
                groups.push(i..i + 1);
            }
        }
        n += shard.n_rows;
    }
    groups
}

impl Join<'_> {
    fn bucket_of(&self, key: &str) -> usize {
        let mut short = [0; 8];
        short.copy_from_slice(&blake3::hash(key.as_bytes()).as_bytes()[..8]);
        (u64::from_le_bytes(short) % self.n_buckets as u64) as usize
    }

    /// Key, row in the table, values.
    fn spool_table(&self) -> Result<Spool, ColumnsError> {
        let mut spool = Spool::new(self.n_buckets).map_err(ColumnsError::Spool)?;
        self.source.read(|part| {
            let values = self.rows.convert_columns(&part.values).map_err(ColumnsError::Rows)?;
            for i in 0..part.keys.len() {
                let (key, row) = (part.keys.value(i), part.first_row + i as u64);
                let fields = [key.as_bytes(), &row.to_le_bytes(), values.row(i).data()];
                spool.push(self.bucket_of(key), &fields).map_err(ColumnsError::Spool)?;
            }
            Ok(())
        })?;
        Ok(spool)
    }

    /// Key and place of every row that is seen.
    fn spool_keys(&self) -> Result<Spool, ShardsError> {
        let mut spool = Spool::new(self.n_buckets).map_err(ColumnsError::Spool)?;
        let corpus = &self.snapshot.manifest.corpus;
        for (shard, entry) in self.snapshot.manifest.shards.iter().enumerate() {
            let hidden = self.snapshot.hidden.rows(&entry.digest);
            let mut row = 0;
            for batch in ShardReader::open(self.store, corpus, entry)?.read_all(&[column::KEY])? {
                let wrong = || ShardsError::Column { corpus: corpus.clone(), column: column::KEY };
                let keys = batch.column(0).as_string_opt::<i32>().ok_or_else(wrong)?;
                for key in keys.iter().flatten() {
                    if hidden.binary_search(&row).is_err() {
                        let fields = [key.as_bytes(), &place(shard, row)];
                        spool.push(self.bucket_of(key), &fields).map_err(ColumnsError::Spool)?;
                    }
                    row += 1;
                }
            }
        }
        Ok(spool)
    }

    /// Place and values of every row whose key the table has, by group of shards.
    fn meet(&self, table: &mut Spool, keys: &mut Spool) -> Result<(Spool, Joined), ColumnsError> {
        let mut met = Spool::new(self.groups.len()).map_err(ColumnsError::Spool)?;
        let mut joined = Joined { tables: Vec::new(), n_keys: 0, n_matched: 0, n_unmatched: 0, unmatched: Vec::new() };
        for bucket in 0..self.n_buckets {
            let (table, keys) = (table.take(bucket), keys.take(bucket));
            let (table, keys) = (table.map_err(ColumnsError::Spool)?, keys.map_err(ColumnsError::Spool)?);
            let mut by_key: HashMap<&[u8], Row<'_>> = HashMap::new();
            let mut fields = Fields(&table);
            while let (Some(key), Some(row), Some(values)) = (fields.next(), fields.next(), fields.next()) {
                let row = number(row);
                if let Some(first) = by_key.insert(key, Row { row, values, is_met: false }) {
                    let (path, key) = (self.source.name().to_owned(), text(key));
                    return Err(ColumnsError::Twice { path, key, first: first.row, second: row });
                }
            }
            let mut fields = Fields(&keys);
            while let (Some(key), Some(at)) = (fields.next(), fields.next()) {
                if let Some(row) = by_key.get_mut(key) {
                    row.is_met = true;
                    joined.n_matched += 1;
                    let (shard, _) = placed(at);
                    let group = self.groups.partition_point(|group| group.end <= shard);
                    met.push(group, &[at, row.values]).map_err(ColumnsError::Spool)?;
                }
            }
            let mut unmatched: Vec<(u64, &[u8])> =
                by_key.iter().filter(|(_, row)| !row.is_met).map(|(key, row)| (row.row, *key)).collect();
            unmatched.sort_unstable();
            joined.n_keys += by_key.len() as u64;
            joined.n_unmatched += unmatched.len() as u64;
            let room = MAX_NAMED - joined.unmatched.len();
            joined.unmatched.extend(unmatched.iter().take(room).map(|(_, key)| text(key)));
        }
        if joined.n_matched == 0 {
            let (corpus, path) = (self.snapshot.manifest.corpus.clone(), self.source.name().to_owned());
            let key = joined.unmatched.first().cloned().unwrap_or_default();
            return Err(ColumnsError::NothingMatches { corpus, path, n_keys: joined.n_keys, key });
        }
        Ok((met, joined))
    }

    /// The side tables of all shards that have a value, or with `update` had one.
    fn write(&self, met: &mut Spool, update: bool) -> Result<Vec<SideTableEntry>, ShardsError> {
        let manifest = &self.snapshot.manifest;
        let mut tables = Vec::new();
        let mut open: Option<SideTableWriter> = None;
        let mut before = update.then(|| Before::of(self));
        for (i, group) in self.groups.iter().enumerate() {
            let bytes = met.take(i).map_err(ColumnsError::Spool)?;
            let mut fields = Fields(&bytes);
            let mut found = Vec::new();
            while let (Some(at), Some(values)) = (fields.next(), fields.next()) {
                found.push((placed(at), values));
            }
            found.sort_unstable_by_key(|(at, _)| *at);
            let mut rest = &found[..];
            for shard in group.clone() {
                let entry = &manifest.shards[shard];
                let (of_shard, after) = rest.split_at(rest.partition_point(|((s, _), _)| *s == shard));
                rest = after;
                if of_shard.is_empty() && before.as_ref().is_none_or(|before| !before.covers(&entry.digest)) {
                    continue;
                }
                let mut writer = match open.take() {
                    Some(writer) => writer,
                    None => SideTableWriter::create(PROGRAM, &manifest.corpus, self.source.columns())
                        .map_err(ColumnsError::Write)?,
                };
                self.write_shard(&mut writer, &entry.digest, entry.n_rows, of_shard, before.as_mut())?;
                if writer.n_shards() == SHARDS_PER_TABLE {
                    tables.push(store_table(self.store, &manifest.corpus, writer)?);
                } else {
                    open = Some(writer);
                }
            }
        }
        if let Some(writer) = open {
            tables.push(store_table(self.store, &manifest.corpus, writer)?);
        }
        Ok(tables)
    }

    /// Every row of a shard: the value that was `found`, else the one of `before`, else null.
    fn write_shard(
        &self,
        writer: &mut SideTableWriter,
        shard: &Digest,
        n_rows: u64,
        found: &[((usize, u64), &[u8])],
        mut before: Option<&mut Before<'_>>,
    ) -> Result<(), ShardsError> {
        let nulls: Vec<ArrayRef> =
            self.source.columns().iter().map(|column| new_null_array(&column.kind.data_type(), 1)).collect();
        let null = self.rows.convert_columns(&nulls).map_err(ColumnsError::Rows)?;
        let parser = self.rows.parser();
        let mut found = found.iter().peekable();
        let mut start = 0;
        while start < n_rows {
            let rows: Vec<u64> = (start..n_rows.min(start + CHUNK_ROWS)).collect();
            start += CHUNK_ROWS;
            // Of every row of the chunk, its values in the table.
            let of_rows: Vec<Option<&[u8]>> = rows
                .iter()
                .map(|&row| found.next_if(|((_, found), _)| *found == row).map(|(_, values)| *values))
                .collect();
            let parsed = of_rows.iter().map(|values| parser.parse(values.unwrap_or_else(|| null.row(0).data())));
            let mut values = self.rows.convert_rows(parsed).map_err(ColumnsError::Rows)?;
            if let Some(before) = before.as_mut() {
                let is_named: BooleanArray = of_rows.iter().map(|values| Some(values.is_some())).collect();
                values = before.keep(shard, &rows, &is_named, values)?;
            }
            writer.write(shard, &values, rows.len()).map_err(ColumnsError::Write)?;
        }
        Ok(())
    }
}

/// The values that the same columns have in the newest snapshot.
struct Before<'a> {
    added: AddedColumns,
    tables: Vec<&'a SideTableEntry>,
    names: Vec<&'a str>,
}

impl<'a> Before<'a> {
    fn of(join: &Join<'a>) -> Self {
        let manifest = &join.snapshot.manifest;
        let names: Vec<&str> = join.source.columns().iter().map(|column| column.name.as_str()).collect();
        let has_one = |table: &&SideTableEntry| table.columns.iter().any(|c| names.contains(&c.name.as_str()));
        let tables = manifest.side_tables.iter().filter(has_one).collect();
        Self { added: AddedColumns::of(join.store, manifest), tables, names }
    }

    fn covers(&self, shard: &Digest) -> bool {
        self.tables.iter().any(|table| table.rows_of(shard).is_some())
    }

    /// `values` where the table names the row, else what was there.
    fn keep(
        &mut self,
        shard: &Digest,
        rows: &[u64],
        is_named: &BooleanArray,
        values: Vec<ArrayRef>,
    ) -> Result<Vec<ArrayRef>, ShardsError> {
        let schema = self.added.schema().clone();
        let had: Vec<&str> = self.names.iter().copied().filter(|name| schema.index_of(name).is_ok()).collect();
        let old = self.added.read(shard, rows, &had)?;
        let keep = |(name, new): (&&str, ArrayRef)| match old.column_by_name(name) {
            Some(old) => zip(is_named, &new, old).map_err(|e| ColumnsError::Rows(e).into()),
            None => Ok(new),
        };
        self.names.iter().zip(values).map(keep).collect()
    }
}

/// A row of the table.
struct Row<'a> {
    /// From 1.
    row: u64,
    values: &'a [u8],
    is_met: bool,
}

fn place(shard: usize, row: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(shard as u64).to_le_bytes());
    bytes[8..].copy_from_slice(&row.to_le_bytes());
    bytes
}

fn placed(place: &[u8]) -> (usize, u64) {
    let (shard, row) = place.split_at(place.len().min(8));
    (number(shard) as usize, number(row))
}

fn number(bytes: &[u8]) -> u64 {
    bytes.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
