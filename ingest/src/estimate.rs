//! What a run will read, write, need and take, before it runs.
//!
//! In: a config. Out: an [`Estimate`] of a run by one worker into a store that has none of it yet: counts are exact where a
//! listing gives them; shares, sizes and times come from a sample of records that is read, verified and packed as a run would,
//! and requests from what the code asks for ([`requests`]). Never: writes to the store, asks it anything.

mod requests;
mod sample;

use std::time::{Duration, Instant};

use serde::Serialize;

use self::requests::{CorpusRequests, Cut, Packing};
use self::sample::{Sample, UnitCuts};
use crate::config::{CorpusConfig, IngestConfig};
use crate::corpus::Listing;
use crate::error::IngestError;
use crate::progress::Progress;
use crate::survey::{CaptionSpool, survey};
use crate::tokenizer::CaptionTokenizer;

/// Parts of a large shard that are held while it goes up: one that is read, two under way.
const PARTS_HELD: u64 = 3;

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
    /// Requests to the store that the corpus causes: puts of shards (or parts), tables, commits, index, manifest; looks for what is
    /// there already; reads of keys. Not those for the corpora of `near.against`.
    pub n_store_requests: u64,
    /// Requests to hosts of media, repeated ones included.
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
    /// Those of the corpora, and one for the tokenizer.
    pub n_store_requests: u64,
    pub hours: f64,
    /// Bytes that a worker holds at its peak: what reading, verifying and packing the sample took, and what going up takes.
    pub memory_bytes: u64,
}

/// Estimates a run of `config`.
///
/// # Errors
/// A corpus or the tokenizer cannot be read, or a sample cannot be packed.
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
    let (mut corpora, mut memory) = (Vec::new(), Memory::default());
    for (corpus, listing, surveyed, listed) in opened {
        if config.corpus_names().contains(&corpus.name.as_str()) {
            progress.note(&format!("{}: trying some records", corpus.name));
            let sample = Sample::take(config, corpus, &listing, &surveyed.classes, &tokenizer)?;
            let scaled = scaled(config, corpus, &listing, &sample, listed);
            memory.add(&scaled, &sample);
            corpora.push(scaled);
        }
    }
    let hours = corpora.iter().map(|corpus| corpus.hours).sum();
    let n_store_requests = corpora.iter().map(|corpus| corpus.n_store_requests).sum::<u64>() + 1;
    let memory_bytes = memory.peak_bytes().unwrap_or(config.memory_bytes);
    Ok(Estimate { corpora, n_workers: config.workers, n_store_requests, hours, memory_bytes })
}

/// What going up and publishing add to what the sample took.
#[derive(Debug, Default)]
struct Memory {
    /// While other records of the unit are verified.
    beside_bytes: u64,
    /// While nothing else is done, from what the process held at the end of a unit: the last shards of units.
    alone_bytes: u64,
}

impl Memory {
    fn add(&mut self, corpus: &CorpusEstimate, sample: &Sample) {
        let part = imp_schemas::store::PART_BYTES as u64;
        let shard = corpus.shard_bytes / corpus.n_shards.max(1);
        let going_up = if shard > part { PARTS_HELD * part } else { shard };
        // All finished shards are listed until the manifest is, which lists them once more.
        let listed = corpus.n_shards * sample.entry_bytes;
        self.alone_bytes = self.alone_bytes.max(sample.held_bytes + listed + going_up.max(listed));
        let n_splits = sample.all_units().splits.len();
        let is_beside = corpus.n_shards > (corpus.n_units * n_splits) as u64 && !sample.has_full_shard;
        self.beside_bytes = self.beside_bytes.max(listed + if is_beside { going_up } else { 0 });
    }

    /// `None` where the system does not say what the sample took.
    fn peak_bytes(&self) -> Option<u64> {
        Some((status_bytes("VmHWM:")? + self.beside_bytes).max(self.alone_bytes))
    }
}

/// A line of what the system says of this process, in bytes.
fn status_bytes(name: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// Plays the run through, unit by unit: those of the sample with what they are known to hold, the others with what units of the
/// sample hold by their weight.
fn scaled(
    config: &IngestConfig,
    corpus: &CorpusConfig,
    listing: &Listing,
    sample: &Sample,
    listed: Duration,
) -> CorpusEstimate {
    let n_units = listing.n_units();
    let packing =
        Packing { shard_bytes: config.shard_bytes, row_bytes: sample.row_bytes, group_bytes: sample.group_bytes };
    let sampled_weight: u64 = sample.units.keys().map(|&unit| listing.weight(unit)).sum();
    let (mut all, mut requests) = (UnitCuts::default(), CorpusRequests::default());
    for unit in 0..n_units {
        let weight = listing.weight(unit) as f64 / sampled_weight.max(1) as f64;
        let cuts = sample.units.get(&unit).map_or_else(|| sample.all_units().times(weight), Clone::clone);
        let kept: Vec<Cut> = cuts.splits.values().map(|split| sample.kept_of(split)).collect();
        requests.add_unit(&packing, &kept, sample.share_with_rejects(&cuts));
        all.add(&cuts);
    }
    let n_readable: f64 = all.splits.values().map(|split| split.n).sum();
    let n_inputs = n_readable + all.n_unread;
    let n_records = n_readable * sample.kept_share();
    let by_unit = n_inputs / sample.all_units().n_inputs().max(1.0);
    let seconds =
        listed.as_secs_f64() + sample.reading.as_secs_f64() * by_unit + sample.seconds_per_tried() * n_readable;
    CorpusEstimate {
        corpus: corpus.name.clone(),
        n_units,
        n_inputs: n_inputs.round() as u64,
        n_records: n_records.round() as u64,
        n_rejected: (n_inputs - n_records).round() as u64,
        input_bytes: all.splits.values().map(|split| sample.bytes_of(split)).sum::<f64>().round() as u64,
        shard_bytes: requests.shard_bytes.round() as u64,
        n_shards: requests.n_shards.round() as u64,
        n_store_requests: requests.of_corpus(corpus, n_records).round() as u64,
        n_media_requests: (all.splits.values().map(|split| split.n_urls).sum::<f64>() * sample.requests_per_url())
            .round() as u64,
        hours: seconds / 3600.0,
        n_sampled: sample.n_tried,
    }
}

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
            "{:.3} h with {} verifying threads, at most {memory:.0} MiB of memory a worker, {} requests to the store",
            self.hours, self.n_workers, self.n_store_requests
        )
    }
}
