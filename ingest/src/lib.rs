//! Corpora → Parquet shards in a store.
//!
//! In: an `[ingest]` config and a store. Out: per corpus a new snapshot: digest-named shards, tables of rejects, a tokenizer
//! that all corpora of the run share, a manifest. Every record was decoded in full before it was kept; every record that was
//! not kept is counted and listed. The same corpora and config give the same bytes, whatever the machine, the number of
//! workers, and the moments at which they were killed.
//! Never here: network other than the store's and the media's, tensors, batches, anything of the loader.
//!
//! ```text
//! corpus ─► units ─► plan ─► read ─► verify ─► pack ─► shards, rejects ─► commit of the unit     any worker, any order
//! all commits ─► duplicates across units ─► budget ─► manifest                                   the worker that is last
//! ```

mod commit;
mod config;
mod corpus;
mod decoding;
mod duplicates;
mod edit;
mod error;
mod estimate;
mod fetch;
mod filter;
mod finish;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod gc;
mod journal;
mod media;
mod pack;
mod pipeline;
mod places;
mod plan;
mod progress;
mod publish;
mod rank;
mod report;
mod retry;
mod survey;
mod text;
mod tokenizer;
mod unit;
mod verify;

use std::time::Instant;

use imp_schemas::reject::RejectReason;
use imp_schemas::shard::Digest;
use imp_schemas::store::{Snapshot, Store};

pub use config::IngestConfig;
pub use edit::{Edited, roll_back, withdraw};
pub use error::IngestError;
pub use estimate::{CorpusEstimate, Estimate, estimate};
pub use gc::{Garbage, collect_garbage};
pub use progress::{Progress, ProgressMode};
pub use rank::Rank;
pub use report::{CorpusReport, Published, Report, Waiting};

use commit::UnitCommit;
use config::CorpusConfig;
use corpus::Listing;
use finish::Done;
use journal::Journal;
use pipeline::Sources;
use retry::Retried;
use survey::{CaptionSpool, Surveyed};
use tokenizer::CaptionTokenizer;
use unit::{Seen, UnitWork};

/// What a run does to the corpora of its config.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// The next snapshot is what the corpus is now.
    #[default]
    Replace,
    /// The next snapshot is the newest one and what the corpus is now; a key that is there already is a duplicate.
    Append,
    /// Takes up again the inputs that the newest snapshot rejected for these reasons.
    Retry(Vec<RejectReason>),
}

/// How a run shares its work and what it does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RunOptions {
    pub mode: Mode,
    pub rank: Rank,
}

/// Ingests the corpora of `config` into `store`, alone.
///
/// # Errors
/// As [`run_as`].
pub fn run(config: &IngestConfig, store: &Store, progress: &mut Progress) -> Result<Report, IngestError> {
    run_as(config, store, &RunOptions::default(), progress)
}

