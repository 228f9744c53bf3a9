//! Records of different units, of earlier runs, or of other corpora, that are the same → tombstones for the later ones.
//!
//! In: shards in the order of a snapshot. Out: which of their rows are hidden, and why. Only the small columns that the rules
//! need are read: the key always, and digest, perceptual hash and captions as the corpus's `clean` table asks.
//! Memory: 40 bytes a record for keys, and what [`crate::filter`] states for the rules that are on.
//! Never: a row of an earlier snapshot hidden for the sake of a new one, a shard rewritten.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use imp_schemas::manifest::ShardEntry;
use imp_schemas::modality::RecordKind;
use imp_schemas::record::column;
use imp_schemas::reject::RejectReason;
use imp_schemas::shard::Digest;
use imp_schemas::shard_reader::ShardReader;
use imp_schemas::store::Store;
use imp_schemas::tombstone::{Hidden, Tombstone};

use crate::config::CorpusConfig;
use crate::error::IngestError;
use crate::filter::config::{CleanRules, Duplicates};
use crate::filter::{ExactIndex, Near, NearIndex, Sketches, caption_sketch};

/// First 16 bytes of a BLAKE3: two of a billion are alike by chance once in 10^20.
type Short = [u8; 16];

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Duplicated {
    pub(crate) tombstones: Vec<Tombstone>,
    /// By rule, what a dry run would have hidden.
    pub(crate) broken_rules: BTreeMap<String, u64>,
}

/// Rows that repeat an earlier one by key, or by a rule of the corpus. The first `n_old` shards are of an earlier snapshot:
/// their rows count as earlier ones and are never hidden.
///
/// # Errors
/// A shard, or a corpus that the rules compare with, cannot be read.
pub(crate) fn find(
    corpus: &CorpusConfig,
    store: &Store,
    shards: &[ShardEntry],
    n_old: usize,
    hidden: &Hidden,
) -> Result<Duplicated, IngestError> {
    let mut found = Duplicated::default();
    let rules = &corpus.clean;
    if shards.len() < 2 && rules.duplicates == Duplicates::Keep && rules.near.is_none() {
        return Ok(found);
    }
    let mut search = Search::new(corpus, rules);
    for other in rules.near.iter().flat_map(|near| &near.against).filter(|other| **other != corpus.name) {
        search.refer_to(store, other)?;
    }
    for (shard_idx, entry) in shards.iter().enumerate() {
        let hidden = hidden.rows(&entry.digest);
        let mut row = 0;
        for batch in search.read(store, &corpus.name, entry)? {
            for i in 0..batch.num_rows() {
                if hidden.binary_search(&row).is_err() {
                    let seen = Seen::of(&batch, i, corpus.kind, rules);
                    let place = Place { shard_idx, row };
                    search.judge(place, seen, shard_idx < n_old, shards, &mut found);
                }
                row += 1;
            }
        }
    }
    Ok(found)
}

/// A row of the snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    shard_idx: usize,
    row: u64,
}

/// What of a row the rules compare.
struct Seen {
    key: String,
    digest: Option<Digest>,
    sketches: Sketches,
}

impl Seen {
    fn of(batch: &RecordBatch, i: usize, kind: RecordKind, rules: &CleanRules) -> Self {
        let text = |name: &str| {
            let column = batch.column_by_name(name)?.as_string_opt::<i32>()?;
            column.is_valid(i).then(|| column.value(i).to_owned())
        };
        let hash = || {
            let column = batch.column_by_name(column::PHASH)?.as_primitive_opt::<Int64Type>()?;
            column.is_valid(i).then(|| column.value(i).cast_unsigned())
        };
        let captions = || {
            let list = batch.column_by_name(column::CAPTIONS)?.as_list_opt::<i32>()?.value(i);
            let texts: Vec<String> = list.as_string_opt::<i32>()?.iter().flatten().map(str::to_owned).collect();
            caption_sketch(&texts)
        };
        let picture = if kind == RecordKind::ImageText && rules.wants_picture_hash() { hash() } else { None };
        let captions = if rules.wants_caption_sketch() { captions() } else { None };
        Self {
            key: text(column::KEY).unwrap_or_default(),
            digest: text(column::DIGEST).map(Digest),
            sketches: Sketches { picture, captions },
        }
    }
}

struct Search<'a> {
    corpus: &'a CorpusConfig,
    rules: &'a CleanRules,
    columns: Vec<&'static str>,
    keys: HashMap<Short, u64>,
    exact: ExactIndex,
    near: Option<NearIndex>,
    /// By id: where the rows of this corpus are; rows of other corpora have ids above.
    places: Vec<Place>,
    /// Other corpora and the ids that they begin with.
    others: Vec<(u64, String)>,
    n_others: u64,
}

/// Ids of rows of other corpora begin here.
const OTHERS: u64 = 1 << 62;

