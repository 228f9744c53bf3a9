//! Some records of a corpus, read, verified and packed as a run would.
//!
//! In: a listing. Out: what units hold, which share of their records is kept, what a row takes in a shard, and how long it took.
//! Never: writes to the store of the config.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use imp_schemas::manifest::ShardEntry;
use imp_schemas::shard::shard_key;
use imp_schemas::store::Store;

use super::requests::Cut;
use crate::config::{CorpusConfig, IngestConfig};
use crate::corpus::Listing;
use crate::error::IngestError;
use crate::pack::{OpenShard, PROGRAM, Row, ShardHead};
use crate::pipeline::{self, Sources};
use crate::plan::{Classes, DEFAULT_SPLIT, Planned, plan};
use crate::tokenizer::CaptionTokenizer;
use crate::verify::Record;

/// Records of each corpus that are tried, spread over its units.
const SAMPLE: usize = 256;
/// More of them, up to [`MAX_SAMPLE`], where their media are smaller than this: what a run holds is seen only once its batches of
/// rows are full, and a part of a row group.
const SAMPLE_BYTES: f64 = 32.0 * (1 << 20) as f64;
const MAX_SAMPLE: usize = 4096;
/// Units that the sample is taken from.
const SAMPLE_UNITS: usize = 8;

/// Readable inputs of a unit that go into one split.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct SplitCut {
    pub(super) n: f64,
    /// Of these, media that hosts are asked for.
    pub(super) n_urls: f64,
    /// Of media whose size is known unread.
    known_bytes: f64,
}

/// What a unit holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct UnitCuts {
    pub(super) splits: BTreeMap<String, SplitCut>,
    /// Inputs that are rejected before their medium is read.
    pub(super) n_unread: f64,
    /// Of the sample's units: records that were tried, and whether one of them was rejected.
    n_tried: f64,
    has_rejects: bool,
}

impl UnitCuts {
    pub(super) fn n_inputs(&self) -> f64 {
        self.splits.values().map(|split| split.n).sum::<f64>() + self.n_unread
    }

    pub(super) fn add(&mut self, other: &Self) {
        for (name, split) in &other.splits {
            let sum = self.splits.entry(name.clone()).or_default();
            sum.n += split.n;
            sum.n_urls += split.n_urls;
            sum.known_bytes += split.known_bytes;
        }
        self.n_unread += other.n_unread;
    }

    pub(super) fn times(&self, factor: f64) -> Self {
        let scaled = |split: &SplitCut| SplitCut {
            n: split.n * factor,
            n_urls: split.n_urls * factor,
            known_bytes: split.known_bytes * factor,
        };
        let splits = self.splits.iter().map(|(name, split)| (name.clone(), scaled(split))).collect();
        Self { splits, n_unread: self.n_unread * factor, n_tried: 0.0, has_rejects: false }
    }
}

/// Units read in full, and some of their records verified.
#[derive(Debug, Default)]
pub(super) struct Sample {
    /// By number.
    pub(super) units: BTreeMap<usize, UnitCuts>,
    pub(super) reading: Duration,
    pub(super) n_tried: u64,
    /// Inputs of which something was kept, and the records that came of them: more where films are cut.
    n_whole: u64,
    n_kept: u64,
    /// Of media whose size is known unread, and their number.
    tried_bytes: u64,
    n_tried_known: u64,
    kept_bytes: u64,
    n_tried_urls: u64,
    n_media_requests: u64,
    /// Verifying and packing.
    trying: Duration,
    /// As [`super::Packing`] has them.
    pub(super) row_bytes: f64,
    pub(super) group_bytes: f64,
    /// Of a shard in a manifest.
    pub(super) entry_bytes: u64,
    /// A shard was packed and stored while other records were verified.
    pub(super) has_full_shard: bool,
    /// Most that this process held at the end of a unit; 0 where the system does not say.
    pub(super) held_bytes: u64,
}

