//! What a run will read, write, need and take, before it runs.
//!
//! In: a config. Out: an [`Estimate`]: counts are exact where a listing gives them; shares, sizes and times come
//! from a sample of records that is read and verified as a run would. Never: writes to the store.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::config::{CorpusConfig, IngestConfig};
use crate::corpus::{Found, Listing};
use crate::error::IngestError;
use crate::pipeline::Sources;
use crate::plan::{Classes, plan};
use crate::progress::Progress;
use crate::survey::{CaptionSpool, survey};
use crate::tokenizer::CaptionTokenizer;
use crate::{pack, pipeline};

/// Records of each corpus that are tried, spread over its units.
const SAMPLE: usize = 256;
/// Units that the sample is taken from.
const SAMPLE_UNITS: usize = 8;
/// Bytes of an object that is put as one; larger ones go up in parts of this size.
const PART_BYTES: u64 = 8 << 20;
/// Rows that are laid out as columns and as pages; parts of a shard that go up. Both as seen on shards of photographs.
const WRITER_BYTES: u64 = 12 << 20;
const UPLOAD_BYTES: u64 = 20 << 20;

/// What is expected of one corpus.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CorpusEstimate {
    pub corpus: String,
    pub n_units: usize,
    pub n_inputs: u64,
    pub n_records: u64,
    pub n_rejected: u64,
    /// Bytes of media that will be read.
    pub input_bytes: u64,
    /// Bytes of shards that will be written.
    pub shard_bytes: u64,
    pub n_shards: u64,
    /// Requests to the store: puts of shards (or parts), tables, commits, manifest; gets and lists of commits.
    pub n_store_requests: u64,
    /// Requests to hosts of media.
    pub n_media_requests: u64,
    /// With the workers of the config, on this machine.
    pub hours: f64,
    /// Records that were tried.
    pub n_sampled: u64,
}

/// What is expected of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Estimate {
    pub corpora: Vec<CorpusEstimate>,
    pub n_workers: usize,
    pub hours: f64,
    /// Bytes that a worker holds at its peak: what reading and verifying the sample took, and what writing takes.
    pub memory_bytes: u64,
}

/// Estimates a run of `config`.
///
/// # Errors
/// A corpus or the tokenizer cannot be read.
pub fn estimate(config: &IngestConfig, progress: &mut Progress) -> Result<Estimate, IngestError> {
    let mut spool = if config.tokenizer.is_trained() { Some(CaptionSpool::new()?) } else { None };
    let mut opened = Vec::new();
    for corpus in &config.corpora {
        progress.note(&format!("{}: reading captions and labels of `{}`", corpus.name, corpus.path));
        let started = Instant::now();
        let listing = Listing::open(config, corpus)?;
        let surveyed = survey(config, corpus, &listing, None, spool.as_mut())?;
        opened.push((corpus, listing, surveyed, started.elapsed()));
    }
    let tokenizer = match spool {
        Some(spool) => CaptionTokenizer::train(&config.tokenizer, &mut spool.into_captions()?)?,
        None => CaptionTokenizer::read(&config.tokenizer, &config.root)?,
    };
    let mut corpora = Vec::new();
    for (corpus, listing, surveyed, listed) in opened {
        if config.corpus_names().contains(&corpus.name.as_str()) {
            progress.note(&format!("{}: trying some records", corpus.name));
            let sample = Sample::take(config, corpus, &listing, &surveyed.classes, &tokenizer)?;
            corpora.push(sample.scaled(config, corpus, &listing, listed));
        }
    }
    let hours = corpora.iter().map(|corpus| corpus.hours).sum();
    let has_parts = corpora.iter().any(|corpus| corpus.shard_bytes / corpus.n_shards.max(1) > PART_BYTES);
    let writing = WRITER_BYTES + if has_parts { UPLOAD_BYTES } else { 0 };
    let memory_bytes = peak_so_far().map_or(config.memory_bytes, |peak| peak + writing);
    Ok(Estimate { corpora, n_workers: config.workers, hours, memory_bytes })
}