impl<'a> Search<'a> {
    fn new(corpus: &'a CorpusConfig, rules: &'a CleanRules) -> Self {
        let mut columns = vec![column::KEY];
        if rules.duplicates == Duplicates::Drop {
            columns.push(column::DIGEST);
        }
        if rules.wants_picture_hash() && corpus.kind == RecordKind::ImageText {
            columns.push(column::PHASH);
        }
        if rules.wants_caption_sketch() {
            columns.push(column::CAPTIONS);
        }
        let near = rules.near.as_ref().map(NearIndex::new);
        let (keys, exact) = (HashMap::new(), ExactIndex::default());
        Self { corpus, rules, columns, keys, exact, near, places: Vec::new(), others: Vec::new(), n_others: 0 }
    }

    fn read(&self, store: &Store, corpus: &str, entry: &ShardEntry) -> Result<Vec<RecordBatch>, IngestError> {
        let failed = |source| IngestError::ReadShard { corpus: corpus.to_owned(), source };
        let reader = ShardReader::open(store, corpus, entry).map_err(failed)?;
        // A shard of schema 1.0 has no perceptual hashes: its pictures are then compared with nothing.
        let has =
            |name: &&str| reader.metadata().file_metadata().schema().get_fields().iter().any(|f| f.name() == *name);
        let columns: Vec<&str> = self.columns.iter().copied().filter(has).collect();
        reader.read_all(&columns).map_err(failed)
    }

    /// Remembers the records of another corpus, such as a set that a model is evaluated on.
    fn refer_to(&mut self, store: &Store, other: &str) -> Result<(), IngestError> {
        let snapshot = store.manifest(other)?;
        self.others.push((OTHERS + self.n_others, other.to_owned()));
        for entry in &snapshot.manifest.shards {
            for batch in self.read(store, other, entry)? {
                for i in 0..batch.num_rows() {
                    let seen = Seen::of(&batch, i, snapshot.manifest.kind, self.rules);
                    if let Some(near) = &mut self.near {
                        near.refer(OTHERS + self.n_others, &seen.sketches);
                    }
                    self.n_others += 1;
                }
            }
        }
        Ok(())
    }

    fn judge(&mut self, place: Place, seen: Seen, is_old: bool, shards: &[ShardEntry], found: &mut Duplicated) {
        let id = self.places.len() as u64;
        self.places.push(place);
        let first = *self.keys.entry(short(seen.key.as_bytes())).or_insert(id);
        let by_key = (first != id)
            .then(|| (RejectReason::DuplicateKey, "key", format!("{} has this key already", self.name(first, shards))));
        let repeated = by_key.or_else(|| self.by_rule(id, &seen, is_old, shards));
        let Some((reason, rule, detail)) = repeated.filter(|_| !is_old) else { return };
        if self.rules.dry && rule != "key" {
            *found.broken_rules.entry(rule.to_owned()).or_insert(0) += 1;
            return;
        }
        let shard = shards[place.shard_idx].digest.clone();
        found.tombstones.push(Tombstone { shard, row: place.row, key: seen.key, reason, detail });
    }

    fn by_rule(
        &mut self,
        id: u64,
        seen: &Seen,
        is_old: bool,
        shards: &[ShardEntry],
    ) -> Option<(RejectReason, &'static str, String)> {
        if self.rules.duplicates == Duplicates::Drop
            && let Some(of) = seen.digest.as_ref().and_then(|digest| self.exact.judge(id, digest))
        {
            let detail = format!("{} has the same bytes", self.name(of, shards));
            return Some((RejectReason::DuplicateMedia, "duplicates", detail));
        }
        let near = self.near.as_mut()?;
        if is_old {
            near.refer(id, &seen.sketches);
            return None;
        }
        match near.judge(id, &seen.sketches)? {
            Near::Picture { of, bits } => {
                let detail = format!("its picture differs in {bits} bits of 64 from that of {}", self.name(of, shards));
                Some((RejectReason::NearDuplicate, "near.picture_bits", detail))
            }
            Near::Captions { of, n_equal } => {
                let detail =
                    format!("its captions agree in {n_equal} of 64 places with those of {}", self.name(of, shards));
                Some((RejectReason::NearDuplicate, "near.caption_jaccard", detail))
            }
        }
    }

    fn name(&self, id: u64, shards: &[ShardEntry]) -> String {
        if let Some(place) = usize::try_from(id).ok().and_then(|id| self.places.get(id)) {
            return format!("row {} of shard {}", place.row, shards[place.shard_idx].digest.short());
        }
        let other = self.others.iter().rev().find(|(first, _)| *first <= id);
        other.map_or_else(
            || format!("a record of `{}`", self.corpus.name),
            |(_, name)| format!("a record of corpus `{name}`"),
        )
    }
}

fn short(bytes: &[u8]) -> Short {
    let mut short = [0; 16];
    short.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    short
}
