//! Rows → records: which bytes to read, and the reads.
//!
//! In: the rows of a batch. Out: the reads that bring them, one for each shard, and their records. Never: a decode, a byte read that a decoded copy makes
//! unnecessary, a fault of the store passed off as bad content: object_store has retried what may pass, the rest is an error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use imp_schemas::batch::ExampleId;
use imp_schemas::store::disk_cache::DiskCache;
use imp_schemas::store::sealed::Reading;
use imp_schemas::store::{Snapshot, Store};

use crate::cache::{Cache, CacheKey, Form, Held};
use crate::config::LoaderSettings;
use crate::corpora::Split;
use crate::error::LoaderError;
use crate::recipe::Recipe;
use crate::record::{Columns, Place, Record, wanted_columns};

/// `store` as the settings want it read, for a run over these snapshots.
pub fn reading<'a>(
    store: &Store,
    settings: &LoaderSettings,
    snapshots: impl IntoIterator<Item = &'a Snapshot>,
) -> Store {
    if !store.is_remote() {
        return store.clone();
    }
    let kept = snapshots.into_iter().flat_map(|snapshot| &snapshot.manifest.shards).map(|shard| &shard.digest);
    let disk = settings.disk_cache.as_ref();
    let disk = disk.map(|folder| DiskCache::open(folder, (settings.disk_cache_gib as u64) << 30, kept));
    store.reading(Reading::new(Duration::from_millis(settings.hedge_after_ms), disk))
}

/// Reads rows; shared by all threads.
pub struct Fetcher {
    pub store: Store,
    pub splits: Vec<Split>,
    pub cache: Arc<Cache>,
    pub media_bytes: AtomicU64,
}

/// Rows that must be read of one shard: row within it, and where in the batch it goes.
pub type ShardRows = BTreeMap<u64, Vec<usize>>;

/// What of a batch is read of one shard, in one call.
pub struct ShardRead {
    corpus: usize,
    shard_idx: usize,
    rows: ShardRows,
    /// Decoded forms that were found of those rows, by place in the batch.
    held: BTreeMap<usize, Vec<(Form, Held)>>,
}

/// A record, and where in the batch it goes.
pub type Placed = (usize, Record);

impl Fetcher {
    /// The records of `examples` that were found decoded, and what must be read for the others.
    pub fn plan(&self, recipe: &Recipe, examples: &[ExampleId]) -> (Vec<Placed>, Vec<ShardRead>) {
        let mut found = Vec::new();
        let mut reads: BTreeMap<(usize, usize), ShardRead> = BTreeMap::new();
        for (i, example) in examples.iter().enumerate() {
            let corpus = recipe.splits[example.corpus_idx as usize];
            let split = &self.splits[corpus];
            let (shard_idx, row_in_shard) = split.locate(example.row);
            let forms = recipe.forms(split.kind);
            let held: Vec<(Form, Held)> = forms
                .iter()
                .filter_map(|&form| Some((form, self.cache.get(CacheKey { corpus, row: example.row, form })?)))
                .collect();
            match held.first() {
                Some((_, Held::Meta(meta))) if held.len() == forms.len() => {
                    found.push((i, Record::new(self.place(corpus, example.row), Arc::clone(meta), held)));
                }
                _ => {
                    let fresh = || ShardRead { corpus, shard_idx, rows: BTreeMap::new(), held: BTreeMap::new() };
                    let read = reads.entry((corpus, shard_idx)).or_insert_with(fresh);
                    read.rows.entry(row_in_shard).or_default().push(i);
                    read.held.insert(i, held);
                }
            }
        }
        (found, reads.into_values().collect())
    }

    /// The records of `examples`, in order.
    ///
    /// # Errors
    /// As [`Fetcher::read`].
    pub fn fetch(&self, recipe: &Recipe, examples: &[ExampleId]) -> Result<Vec<Record>, LoaderError> {
        let (mut records, reads) = self.plan(recipe, examples);
        for read in reads {
            records.extend(self.read(recipe, examples, read)?);
        }
        records.sort_unstable_by_key(|(i, _)| *i);
        Ok(records.into_iter().map(|(_, record)| record).collect())
    }

    /// Where row `row` of split `corpus` lies.
    pub fn place(&self, corpus: usize, row: u64) -> Place {
        let split = &self.splits[corpus];
        let (shard_idx, row_in_shard) = split.locate(row);
        Place { corpus, row, shard: Arc::clone(split.shard_key(shard_idx)), row_in_shard }
    }

    /// The records that `read` stands for.
    ///
    /// # Errors
    /// The store failed, or the shard is not what its manifest says.
    pub fn read(&self, recipe: &Recipe, examples: &[ExampleId], read: ShardRead) -> Result<Vec<Placed>, LoaderError> {
        let ShardRead { corpus, shard_idx, rows, mut held } = read;
        let split = &self.splits[corpus];
        let reader = split.reader(&self.store, shard_idx)?;
        let wanted = wanted_columns(&reader, split.kind, recipe.evaluates());
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let row_numbers: Vec<u64> = rows.keys().copied().collect();
        let batch = reader
            .read(&row_numbers, &names)
            .map_err(|source| LoaderError::Shard { corpus: split.corpus.clone(), source })?;
        let columns = Columns::of(&batch, split.kind, recipe.evaluates()).map_err(|column| {
            let row_group = row_numbers.first().map_or(0, |&row| reader.row_group_of(row));
            LoaderError::Column { shard: reader.key().to_owned(), row_group, column }
        })?;
        let mut records = Vec::new();
        for (i, places) in rows.values().enumerate() {
            let meta = Arc::new(columns.meta(i));
            self.media_bytes.fetch_add(columns.media.value(i).len() as u64, Ordering::Relaxed);
            for &at in places {
                let row = examples[at].row;
                self.cache.put(CacheKey { corpus, row, form: Form::Meta }, Held::Meta(Arc::clone(&meta)));
                let held = held.remove(&at).unwrap_or_default();
                let record = Record::new(self.place(corpus, row), Arc::clone(&meta), held);
                records.push((at, record.with_medium(&columns.media, i)));
            }
        }
        Ok(records)
    }
}
