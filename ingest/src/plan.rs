//! Candidates → the order in which records enter shards, with captions, label and split settled.
//!
//! In: what a unit of a corpus offers, and the corpus's classes. Out: [`Plan`]: rows of each split in an order that depends on
//! keys alone, so that a corpus
//! sorted by class does not lie class by class in its row groups, and a new record moves no other.
//! Never: reads a medium.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use imp_schemas::reject::{Reject, RejectReason};

use crate::config::{CorpusConfig, IngestConfig, SplitRule};
use crate::corpus::{Candidate, Found, Place};
use crate::error::IngestError;
use crate::text::{Refusal, Wording, matches_glob, utf8};

/// The split of a record without any other.
pub(crate) const DEFAULT_SPLIT: &str = "train";

/// A record to be: only its medium has not been looked at.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) key: String,
    pub(crate) source: String,
    pub(crate) row: u64,
    pub(crate) listed_in: Option<Arc<str>>,
    pub(crate) captions: Vec<String>,
    /// Indices into [`Classes::names`], distinct.
    pub(crate) label_ids: Vec<usize>,
    pub(crate) medium: Place,
}

impl Planned {
    /// Why this record is not kept.
    pub(crate) fn reject(&self, (reason, detail): Refusal, first_bytes: &[u8]) -> Reject {
        let (source, detail) = match &self.listed_in {
            Some(table) => (table.to_string(), format!("`{}`: {detail}", self.source)),
            None => (self.source.clone(), detail),
        };
        let first_bytes = first_bytes.iter().copied().take(32).collect();
        Reject { source, row: self.row, key: self.key.clone(), reason, detail, first_bytes }
    }
}

/// Everything about a unit that can be known without its media.
#[derive(Debug)]
pub(crate) struct Plan {
    /// By split, `train` first; within a split in the order of its rows.
    pub(crate) splits: Vec<(String, Vec<Planned>)>,
    pub(crate) rejects: Vec<Reject>,
    pub(crate) n_inputs: u64,
    pub(crate) n_ignored: u64,
    /// Keeps unpacked tars alive.
    pub(crate) spools: Vec<tempfile::NamedTempFile>,
}

/// The classes of a corpus, by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Classes {
    names: Vec<String>,
    ids: HashMap<String, usize>,
}

impl Classes {
    /// Those of `class_names`, by line; `None` if the config has none.
    ///
    /// # Errors
    /// The list cannot be read, or does not name a class a line.
    pub(crate) fn given(config: &IngestConfig, corpus: &CorpusConfig) -> Result<Option<Self>, IngestError> {
        let names = corpus.class_names.as_ref().map(|path| read_classes(config, corpus, path)).transpose()?;
        Ok(names.map(Self::of))
    }

    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    pub(crate) fn of(names: Vec<String>) -> Self {
        let ids = names.iter().cloned().enumerate().map(|(id, name)| (name, id)).collect();
        Self { names, ids }
    }

    /// A label is a class's name, or its index.
    fn id(&self, label: &str) -> Result<usize, Refusal> {
        let n_classes = self.names.len();
        let by_index = || label.parse::<usize>().ok().filter(|&id| id < n_classes);
        self.ids.get(label).copied().or_else(by_index).ok_or_else(|| {
            let wanted = format!("a name of the class list or 0 to {}", n_classes.saturating_sub(1));
            (RejectReason::UnknownClass, format!("class `{label}`, wanted {wanted}"))
        })
    }

    /// The classes of `wording`, each once, and its captions: its own, or sentences about the classes, or the corpus's.
    ///
    /// # Errors
    /// A class is not in the list.
    pub(crate) fn settle(&self, corpus: &CorpusConfig, wording: Wording) -> Result<(Vec<String>, Vec<usize>), Refusal> {
        let Wording { mut captions, labels } = wording;
        let (mut label_ids, mut seen) = (Vec::new(), HashSet::new());
        for label in &labels {
            let id = self.id(label)?;
            if seen.insert(id) {
                label_ids.push(id);
            }
        }
        if captions.is_empty() && !label_ids.is_empty() {
            let names: Vec<&str> = label_ids.iter().map(|&id| self.names[id].as_str()).collect();
            captions = captions_from(&corpus.caption_from_label, &names);
        }
        if captions.is_empty() {
            captions.clone_from(&corpus.caption_if_none);
        }
        Ok((captions, label_ids))
    }
}