/// The most memory that this process has held, in bytes; `None` where the system does not say.
fn peak_so_far() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Units read in full, and some of their records verified.
#[derive(Debug, Default)]
struct Sample {
    n_units: u64,
    n_inputs: u64,
    n_rejected_unread: u64,
    n_urls: u64,
    /// Of media whose size is known unread.
    known_bytes: u64,
    n_known: u64,
    reading: Duration,
    n_tried: u64,
    n_kept: u64,
    tried_bytes: u64,
    kept_bytes: u64,
    words_bytes: u64,
    verifying: Duration,
    n_splits: u64,
}

impl Sample {
    fn take(
        config: &IngestConfig,
        corpus: &CorpusConfig,
        listing: &Listing,
        classes: &Classes,
        tokenizer: &CaptionTokenizer,
    ) -> Result<Self, IngestError> {
        let mut sample = Self::default();
        let sources = Sources::new(config);
        let n_units = listing.n_units();
        let step = n_units.div_ceil(SAMPLE_UNITS).max(1);
        let units: Vec<usize> = (0..n_units).step_by(step).collect();
        let per_unit = SAMPLE / units.len().max(1);
        for unit in units {
            let started = Instant::now();
            let found: Found = listing.read(unit)?;
            sample.n_units += 1;
            sample.n_inputs += (found.candidates.len() + found.rejects.len()) as u64;
            sample.n_rejected_unread += found.rejects.len() as u64;
            let planned = plan(corpus, found, classes)?;
            sample.reading += started.elapsed();
            sample.n_splits = sample.n_splits.max(planned.splits.len() as u64);
            for (_, mut records) in planned.splits {
                for record in &records {
                    match record.medium.len() {
                        Some(len) => {
                            sample.known_bytes += len;
                            sample.n_known += 1;
                        }
                        None => sample.n_urls += 1,
                    }
                }
                // Records stand in the order of a hash, so the first are a fair sample.
                records.truncate(per_unit.max(1));
                let started = Instant::now();
                pipeline::verify_all(corpus, tokenizer, &sources, &records, &mut |planned, verified| {
                    sample.n_tried += 1;
                    sample.tried_bytes += planned.medium.len().unwrap_or(0);
                    for record in verified.unwrap_or_default() {
                        sample.n_kept += 1;
                        sample.kept_bytes += record.media.len() as u64;
                        let n_ids: usize = record.tokens.iter().map(Vec::len).sum();
                        let n_letters: usize = planned.captions.iter().map(String::len).sum();
                        // Words are compressed about threefold, keys twofold.
                        let words = (n_ids * 4 + n_letters) / 3 + planned.key.len() / 2;
                        let page = if record.media.len() >= OWN_PAGE { PAGE_OVERHEAD } else { 0 };
                        sample.words_bytes += (words + ROW_OVERHEAD + page) as u64;
                    }
                    Ok(())
                })?;
                sample.verifying += started.elapsed();
            }
        }
        Ok(sample)
    }