impl Sample {
    pub(super) fn take(
        config: &IngestConfig,
        corpus: &CorpusConfig,
        listing: &Listing,
        classes: &Classes,
        tokenizer: &CaptionTokenizer,
    ) -> Result<Self, IngestError> {
        let mut sample = Self::default();
        let sources = Sources::new(config);
        let mut packed = Packed::new(corpus, tokenizer, config.shard_bytes)?;
        let step = listing.n_units().div_ceil(SAMPLE_UNITS).max(1);
        let units: Vec<usize> = (0..listing.n_units()).step_by(step).collect();
        let n_units = units.len();
        for unit in units {
            let started = Instant::now();
            let planned = plan(corpus, listing.read(unit)?, classes)?;
            sample.reading += started.elapsed();
            let mut cuts = UnitCuts { n_unread: planned.rejects.len() as f64, ..UnitCuts::default() };
            let n_readable: usize = planned.splits.iter().map(|(_, records)| records.len()).sum();
            let of_splits: Vec<SplitCut> = planned.splits.iter().map(|(_, records)| cut_of(records)).collect();
            let per_unit = (sample_size(&of_splits) / n_units).max(1);
            for ((split, records), cut) in planned.splits.iter().zip(of_splits) {
                cuts.splits.insert(split.clone(), cut);
                // Records stand in the order of a hash, so the first are a fair sample; each split gives its share of it.
                let n_of_split = (per_unit * records.len()).div_ceil(n_readable);
                let records = &records[..n_of_split.min(records.len())];
                let started = Instant::now();
                pipeline::verify_all(corpus, tokenizer, &sources, records, &mut |planned, verified| {
                    sample.tried(planned, &verified);
                    cuts.n_tried += 1.0;
                    cuts.has_rejects |= verified.is_err();
                    let rows = verified.unwrap_or_default().into_iter();
                    rows.map(|record| Row::new(planned, classes.names(), record)).try_for_each(|row| packed.push(row))
                })?;
                sample.trying += started.elapsed();
            }
            // A unit's shards go up while its records are still listed.
            sample.held_bytes = sample.held_bytes.max(super::status_bytes("VmRSS:").unwrap_or_default());
            sample.units.insert(unit, cuts);
        }
        let started = Instant::now();
        packed.measure(&mut sample)?;
        sample.trying += started.elapsed();
        sample.n_media_requests = sources.n_requests();
        Ok(sample)
    }

    fn tried<E>(&mut self, planned: &Planned, verified: &Result<Vec<Record>, E>) {
        self.n_tried += 1;
        match planned.medium.len() {
            Some(len) => {
                self.tried_bytes += len;
                self.n_tried_known += 1;
            }
            None => self.n_tried_urls += 1,
        }
        if let Ok(records) = verified {
            self.n_whole += 1;
            self.n_kept += records.len() as u64;
            self.kept_bytes += records.iter().map(|record| record.media.len() as u64).sum::<u64>();
        }
    }

    /// All units of the sample as one.
    pub(super) fn all_units(&self) -> UnitCuts {
        let mut all = UnitCuts::default();
        self.units.values().for_each(|unit| all.add(unit));
        all
    }

    /// Records that come of a readable input.
    pub(super) fn kept_share(&self) -> f64 {
        self.n_kept as f64 / self.n_tried.max(1) as f64
    }

    pub(super) fn seconds_per_tried(&self) -> f64 {
        self.trying.as_secs_f64() / self.n_tried.max(1) as f64
    }

    pub(super) fn requests_per_url(&self) -> f64 {
        if self.n_tried_urls == 0 { 1.0 } else { self.n_media_requests as f64 / self.n_tried_urls as f64 }
    }

    /// Bytes of the media of `split`, as they are read: those from hosts weigh what kept ones of the sample do.
    pub(super) fn bytes_of(&self, split: &SplitCut) -> f64 {
        split.known_bytes + split.n_urls * self.kept_bytes as f64 / self.n_tried.max(1) as f64
    }

    /// Records that come of `split`, and bytes of their media.
    pub(super) fn kept_of(&self, split: &SplitCut) -> Cut {
        // Where all sizes are known, kept media are the share of them that the sample's are; a mean of kept media would not see
        // that other units' media weigh more.
        let media_bytes = if self.n_tried_known == self.n_tried && self.tried_bytes > 0 {
            split.known_bytes * self.kept_bytes as f64 / self.tried_bytes as f64
        } else {
            split.n * self.kept_bytes as f64 / self.n_tried.max(1) as f64
        };
        Cut { n: split.n * self.kept_share(), media_bytes }
    }

    /// How likely a unit has a table of rejects.
    pub(super) fn share_with_rejects(&self, unit: &UnitCuts) -> f64 {
        if unit.has_rejects || unit.n_unread >= 1.0 {
            return 1.0;
        }
        let refused = 1.0 - self.n_whole as f64 / self.n_tried.max(1) as f64;
        let n_untried = unit.n_inputs() - unit.n_unread - unit.n_tried;
        // `n_unread` below one is a mean over units.
        1.0 - (1.0 - refused).powf(n_untried.max(0.0)) * (1.0 - unit.n_unread)
    }
}