/// Settles what every record of a unit of `corpus` is.
///
/// # Errors
/// The split of a record is not clear.
pub(crate) fn plan(corpus: &CorpusConfig, found: Found, classes: &Classes) -> Result<Plan, IngestError> {
    let Found { candidates, mut rejects, n_ignored, spools } = found;
    let n_inputs = (candidates.len() + rejects.len()) as u64;
    let mut by_split: BTreeMap<String, Vec<Planned>> = BTreeMap::new();
    let mut places: HashMap<String, String> = HashMap::new();
    for candidate in candidates {
        let split = split_of(corpus, &candidate)?;
        let Candidate { key, source, row, listed_in, wording, medium, .. } = candidate;
        let settled = classes.settle(corpus, wording);
        let mut planned = Planned { key, source, row, listed_in, captions: Vec::new(), label_ids: Vec::new(), medium };
        let refusal = match settled {
            Err(refusal) => Some(refusal),
            Ok((captions, label_ids)) => {
                (planned.captions, planned.label_ids) = (captions, label_ids);
                let is_bare = planned.captions.is_empty() && planned.label_ids.is_empty();
                let detail = "neither a caption nor a label".to_owned();
                let earlier = places.get(&planned.key);
                is_bare.then_some((RejectReason::EmptyCaption, detail)).or_else(|| {
                    earlier
                        .map(|at| (RejectReason::DuplicateKey, format!("`{at}` has the key `{}` already", planned.key)))
                })
            }
        };
        if let Some(refusal) = refusal {
            rejects.push(planned.reject(refusal, &[]));
            continue;
        }
        places.insert(planned.key.clone(), planned.source.clone());
        by_split.entry(split).or_default().push(planned);
    }
    let mut splits: Vec<(String, Vec<Planned>)> = by_split.into_iter().collect();
    splits.sort_by_key(|(name, _)| name != DEFAULT_SPLIT);
    for (_, records) in &mut splits {
        records.sort_by_cached_key(|record| *blake3::hash(record.key.as_bytes()).as_bytes());
    }
    Ok(Plan { splits, rejects, n_inputs, n_ignored, spools })
}

/// Sentences about the labels of one record: `_` stands for a space in the names of folders.
/// Source: IMP.md 10.1, which joins the names of several labels.
fn captions_from(templates: &[String], labels: &[&str]) -> Vec<String> {
    let labels = labels.join(" and ").replace('_', " ");
    templates.iter().map(|template| template.replace("{}", &labels)).collect()
}

fn read_classes(config: &IngestConfig, corpus: &CorpusConfig, path: &str) -> Result<Vec<String>, IngestError> {
    let bytes = crate::corpus::read_small(config, path)?;
    let broken = |found: String, rule: &str| IngestError::Config {
        key: format!("ingest.corpus.{}.class_names", corpus.name),
        found: format!("`{path}`, {found}"),
        rule: rule.to_owned(),
    };
    let text = utf8(&bytes, path).map_err(|(_, detail)| broken(detail, "must be UTF-8, a class a line"))?;
    let names: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    let n_names = names.iter().rposition(|name| !name.is_empty()).map_or(0, |last| last + 1);
    let names = names[..n_names].to_vec();
    let distinct: BTreeSet<&String> = names.iter().collect();
    if names.is_empty() || distinct.len() != names.len() || names.iter().any(String::is_empty) {
        let found = format!("{} lines, {} of them distinct", names.len(), distinct.len());
        return Err(broken(found, "must name a class a line, each once, none blank"));
    }
    Ok(names)
}

fn split_of(corpus: &CorpusConfig, candidate: &Candidate) -> Result<String, IngestError> {
    let of_column = || candidate.split.clone().unwrap_or_else(|| DEFAULT_SPLIT.to_owned());
    match &corpus.split {
        None => Ok(of_column()),
        Some(SplitRule::Constant(name)) => Ok(name.clone()),
        Some(SplitRule::HoldOut(shares)) => {
            let mut draw = unit_hash(&candidate.key);
            for (name, share) in shares {
                if draw < *share {
                    return Ok(name.clone());
                }
                draw -= share;
            }
            Ok(DEFAULT_SPLIT.to_owned())
        }
        Some(SplitRule::FromPath(globs)) => {
            let matching: Vec<&String> = globs
                .iter()
                .filter(|(_, glob)| matches_source(glob, &candidate.source))
                .map(|(name, _)| name)
                .collect();
            match matching[..] {
                [name] => Ok(name.clone()),
                _ => {
                    let n = if matching.is_empty() { "no".to_owned() } else { matching.len().to_string() };
                    let globs: Vec<String> = globs.values().map(|glob| format!("`{glob}`")).collect();
                    let detail = format!("{n} globs of `split.from_path` match it, wanted one of {}", globs.join(", "));
                    let (corpus, source_name) = (corpus.name.clone(), candidate.source.clone());
                    Err(IngestError::Split { corpus, source_name, detail })
                }
            }
        }
    }
}

/// Whether `glob` matches the source, or the source from one of its folders or tars on.
fn matches_source(glob: &str, source: &str) -> bool {
    let starts = source.match_indices('/').map(|(at, _)| at + 1);
    std::iter::once(0).chain(starts).any(|start| matches_glob(glob, &source[start..]))
}

/// Uniform in [0, 1) by the key; another hash than that of the row order, so that the two are independent.
fn unit_hash(key: &str) -> f64 {
    let digest = blake3::Hasher::new_derive_key("imp-ingest 2026 split hold_out").update(key.as_bytes()).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    (u64::from_le_bytes(first) >> 11) as f64 / (1u64 << 53) as f64
}
