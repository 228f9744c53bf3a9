//! Where the medium of every record lies in its shard, to the byte: a random record is one range of exactly its size.
//!
//! In: a snapshot. Out: media by row. The table is one object beside the manifest, 16 bytes a record before compression; who
//! has read both needs no footer of a shard. Never: a range that holds more than the medium.
//! Source: DATA-PLANE.md 8.3 and 8.4; media lie uncompressed and in plain encoding at the end of their pages.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// Bytes `offset..offset + len` of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MediaPlace {
    pub offset: u64,
    pub len: u64,
}

/// Columns of the table: places in the order of the manifest's shards and of their rows, hidden rows included.
pub fn media_index_schema() -> SchemaRef {
    let column = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![column("offset"), column("len")]))
}

/// The places as one batch of [`media_index_schema`].
///
/// # Errors
/// None that a vector of numbers can cause.
pub fn media_index_batch(places: &[MediaPlace]) -> Result<RecordBatch, ArrowError> {
    let column = |value: fn(&MediaPlace) -> u64| -> Arc<dyn Array> {
        Arc::new(Int64Array::from_iter_values(places.iter().map(|place| value(place) as i64)))
    };
    RecordBatch::try_new(media_index_schema(), vec![column(|place| place.offset), column(|place| place.len)])
}

/// The places of a batch of [`media_index_schema`]; `None` if it is none.
pub fn media_places_of(batch: &RecordBatch) -> Option<Vec<MediaPlace>> {
    let column =
        |name: &str| batch.column_by_name(name)?.as_primitive_opt::<Int64Type>().filter(|c| c.null_count() == 0);
    let (offsets, lens) = (column("offset")?, column("len")?);
    let place = |(&offset, &len): (&i64, &i64)| {
        Some(MediaPlace { offset: u64::try_from(offset).ok()?, len: u64::try_from(len).ok()? })
    };
    offsets.values().iter().zip(lens.values()).map(place).collect()
}

#[cfg(feature = "store")]
pub use reading::{MediaIndex, media_place_batches};

#[cfg(feature = "store")]
mod reading {
    use super::{Arc, Bytes, MediaPlace, media_places_of};
    use crate::manifest::{Manifest, ShardEntry};
    use crate::parquet_claims::{batches, guarded, open_rows};
    use crate::shard::{media_index_key, shard_key};
    use crate::store::{Snapshot, Store, StoreError};

    /// Places as they stand in the index of `manifest`, some at a time: for whoever needs each of them once. `None` if it has no
    /// index.
    ///
    /// # Errors
    /// The store failed, or the table is not what the manifest says.
    pub fn media_place_batches(
        store: &Store,
        manifest: &Manifest,
    ) -> Result<Option<impl Iterator<Item = Result<Vec<MediaPlace>, StoreError>>>, StoreError> {
        let Some(entry) = &manifest.media_index else { return Ok(None) };
        let (url, key) = (store.url().to_owned(), media_index_key(&manifest.corpus, &entry.digest));
        let file = store.get_file(&key)?;
        let broken = move |detail: String| StoreError::Table { url: url.clone(), key: key.clone(), detail };
        let reader = open_rows(file).map_err(|e| broken(e.to_string()))?;
        let found = u64::try_from(reader.metadata().file_metadata().num_rows()).unwrap_or(0);
        let wanted: u64 = manifest.shards.iter().map(|shard: &ShardEntry| shard.n_rows).sum();
        if found != wanted {
            return Err(broken(format!("it has {found} rows, the shards of the manifest have {wanted}")));
        }
        let reader = guarded(|| reader.build()).map_err(|e| broken(e.to_string()))?;
        Ok(Some(batches(reader).map(move |batch| {
            let batch = batch.map_err(|e| broken(e.to_string()))?;
            media_places_of(&batch).ok_or_else(|| broken("columns that this build does not know".to_owned()))
        })))
    }

    /// The places of a snapshot's media, in memory: 16 bytes a record.
    #[derive(Debug, Clone)]
    pub struct MediaIndex {
        store: Store,
        shards: Vec<Arc<str>>,
        /// First row of each shard, and one past the last row.
        starts: Vec<u64>,
        places: Vec<MediaPlace>,
    }

    impl MediaIndex {
        /// Reads the index of `snapshot`; `None` if it has none: it stands on shards that were written before there was one.
        ///
        /// # Errors
        /// The store failed, or the table is not what the manifest says.
        pub fn load(store: &Store, snapshot: &Snapshot) -> Result<Option<Self>, StoreError> {
            let manifest = &snapshot.manifest;
            let Some(places) = store.media_places(manifest)? else { return Ok(None) };
            let mut starts = vec![0];
            for shard in &manifest.shards {
                starts.push(starts[starts.len() - 1] + shard.n_rows);
            }
            let shards = manifest.shards.iter().map(|s| Arc::from(shard_key(&manifest.corpus, &s.digest))).collect();
            Ok(Some(Self { store: store.clone(), shards, starts, places }))
        }

        /// Rows of all shards, hidden ones included.
        pub fn n_rows(&self) -> u64 {
            self.places.len() as u64
        }

        /// Shard and byte range of row `row`, counted over the manifest's shards, hidden rows included; `None` beyond the last.
        pub fn place(&self, row: u64) -> Option<(&str, MediaPlace)> {
            let place = *self.places.get(usize::try_from(row).ok()?)?;
            let shard = self.starts.partition_point(|&start| start <= row).checked_sub(1)?;
            Some((self.shards.get(shard)?, place))
        }

        /// The encoded medium of row `row`, by one range; `None` beyond the last row.
        ///
        /// # Errors
        /// The store failed.
        pub fn get(&self, row: u64) -> Result<Option<Bytes>, StoreError> {
            let Some((shard, MediaPlace { offset, len })) = self.place(row) else { return Ok(None) };
            self.store.get_range(shard, offset..offset + len).map(Some)
        }
    }
}
