//! Rows → records: which bytes to read, and the reads.
//!
//! In: the rows of a batch. Out: their records, in that order. Never: a decode, a byte read that a decoded copy makes
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

impl Fetcher {
    /// The records of `examples`, in order.
    ///
    /// # Errors
    /// The store failed, or a shard is not what its manifest says.
    pub fn fetch(&self, recipe: &Recipe, examples: &[ExampleId]) -> Result<Vec<Record>, LoaderError> {
        let mut records: Vec<Option<Record>> = vec![None; examples.len()];
        let mut missing: BTreeMap<(usize, usize), ShardRows> = BTreeMap::new();
        let mut partly: Vec<Vec<(Form, Held)>> = vec![Vec::new(); examples.len()];
        for (i, example) in examples.iter().enumerate() {
            let corpus = recipe.splits[example.corpus_idx as usize];
            let split = &self.splits[corpus];
            let (shard_idx, row_in_shard) = split.locate(example.row);
            let place = self.place(corpus, example.row);
            let forms = recipe.forms(split.kind);
            let held: Vec<(Form, Held)> = forms
                .iter()
                .filter_map(|&form| Some((form, self.cache.get(CacheKey { corpus, row: example.row, form })?)))
                .collect();
            match held.first() {
                Some((_, Held::Meta(meta))) if held.len() == forms.len() => {
                    records[i] = Some(Record::new(place, Arc::clone(meta), held));
                }
                _ => {
                    partly[i] = held;
                    missing.entry((corpus, shard_idx)).or_default().entry(row_in_shard).or_default().push(i);
                }
            }
        }
        for ((corpus, shard_idx), rows) in missing {
            self.read(recipe, corpus, shard_idx, &rows, examples, &mut partly, &mut records)?;
        }
        // Every example was either found or read.
        Ok(records.into_iter().flatten().collect())
    }

    /// Where row `row` of split `corpus` lies.
    pub fn place(&self, corpus: usize, row: u64) -> Place {
        let split = &self.splits[corpus];
        let (shard_idx, row_in_shard) = split.locate(row);
        Place { corpus, row, shard: Arc::clone(split.shard_key(shard_idx)), row_in_shard }
    }

    #[expect(clippy::too_many_arguments, reason = "the loop's body of `fetch`, apart so that each reads in one piece")]
    fn read(
        &self,
        recipe: &Recipe,
        corpus: usize,
        shard_idx: usize,
        rows: &ShardRows,
        examples: &[ExampleId],
        partly: &mut [Vec<(Form, Held)>],
        records: &mut [Option<Record>],
    ) -> Result<(), LoaderError> {
        let split = &self.splits[corpus];
        let reader = split.reader(&self.store, shard_idx)?;
        let wanted = wanted_columns(split.kind, recipe.evaluates());
        let names: Vec<&str> = wanted.iter().map(String::as_str).collect();
        let row_numbers: Vec<u64> = rows.keys().copied().collect();
        let batch = reader
            .read(&row_numbers, &names)
            .map_err(|source| LoaderError::Shard { corpus: split.corpus.clone(), source })?;
        let columns = Columns::of(&batch, split.kind, recipe.evaluates()).map_err(|column| {
            let row_group = row_numbers.first().map_or(0, |&row| reader.row_group_of(row));
            LoaderError::Column { shard: reader.key().to_owned(), row_group, column }
        })?;
        for (i, places) in rows.values().enumerate() {
            let meta = Arc::new(columns.meta(i));
            self.media_bytes.fetch_add(columns.media.value(i).len() as u64, Ordering::Relaxed);
            for &at in places {
                let row = examples[at].row;
                self.cache.put(CacheKey { corpus, row, form: Form::Meta }, Held::Meta(Arc::clone(&meta)));
                let held = std::mem::take(&mut partly[at]);
                let record = Record::new(self.place(corpus, row), Arc::clone(&meta), held);
                records[at] = Some(record.with_medium(&columns.media, i));
            }
        }
        Ok(())
    }
}
