//! Rows that a snapshot hides: withdrawn by their owner, or duplicates of an earlier row. Shards are never rewritten for it.
//!
//! In: a table of tombstones. Out: the row of a shard behind the n-th row that a reader sees. Never: I/O.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;

use crate::reject::RejectReason;
use crate::shard::Digest;

/// One hidden row.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tombstone {
    pub shard: Digest,
    /// Row within the shard.
    pub row: u64,
    pub key: String,
    pub reason: RejectReason,
    /// Which earlier row it repeats, or who withdrew it.
    pub detail: String,
}

/// Hidden rows by shard.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hidden {
    /// Rising rows of each shard that has any.
    by_shard: BTreeMap<Digest, Arc<[u64]>>,
}

/// Columns of the table of tombstones.
pub fn tombstone_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("shard", DataType::Utf8, false),
        Field::new("row", DataType::Int64, false),
        Field::new("key", DataType::Utf8, false),
        Field::new("reason", DataType::Utf8, false),
        Field::new("detail", DataType::Utf8, false),
    ]))
}

/// The rows as one batch of [`tombstone_schema`].
///
/// # Errors
/// Columns too large for Arrow's 32-bit offsets.
pub fn tombstone_batch(rows: &[Tombstone]) -> Result<RecordBatch, ArrowError> {
    RecordBatch::try_new(
        tombstone_schema(),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|t| &t.shard.0))),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|t| t.row as i64))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|t| &t.key))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|t| t.reason.name()))),
            Arc::new(StringArray::from_iter_values(rows.iter().map(|t| &t.detail))),
        ],
    )
}

/// The rows of a batch of [`tombstone_schema`]; `None` if it is none, or names a reason that this build does not know.
pub fn tombstones_of(batch: &RecordBatch) -> Option<Vec<Tombstone>> {
    let text = |name: &str| batch.column_by_name(name)?.as_string_opt::<i32>().filter(|c| c.null_count() == 0);
    let (shards, keys, reasons, details) = (text("shard")?, text("key")?, text("reason")?, text("detail")?);
    let rows = batch.column_by_name("row")?.as_primitive_opt::<Int64Type>().filter(|c| c.null_count() == 0)?;
    (0..batch.num_rows())
        .map(|i| {
            Some(Tombstone {
                shard: Digest(shards.value(i).to_owned()),
                row: u64::try_from(rows.value(i)).ok()?,
                key: keys.value(i).to_owned(),
                reason: RejectReason::of_name(reasons.value(i))?,
                detail: details.value(i).to_owned(),
            })
        })
        .collect()
}

impl Hidden {
    /// Of `tombstones`, in any order; a row that stands twice counts once.
    pub fn of(tombstones: &[Tombstone]) -> Self {
        let mut by_shard: BTreeMap<Digest, Vec<u64>> = BTreeMap::new();
        for tombstone in tombstones {
            by_shard.entry(tombstone.shard.clone()).or_default().push(tombstone.row);
        }
        let sorted = by_shard.into_iter().map(|(shard, mut rows)| {
            rows.sort_unstable();
            rows.dedup();
            (shard, Arc::from(rows))
        });
        Self { by_shard: sorted.collect() }
    }

    /// Hidden rows of `shard`, rising.
    pub fn rows(&self, shard: &Digest) -> Arc<[u64]> {
        self.by_shard.get(shard).cloned().unwrap_or_default()
    }

    /// Number of hidden rows.
    pub fn n_rows(&self) -> u64 {
        self.by_shard.values().map(|rows| rows.len() as u64).sum()
    }
}

/// The row within a shard of the `live`-th row that is not in `hidden` (rising rows).
pub fn row_of_live(hidden: &[u64], live: u64) -> u64 {
    // Before hidden row number i there are `hidden[i] - i` rows that are seen.
    let (mut low, mut high) = (0, hidden.len());
    while low < high {
        let middle = (low + high) / 2;
        if hidden[middle] - middle as u64 <= live { low = middle + 1 } else { high = middle }
    }
    live + low as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rows_that_are_seen_are_those_that_are_not_hidden_in_order() {
        let cases: [&[u64]; 6] = [&[], &[0], &[0, 1, 2], &[3], &[1, 4, 5, 9], &[9]];
        for hidden in cases {
            let seen: Vec<u64> = (0..10 - hidden.len() as u64).map(|live| row_of_live(hidden, live)).collect();
            let want: Vec<u64> = (0..10).filter(|row| !hidden.contains(row)).collect();
            assert_eq!(seen, want, "{hidden:?}");
        }
    }

    #[test]
    fn a_table_gives_back_what_was_put_in() {
        let row = |shard: &str, row, reason| Tombstone {
            shard: Digest(shard.to_owned()),
            row,
            key: format!("k{row}"),
            reason,
            detail: "a".to_owned(),
        };
        let rows = vec![
            row("b", 7, RejectReason::Withdrawn),
            row("a", 2, RejectReason::DuplicateMedia),
            row("b", 3, RejectReason::NearDuplicate),
        ];
        assert_eq!(tombstones_of(&tombstone_batch(&rows).unwrap()).unwrap(), rows);
        let hidden = Hidden::of(&rows);
        assert_eq!(*hidden.rows(&Digest("b".to_owned())), [3, 7]);
        assert_eq!((hidden.rows(&Digest("c".to_owned())).len(), hidden.n_rows()), (0, 3));
    }
}