/// Records that all units together give, if they are like the one that holds `splits`.
fn sample_size(splits: &[SplitCut]) -> usize {
    let n: f64 = splits.iter().map(|split| split.n - split.n_urls).sum();
    let known_bytes: f64 = splits.iter().map(|split| split.known_bytes).sum();
    if n < 1.0 {
        return SAMPLE;
    }
    ((SAMPLE_BYTES * n / known_bytes.max(1.0)) as usize).clamp(SAMPLE, MAX_SAMPLE)
}

fn cut_of(records: &[Planned]) -> SplitCut {
    let mut cut = SplitCut { n: records.len() as f64, ..SplitCut::default() };
    for record in records {
        match record.medium.len() {
            Some(len) => cut.known_bytes += len as f64,
            None => cut.n_urls += 1.0,
        }
    }
    cut
}

/// Records of the sample in shards that never leave this machine: the first record alone, the others in shards of the config's size. What
/// the first two shards differ in is what rows take, the rest is what a shard takes whatever its rows.
struct Packed {
    first: Option<OpenShard>,
    others: OpenShard,
    n_others: u64,
    /// The first shard of others that was full: its bytes beside media, and its rows.
    full: Option<(f64, u64)>,
    most_bytes: u64,
    head: ShardHead,
    store: Store,
    /// Of the store; it goes when this does.
    _folder: tempfile::TempDir,
}

impl Packed {
    fn new(corpus: &CorpusConfig, tokenizer: &CaptionTokenizer, most_bytes: u64) -> Result<Self, IngestError> {
        let head = ShardHead {
            corpus: corpus.name.clone(),
            kind: corpus.kind,
            split: DEFAULT_SPLIT.to_owned(),
            tokenizer: tokenizer.entry.digest.clone(),
            mean_media_bytes: 0,
            program: PROGRAM,
        };
        let folder = tempfile::tempdir().map_err(|source| IngestError::Read { path: std::env::temp_dir(), source })?;
        let store = Store::open(&folder.path().display().to_string())?;
        let others = OpenShard::new(head.clone());
        Ok(Self { first: None, others, n_others: 0, full: None, most_bytes, head, store, _folder: folder })
    }

    fn push(&mut self, row: Row) -> Result<(), IngestError> {
        if self.first.is_none() {
            let mut first = OpenShard::new(self.head.clone());
            first.push(row)?;
            self.first = Some(first);
            return Ok(());
        }
        self.others.push(row)?;
        self.n_others += 1;
        if self.others.media_bytes() >= self.most_bytes {
            let full = std::mem::replace(&mut self.others, OpenShard::new(self.head.clone()));
            let (n_bytes, _) = self.store(full)?;
            self.full.get_or_insert((n_bytes, self.n_others));
            self.n_others = 0;
        }
        Ok(())
    }

    /// Bytes beside its media, and the entry. It is stored for what that takes of memory, and then removed: a run needs the disk
    /// of one shard, and so does a plan.
    fn store(&self, shard: OpenShard) -> Result<(f64, ShardEntry), IngestError> {
        let sealed = shard.seal()?;
        let n_bytes = sealed.n_bytes_beside_media() as f64;
        let entry = sealed.store(&self.store)?.entry;
        self.store.delete(&shard_key(&self.head.corpus, &entry.digest))?;
        Ok((n_bytes, entry))
    }

    /// What a row takes beside its medium, a shard without rows, and a shard's entry.
    fn measure(mut self, sample: &mut Sample) -> Result<(), IngestError> {
        let Some(first) = self.first.take() else { return Ok(()) };
        let (of_first, entry) = self.store(first)?;
        sample.has_full_shard = self.full.is_some();
        let (of_others, n_others) = match self.full {
            Some(full) => full,
            None if self.n_others == 0 => (of_first, 1),
            None => {
                let others = std::mem::replace(&mut self.others, OpenShard::new(self.head.clone()));
                (self.store(others)?.0, self.n_others)
            }
        };
        sample.row_bytes = ((of_others - of_first) / (n_others as f64 - 1.0).max(1.0)).max(0.0);
        sample.group_bytes = of_first - sample.row_bytes;
        sample.entry_bytes = serde_json::to_vec_pretty(&entry).unwrap_or_default().len() as u64;
        Ok(())
    }
}