    fn scaled(
        &self,
        config: &IngestConfig,
        corpus: &CorpusConfig,
        listing: &Listing,
        listed: Duration,
    ) -> CorpusEstimate {
        let n_units = listing.n_units();
        let by_unit = n_units as f64 / self.n_units.max(1) as f64;
        let n_inputs = self.n_inputs as f64 * by_unit;
        let n_readable = n_inputs - self.n_rejected_unread as f64 * by_unit;
        let per_tried = |n: f64| n / self.n_tried.max(1) as f64;
        let n_records = n_readable * per_tried(self.n_kept as f64);
        let mean_bytes = match self.n_known {
            0 => per_tried(self.tried_bytes.max(self.kept_bytes) as f64),
            n => self.known_bytes as f64 / n as f64,
        };
        // Kept media weigh what the sample's kept media weigh, corrected by how the sample's inputs weigh against all inputs.
        let weight = if self.tried_bytes > 0 { mean_bytes / per_tried(self.tried_bytes as f64) } else { 1.0 };
        let kept_bytes = n_readable * per_tried(self.kept_bytes as f64) * weight;
        let shard_bytes = kept_bytes + n_readable * per_tried(self.words_bytes as f64);
        let per_unit = shard_bytes / n_units.max(1) as f64 / self.n_splits.max(1) as f64;
        let shards_per_unit =
            (kept_bytes / n_units.max(1) as f64 / self.n_splits.max(1) as f64 / config.shard_bytes as f64)
                .ceil()
                .max(1.0);
        let n_shards = shards_per_unit * n_units as f64 * self.n_splits.max(1) as f64;
        let parts = (per_unit / shards_per_unit / PART_BYTES as f64).ceil();
        let puts_per_shard = if parts > 1.0 { parts + 2.0 } else { 1.0 };
        // A head and the puts of each shard; a get and a put of each unit's commit, a table where it has rejects; the index of
        // media, the manifest with its listing, a share of the tokenizer.
        // Where there are two shards or rules that need it, a footer and keys are read of each, to find duplicates.
        let gets_per_shard = if n_shards > 1.5 || corpus.clean.near.is_some() { 2.0 } else { 0.0 };
        let n_tables = if self.n_rejected_unread > 0 || self.n_kept < self.n_tried { n_units as f64 } else { 0.0 };
        let n_store_requests =
            n_shards * (1.0 + puts_per_shard + gets_per_shard) + n_units as f64 * 2.0 + n_tables + 4.0;
        let shard_bytes = shard_bytes + n_shards * SHARD_OVERHEAD;
        let seconds = listed.as_secs_f64()
            + self.reading.as_secs_f64() * by_unit
            + per_tried(self.verifying.as_secs_f64()) * n_readable * (1.0 + pack::SHARE_OF_VERIFYING);
        CorpusEstimate {
            corpus: corpus.name.clone(),
            n_units,
            n_inputs: n_inputs.round() as u64,
            n_records: n_records.round() as u64,
            n_rejected: (n_inputs - n_records).round() as u64,
            input_bytes: (n_readable * mean_bytes).round() as u64,
            shard_bytes: shard_bytes.round() as u64,
            n_shards: n_shards.round() as u64,
            n_store_requests: n_store_requests.round() as u64,
            n_media_requests: (self.n_urls as f64 * by_unit).round() as u64,
            hours: seconds / 3600.0,
            n_sampled: self.n_tried,
        }
    }
}

/// Bytes of a row beside its medium and words, compressed: digest, numbers.
const ROW_OVERHEAD: usize = 48;
/// Bytes of a page and its place in the index; a medium of [`OWN_PAGE`] has one of its own.
const PAGE_OVERHEAD: usize = 64;
const OWN_PAGE: usize = 16 << 10;
/// Bytes of a shard that do not depend on its rows: bloom filters, footer.
const SHARD_OVERHEAD: f64 = 28_000.0;

impl std::fmt::Display for Estimate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for c in &self.corpora {
            writeln!(f, "{}: {} inputs in {} units", c.corpus, c.n_inputs, c.n_units)?;
            writeln!(f, "  records   {} (of {} that were tried; {} rejected)", c.n_records, c.n_sampled, c.n_rejected)?;
            writeln!(
                f,
                "  reads     {:.1} MiB, {} requests to hosts of media",
                mib(c.input_bytes),
                c.n_media_requests
            )?;
            writeln!(f, "  writes    {:.1} MiB in {} shards", mib(c.shard_bytes), c.n_shards)?;
            writeln!(f, "  store     {} requests", c.n_store_requests)?;
            writeln!(f, "  takes     {:.3} h ({:.0} s)", c.hours, c.hours * 3600.0)?;
        }
        let memory = mib(self.memory_bytes);
        write!(
            f,
            "{:.3} h with {} verifying threads, at most {memory:.0} MiB of memory a worker",
            self.hours, self.n_workers
        )
    }
}
