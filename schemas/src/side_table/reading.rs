//! Added columns, read by shard and row.
//!
//! In: a snapshot, a shard of it, rows. Out: a batch of values, null where no table covers the shard. Only the pages of these
//! rows are read. Never: more than the tables of one shard held open.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow::datatypes::{Field, Schema, SchemaRef};

use crate::manifest::{Manifest, SideTableEntry};
use crate::shard::Digest;
use crate::shard_reader::{ShardReadError, ShardReader};
use crate::store::Store;

/// The added columns of a snapshot.
#[derive(Debug)]
pub struct AddedColumns {
    store: Store,
    corpus: String,
    tables: Vec<SideTableEntry>,
    schema: SchemaRef,
    /// Tables of the shard that was read last; those of the next are mostly the same.
    open: BTreeMap<Digest, ShardReader>,
}

impl AddedColumns {
    /// Reads nothing yet.
    pub fn of(store: &Store, manifest: &Manifest) -> Self {
        let added = manifest.added_columns();
        let fields: Vec<Field> = added.iter().map(|c| Field::new(&c.name, c.kind.data_type(), true)).collect();
        let (corpus, tables) = (manifest.corpus.clone(), manifest.side_tables.clone());
        let schema = Arc::new(Schema::new(fields));
        Self { store: store.clone(), corpus, tables, schema, open: BTreeMap::new() }
    }

    /// All added columns, by name.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Names of all added columns.
    pub fn names(&self) -> Vec<String> {
        self.schema.fields().iter().map(|field| field.name().clone()).collect()
    }

    /// Rows `rows` (rising, counted within the shard) of the added columns `columns`, in the order of [`AddedColumns::schema`].
    ///
    /// # Errors
    /// A column that was not added, a row that is not there, or a side table that cannot be read or is not what the manifest
    /// says.
    pub fn read(&mut self, shard: &Digest, rows: &[u64], columns: &[&str]) -> Result<RecordBatch, ShardReadError> {
        if let Some(column) = columns.iter().find(|c| self.schema.index_of(c).is_err()) {
            let have = if self.tables.is_empty() { "none".to_owned() } else { self.names().join(", ") };
            return Err(ShardReadError::NotAdded { column: (*column).to_owned(), have });
        }
        let mut values: BTreeMap<String, ArrayRef> = BTreeMap::new();
        let covering: Vec<(&SideTableEntry, Range<u64>)> =
            self.tables.iter().filter_map(|table| Some((table, table.rows_of(shard)?))).collect();
        self.open.retain(|digest, _| covering.iter().any(|(table, _)| table.digest == *digest));
        for (table, of_shard) in covering {
            let shown = table.columns.iter().map(|c| c.name.as_str()).filter(|name| columns.contains(name));
            let shown: Vec<&str> = shown.collect();
            if shown.is_empty() {
                continue;
            }
            let reader = match self.open.get(&table.digest) {
                Some(reader) => reader.clone(),
                None => ShardReader::open_side_table(&self.store, &self.corpus, table)?,
            };
            let n_rows = of_shard.end - of_shard.start;
            if let Some(&row) = rows.iter().find(|row| **row >= n_rows) {
                return Err(ShardReadError::Rows { shard: shard.0.clone(), row, n_rows });
            }
            let rows: Vec<u64> = rows.iter().map(|row| of_shard.start + row).collect();
            let batch = reader.read(&rows, &shown)?;
            for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
                values.insert(field.name().clone(), column.clone());
            }
            self.open.insert(table.digest.clone(), reader);
        }
        let fields: Vec<_> =
            self.schema.fields().iter().filter(|field| columns.contains(&field.name().as_str())).cloned().collect();
        let column_of = |field: &Arc<Field>| {
            let null = || new_null_array(field.data_type(), rows.len());
            let column = values.get(field.name()).cloned().unwrap_or_else(null);
            if column.data_type() == field.data_type() {
                Ok(column)
            } else {
                Err(self.other_type(shard, field, &column))
            }
        };
        let arrays = fields.iter().map(column_of).collect::<Result<Vec<_>, _>>()?;
        self.batch(fields, arrays, rows.len())
    }

    /// Rows `rows` of a shard: `columns` of its own and added ones, in the order they are named.
    ///
    /// # Errors
    /// As [`ShardReader::read`] and [`AddedColumns::read`].
    pub fn read_joined(
        &mut self,
        reader: &ShardReader,
        rows: &[u64],
        columns: &[&str],
    ) -> Result<RecordBatch, ShardReadError> {
        let is_added = |name: &str| self.schema.index_of(name).is_ok();
        let (added, own): (Vec<&str>, Vec<&str>) = columns.iter().copied().partition(|name| is_added(name));
        let added = self.read(reader.digest(), rows, &added)?;
        let own = reader.read(rows, &own)?;
        let mut fields = Vec::new();
        let mut arrays = Vec::new();
        for name in columns.iter().map(|name| name.split('.').next().unwrap_or(name)) {
            for batch in [&own, &added] {
                if let Ok(at) = batch.schema_ref().index_of(name) {
                    fields.push(batch.schema_ref().fields()[at].clone());
                    arrays.push(batch.column(at).clone());
                }
            }
        }
        self.batch(fields, arrays, rows.len())
    }

    fn batch(
        &self,
        fields: Vec<Arc<Field>>,
        arrays: Vec<ArrayRef>,
        n_rows: usize,
    ) -> Result<RecordBatch, ShardReadError> {
        let options = RecordBatchOptions::new().with_row_count(Some(n_rows));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), arrays, &options).map_err(|source| {
            let range = 0..0;
            ShardReadError::Decode { shard: self.corpus.clone(), row_group: 0, range, source: source.into() }
        })
    }

    fn other_type(&self, shard: &Digest, field: &Field, found: &ArrayRef) -> ShardReadError {
        let has = |table: &&SideTableEntry| {
            table.rows_of(shard).is_some() && table.columns.iter().any(|c| c.name == *field.name())
        };
        let table = self.tables.iter().find(has).map_or_else(String::new, |table| table.digest.0.clone());
        let (found, wanted) = (found.data_type().to_string(), field.data_type().to_string());
        ShardReadError::OtherType { table, column: field.name().clone(), found, wanted }
    }
}
