//! The `[ingest]` table: read once, checked once.
//!
//! In: a run file. Out: [`IngestConfig`], which states what it guarantees. Never: environment reads, defaults elsewhere.

mod corpus;
mod fetch;
mod limits;

use std::path::{Path, PathBuf};

use imp_schemas::run_file::RunFile;
use imp_schemas::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

pub(crate) use corpus::{Column, Columns, CorpusConfig, SplitRule};
use corpus::{RawCorpus, check_corpus};
pub(crate) use fetch::FetchConfig;
use fetch::check_fetch;
pub(crate) use limits::Limits;
use limits::check_limits;

use crate::error::IngestError;

/// Smallest vocabulary: 256 bytes, padding, one merge.
const MIN_VOCAB: usize = 258;

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIngest {
    #[serde(default = "default_root")]
    root: PathBuf,
    #[serde(default)]
    tokenizer: TokenizerSpec,
    #[serde(default = "default_shard_mib")]
    shard_mib: u64,
    #[serde(default = "default_unit_records")]
    unit_records: u64,
    #[serde(default = "default_share")]
    max_reject_share: f64,
    workers: Option<usize>,
    #[serde(default = "default_memory_mib")]
    memory_mib: u64,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    fetch: FetchConfig,
    #[serde(default)]
    corpus: Vec<RawCorpus>,
}