/// Ingests the corpora of `config` into `store` as one of any number of workers. Units that have a commit are not done again;
/// the worker that finds all units of the run done publishes. No manifest is published before every corpus is packed.
///
/// # Errors
/// See [`IngestError`]; what is left behind is the commits of finished units, which the next run goes on from.
pub fn run_as(
    config: &IngestConfig,
    store: &Store,
    options: &RunOptions,
    progress: &mut Progress,
) -> Result<Report, IngestError> {
    let started = Instant::now();
    let mut jobs = Vec::new();
    for corpus in &config.corpora {
        progress.note(&format!("{}: reading captions and labels of `{}`", corpus.name, corpus.path));
        jobs.push(Job::open(config, corpus, store, &options.mode)?);
    }
    let tokenizer = survey_all(config, store, &mut jobs)?;
    publish::store_tokenizer(store, &tokenizer)?;
    for job in jobs.iter_mut().filter(|job| job.is_chosen) {
        job.do_units(store, &tokenizer, options.rank, progress)?;
    }
    // Only now: of all workers, the one whose last commit is the last of the run finds all of them.
    for job in jobs.iter_mut().filter(|job| job.is_chosen) {
        job.look_at_others(store)?;
    }
    let waiting: Vec<Waiting> = jobs.iter().filter(|job| job.is_chosen).filter_map(Job::waits).collect();
    let mut corpora = Vec::new();
    if waiting.is_empty() {
        let mut manifests = Vec::new();
        for job in jobs.into_iter().filter(|job| job.is_chosen) {
            let seconds = job.seconds;
            let done = job.done(&tokenizer);
            let n_ignored = done.n_ignored();
            manifests.push((done.manifest(store)?, n_ignored, seconds));
        }
        for (manifest, n_ignored, seconds) in manifests {
            let published = publish::publish(store, &manifest)?;
            corpora.push(CorpusReport::of(store, manifest, n_ignored, seconds, published));
        }
    }
    let imp_schemas::manifest::TokenizerEntry { digest, vocab_size } = tokenizer.entry;
    let store = store.url().to_owned();
    Ok(Report { store, tokenizer: digest, vocab_size, corpora, waiting, seconds: started.elapsed().as_secs_f64() })
}

/// One corpus of a run.
struct Job<'a> {
    config: &'a IngestConfig,
    corpus: &'a CorpusConfig,
    listing: Listing,
    /// What is added to.
    base: Option<Snapshot>,
    retried: Option<Retried>,
    surveyed: Surveyed,
    /// Whether the run writes it; the others only lend their captions to the tokenizer.
    is_chosen: bool,
    /// What goes into each unit; the names of their commits.
    work: Vec<Digest>,
    journal: Journal,
    seconds: f64,
}

impl<'a> Job<'a> {
    fn open(
        config: &'a IngestConfig,
        corpus: &'a CorpusConfig,
        store: &Store,
        mode: &Mode,
    ) -> Result<Self, IngestError> {
        let is_chosen = config.corpus_names().contains(&corpus.name.as_str());
        let base = match mode {
            Mode::Replace => None,
            Mode::Append | Mode::Retry(_) => store.newest_snapshot(&corpus.name)?,
        };
        let retried = match (mode, &base) {
            (Mode::Retry(classes), Some(base)) if is_chosen => {
                let retried = Retried::of(store, base, classes)?;
                if retried.n_inputs() == 0 {
                    let names: Vec<&str> = classes.iter().map(|class| class.name()).collect();
                    let detail = format!("its newest snapshot rejected no input for {}", names.join(" or "));
                    return Err(IngestError::NothingToAddTo { corpus: corpus.name.clone(), detail });
                }
                Some(retried)
            }
            (Mode::Retry(_), None) if is_chosen => {
                let detail = "it was never ingested into this store; use `imp-ingest run`".to_owned();
                return Err(IngestError::NothingToAddTo { corpus: corpus.name.clone(), detail });
            }
            _ => None,
        };
        let listing = Listing::open(config, corpus)?;
        let (surveyed, journal, seconds) = (Surveyed::default(), Journal::new(listing.n_units())?, 0.0);
        let work = Vec::new();
        Ok(Self { config, corpus, listing, base, retried, surveyed, is_chosen, work, journal, seconds })
    }

