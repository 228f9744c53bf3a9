//! Splits of corpora, open for reading by row.
//!
//! In: snapshots. Out: which shard and row a row of a split is, and an open reader of that shard. Never: a footer read twice,
//! a row that the snapshot hides.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::AsArray;
use arrow::datatypes::Int32Type;
use imp_schemas::histogram::Histogram;
use imp_schemas::manifest::ShardEntry;
use imp_schemas::modality::RecordKind;
use imp_schemas::record::column;
use imp_schemas::shard::shard_key;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::{Snapshot, Store};
use imp_schemas::tombstone::row_of_live;

use crate::error::LoaderError;

/// Shards whose columns are read at a time.
const N_SIDE_BY_SIDE: usize = 16;

/// One split of one corpus.
pub struct Split {
    pub corpus: String,
    pub split: String,
    pub kind: RecordKind,
    /// Encoded bytes of an average record.
    pub mean_bytes: u64,
    /// Bytes of the corpus's largest picture or frame while it is decoded, by the manifest's histograms; 0 if it has none.
    pub decoded_bytes: usize,
    shards: Vec<OpenedShard>,
    /// First row of each shard, and one past the last row.
    starts: Vec<u64>,
}

struct OpenedShard {
    entry: ShardEntry,
    key: Arc<str>,
    /// Rising rows that the snapshot hides.
    hidden: Arc<[u64]>,
    reader: Mutex<Option<Arc<ShardReader>>>,
}

impl Split {
    /// # Errors
    /// The snapshot has no such split.
    pub fn new(snapshot: &Snapshot, split: &str) -> Result<Self, LoaderError> {
        let manifest = &snapshot.manifest;
        let entries = manifest.split(split)?;
        let mut starts = vec![0];
        for entry in &entries {
            starts.push(starts[starts.len() - 1] + entry.n_live());
        }
        let n_rows = entries.iter().map(|e| e.n_rows).sum::<u64>().max(1);
        let mean_bytes = entries.iter().map(|e| e.media_bytes).sum::<u64>() / n_rows;
        let shards = entries.into_iter().map(|entry| OpenedShard {
            entry: entry.clone(),
            key: Arc::from(shard_key(&manifest.corpus, &entry.digest)),
            hidden: snapshot.hidden.rows(&entry.digest),
            reader: Mutex::new(None),
        });
        let (corpus, split) = (manifest.corpus.clone(), split.to_owned());
        let decoded_bytes = decoded_bytes(&manifest.histograms);
        Ok(Self { corpus, split, kind: manifest.kind, mean_bytes, decoded_bytes, shards: shards.collect(), starts })
    }

    pub fn n_rows(&self) -> u64 {
        self.starts[self.starts.len() - 1]
    }

    /// Shard (index in the split) and row within it, hidden rows counted.
    pub fn locate(&self, row: u64) -> (usize, u64) {
        let shard_idx = self.starts.partition_point(|&start| start <= row).saturating_sub(1);
        let live = row - self.starts[shard_idx];
        (shard_idx, row_of_live(&self.shards[shard_idx].hidden, live))
    }

    /// Width and height of every row, pixels; (1, 1) where they are not known.
    ///
    /// # Errors
    /// A shard cannot be read.
    pub fn sizes(&self, store: &Store) -> Result<Vec<(u32, u32)>, LoaderError> {
        // Shards are waited for side by side: of each come two columns of a few bytes a row.
        let next = AtomicUsize::new(0);
        let some_shards = || {
            let mut found = Vec::new();
            loop {
                let shard_idx = next.fetch_add(1, Ordering::Relaxed);
                if shard_idx >= self.shards.len() {
                    return found;
                }
                found.push((shard_idx, self.sizes_of_shard(store, shard_idx)));
            }
        };
        let mut found = std::thread::scope(|scope| {
            let n_threads = N_SIDE_BY_SIDE.min(self.shards.len());
            let start = |i: usize| {
                let name = format!("imp-sizes-{i}");
                let started = std::thread::Builder::new().name(name.clone()).spawn_scoped(scope, some_shards);
                started.map_err(|source| LoaderError::Thread { name, source })
            };
            let threads: Vec<_> = (0..n_threads).map(start).collect::<Result<_, _>>()?;
            let joined =
                threads.into_iter().map(|thread| thread.join().unwrap_or_else(|e| std::panic::resume_unwind(e)));
            Ok::<_, LoaderError>(joined.flatten().collect::<Vec<_>>())
        })?;
        found.sort_unstable_by_key(|(shard_idx, _)| *shard_idx);
        let mut all = Vec::new();
        for (_, sizes) in found {
            all.extend(sizes?);
        }
        Ok(all)
    }