/// Where the tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TokenizerSpec {
    Train(TrainSpec),
    /// Relative to the root.
    File(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TrainSpec {
    pub(crate) vocab_size: usize,
}

impl Default for TrainSpec {
    fn default() -> Self {
        Self { vocab_size: 1024 }
    }
}

impl Default for TokenizerSpec {
    fn default() -> Self {
        Self::Train(TrainSpec::default())
    }
}

impl TokenizerSpec {
    /// Whether it is made from the captions of the run.
    pub(crate) fn is_trained(&self) -> bool {
        matches!(self, Self::Train(_))
    }
}

/// What a run of ingest does. Guarantees: at least one corpus, names unique and usable as folders, shares within [0, 1],
/// sizes above zero, a vocabulary that holds every byte.
#[derive(Debug, Clone)]
pub struct IngestConfig {
    pub(crate) root: PathBuf,
    pub(crate) tokenizer: TokenizerSpec,
    pub(crate) shard_bytes: u64,
    /// Inputs of a unit of work at most, about: a listing is cut into a power of two of them.
    pub(crate) unit_records: u64,
    pub(crate) workers: usize,
    /// What a worker may hold: media under way, what decoding takes, a row group.
    pub(crate) memory_bytes: u64,
    pub(crate) fetch: FetchConfig,
    pub(crate) corpora: Vec<CorpusConfig>,
    /// Names of the corpora to write; the tokenizer is made from all of them either way.
    pub(crate) only: Vec<String>,
    /// How corpora in object storage are reached; `None`: as the `AWS_*` variables say.
    store_options: Option<Vec<(String, String)>>,
}

impl IngestConfig {
    /// Reads the `[ingest]` table of `file`, which was read from `path`.
    ///
    /// # Errors
    /// The table is missing, a key is unknown or a value breaks its rule.
    pub fn of(file: &RunFile, path: &Path) -> Result<Self, IngestError> {
        let raw: RawIngest = file.table(path, "ingest")?;
        raw.try_into()
    }

    /// Reads the run file at `path`; for callers that need nothing else of it.
    ///
    /// # Errors
    /// As [`IngestConfig::of`], or the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, IngestError> {
        Self::of(&RunFile::read(path)?, path)
    }

    /// With the folder, or `s3://bucket/prefix`, that the corpora's paths are relative to.
    #[must_use]
    pub fn with_root(mut self, root: &Path) -> Self {
        self.root = root.to_owned();
        self
    }

    /// With `workers` verifying threads, at least one; the result does not depend on it.
    #[must_use]
    pub fn with_workers(mut self, workers: usize) -> Self {
        self.workers = workers.max(1);
        self
    }

    /// With object_store's own options (`aws_endpoint`, …) for corpora in object storage, in place of the `AWS_*` variables.
    #[must_use]
    pub fn with_store_options(mut self, options: &[(String, String)]) -> Self {
        self.store_options = Some(options.to_vec());
        self
    }

    /// Writes only the corpora named, all of them if none is.
    ///
    /// # Errors
    /// [`IngestError::Config`] if one is not in the config.
    pub fn only(mut self, names: &[String]) -> Result<Self, IngestError> {
        let have: Vec<&str> = self.corpora.iter().map(|c| c.name.as_str()).collect();
        if let Some(name) = names.iter().find(|name| !have.contains(&name.as_str())) {
            let hint = crate::text::did_you_mean(name, &have);
            return Err(broken("--corpus", format!("`{name}`"), format!("the config has {}{hint}", list(&have))));
        }
        self.only = names.to_vec();
        Ok(self)
    }

    /// Names of the corpora that a run writes.
    pub fn corpus_names(&self) -> Vec<&str> {
        let names = self.corpora.iter().map(|c| c.name.as_str());
        names.filter(|name| self.only.is_empty() || self.only.iter().any(|only| only == name)).collect()
    }

    /// `path` of the config as a path of this machine.
    pub(crate) fn resolve(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// `path` of the config as a URL, if it or the root is one.
    pub(crate) fn resolve_url(&self, path: &str) -> Option<String> {
        if path.contains("://") {
            return Some(path.to_owned());
        }
        let root = self.root.to_str().filter(|root| root.contains("://"))?;
        Some(format!("{}/{}", root.trim_end_matches('/'), path.trim_start_matches("./")))
    }

    /// Opens the store at `url`, `s3://bucket/prefix`.
    pub(crate) fn open_store(&self, url: &str) -> Result<Store, StoreError> {
        Store::open_with(url, &self.store_options())
    }

    /// How object storage is reached: as the caller says, or else as the environment does.
    pub(crate) fn store_options(&self) -> Vec<(String, String)> {
        self.store_options.clone().unwrap_or_else(Store::options_of_environment)
    }

    /// The part of the config that shapes the bytes of `corpus`; nothing in it depends on the machine.
    pub(crate) fn recorded(&self, corpus: &CorpusConfig) -> serde_json::Value {
        let file_name = |path: &String| path.rsplit('/').next().unwrap_or(path).to_owned();
        serde_json::json!({
            "path": file_name(&corpus.path),
            "media_root": corpus.media_root.as_ref().map(file_name),
            "class_names": corpus.class_names.as_ref().map(file_name),
            "class_folders": corpus.class_folders,
            "tar_in_key": corpus.tar_in_key,
            "columns": {
                "path": corpus.columns.path.name, "url": corpus.columns.url.name,
                "media": corpus.columns.media.name, "key": corpus.columns.key.name,
                "caption": corpus.columns.caption.name, "label": corpus.columns.label.name,
                "split": corpus.columns.split.name,
            },
            "split": corpus.split,
            "label_separator": corpus.label_separator,
            "caption_from_label": corpus.caption_from_label,
            "caption_if_none": corpus.caption_if_none,
            "limits": corpus.limits,
            "media": corpus.media,
            "clean": corpus.clean,
            "shard_bytes": self.shard_bytes,
            "unit_records": self.unit_records,
        })
    }
}

impl TryFrom<RawIngest> for IngestConfig {
    type Error = IngestError;

    fn try_from(raw: RawIngest) -> Result<Self, IngestError> {
        if raw.corpus.is_empty() {
            let rule = "must name at least one corpus: a table `[[ingest.corpus]]` each";
            return Err(broken("ingest.corpus", "empty".to_owned(), rule.to_owned()));
        }
        if let TokenizerSpec::Train(train) = &raw.tokenizer {
            within("ingest.tokenizer.train.vocab_size", train.vocab_size, MIN_VOCAB, 1_000_000)?;
        }
        within("ingest.shard_mib", raw.shard_mib, 1, 4096)?;
        within("ingest.unit_records", raw.unit_records, 1, 10_000_000)?;
        let share = check_share("ingest.max_reject_share", raw.max_reject_share)?;
        let workers = match raw.workers {
            Some(workers) => within("ingest.workers", workers, 1, 1024)?,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let memory_mib = within("ingest.memory_mib", raw.memory_mib, 256, 1 << 20)?;
        check_limits("ingest.limits", &raw.limits)?;
        check_fetch(&raw.fetch)?;
        let mut corpora: Vec<CorpusConfig> = Vec::new();
        for corpus in raw.corpus {
            let corpus = check_corpus(corpus, share, raw.limits)?;
            if corpora.iter().any(|other| other.name == corpus.name) {
                let rule = "must be another name than that of an earlier corpus".to_owned();
                return Err(broken("ingest.corpus.name", format!("`{}`", corpus.name), rule));
            }
            corpora.push(corpus);
        }
        let shard_bytes = raw.shard_mib << 20;
        let memory_bytes = memory_mib << 20;
        Ok(Self {
            root: raw.root,
            tokenizer: raw.tokenizer,
            shard_bytes,
            unit_records: raw.unit_records,
            workers,
            memory_bytes,
            fetch: raw.fetch,
            corpora,
            only: Vec::new(),
            store_options: None,
        })
    }
}

fn check_share(key: &str, share: f64) -> Result<f64, IngestError> {
    if (0.0..=1.0).contains(&share) {
        return Ok(share);
    }
    Err(broken(key, share.to_string(), "must lie within 0 and 1".to_owned()))
}

fn within<T: PartialOrd + std::fmt::Display>(key: &str, found: T, low: T, high: T) -> Result<T, IngestError> {
    if found >= low && found <= high {
        return Ok(found);
    }
    Err(broken(key, found.to_string(), format!("must lie within {low} and {high}")))
}

fn broken(key: &str, found: String, rule: String) -> IngestError {
    IngestError::Config { key: key.to_owned(), found, rule }
}

fn list(names: &[&str]) -> String {
    names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

fn default_root() -> PathBuf {
    PathBuf::from(".")
}

/// 256 MiB: the low end of DATA-PLANE's 256 MiB to 1 GiB, since a shard is held in memory until it is sealed.
fn default_memory_mib() -> u64 {
    1024
}

fn default_shard_mib() -> u64 {
    256
}

/// Words and places of so many records take some 10 MB of memory.
fn default_unit_records() -> u64 {
    10_000
}

fn default_share() -> f64 {
    0.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ingest: &str) -> Result<IngestConfig, IngestError> {
        let file: RunFile = toml::from_str(&format!("store = \"s\"\nrun = \"r\"\n[ingest]\n{ingest}")).unwrap();
        IngestConfig::of(&file, Path::new("run.toml"))
    }

    #[test]
    fn a_wrong_key_or_value_is_named_with_its_rule() {
        const CORPUS: &str = "[[ingest.corpus]]\nname = \"a\"\nkind = \"image-text\"\npath = \"x\"\n";
        let cases = [
            ("", "ingest.corpus", "at least one corpus"),
            (&format!("shard_mib = 0\n{CORPUS}"), "ingest.shard_mib", "1 and 4096"),
            (&format!("unit_records = 0\n{CORPUS}"), "ingest.unit_records", "1 and 10000000"),
            (&format!("{CORPUS}columns = {{ ulr = \"u\" }}\n"), "ulr", "did you mean `url`?"),
            (&format!("max_reject_share = 1.5\n{CORPUS}"), "1.5", "within 0 and 1"),
            (&format!("tokenizer = {{ train = {{ vocab_size = 100 }} }}\n{CORPUS}"), "vocab_size", "258"),
            (&format!("max_reject_shar = 0.1\n{CORPUS}"), "max_reject_shar", "did you mean `max_reject_share`?"),
            (&format!("{CORPUS}colums = {{}}\n"), "colums", "did you mean `columns`?"),
            (&format!("{CORPUS}columns = {{ pth = \"p\" }}\n"), "pth", "did you mean `path`?"),
            (&format!("{CORPUS}caption_from_label = [\"a photo\"]\n"), "`a photo`", "`{}` once"),
            (&format!("{CORPUS}label_separator = \"\"\n"), "ingest.corpus.a.label_separator", "between two labels"),
            (&format!("{CORPUS}split = {{ holdout = {{ test = 0.2 }} }}\n"), "holdout", "did you mean `hold_out`?"),
            (&format!("{CORPUS}split = {{ hold_out = {{ test = 0.7, val = 0.7 }} }}\n"), "hold_out", "at most 1"),
            (&format!("{CORPUS}{CORPUS}"), "`a`", "another name"),
            (&CORPUS.replace("\"a\"", "\"a/b\""), "`a/b`", "folder of the store"),
            (&CORPUS.replace("image-text", "imagetext"), "imagetext", "did you mean `image-text`?"),
            (&format!("fetch = {{ n_tries = 0 }}\n{CORPUS}"), "ingest.fetch.n_tries", "1 and 20"),
            (&format!("fetch = {{ contact = \"é\" }}\n{CORPUS}"), "ingest.fetch.contact", "ASCII"),
            (&format!("{CORPUS}limits = {{ max_media_mib = 0 }}\n"), "max_media_mib", "1 and 1024"),
        ];
        for (text, found, rule) in cases {
            let message = check(text).unwrap_err().to_string();
            assert!(message.contains(found) && message.contains(rule), "{text}\n→ {message}");
        }
    }

    #[test]
    fn a_corpus_that_is_not_in_the_config_gets_a_suggestion() {
        let config = check("[[ingest.corpus]]\nname = \"cifar10\"\nkind = \"image-text\"\npath = \"x\"\n").unwrap();
        let message = config.only(&["cifar".to_owned()]).unwrap_err().to_string();
        assert!(message.contains("did you mean `cifar10`?"), "{message}");
    }
}