    /// Does this worker's units that nobody has done yet.
    fn do_units(
        &mut self,
        store: &Store,
        tokenizer: &CaptionTokenizer,
        rank: Rank,
        progress: &mut Progress,
    ) -> Result<(), IngestError> {
        let started = Instant::now();
        let (config, corpus, classes) = (self.config, self.corpus, &self.surveyed.classes);
        let sources = &Sources::new(config);
        let work = UnitWork { config, corpus, classes, tokenizer, store, sources };
        let retried = self.retried.as_ref().map(|retried| &retried.digest);
        let n_units = self.listing.n_units();
        self.work = (0..n_units)
            .map(|unit| work.digest(&self.listing.identity(unit)?, retried))
            .collect::<Result<_, IngestError>>()?;
        let expected = self.retried.as_ref().map_or(self.surveyed.n_worded, Retried::n_inputs);
        let mut seen = Seen { n_expected: expected, ..Seen::default() };
        progress.begin(&corpus.name, n_units, expected);
        for unit in (0..n_units).filter(|&unit| rank.does(unit)) {
            let commit = match UnitCommit::load(store, &corpus.name, &self.work[unit])? {
                Some(commit) => {
                    seen.n_inputs += commit.n_inputs;
                    seen.n_rejected += commit.n_rejected.values().sum::<u64>();
                    commit
                }
                None => {
                    let found = self.listing.read(unit)?;
                    let found = match &self.retried {
                        Some(retried) => retried.keep(found),
                        None => found,
                    };
                    work.pack(found, &mut seen, progress)?.store(store, &corpus.name, &self.work[unit])?
                }
            };
            progress.unit_done(commit.n_inputs);
            self.journal.add(unit, commit)?;
        }
        progress.end();
        self.seconds = started.elapsed().as_secs_f64();
        Ok(())
    }

    /// Looks which units of other workers are done.
    fn look_at_others(&mut self, store: &Store) -> Result<(), IngestError> {
        for (unit, work) in self.work.iter().enumerate() {
            if self.journal.commits[unit].is_some() {
                continue;
            }
            if let Some(commit) = UnitCommit::load(store, &self.corpus.name, work)? {
                self.journal.add(unit, commit)?;
            }
        }
        Ok(())
    }

    fn waits(&self) -> Option<Waiting> {
        let (n_done, n_units) = (self.journal.n_done(), self.journal.n_units());
        let corpus = self.corpus.name.clone();
        (n_done < n_units).then_some(Waiting { corpus, n_done, n_units })
    }

    fn done(self, tokenizer: &CaptionTokenizer) -> Done<'a> {
        Done {
            config: self.config,
            corpus: self.corpus,
            classes: self.surveyed.classes.names().to_vec(),
            tokenizer: tokenizer.entry.clone(),
            journal: self.journal,
            base: self.base,
            retried: self.retried,
        }
    }
}

/// Classes of every corpus, and the one tokenizer of the run: that of the snapshots that are added to, or the config's.
fn survey_all(config: &IngestConfig, store: &Store, jobs: &mut [Job<'_>]) -> Result<CaptionTokenizer, IngestError> {
    let of_base = jobs.iter().filter(|job| job.is_chosen).find_map(|job| job.base.as_ref());
    let of_base = of_base.map(|base| CaptionTokenizer::of_store(store, &base.manifest.tokenizer.digest)).transpose()?;
    let trains = of_base.is_none() && config.tokenizer.is_trained();
    let mut captions = if trains { Some(CaptionSpool::new()?) } else { None };
    for job in jobs.iter_mut().filter(|job| job.is_chosen || trains) {
        job.surveyed = survey::survey(config, job.corpus, &job.listing, job.base.as_ref(), captions.as_mut())?;
    }
    let tokenizer = match (of_base, captions) {
        (Some(tokenizer), _) => tokenizer,
        (None, Some(captions)) => CaptionTokenizer::train(&config.tokenizer, &mut captions.into_captions()?)?,
        (None, None) => CaptionTokenizer::read(&config.tokenizer, &config.root)?,
    };
    for job in jobs.iter().filter(|job| job.is_chosen) {
        if let Some(base) = job.base.as_ref().filter(|base| base.manifest.tokenizer != tokenizer.entry) {
            let found = base.manifest.tokenizer.digest.short().to_owned();
            let detail = format!(
                "its tokenizer is {found}…, that of an earlier corpus of this run {}…; add to them in separate runs",
                tokenizer.entry.digest.short()
            );
            return Err(IngestError::NothingToAddTo { corpus: job.corpus.name.clone(), detail });
        }
    }
    Ok(tokenizer)
}