    fn sizes_of_shard(&self, store: &Store, shard_idx: usize) -> Result<Vec<(u32, u32)>, LoaderError> {
        let reader = self.reader(store, shard_idx)?;
        let failed = |source| LoaderError::Shard { corpus: self.corpus.clone(), source };
        let wrong =
            |column| LoaderError::Column { shard: self.shards[shard_idx].key.to_string(), row_group: 0, column };
        let hidden = &self.shards[shard_idx].hidden;
        let (mut sizes, mut row) = (Vec::new(), 0u64);
        for batch in reader.read_all(&[column::WIDTH, column::HEIGHT]).map_err(failed)? {
            let of = |name| {
                let numbers = batch.column_by_name(name).and_then(|a| a.as_primitive_opt::<Int32Type>());
                numbers.cloned().ok_or_else(|| wrong(name))
            };
            let (widths, heights) = (of(column::WIDTH)?, of(column::HEIGHT)?);
            for pair in widths.iter().zip(heights.iter()) {
                if hidden.binary_search(&row).is_err() {
                    let side = |n: Option<i32>| n.and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
                    sizes.push(side(pair.0).zip(side(pair.1)).unwrap_or((1, 1)));
                }
                row += 1;
            }
        }
        Ok(sizes)
    }

    pub fn shard_key(&self, shard_idx: usize) -> &Arc<str> {
        &self.shards[shard_idx].key
    }

    /// Bytes that are read when the shard is opened.
    pub fn footer_bytes(&self, shard_idx: usize) -> u64 {
        let entry = &self.shards[shard_idx].entry;
        entry.n_bytes.saturating_sub(entry.index_offset)
    }

    /// The reader of a shard, opened at first use.
    ///
    /// # Errors
    /// The shard cannot be opened.
    pub fn reader(&self, store: &Store, shard_idx: usize) -> Result<Arc<ShardReader>, LoaderError> {
        let shard = &self.shards[shard_idx];
        let mut slot = shard.reader.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reader) = &*slot {
            return Ok(Arc::clone(reader));
        }
        let opened = ShardReader::open(store, &self.corpus, &shard.entry);
        let reader = Arc::new(opened.map_err(|source| LoaderError::Shard { corpus: self.corpus.clone(), source })?);
        *slot = Some(Arc::clone(&reader));
        Ok(reader)
    }
}

/// RGB of as many pixels as the largest width and height make, which may be of two pictures, and the planes that a frame comes in.
fn decoded_bytes(histograms: &BTreeMap<String, Histogram>) -> usize {
    let most = |name: &str| {
        let bin = histograms.get(name).and_then(|histogram| histogram.bins.keys().next_back());
        bin.map_or(0.0, |bin| Histogram::edge(bin + 1))
    };
    (most(column::WIDTH) * most(column::HEIGHT) * 4.5) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_picture_is_at_least_as_large_as_any() {
        let of = |values: &[f64]| {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.push(value));
            histogram
        };
        let sizes =
            [(column::WIDTH.to_owned(), of(&[640.0, 3840.0])), (column::HEIGHT.to_owned(), of(&[2160.0, 480.0]))];
        let found = decoded_bytes(&BTreeMap::from(sizes));
        let exact = 3840 * 2160 * 9 / 2;
        assert!(found >= exact && found < 2 * exact, "{found}");
        assert_eq!(decoded_bytes(&BTreeMap::new()), 0);
    }
}
